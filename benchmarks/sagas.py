# ruff: noqa: ARG002, RUF012  (steps that do nothing undo nothing; a saga's steps are a list)
"""Sagas of three steps, beside the least that storing them can cost and beside other libraries."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import punq
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import sessionmaker

from benchmarks import saga_peers, servers
from benchmarks.outbox import freshly
from benchmarks.report import Row, Section, compared, missing
from benchmarks.timing import Effort, Run, Times, race, statement
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage

THREADS = (1, 8)

BARE = "bare psycopg2: INSERT, 3 times UPDATE and log"
OURS = "SagaMediator.run"

# With the indexes that recovery needs, to find a saga that is unfinished and what it has done; none for retention.
BARE_TABLES = """
CREATE TABLE bare_executions (LIKE saga_executions INCLUDING DEFAULTS);
ALTER TABLE bare_executions ADD PRIMARY KEY (id);
CREATE INDEX bare_unfinished ON bare_executions (created_at) WHERE finished_at IS NULL;
CREATE TABLE bare_logs (LIKE saga_logs INCLUDING DEFAULTS INCLUDING IDENTITY);
ALTER TABLE bare_logs ADD PRIMARY KEY (id);
CREATE INDEX bare_log ON bare_logs (saga_id, id)
"""

CREATE = """
INSERT INTO bare_executions
    (id, name, status, context, definition, version, current_step, attempts, locked_by, available_at, created_at,
     updated_at)
VALUES (%s, 'OrderSaga', 'running', %s, 'Reserve Charge Ship', 1, 'Reserve', 0, %s, now() + interval '30 s', now(),
        now())
