"""The outbox for minutes: relays killed all the time, and servers with them; servers that are away; a million rows."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import random
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxRelay
from cqrs_sync.outbox.encoding import PARTITIONS
from tests import kafka as servers
from tests import postgres
from tests.integration import outbox_world as world
from tests.integration.outbox_world import QUICK, Broker, Counted, Journal, Relays, Repository

pytestmark = [
    pytest.mark.soak,
    # kafka-python leaves a socket to the garbage collector for every connection that fails.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

MINUTES = 300.0
"""Seconds after which something that takes a minute has failed."""


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # while the filter above holds


@pytest.fixture
def local(kafka: servers.Kafka) -> servers.LocalKafka:
    if not isinstance(kafka, servers.LocalKafka):
        pytest.skip("the Kafka of CQRS_TEST_KAFKA cannot be killed")
    return kafka


def new_topic(kafka: servers.Kafka) -> str:
    topic = f"soak-{uuid.uuid4().hex}"
    servers.create(kafka, topic, partitions=4)
    return topic


# --- kills -------------------------------------------------------------------------------------------------------


def test_twenty_thousand_events_while_one_of_four_relays_is_killed_every_second(
    kafka: servers.Kafka, postgres_url: str, tmp_path: Path
) -> None:
    """At any time, wherever it is; events are stored meanwhile, and Kafka has them all."""
    count, keys, batch = 20_000, 500, 20
    journal, topic = Journal(tmp_path / "journal"), new_topic(kafka)
    events = [event.model_copy(update={"topic": topic}) for event in world.numbered(count, keys)]
    options: dict[str, Any] = {"kafka": kafka.address, "batch_size": batch}
    with world.database(postgres_url) as url, world.engine_of(url) as engine, world.children() as children:
        relays = Relays(children, url, journal, 4, **options)

        def write() -> None:
            for first in range(0, count, 100):
                world.store(sessionmaker(engine), events[first : first + 100])
                time.sleep(0.15)

        def kill_and_look() -> bool:
            time.sleep(1)
            relays.kill()
            return world.statuses(engine) == {"produced": count}

        writer = threading.Thread(target=write)
        writer.start()
        world.eventually(kill_and_look, MINUTES)
        writer.join()
        relays.end()
    expected = world.expected(count, keys)
    again = journal.check(expected, relays.killed)
    assert again <= journal.check_read(servers.read(kafka.address, topic), expected, relays.killed)
    assert len(relays.killed) >= 30
    assert journal.interrupted(relays.killed)


def write_until(until: float, engine: sa.Engine, topic: str, key: str) -> None:
    """Store one event after the other; where the database is killed, nobody knows of the last."""
    for number in itertools.count():
        if time.monotonic() > until:
            return
        with contextlib.suppress(DBAPIError):
            world.store(sessionmaker(engine), [Counted(payload=number, partition_key=key, topic=topic)])
        time.sleep(0.005)


def kill_something(relays: Relays, server: postgres.LocalPostgres, kafka: servers.LocalKafka) -> None:
    match random.randrange(6):
        case 0:
            with server.away():
                time.sleep(0.2)
        case 1:
            with kafka.away():
                time.sleep(0.5)
        case _:
            relays.kill()
    time.sleep(0.3)


def test_everything_is_killed_in_turn_and_kafka_has_every_event_in_order(
    local: servers.LocalKafka, tmp_path: Path
) -> None:
    """Relays, the database and Kafka, while eight writers write; for a minute."""
    topic = new_topic(local)
    with postgres.local() as server, world.engine_of(server.url) as engine, world.children() as children:
        world.Base.metadata.create_all(engine)
        relays = Relays(children, server.url, Journal(tmp_path / "journal"), 3, kafka=local.address)
        until = time.monotonic() + 60
        writers = [
            threading.Thread(target=write_until, args=(until, engine, topic, f"key-{number}")) for number in range(8)
        ]
        for writer in writers:
            writer.start()
        while time.monotonic() < until:
            kill_something(relays, server, local)
        for writer in writers:
            writer.join()
        world.eventually(lambda: set(world.statuses(engine)) == {"produced"}, MINUTES)
        relays.end()
        stored: defaultdict[str, list[int]] = defaultdict(list)
        for row in world.rows(engine):
            stored[row.partition_key].append(json.loads(row.payload)["payload"])
            assert row.attempts == 0
    found = servers.read(local.address, topic)
    assert world.first_deliveries(found) == stored
    assert len(found) >= sum(map(len, stored.values())) > 1000
    assert len(relays.killed) > 5


# --- a broker that is away ---------------------------------------------------------------------------------------


class Watched(MessageBroker):
    """Counts what becomes of each batch, and hands it on."""

    def __init__(self, inner: MessageBroker) -> None:
        self._inner = inner
        self.refused: list[int] = []

    def send_message(self, message: Message) -> None:
        raise NotImplementedError("a relay sends batches")

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        results = self._inner.send_messages(messages)
        if any(isinstance(result, BrokerUnavailable) for result in results):
            self.refused.append(len(messages))
        return results


class Resources:
    """What this process has of the system: threads of all kinds, open files, and kilobytes of memory."""

    def __init__(self) -> None:
        own = Path("/proc/self")
        if not own.exists():
            pytest.skip("only Linux tells")
        gc.collect()
        self.threads, self.files = len(list(own.glob("task/*"))), len(list(own.glob("fd/*")))
        self.kilobytes = 4 * int((own / "statm").read_text().split()[1])


@pytest.fixture
def unlogged() -> Iterator[None]:
    """pytest keeps what is logged, and with it the clients that it tells of."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("unlogged")
