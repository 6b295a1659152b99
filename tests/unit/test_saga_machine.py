"""Random sagas, in processes that crash, freeze and take over from each other, against a model of what may happen."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import logging
import tempfile
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar
from unittest import mock

import punq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import OutcomeUnknown, SagaActionRefused, SagaConcurrencyError, SagaRolledBack
from cqrs_sync.executors import InCallerThread
from cqrs_sync.saga import leases
from cqrs_sync.saga.administration import SagaAdministration
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.engine import SagaEngine
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga, SagaTransaction
from cqrs_sync.saga.step import SagaStepHandler, StepExecution, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import NewSaga, SagaBacklog, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore
from cqrs_sync.saga.storage.sqlalchemy import Base, SagaExecutionModel, SqlAlchemySagaStorage
from cqrs_sync.unit_of_work.protocol import Transaction
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyTransaction
from tests.unit.sagas import Died, Storage

LEASE = 3600.0
LATER = Backoff(initial=LEASE, maximum=LEASE)
"""Time passes where a rule says so, and not by itself."""

COMPENSATIONS = 2
"""Attempts of each ``compensate``."""

MOST_STEPS = 24

# --- what is drawn -----------------------------------------------------------------------------------------------

Stage = tuple[tuple[int, ...], ...]
"""Numbers of steps: one choice, or several of a group; each with its fallback, or without."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A saga.

    Attributes:
        stages: its steps; from the stage ``pivot`` on nothing is undone.
        attempts: of each step.
        joined: those that write in the transaction that records them.
        broken: steps that fail wherever nothing worse is planned: all of one choice, until they are mended.
        most: how often recovery takes a saga on without progress; None: without end.
    """

    stages: tuple[Stage, ...]
    attempts: tuple[int, ...]
    joined: frozenset[int]
    pivot: int | None
    broken: tuple[int, ...]
    most: int | None

    def stage_of(self, step: int) -> int:
        return next(place for place, stage in enumerate(self.stages) if any(step in choice for choice in stage))

    def choice_of(self, step: int) -> tuple[int, ...]:
        return next(choice for stage in self.stages for choice in stage if step in choice)

    @property
    def pivots(self) -> tuple[int, ...]:
        """The pivot and its fallback, or nothing."""
        return () if self.pivot is None else self.stages[self.pivot][0]


seldom = st.sampled_from((False, False, True))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """One to four stages, of one to three choices."""
    single = st.lists(st.booleans(), min_size=1, max_size=1)
    with_fallback = draw(st.lists(single | st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=4))
    numbers = iter(range(MOST_STEPS))
    stages = tuple(
        tuple((next(numbers), next(numbers)) if both else (next(numbers),) for both in stage) for stage in with_fallback
    )
    count = next(numbers, MOST_STEPS)
    attempts = draw(st.lists(seldom.map(lambda twice: 1 + twice), min_size=count, max_size=count))
    joined = draw(st.lists(seldom, min_size=count, max_size=count))
    alone = [place for place, stage in enumerate(stages) if len(stage) == 1]
    pivot = draw(st.sampled_from([None, *alone]))
    behind = stages if pivot is None else stages[pivot + 1 :]
    all_choices, decided = ([choice for stage in some for choice in stage] for some in (stages, behind))
    broken = draw(st.sampled_from([()]) | st.sampled_from(all_choices) | st.sampled_from(decided or all_choices))
    most = draw(st.sampled_from((None, 1, 2, 3)))
    return Shape(stages, tuple(attempts), frozenset(itertools.compress(range(count), joined)), pivot, broken, most)


OK, FAILS, UNKNOWN = "ok", "fails", "unknown"
DIES_BEFORE, DIES_AFTER, DIES_WRITING, DIES_WRITTEN = "dies before", "dies after", "dies writing", "dies written"
FREEZES, FREEZES_AND_FAILS = "freezes", "freezes and fails"
OUTCOMES = (OK, FAILS, UNKNOWN, DIES_BEFORE, DIES_AFTER, DIES_WRITING, DIES_WRITTEN, FREEZES, FREEZES_AND_FAILS)
"""Of a call; when it dies or freezes, and is neither ``before`` nor ``fails``, it has had its effect.

