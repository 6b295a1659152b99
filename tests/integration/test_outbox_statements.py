"""How many statements the outbox costs, and how PostgreSQL plans them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import MessageRejected
from cqrs_sync.outbox.encoding import PARTITIONS
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import Base, OutboxModel
from cqrs_sync.testing.outbox import Numbered
from tests.unit.outboxes import Broker, Repository, engine_in, statements_of, statuses, store, table

Sessions = sessionmaker[Session]


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    """A database of its own with the tables."""
    name = f"statements_{uuid.uuid4().hex}"
    server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine = sa.create_engine(sa.make_url(postgres_url).set(database=name))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name}"))
    server.dispose()


@pytest.fixture
def on_postgres(postgres: sa.Engine) -> sa.Engine:
    """The same, empty."""
    with postgres.begin() as connection:
        connection.execute(sa.text("TRUNCATE outbox RESTART IDENTITY"))
    return postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """Each database in turn, with the rows of partitions in place."""
    if request.param == "sqlite":
        engine = engine_in(tmp_path)
        yield warmed_up(engine)
        engine.dispose()
    else:
        yield warmed_up(request.getfixturevalue("on_postgres"))


def warmed_up(engine: sa.Engine) -> sa.Engine:
    with closing(Repository(Session(engine))) as repository:
        repository.get_many()
    return engine


# --- counts --------------------------------------------------------------------------------------------------------


def test_adding_an_event_costs_one_insert(engine: sa.Engine) -> None:
    """Nothing is looked up and nothing is read back."""
    with closing(Repository(Session(engine))) as repository, statements_of(engine) as statements:
        repository.add(Numbered())
        repository.commit()
    assert len(statements) == 1
    assert statements[0].startswith("INSERT INTO outbox")


def test_many_events_of_one_transaction_go_with_one_insert(on_postgres: sa.Engine) -> None:
    """One for each flush."""
    with closing(Repository(Session(on_postgres))) as repository, statements_of(on_postgres) as statements:
        for number in range(200):
            repository.add(Numbered(payload=number))
        repository.session.flush()
        for number in range(200):
            repository.add(Numbered(payload=number))
        repository.commit()
    assert len(statements) == 2
    assert len(table(on_postgres)) == 400


def test_looking_into_an_empty_outbox_costs_one_statement(engine: sa.Engine) -> None:
    """An idle relay is cheap, whatever was produced before."""
    relay = OutboxRelay(sessionmaker(engine), Broker(), repository=Repository)
    store(sessionmaker(engine), 1)
    relay.drain()
    with statements_of(engine) as statements:
        assert relay.run_once() == 0
    assert len(statements) == 1


@pytest.mark.parametrize("size", [10, 300])
def test_a_batch_costs_four_statements_whatever_is_in_it(engine: sa.Engine, size: int) -> None:
    """Two to claim it, one for all that was produced and one for all that failed."""
    sessions, broker = sessionmaker(engine), Broker()
    store(sessions, *(Numbered(payload=number, partition_key=f"key {number % 3}") for number in range(size)))
    relay = OutboxRelay(sessions, broker, size, repository=Repository, max_attempts=2, backoff=Backoff(jitter=0))
    for number in (size - 3, size - 2):
        broker.errors[number] = MessageRejected("no")
    with engine.begin() as connection:
        spent = OutboxModel.id == first_id(engine) + size - 3
        connection.execute(sa.update(OutboxModel).where(spent).values(attempts=1))
    with statements_of(engine) as statements:
        assert relay.run_once() == size - 2
    assert len(statements) == 4
    assert statuses(engine) == [*["produced"] * (size - 3), "dead", "not_produced", "produced"]


def first_id(engine: sa.Engine) -> int:
    return int(table(engine)[0].id)


def test_a_batch_of_successes_costs_three_statements(engine: sa.Engine) -> None:
    """Marking or deleting them is one."""
    sessions = sessionmaker(engine)
    for retention in (60.0, 0):
        relay = OutboxRelay(sessions, Broker(), repository=Repository, retention=retention)
        store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(50)))
        with statements_of(engine) as statements:
            assert relay.run_once() == 50
        assert len(statements) == 3


# --- plans ---------------------------------------------------------------------------------------------------------

MANY = 1_000_000
"""How many rows there are."""

LATER = "status = 'not_produced', available_at = now() + interval '1 hour'"


def fill(engine: sa.Engine, first: int, last: int, status: str, keys: int = 5000) -> None:
    """Fill the empty table without touching its statistics; numbers above ``first`` are new, in all partitions."""
    indexes = list(OutboxModel.__table__.indexes)
    columns = (
        "event_id, event_name, topic, partition_key, partition, payload, created_at, status, produced_at, available_at"
    )
    key = f"n % {keys}"
    row = f"""'{uuid.UUID(int=1)}', 'numbered', 'contract', 'key ' || {key}, {key} % {PARTITIONS}, '{{}}', now()"""
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE outbox RESTART IDENTITY"))
        for index in indexes:
            index.drop(connection)  # filling them row by row would take most of the time
        for begin, end, state in ((1, first, status), (first + 1, last, "new")):
            produced_at = "now()" if state == "produced" else "NULL"
            available_at = "now() + interval '1 hour'" if state == "not_produced" else "NULL"
            rows = f"SELECT {row}, '{state}', {produced_at}, {available_at} FROM generate_series({begin}, {end}) AS n"
            connection.execute(sa.text(f"INSERT INTO outbox ({columns}) {rows}"))
        for index in indexes:
            index.create(connection)


@pytest.fixture(scope="module")
def big_table(postgres: sa.Engine) -> Iterator[sa.Engine]:
    """The table without anybody who renews its statistics."""
    with postgres.begin() as connection:
        connection.execute(sa.text("TRUNCATE outbox"))
        connection.execute(sa.text("ALTER TABLE outbox SET UNLOGGED"))
        connection.execute(sa.text("ALTER TABLE outbox SET (autovacuum_enabled = false)"))
    warmed_up(postgres)
    yield postgres
    with postgres.begin() as connection:
        connection.execute(sa.text("TRUNCATE outbox"))


def claims(engine: sa.Engine) -> tuple[int, list[Any]]:
    """Claim a batch; return how many events came, and the plans of the statements with what they really read."""
    executed: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
        executed.append((statement, parameters))

    with closing(Repository(Session(engine))) as repository:
        sa.event.listen(engine, "before_cursor_execute", note)
        found = len(repository.get_many(500))
        sa.event.remove(engine, "before_cursor_execute", note)
    plans = []
    with engine.connect() as connection:
        for statement, parameters in executed:
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
            [plan] = connection.exec_driver_sql(explain, parameters).scalar_one()
            plans.append(plan["Plan"])
    return found, plans


def nodes(plan: Any) -> Iterator[Any]:
    """A plan and all that is below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def read(node: Any) -> float:
    """How many rows a node has looked at."""
    skipped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    loops: float = node["Actual Loops"]
    return (float(node["Actual Rows"]) + skipped) * loops


