"""What the tests of sagas in many processes share: an order of four steps, what its calls write down, and processes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import punq
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.errors import SagaConcurrencyError
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext, encode
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus
from cqrs_sync.saga.storage.models import SagaState
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from tests.databases import fresh
from tests.integration import outbox_world as world
from tests.integration.outbox_world import WAIT, Children
from tests.journal import append_to, entries, note

POLL = 0.05
"""Seconds between a worker's looks."""

FAILS_EACH = 4
"""Each fourth order finds no truck."""

STEPS = ["Reserve", "Charge", "Pack", "Ship"]

NUMBERS = uuid.UUID(int=0)
"""The ids of the sagas are made from their numbers, so that any process knows them."""

metadata = sa.MetaData()
parcels = sa.Table("parcels", metadata, sa.Column("saga_id", sa.Text), sa.Column("worker", sa.Text))
"""What the one step writes that is recorded in its own transaction."""


def id_of(number: int) -> uuid.UUID:
    return uuid.uuid5(NUMBERS, str(number))


# --- databases ---------------------------------------------------------------------------------------------------


@contextmanager
def database(server: str) -> Iterator[str]:
    """A database of a test's own, with the tables."""
    with fresh(server) as url:
        yield with_tables(url)


def with_tables(url: str) -> str:
    with world.engine_of(url) as engine:
        for each in (Base.metadata, metadata):
            each.create_all(engine)
    return url


def states_of(storage: SqlAlchemySagaStorage) -> list[SagaState]:
    """All sagas, with their logs."""
    found = storage.find(list(SagaStatus), limit=100_000)
    return [storage.load_saga_state(state.saga_id) for state in found]


# --- the journal -------------------------------------------------------------------------------------------------


class Journal:
    """What was done, in all processes, in one order.

    Args:
        path: the file.
        worker: who writes.
    """

    def __init__(self, path: Path, worker: str) -> None:
        self.path = path
        self.worker = worker
        self._file = append_to(path)

    def note(self, what: str, **values: Any) -> None:
        # By a clock that is the same for all processes of a machine.
        note(self._file, **{"what": what, "worker": self.worker, "at": round(time.monotonic(), 3), **values})

    def entries(self, what: str | None = None) -> list[dict[str, Any]]:
        return [entry for entry in entries(self.path) if what in (None, entry["what"])]

    def close(self) -> None:
        os.close(self._file)


@dataclasses.dataclass
class Services:
    """What the steps call; each call is written down when it begins and when it has had its effect, or has not.

    Attributes:
        journal: where.
        work: seconds that a call takes at most.
        gate: a file that the call waits for which ``waits_in`` names, as ``"Charge/act"``.
    """

    journal: Journal
    work: float = 0.0
    gate: Path | None = None
    waits_in: str | None = None

    @contextmanager
    def called(self, step: Any) -> Iterator[None]:
        execution = step.execution
        name = f"{execution.step_name}/{execution.action}"
        values = {
            "saga": str(execution.saga_id),
            "call": name,
            "key": execution.idempotency_key,
            "token": execution.owner,
        }
        self.journal.note("begun", **values)
        try:
            if self.gate is not None and name == self.waits_in:
                world.eventually(self.gate.exists)
            elif self.work:
                threading.Event().wait(random.uniform(0, self.work))
            yield
        except Exception:
            self.journal.note("failed", **values)
            raise
        self.journal.note("done", **values)


# --- the saga ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class OrderContext(SagaContext):
    number: int = 1
    done: list[str] = dataclasses.field(default_factory=list)


encode(OrderContext())  # pydantic takes its time, once


class _Called(SagaStepHandler[OrderContext, None]):
    def __init__(self, services: Services) -> None:
        self._services = services

    def act(self, context: OrderContext) -> Any:
        with self._services.called(self):
            self.do(context)
        context.done.append(type(self).__name__)

    def do(self, context: OrderContext) -> None: ...

    def compensate(self, context: OrderContext) -> None:
        with self._services.called(self):
            context.done.append(f"-{type(self).__name__}")


class Reserve(_Called): ...


class Charge(_Called): ...


