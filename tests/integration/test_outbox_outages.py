"""The broker or the database goes away and comes back while a relay runs."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxRelay
from cqrs_sync.producer import EventProducer
from tests import kafka as servers
from tests import postgres
from tests.integration import outbox_world as world
from tests.integration.outbox_world import QUICK, WAIT, Broker, Journal, Repository

# kafka-python leaves a socket to the garbage collector for every connection that fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # while the filter above holds


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        with world.engine_of(world.sqlite_file(tmp_path)) as found:
            yield found
        return
    with world.database(request.getfixturevalue("postgres_url")) as url, world.engine_of(url) as found:
        yield found


class CountingBackoff(Backoff):
    """Counts how often somebody was told to wait."""

    def delay(self, attempt: int) -> float:
        counted.append(attempt)
        return super().delay(attempt)


counted: list[int] = []


# --- the broker --------------------------------------------------------------------------------------------------


def test_an_outage_of_a_hundred_polls_costs_no_attempt_and_one_probe_for_each_wait(engine: sa.Engine) -> None:
    """Commits meanwhile cause no other; afterwards everything goes, in order."""
    broker, sessions = Broker(), sessionmaker(engine)
    broker.away = True
    counted.clear()
    waits = CountingBackoff(initial=0.001, maximum=0.001, jitter=0)
    world.store(sessions, world.numbered(250, 25))
    relay = OutboxRelay(sessions, broker, 50, 0.05, outage_backoff=waits, repository=Repository)
    with relay:
        for number in range(10, 30):
            world.store(sessions, world.numbered(25, 25, first=number))
        broker.wait_for(lambda: len(broker.calls) > 100)
        broker.away = False
        world.eventually(lambda: world.statuses(engine) == {"produced": 250 + 20 * 25})
    assert broker.by_key() == {f"key-{key}": list(range(30)) for key in range(25)}
    assert {row.attempts for row in world.rows(engine)} == {0}
    failed = len(counted)
    assert failed > 100
    assert counted == list(range(1, failed + 1)), "a wait after each, one outage"
    assert broker.calls[:failed] == [50] + [1] * (failed - 1), "one batch failed, and then probes alone"
    assert relay.last_error is None


def test_commits_during_an_outage_do_not_shorten_the_wait(engine: sa.Engine) -> None:
    """Each of them would be a probe otherwise."""
    broker, sessions = Broker(), sessionmaker(engine)
    broker.away = True
    world.store(sessions, world.numbered(1))
    with OutboxRelay(
        sessions, broker, outage_backoff=Backoff(initial=3600, maximum=3600), repository=Repository
    ) as relay:
        world.eventually(lambda: relay.last_error)
        for number in range(1, 50):
            world.store(sessions, world.numbered(1, first=number))
    assert broker.calls == [1]


class MeasuringBroker(Broker):
    """Is never there, and notes how many objects and bytes are in use when it is tried for these times.

    Always at the same place of the relay's thread, while no other is at work.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.away = True
        self.used: list[tuple[int, int]] = []
        self.done = threading.Event()
        self._times = (first, last)

    def send_message(self, message: Message) -> None:
        if len(self.calls) in self._times:
            gc.collect()
            self.used.append((len(gc.get_objects()), tracemalloc.get_traced_memory()[0]))
            if len(self.used) == len(self._times):
                self.done.set()
        super().send_message(message)


def test_memory_does_not_grow_with_an_outage(engine: sa.Engine) -> None:
    """However often it is tried, and however much waits."""
    sessions, broker = sessionmaker(engine), MeasuringBroker(100, 300)
    world.store(sessions, world.numbered(500, 50))
    logging.disable()  # pytest keeps all that is logged
    tracemalloc.start()
    try:
        with OutboxRelay(sessions, broker, 100, outage_backoff=QUICK, repository=Repository):
            assert broker.done.wait(WAIT)
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
    objects, size = (after - before for before, after in zip(*broker.used, strict=True))
    assert objects < 100, "one error kept each time would be 200"
    assert size < 200 * 500
    broker.away = False
    assert OutboxRelay(sessions, broker, repository=Repository).drain() == 500
    assert {row.attempts for row in world.rows(engine)} == {0}


