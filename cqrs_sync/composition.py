"""What the composition roots share: defaults and the order in which an application is put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cqrs_sync.checks import refuse_async
from cqrs_sync.container.protocol import Container, as_container
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.map import EventMap
from cqrs_sync.message_brokers.devnull import DevnullMessageBroker
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.middlewares.base import Middleware, MiddlewareChain
from cqrs_sync.middlewares.logging import LoggingMiddleware
from cqrs_sync.serializers.protocol import EventSerializer
from cqrs_sync.unit_of_work.protocol import UnitOfWork

EventsMapper = Callable[[EventMap], None]
MapT = TypeVar("MapT")
Startup = Iterable[Callable[[], None]]


def start(di_container: Any, on_startup: Startup | None) -> Container:
    """Run the start-up functions, then wrap the container."""
    for function in on_startup or ():
        refuse_async(function, "on_startup")
        function()
    return as_container(di_container)


def filled(bindings: MapT, *mappers: Callable[[MapT], None] | None) -> MapT:
    """Return a map after each mapper that was given has bound what it binds."""
    for mapper in mappers:
        if mapper is not None:
            refuse_async(mapper, "mapper")
            mapper(bindings)
    return bindings


def with_logging(middlewares: Iterable[Middleware] | None) -> MiddlewareChain:
    """The chain of the middlewares given, with :class:`LoggingMiddleware` innermost unless one is among them."""
    given = list(middlewares or ())
    if not any(isinstance(middleware, LoggingMiddleware) for middleware in given):
        given.append(LoggingMiddleware())
    return MiddlewareChain(given)


def setup_event_emitter(
    container: Any,
    domain_events_mapper: EventsMapper | None = None,
    message_broker: MessageBroker | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    serializer: EventSerializer | None = None,
    unit_of_work: UnitOfWork | None = None,
) -> EventEmitter:
    """Return an emitter with the events bound; without a broker, notification events are dropped with a warning."""
    return EventEmitter(
        filled(EventMap(), domain_events_mapper),
        container,
        message_broker if message_broker is not None else DevnullMessageBroker(),
        scope_strategy,
        serializer=serializer,
        unit_of_work=unit_of_work,
    )