class Pack(TransactionalSagaStep[OrderContext, None]):
    """Is recorded in the transaction of what it writes."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def act(self, context: OrderContext, session: Session) -> Any:
        session.execute(parcels.insert().values(saga_id=str(self.saga_id), worker=self._services.journal.worker))
        with self._services.called(self):
            context.done.append("Pack")

    def compensate(self, context: OrderContext, session: Session) -> None:
        session.execute(parcels.delete().where(parcels.c.saga_id == str(self.saga_id)))
        with self._services.called(self):
            context.done.append("-Pack")


class Ship(_Called):
    def do(self, context: OrderContext) -> None:
        if context.number % FAILS_EACH == 0:
            raise LookupError("no truck")


class OrderSaga(Saga[OrderContext]):
    steps = [Reserve, Charge, Pack, Ship]


@contextmanager
def shop(url: str, services: Services, lease: float, **settings: Any) -> Iterator[SagaMediator]:
    """A process's part of the application."""
    container = punq.Container()
    container.register(Services, instance=services)
    with (
        world.engine_of(url) as engine,
        bootstrap(
            container,
            sagas_mapper=lambda sagas: sagas.bind(OrderContext, OrderSaga),
            saga_storage=SqlAlchemySagaStorage(sessionmaker(engine), lease),
            **settings,
        ) as mediator,
    ):
        yield mediator


# --- what must hold ----------------------------------------------------------------------------------------------


def check(entries: Sequence[dict[str, Any]], states: Sequence[SagaState], *, outages: bool = False) -> None:
    """Every saga has ended, as its effects have; none was run by two at once.

    Args:
        entries: the whole journal. A worker that is killed is noted as ``killing`` before.
        states: all sagas with their logs.
        outages: whether the database was away at times, so that what was done could not always be recorded.
    """
    killed: set[str] = set()
    calls: defaultdict[str, _Calls] = defaultdict(lambda: _Calls(outages=outages))
    for entry in entries:
        if entry["what"] == "killing":
            killed.add(entry["worker"])
        elif "call" in entry:
            calls[entry["saga"]].take(entry, killed)
    assert set(calls) <= {str(state.saga_id) for state in states}, "a saga is lost"
    for state in states:
        calls[str(state.saga_id)].check(state)


class _Calls:
    """What one saga has called, in the order of the journal."""

    def __init__(self, *, outages: bool) -> None:
        self._outages = outages
        self._keys: dict[str, str] = {}
        self._tokens: dict[str, None] = {}  # as an ordered set
        self._open: dict[str, Any] | None = None
        self._done: dict[str, dict[str, Any]] = {}  # the latest of each, in the order of the first

    def take(self, entry: dict[str, Any], killed: set[str]) -> None:
        name, token = entry["call"], entry["token"]
        assert self._keys.setdefault(name, entry["key"]) == entry["key"], "called again under another key"
        if entry["what"] != "begun":
            assert self._open is not None, "a call has ended behind another one"
            is_own = (self._open["call"], self._open["token"]) == (name, token)
            assert is_own, f"two were at work at once: {self._open}, {entry}"
            self._open = None
            if entry["what"] == "done":
                self._done[name] = entry
            return
        assert token == next(reversed(self._tokens), token) or token not in self._tokens, "an old owner came back"
        self._tokens[token] = None
        if self._open is not None:
            assert self._open["worker"] in killed, f"two were at work at once: {self._open}, {entry}"
        before = self._done.get(name)
        assert before is None or before["worker"] in killed or self._outages, "called again although nobody was killed"
        self._open = entry

    def check(self, state: SagaState) -> None:
        assert state.status.is_final, "left unfinished"
        assert self._open is None
        acted, undone = (
            [name.partition("/")[0] for name in self._done if name.endswith(f"/{action}")]
            for action in (ACT, COMPENSATE)
        )
        number = json.loads(state.context)["number"]
        if number % FAILS_EACH:
            assert (state.status, acted, undone) == (SagaStatus.COMPLETED, STEPS, [])
            assert json.loads(state.context)["done"] == STEPS
            return
        assert (state.status, acted) == (SagaStatus.FAILED, STEPS[:3])
        # A call that found no truck, in a process that was killed then, may have found one as far as anybody knows.
        assert undone in (STEPS[2::-1], STEPS[::-1]), "not undone, or not in reverse"
        assert list(self._done)[:3] == [f"{step}/{ACT}" for step in STEPS[:3]], "it went on behind a compensation"


def check_parcels(engine: sa.Engine, states: Iterable[SagaState]) -> None:
    """What is recorded with its own transaction was done exactly once, or is undone."""
    with engine.connect() as connection:
        found = sorted(connection.scalars(sa.select(parcels.c.saga_id)))
    assert found == sorted(str(state.saga_id) for state in states if state.status is SagaStatus.COMPLETED)


# --- processes ---------------------------------------------------------------------------------------------------


def run_orders(url: str, path: Path, worker: str, *, numbers: Sequence[int], lease: float, work: float) -> None:
    """Run the sagas of some numbers, three at a time, but for those that are there: they are for others to finish."""
    with shop(url, Services(Journal(path, worker), work), lease) as mediator, ThreadPoolExecutor(3) as threads:
        storage: Any = mediator.engine.storage
        known = {state.saga_id for state in storage.find(list(SagaStatus), limit=100_000)}
        orders = [OrderContext(number) for number in numbers if id_of(number) not in known]
        for outcome in threads.map(lambda order: mediator.run(order, id_of(order.number)), orders):
            assert outcome.status.is_final