What a transactional step does is in the log's own transaction: its effect is had where the log says so.
"""

plans = st.lists(st.sampled_from((OK, OK, FAILS, FAILS, *OUTCOMES)), max_size=8)
"""The outcomes of the next calls; behind them all goes well."""

# --- processes ---------------------------------------------------------------------------------------------------

Marks: Any = dataclasses.make_dataclass(
    "Marks", [(f"m{number}", int, 0) for number in range(MOST_STEPS)], bases=(SagaContext,)
)
"""The context: each step sets a field of its own."""

STRANGE = {f"m{number}": 7 for number in range(MOST_STEPS)}
"""A context that somebody comes with who takes a saga on; the stored one counts."""


class Mortal(SagaStore):
    """The sagas as one process sees them, which may die before or after a write, and sees nothing then.

    Attributes:
        dies: ``"before"`` or ``"after"`` the next write; None: not yet.
    """

    def __init__(self, model: Model) -> None:
        self.lease = model.store.lease
        self.dead = False
        self.dies: str | None = None
        self._model = model
        self._store = model.store

    @property
    def store(self) -> SagaStore:
        if self.dead:
            raise Died
        return self._store

    def die(self) -> None:
        self.dead = True
        raise Died

    def create_saga(self, saga: NewSaga, owner: str) -> bool:
        return self.store.create_saga(saga, owner)

    def claim(self, saga_id: uuid.UUID, owner: str) -> SagaState:
        return self.store.claim(saga_id, owner)

    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        if self.dies == "before":
            self.die()
        self.store.write(write, transaction)
        if self.dies == "after" and not isinstance(transaction, SqlAlchemyTransaction):  # it is written with the commit
            self.die()

    def renew(self, leases: Sequence[tuple[uuid.UUID, str]]) -> set[tuple[uuid.UUID, str]]:
        return self.store.renew(leases)

    def load_saga_state(self, saga_id: uuid.UUID) -> SagaState:
        return self.store.load_saga_state(saga_id)

    def begin(self) -> Transaction:
        transaction = self.store.begin()
        if isinstance(transaction, SqlAlchemyTransaction):
            commit = functools.partial(self._commit, transaction.commit)
            transaction.commit = commit  # type: ignore[method-assign]
        return transaction

    def _commit(self, commit: Callable[[], None]) -> None:
        commit()
        if self.dies == "after":
            self.die()

    def joins(self, transaction: Transaction) -> bool:
        return self.store.joins(transaction)

    def get_sagas_for_recovery(
        self, owner: str, limit: int = 10, *, names: Collection[str] = (), max_attempts: int | None = None
    ) -> list[SagaState]:
        states = self.store.get_sagas_for_recovery(owner, limit, names=names, max_attempts=max_attempts)
        for state in states:
            self._model.claimed(state)
        return states

    def find(
        self,
        statuses: Collection[SagaStatus | str] = (),
        names: Collection[str] = (),
        limit: int = 100,
        **options: Any,
    ) -> list[SagaState]:
        return self.store.find(statuses, names, limit, **options)

    def backlog(self, max_attempts: int | None = None) -> list[SagaBacklog]:
        return self.store.backlog(max_attempts)

    def purge(self, retention: float, limit: int = 1000) -> int:
        return self.store.purge(retention, limit)


class Process:
    """A process of the application."""

    def __init__(self, model: Model, saga_type: Any) -> None:
        self.model = model
        self.storage = Mortal(model)
        self.saga_type = saga_type
        self.container = punq.Container()
        self.container.register(Process, instance=self)
        self.mediator = bootstrap(
            self.container,
            sagas_mapper=lambda sagas: sagas.bind(Marks, saga_type),
            saga_storage=self.storage,
            compensation_retry_count=COMPENSATIONS,
            compensation_retry_delay=0,
            recovery_backoff=LATER,
        )

    def transaction(self, context: Any, saga_id: uuid.UUID) -> SagaTransaction[Any]:
        """A saga without the mediator."""
        transaction: SagaTransaction[Any] = self.saga_type.transaction(
            context, self.container, self.storage, saga_id, COMPENSATIONS, 0
        )
        return transaction

    def recover(self) -> None:
        """Be a recovery worker, and take on what is due."""
        with suppress(Died):
            SagaRecoveryWorker(self.mediator, max_attempts=self.model.shape.most).run_once()

    def call(self, step: _Step | _JoinedStep, context: Any, session: Any = None) -> None:
        """What any step does."""
        if self.storage.dead:  # another one of the group has died
            raise Died
        outcome = self.model.begun(step.execution, context)
        if outcome == DIES_BEFORE:
            self.storage.die()
        if step.execution.action == ACT:
            setattr(context, f"m{step.number}", 9)  # what a step leaves behind that fails
        if outcome in (FREEZES, FREEZES_AND_FAILS):
            self.model.passed_by(step.execution.saga_id)
        if isinstance(session, Session):
            session.execute(rows.insert().values(key=step.idempotency_key))
        if outcome in (FAILS, FREEZES_AND_FAILS) or (outcome == UNKNOWN and step.execution.action == COMPENSATE):
            raise ValueError(outcome)
        if outcome == UNKNOWN:
            raise OutcomeUnknown(outcome)
        if outcome == DIES_AFTER:
            self.storage.die()
        self.storage.dies = {DIES_WRITING: "before", DIES_WRITTEN: "after"}.get(outcome)
        setattr(context, f"m{step.number}", 1)


rows = sa.Table("rows", sa.MetaData(), sa.Column("key", sa.Text, primary_key=True))
"""What transactional steps write; nothing can be there twice."""


class _Step(SagaStepHandler[Any, None]):
    number: ClassVar[int]

    def __init__(self, process: Process) -> None:
        self._process = process

    def act(self, context: Any) -> Any:
        self._process.call(self, context)

    def compensate(self, context: Any) -> None:
        self._process.call(self, context)


class _JoinedStep(TransactionalSagaStep[Any, None]):
    number: ClassVar[int]

    def __init__(self, process: Process) -> None:
        self._process = process

    def act(self, context: Any, session: Any) -> Any:
        self._process.call(self, context, session)

    def compensate(self, context: Any, session: Any) -> None:
        self._process.call(self, context, session)


def saga_of(shape: Shape) -> Any:
    """The saga class of a shape."""

    def step(number: int, kind: str | None) -> Any:
        retry = Retry(attempts=shape.attempts[number], delay=0)
        base: Any = _JoinedStep if number in shape.joined else _Step
        return type(f"s{number}", (base,), {"number": number, "kind": kind, "retry": retry})

    elements: list[Any] = []
    for place, stage in enumerate(shape.stages):
        kind = None
        if shape.pivot is not None and place >= shape.pivot:
            kind = "pivot" if place == shape.pivot else "retriable"
        choices = [[step(number, kind) for number in choice] for choice in stage]
        members = [Fallback(*choice) if len(choice) == 2 else choice[0] for choice in choices]
        elements.append(members[0] if len(members) == 1 else Parallel(*members))
    return type("RandomSaga", (Saga,), {"steps": elements})


# --- the model ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """What a step was asked for.

    Attributes:
        has_effect: whether the world has changed; a transactional step's is in the log alone.
    """

    step: int
    action: str
    token: str
    has_effect: bool


class Model:
    """What has happened, and what may. Thread-safe as far as the steps of a group need it.

    Attributes:
        shape: of the sagas.
        store: the sagas, as they are.
        plan: the outcomes of the next calls.
        is_mended: whether nothing is broken any more.
        violations: what should not have happened; a step cannot raise it, because the engine takes that for a failure.
    """

    def __init__(self, shape: Shape, store: SagaStore, passed_by: Callable[[uuid.UUID], None]) -> None:
        self.shape = shape
        self.store = store
        self.plan: deque[str] = deque()
        self.is_mended = False
        self.violations: list[str] = []
        self.passed_by = passed_by
        self._lock = threading.RLock()  # guards all of these
        self._calls: dict[uuid.UUID, list[Call]] = {}
        self._keys: dict[str, tuple[uuid.UUID, int, str]] = {}
        self._claims: dict[uuid.UUID, tuple[object, int]] = {}
        self._ended: dict[uuid.UUID, SagaState] = {}

    def claimed(self, state: SagaState) -> None:
        """Judge that recovery takes a saga on."""
        history = self.store.load_saga_state(state.saga_id).history
        steps = sum(entry.status in (SagaStepStatus.COMPLETED, SagaStepStatus.SKIPPED) for entry in history)
        progress = (steps, state.status)
        before, times = self._claims.get(state.saga_id, (None, 0))
        times = times + 1 if before == progress else 1
        self._claims[state.saga_id] = (progress, times)
        most = self.shape.most
        if state.attempts != times or (most is not None and times > most):
            self.violations.append(f"{state.history}: taken on {times} times without progress, of {most}: {state}")

    def begun(self, execution: StepExecution, context: Any) -> str:
        """Judge a call, before it has had its effect; returns what becomes of it."""
        with self._lock:
            step = int(execution.step_name[1:])
            state = self.store.load_saga_state(execution.saga_id)
            for reason in self._objections(execution, step, state, context):
                self.violations.append(f"{execution.step_name}.{execution.action} of {state.history}: {reason}")
            outcome = self.plan.popleft() if self.plan else OK
            if outcome == OK and execution.action == ACT and step in self.shape.broken and not self.is_mended:
                outcome = FAILS
            fails = (FAILS, FREEZES_AND_FAILS, DIES_BEFORE)
            has_effect = outcome not in (fails if execution.action == ACT else (*fails, UNKNOWN))
            has_effect = has_effect and step not in self.shape.joined
            self._calls.setdefault(state.saga_id, []).append(Call(step, execution.action, execution.owner, has_effect))
            return outcome

    def _objections(self, execution: StepExecution, step: int, state: SagaState, context: Any) -> Iterator[str]:
        key, call = execution.idempotency_key, (state.saga_id, step, execution.action)
        known = {call: key for key, call in self._keys.items()}
        if self._keys.setdefault(key, call) != call or known.get(call, key) != key:
            yield "its key is not its own"
        if execution.owner != state.locked_by:
            yield "whoever calls does not have the saga"
        calls = self._calls.get(state.saga_id, ())
        before = Counter((each.step, each.action, each.token) for each in calls)
        most = self.shape.attempts[step] if execution.action == ACT else COMPENSATIONS
        if before[step, execution.action, execution.owner] >= most:
            yield "it has had its attempts"
        log = Log(state)
        effects = log.acted(calls, self.shape.joined)
        if execution.action == COMPENSATE:
            yield from self._out_of_place(step, log, context)
            if state.status is not SagaStatus.COMPENSATING:
                yield f"it is undone while the saga is {state.status}"
            if effects.intersection(self.shape.pivots):
                yield "the pivot is done"
        else:
            yield from self._out_of_turn(step, log)
            if state.status is not SagaStatus.RUNNING:
                yield f"it is done while the saga is {state.status}"
            if effects.intersection(self.shape.choice_of(step)) - {step}:
                yield "the other one has done it"
        yield from self._out_of_date(execution.action, step, state, context)

    def _out_of_date(self, action: str, step: int, state: SagaState, context: Any) -> Iterator[str]:
        stage = self.shape.stages[self.shape.stage_of(step)]
        others = {f"m{member}" for choice in stage for member in choice if member != step}
        for mark, value in json.loads(state.context).items():
            # Of the others of its group it need not know.
            if getattr(context, mark) != value and (action == COMPENSATE or mark not in others):
                yield f"{mark} is not what is stored"

    def _out_of_place(self, step: int, log: Log, context: Any) -> Iterator[str]:
        if log.done[-1:] != [step]:
            yield "it is not the last that was done"
        if step in log.completed and getattr(context, f"m{step}") != 1:
            yield "what it had done is not in the context"

    def _out_of_turn(self, step: int, log: Log) -> Iterator[str]:
        place = self.shape.stage_of(step)
        for earlier in self.shape.stages[:place]:
            if not all(log.completed.intersection(choice) for choice in earlier):
                yield "a stage before it is not done"
        choice = self.shape.choice_of(step)
        if log.completed.intersection(choice):
            yield "it is done already"
        if len(choice) == 2 and (choice[1] in log.taken_over) != (step == choice[1]):
            yield "it is the other's turn"

    def look(self) -> None:
        """Check what holds at all times."""
        assert not self.violations, self.violations
        for state in self.store.find(list(SagaStatus)):
            state = self.store.load_saga_state(state.saga_id)
            if state.saga_id in self._ended:
                assert state == self._ended[state.saga_id], "it has changed after its end"
            elif state.status.is_final:
                self._ended[state.saga_id] = state
                self._check_end(state, self._calls.get(state.saga_id, []))

    def _check_end(self, state: SagaState, calls: Sequence[Call]) -> None:
        assert (state.locked_by, state.available_at) == (None, None)
        log = Log(state)
        acted = log.acted(calls, self.shape.joined)
        if state.status is SagaStatus.COMPLETED:
            assert not any(call.action == COMPENSATE for call in calls), "refunded and shipped"
            assert log.completed == acted, "something was done that is not known to be"
            for choice in itertools.chain.from_iterable(self.shape.stages):
                assert len(acted.intersection(choice)) == 1, "neither, or both"
            marks = {name for name, value in json.loads(state.context).items() if value}
            assert marks == {f"m{step}" for step in acted}
        elif state.status is SagaStatus.FAILED:
            assert acted <= log.undone(calls, self.shape.joined) | log.skipped, "not all is undone"
            assert not acted.intersection(self.shape.pivots), "what decides is undone"
            actions = [call.action for call in calls]
            assert actions == sorted(actions), "it went forward behind a compensation"
            order = list(dict.fromkeys(call.step for call in calls if call.action == COMPENSATE))
            stages = [self.shape.stage_of(step) for step in order]
            assert stages == sorted(stages, reverse=True), "not in reverse"
            for choice in itertools.chain.from_iterable(self.shape.stages):
                assert len(set(order).intersection(choice)) <= 1, "both may have been done"


class Log:
    """What a saga's log says.

    Attributes:
        completed: the steps that are done for certain.
        compensated: those that are undone.
        skipped: those that an operator has declared undone.
        taken_over: the fallbacks whose turn it is.
        done: what is done, or may be, and is not undone; in order.
    """

    def __init__(self, state: SagaState) -> None:
        self.completed: set[int] = set()
        self.compensated: set[int] = set()
        self.skipped: set[int] = set()
        self.taken_over: set[int] = set()
        self.done: list[int] = []
        for entry in state.history:
            if not entry.step_name:
                continue  # an operator's, or an error outside of the steps
            step = int(entry.step_name[1:])
            if entry.action == ACT:
                self._add_act(step, entry.status)
            elif entry.status in (SagaStepStatus.COMPLETED, SagaStepStatus.SKIPPED):
                self.done.remove(step)
                (self.skipped if entry.status is SagaStepStatus.SKIPPED else self.compensated).add(step)

    def _add_act(self, step: int, status: SagaStepStatus) -> None:
        match status:
            case SagaStepStatus.STARTED:
                self.taken_over.add(step)
                return
            case SagaStepStatus.COMPLETED:
                self.completed.add(step)
            case SagaStepStatus.FAILED:
                self.taken_over.discard(step)
                return
        self.done = [*(each for each in self.done if each != step), step]

    def acted(self, calls: Iterable[Call], joined: frozenset[int]) -> set[int]:
        """The steps that have had their effect."""
        return (self.completed & joined) | {call.step for call in calls if call.action == ACT and call.has_effect}

    def undone(self, calls: Iterable[Call], joined: frozenset[int]) -> set[int]:
        """Those whose ``compensate`` has."""
        of_calls = {call.step for call in calls if call.action == COMPENSATE and call.has_effect}
        return (self.compensated & joined) | of_calls


# --- the machine -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Runner:
    """A saga that somebody streams."""

    saga_id: uuid.UUID
    process: Process
    results: Any
    block: SagaTransaction[Any] | None = None
    """What it is in, where it does without a mediator."""
    is_late: bool = False
    """Whether its lease has ended once."""

    def leave(self, error: Exception | None = None) -> None:
        """Stop before the end."""
        if self.block is not None:
            self.block.__exit__(None if error is None else type(error), error, None)
        self.results.close()


picks = st.integers(0, 11)
stages = st.sampled_from((1, 2, 3, 5))
"""How many are taken at a time, at most; the fifth time there is nothing left."""


class Sagas(RuleBasedStateMachine):
    """Sagas of one class, and whoever runs them."""

    has_threads = False
    """Whether the steps of a group run in a pool; without one a failure can be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = contextlib.ExitStack()
        if not self.has_threads:
            self.opened.enter_context(mock.patch.object(SagaEngine, "_executor", return_value=InCallerThread()))
        # It has nothing to do but what `expire` does.
        self.opened.enter_context(mock.patch.object(leases.Heartbeat, "start"))
        self.runners: list[Runner] = []
        self.worker: Process | None = None
        self.ids: list[uuid.UUID] = []

    def make_store(self) -> SagaStore:
        return Storage(LEASE)

    def end_lease(self, saga_id: uuid.UUID) -> None:
        """Make a saga due as time does, in the storage."""
        assert isinstance(self.model.store, Storage)
        self.model.store.expire(saga_id)

    @initialize(shape=shapes())
    def declare(self, shape: Shape) -> None:
        self.saga_type = saga_of(shape)
        self.model = Model(shape, self.make_store(), self.pass_by)

    @precondition(lambda self: len(self.ids) < 2)
    @rule(plan=plans, stages=stages, alone=st.booleans())
    def begin(self, plan: list[str], stages: int, alone: bool) -> None:
        """Somebody begins a saga."""
        saga_id = uuid.UUID(int=len(self.ids) + 1)
        self.ids.append(saga_id)
        self._stream(saga_id, Marks(), plan, stages, alone)

    @precondition(lambda self: self.ids)
    @rule(pick=picks, plan=plans, stages=stages, alone=st.booleans())
    def take_on(self, pick: int, plan: list[str], stages: int, alone: bool) -> None:
        """Somebody comes with a saga's id."""
        self._stream(self._saga(pick), Marks(**STRANGE), plan, stages, alone)

    @precondition(lambda self: self.runners)
    @rule(pick=picks, plan=plans, stages=stages)
    def go_on(self, pick: int, plan: list[str], stages: int) -> None:
        """A runner takes its next stages; or finds that it has lost the saga."""
        self.model.plan.extend(plan)
        self._next(self.runners[pick % len(self.runners)], stages)

    @precondition(lambda self: self.runners)
    @rule(pick=picks)
    def hand_over(self, pick: int) -> None:
        """A runner loses interest."""
        runner = self.runners.pop(pick % len(self.runners))
        runner.leave()
        assert runner.is_late or self.model.store.load_saga_state(runner.saga_id).locked_by is None

    @precondition(lambda self: any(runner.block for runner in self.runners))
    @rule(plan=plans)
    def abort(self, plan: list[str]) -> None:
        """An error outside of the steps leaves the block around a saga."""
        runner = next(runner for runner in self.runners if runner.block)
        self.runners.remove(runner)
        state = self.model.store.load_saga_state(runner.saga_id)
        is_decided = Log(state).completed.intersection(self.model.shape.pivots)
        self.model.plan.extend(plan)
        with suppress(SagaConcurrencyError, Died):
            runner.leave(LookupError("outside"))
        if not runner.is_late and not state.status.is_final:
            status = self.model.store.load_saga_state(runner.saga_id).status
            assert (status is SagaStatus.RUNNING) == bool(is_decided)

    @precondition(lambda self: self.runners)
    @rule(pick=picks)
    def kill(self, pick: int) -> None:
        """A runner's process is killed between two steps."""
        self._bury(self.runners.pop(pick % len(self.runners)))

    @precondition(lambda self: self.ids)
    @rule(pick=picks)
    def expire(self, pick: int) -> None:
        """Nobody hears of a saga's runner for as long as its lease; or what was put off is due."""
        self._expire(self._saga(pick))

    @precondition(lambda self: self.ids)
    @rule(plan=plans)
    def recover(self, plan: list[str]) -> None:
        """A recovery worker takes on what is due."""
        self.model.plan.extend(plan)
        self._recover()

    @precondition(lambda self: self.ids)
    @rule(plan=plans)
    def wait(self, plan: list[str]) -> None:
        """All that is put off is due, again and again."""
        self.model.plan.extend(plan)
        for _ in range(4):
            for saga_id in self.ids:
                self._expire(saga_id)
            self._recover()

    @precondition(lambda self: self.ids)
    @rule()
    def mend(self) -> None:
        """An operator has what is stuck tried again."""
        for state in self._administration.find(stuck=True):
            self._expire(state.saga_id)  # its last runner may have died, or somebody have taken it on by its id
            self._administration.retry(state.saga_id, actor="operator", reason="it is mended")

    @precondition(lambda self: self.ids)
    @rule(pick=picks)
    def skip(self, pick: int) -> None:
        """An operator undoes a step by hand."""
        self._expire(self._saga(pick))
        step = self.model.store.load_saga_state(self._saga(pick)).current_step
        with suppress(SagaActionRefused):  # it goes forward, or has ended
            self._administration.skip_compensation(self._saga(pick), step or "", actor="operator", reason="by hand")

    @precondition(lambda self: self._administration.find(stuck=True) if self.ids else False)
    @rule()
    def abandon(self) -> None:
        """An operator gives up what is stuck."""
        state = self._administration.find(stuck=True)[0]
        self._expire(state.saga_id)
        self._administration.abandon(state.saga_id, actor="operator", reason="nobody can mend it")

    @invariant()
    def look(self) -> None:
        if hasattr(self, "model"):
            self.model.plan.clear()
            self.model.look()

    def teardown(self) -> None:
        """Whatever has happened, everything ends once nothing more goes wrong."""
        try:
            while self.runners:
                self._bury(self.runners.pop())
            self.model.is_mended = True
            for saga_id in self.ids:
                self._expire(saga_id)
            self.mend()
            self._recover()
            self.look()
            assert self.model.store.find() == [], "left unfinished"
        finally:
            self.opened.close()

    def pass_by(self, saga_id: uuid.UUID) -> None:
        """Time passes within a step: others take the saga on, and go as far as they come."""
        self._expire(saga_id)
        self._process().recover()

    @property
    def _administration(self) -> SagaAdministration:
        return SagaAdministration(self.model.store, self.model.shape.most)

    def _recover(self) -> None:
        if self.worker is None or self.worker.storage.dead:
            self.worker = self._process()
        self.worker.recover()

    def _process(self) -> Process:
        process = Process(self.model, self.saga_type)
        self.opened.callback(process.mediator.close)
        return process

    def _saga(self, pick: int) -> uuid.UUID:
        return self.ids[pick % len(self.ids)]

    def _stream(self, saga_id: uuid.UUID, context: Any, plan: list[str], stages: int, alone: bool) -> None:
        process = self._process()
        self.model.plan.extend(plan)
        is_live = any(each.saga_id == saga_id and not each.is_late for each in self.runners)
        block = process.transaction(context, saga_id) if alone else None
        if block is not None:
            self.opened.callback(block._opening.engine.close, 30.0)  # where its process dies nothing else does it
        results = iter(block) if block is not None else process.mediator.stream(context, saga_id)
        runner = Runner(saga_id, process, results, block)
        self.runners.append(runner)
        assert not (self._next(runner, stages) and is_live), "two run it"

    def _next(self, runner: Runner, stages: int) -> bool:
        """Have a runner go on; returns whether it can go on further."""
        try:
            for _ in range(stages):
                next(runner.results)
        except StopIteration:
            assert self.model.store.load_saga_state(runner.saga_id).status is SagaStatus.COMPLETED
        except (ValueError, OutcomeUnknown, SagaRolledBack, SagaConcurrencyError, Died):
            pass
        else:
            return True
        self.runners.remove(runner)
        return False

    def _bury(self, runner: Runner) -> None:
        runner.process.storage.dead = True
        with suppress(Died):
            runner.leave()

    def _expire(self, saga_id: uuid.UUID) -> None:
        self.end_lease(saga_id)
        for lease in leases._leases.held():
            if lease.saga_id == saga_id:
                lease.ends = float("-inf")
        for runner in self.runners:
            if runner.saga_id == saga_id:
                runner.is_late = True


