"""The mediators: one call to send a request, stream its answer, or hand over an event (Gamma et al., *Mediator*)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from typing_extensions import TypedDict, Unpack

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.dispatcher.base import MapDispatcher
from cqrs_sync.dispatcher.event import EventDispatcher
from cqrs_sync.dispatcher.models import RequestDispatchResult
from cqrs_sync.dispatcher.request import RequestDispatcher
from cqrs_sync.dispatcher.streaming import Results, StreamingRequestDispatcher, in_scope
from cqrs_sync.errors import ConfigurationError, MediatorClosed
from cqrs_sync.events.event import IEvent
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_processor import EventErrors, EventProcessor
from cqrs_sync.events.map import EventMap
from cqrs_sync.executors import WorkerContext
from cqrs_sync.invocation import Invoke, Outcome
from cqrs_sync.lazy import lazy_names
from cqrs_sync.middlewares.base import MiddlewareChain
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.requests.request import IRequest
from cqrs_sync.scoping import OpenScope, Scoping
from cqrs_sync.types import ResT
from cqrs_sync.unit_of_work.protocol import UnitOfWork

DispatcherT = TypeVar("DispatcherT", bound=MapDispatcher[Any])


class EventSettings(TypedDict, total=False):
    """How a mediator handles events; all optional, and the same for every mediator and ``bootstrap``.

    Attributes:
        unit_of_work: what handlers write in: one transaction per handler, or per send (see ``scope_strategy``).
        event_errors: what becomes of errors of event handlers: ``"isolate"`` logs them, ``"raise"`` raises them
            together. The default isolates (an ``EventMediator`` raises), and inside one transaction they are raised.
        worker_context: a function that returns a context manager, entered around each handler on a pool thread; to
            free what is bound to the thread, such as a framework's database connection. Its own errors are logged.
        max_event_depth: how many follow-up events may come out of each other before the loop is cut.
    """

    unit_of_work: UnitOfWork | None
    event_errors: EventErrors | None
    worker_context: WorkerContext | None
    max_event_depth: int


class BaseMediator:
    """What all mediators have: an event processor that owns threads, and an end."""

    def __init__(self, processor: EventProcessor) -> None:
        self._processor = processor
        self._scoping = processor.emitter.scoping
        self._shared = self._scoping.shared
        self._closed = False

    def close(self, timeout: float = 30.0) -> None:
        """Refuse new calls, wait for event handlers on the pool, and end its threads.

        A call that was made before finishes, in its caller's thread. Calling it twice is harmless. A mediator with a
        pool that is forgotten instead is a ``ResourceWarning``.

        Args:
            timeout: seconds to wait at most.

        Raises:
            CloseTimeout: handlers were still at work; they go on, and ``close()`` can be called again.
        """
        self._closed = True
        self._processor.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, *scopings: Scoping) -> None:
        """Have handlers that ask for this kind of mediator get this one."""
        for scoping in scopings:
            scoping.offer(self)

    def _refuse(self) -> None:
        """Refuse a call after ``close()``, but let handlers that are at work finish theirs."""
        if not self._processor.runs_here():
            raise MediatorClosed(f"this {type(self).__name__} was closed; build a new one")


class _RequestsMediator(BaseMediator, Generic[DispatcherT]):
    """What the two mediators of requests have in common: their parts."""

    _default_dispatcher: type[Any]

    def __init__(
        self,
        request_map: RequestMap,
        container: Any,
        event_emitter: EventEmitter | None = None,
        middleware_chain: MiddlewareChain | None = None,
        event_map: EventMap | None = None,
        max_concurrent_event_handlers: int = 1,
        concurrent_event_handle_enable: bool | None = None,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        dispatcher_type: type[DispatcherT] | None = None,
        **settings: Unpack[EventSettings],
    ) -> None:
        emitter = make_emitter(event_emitter, event_map, container, scope_strategy, settings)
        super().__init__(
            make_processor(event_map, emitter, max_concurrent_event_handlers, concurrent_event_handle_enable, settings)
        )
        chosen: Any = dispatcher_type or self._default_dispatcher
        self._dispatcher: DispatcherT = chosen(
            request_map=request_map,
            container=container,
            middleware_chain=middleware_chain,
            scope_strategy=scope_strategy,
            unit_of_work=settings.get("unit_of_work"),
            stage=emitter.stage,
        )
        self._offer(emitter.scoping, self._dispatcher.scoping)
        self._prepare()

    def _prepare(self) -> None:
        """Make ready what a derived mediator calls often."""

    def compile(self) -> None:
        """Make all bound handlers ready; refuses those that cannot be built or cannot be served here.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        self._dispatcher.compile()
        self._processor.emitter.compile()


