"""Sagas: a list of steps that are all done, or undone again (Garcia-Molina and Salem, *Sagas*)."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Generic, Self

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import ConfigurationError, SagaTypeError, type_name
from cqrs_sync.generics import concrete_argument
from cqrs_sync.saga.definition import Definition, Element
from cqrs_sync.saga.engine import COMPENSATION_RETRY, Opening, SagaEngine
from cqrs_sync.saga.models import ContextT
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.run import SagaRun
from cqrs_sync.saga.step import SagaStepResult, StepType
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.models import NAME_LENGTH
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.unit_of_work.protocol import UnitOfWork


class Saga(Generic[ContextT]):
    """Declares the steps of a saga; checked when the class is made.

    They run in order. When one fails, those that are done are compensated in reverse, and the step's error is raised.

    Stored sagas outlive deployments. Where a step's class is renamed, keep its ``step_name`` or declare
    ``renamed_steps``, and leave it declared: idempotency keys go on with the old name, and the keys of all sagas that
    are about would change without it. Where a step is taken out, declare it in ``retired_steps`` as long as sagas are
    about that have done it. A step may be added at the end, or behind those that running sagas have done. Whatever
    does not fit is refused, with the difference, when the saga is taken on.

    Attributes:
        steps: step classes, :class:`~cqrs_sync.saga.fallback.Fallback` and :class:`~cqrs_sync.saga.parallel.Parallel`.
        saga_name: what stored sagas are found by; by default the class's name.
        renamed_steps: for old names of steps those that they have now; where a step has several, the oldest first.
        retired_steps: step classes that are no longer run and may have been.
        definition: what the steps come to.

    Raises:
        SagaTypeError: the steps do not fit.

    Example:
        >>> import dataclasses
        >>> from cqrs_sync.saga.models import SagaContext
        >>> from cqrs_sync.saga.step import SagaStepHandler
        >>> @dataclasses.dataclass
        ... class OrderContext(SagaContext):
        ...     order_id: str
        >>> class Reserve(SagaStepHandler[OrderContext, None]):
        ...     def act(self, context: OrderContext) -> SagaStepResult[OrderContext, None]:
        ...         return self._generate_step_result(None)
        ...     def compensate(self, context: OrderContext) -> None: ...
        >>> class OrderSaga(Saga[OrderContext]):
        ...     steps = [Reserve]
        >>> OrderSaga.definition.text
        'Reserve'
    """

    steps: ClassVar[Sequence[Element]]
    saga_name: ClassVar[str | None] = None
    renamed_steps: ClassVar[Mapping[str, str]] = {}
    retired_steps: ClassVar[Sequence[StepType]] = ()
    definition: ClassVar[Definition]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        elements = getattr(cls, "steps", None)
        if elements is not None:  # else it is a base of sagas
            context = concrete_argument(cls, Saga)
            cls.definition = Definition(_name_of(cls), context, elements, cls.renamed_steps, cls.retired_steps)

    @property
    def steps_count(self) -> int:
        """How many entries the list of steps has."""
        return len(self.steps)

    @classmethod
    def transaction(
        cls,
        context: ContextT,
        container: Any,
        storage: SagaStorage,
        saga_id: uuid.UUID | None = None,
        compensation_retry_count: int = COMPENSATION_RETRY.attempts,
        compensation_retry_delay: float = COMPENSATION_RETRY.delay,
        compensation_retry_backoff: float = COMPENSATION_RETRY.backoff,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        unit_of_work: UnitOfWork | None = None,
    ) -> SagaTransaction[ContextT]:
        """Return a run of the saga without a mediator: a context manager that is iterated over.

        Events of steps are dropped, with a warning. The arguments are those of
        :class:`~cqrs_sync.saga.mediator.SagaMediator` and its ``stream``.

        Raises:
            SagaTypeError: it is another saga's context, or none.
            ContextNotSerializable: naming the field.
        """
        definition = definition_of(cls)
        definition.check_context(context)
        engine = SagaEngine(
            container,
            storage,
            scope_strategy,
            unit_of_work,
            compensation_retry=Retry(compensation_retry_count, compensation_retry_delay, compensation_retry_backoff),
        )
        engine.compile(definition)
        return SagaTransaction(engine.prepare(definition, context, saga_id))


class SagaTransaction(Generic[ContextT]):
    """One run of a saga: ``with OrderSaga.transaction(...) as saga: for result in saga: ...``.

    An ``Exception`` that leaves the block rolls the saga back, unless a step's has done so already. A block that is
    left otherwise, before the saga has come to its end, hands it over: it can be taken on by its id at once.

    Attributes:
        saga_id: the saga's id.
    """

    def __init__(self, opening: Opening[ContextT]) -> None:
        self._opening = opening
        self._run: SagaRun[ContextT] | None = None
        self._results: Generator[SagaStepResult[Any, Any], None, None] | None = None
        self.saga_id = opening.saga_id

    @property
    def completed_steps(self) -> list[SagaStepResult[Any, Any]]:
        """The results of the steps that this run has completed."""
        return [] if self._run is None else list(self._run.results)

    @property
    def status(self) -> SagaStatus:
        """How far the saga has come, as this run knows it."""
        return SagaStatus.PENDING if self._run is None else self._run.status

    @property
    def context(self) -> ContextT:
        """What the steps work on: the caller's own, or the stored one of a saga that was taken on."""
        return self._opening.context if self._run is None else self._run.context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(exc, Exception) and self._run is not None:
                self._run.abort(exc)
        finally:
            if self._results is not None:
                self._results.close()
            self._opening.engine.close(30.0)

    def __iter__(self) -> Generator[SagaStepResult[Any, Any], None, None]:
        """Iterate over the results; a second iterator is the first one.

        Raises:
            SagaConcurrencyError: from the first ``next()``; somebody else runs the saga.
        """
        if self._results is None:
            self._results = self._stream()
        return self._results

    def _stream(self) -> Generator[SagaStepResult[Any, Any], None, None]:
        self._run = self._opening.open()
        yield from self._run.stream()


def _name_of(saga: type[Any]) -> str:
    """The name of a saga class: its own, as what it inherits is another saga's."""
    given: Any = vars(saga).get("saga_name")
    name = saga.__name__ if given is None else given
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH:
        raise SagaTypeError(f"{type_name(saga)}: {name!r} is no saga_name: it has 1 to {NAME_LENGTH} characters", saga)
    return name


def definition_of(saga: Any) -> Definition:
    """Return the definition of a saga class, or of an instance of one.

    Raises:
        SagaTypeError: it is none, or has no steps.
    """
    cls = saga if isinstance(saga, type) else type(saga)
    if not issubclass(cls, Saga):
        raise SagaTypeError(f"{saga!r} must be a subclass of Saga", saga)
    definition: Definition | None = getattr(cls, "definition", None)
    if definition is None:
        raise SagaTypeError(f"{cls.__name__} declares no steps: give it steps = [...]", cls)
    return definition


def context_type_of(saga: Any) -> type[Any]:
    """Return the context class that a saga names.

    Raises:
        ConfigurationError: it names none.
    """
    context_type = definition_of(saga).context_type
    if context_type is None:
        raise ConfigurationError(f"{saga!r} must name its context, as in Saga[OrderContext]")
    return context_type
