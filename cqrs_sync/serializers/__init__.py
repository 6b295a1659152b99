"""Events to bytes and back."""

from cqrs_sync.serializers.default import default_serializer
from cqrs_sync.serializers.exceptions import EventNotReadable, EventNotSerializable, SerializationError
from cqrs_sync.serializers.json import JsonEventSerializer
from cqrs_sync.serializers.protobuf import ProtobufEventSerializer
from cqrs_sync.serializers.protocol import EventCodec, EventSerializer

__all__ = (
    "EventCodec",
    "EventNotReadable",
    "EventNotSerializable",
    "EventSerializer",
    "JsonEventSerializer",
    "ProtobufEventSerializer",
    "SerializationError",
    "default_serializer",
)
