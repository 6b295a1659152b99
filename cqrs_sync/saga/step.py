"""What users subclass: one step of a saga, and how it is undone."""

from __future__ import annotations

import abc
import dataclasses
import uuid
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.events.emits_events import EmitsEvents
from cqrs_sync.fallback import exception_classes
from cqrs_sync.saga.models import ContextT
from cqrs_sync.saga.retry import ONCE, Retry

Resp = TypeVar("Resp", default=Any)
"""What a step answers with."""

StepKind: TypeAlias = Literal["compensatable", "pivot", "retriable"]
"""Richardson's terms (*Microservices Patterns*): what can be undone, what decides, and what will succeed at last."""

COMPENSATABLE: StepKind = "compensatable"
"""What a step is that does not say."""


@dataclasses.dataclass(frozen=True)
class SagaStepResult(Generic[ContextT, Resp]):
    """What a step has answered.

    Attributes:
        response: the answer.
        step_type: the step's class.
        with_error: for the step's own use, as the next three; the engine goes by exceptions alone.
        error_message: see ``with_error``.
        error_traceback: see ``with_error``.
        error_type: see ``with_error``.
        saga_id: the saga; set by the engine.
    """

    response: Resp
    step_type: type[Any]
    with_error: bool = False
    error_message: str | None = None
    error_traceback: list[str] | None = None
    error_type: type[BaseException] | None = None
    saga_id: uuid.UUID | None = None


@dataclasses.dataclass(frozen=True)
class StepExecution:
    """The call of a step that runs in this context.

    Attributes:
        saga_id: the saga.
        saga_name: its name.
        step_name: the step's stable name.
        action: ``act`` or ``compensate``.
        attempt: counted from 1.
        owner: who holds the saga's lease; used for one claim only, so it can serve as a fencing token.
        key_name: the name that the idempotency key has, the oldest one of a step that was renamed; empty:
            ``step_name``.
    """

    saga_id: uuid.UUID
    saga_name: str
    step_name: str
    action: str
    attempt: int
    owner: str
    key_name: str = ""

    @property
    def idempotency_key(self) -> str:
        """The same for each attempt, whoever makes it, and another one for ``compensate``: saga / step / action."""
        return f"{self.saga_id}/{self.key_name or self.step_name}/{self.action}"


current_execution: ContextVar[StepExecution | None] = ContextVar("cqrs_sync_saga_step", default=None)


class _Step(EmitsEvents, Generic[ContextT, Resp]):
    """What both kinds of steps have."""

    step_name: ClassVar[str | None] = None
    """Its name in the log; by default the class's name. Set it to the old name when you rename the class."""

    kind: ClassVar[StepKind | None] = None
    """``"compensatable"`` (the default), ``"pivot"`` or ``"retriable"``; behind a pivot all steps are retriable.

    Once the pivot is done the saga is not rolled back any more: a step that fails is tried again by recovery.
    """

    retry: ClassVar[Retry] = ONCE
    """How often ``act`` is called; once by default."""

    compensate_retry: ClassVar[Retry | None] = None
    """How often ``compensate`` is called in a row; None leaves it to the mediator: three times.

    Then recovery tries again later, where the error is one of its ``exceptions``; others wait for an operator at once.
    """

    unknown_outcomes: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors of ``act`` after which the step is compensated too, because it may have had its effect: timeouts, say."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.unknown_outcomes = exception_classes(cls.unknown_outcomes, f"{cls.__name__}.unknown_outcomes")

    @property
    def execution(self) -> StepExecution:
        """The call that runs here.

        Raises:
            ConfigurationError: none does; threads of your own need a copy of the context.
        """
        execution = current_execution.get()
        if execution is None:
            raise ConfigurationError(f"no saga calls {type(self).__name__} in this context")
        return execution

    @property
    def idempotency_key(self) -> str:
        """Give this to the service that ``act`` or ``compensate`` calls: it is the same when the call is repeated."""
        return self.execution.idempotency_key

    @property
    def saga_id(self) -> uuid.UUID:
        """The saga that the call belongs to."""
        return self.execution.saga_id

    def _generate_step_result(
        self,
        response: Resp,
        with_error: bool = False,
        error_message: str | None = None,
        error_traceback: list[str] | None = None,
        error_type: type[BaseException] | None = None,
    ) -> SagaStepResult[ContextT, Resp]:
        """Return what ``act`` returns."""
        return SagaStepResult(response, type(self), with_error, error_message, error_traceback, error_type)


class SagaStepHandler(_Step[ContextT, Resp], abc.ABC, Generic[ContextT, Resp]):
    """One step of a saga: ``act`` does it, ``compensate`` undoes it.

    The engine builds a new handler for each call, from the container, so what ``compensate`` needs to know belongs
    into the context. What a call leaves in ``events`` is emitted when it is recorded: notification events go into the
    outbox of the unit of work, in the same transaction, where there is one; other events are handled after the commit.

    Example:
        >>> import dataclasses
        >>> from cqrs_sync.saga.models import SagaContext
        >>> @dataclasses.dataclass
        ... class OrderContext(SagaContext):
        ...     order_id: str
        ...     charge_id: str | None = None
        >>> class Charge(SagaStepHandler[OrderContext, str]):
        ...     retry = Retry(attempts=3, delay=0.5)
        ...     def __init__(self, payments: "Payments") -> None:
        ...         self._payments = payments
        ...     def act(self, context: OrderContext) -> SagaStepResult[OrderContext, str]:
        ...         context.charge_id = self._payments.charge(context.order_id, key=self.idempotency_key)
        ...         return self._generate_step_result(context.charge_id)
        ...     def compensate(self, context: OrderContext) -> None:
        ...         self._payments.refund(context.order_id, key=self.idempotency_key)
    """

    @abc.abstractmethod
    def act(self, context: ContextT, /) -> SagaStepResult[ContextT, Resp]:
        """Do the step.

        Runs at least once; make it idempotent, by :attr:`idempotency_key` where another service is called. It runs
        again when a process has died before it was recorded, and for :attr:`retry`. An exception says that it had no
        effect, unless it is one of :attr:`unknown_outcomes`.
        """

    @abc.abstractmethod
    def compensate(self, context: ContextT, /) -> None:
        """Undo the step.

        Runs at least once; make it idempotent. It may be called for an ``act`` whose outcome is not known, which may
        have had no effect, and whose changes of the context may be missing.
        """


class TransactionalSagaStep(_Step[ContextT, Resp], abc.ABC, Generic[ContextT, Resp]):
    """A step that writes in the database of the saga storage, in the very transaction that records it: exactly once.

    The session is that of the unit of work, where the mediator has one, else one of the storage's own. Never commit it.
    Keep calls of other services out: the transaction is open meanwhile, and they are not undone with it.
    """

    @abc.abstractmethod
    def act(self, context: ContextT, session: Any, /) -> SagaStepResult[ContextT, Resp]:
        """Do the step. What it writes with the session is committed once, with the record that it is done."""

    @abc.abstractmethod
    def compensate(self, context: ContextT, session: Any, /) -> None:
        """Undo the step. What it writes with the session is committed once, with the record that it is undone."""


StepType: TypeAlias = type[SagaStepHandler[Any, Any]] | type[TransactionalSagaStep[Any, Any]]
