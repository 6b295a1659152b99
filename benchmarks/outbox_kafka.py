"""Draining an outbox to Kafka, beside the Kafka client alone, and with several relay processes."""

from __future__ import annotations

import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from time import perf_counter
from typing import Any, TypeAlias

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import servers
from benchmarks.children import child, hear, tell
from benchmarks.outbox import BARE, BATCH, NullBroker, create, drain_bare, freshly, refill_bare
from benchmarks.outbox_rows import fill, order_placed, outbox_of
from benchmarks.progress import say
from benchmarks.report import Row, Section
from benchmarks.timing import Effort, race
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker, KafkaProducer
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxRelay
from cqrs_sync.outbox.encoding import PARTITIONS
from cqrs_sync.outbox.sqlalchemy import Base

Record: TypeAlias = tuple[str, bytes, bytes, list[tuple[str, bytes]]]
"""Topic, value, key and headers."""

BAR = 30
"""How many characters the longest bar has."""

ALONE = "the client alone, flushed every 500"
NULL = "OutboxRelay to a null broker"
OURS = "OutboxRelay to Kafka"
TWO = "two of them in threads of one process"


@dataclass(frozen=True)
class Client:
    """A Kafka client: the library's adapter of it, and the client alone with the same settings.

    Attributes:
        adapter: makes the adapter for an address.
        alone: makes a function that sends records and returns when Kafka has them all, and one that closes.
    """

    adapter: Callable[[str, bool], KafkaProducer]
    alone: Callable[[str, bool], tuple[Callable[[Sequence[Record]], None], Callable[[], object]]]


def _kafka_python(address: str, mock: bool) -> KafkaProducer:
    from cqrs_sync.adapters.kafka import KafkaProducerAdapter

    return KafkaProducerAdapter(address, **_imitated(mock))


def _kafka_python_alone(address: str, mock: bool) -> tuple[Callable[[Sequence[Record]], None], Callable[[], object]]:
    import kafka

    producer = kafka.KafkaProducer(bootstrap_servers=address, **KAFKA_PYTHON, **_imitated(mock))

    def send(records: Sequence[Record]) -> None:
        futures = [producer.send(topic, value, key, headers) for topic, value, key, headers in records]
        producer.flush()
        if not all(future.succeeded() for future in futures):
            raise RuntimeError("Kafka has not taken everything")

    return send, producer.close


def _imitated(mock: bool) -> dict[str, Any]:
    return {"api_version": (2, 3)} if mock else {}  # the imitation cannot say what it speaks


def _confluent(address: str, _: bool) -> KafkaProducer:
    from cqrs_sync.adapters.confluent import ConfluentProducerAdapter

    return ConfluentProducerAdapter(address)


def _confluent_alone(address: str, _: bool) -> tuple[Callable[[Sequence[Record]], None], Callable[[], object]]:
    import confluent_kafka

    producer = confluent_kafka.Producer({"bootstrap.servers": address} | CONFLUENT)
    taken = []

    def send(records: Sequence[Record]) -> None:
        taken.clear()
        for topic, value, key, headers in records:
            producer.produce(topic, value, key, headers=headers, on_delivery=lambda error, _: taken.append(error))
        producer.flush(30)
        if taken.count(None) != len(records):
            raise RuntimeError("Kafka has not taken everything")

    return send, lambda: producer.flush(1)


# What the adapters set by default.
KAFKA_PYTHON: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": False,
    "max_in_flight_requests_per_connection": 1,
    "batch_size": 128 * 1024,
}
CONFLUENT: dict[str, Any] = {"acks": "all", "enable.idempotence": True, "linger.ms": 1, "partitioner": "murmur2_random"}

CLIENTS = {
    "kafka-python": Client(_kafka_python, _kafka_python_alone),
    "confluent-kafka": Client(_confluent, _confluent_alone),
}


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    for name, client in CLIENTS.items():
        title = f"outbox to Kafka with {name}: acks=all, {BATCH} at a time, seconds per event"
        yield from _measured(title, client, effort)
    for name in CLIENTS:
        title = f"outbox to Kafka with {name}: {2 * effort.events:,} events by several relay processes"
        try:
            address = servers.kafka(mock=not effort.servers)
            with servers.database() as engine:
                Base.metadata.create_all(engine)
                yield _scaled(title, engine, address, name, effort)
        except (LookupError, ImportError) as error:
            yield servers.absent(title, error)


def _measured(title: str, client: Client, effort: Effort) -> Iterator[Section]:
    try:
        address = servers.kafka(mock=not effort.servers)
        with servers.database() as engine, ExitStack() as stack:
            yield _beside_the_client(title, engine, address, client, effort, stack)
    except (LookupError, ImportError) as error:
        yield servers.absent(title, error)


