"""Events, their handlers, and what carries the one to the other."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "DCDomainEvent": "cqrs_sync.events.event",
        "DCEvent": "cqrs_sync.events.event",
        "DCNotificationEvent": "cqrs_sync.events.event",
        "DomainEvent": "cqrs_sync.events.event",
        "Event": "cqrs_sync.events.event",
        "EventEmitter": "cqrs_sync.events.event_emitter",
        "EventHandler": "cqrs_sync.events.event_handler",
        "EventHandlerFallback": "cqrs_sync.events.fallback",
        "EventMap": "cqrs_sync.events.map",
        "EventProcessor": "cqrs_sync.events.event_processor",
        "IDomainEvent": "cqrs_sync.events.event",
        "IEvent": "cqrs_sync.events.event",
        "INotificationEvent": "cqrs_sync.events.event",
        "NotificationEvent": "cqrs_sync.events.event",
        "PydanticDomainEvent": "cqrs_sync.events.event",
        "PydanticEvent": "cqrs_sync.events.event",
        "PydanticNotificationEvent": "cqrs_sync.events.event",
    },
)
