"""Events, their handlers, and what carries the one to the other."""

from cqrs_sync.events.event import (
    DCDomainEvent,
    DCEvent,
    DCNotificationEvent,
    DomainEvent,
    Event,
    IDomainEvent,
    IEvent,
    INotificationEvent,
    NotificationEvent,
    PydanticDomainEvent,
    PydanticEvent,
    PydanticNotificationEvent,
)
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.events.map import EventMap

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