def _beside_the_client(
    title: str, engine: Engine, address: str, client: Client, effort: Effort, stack: ExitStack
) -> Section:
    create(engine)
    send, close = client.alone(address, not effort.servers)
    stack.callback(close)
    broker = stack.enter_context(KafkaMessageBroker(client.adapter(address, not effort.servers)))
    records = _records(engine, effort.events)
    sessions = sessionmaker(engine)

    def refill() -> None:
        fill(engine, effort.events)

    times = race(
        {
            ALONE: freshly(lambda: None, lambda: _send(send, records)),
            BARE: freshly(
                lambda: refill_bare(engine, effort.events),
                lambda: drain_bare(engine, lambda rows: send([_bare_record(row) for row in rows])),
            ),
            NULL: freshly(refill, OutboxRelay(sessions, NullBroker()).drain),
            OURS: freshly(refill, OutboxRelay(sessions, broker).drain),
            TWO: freshly(refill, lambda: _drain_in_two_threads(sessions, broker)),
        },
        rounds=effort.drains,
        slice=0,
        said=title.split(":")[0],
    )
    rows = [
        Row(
            name=name,
            seconds=times.median(name),
            figure=None if name is NULL else 100 / times.ratio(name, ALONE),
            unit=" % of alone",
            at_least=80 if name is OURS else None,
            note=f"{1 / times.median(name):,.0f}/s",
        )
        for name in (ALONE, BARE, NULL, OURS, TWO)
    ]
    return Section(title, rows, f"{servers.settings(engine)}. {_where(effort)}")


def _drain_in_two_threads(sessions: Callable[[], Any], broker: MessageBroker) -> int:
    with ThreadPoolExecutor(2) as pool:
        relays = [OutboxRelay(sessions, broker) for _ in range(2)]
        return sum(pool.map(drain_among_others, relays))


def drain_among_others(relay: OutboxRelay) -> int:
    """Drain until nothing is pending; where the others have locked all partitions, nothing can be claimed meanwhile."""
    drained = 0
    while (published := relay.drain()) or relay.health().pending:
        drained += published
        time.sleep(0.002)
    return drained


def _records(engine: Engine, events: int) -> list[Record]:
    """What the relay sends, made beforehand."""
    fill(engine, events)
    with Session(engine) as session:
        stored = outbox_of(session).get_many(events, partitions=PARTITIONS)
        fields = attrgetter("id", "event_id", "event_name", "topic", "partition_key", "payload", "content_type")
        return [_bare_record(fields(event)) for event in stored]


def _bare_record(row: Sequence[Any]) -> Record:
    _, event_id, event_name, topic, key, payload, content_type, *_ = row
    headers = {"message-id": str(event_id), "message-name": event_name, "content-type": content_type}
    return topic, bytes(payload), key.encode(), [(name, value.encode()) for name, value in headers.items()]


def _send(send: Callable[[Sequence[Record]], None], records: Sequence[Record]) -> int:
    for start in range(0, len(records), BATCH):
        send(records[start : start + BATCH])
    return len(records)


def _where(effort: Effort) -> str:
    kafka = "Apache Kafka, one node" if effort.servers else "librdkafka's imitation of Kafka"
    return f"{kafka}, 4 partitions, on the same machine."


def _scaled(title: str, engine: Engine, address: str, name: str, effort: Effort) -> Section:
    events = 2 * effort.events
    taken: dict[int, list[float]] = {processes: [] for processes in effort.relays}
    for number in range(rounds := min(3, effort.drains)):
        for processes in effort.relays:
            say(f"{title.split(':')[0]}: {processes} at work, round {number + 1} of {rounds}")
            fill(engine, events)
            taken[processes].append(_drained_by(processes, engine, address, name, mock=not effort.servers) / events)
    medians = {processes: statistics.median(seconds) for processes, seconds in taken.items()}
    fastest = min(medians.values())
    rows = [
        Row(
            name=f"{processes} relay process{'es' if processes > 1 else ''}",
            seconds=seconds,
            figure=medians[1] / seconds,
            unit="x one",
            note=f"{'█' * round(BAR * fastest / seconds)} {1 / seconds:,.0f}/s",
        )
        for processes, seconds in medians.items()
    ]
    return Section(title, rows, f"{servers.settings(engine)}. {_where(effort)} Seconds per event, of all together.")


def _drained_by(processes: int, engine: Engine, address: str, name: str, *, mock: bool) -> float:
    """Start relay processes, let them go all at once, and return how long it took until the last had nothing to do."""
    url = engine.url.render_as_string(hide_password=False)
    arguments = (url, address, name, str(int(mock)))
    with ExitStack() as stack:
        relays = [stack.enter_context(child("benchmarks.outbox_kafka", *arguments)) for _ in range(processes)]
        for relay in relays:
            hear(relay, "ready")
        started = perf_counter()
        for relay in relays:
            tell(relay, "go")
        for relay in relays:
            hear(relay, "done")
        return perf_counter() - started


def main() -> None:
    """Drain an outbox, from a process of its own, once standard input says so."""
    url, address, name, mock = sys.argv[1:]
    engine = create_engine(url)
    with KafkaMessageBroker(CLIENTS[name].adapter(address, mock == "1")) as broker:
        relay = OutboxRelay(sessionmaker(engine), broker)
        broker.send_message(_warming())  # connected, and the topic known
        relay.health()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        drain_among_others(relay)
        sys.stdout.write("done\n")
        sys.stdout.flush()
    engine.dispose()


def _warming() -> Message:
    event = order_placed()
    return Message(event.event_name, event.topic, None, uuid.uuid4(), b"{}", key=event.partition_key)


if __name__ == "__main__":
    main()
