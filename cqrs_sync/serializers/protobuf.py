"""Events as protobuf messages, without importing protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cqrs_sync.serializers.exceptions import EventNotReadable, EventNotSerializable, explain

if TYPE_CHECKING:
    from cqrs_sync.events.event import INotificationEvent


class ProtobufEventSerializer:
    """Writes what ``event.proto()`` returns and reads it through ``event_type.from_proto()``.

    ``proto_types`` names the generated message class of each event class, by exact type. All that is asked of a
    message class is ``SerializeToString()`` and ``FromString()``.
    """

    content_type = "application/x-protobuf"

    def __init__(self, proto_types: Mapping[type[INotificationEvent[Any]], Any]) -> None:
        self._proto_types = dict(proto_types)

    def serialize(self, event: INotificationEvent[Any]) -> bytes:
        """Return the message's bytes; raises :class:`EventNotSerializable` without a message class or ``proto()``."""
        event_type = type(event)
        if event_type not in self._proto_types:
            raise EventNotSerializable(event_type, "it has no entry in proto_types")
        try:
            message = _method(event, "proto")()
        except NotImplementedError as error:
            raise EventNotSerializable(event_type, "it does not implement proto()") from error
        return bytes(message.SerializeToString())

    def content_type_for(self, event: INotificationEvent[Any]) -> str:  # noqa: ARG002 (the port)
        """Return ``application/x-protobuf`` for every event."""
        return self.content_type

    def deserialize(self, payload: bytes, event_type: type[INotificationEvent[Any]]) -> INotificationEvent[Any]:
        """Return the event; raises :class:`EventNotReadable` for other bytes and for classes without an entry."""
        if event_type not in self._proto_types:
            raise EventNotReadable(event_type, "it has no entry in proto_types")
        try:
            event: INotificationEvent[Any] = _method(event_type, "from_proto")(
                self._proto_types[event_type].FromString(payload)
            )
        except Exception as error:
            raise EventNotReadable(event_type, explain(error)) from error
        return event


def _method(owner: Any, name: str) -> Any:
    """A method that the event class has to bring, or one that says so."""

    def missing(*_: Any) -> Any:
        raise NotImplementedError(f"{name}() is missing")

    return getattr(owner, name, missing)
