"""Puts the handling of events from outside together: the composition root for :class:`EventMediator`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typing_extensions import Unpack

from cqrs_sync.composition import EventsMapper, Startup, filled, setup_event_emitter, start, with_logging
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.events.map import EventMap
from cqrs_sync.mediator import EventMediator, EventSettings
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.middlewares.base import Middleware, MiddlewareChain
from cqrs_sync.serializers.protocol import EventSerializer


def bootstrap(
    di_container: Any,
    middlewares: Iterable[Middleware] | None = None,
    events_mapper: EventsMapper | None = None,
    on_startup: Startup | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    message_broker: MessageBroker | None = None,
    max_concurrent_event_handlers: int = 1,
    serializer: EventSerializer | None = None,
    **settings: Unpack[EventSettings],
) -> EventMediator:
    """Return a mediator for events, with everything that is bound checked and ready.

    Args:
        di_container: what builds the handlers; see :func:`cqrs_sync.requests.bootstrap.bootstrap`.
        middlewares: what runs around each ``send``, the first one outermost.
        events_mapper: binds events to handlers.
        on_startup: functions that are called first.
        scope_strategy: what shares a container scope and a unit of work.
        message_broker: where notification events among the follow-ups go.
        max_concurrent_event_handlers: how many handlers run at once, over all concurrent sends.
        serializer: makes the bytes of notification events; JSON by default.
        settings: see :class:`~cqrs_sync.mediator.EventSettings`; errors of handlers are raised by default.

    Raises:
        ConfigurationError: something cannot work; the error names the class and the parameter.

    Example:
        >>> import cqrs_sync as cqrs, punq
        >>> class UserJoined(cqrs.NotificationEvent[dict[str, str]]):
        ...     event_name: str = "user_joined"
        >>> class Greet(cqrs.EventHandler[UserJoined]):
        ...     def handle(self, event: UserJoined) -> None:
        ...         print("hello", event.payload["name"])
        >>> mediator = bootstrap(punq.Container(), events_mapper=lambda m: m.bind(UserJoined, Greet))
        >>> mediator.send(UserJoined(payload={"name": "Ada"}))
        hello Ada
    """
    container = start(di_container, on_startup)
    unit_of_work = settings.get("unit_of_work")
    emitter = setup_event_emitter(
        container, events_mapper, message_broker, scope_strategy, serializer=serializer, unit_of_work=unit_of_work
    )
    mediator = EventMediator(
        emitter.event_map,
        container,
        with_logging(middlewares),
        scope_strategy,
        event_emitter=emitter,
        max_concurrent_event_handlers=max_concurrent_event_handlers,
        **settings,
    )
    mediator.compile()
    return mediator


def setup_mediator(
    container: Any,
    middlewares: Iterable[Middleware],
    events_mapper: EventsMapper | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    **settings: Unpack[EventSettings],
) -> EventMediator:
    """Return a mediator from its parts; adds no middleware and checks nothing yet."""
    event_map = filled(EventMap(), events_mapper)
    return EventMediator(event_map, container, MiddlewareChain(middlewares), scope_strategy, **settings)


__all__ = ("bootstrap", "setup_mediator")