"""
WRITE = """
WITH written AS (
    UPDATE bare_executions
    SET status = %s, version = version + 1, current_step = %s, context = %s, locked_by = %s,
        available_at = now() + interval '30 s', updated_at = now(), finished_at = %s
    WHERE id = %s AND version = %s AND locked_by = %s
    RETURNING id
)
INSERT INTO bare_logs (saga_id, step_name, action, status, attempts, duration, actor, created_at)
SELECT id, %s, 'act', 'completed', 1, 0.000001, %s, now() FROM written
"""


@dataclasses.dataclass
class Order(SagaContext):
    """A context of an ordinary size."""

    order_id: str = "order-1"
    sku: str = "lamp"
    cents: int = 4200
    shelf: str | None = None
    charge: str | None = None
    parcel: str | None = None


class Reserve(SagaStepHandler[Order, str]):
    """A step that changes the context, and nothing else."""

    def act(self, context: Order) -> SagaStepResult[Order, str]:
        context.shelf = "shelf-1"
        return self._generate_step_result(context.shelf)

    def compensate(self, context: Order) -> None:
        return None


class Charge(SagaStepHandler[Order, str]):
    """Another one."""

    def act(self, context: Order) -> SagaStepResult[Order, str]:
        context.charge = "charge-1"
        return self._generate_step_result(context.charge)

    def compensate(self, context: Order) -> None:
        return None


class Ship(SagaStepHandler[Order, str]):
    """The last one."""

    def act(self, context: Order) -> SagaStepResult[Order, str]:
        context.parcel = "parcel-1"
        return self._generate_step_result(context.parcel)

    def compensate(self, context: Order) -> None:
        return None


class OrderSaga(Saga[Order]):
    """Three steps."""

    steps = [Reserve, Charge, Ship]


def measure(effort: Effort) -> Iterator[Section]:
    """The sections about sagas in PostgreSQL."""
    for threads in THREADS:
        title = f"sagas: 3 steps on PostgreSQL, {threads} thread{'s' if threads > 1 else ''}, seconds per saga"
        try:
            with servers.database() as engine, with_connections(engine, threads) as wide:
                yield _stored(title, wide, threads, effort)
        except LookupError as error:
            yield servers.absent(title, error)


def measure_memory(effort: Effort) -> Iterator[Section]:
    """The section about sagas that are kept in memory."""
    with mediator_of(None) as mediator, ExitStack() as stack:
        peers, reasons = saga_peers.gather(stack, saga_peers.MEMORY, effort)
        times = race(
            {OURS: statement("run(order())", run=mediator.run, order=Order), **peers},
            rounds=effort.rounds,
            slice=effort.slice * 5,
            said="saga-memory",
        )
    rows = [
        _with_rate(Row(name=OURS, seconds=times.median(OURS)), times),
        *(_with_rate(compared(times, name, OURS, "x ours", at_least=3), times) for name in peers),
        *missing(reasons),
    ]
    yield Section("sagas: 3 steps kept in memory, seconds per saga", rows)


@contextmanager
def with_connections(engine: Engine, threads: int) -> Iterator[Engine]:
    """An engine that keeps a connection for each thread; by default it would open and close those above five."""
    wide = create_engine(engine.url, pool_size=threads)
    try:
        yield wide
    finally:
        wide.dispose()


def mediator_of(storage: SagaStorage | None) -> SagaMediator:
    """A mediator as ``bootstrap`` returns it by default, over punq."""
    return bootstrap(punq.Container(), sagas_mapper=lambda sagas: sagas.bind(Order, OrderSaga), saga_storage=storage)


def _stored(title: str, engine: Engine, threads: int, effort: Effort) -> Section:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(BARE_TABLES))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        mediator = stack.enter_context(mediator_of(SqlAlchemySagaStorage(sessionmaker(engine))))
        bare = [stack.enter_context(_bare_saga(engine)) for _ in range(threads)]
        peers, reasons = saga_peers.gather(stack, saga_peers.stored(pool, threads, effort.sagas), effort)
        times = race(
            {
                BARE: together(pool, bare, effort.sagas),
                OURS: together(pool, [lambda: mediator.run(Order())] * threads, effort.sagas),
                **peers,
            },
            rounds=effort.slow_rounds,
            slice=0,
            said=title.split(", seconds")[0],
        )
    rows = [
        _with_rate(Row(name=BARE, seconds=times.median(BARE)), times),
        _with_rate(compared(times, OURS, BARE, "x bare", at_most=1.6 if threads == 1 else None), times),
        *(_with_rate(compared(times, name, OURS, "x ours", at_least=5), times) for name in peers),
        *missing(reasons),
    ]
    return Section(title, rows, f"{servers.settings(engine)}. 4 commits; steps that change the context only.")


def together(pool: ThreadPoolExecutor, sagas: Sequence[Callable[[], object]], number: int) -> Run:
    """A run of so many sagas one after the other on each thread of a pool."""

    def several(saga: Callable[[], object]) -> int:
        for _ in range(number):
            saga()
        return number

    return freshly(lambda: None, lambda: sum(pool.map(several, sagas)))


@contextmanager
def _bare_saga(engine: Engine) -> Iterator[Callable[[], object]]:
    """The least that a saga can be: one statement for each commit, and nobody looks whether it was refused."""
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        driver: Any = connection.driver_connection
        driver.autocommit = True
        order = '{"order_id":"order-1","sku":"lamp","cents":4200,"shelf":null,"charge":null,"parcel":null}'
        steps = ("Reserve", "Charge", "Ship", None)

        def saga() -> None:
            saga_id, owner = str(uuid.uuid4()), f"host:1:000000000000/{uuid.uuid4().int % 1000}"
            cursor.execute(CREATE, (saga_id, order, owner))
            for number in (1, 2, 3):
                step, following = steps[number - 1 : number + 1]
                status, owned, ended = ("running", owner, None) if following else ("completed", None, "now")
                written = (status, following, order, owned, ended, saga_id, number, owner)
                cursor.execute(WRITE, (*written, step, owner))

        try:
            yield saga
        finally:
            driver.autocommit = False


def _with_rate(row: Row, times: Times) -> Row:
    return dataclasses.replace(row, note=f"{1 / times.median(row.name):,.0f}/s")
