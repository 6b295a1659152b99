"""Trips as sagas with all that a saga can hold: pivots, fallbacks, groups, retries; and what restarts do with them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, ClassVar

import psycopg2  # type: ignore[import-untyped]  # noqa: F401 (once, and not in each process)
import punq
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import OutcomeUnknown
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext, encode
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler
from cqrs_sync.saga.storage.sqlalchemy import Base, SagaExecutionModel, SqlAlchemySagaStorage
from cqrs_sync.testing.crash import Case
from tests.crash.flows_saga import LEASE, SAGA_ID, engine_of, services_of

ATTEMPTS = 8
"""How often recovery takes a trip on; no trip needs that many."""

DOES, FAILS, TIMES_OUT = "does", "fails", "times out"
"""What a service does when it is asked: what it should; nothing, and it says so; what it should, and nobody hears."""

metadata = sa.MetaData()
calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
)
"""What the services were asked for, and for which time, from 0."""


# --- the sagas ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Trip(SagaContext):
    """What is booked, as each step says; steps of a group must not write the same field."""

    Hotel: bool = False
    Flight: bool = False
    Train: bool = False
    Car: bool = False
    Guide: bool = False
    Pay: bool = False
    Invoice: bool = False
    Ticket: bool = False
    Mail: bool = False
    Message: bool = False


encode(Trip())  # pydantic takes its time, once


def answer_of(case: Case, step: str, action: str, number: int) -> str:
    """What a service answers when it is asked for the time of this number.

    The case's ``world`` has the answers of each step, one after another; the last one stays.
    """
    answers = case.settings["world"].get(step if action == "act" else f"-{step}", [DOES])
    answer: str = answers[min(number, len(answers) - 1)]
    return answer


class Services:
    """All that can be booked, in a database of their own. They do nothing twice for one key."""

    def __init__(self, engine: sa.Engine, case: Case) -> None:
        self._engine = engine
        self._case = case

    def call(self, step: SagaStepHandler[Any, Any]) -> None:
        name, action = step.execution.step_name, step.execution.action
        before = sa.select(sa.func.count()).where(calls.c.step == name, calls.c.action == action).scalar_subquery()
        values = {"key": step.idempotency_key, "step": name, "action": action, "number": before}
        with self._engine.begin() as connection:
            number = connection.scalars(calls.insert().values(values).returning(calls.c.number)).one()
        answer = answer_of(self._case, name, action, number)
        if answer == FAILS:
            raise LookupError(f"no {name}")
        if answer == TIMES_OUT:
            raise OutcomeUnknown(f"{name}, perhaps")


class _Booked(SagaStepHandler[Trip, None]):
    compensate_retry: ClassVar[Retry | None] = Retry(attempts=2, delay=0)

    def __init__(self, services: Services) -> None:
        self._services = services

    def act(self, context: Trip) -> Any:
        setattr(context, type(self).__name__, True)
        self._services.call(self)

    def compensate(self, context: Trip) -> None:
        self._services.call(self)


class Hotel(_Booked): ...


class Flight(_Booked):
    retry = Retry(attempts=2, delay=0)


class Train(_Booked): ...


class Car(_Booked): ...


class Guide(_Booked): ...


class Pay(_Booked): ...


class Invoice(_Booked): ...


class Ticket(_Booked):
    kind = "pivot"


class Mail(_Booked):
    kind = "retriable"


class Message(_Booked):
    kind = "retriable"


class Ticketed(Saga[Trip]):
    """What is ticketed cannot be given back."""

    steps = [Hotel, Ticket, Fallback(Mail, Message)]


class Paid(Saga[Trip]):
    """Nobody pays twice."""

    steps = [Hotel, Fallback(Pay, Invoice), Car]


class Retried(Saga[Trip]):
    """One flight, however often it is asked for."""

    steps = [Flight, Car]


class Grouped(Saga[Trip]):
    """Three bookings at the same time, of which one has another behind it."""

    steps = [Parallel(Hotel, Fallback(Flight, Train), Guide), Car]


SAGAS: dict[str, type[Saga[Trip]]] = {saga.__name__: saga for saga in (Ticketed, Paid, Retried, Grouped)}


# --- where things are --------------------------------------------------------------------------------------------


def prepare(case: Case) -> None:
    with engine_of(case) as engine, services_of(case) as services:
        if "url" in case.settings:
            with engine.begin() as connection:
                connection.execute(DropSchema(case.name, cascade=True, if_exists=True))
                connection.execute(CreateSchema(case.name))
        Base.metadata.create_all(engine, checkfirst=False)
        metadata.create_all(services, checkfirst=False)


def prepare_begun(case: Case) -> None:
    """The same with a trip that was handed over behind its first step."""
    prepare(case)
    with mediator_of(case) as mediator, closing(mediator.stream(Trip(), SAGA_ID)) as results:
        next(results)


@contextmanager
def mediator_of(case: Case) -> Iterator[SagaMediator]:
    """A process's mediator.

    One step of a group at a time: the kit counts boundaries over all threads, and needs them in the same order.
    """
    with engine_of(case) as engine, services_of(case) as services:
        container = punq.Container()
        container.register(Services, instance=Services(services, case))
        with bootstrap(
            container,
            sagas_mapper=lambda sagas: sagas.bind(Trip, SAGAS[case.settings["saga"]]),
            saga_storage=SqlAlchemySagaStorage(sessionmaker(engine), LEASE),
            recovery_backoff=Backoff(initial=LEASE, maximum=LEASE),
            max_parallel_steps=1,
        ) as mediator:
            yield mediator


# --- what is run -------------------------------------------------------------------------------------------------


def run(case: Case) -> None:
    """Run the trip, or go on with the one that is there, as often as it is put off."""
    with mediator_of(case) as mediator:
        mediator.run(Trip(), SAGA_ID)
        _go_on(case, mediator)


def recover(case: Case) -> None:
    """What restarts do, until nothing is left to do."""
    _let_time_pass(case)
    with mediator_of(case) as mediator:
        SagaRecoveryWorker(mediator, max_attempts=ATTEMPTS).run_once()
        _go_on(case, mediator)


def _go_on(case: Case, mediator: SagaMediator) -> None:
    for _ in range(ATTEMPTS):
        if not _let_time_pass(case):
            break
        SagaRecoveryWorker(mediator, max_attempts=ATTEMPTS).run_once()


def _let_time_pass(case: Case) -> int:
    """Have all leases end, and all that is put off be due; returns how many trips have not ended."""
    past = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    waits = SagaExecutionModel.available_at.is_not(None)
    with engine_of(case) as engine, engine.begin() as connection:
        return connection.execute(sa.update(SagaExecutionModel).where(waits).values(available_at=past)).rowcount
