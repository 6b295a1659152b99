"""What users subclass to react to an event."""

from __future__ import annotations

import abc
from typing import Generic

from cqrs_sync.events.emits_events import EmitsEvents
from cqrs_sync.types import EventT


class EventHandler(EmitsEvents, abc.ABC, Generic[EventT]):
    """Reacts to an event, and to events of derived classes where it is bound to a base class.

    The mediator builds a new handler for each event, so its attributes belong to one call and one thread. What it
    leaves in ``events`` (follow-up events) is handled after all events that were there before.

    Example:
        >>> import cqrs_sync as cqrs
        >>> class UserJoined(cqrs.DomainEvent):
        ...     user_id: str
        >>> class GreetUser(EventHandler[UserJoined]):
        ...     def handle(self, event: UserJoined) -> None:
        ...         print(f"hello {event.user_id}")
    """

    @abc.abstractmethod
    def handle(self, event: EventT, /) -> None:
        """React to the event.

        In-process events are handled at most once: a process that dies takes what it had in hand with it. With
        ``max_concurrent_event_handlers`` above 1 this may run on a pool thread, beside other handlers.
        """
