"""Events that the broker never takes, and rows that nobody can read: the others go on, and none disappears."""

from __future__ import annotations

import gc
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from confluent_kafka import admin
from sqlalchemy.orm import sessionmaker

from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.errors import EventNotRegistered
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.outbox import EventStatus, OutboxModel, OutboxRelay
from cqrs_sync.producer import EventProducer
from tests import kafka as servers
from tests.integration import outbox_world as world
from tests.integration.outbox_world import QUICK, Broker, Counted, Repository

# kafka-python leaves a socket to the garbage collector for every connection that fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

REASONS = (
    ("a", "small", "SIZE_?TOO_?LARGE"),
    ("c", "forbidden", "AUTHORIZATION_?FAILED"),
    ("d", "open", "SIZE_?TOO_?LARGE"),
)
"""Of each dead letter below: its key, its topic and what the clients say of it."""

BIG = "x" * 5_000
HUGE = "x" * 2_000_000


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


# --- what Kafka refuses ------------------------------------------------------------------------------------------

CLIENTS: dict[str, Any] = {
    "kafka-python": (KafkaProducerAdapter, {"max_request_size": 3_000_000}),
    "confluent": (ConfluentProducerAdapter, {"message_max_bytes": 3_000_000}),
}


def configure(kafka: servers.Kafka, topic: str, largest: int) -> None:
    """Set the size of the largest message that a topic takes."""
    change = admin.ConfigEntry("max.message.bytes", str(largest), incremental_operation=admin.AlterConfigOpType.SET)
    resource = admin.ConfigResource(admin.ResourceType.TOPIC, topic, incremental_configs=[change])
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    client.incremental_alter_configs([resource])[resource].result(30)


def allow(kafka: servers.Kafka, topic: str) -> None:
    """Take back what ``forbid`` has done."""
    client = admin.AdminClient({"bootstrap.servers": kafka.address})
    anything = (None, "*", admin.AclOperation.ANY, admin.AclPermissionType.DENY)
    which = admin.AclBindingFilter(admin.ResourceType.TOPIC, topic, admin.ResourcePatternType.LITERAL, *anything)
    for deleted in client.delete_acls([which]).values():
        assert deleted.result(30)


@pytest.mark.parametrize("policy", ["continue", "wait"])
@pytest.mark.parametrize("client", list(CLIENTS))
def test_what_kafka_refuses_is_a_dead_letter_and_goes_once_the_cause_is_gone(
    kafka: servers.Kafka, postgres_url: str, client: str, policy: Any
) -> None:
    """Too large for the topic, too large for the client, forbidden; all else flows, keys as the policy has it."""
    topics = {name: f"{name}-{uuid.uuid4().hex}" for name in ("small", "open", "forbidden")}
    servers.create(kafka, topics["small"], max_message_bytes="2000")
    servers.create(kafka, topics["open"])
    servers.forbid(kafka, topics["forbidden"])

    def event(topic: str, key: str, number: int, padding: str = "") -> Counted:
        return Counted(topic=topics[topic], partition_key=key, payload=number, padding=padding)

    events = [
        *(event("small", "a", 0), event("small", "a", 1, BIG), event("small", "a", 2)),
        *(event("small", "b", 0), event("small", "b", 1)),
        *(event("forbidden", "c", 0), event("open", "c", 1)),
        *(event("open", "d", 0), event("open", "d", 1, HUGE), event("open", "d", 2)),
        *(event("open", "e", number) for number in range(20)),
    ]
    adapter, generous = CLIENTS[client]
    options: dict[str, Any] = {"max_attempts": 2, "backoff": QUICK, "dead_letters": policy, "repository": Repository}
    with world.database(postgres_url) as url, world.engine_of(url) as engine:
        sessions = sessionmaker(engine)
        world.store(sessions, events)
        # In rounds, because only Kafka knows that the second of "a" is too large for its topic.
        with KafkaMessageBroker(adapter(kafka.address, timeout=10.0), one_in_flight_per_key=True) as broker:
            relay = OutboxRelay(sessions, broker, **options)
            world.eventually(lambda: relay.drain() + 1 and world.statuses(engine).get("dead") == 3)
        went = len(events) - 3 - (3 if policy == "wait" else 0)
        assert world.statuses(engine).get("produced") == went
        with closing(Repository(sessions())) as outbox:
            letters = {letter.partition_key: letter for letter in outbox.dead_letters()}
        assert {key: letter.attempts for key, letter in letters.items()} == {"a": 2, "c": 2, "d": 2}
        for key, topic, reason in REASONS:
            assert re.search(rf"{topics[topic]}.*{reason}", str(letters[key].last_error), re.IGNORECASE)
        configure(kafka, topics["small"], 10_000)
        configure(kafka, topics["open"], 3_000_000)
        allow(kafka, topics["forbidden"])
        with KafkaMessageBroker(adapter(kafka.address, timeout=10.0, **generous)) as broker:
            relay = OutboxRelay(sessions, broker, **options)

            def replayed() -> bool:
                with closing(Repository(sessions())) as outbox:
                    outbox.replay()
                    outbox.commit()
                relay.drain()
                return world.statuses(engine) == {"produced": len(events)}

            world.eventually(replayed)
    found = {name: world.first_deliveries(servers.read(kafka.address, topic)) for name, topic in topics.items()}
    in_order = [0, 1, 2] if policy == "wait" else [0, 2, 1]
    assert found == {
        "small": {"a": in_order, "b": [0, 1]},
        "forbidden": {"c": [0]},
        "open": {"c": [1], "d": in_order, "e": list(range(20))},
    }


