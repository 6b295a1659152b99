"""Where the events go: a journal file that any machine has, or Kafka. Both can be read from the beginning."""

import abc
import importlib.util
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cqrs_sync.message_brokers import Message, MessageBroker


def has_kafka_client() -> bool:
    """Whether confluent-kafka is installed."""
    return importlib.util.find_spec("confluent_kafka") is not None


@contextmanager
def open_topic(kafka: str | None, directory: Path) -> Iterator["Topic"]:
    """Kafka at an address; else one in this process, if its client is there to play it; else a file."""
    if not has_kafka_client():
        yield Journal(directory / "journal.jsonl")
        return
    from examples.shop.kafka_topic import KafkaTopic, kafka_in_this_process

    with ExitStack() as stack:
        name = f"Kafka at {kafka}" if kafka else "Kafka, played by the mock cluster of its C client in this process"
        address = kafka or stack.enter_context(kafka_in_this_process())
        try:
            topic = stack.enter_context(closing(KafkaTopic(address, name)))
        except ConnectionError as error:
            raise SystemExit(str(error)) from None
        yield topic


class Arrival(NamedTuple):
    """An event of an order, as another service gets it."""

    event_id: uuid.UUID
    customer: str
    order_id: str
    event_name: str = "order_placed"


class Topic(abc.ABC):
    """One end of what the demo compares.

    Attributes:
        name: what it is, for people.
        options: tells a relay to publish there.
    """

    name: str
    options: Sequence[str]

    @abc.abstractmethod
    def arrivals(self) -> list[Arrival]:
        """Return what has arrived in this run of the demo, in order for each customer."""


class Journal(Topic):
    """Reads what a :class:`JournalBroker` has written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = "a journal file that stands in for Kafka"
        self.options = ["--journal", str(path)]

    def arrivals(self) -> list[Arrival]:
        """Return all whole lines."""
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []
        return [_arrival(json.loads(line)) for line in lines]


def _arrival(record: Mapping[str, Any]) -> Arrival:
    event = record["event"]
    return Arrival(uuid.UUID(record["id"]), record["key"], event["payload"]["order_id"], event["event_name"])


class JournalBroker(MessageBroker):
    """Appends messages to a file that outlives its process; for one process at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        whole = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)  # a process that was killed may have left half a line

    def send_message(self, message: Message) -> None:
        """Write a line."""
        line = {"id": str(message.message_id), "key": message.key, "event": message.payload}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
