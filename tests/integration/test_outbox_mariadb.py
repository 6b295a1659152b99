"""Relays on MariaDB: they share the work, and keep each key's order."""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox.encoding import partition_of
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.tables import Base, OutboxModel
from tests.databases import fresh


class Numbered(cqrs.NotificationEvent[int], frozen=True):
    event_name: str = "numbered"
    topic: str = "numbers"
    payload: int = 0


EVENTS = OutboxedEventMap()
EVENTS.register("numbered", Numbered)


@pytest.fixture(params=["REPEATABLE READ", "READ COMMITTED"])
def engine(mariadb_url: str, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """A database of its own; engines with MySQL's default isolation, and with the one that claims need."""
    with fresh(mariadb_url) as url:
        engine = sa.create_engine(url, isolation_level=request.param)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


def repository(session: Any) -> SqlAlchemyOutboxedEventRepository:
    return SqlAlchemyOutboxedEventRepository(session, event_map=EVENTS)


def store(engine: sa.Engine, count: int, **columns: Any) -> None:
    """Rows with one key for each partition, by plain INSERTs."""
    keys = {partition_of(f"k{number}", uuid.UUID(int=0)): f"k{number}" for number in range(500)}
    assert len(keys) == 32
    rows = [
        {
            "event_id": uuid.uuid4(),
            "event_name": "numbered",
            "topic": "numbers",
            "partition": number % 32,
            "partition_key": keys[number % 32],
            "payload": b'{"payload": %d}' % number,
            **columns,
        }
        for number in range(count)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(OutboxModel), rows)


def test_a_claim_leaves_the_other_partitions_to_other_relays(engine: sa.Engine) -> None:
    """InnoDB locks what it reads, not what it returns: a claim that sorts would have them all."""
    store(engine, 320)
    sessions = [Session(engine) for _ in range(5)]
    claims = [repository(session).get_many(320) for session in sessions]
    for session in sessions:
        session.close()
    assert [len(claim) for claim in claims] == [80, 80, 80, 80, 0]
    assert len({event.id for claim in claims for event in claim}) == 320


def test_a_claim_of_one_partition_locks_one(engine: sa.Engine) -> None:
    """Wherever it begins, rows that it has looked at and left are free."""
    store(engine, 320)
    with engine.begin() as connection:
        table: Any = OutboxModel.__table__
        connection.execute(sa.delete(table).where(table.c.partition.not_in([3, 17, 30])))
    sessions = [Session(engine) for _ in range(4)]
    claims = [repository(session).get_many(320, partitions=1) for session in sessions]
    for session in sessions:
        session.close()
    assert [len(claim) for claim in claims] == [10, 10, 10, 0]


def test_two_relays_send_each_event_once_and_each_key_in_order(engine: sa.Engine) -> None:
    """At the same time, until nothing is left; both of them get some."""
    store(engine, 3200)
    broker, start = InMemoryMessageBroker(), threading.Barrier(2)
    factory = sessionmaker(engine)

    def drain(_: int) -> int:
        relay = OutboxRelay(factory, broker, batch_size=50, repository=repository)
        start.wait(60)
        published = relay.run_once()
        start.wait(60)  # while the other is at work too
        while more := relay.run_once():
            published += more
        return published

    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(drain, range(2)))
    with Session(engine) as session:  # what was locked by one when the other looked last
        published.append(OutboxRelay(factory, broker, 5000, repository=repository).drain())
        assert repository(session).backlog().pending == 0
    assert min(published[:2]) >= 50
    numbers: defaultdict[Any, list[int]] = defaultdict(list)
    for message in broker.messages:
        numbers[message.key].append(message.payload["payload"])
    assert sum(map(len, numbers.values())) == 3200
    assert all(sent == sorted(set(sent)) for sent in numbers.values())


def test_what_was_produced_is_not_read_again(engine: sa.Engine) -> None:
    """The primary key would be in order as well, and a claim would walk over all of it."""
    store(engine, 3200, status="produced")
    store(engine, 32)
    executed: list[tuple[str, Any]] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *call: executed.append((call[2], call[3])))
    with Session(engine) as session:
        assert len(repository(session).get_many(partitions=32)) == 32
    reads = [(statement, values) for statement, values in executed if "status = 'new'" in statement]
    assert {"FOR UPDATE" in statement for statement, _ in reads} == {True, False}
    with engine.connect() as connection:
        for statement, values in reads:
            plan = connection.exec_driver_sql(f"EXPLAIN {statement}", values).mappings()
            used = {(str(row["table"]).split("_")[0], row["key"]) for row in plan}
            assert {index for table, index in used if table == "fresh"} == {"ix_outbox_pending"}
            assert {index for table, index in used if table == "due"} == {"ix_outbox_waiting"}
            assert {index for table, index in used if table == "held"} == {"ix_outbox_held"}