class RequestMediator(_RequestsMediator[RequestDispatcher]):
    """Sends commands and queries to their handlers. Thread-safe; one for a whole application.

    Built by :func:`cqrs_sync.requests.bootstrap.bootstrap`, or by hand from its parts:

    Args:
        request_map: which handler answers which request.
        container: what builds the handlers.
        event_emitter: takes events where they go; made from ``event_map`` where it is not given.
        middleware_chain: what runs around each call.
        event_map: which handlers react to which event.
        max_concurrent_event_handlers: how many event handlers run at once, over all concurrent sends.
        concurrent_event_handle_enable: False is another way to say 1.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        dispatcher_type: a class derived from :class:`~cqrs_sync.dispatcher.request.RequestDispatcher`.
        settings: see :class:`EventSettings`.
    """

    _default_dispatcher = RequestDispatcher

    def _prepare(self) -> None:
        # Past dispatch(), a fifth of the whole call, unless it is overridden.
        overridden = type(self._dispatcher).dispatch is not RequestDispatcher.dispatch
        calls = defaultdict[type, Invoke](lambda: self._dispatch)
        self._invokes: dict[type, Invoke] = calls if overridden else self._dispatcher.calls

    def send(self, request: IRequest[ResT]) -> ResT:
        """Handle a request, then its events, and return the response.

        Blocks until the handler, its event handlers and their follow-ups have finished. What the handler raises
        reaches the caller, and then none of its events is emitted.

        Raises:
            RequestHandlerDoesNotExist: nothing is bound for exactly this class.
            EventHandlingError: event handlers failed and errors are raised; it carries the response.
            MediatorClosed: after ``close()``.
        """
        if self._closed:
            self._refuse()
        if self._shared:
            return self._send_in_scope(request)
        response: ResT
        response, events = self._invokes[type(request)](request)
        if events:
            self._processor.emit_staged(events, response)
        return response

    def _send_in_scope(self, request: IRequest[ResT]) -> ResT:
        joins = self._scoping.open_send() is not None
        with self._scoping.sending() as scope:
            response: ResT
            response, events = self._invokes[type(request)](request)
            self._processor.emit_staged(events, response)
        if not joins:
            self._processor.publish_deferred(scope.deferred, response)
        return response

    def _dispatch(self, request: IRequest[Any]) -> Outcome:
        result = self._dispatcher.dispatch(request)
        return result.response, result.events


class StreamingRequestMediator(_RequestsMediator[StreamingRequestDispatcher]):
    """Streams the answers of requests piece by piece. Thread-safe; each stream is used by one thread at a time.

    The arguments are those of :class:`RequestMediator`.
    """

    _default_dispatcher = StreamingRequestDispatcher

    def stream(self, request: IRequest[ResT]) -> Generator[ResT, None, None]:
        """Return a generator of the pieces of the answer.

        Before a piece is handed out its unit of work is committed and its events are handled. The handler starts with
        the first ``next()``. To stop early, close the generator (or leave it to ``contextlib.closing``): the
        handler's generator and its transaction end at once.

        Raises:
            RequestHandlerDoesNotExist: nothing is bound for exactly this class.
            EventHandlingError: from ``next()``; event handlers failed and errors are raised.
            MediatorClosed: after ``close()``.
        """
        if self._closed:
            self._refuse()
        results = self._dispatcher.dispatch(request)
        return self._stream_in_scope(results) if self._shared else self._stream(results)

    def _stream(self, results: Results) -> Generator[Any, None, None]:
        with closing(results):
            for result in results:
                self._emit(result)
                if result.has_response:
                    yield result.response

    def _stream_in_scope(self, results: Results) -> Generator[Any, None, None]:
        joined = self._scoping.open_send()
        if joined is not None:
            yield from self._stream_joined(joined, results)
            return
        scope = self._scoping.open()
        with closing(in_scope(scope, results, also=self._emit)) as committed:
            for result in committed:
                self._processor.publish_deferred(scope.deferred, result.response)
                if result.has_response:
                    yield result.response

    def _stream_joined(self, scope: OpenScope, results: Results) -> Generator[Any, None, None]:
        """Stream inside the send that a handler runs in: a piece that fails is undone alone, the send commits."""
        with closing(results):
            while True:
                if not scope.is_open_here:
                    raise ConfigurationError("this stream is part of a send that has ended: draw it inside the handler")
                with scope.undone_alone():
                    result = next(results, None)
                    if result is not None:
                        self._emit(result)
                if result is None:
                    return
                if result.has_response:
                    yield result.response

    def _emit(self, result: RequestDispatchResult) -> None:
        self._processor.emit_staged(result.events, result.response)


