"""Kafka for the demo, one that runs somewhere or one in this process: ``pip install confluent-kafka``."""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from examples.shop.messages import ORDERS_TOPIC
from examples.shop.topics import Arrival, Topic

PATIENCE = 10.0
"""Seconds that Kafka may take to answer."""


class KafkaTopic(Topic):
    """Reads what arrives in the topic of the orders from now on.

    Raises:
        ConnectionError: there is no Kafka.
    """

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.options = ["--kafka", address]
        self._consumer = Consumer(
            {"bootstrap.servers": address, "group.id": "shop-demo", "fetch.wait.max.ms": 10, "log_level": 0}
        )
        try:
            self._begin = self._ends()
        except KafkaException as error:
            self._consumer.close()
            raise ConnectionError(f"no Kafka at {address}: {error.args[0].str()}") from None

    def arrivals(self) -> list[Arrival]:
        """Return what is there beyond the beginning."""
        ends = self._ends()
        begin = {number: self._begin.get(number, 0) for number in ends}
        self._consumer.assign([TopicPartition(ORDERS_TOPIC, number, offset) for number, offset in begin.items()])
        expected = sum(ends[number] - offset for number, offset in begin.items())
        return [_arrival(self._next()) for _ in range(expected)]

    def _ends(self) -> Mapping[int, int]:
        partitions = self._consumer.list_topics(ORDERS_TOPIC, PATIENCE).topics[ORDERS_TOPIC].partitions
        ends = {
            number: self._consumer.get_watermark_offsets(TopicPartition(ORDERS_TOPIC, number), PATIENCE)
            for number in partitions
        }
        return {number: end for number, (_, end) in ends.items()}

    def _next(self) -> Message:
        message = self._consumer.poll(PATIENCE)
        if message is None or message.error():
            raise ConnectionError(f"Kafka does not give the messages of {ORDERS_TOPIC}")
        return message

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def _arrival(message: Message) -> Arrival:
    headers: dict[str, Any] = dict(message.headers() or [])
    customer, event = message.key() or b"", json.loads(message.value() or b"")
    event_id = uuid.UUID(headers["message-id"].decode())
    return Arrival(event_id, customer.decode(), event["payload"]["order_id"], event["event_name"])


@contextmanager
def kafka_in_this_process() -> Iterator[str]:
    """Run the C library's mock cluster, which other processes reach over TCP; yields its address."""
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = owner.list_topics(timeout=PATIENCE).brokers.values()
    yield f"{broker.host}:{broker.port}"
    owner.flush(0)
