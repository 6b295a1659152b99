"""Opens runs of sagas: new ones, and those that a storage has."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pydantic

from cqrs_sync.backoff import Backoff
from cqrs_sync.checks import require_count, require_instance
from cqrs_sync.container.plans import EMPTY
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import (
    ConfigurationError,
    CQRSError,
    SagaDefinitionChanged,
    UnresolvableDependency,
    type_name,
)
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.executors import Executor, InPool, WorkerContext
from cqrs_sync.saga.attempts import RunSettings
from cqrs_sync.saga.calls import StepCaller, StepScopes
from cqrs_sync.saga.definition import Definition, NamedStep, Progress
from cqrs_sync.saga.leases import Lease, clock, new_owner
from cqrs_sync.saga.models import ContextSource, SagaContext, checked_text, decode, read
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.run import SagaRun
from cqrs_sync.saga.storage.enums import RECOVERABLE, SagaStatus
from cqrs_sync.saga.storage.models import NewSaga, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.unit_of_work.protocol import UnitOfWork

logger = logging.getLogger(__name__)

_ContextT = TypeVar("_ContextT", bound=SagaContext)

COMPENSATION_RETRY = Retry(attempts=3, delay=1.0, backoff=2.0)
"""How often ``compensate`` is tried where nobody says so."""


@dataclasses.dataclass(frozen=True)
class Opening(Generic[_ContextT]):
    """A saga that can be opened: its context was checked."""

    engine: SagaEngine
    definition: Definition
    context: _ContextT
    saga_id: uuid.UUID
    text: str

    def open(self) -> SagaRun[_ContextT]:
        """Store the saga and return its run; where its id is taken, take on the one that is stored."""
        run = self.engine.create(self.definition, self.context, self.saga_id, self.text)
        if run is None:
            run = self.engine.resume(self.definition, type(self.context), self.saga_id)
        return run


class SagaEngine:
    """Opens runs of sagas. Thread-safe.

    Args:
        container: what builds the steps.
        storage: where sagas are.
        scope_strategy: what a step shares with its event handlers.
        unit_of_work: what steps write in.
        processor: takes their events where they go; its scope strategy and unit of work must be the same.
        compensation_retry: for steps that have no ``compensate_retry`` of their own.
        recovery_backoff: when a saga is tried again that cannot go on past its pivot, or cannot be undone now.
        max_parallel_steps: how many steps of groups run at once, over all sagas.
        worker_context: entered around each step that runs on a pool thread.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    def __init__(
        self,
        container: Any,
        storage: SagaStorage,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        unit_of_work: UnitOfWork | None = None,
        *,
        processor: EventProcessor | None = None,
        compensation_retry: Retry = COMPENSATION_RETRY,
        recovery_backoff: Backoff | None = None,
        max_parallel_steps: int = 4,
        worker_context: WorkerContext | None = None,
    ) -> None:
        require_instance(storage, SagaStorage, "saga_storage", "pass MemorySagaStorage(), for example")
        require_instance(compensation_retry, Retry, "compensation_retry", "pass Retry(attempts=3, delay=1.0)")
        require_count(max_parallel_steps, "max_parallel_steps")
        backoff = recovery_backoff if recovery_backoff is not None else Backoff()
        require_instance(backoff, Backoff, "recovery_backoff", "pass Backoff(initial=1.0, maximum=300.0)")
        self.storage = storage
        self.scopes = StepScopes(container, scope_strategy, unit_of_work, storage, processor)
        self._max_parallel_steps = max_parallel_steps
        self.worker_context = worker_context
        self._stopping = threading.Event()
        self._callers: dict[Any, StepCaller] = {}
        self._lock = threading.Lock()  # guards _pool
        self._pool: InPool | None = None
        self._settings = RunSettings(
            callers=self._caller,
            executor=self._executor,
            pause=self._stopping.wait,
            compensation_retry=compensation_retry,
            recovery_backoff=backoff,
        )

    def compile(self, definition: Definition) -> None:
        """Make the steps of a saga ready; refuses those that cannot be built.

        A parameter without an annotation is only warned of: what it is may be registered later, under its name.

        Raises:
            ConfigurationError: naming the step and the parameter.
        """
        for step in (*definition.steps, *definition.retired):
            try:
                self._caller(step)
            except UnresolvableDependency as error:
                if error.dependency is not EMPTY:
                    raise
                logger.warning("%s cannot run yet: %s", definition.saga_name, error)

    def prepare(
        self, definition: Definition, context: _ContextT, saga_id: uuid.UUID | None = None
    ) -> Opening[_ContextT]:
        """Check a context, and return what opens its saga; nothing is stored before that.

        Raises:
            ContextNotSerializable: naming the field.
            ConfigurationError: ``saga_id`` is no UUID.
        """
        if saga_id is None:
            saga_id = uuid.uuid4()
        require_instance(saga_id, uuid.UUID, "saga_id", "pass uuid.uuid4()")
        return Opening(self, definition, context, saga_id, checked_text(context))

    def create(
        self, definition: Definition, context: _ContextT, saga_id: uuid.UUID, text: str
    ) -> SagaRun[_ContextT] | None:
        """Store a new saga; returns None where there is one with this id."""
        saga = NewSaga(
            saga_id=saga_id,
            name=definition.saga_name,
            context=text,
            definition=definition.text,
            current_step=definition.label(0),
        )
        owner, asked_at = new_owner(), clock()
        if not self.storage.create_saga(saga, owner):
            return None
        lease = Lease(self.storage, saga_id, owner, asked_at)
        again = functools.partial(decode, type(context))
        return SagaRun(self._settings, definition, lease, context, again, definition.beginning(), stored=text)

    def resume(
        self, definition: Definition, context_type: ContextSource[_ContextT], saga_id: uuid.UUID
    ) -> SagaRun[_ContextT]:
        """Take a stored saga on, with the context that is stored.

        One that has ended, or is stuck, is not touched: it yields nothing, or raises SagaRolledBack.

        Raises:
            SagaNotFound: there is none with this id.
            SagaConcurrencyError: somebody else runs it.
            SagaDefinitionChanged: it does not fit today's steps; nothing was changed.
            ConfigurationError: it is of another saga class.
        """
        state = self.storage.load_saga_state(saga_id)
        self.fit(definition, context_type, dataclasses.replace(state, in_doubt=state.leaves_doubt))
        asked_at = clock()
        if state.status in RECOVERABLE:
            state = self.storage.claim(saga_id, new_owner())
        try:
            return self.take_on(definition, context_type, state, asked_at)
        except CQRSError:  # it was changed between the look and the claim
            if state.status in RECOVERABLE:
                self.give_back(state)
            raise

    def give_back(self, state: SagaState, available_in: float | None = 0.0, *, attempts: int | None = None) -> None:
        """Let go of a saga that was claimed and is not to be run.

        Args:
            available_in: seconds until others may take it on; None: never by itself.
            attempts: how many there were, where the claim is not to count.

        Raises:
            SagaConcurrencyError: somebody else has it.
        """
        self.storage.write(SagaWrite.release(state, available_in, attempts=attempts))

    def take_on(
        self,
        definition: Definition,
        context_type: ContextSource[_ContextT],
        state: SagaState,
        asked_at: float,
        pause: Callable[[float], bool] | None = None,
        max_attempts: int | None = None,
    ) -> SagaRun[_ContextT]:
        """Return the run of a saga that was claimed.

        Args:
            asked_at: when the storage was asked for it, by the clock of leases.
            pause: waits so many seconds; returns True at once where the run is to be handed over.
            max_attempts: after how many recoveries without progress a rollback that fails is stuck; None: it is put
                off each time.

        Raises:
            SagaDefinitionChanged: it does not fit today's steps; it stays claimed.
            ConfigurationError: it is of another saga class; it stays claimed.
        """
        context, progress = self.fit(definition, context_type, state)
        pause = self._settings.pause if pause is None else pause
        settings = dataclasses.replace(self._settings, pause=pause, max_attempts=max_attempts)
        return SagaRun(
            settings,
            definition,
            Lease(self.storage, state.saga_id, state.locked_by or "", asked_at),
            context,
            functools.partial(read, context_type),
            progress,
            status=state.status,
            version=state.version,
            stored=state.context,
            attempts=state.attempts,
            reason=state.error,
            in_doubt=state.in_doubt,
        )

    def close(self, timeout: float) -> None:
        """End the waits between attempts, and the pool's threads.

        Raises:
            CloseTimeout: steps were still at work after ``timeout`` seconds.
        """
        self._stopping.set()
        if self._pool is not None:
            self._pool.close(timeout)

    def fit(
        self, definition: Definition, context_type: ContextSource[_ContextT], state: SagaState
    ) -> tuple[_ContextT, Progress]:
        """Return the context of a stored saga, and how far it has come.

        Raises:
            SagaDefinitionChanged: it does not fit today's steps.
            ConfigurationError: it is of another saga class.
            SagaTypeError: what ``context_type`` makes is not the saga's context.
        """
        if state.name != definition.saga_name:
            raise ConfigurationError(
                f"saga {state.saga_id} is a {state.name} and no {definition.saga_name}: give each saga an id of its own"
            )
        context = context_of(context_type, state)
        definition.check_context(context)
        if state.status in (SagaStatus.PENDING, SagaStatus.RUNNING):
            return context, definition.progress(state, forward=True)
        if state.status is SagaStatus.COMPENSATING:
            return context, definition.progress(state, forward=False)
        return context, Progress([], len(definition.stages), ())

    def _caller(self, step: NamedStep) -> StepCaller:
        caller = self._callers.get(step.step_type)
        if caller is None:  # two threads may both make one, and then it is the same
            caller = self._callers[step.step_type] = StepCaller(self.scopes, step)
        return caller

    def _executor(self) -> Executor:
        with self._lock:
            if self._pool is None:
                self._pool = InPool(self._max_parallel_steps, self.worker_context, "cqrs-saga")
            return self._pool


def context_of(context_type: ContextSource[_ContextT], state: SagaState) -> _ContextT:
    """Return the context of a stored saga.

    Raises:
        SagaDefinitionChanged: it does not fit the class of today, or the function that is to make it refuses.
    """
    name = type_name(context_type)
    try:
        return read(context_type, state.context)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        difference = f"the stored context does not fit {name}: {where}: {first['msg']}"
        raise SagaDefinitionChanged(state.saga_id, difference) from error
    except Exception as error:
        difference = f"{name} does not take the stored context: {type_name(type(error))}: {error}"
        raise SagaDefinitionChanged(state.saga_id, difference) from error