class EventMediator(BaseMediator):
    """Hands events that came from outside to their handlers. Thread-safe; one for a whole application.

    Args:
        event_map: which handlers react to which event.
        container: what builds the handlers.
        middleware_chain: what runs around each ``send``.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        event_emitter: takes follow-up events where they go; made from ``event_map`` where it is not given.
        max_concurrent_event_handlers: how many handlers run at once, over all concurrent sends.
        dispatcher_type: a class derived from :class:`~cqrs_sync.dispatcher.event.EventDispatcher`.
        settings: see :class:`EventSettings`; errors are raised unless it says otherwise.
    """

    def __init__(
        self,
        event_map: EventMap,
        container: Any,
        middleware_chain: MiddlewareChain | None = None,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        event_emitter: EventEmitter | None = None,
        max_concurrent_event_handlers: int = 1,
        dispatcher_type: type[EventDispatcher] = EventDispatcher,
        **settings: Unpack[EventSettings],
    ) -> None:
        emitter = make_emitter(event_emitter, event_map, container, scope_strategy, settings)
        settings["event_errors"] = settings.get("event_errors") or "raise"
        super().__init__(make_processor(event_map, emitter, max_concurrent_event_handlers, None, settings))
        self._dispatcher = dispatcher_type(
            event_map=event_map,
            container=container,
            middleware_chain=middleware_chain,
            scope_strategy=scope_strategy,
            event_processor=self._processor,
        )
        self._offer(emitter.scoping)

    def compile(self) -> None:
        """Make all bound handlers ready; refuses those that cannot be built.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        self._processor.emitter.compile()

    def send(self, event: IEvent) -> None:
        """Handle an event and its follow-ups; returns when all is done.

        The event itself is not published; notification events among the follow-ups are.

        Raises:
            EventHandlerDoesNotExist: nobody handles it, and it is not a domain event.
            EventHandlingError: handlers failed; the others have run.
            MediatorClosed: after ``close()``.
        """
        if self._closed:
            self._refuse()
        if not self._shared:
            self._dispatcher.dispatch(event)
            return
        joins = self._scoping.open_send() is not None
        with self._scoping.sending() as scope:
            self._dispatcher.dispatch(event)
        if not joins:
            self._processor.publish_deferred(scope.deferred)


def make_emitter(
    emitter: EventEmitter | None,
    event_map: EventMap | None,
    container: Any,
    scope_strategy: ScopeStrategy,
    settings: EventSettings,
) -> EventEmitter:
    """The emitter of a mediator; one that was built by hand must share the mediator's scopes."""
    unit_of_work = settings.get("unit_of_work")
    if emitter is None:
        return EventEmitter(
            event_map if event_map is not None else EventMap(),
            container,
            scope_strategy=scope_strategy,
            unit_of_work=unit_of_work,
        )
    if (emitter.scoping.strategy, emitter.scoping.unit_of_work) != (scope_strategy, unit_of_work):
        raise ConfigurationError(
            "the event_emitter and the mediator must have the same scope_strategy and unit_of_work: "
            f"{emitter.scoping.strategy.name} with {emitter.scoping.unit_of_work!r}, "
            f"and {scope_strategy.name} with {unit_of_work!r}"
        )
    return emitter


def make_processor(
    event_map: EventMap | None, emitter: EventEmitter, handlers: int, enable: bool | None, settings: EventSettings
) -> EventProcessor:
    for name in settings.keys() - EventSettings.__annotations__.keys():
        known = ", ".join(EventSettings.__annotations__)
        raise TypeError(f"unexpected keyword argument {name!r}; the settings of events are {known}")
    own = {name: value for name, value in settings.items() if name != "unit_of_work"}
    return EventProcessor(event_map, emitter, handlers, enable, **own)  # type: ignore[arg-type]


if TYPE_CHECKING:
    from cqrs_sync.saga.mediator import SagaMediator as SagaMediator
else:  # the async library has it here
    __getattr__, __dir__ = lazy_names(__name__, {"SagaMediator": "cqrs_sync.saga.mediator"})
