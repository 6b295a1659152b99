"""Puts an application's requests together: the composition root for :class:`RequestMediator` and for streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from typing_extensions import Unpack

from cqrs_sync.composition import EventsMapper, Startup, filled, setup_event_emitter, start, with_logging
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.map import EventMap
from cqrs_sync.mediator import EventSettings, RequestMediator, StreamingRequestMediator
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.middlewares.base import Middleware, MiddlewareChain
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.serializers.protocol import EventSerializer

RequestsMapper: TypeAlias = Callable[[RequestMap], None]

MediatorT = TypeVar("MediatorT", RequestMediator, StreamingRequestMediator)


def bootstrap(
    di_container: Any,
    message_broker: MessageBroker | None = None,
    middlewares: Iterable[Middleware] | None = None,
    commands_mapper: RequestsMapper | None = None,
    domain_events_mapper: EventsMapper | None = None,
    queries_mapper: RequestsMapper | None = None,
    on_startup: Startup | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    serializer: EventSerializer | None = None,
    **settings: Unpack[EventSettings],
) -> RequestMediator:
    """Return a mediator for commands and queries, with everything that is bound checked and ready.

    Args:
        di_container: a ``punq.Container``, an adapter from :mod:`cqrs_sync.container`, or any object with
            ``resolve(type)``. With punq, handler classes need not be registered, and a handler whose constructor asks
            for ``RequestMediator`` gets the one that is built here.
        message_broker: where notification events go; without one they are dropped, and the first is a WARNING.
        middlewares: what runs around each ``send``, the first one outermost; ``LoggingMiddleware`` is added
            innermost unless it is among them.
        commands_mapper: binds commands to handlers.
        domain_events_mapper: binds events to handlers.
        queries_mapper: binds queries to handlers.
        on_startup: functions that are called first.
        max_concurrent_event_handlers: how many event handlers run at once, over all concurrent sends. 1 (the default)
            runs them in order in the caller's thread; more run in a pool that the caller helps.
        concurrent_event_handle_enable: False is another way to say 1.
        scope_strategy: what shares a container scope and a unit of work.
        serializer: makes the bytes of notification events; JSON by default.
        settings: unit_of_work, event_errors, worker_context and max_event_depth; see
            :class:`~cqrs_sync.mediator.EventSettings`.

    Raises:
        ConfigurationError: something cannot work; the error names the class and the parameter.

    Example:
        >>> import cqrs_sync as cqrs, punq
        >>> class Greet(cqrs.Request[str]):
        ...     name: str
        >>> class GreetHandler(cqrs.RequestHandler[Greet]):
        ...     def handle(self, request: Greet) -> str:
        ...         return f"hello {request.name}"
        >>> mediator = bootstrap(
        ...     di_container=punq.Container(),
        ...     commands_mapper=lambda m: m.bind(Greet, GreetHandler),
        ... )
        >>> mediator.send(Greet(name="Ada"))
        'hello Ada'
    """
    return _bootstrap(
        RequestMediator,
        di_container,
        message_broker,
        middlewares,
        commands_mapper,
        domain_events_mapper,
        queries_mapper,
        on_startup,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy,
        serializer,
        settings,
    )


def bootstrap_streaming(
    di_container: Any,
    message_broker: MessageBroker | None = None,
    middlewares: Iterable[Middleware] | None = None,
    commands_mapper: RequestsMapper | None = None,
    domain_events_mapper: EventsMapper | None = None,
    queries_mapper: RequestsMapper | None = None,
    on_startup: Startup | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    serializer: EventSerializer | None = None,
    **settings: Unpack[EventSettings],
) -> StreamingRequestMediator:
    """Return a mediator for streams; the arguments are those of :func:`bootstrap`, handlers stream their answer."""
    return _bootstrap(
        StreamingRequestMediator,
        di_container,
        message_broker,
        middlewares,
        commands_mapper,
        domain_events_mapper,
        queries_mapper,
        on_startup,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy,
        serializer,
        settings,
    )


def _bootstrap(
    mediator_type: type[MediatorT],
    di_container: Any,
    message_broker: MessageBroker | None,
    middlewares: Iterable[Middleware] | None,
    commands_mapper: RequestsMapper | None,
    domain_events_mapper: EventsMapper | None,
    queries_mapper: RequestsMapper | None,
    on_startup: Startup | None,
    max_concurrent_event_handlers: int,
    concurrent_event_handle_enable: bool | None,
    scope_strategy: ScopeStrategy,
    serializer: EventSerializer | None,
    settings: EventSettings,
) -> MediatorT:
    container = start(di_container, on_startup)
    emitter = setup_event_emitter(
        container,
        domain_events_mapper,
        message_broker,
        scope_strategy,
        serializer=serializer,
        unit_of_work=settings.get("unit_of_work"),
    )
    mediator = mediator_type(
        filled(RequestMap(), commands_mapper, queries_mapper),
        container,
        emitter,
        with_logging(middlewares),
        None,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy,
        **settings,
    )
    mediator.compile()
    return mediator


def setup_mediator(
    event_emitter: EventEmitter,
    container: Any,
    middlewares: Iterable[Middleware],
    commands_mapper: RequestsMapper | None = None,
    queries_mapper: RequestsMapper | None = None,
    event_map: EventMap | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    **settings: Unpack[EventSettings],
) -> RequestMediator:
    """Return a mediator around an emitter that was set up before; adds no middleware and checks nothing yet."""
    return RequestMediator(
        filled(RequestMap(), commands_mapper, queries_mapper),
        container,
        event_emitter,
        MiddlewareChain(middlewares),
        event_map,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy,
        **settings,
    )


def setup_streaming_mediator(
    event_emitter: EventEmitter,
    container: Any,
    middlewares: Iterable[Middleware],
    commands_mapper: RequestsMapper | None = None,
    queries_mapper: RequestsMapper | None = None,
    event_map: EventMap | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    **settings: Unpack[EventSettings],
) -> StreamingRequestMediator:
    """Return a mediator for streams; see :func:`setup_mediator`."""
    return StreamingRequestMediator(
        filled(RequestMap(), commands_mapper, queries_mapper),
        container,
        event_emitter,
        MiddlewareChain(middlewares),
        event_map,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy,
        **settings,
    )


__all__ = ("bootstrap", "bootstrap_streaming", "setup_event_emitter", "setup_mediator", "setup_streaming_mediator")