# --- what nobody can read ----------------------------------------------------------------------------------------

SPOILED: dict[str, dict[str, Any]] = {
    "garbage": {"payload": b"no zlib", "compression": "zlib"},
    "unknown-compression": {"compression": "lz99"},
    "cut": {"payload": b"\x78\x9c\x4b", "compression": "zlib"},
    "headers": {"headers": '{"a'},
    "other-headers": {"headers": '{"a": 1}'},
}

SPOILED_ON_SQLITE: dict[str, dict[str, Any]] = {
    "event-id": {"event_id": "no uuid"},
    "text": {"payload": "text"},
    "key": {"partition_key": b"\xff"},
}


@pytest.mark.parametrize("batch_size", [3, 500])
def test_rows_that_nobody_can_read_block_no_others_and_are_kept_with_the_reason(
    engine: sa.Engine, batch_size: int
) -> None:
    """Whatever is wrong with them; repaired, they go."""
    sessions, broker = sessionmaker(engine), Broker()
    spoiled = SPOILED if engine.dialect.name == "postgresql" else SPOILED | SPOILED_ON_SQLITE
    for kind in spoiled:
        world.store(sessions, [Counted(payload=number, partition_key=kind) for number in range(4)])
    world.store(sessions, world.numbered(40, 8))
    before = world.rows(engine)
    table = sa.table(OutboxModel.__tablename__, *(sa.column(column.name) for column in OutboxModel.__table__.columns))
    second = {row.partition_key: row.id for row in before if row.payload and b'"payload":1' in row.payload}
    with engine.begin() as connection:
        for kind, values in spoiled.items():
            connection.execute(sa.update(table).where(table.c.id == second[kind]).values(values))
    relay = OutboxRelay(sessions, broker, batch_size, max_attempts=2, backoff=QUICK, repository=Repository)
    unreadable = len(spoiled) - ("key" in spoiled)
    world.eventually(lambda: relay.drain() + 1 and world.statuses(engine).get("dead") == unreadable)
    relay.drain()
    assert world.statuses(engine) == {"produced": len(before) - unreadable, "dead": unreadable}
    with closing(Repository(sessions())) as outbox:
        letters = outbox.dead_letters()
        assert {letter.partition_key for letter in letters} == spoiled.keys() - {"key"}
        assert all("cannot be read" in str(letter.last_error) for letter in letters)
    with engine.begin() as connection:
        for row in before:
            values = {"payload": row.payload, "compression": None, "headers": None, "event_id": row.event_id.hex}
            if engine.dialect.name == "postgresql":
                del values["event_id"]
            connection.execute(sa.update(table).where(table.c.id == row.id, table.c.status == "dead").values(values))
    with closing(Repository(sessions())) as outbox:
        assert outbox.replay() == unreadable
        outbox.commit()
    assert relay.drain() == unreadable
    found = broker.by_key()
    assert {key: sorted(found[key]) for key in spoiled.keys() - {"key"}} == {
        key: [0, 1, 2, 3] for key in spoiled.keys() - {"key"}
    }
    assert {key: found[key] for key in found if str(key).startswith("key-")} == {
        f"key-{key}": list(range(5)) for key in range(8)
    }


