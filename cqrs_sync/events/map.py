"""Which handlers react to which event."""

from __future__ import annotations

import inspect
from typing import Any, TypeAlias

from cqrs_sync.bindings import Bindings, check_handles, check_message_type
from cqrs_sync.errors import DuplicateHandler, EventHandlerTypeError, type_name
from cqrs_sync.events.event import IEvent
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.types import EventT

HandlerItem: TypeAlias = type[EventHandler[Any]] | EventHandlerFallback


class EventMap(Bindings[type[IEvent], list[HandlerItem]]):
    """Binds each event class to any number of handlers.

    A handler also gets events of derived classes: one bound to a base class is an audit log of the whole family.
    """

    def bind(self, event_type: type[EventT], handler_type: type[EventHandler[EventT]] | EventHandlerFallback) -> None:
        """Add a handler to those of an event class; handlers start in the order in which they were bound.

        Raises:
            DuplicateHandler: this handler is bound to the event already.
            EventHandlerTypeError: it is of a wrong kind or for another event.
        """
        if event_type not in self:
            self[event_type] = [handler_type]
            return
        if handler_type in self[event_type]:
            raise DuplicateHandler(event_type, handler_type, f"{type_name(handler_type)} is bound to it; bind it once")
        _check(event_type, handler_type)
        self[event_type].append(handler_type)

    def __setitem__(self, event_type: type[IEvent], handlers: list[HandlerItem]) -> None:
        check_message_type(event_type, IEvent, EventHandlerTypeError)
        if not isinstance(handlers, list):
            raise EventHandlerTypeError(f"{type_name(handlers)} must be in a list, or bound with bind()", handlers)
        for handler in handlers:
            _check(event_type, handler)
        super().__setitem__(event_type, list(handlers))

    def handlers_for(self, event_type: type[IEvent]) -> list[HandlerItem]:
        """The handlers of a class and its bases, the most derived class's first, each once."""
        found: dict[HandlerItem, None] = {}
        for base in event_type.__mro__:
            found.update(dict.fromkeys(self.get(base, ())))
        return list(found)


def _check(event_type: type[IEvent], handler: Any) -> None:
    if isinstance(handler, EventHandlerFallback):
        _check(event_type, handler.primary)
        return
    if not (inspect.isclass(handler) and issubclass(handler, EventHandler)):
        raise EventHandlerTypeError(
            f"{type_name(handler)} must be an EventHandler class or an EventHandlerFallback", handler
        )
    check_handles(handler, EventHandler, event_type, EventHandlerTypeError)