class SagasInSqlite(Sagas):
    """The same over a file."""

    def make_store(self) -> SagaStore:
        directory = self.opened.enter_context(tempfile.TemporaryDirectory())
        self.engine = sa.create_engine(f"sqlite:///{directory}/sagas.sqlite3")
        self.opened.callback(self.engine.dispose)
        sa.event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        Base.metadata.create_all(self.engine, checkfirst=False)
        rows.metadata.create_all(self.engine, checkfirst=False)
        return SqlAlchemySagaStorage(sessionmaker(self.engine), LEASE)

    @invariant()
    def look_at_rows(self) -> None:
        """What transactional steps have written is what the log says."""
        if not hasattr(self, "model"):
            return
        with self.engine.connect() as connection:
            written = set(connection.scalars(sa.select(rows.c.key)))
        states = [self.model.store.load_saga_state(saga_id) for saga_id in self.ids]
        assert written == {
            f"{state.saga_id}/{entry.step_name}/{entry.action}"
            for state in states
            for entry in state.history
            if entry.status is SagaStepStatus.COMPLETED
            and entry.step_name
            and int(entry.step_name[1:]) in self.model.shape.joined
        }

    def end_lease(self, saga_id: uuid.UUID) -> None:
        past = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
        is_to_end = (SagaExecutionModel.id == saga_id, SagaExecutionModel.available_at.is_not(None))
        with self.engine.begin() as connection:
            connection.execute(sa.update(SagaExecutionModel).where(*is_to_end).values(available_at=past))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Failures are what this is about; none of them needs to be told."""
    logging.getLogger("cqrs_sync").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("cqrs_sync").setLevel(logging.NOTSET)


def _machine(machine: type[Sagas], examples: int) -> Any:
    case: Any = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # to explain it takes a minute more
        suppress_health_check=list(HealthCheck),
    )
    return case


class SagasForLong(Sagas):
    """The same, many more times."""


class SagasInPools(Sagas):
    """The same where the steps of a group run at the same time."""

    has_threads = True


# What is drawn cannot depend on threads, so this goes by a script; nor can they say when a lease is lost to a freeze.
calm_plans = plans.map(lambda plan: [outcome for outcome in plan if outcome not in (FREEZES, FREEZES_AND_FAILS)])
actions = st.sampled_from(("begin", "take_on", "go_on", "abort", "kill", "expire", "recover", "wait", "mend", "skip"))
lines = st.tuples(actions, picks, calm_plans, stages, st.booleans())


@pytest.mark.soak
@settings(max_examples=1_000, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(shape=shapes(), script=st.lists(lines, min_size=3, max_size=15))
def test_sagas_in_pools(shape: Shape, script: list[tuple[str, int, list[str], int, bool]]) -> None:
    """What holds in one thread holds in several."""
    machine = SagasInPools()
    machine.declare(shape)
    machine.begin([], 1, False)
    for action, pick, plan, stages, alone in script:
        match action:
            case "begin" if len(machine.ids) < 2:
                machine.begin(plan, stages, alone)
            case "take_on":
                machine.take_on(pick, plan, stages, alone)
            case "go_on" if machine.runners:
                machine.go_on(pick, plan, stages)
            case "abort" if any(runner.block for runner in machine.runners):
                machine.abort(plan)
            case "kill" if machine.runners:
                machine.kill(pick)
            case "expire" | "skip":
                getattr(machine, action)(pick)
            case "recover" | "wait":
                getattr(machine, action)(plan)
            case "mend":
                machine.mend()
        machine.look()
    machine.teardown()


TestSagas = _machine(Sagas, 110)
TestSagasInSqlite = _machine(SagasInSqlite, 12)
TestSagasForLong = pytest.mark.soak(_machine(SagasForLong, 5_000))
