"""How many statements and commits a saga costs."""

from __future__ import annotations

import select
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from tests.databases import fresh
from tests.unit.sagas import Order, mediator_of, saga, step

ON_POSTGRESQL = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """Each database in turn, with the tables."""
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class Cost:
    """What was sent to a database."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.commits = 0


@contextmanager
def cost_of(engine: sa.Engine) -> Iterator[Cost]:
    """Count what the block sends."""
    cost = Cost()

    def note(_: Any, __: Any, statement: str, ___: Any, ____: Any, _____: Any) -> None:
        cost.statements.append(statement)

    def commit(_: Any) -> None:
        cost.commits += 1

    sa.event.listen(engine, "before_cursor_execute", note)
    sa.event.listen(engine, "commit", commit)
    try:
        yield cost
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
        sa.event.remove(engine, "commit", commit)


def warmed_up(engine: sa.Engine) -> SqlAlchemySagaStorage:
    """A storage that knows its database."""
    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    storage.find()
    return storage


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_saga_of_n_steps_costs_n_plus_1_commits(engine: sa.Engine, steps: int) -> None:
    """On PostgreSQL each is one statement, in autocommit: one round trip."""
    storage = warmed_up(engine)
    order_saga = saga(*(step(f"s{number}", []) for number in range(steps)))
    with mediator_of(order_saga, storage) as mediator, cost_of(engine) as cost:
        assert mediator.run(Order()).completed
    if engine.dialect.name == "postgresql":
        assert len(cost.statements) == steps + 1
        assert all("saga_logs" in statement for statement in cost.statements[1:])
    else:
        assert cost.commits == steps + 1
        assert len(cost.statements) == 2 * steps + 1


class Proxy:
    """Stands between a client and a server, and counts how often the client waits for an answer."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.round_trips = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        asks = False
        with client, server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    (server if ready is client else client).sendall(data)
                    self.round_trips += ready is client and not asks
                    asks = ready is client

    def close(self) -> None:
        self._listener.close()


def test_each_commit_is_one_round_trip_on_postgresql(postgres_url: str) -> None:
    """Counted on the wire: no BEGIN, no COMMIT, no setting of anything."""
    with fresh(postgres_url) as url:
        address = sa.make_url(url)
        assert address.host is not None
        proxy = Proxy(address.host, address.port or 5432)
        engine = sa.create_engine(address.set(host="127.0.0.1", port=proxy.port))
        Base.metadata.create_all(engine)
        storage = warmed_up(engine)
        with mediator_of(saga(step("a", []), step("b", []), step("c", [])), storage) as mediator:
            assert mediator.run(Order()).completed
            before = proxy.round_trips
            assert mediator.run(Order()).completed
            assert proxy.round_trips - before == 4
        engine.dispose()
        proxy.close()


@ON_POSTGRESQL
def test_no_transaction_is_begun_on_postgresql(engine: sa.Engine) -> None:
    """psycopg2 would send the BEGIN as a round trip of its own."""
    storage = warmed_up(engine)
    states: list[bool] = []

    def note(connection: Any, *_: Any) -> None:
        states.append(connection.connection.driver_connection.autocommit)

    sa.event.listen(engine, "before_cursor_execute", note)
    with mediator_of(saga(step("a", []), step("b", [])), storage) as mediator:
        assert mediator.run(Order()).completed
    sa.event.remove(engine, "before_cursor_execute", note)
    assert states == [True] * 3
    with engine.connect() as connection:
        assert connection.connection.driver_connection is not None
        assert not connection.connection.driver_connection.autocommit  # as others expect it from the pool


@ON_POSTGRESQL
def test_sagas_are_stored_where_a_schema_is_translated_to(engine: sa.Engine) -> None:
    """Statements that are kept compiled, as they are there, would go to the old one."""
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA tenant"))
    tenant = engine.execution_options(schema_translate_map={None: "tenant"})
    Base.metadata.create_all(tenant)
    with mediator_of(saga(step("a", [])), warmed_up(tenant)) as mediator:
        assert mediator.run(Order()).completed
    assert not SqlAlchemySagaStorage(sessionmaker(engine)).find([SagaStatus.COMPLETED])
    assert len(SqlAlchemySagaStorage(sessionmaker(tenant)).find([SagaStatus.COMPLETED])) == 1


def test_a_rollback_costs_one_commit_for_the_turn_and_one_for_each_compensation(engine: sa.Engine) -> None:
    """Each with its log."""
    storage = warmed_up(engine)
    order_saga = saga(step("a", []), step("b", []), step("c", [], ValueError("no")))
    with mediator_of(order_saga, storage) as mediator, cost_of(engine) as cost:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    writes = 1 + 2 + 1 + 2
    assert len(cost.statements) == (writes if engine.dialect.name == "postgresql" else 2 * writes - 1)


