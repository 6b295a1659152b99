"""Takes sagas on that were left unfinished."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from cqrs_sync.checks import refuse_async
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import ConfigurationError, SagaRolledBack
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.saga.engine import COMPENSATION_RETRY, SagaEngine
from cqrs_sync.saga.models import ContextSource, ContextT, SagaOutcome
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.run import SagaRun
from cqrs_sync.saga.saga import Saga, context_type_of, definition_of
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.unit_of_work.protocol import UnitOfWork


def recover_saga(
    saga: type[Saga[Any]] | Saga[Any],
    saga_id: uuid.UUID,
    context_builder: ContextSource[Any] | None = None,
    container: Any = None,
    storage: SagaStorage | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    unit_of_work: UnitOfWork | None = None,
    event_processor: EventProcessor | None = None,
    compensation_retry: Retry = COMPENSATION_RETRY,
) -> SagaOutcome[Any]:
    """Finish a saga that was left unfinished: forward, or back where it is past the point of no return.

    One that has ended, or is stuck, is left as it is. Where it has to wait, its status says so. To have the events
    of its steps emitted call :meth:`SagaMediator.recover() <cqrs_sync.saga.mediator.SagaMediator.recover>`, or give an
    ``event_processor``.

    Args:
        saga: the saga's class.
        saga_id: its id.
        context_builder: the context's class, where it is not the one that the saga names; or a function that makes the
            context of the stored fields, a dictionary as in JSON. It may be called several times, and nothing has
            happened yet where it raises.
        container: what builds the steps.
        storage: where the saga is.
        scope_strategy: as it is when the saga is run.
        unit_of_work: as it is when the saga is run.
        event_processor: takes events of steps where they go.
        compensation_retry: for steps that have no ``compensate_retry`` of their own.

    Raises:
        SagaNotFound: there is none with this id.
        SagaConcurrencyError: somebody else runs it.
        SagaDefinitionChanged: it does not fit today's steps, or ``context_builder``; nothing was changed.
        SagaTypeError: what ``context_builder`` makes is not the saga's context; nothing was changed.
        SagaStorageUnavailable: the storage went away; try again later.
    """
    definition = definition_of(saga)
    context_type: ContextSource[Any] = context_type_of(saga) if context_builder is None else context_builder
    refuse_async(context_type, "context_builder")
    if not callable(context_type):
        raise ConfigurationError(f"context_builder must be a context class or a function, not {context_type!r}")
    engine = SagaEngine(
        container,
        storage,  # type: ignore[arg-type]  # the engine refuses None
        scope_strategy,
        unit_of_work,
        processor=event_processor,
        compensation_retry=compensation_retry,
    )
    try:
        engine.compile(definition)
        run: SagaRun[Any] = engine.resume(definition, context_type, saga_id)
        return outcome_of(run.stream(), [run])
    finally:
        engine.close(30.0)


def outcome_of(results: Iterable[Any], runs: Sequence[SagaRun[ContextT]]) -> SagaOutcome[ContextT]:
    """Run a saga to its end.

    What fails a step is in the outcome; what keeps the saga from being run is raised.

    Args:
        results: those of the run, perhaps behind middlewares.
        runs: has the run, the last one where there are several, when the results are at their end.

    Raises:
        ConfigurationError: there was no run: a middleware has answered in its place.
    """
    error: Exception | None = None
    try:
        for _ in results:
            pass
    except Exception as raised:
        if not runs or not (raised is runs[-1].error or isinstance(raised, SagaRolledBack)):
            raise
        error = raised
    if not runs:
        raise ConfigurationError("a middleware has answered in place of the saga, so there is no outcome: use stream()")
    run = runs[-1]
    return SagaOutcome(
        saga_id=run.saga_id, status=run.status, context=run.context, results=tuple(run.results), error=error
    )
