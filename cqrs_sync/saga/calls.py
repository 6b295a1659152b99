"""Calls a step: builds it, opens its scope and transaction, takes its events, and has the call recorded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from types import CoroutineType, GeneratorType
from typing import Any, Protocol

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import ConfigurationError, SagaTypeError, type_name
from cqrs_sync.events.emits_events import events_of
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.invocation import Events, HandlerFactory
from cqrs_sync.models import changed
from cqrs_sync.saga.definition import NamedStep
from cqrs_sync.saga.step import SagaStepResult, StepExecution, current_execution
from cqrs_sync.saga.storage.enums import ACT
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.scoping import OpenScope, Scoping
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork

logger = logging.getLogger(__name__)


class Record(Protocol):
    """Has the storage record a call that has returned."""

    def __call__(self, result: Any, transaction: Transaction | None, commit: Callable[[], None], /) -> None:
        """Write, in the transaction where one is given, and commit it."""


@dataclasses.dataclass
class Attempt:
    """One call of a step, and how far it got.

    Attributes:
        execution: what the step can know of it.
        context: what it works on.
        is_joined: whether it is recorded in its own transaction, and undone with it.
        has_returned: whether ``act`` or ``compensate`` has; an error after that leaves its effect in the world.
        is_recorded: whether the storage has it; an error after that is no error of the step.
        result: what it has returned, once it is recorded.
    """

    execution: StepExecution
    context: Any
    is_joined: bool = False
    has_returned: bool = False
    is_recorded: bool = False
    result: Any = None


class StepScopes:
    """The scopes and transactions that steps are called in. Thread-safe.

    Args:
        container: what builds the steps.
        strategy: what a step shares with its event handlers; a step is what elsewhere a send is.
        unit_of_work: what steps write in; transactional ones write in the storage's transactions where there is none.
        storage: of the sagas.
        processor: takes events where they go; None where there is no mediator, and then they are dropped.
    """

    def __init__(
        self,
        container: Any,
        strategy: ScopeStrategy,
        unit_of_work: UnitOfWork | None,
        storage: SagaStorage,
        processor: EventProcessor | None,
    ) -> None:
        self.scoping = Scoping(container, strategy, unit_of_work)
        self.transactional = self.scoping
        if unit_of_work is None:
            self.transactional = Scoping(container, strategy, _StorageTransactions(storage))
        self.storage = storage
        self.processor = processor

    def offer(self, service: object) -> None:
        """Have steps get this object where they ask for its class."""
        for scoping in {self.scoping, self.transactional}:
            scoping.offer(service)

    def check_transactions(self, step: NamedStep) -> None:
        """Refuse a transactional step whose transactions are not of the storage's database.

        Raises:
            ConfigurationError: naming the step.
        """
        unit_of_work = self.transactional.unit_of_work
        assert unit_of_work is not None  # there is at least the storage's
        transaction = unit_of_work.begin()
        try:
            if not self.storage.joins(transaction):
                raise ConfigurationError(
                    f"{type_name(step.step_type)} is recorded in its own transaction, and {unit_of_work!r} is not of "
                    f"the database of {self.storage!r}: give both the same sessionmaker, or derive the step from "
                    "SagaStepHandler"
                )
        finally:
            transaction.close()


class StepCaller:
    """Calls one step. Thread-safe.

    Raises:
        ConfigurationError: the step cannot be built, or be called here.
    """

    def __init__(self, scopes: StepScopes, step: NamedStep) -> None:
        self._scopes = scopes
        self._is_transactional = step.is_transactional
        if step.is_transactional:
            scopes.check_transactions(step)
        self._scoping = scopes.transactional if step.is_transactional else scopes.scoping
        self._opens_scope = self._scoping.shared or self._scoping.per_handler
        self._build = HandlerFactory(self._scoping, step.step_type)
        self._step_type = step.step_type
        processor = scopes.processor
        # Event handlers share the scope of the mediator, which another transaction of the storage's own is not.
        self._emits_inside = self._scoping.shared and self._scoping is scopes.scoping and processor is not None
        self._stage = self._build.stage(tuple if processor is None else processor.emitter.stage)
        self._warned = False

    def call(self, attempt: Attempt, record: Record) -> Any:
        """Call the step, have it recorded, then emit its events; returns what it returned.

        What the step raises is raised, and ``attempt`` says how far it got. What fails after the record is logged. A
        scope of the container that is not a unit of work's is closed before it: where that fails, so does the step.
        """
        scope = self._scoping.open() if self._opens_scope else None
        if scope is None:
            result, events = self._run(attempt, None)
            record(result, None, _nothing)
            attempt.is_recorded, attempt.result = True, result
        elif scope.unit is None:
            # The end of the container's scope may be what commits, so the effect is there before anything says so.
            with scope.entered():
                result, events = self._run_inside(scope, attempt)
            record(result, None, _nothing)
            attempt.is_recorded, attempt.result = True, result
        else:
            result, events = self._call_in(scope, attempt, record)
        self._emit(scope, events, result)
        return result

    def _call_in(self, scope: OpenScope, attempt: Attempt, record: Record) -> tuple[Any, Events]:
        """Call the step and have it recorded in a unit of work, in one transaction where the storage joins it."""
        result: Any = None
        events: Events = ()
        assert scope.unit is not None
        try:
            with scope.entered():
                result, events = self._run_inside(scope, attempt)
                begun = scope.unit.begun
                joined = begun if begun is not None and self._scopes.storage.joins(begun) else None
                record(result, joined, scope.commit)
                attempt.is_recorded, attempt.result = True, result
        except Exception:
            if not attempt.is_recorded:
                raise
            logger.exception("the scope of %s could not be closed; the step is recorded", type_name(self._step_type))
        return result, events

    def _run_inside(self, scope: OpenScope, attempt: Attempt) -> tuple[Any, Events]:
        """Run the step and, where they share its scope, the handlers of its events; returns events still to emit."""
        result, events = self._run(attempt, scope)
        if not self._emits_inside:
            return result, events
        assert self._scopes.processor is not None
        self._scopes.processor.emit_staged(events, result)
        return result, ()

    def _run(self, attempt: Attempt, scope: OpenScope | None) -> tuple[Any, Events]:
        token = current_execution.set(attempt.execution)
        try:
            step = self._build()
            method = step.act if attempt.execution.action == ACT else step.compensate
            if self._is_transactional:
                assert scope is not None  # a unit of work has scopes
                assert scope.unit is not None
                transaction: Any = scope.unit.transaction
                result = method(attempt.context, getattr(transaction, "session", transaction))
            else:
                result = method(attempt.context)
            self._refuse_unrun(result, attempt.execution.action)
            attempt.has_returned = True
            if attempt.execution.action == ACT:
                result = self._as_result(result, attempt.execution)
            listed = events_of(step)
            return result, self._stage(listed) if listed else ()
        finally:
            current_execution.reset(token)

    def _refuse_unrun(self, result: Any, action: str) -> None:
        """Refuse what says that nothing has happened yet; a decorator can hide that from what looks at the class."""
        if isinstance(result, CoroutineType | GeneratorType):
            result.close()
            raise SagaTypeError(
                f"{type_name(self._step_type)}.{action} has returned a {type_name(type(result))} that nobody runs: "
                "take out async, await and yield",
                self._step_type,
            )

    def _as_result(self, result: Any, execution: StepExecution) -> SagaStepResult[Any, Any]:
        """What a step has returned as a result with the saga's id; a step may return its response alone."""
        if type(result) is SagaStepResult:
            return changed(result, saga_id=execution.saga_id)
        if isinstance(result, SagaStepResult):
            return dataclasses.replace(result, saga_id=execution.saga_id)
        return SagaStepResult(result, self._step_type, saga_id=execution.saga_id)

    def _emit(self, scope: OpenScope | None, events: Events, result: Any) -> None:
        """Take events where they go, now that the step is recorded: an error does not undo it, and is logged."""
        processor = self._scopes.processor
        if processor is None:
            if events and not self._warned:
                self._warned = True
                logger.warning(
                    "events of %s are dropped: run the saga through a SagaMediator", type_name(self._step_type)
                )
            return
        try:
            if events:
                processor.emit_staged(events, result)
            if scope is not None and scope.deferred:
                processor.publish_deferred(scope.deferred, result)
        except Exception:
            logger.exception("events of %s were not handled everywhere", type_name(self._step_type))


class _StorageTransactions(UnitOfWork):
    """The transactions of a saga storage as a unit of work, for transactional steps where there is no other one."""

    def __init__(self, storage: SagaStorage) -> None:
        self._storage = storage

    def begin(self) -> Transaction:
        return self._storage.begin()

    @property
    def services(self) -> Mapping[Any, Callable[[Any], Any]]:
        return {}


def _nothing() -> None:
    """Commit where nothing was begun."""
