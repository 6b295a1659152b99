"""An order as a saga of four steps, whose effects are in another database; and what a restart does."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg2  # type: ignore[import-untyped]  # noqa: F401 (once, and not in each process)
import punq
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from cqrs_sync.errors import OutcomeUnknown, SagaNotFound
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext, encode
from cqrs_sync.saga.recovery import recover_saga
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import ACT, SagaStatus
from cqrs_sync.saga.storage.models import SagaWrite
from cqrs_sync.saga.storage.sqlalchemy import Base, SagaExecutionModel, SqlAlchemySagaStorage
from cqrs_sync.testing.crash import Case
from cqrs_sync.unit_of_work.protocol import Transaction

SAGA_ID = uuid.UUID(int=7)
LEASE = 3600.0
"""So long that the heartbeat has nothing to do, and each run reaches the same boundaries."""

metadata = sa.MetaData()
invoices = sa.Table(
    "invoices", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("kind", sa.Text, nullable=False)
)

elsewhere = sa.MetaData()
calls = sa.Table(
    "calls",
    elsewhere,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
)
"""What the services were asked for. They do nothing twice for one key, so its first row is the effect."""


# --- the saga ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class OrderContext(SagaContext):
    done: list[str] = dataclasses.field(default_factory=list)


encode(OrderContext())  # pydantic takes its time, once


class Services:
    """The warehouse, the bank and the carrier, in a database of their own.

    Args:
        case: its ``ending`` is that it ``completes``; ``fails``: there is no truck; ``fails first``: there is one when
            the process restarts; ``fails later``: there is none any more then; ``times out``: the truck leaves, and
            nobody hears of it.
        restarted: whether the process has.
    """

    def __init__(self, engine: sa.Engine, case: Case, *, restarted: bool) -> None:
        self._engine = engine
        self._ending = case.settings["ending"]
        self._ignores_keys = case.settings.get("wrong") == "keys"
        self._restarted = restarted

    def call(self, step: SagaStepHandler[Any, Any]) -> None:
        execution = step.execution
        key = uuid.uuid4().hex if self._ignores_keys else step.idempotency_key
        values = {"key": key, "step": execution.step_name, "action": execution.action}
        with self._engine.begin() as connection:
            connection.execute(calls.insert().values(values))

    def find_truck(self) -> None:
        if self._ending == "fails" or self._ending == ("fails later" if self._restarted else "fails first"):
            raise LookupError("no truck")

    def answer(self) -> None:
        if self._ending == "times out":
            raise OutcomeUnknown("the truck has left, perhaps")


class _Called(SagaStepHandler[OrderContext, None]):
    def __init__(self, services: Services) -> None:
        self._services = services

    def act(self, context: OrderContext) -> Any:
        self._services.call(self)
        context.done.append(type(self).__name__)

    def compensate(self, context: OrderContext) -> None:
        self._services.call(self)


class Reserve(_Called): ...


class Charge(_Called): ...


class Invoice(TransactionalSagaStep[OrderContext, None]):
    """Writes next to the saga; the table can only grow."""

    def act(self, context: OrderContext, session: Session) -> Any:
        session.execute(invoices.insert().values(kind="invoice"))
        context.done.append("Invoice")

    def compensate(self, context: OrderContext, session: Session) -> None:
        session.execute(invoices.insert().values(kind="credit note"))


class Ship(_Called):
    def act(self, context: OrderContext) -> Any:
        self._services.find_truck()
        super().act(context)
        self._services.answer()


class OrderSaga(Saga[OrderContext]):
    steps = [Reserve, Invoice, Charge, Ship]


# --- where things are --------------------------------------------------------------------------------------------


@contextmanager
def engine_of(case: Case) -> Iterator[sa.Engine]:
    """Where the sagas are: a file of the case's own, or a schema of its own where a server is given."""
    url = case.settings.get("url")
    if url is None:
        with _file(case, "sagas") as engine:
            yield engine
        return
    engine = sa.create_engine(url, connect_args={"options": f"-csearch_path={case.name}"})
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def services_of(case: Case) -> Iterator[sa.Engine]:
    """Where the effects are."""
    with _file(case, "services") as engine:
        yield engine


@contextmanager
def _file(case: Case, name: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{case.directory / name}.sqlite3")
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        yield engine
    finally:
        engine.dispose()


def prepare(case: Case) -> None:
    with engine_of(case) as engine, services_of(case) as services:
        if "url" in case.settings:
            with engine.begin() as connection:
                connection.execute(DropSchema(case.name, cascade=True, if_exists=True))
                connection.execute(CreateSchema(case.name))
        Base.metadata.create_all(engine, checkfirst=False)
        metadata.create_all(engine, checkfirst=False)
        elsewhere.create_all(services, checkfirst=False)


def prepare_charged(case: Case) -> None:
    """The same with a saga that was handed over before its last step."""
    prepare(case)
    with mediator_of(case, restarted=False) as mediator, closing(mediator.stream(OrderContext(), SAGA_ID)) as results:
        for _ in range(3):
            next(results)


@contextmanager
def parts_of(case: Case, *, restarted: bool) -> Iterator[tuple[punq.Container, SqlAlchemySagaStorage]]:
    """A process's container and storage."""
    storage_type = StagedTurn if case.settings.get("wrong") == "turn" else SqlAlchemySagaStorage
    with engine_of(case) as engine, services_of(case) as services:
        container = punq.Container()
        container.register(Services, instance=Services(services, case, restarted=restarted))
        yield container, storage_type(sessionmaker(engine), LEASE)


@contextmanager
def mediator_of(case: Case, *, restarted: bool) -> Iterator[SagaMediator]:
    with (
        parts_of(case, restarted=restarted) as (container, storage),
        bootstrap(
            container, sagas_mapper=lambda sagas: sagas.bind(OrderContext, OrderSaga), saga_storage=storage
        ) as mediator,
    ):
        yield mediator


# --- what is run -------------------------------------------------------------------------------------------------


def run(case: Case) -> None:
    """Run the saga to its end, or go on with the one that is there."""
    with mediator_of(case, restarted=False) as mediator:
        mediator.run(OrderContext(), SAGA_ID)


def recover(case: Case) -> None:
    """What a restart does, once the lease of the killed process has ended."""
    _end_leases(case)
    with mediator_of(case, restarted=True) as mediator:
        SagaRecoveryWorker(mediator).run_once()


def recover_by_id(case: Case) -> None:
    """The same for somebody who knows which saga it is."""
    _end_leases(case)
    with parts_of(case, restarted=True) as (container, storage), suppress(SagaNotFound):
        recover_saga(OrderSaga, SAGA_ID, container=container, storage=storage)


def _end_leases(case: Case) -> None:
    """What time does; waits for the locks that a killed process has on a server."""
    past = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    held = SagaExecutionModel.locked_by.is_not(None)
    with engine_of(case) as engine, engine.begin() as connection:
        connection.execute(sa.update(SagaExecutionModel).where(held).values(available_at=past))


class StagedTurn(SqlAlchemySagaStorage):
    """Wrong: that there is no way back is stored with the first compensation, and not before it."""

    _staged: SagaWrite | None = None
    _behind = 0

    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        if write.status is SagaStatus.COMPENSATING and write.entries[-1].action == ACT:
            self._staged, self._behind = write, 1
            return
        entries = write.entries
        if self._staged is not None:
            entries, self._staged = (*self._staged.entries, *entries), None
        super().write(dataclasses.replace(write, version=write.version - self._behind, entries=entries), transaction)