def test_a_loop_by_hand_survives_an_outage_of_a_hundred_polls_as_well(engine: sa.Engine) -> None:
    """The article's; it costs no attempt either."""
    broker, sessions = Broker(), sessionmaker(engine)
    broker.away = True
    world.store(sessions, world.numbered(60, 6))
    with closing(Repository(sessions())) as repository:
        producer = EventProducer(broker, repository, backoff=QUICK, poll_interval=0.05)
        watch = threading.Timer(WAIT, producer.stop)
        watch.start()
        for polls, events in enumerate(producer.event_batch_generator(20)):
            for event in events:
                producer.send_message(event)
            producer.repository.commit()
            broker.away = polls < 99
            if len(broker.messages) == 60:
                break
        watch.cancel()
    assert broker.by_key() == world.expected(60, 6)
    assert {row.attempts for row in world.rows(engine)} == {0}


def tasks_and_files() -> tuple[int, int]:
    """How many threads of all kinds, and open files, this process has."""
    own = Path("/proc/self")
    if not own.exists():
        pytest.skip("only Linux tells")
    return len(list(own.glob("task/*"))), len(list(own.glob("fd/*")))


def test_a_cluster_that_is_away_for_a_hundred_polls_gets_everything_in_order(
    mock_kafka: servers.MockKafka, tmp_path: Path
) -> None:
    """The client is thrown away and made anew each time: no thread and no connection is left of it."""
    topic = f"away-{uuid.uuid4().hex}"
    events = [event.model_copy(update={"topic": topic}) for event in world.numbered(300, 7)]
    waits = CountingBackoff(initial=0.001, maximum=0.001, jitter=0)
    # It takes the mock cluster half a second to make a client idempotent.
    producer = ConfluentProducerAdapter(mock_kafka.address, timeout=0.05, enable_idempotence=False)
    with world.engine_of(world.sqlite_file(tmp_path)) as engine, KafkaMessageBroker(producer) as broker:
        sessions = sessionmaker(engine)
        world.store(sessions, events[:100])
        counted.clear()
        with OutboxRelay(sessions, broker, 50, 0.05, outage_backoff=waits, repository=Repository) as relay:
            world.eventually(lambda: world.statuses(engine) == {"produced": 100})
            mock_kafka.down()
            try:
                world.store(sessions, events[100:])
                world.eventually(lambda: len(counted) >= 20)
                before = tasks_and_files()
                world.eventually(lambda: len(counted) >= 120)
                after = tasks_and_files()
                assert isinstance(relay.last_error, BrokerUnavailable)
            finally:
                mock_kafka.up()
            world.eventually(lambda: world.statuses(engine) == {"produced": 300})
        assert {row.attempts for row in world.rows(engine)} == {0}
    assert all(late - early < 10 for early, late in zip(before, after, strict=True)), (before, after)
    assert world.first_deliveries(servers.read(mock_kafka.address, topic)) == world.expected(300, 7)


@pytest.fixture
def local(kafka: servers.Kafka) -> servers.LocalKafka:
    if not isinstance(kafka, servers.LocalKafka):
        pytest.skip("the Kafka of CQRS_TEST_KAFKA cannot be killed")
    return kafka


def test_a_kafka_that_is_killed_and_started_again_has_everything_in_order(
    local: servers.LocalKafka, postgres_url: str, tmp_path: Path
) -> None:
    """With both clients, each over an outbox of its own."""
    postgresql = world.database(postgres_url)
    with postgresql as first, world.engine_of(first) as one, world.engine_of(world.sqlite_file(tmp_path)) as other:
        outboxes = {
            f"a-{uuid.uuid4().hex}": (one, KafkaProducerAdapter(local.address, timeout=2.0)),
            f"b-{uuid.uuid4().hex}": (other, ConfluentProducerAdapter(local.address, timeout=2.0)),
        }
        brokers, relays = [], []
        for topic, (engine, producer) in outboxes.items():
            servers.create(local, topic, partitions=3)
            brokers.append(KafkaMessageBroker(producer))
            options: dict[str, Any] = {"outage_backoff": Backoff(initial=0.2, maximum=0.2), "repository": Repository}
            relays.append(OutboxRelay(sessionmaker(engine), brokers[-1], 50, 0.05, **options))
        try:
            _outage(local, outboxes, relays)
        finally:
            for relay in relays:
                relay.stop(WAIT)
            for broker in brokers:
                broker.close()
        for topic, (engine, _) in outboxes.items():
            assert {row.attempts for row in world.rows(engine)} == {0}
            assert world.first_deliveries(servers.read(local.address, topic)) == world.expected(300, 7)