def check(plans: list[Any]) -> None:
    """Refuse plans that read more of the table than is to be published."""
    assert len(plans) == 2
    for plan in plans:
        on_table = [node for node in nodes(plan) if node.get("Relation Name") == "outbox"]
        used = {(node["Alias"].split("_")[0], node.get("Index Name")) for node in on_table}
        assert used <= {("fresh", "ix_outbox_pending"), ("due", "ix_outbox_waiting"), ("held", "ix_outbox_held")}, plan
        assert not [node for node in on_table if "Seq Scan" in node["Node Type"]], plan
        assert sum(read(node) for node in on_table) < 20_000, plan


def test_plans_read_the_pending_index_whatever_the_statistics_say(big_table: sa.Engine) -> None:
    """All new; nearly all produced, with statistics from when all were new; a few at the end; some that wait."""
    fill(big_table, MANY, MANY, "new")
    run(big_table, "ANALYZE outbox")
    found, plans = claims(big_table)
    assert found == 500
    check(plans)
    fill(big_table, MANY - 1000, MANY, "produced")
    found, plans = claims(big_table)
    assert found > 100
    check(plans)
    last = f"id BETWEEN {MANY - 1000} AND {MANY - 10}"
    run(big_table, f"UPDATE outbox SET status = 'produced', produced_at = now() WHERE {last}")
    found, plans = claims(big_table)
    assert 1 <= found <= 10
    check(plans)
    run(big_table, "ANALYZE outbox")
    found, plans = claims(big_table)
    assert 1 <= found <= 10
    check(plans)
    run(big_table, f"UPDATE outbox SET {LATER} WHERE id > {MANY - 10} AND id % 2 = 0")
    found, plans = claims(big_table)
    assert 1 <= found <= 5
    check(plans)


def test_plans_read_little_of_what_waits(big_table: sa.Engine) -> None:
    """A rejected backlog does not slow down what is new, nor itself when its time has come."""
    waiting = MANY // 4
    fill(big_table, waiting, waiting + 5000, "not_produced", keys=MANY)
    for statement in ("SELECT 1", "ANALYZE outbox"):
        run(big_table, statement)
        found, plans = claims(big_table)
        assert found == 500
        check(plans)
    run(big_table, f"UPDATE outbox SET available_at = now() WHERE id <= {waiting}")
    for statement in ("SELECT 1", "VACUUM ANALYZE outbox"):
        run(big_table, statement)
        found, plans = claims(big_table)
        assert found == 500
        check(plans)


def test_plans_read_the_pending_index_where_all_events_have_one_key(big_table: sa.Engine) -> None:
    """Then a planner that knew the partition to be constant would walk the primary key over all that was produced."""
    some = MANY // 5
    fill(big_table, some, some, "new")
    run(big_table, "UPDATE outbox SET partition = 5, partition_key = 'hot'")
    run(big_table, "VACUUM ANALYZE outbox")
    found, plans = claims(big_table)
    assert found == 500
    check(plans)
    run(big_table, f"UPDATE outbox SET status = 'produced', produced_at = now() WHERE id < {some - 1000}")
    check(claims(big_table)[1])  # reads what is dead in the index, once
    found, plans = claims(big_table)
    assert found == 500
    check(plans)


def run(engine: sa.Engine, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:  # for VACUUM
        connection.execute(sa.text(statement))