@pytest.mark.parametrize("client", [ConfluentProducerAdapter, KafkaProducerAdapter])
def test_a_kafka_that_is_away_for_a_hundred_polls_gets_everything_in_order(
    local: servers.LocalKafka, postgres_url: str, client: Any
) -> None:
    """No attempt is burnt, there is one probe for each wait, and nothing is left of clients that were given up."""
    topic = new_topic(local)
    events = [event.model_copy(update={"topic": topic}) for event in world.numbered(3000, 50)]
    with (
        world.database(postgres_url) as url,
        world.engine_of(url) as engine,
        KafkaMessageBroker(client(local.address, timeout=0.6)) as kafka,
    ):
        sessions, broker = sessionmaker(engine), Watched(kafka)
        world.store(sessions, events[:1000])
        with OutboxRelay(sessions, broker, 100, 0.05, outage_backoff=QUICK, repository=Repository) as relay:
            world.eventually(lambda: world.statuses(engine) == {"produced": 1000}, MINUTES)
            with local.away():
                already = len(broker.refused)
                world.store(sessions, events[1000:])
                world.eventually(lambda: len(broker.refused) >= already + 20, MINUTES)
                before = Resources()
                world.eventually(lambda: len(broker.refused) >= already + 120, MINUTES)
                after = Resources()
                assert isinstance(relay.last_error, BrokerUnavailable)
                assert set(broker.refused[already + 1 :]) == {1}, "probes alone"
            world.eventually(lambda: world.statuses(engine) == {"produced": 3000}, MINUTES)
        assert {row.attempts for row in world.rows(engine)} == {0}
    assert after.threads - before.threads < 10
    assert after.files - before.files < 10
    assert after.kilobytes - before.kilobytes < 5_000, "50 kB for each client"
    assert world.first_deliveries(servers.read(local.address, topic)) == world.expected(3000, 50)


# --- a million rows ----------------------------------------------------------------------------------------------

MILLION = 1_000_000


def fill(engine: sa.Engine, count: int, status: str) -> None:
    """Add rows, without a pass through Python."""
    produced_at = "now() - interval '1 year'" if status == "produced" else "NULL"
    columns = "event_id, event_name, topic, partition_key, partition, payload, created_at, status, produced_at"
    row = f"gen_random_uuid(), 'counted', 'counted', 'key-' || n % 5000, n % 5000 % {PARTITIONS}, '{{}}', now()"
    rows = f"SELECT {row}, '{status}', {produced_at} FROM generate_series(1, {count}) AS n"
    with engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO outbox ({columns}) {rows}"))


def drain(engine: sa.Engine) -> list[float]:
    """Claim batch after batch and mark it; returns the milliseconds that each claim took."""
    took: list[float] = []
    with closing(Repository(sessionmaker(engine)())) as outbox:
        while True:
            begin = time.perf_counter()
            events = outbox.get_many(500)
            took.append((time.perf_counter() - begin) * 1000)
            if not events:
                return took[:-1]
            outbox.mark_produced([event.id for event in events])
            outbox.commit()


def test_a_claim_takes_as_long_with_a_million_events_as_with_few(postgres_url: str) -> None:
    """From the first batch to the last."""
    with world.database(postgres_url) as url, world.engine_of(url) as engine:
        fill(engine, 20_000, "new")
        few = statistics.median(drain(engine))
        fill(engine, MILLION, "new")
        took = drain(engine)
        assert world.statuses(engine) == {"produced": MILLION + 20_000}
    assert len(took) >= MILLION / 500
    medians = [statistics.median(took[first : first + 200]) for first in range(0, len(took), 200)]
    assert max(medians) < 3 * few, (few, medians)


def test_a_million_events_are_purged_and_nobody_waits(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Writers and a relay are at work, and whoever waits for a lock for a moment fails."""
    options = {"connect_args": {"options": "-c lock_timeout=100ms"}}
    with world.database(postgres_url) as url, world.engine_of(url, **options) as engine:
        fill(engine, MILLION, "produced")
        sessions, broker, purged = sessionmaker(engine), Broker(), threading.Event()
        written: list[int] = []

        def write(key: str) -> None:
            number = 0
            while not purged.is_set():
                world.store(sessions, [Counted(payload=number, partition_key=key)])
                number += 1
            written.append(number)

        writers = [threading.Thread(target=write, args=(f"key-{number}",)) for number in range(2)]
        for writer in writers:
            writer.start()
        took: list[float] = []
        try:
            with OutboxRelay(sessions, broker, 100, 0.05, repository=Repository) as relay:
                begin = time.perf_counter()
                while relay.purge():
                    took.append(time.perf_counter() - begin)
                    begin = time.perf_counter()
        finally:
            purged.set()
            for writer in writers:
                writer.join()
        relay.drain()
        assert world.statuses(engine) == {"produced": sum(written)}
    assert not world.errors(caplog)
    assert len(written) == 2
    assert min(written) > 100
    assert max(took) < 1, "a thousand rows take 10 ms"
