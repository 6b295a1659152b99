"""Models out of protobuf, without importing protobuf."""

from __future__ import annotations

import logging
from typing import Any, Generic, Protocol, Self, TypeVar

from cqrs_sync.deserializers.exceptions import DeserializeProtobufError
from cqrs_sync.errors import type_name
from cqrs_sync.serializers.exceptions import explain

logger = logging.getLogger(__name__)


class ProtoDeserializable(Protocol):
    """A class that builds itself from a protobuf message."""

    @classmethod
    def from_proto(cls, proto: Any) -> Self:
        """Return the instance that the message describes."""
        ...


_T = TypeVar("_T", bound=ProtoDeserializable)


class ProtobufDeserializer(Generic[_T]):
    """Reads bytes as a protobuf message and hands that to ``model.from_proto()``.

    ``proto_type`` is the generated message class; its ``FromString()`` is all that is used. Never raises: see
    :class:`DeserializeProtobufError`. One instance serves every thread at once.
    """

    def __init__(self, model: type[_T], proto_type: Any) -> None:
        self._model = model
        self._proto_type = proto_type

    def __call__(self, data: bytes | None) -> _T | DeserializeProtobufError | None:
        """Return the model, None for None (a tombstone), or what was wrong."""
        if data is None:
            return None
        try:
            return self._model.from_proto(self._proto_type.FromString(data))
        except Exception as error:
            failure = DeserializeProtobufError(explain(error), type(error), data)
        logger.error("Message is not a protobuf %s: %s", type_name(self._model), failure.error_message)
        logger.debug("The message was %r", data)
        return failure