def test_groups_and_transactional_steps_cost_one_commit_per_step(engine: sa.Engine) -> None:
    """The transaction of a step is the commit of its record."""
    storage = warmed_up(engine)

    class Transactional(TransactionalSagaStep[Order, None]):
        def act(self, context: Order, session: Session) -> Any:
            session.execute(sa.text("SELECT 1"))

        def compensate(self, context: Order, session: Session) -> None: ...

    order_saga = saga(Parallel(step("a", []), step("b", [])), Transactional)
    with mediator_of(order_saga, storage) as mediator, cost_of(engine) as cost:
        assert mediator.run(Order()).completed
    assert len(cost.statements) == (1 + 2 + 2 if engine.dialect.name == "postgresql" else 1 + 2 * 2 + 3)
    assert [state.status for state in storage.find([SagaStatus.COMPLETED])] == [SagaStatus.COMPLETED]


def test_a_step_that_asks_for_a_session_and_does_not_use_it_costs_no_more_commits(engine: sa.Engine) -> None:
    """Its record is in its transaction."""
    storage = warmed_up(engine)

    class Asks(SagaStepHandler[Order, None]):
        def __init__(self, session: Session) -> None: ...

        def act(self, context: Order) -> Any: ...

        def compensate(self, context: Order) -> None: ...

    unit_of_work = cqrs.SqlAlchemyUnitOfWork(sessionmaker(engine))
    with mediator_of(saga(Asks), storage, unit_of_work=unit_of_work) as mediator, cost_of(engine) as cost:
        assert mediator.run(Order()).completed
    assert len(cost.statements) == (2 if engine.dialect.name == "postgresql" else 3)


def test_taking_a_saga_on_costs_six_statements(engine: sa.Engine) -> None:
    """Two reads before the claim, which are what refuses a saga that does not fit; then one transaction."""
    storage = warmed_up(engine)
    order_saga = saga(step("a", []), step("b", []))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator:
        with closing(mediator.stream(Order(), saga_id)) as stream:
            next(stream)
        engine_ = mediator.engine
        with cost_of(engine) as cost:
            run = engine_.resume(order_saga.definition, Order, saga_id)
        assert len(cost.statements) == 2 + 4
        assert [result.response for result in run.stream()] == ["b"]


def test_renewing_any_number_of_leases_costs_two_statements(engine: sa.Engine) -> None:
    """For all sagas of a process."""
    storage = warmed_up(engine)
    with cost_of(engine) as cost:
        storage.renew([(uuid.uuid4(), f"o{number}") for number in range(100)])
    assert len(cost.statements) == 2


@ON_POSTGRESQL
def test_the_updates_of_steps_touch_no_index_on_postgresql(engine: sa.Engine) -> None:
    """All but the last are HOT, because no indexed column changes from step to step."""
    storage = warmed_up(engine)
    order_saga = saga(*(step(f"s{number}", []) for number in range(5)))
    with mediator_of(order_saga, storage) as mediator:
        for _ in range(10):
            assert mediator.run(Order()).completed
    statistics = sa.text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'saga_executions'")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for _ in range(200):
            updates, hot = connection.execute(statistics).one()
            if updates == 50:
                break
            connection.execute(sa.text("SELECT pg_sleep(0.05)"))
    assert updates == 50
    assert hot >= 30


@ON_POSTGRESQL
def test_a_claim_reads_no_more_than_it_takes_on_postgresql(engine: sa.Engine) -> None:
    """After an outage of hours, each claim would read and sort thousands of sagas otherwise."""
    storage = warmed_up(engine)
    copies = sa.text(
        "INSERT INTO saga_executions"
        " (id, name, status, context, definition, version, attempts, available_at, created_at, updated_at)"
        " SELECT gen_random_uuid(), 'OrderSaga', 'running', '{}', 'a', 1, 0, now(), now() - n * interval '1 s', now()"
        " FROM generate_series(1, 3000) AS n"
    )
    claim = storage._sql.due(["OrderSaga"], 10).params(size=1).compile(engine, compile_kwargs={"literal_binds": True})
    explained = sa.text(f"EXPLAIN (ANALYZE, FORMAT JSON) {claim}")
    with engine.connect() as connection:
        for statistics in (False, True):
            connection.execute(copies)
            if statistics:
                connection.execute(sa.text("ANALYZE saga_executions"))
            [plan] = connection.execute(explained).scalar_one()
            nodes = list(_nodes(plan["Plan"]))
            assert not [node for node in nodes if node["Node Type"] == "Sort"], nodes
            assert max(node["Actual Rows"] for node in nodes) == 1, nodes


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from _nodes(each)
