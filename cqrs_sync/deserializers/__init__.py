"""Received bytes to models; failures come back as values."""

from cqrs_sync.deserializers.exceptions import DeserializeJsonError, DeserializeProtobufError
from cqrs_sync.deserializers.json import Deserializable, JsonDeserializer
from cqrs_sync.deserializers.protobuf import ProtobufDeserializer, ProtoDeserializable

__all__ = (
    "Deserializable",
    "DeserializeJsonError",
    "DeserializeProtobufError",
    "JsonDeserializer",
    "ProtoDeserializable",
    "ProtobufDeserializer",
)