def run_workers(url: str, path: Path, worker: str, *, lease: float, work: float) -> None:
    """Two recovery workers, until SIGTERM."""
    with (
        shop(url, Services(Journal(path, worker), work), lease) as mediator,
        SagaRecoveryWorker(mediator, 2, POLL, name="other"),
    ):
        SagaRecoveryWorker(mediator, 2, POLL, name="one").run_forever(stop_timeout=WAIT)


def run_one(url: str, path: Path, worker: str, *, number: int, lease: float, gate: Path, waits_in: str) -> None:
    """Run one saga, which waits for a file in one of its calls, and write down what came of it."""
    journal = Journal(path, worker)
    with shop(url, Services(journal, gate=gate, waits_in=waits_in), lease) as mediator:
        try:
            outcome = mediator.run(OrderContext(number), id_of(number))
        except SagaConcurrencyError as error:
            journal.note("refused", error=str(error))
        else:
            journal.note("ended", status=outcome.status)


class Crowd:
    """Processes of which some are killed and replaced."""

    def __init__(self, children: Children, url: str, journal: Journal, **options: Any) -> None:
        self._children = children
        self._numbers = itertools.count()
        self._arguments = (url, journal.path)
        self._options = options
        self._journal = journal
        self._alive: dict[str, tuple[Any, Callable[[], None]]] = {}
        self.killed: list[str] = []

    def add(self, function: Callable[..., None], **options: Any) -> None:
        worker = f"{function.__name__}-{next(self._numbers)}"
        process = self._children.start(function, *self._arguments, worker, **self._options, **options)
        self._alive[worker] = process, functools.partial(self.add, function, **options)

    def kill_one(self) -> None:
        """Kill any that has begun to work, and start another in its place; there may be none."""
        begun = {entry["worker"] for entry in self._journal.entries("begun")}
        alive = [worker for worker in begun.intersection(self._alive) if self._alive[worker][0].is_alive()]
        if not alive:
            return
        worker = random.choice(alive)
        process, replace = self._alive.pop(worker)
        self._journal.note("killing", worker=worker)
        self._children.kill(process)
        self.killed.append(worker)
        replace()

    def is_done(self, function: Callable[..., None]) -> bool:
        """Whether all processes that run this have come to their end."""
        ended = [process for worker, (process, _) in self._alive.items() if worker.startswith(function.__name__)]
        assert not any(process.exitcode for process in ended), "one has raised"
        return all(process.exitcode == 0 for process in ended)

    def end(self) -> None:
        """Ask those that are left to end; one that has not come so far as to hear it is ended by the signal itself."""
        assert set(self._children.end(*(process for process, _ in self._alive.values()))) <= {0, -signal.SIGTERM}


def kill_at_random(server: str, journal: Journal, *, count: int, seconds: float, lease: float) -> None:
    """Have processes run sagas, and recovery workers in others, and kill any of them for some time; check the end."""
    work = 4 * seconds / count  # so that there are sagas to be run for about as long as there are kills
    with database(server) as url, world.children() as children, shop(url, Services(journal), lease) as mediator:
        crowd = Crowd(children, url, journal, lease=lease, work=work)
        for number in range(4):
            crowd.add(run_workers)
            crowd.add(run_orders, numbers=range(number, count, 4))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            threading.Event().wait(random.uniform(0.2, 0.6))
            crowd.kill_one()
        storage: Any = mediator.engine.storage
        world.eventually(lambda: crowd.is_done(run_orders) and not storage.find())
        crowd.end()
        states = states_of(storage)
        with world.engine_of(url) as engine:
            check_parcels(engine, states)
    assert {state.saga_id for state in states} == {id_of(number) for number in range(count)}
    check(journal.entries(), states)
    _check_that_much_was_interrupted(journal.entries("begun"), len(crowd.killed), seconds)


def _check_that_much_was_interrupted(begun: Sequence[dict[str, Any]], killed: int, seconds: float) -> None:
    """Else it was no test."""
    workers = Counter(saga for saga, _ in {(entry["saga"], entry["worker"]) for entry in begun})
    repeated = Counter((entry["saga"], entry["call"]) for entry in begun)
    assert killed > seconds / 2
    assert sum(number > 1 for number in workers.values()) > 5, "hardly a saga was taken on by another process"
    assert max(repeated.values()) > 1, "nobody was killed in the middle of a step"
