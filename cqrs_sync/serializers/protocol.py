"""The ports between notification events and the bytes a broker or a table takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cqrs_sync.events.event import INotificationEvent


class EventSerializer(Protocol):
    """Turns notification events into bytes; enough for whoever only publishes.

    One instance serves every thread at once.
    """

    def serialize(self, event: INotificationEvent[Any]) -> bytes:
        """Return the event's bytes; raises :class:`~cqrs_sync.serializers.EventNotSerializable` if it has none."""
        ...

    def content_type_for(self, event: INotificationEvent[Any]) -> str | None:
        """Return the MIME type of these bytes, or None if nothing should be announced."""
        ...


class EventCodec(EventSerializer, Protocol):
    """Turns bytes back into events as well; what an outbox needs."""

    def deserialize(self, payload: bytes, event_type: type[INotificationEvent[Any]]) -> INotificationEvent[Any]:
        """Return the event; raises :class:`~cqrs_sync.serializers.EventNotReadable` if the bytes hold another thing."""
        ...
