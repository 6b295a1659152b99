"""What request handlers and event handlers have in common: they leave events behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cqrs_sync.events.event import IEvent


class EmitsEvents:
    """Has ``events``: what the handler wants handled or published once it has succeeded.

    Override it as a property, or assign a list to ``self.events``; it is read once, after ``handle``.
    """

    # Type checkers do not see it here: declared as a property it could not be assigned, as an attribute it could not
    # be overridden by a property, and both are how handlers are written. At run time a plain attribute costs no call.
    if not TYPE_CHECKING:
        events: Sequence[IEvent] = ()


def events_of(handler: Any) -> Sequence[IEvent]:
    """The events that a handler has left, in the order in which they are to be handled."""
    events: Sequence[IEvent] = handler.events
    return events


def lists_events(handler_type: type[EmitsEvents]) -> bool:
    """Whether a handler class has overridden ``events``."""
    overridden: bool = events_of(handler_type) is not events_of(EmitsEvents)
    return overridden