def by_hand(sessions: Any, broker: Broker, done: Callable[[], bool]) -> list[EventStatus]:
    """The loop of the article, over until it is done; returns what it was told of each event that it sent."""
    found = []
    with closing(Repository(sessions())) as repository:
        producer = EventProducer(broker, repository, max_attempts=2, backoff=QUICK, poll_interval=0.01)
        watch = threading.Timer(world.WAIT, producer.stop)
        watch.start()
        for events in producer.event_batch_generator(10):
            found += [producer.send_message(event) for event in events]
            producer.repository.commit()
            if done():
                break
        watch.cancel()
    return found


def test_a_loop_by_hand_is_not_blocked_by_rows_that_nobody_can_read_either(engine: sa.Engine) -> None:
    """It need not look at them, and is told which they are."""
    sessions, broker = sessionmaker(engine), Broker()
    world.store(sessions, world.numbered(40, 8))
    with engine.begin() as connection:
        connection.execute(sa.update(OutboxModel).where(OutboxModel.id <= 3).values(compression="lz99"))
    done = {"produced": 37, "dead": 3}
    told = by_hand(sessions, broker, lambda: world.statuses(engine) == done)
    assert world.statuses(engine) == done
    assert (told.count(EventStatus.NOT_PRODUCED), told.count(EventStatus.DEAD)) == (3, 3)
    assert broker.by_key() == {f"key-{key}": list(range(key < 3, 5)) for key in range(8)}


def test_events_that_this_process_does_not_know_are_published_all_the_same(engine: sa.Engine) -> None:
    """Neither a relay nor a loop by hand needs a map: they send the stored bytes."""
    sessions, broker = sessionmaker(engine), Broker()
    world.store(sessions, world.numbered(10, 2))
    world.store(sessions, world.numbered(10, 2, first=5))
    with engine.begin() as connection:
        connection.execute(sa.update(OutboxModel).values(event_name="nobody_knows"))
    assert OutboxRelay(sessions, broker, 10, repository=Repository).run_once() == 10
    assert set(by_hand(sessions, broker, lambda: len(broker.messages) == 20)) == {EventStatus.PRODUCED}
    assert {message.message_name for message in broker.messages} == {"nobody_knows"}
    assert broker.by_key() == {"key-0": list(range(10)), "key-1": list(range(10))}


def test_an_event_that_this_process_does_not_know_is_refused_where_it_is_looked_at(engine: sa.Engine) -> None:
    """By a loop that wants the object; the row stays, and goes with the next."""
    sessions, broker = sessionmaker(engine), Broker()
    world.store(sessions, world.numbered(3))
    with engine.begin() as connection:
        connection.execute(sa.update(OutboxModel).where(OutboxModel.id == 2).values(event_name="nobody_knows"))
    with closing(Repository(sessions())) as repository:
        known, unknown, _ = repository.get_many()
        assert known.event.payload == 0
        with pytest.raises(EventNotRegistered, match="nobody_knows"):
            _ = unknown.event
    assert OutboxRelay(sessions, broker, repository=Repository).drain() == 3
