"""Events, their handlers, and what carries the one to the other."""

from typing import TYPE_CHECKING

from cqrs_sync.events.event import (
    DCDomainEvent,
    DCEvent,
    DCNotificationEvent,
    IDomainEvent,
    IEvent,
    INotificationEvent,
)
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.events.map import EventMap
from cqrs_sync.lazy import lazy_names as _lazy_names

if TYPE_CHECKING:
    from cqrs_sync.events.pydantic_event import DomainEvent as DomainEvent
    from cqrs_sync.events.pydantic_event import Event as Event
    from cqrs_sync.events.pydantic_event import NotificationEvent as NotificationEvent
    from cqrs_sync.events.pydantic_event import PydanticDomainEvent as PydanticDomainEvent
    from cqrs_sync.events.pydantic_event import PydanticEvent as PydanticEvent
    from cqrs_sync.events.pydantic_event import PydanticNotificationEvent as PydanticNotificationEvent
else:  # the first model makes pydantic load most of itself
    __getattr__, __dir__ = _lazy_names(
        __name__,
        dict.fromkeys(
            (
                "DomainEvent",
                "Event",
                "NotificationEvent",
                "PydanticDomainEvent",
                "PydanticEvent",
                "PydanticNotificationEvent",
            ),
            "cqrs_sync.events.pydantic_event",
        ),
    )

__all__ = (
    "DCDomainEvent",
    "DCEvent",
    "DCNotificationEvent",
    "DomainEvent",
    "Event",
    "EventEmitter",
    "EventHandler",
    "EventHandlerFallback",
    "EventMap",
    "EventProcessor",
    "IDomainEvent",
    "IEvent",
    "INotificationEvent",
    "NotificationEvent",
    "PydanticDomainEvent",
    "PydanticEvent",
    "PydanticNotificationEvent",
)
