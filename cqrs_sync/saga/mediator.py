"""The mediator of sagas."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from itertools import takewhile
from typing import Any

from typing_extensions import Unpack

from cqrs_sync.backoff import Backoff
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import ConfigurationError, SagaDoesNotExist, SagaTypeError, type_name
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.map import EventMap
from cqrs_sync.mediator import BaseMediator, EventSettings, make_emitter, make_processor
from cqrs_sync.middlewares.base import MiddlewareChain, compose
from cqrs_sync.saga.engine import COMPENSATION_RETRY, SagaEngine, context_of
from cqrs_sync.saga.map import SagaMap
from cqrs_sync.saga.models import ContextT, SagaContext, SagaOutcome
from cqrs_sync.saga.recovery import outcome_of
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.run import SagaRun
from cqrs_sync.saga.saga import Saga, definition_of
from cqrs_sync.saga.step import SagaStepResult
from cqrs_sync.saga.storage.models import SagaState
from cqrs_sync.saga.storage.protocol import SagaStorage

Results = Generator[SagaStepResult[Any, Any], None, None]


class SagaMediator(BaseMediator):
    """Runs sagas. Thread-safe; one for a whole application; each stream is used by one thread at a time.

    Built by :func:`cqrs_sync.saga.bootstrap.bootstrap`, or by hand from its parts:

    Args:
        saga_map: which saga runs for which context.
        container: what builds the steps.
        saga_storage: where sagas are kept.
        event_emitter: takes events where they go; made from ``event_map`` where it is not given.
        middleware_chain: what runs around each stream.
        event_map: which handlers react to which event.
        max_concurrent_event_handlers: how many event handlers run at once, over all sagas.
        concurrent_event_handle_enable: False is another way to say 1.
        compensation_retry_count: how often ``compensate`` is tried, for steps that do not say it themselves.
        compensation_retry_delay: seconds before its second attempt.
        compensation_retry_backoff: how many times as long each further wait is.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`; a step is what elsewhere a send is.
        recovery_backoff: when recovery tries a saga again that cannot go on past its pivot, or cannot be undone now.
        max_parallel_steps: how many steps of ``Parallel`` groups run at once, over all sagas.
        settings: see :class:`~cqrs_sync.mediator.EventSettings`. Errors of event handlers are logged and never stop a
            saga; under ``ScopeStrategy.SEND`` they fail the step.
    """

    def __init__(
        self,
        saga_map: SagaMap,
        container: Any,
        saga_storage: SagaStorage,
        event_emitter: EventEmitter | None = None,
        middleware_chain: MiddlewareChain | None = None,
        event_map: EventMap | None = None,
        max_concurrent_event_handlers: int = 1,
        concurrent_event_handle_enable: bool | None = None,
        compensation_retry_count: int = COMPENSATION_RETRY.attempts,
        compensation_retry_delay: float = COMPENSATION_RETRY.delay,
        compensation_retry_backoff: float = COMPENSATION_RETRY.backoff,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        recovery_backoff: Backoff | None = None,
        max_parallel_steps: int = 4,
        **settings: Unpack[EventSettings],
    ) -> None:
        if settings.get("event_errors") == "raise" and scope_strategy is not ScopeStrategy.SEND:
            raise ConfigurationError(
                'event_errors="raise" cannot be for sagas: events are handled when their step is committed, and their '
                "errors are logged. Leave it out, or use ScopeStrategy.SEND, where they fail the step"
            )
        emitter = make_emitter(event_emitter, event_map, container, scope_strategy, settings)
        super().__init__(
            make_processor(event_map, emitter, max_concurrent_event_handlers, concurrent_event_handle_enable, settings)
        )
        self._saga_map = saga_map
        self._chain = compose((middleware_chain or MiddlewareChain()).compile())
        self._engine = SagaEngine(
            container,
            saga_storage,
            scope_strategy,
            settings.get("unit_of_work"),
            processor=self._processor,
            compensation_retry=Retry(compensation_retry_count, compensation_retry_delay, compensation_retry_backoff),
            recovery_backoff=recovery_backoff,
            max_parallel_steps=max_parallel_steps,
            worker_context=settings.get("worker_context"),
        )
        self._offer(emitter.scoping)
        self._engine.scopes.offer(self)

    @property
    def engine(self) -> SagaEngine:
        """What runs the sagas; for recovery workers."""
        return self._engine

    @property
    def saga_map(self) -> SagaMap:
        """Which saga runs for which context."""
        return self._saga_map

    def compile(self) -> None:
        """Make all bound sagas ready; refuses steps that cannot be built.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        for saga_type in self._saga_map.values():
            self._engine.compile(definition_of(saga_type))
        self._processor.emitter.compile()

    def stream(self, context: ContextT, saga_id: uuid.UUID | None = None) -> Results:
        """Return a generator of the results of the saga's steps; the saga begins with the first ``next()``.

        Each step is committed, and its events are handled, before its result is handed out. When a step fails, the
        saga is rolled back and then the step's error is raised. To stop early, close the generator (or leave it to
        ``contextlib.closing``): the saga is handed over as it is, and whoever takes it on goes on with it, a recovery
        worker at once. The same happens to what is thrown into the generator, and to Ctrl-C.

        Args:
            context: what the steps work on, and change.
            saga_id: its id; a new one by default. Where there is a saga with this id it is taken on, with the context
                that is stored with it. One that is completed yields nothing.

        Raises:
            SagaDoesNotExist: no saga is bound for exactly this class.
            SagaTypeError: it is no context.
            ContextNotSerializable: the context cannot be stored; nothing has run.
            SagaRolledBack: from ``next()``; the saga with this id is rolled back, put off on the way back, or stuck.
            SagaConcurrencyError: from ``next()``; somebody else runs the saga, or has taken it on meanwhile.
            SagaDefinitionChanged: from ``next()``; the stored saga does not fit today's steps.
            SagaStorageUnavailable: from ``next()``; the storage went away, and recovery goes on with the saga.
            MediatorClosed: after ``close()``.
        """
        return self._through(context, self._opening(context, saga_id), [])

    def run(self, context: ContextT, saga_id: uuid.UUID | None = None) -> SagaOutcome[ContextT]:
        """Run a saga to its end, and return how it ended; a step's error is in the outcome.

        One that has to wait is left to recovery: its status is ``running`` behind its pivot, and ``compensating`` where
        a ``compensate`` keeps failing.

        The arguments are those of :meth:`stream`.

        Raises:
            SagaDoesNotExist: no saga is bound for exactly this class.
            SagaTypeError: it is no context.
            ContextNotSerializable: the context cannot be stored; nothing has run.
            SagaConcurrencyError: somebody else runs the saga, or has taken it on meanwhile.
            SagaDefinitionChanged: the stored saga does not fit today's steps.
            SagaStorageUnavailable: the storage went away, and recovery goes on with the saga.
            MediatorClosed: after ``close()``.
        """
        return self._outcome(context, self._opening(context, saga_id))

    def recover(self, saga_id: uuid.UUID) -> SagaOutcome[Any]:
        """Finish a stored saga, whatever its class, and return how it ended.

        Raises:
            SagaNotFound: there is none with this id.
            SagaDoesNotExist: no saga of its name is bound.
            SagaConcurrencyError: somebody else runs it.
            SagaDefinitionChanged: it does not fit today's steps; nothing was changed.
            SagaStorageUnavailable: the storage went away; try again later.
            MediatorClosed: after ``close()``.
        """
        self._check_open()
        state = self._engine.storage.load_saga_state(saga_id)
        context_type, saga_type = self.bound_to(state.name)
        definition = definition_of(saga_type)
        return self._outcome(
            context_of(context_type, state), lambda: self._engine.resume(definition, context_type, saga_id)
        )

    def take_on(
        self, state: SagaState, asked_at: float, stopping: threading.Event, max_attempts: int | None = None
    ) -> SagaOutcome[Any]:
        """Go on with a saga that was claimed, to its end or until ``stopping`` is set; for recovery workers.

        A step that runs when it is set is finished, and the saga handed over.

        Args:
            state: what the claim has returned.
            asked_at: when the storage was asked for it, by the clock of leases.
            stopping: ends waits between attempts, too.
            max_attempts: after how many recoveries without progress a rollback that fails is stuck; None: it is put
                off each time.

        Raises:
            SagaDoesNotExist: no saga of its name is bound; it stays claimed.
            SagaDefinitionChanged: it does not fit today's steps; it stays claimed.
            SagaConcurrencyError: somebody else has it by now.
            SagaStorageUnavailable: the storage went away.
            MediatorClosed: after ``close()``, or it was handed over in the middle of a rollback.
        """
        self._check_open()
        context_type, saga_type = self.bound_to(state.name)
        definition = definition_of(saga_type)
        run = self._engine.take_on(definition, context_type, state, asked_at, stopping.wait, max_attempts)
        runs: list[SagaRun[Any]] = []
        with closing(self._through(run.context, lambda: run, runs)) as results:
            return outcome_of(takewhile(lambda _: not stopping.is_set(), results), runs)

    def bound_to(self, saga_name: str) -> tuple[type[SagaContext], type[Saga[Any]]]:
        """Return the saga of a name, with the context that it is bound to.

        Raises:
            SagaDoesNotExist: there is none.
        """
        found = self._saga_map.named(saga_name)
        if found is None:
            raise SagaDoesNotExist(saga_name)
        return found

    def close(self, timeout: float = 30.0) -> None:
        """Refuse new sagas, end waits between attempts, and end the threads. Harmless when it is called twice.

        A saga that goes forward goes on to its end; one that waits for its next attempt is handed over, and so is one
        that is rolled back, after the step that is being undone.

        Args:
            timeout: seconds to wait at most.

        Raises:
            CloseTimeout: steps or event handlers were still at work; they go on.
        """
        try:
            self._engine.close(timeout)
        finally:
            super().close(timeout)

    def _check_open(self) -> None:
        if self._closed:
            self._refuse()

    def _opening(self, context: ContextT, saga_id: uuid.UUID | None) -> Callable[[], SagaRun[ContextT]]:
        self._check_open()
        try:
            saga_type = self._saga_map[type(context)]
        except KeyError:
            raise _no_saga_for(context) from None
        return self._engine.prepare(definition_of(saga_type), context, saga_id).open

    def _outcome(self, context: ContextT, opening: Callable[[], SagaRun[ContextT]]) -> SagaOutcome[ContextT]:
        runs: list[SagaRun[ContextT]] = []
        return outcome_of(self._through(context, opening, runs), runs)

    def _through(
        self, context: ContextT, opening: Callable[[], SagaRun[ContextT]], runs: list[SagaRun[ContextT]]
    ) -> Results:
        """Run a saga behind the middlewares, which see one call per stream; its runs are noted."""
        with ExitStack() as opened:

            def handle(_: Any) -> Iterator[SagaStepResult[Any, Any]]:
                stream = self._stream(opening, runs)
                opened.callback(stream.close)
                return stream

            results = handle(context) if self._chain is None else self._chain(context, handle)
            if not isinstance(results, Iterator):
                raise ConfigurationError(
                    f"the results of {type_name(type(context))} became a {type_name(type(results))} in a middleware; a "
                    "middleware around a saga must return an iterator"
                )
            close: Callable[[], None] | None = getattr(results, "close", None)
            if close is not None:
                opened.callback(close)
            yield from results

    def _stream(self, opening: Callable[[], SagaRun[ContextT]], runs: list[SagaRun[ContextT]]) -> Results:
        run = opening()
        runs.append(run)
        yield from run.stream()


def _no_saga_for(context: object) -> Exception:
    if isinstance(context, SagaContext):
        return SagaDoesNotExist(type(context))
    given = f"the class {type_name(context)}" if isinstance(context, type) else f"a {type_name(type(context))}"
    return SagaTypeError(f"a saga works on an instance of a SagaContext, and was given {given}", context)