def _outage(local: servers.LocalKafka, outboxes: dict[str, Any], relays: list[OutboxRelay]) -> None:
    def store(first: int) -> None:
        for topic, (engine, _) in outboxes.items():
            events = [event.model_copy(update={"topic": topic}) for event in world.numbered(300, 7)]
            world.store(sessionmaker(engine), events[first : first + 150])

    store(0)
    for relay in relays:
        relay.start()
    for engine, _ in outboxes.values():
        world.eventually(lambda e=engine: world.statuses(e).get("produced"))
    with local.away():
        store(150)
        for relay in relays:
            world.eventually(lambda r=relay: isinstance(r.last_error, BrokerUnavailable))
    for engine, _ in outboxes.values():
        world.eventually(lambda e=engine: world.statuses(e) == {"produced": 300})


# --- the database ------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[postgres.LocalPostgres]:
    """A PostgreSQL of a test's own, to be killed."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(postgres.local())
        except LookupError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        yield found


@pytest.mark.parametrize(
    ("events", "restarts"),
    [pytest.param(600, 2, id="short"), pytest.param(10_000, 15, id="long", marks=pytest.mark.soak)],
)
def test_a_postgresql_that_is_killed_and_started_again_loses_nothing(
    server: postgres.LocalPostgres, kafka: servers.Kafka, tmp_path: Path, events: int, restarts: int
) -> None:
    """While writers write and two relays publish; what was committed arrives, in order, and nothing else."""
    topic, journal = f"restarts-{uuid.uuid4().hex}", Journal(tmp_path / "journal")
    servers.create(kafka, topic, partitions=2)
    failures: Counter[str] = Counter()
    with world.engine_of(server.url) as engine, world.kafka_broker(kafka.address) as broker:
        world.Base.metadata.create_all(engine)

        def write(key: str) -> None:
            for number in range(events // 2):
                try:
                    event = world.Counted(payload=number, partition_key=key, topic=topic)
                    world.store(sessionmaker(engine), [event])
                except DBAPIError:  # stored or not, nobody knows
                    failures[key] += 1

        relays = [_relay(engine, world.JournalBroker(journal.path, name, broker), name) for name in ("one", "other")]
        writers = [threading.Thread(target=write, args=(f"key-{number}",)) for number in range(2)]
        for thread in (*relays, *writers):
            thread.start()
        try:
            for number in range(restarts):
                world.eventually(lambda n=number: len(journal.sent()) > (n + 1) * events // (2 * restarts + 2))
                with server.away():
                    world.eventually(lambda: all(relay.last_error for relay in relays))
            for writer in writers:
                writer.join(WAIT)
            world.eventually(lambda: set(world.statuses(engine)) == {"produced"})
            world.eventually(lambda: not any(relay.last_error for relay in relays))
        finally:
            for relay in relays:
                relay.stop()
        committed: dict[str, list[int]] = {"key-0": [], "key-1": []}
        for row in world.rows(engine):
            committed[row.partition_key].append(json.loads(row.payload)["payload"])
            assert row.attempts == 0
    assert sum(map(len, committed.values())) >= events - failures.total()
    assert world.first_deliveries(servers.read(kafka.address, topic)) == committed


def _relay(engine: sa.Engine, broker: MessageBroker, name: str) -> OutboxRelay:
    options: dict[str, Any] = {"outage_backoff": QUICK, "repository": Repository, "name": f"cqrs-relay-{name}"}
    return OutboxRelay(sessionmaker(engine), broker, 20, 0.05, **options)
