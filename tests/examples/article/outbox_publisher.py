# ruff: noqa: F821
import time

import cqrs_sync as cqrs
from cqrs_sync.adapters import kafka as kafka_adapters
from cqrs_sync.message_brokers import kafka

broker = kafka.KafkaMessageBroker(
    producer=kafka_adapters.kafka_producer_factory(dsn="localhost:9092"),
)
producer = cqrs.EventProducer(
    message_broker=broker,
    repository=outbox_repository,  # must implement the outbox repository protocol
)


def publish_loop() -> None:
    for events in producer.event_batch_generator():
        for event in events:
            producer.send_message(event)  # push to the broker
        producer.repository.commit()  # only after successful publish
        time.sleep(10)  # throttle polling (tune in production)
