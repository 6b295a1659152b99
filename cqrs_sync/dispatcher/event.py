"""Dispatches events that came from outside to their handlers."""

from __future__ import annotations

from typing import Any

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.events.event import IEvent
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.events.map import EventMap
from cqrs_sync.middlewares.base import MiddlewareChain, compose


class EventDispatcher:
    """Calls the handlers bound for an event, then works through their follow-ups, with the middlewares around it all.

    Thread-safe.

    Args:
        event_map: the bindings.
        container: what builds the handlers.
        middleware_chain: what runs around each call.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        event_processor: runs the handlers; made from the other arguments where it is not given.
    """

    def __init__(
        self,
        event_map: EventMap,
        container: Any,
        middleware_chain: MiddlewareChain | None = None,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        event_processor: EventProcessor | None = None,
    ) -> None:
        if event_processor is None:
            emitter = EventEmitter(event_map, container, scope_strategy=scope_strategy)
            event_processor = EventProcessor(event_emitter=emitter, event_errors="raise")
        self._processor = event_processor
        self._chain = compose((middleware_chain or MiddlewareChain()).compile())

    def dispatch(self, event: IEvent) -> None:
        """Handle an event.

        Raises:
            EventHandlerDoesNotExist: nobody handles it, and it is not a domain event.
            EventHandlingError: handlers failed; the others have run.
        """
        if self._chain is None:
            self._processor.receive(event)
        else:
            self._chain(event, self._processor.receive)
