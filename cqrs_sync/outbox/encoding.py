"""Between events and the rows of an outbox: bytes, compression, headers, partitions."""

from __future__ import annotations

import functools
import json
import uuid
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from cqrs_sync.compressors import Compressor, ZlibCompressor
from cqrs_sync.errors import ConfigurationError, EventNotStorable, type_name
from cqrs_sync.events.event import INotificationEvent
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import Claim, OutboxedEvent
from cqrs_sync.serializers.json import JsonEventSerializer
from cqrs_sync.serializers.protocol import EventCodec
from cqrs_sync.tracing import with_trace_context

PARTITIONS = 32
"""Into how many partitions keys are spread: as many relays can be at work at once."""

TOPIC_LENGTH = 249
"""Kafka's limit for the name of a topic."""

NAME_LENGTH = 255
"""The limit for event names, partition keys and content types."""

_LIMITS = {"event_name": NAME_LENGTH, "topic": TOPIC_LENGTH, "partition_key": NAME_LENGTH}


class StoredRow(NamedTuple):
    """What is read of a row: a plain tuple, because a driver's row takes 0.3 µs for each attribute."""

    id: int
    event_id: Any
    event_name: str
    topic: str
    partition_key: str | None
    payload: bytes
    content_type: str | None
    compression: str | None
    headers: str | None
    attempts: int
    last_error: str | None


class EventEncoder:
    """Makes rows out of events and events out of rows. Thread-safe.

    Args:
        event_map: which events may go in; the process-wide map by default.
        serializer: the codec of events that have none of their own; JSON by default.
        compressor: shrinks payloads in the table; the broker gets them as they were. Its name is stored with each row,
            so that it may be changed at any time; zlib can always be read.
    """

    def __init__(
        self,
        event_map: OutboxedEventMap | None = None,
        serializer: EventCodec | None = None,
        compressor: Compressor | None = None,
    ) -> None:
        self._map = event_map if event_map is not None else OutboxedEventMap.shared()
        self._codec: Any = serializer if serializer is not None else JsonEventSerializer()
        self._decode = functools.partial(self._map.decode, self._codec)
        self._compressor = compressor
        self._compression = compression_name(compressor) if compressor is not None else None
        self._decompressors: dict[str, Compressor] = {"zlib": ZlibCompressor()}
        if compressor is not None and self._compression is not None:
            self._decompressors[self._compression] = compressor

    def encode(self, event: INotificationEvent[Any]) -> dict[str, Any]:
        """Return the columns of an event; see :meth:`OutboxedEventRepository.add` for what it raises."""
        self._map.check(event)
        _check_storable(event)
        codec: Any = self._map.get_serializer(event.event_name) or self._codec
        payload = codec.serialize(event)
        headers = with_trace_context(event.headers)
        return {
            "event_id": event.event_id,
            "event_name": event.event_name,
            "topic": event.topic,
            "partition_key": event.partition_key,
            "partition": partition_of(event.partition_key, event.event_id),
            "payload": payload if self._compressor is None else self._compressor.compress(payload),
            "content_type": codec.content_type_for(event),
            "compression": self._compression,
            "headers": json.dumps(headers) if headers else None,
        }

    def decode(self, row: Any, claim: Claim | None = None, **more: Any) -> OutboxedEvent:
        """Return a row as an event; what is wrong with it, if anything, is its ``defect``.

        Args:
            row: a :class:`StoredRow`, or any object with its attributes.
            claim: what it was claimed with.
            more: further arguments of :class:`OutboxedEvent`.
        """
        payload, event_id, defect = b"", None, None
        headers: Mapping[str, str] = {}
        try:
            raw = row.event_id
            event_id = raw if isinstance(raw, uuid.UUID) else uuid.UUID(raw)
            headers = _headers(row.headers)
            payload = self._decompressed(row.compression, bytes(row.payload))
        except Exception as error:
            defect = f"the row cannot be read: {type(error).__name__}: {error}"
        return OutboxedEvent(
            id=row.id,
            event_id=event_id if event_id is not None else uuid.UUID(int=0),
            event_name=row.event_name,
            topic=row.topic,
            partition_key=row.partition_key,
            payload=payload,
            content_type=row.content_type,
            headers=headers,
            attempts=row.attempts,
            last_error=row.last_error,
            defect=defect,
            claim=claim,
            decode=self._decode,
            **more,
        )

    def _decompressed(self, compression: str | None, payload: bytes) -> bytes:
        if compression is None:
            return payload
        if compression not in self._decompressors:
            known = ", ".join(self._decompressors)
            raise ValueError(
                f"its payload is compressed with {compression!r}, and this process knows {known}: give the repository "
                "that compressor"
            )
        return self._decompressors[compression].decompress(payload)


def partition_of(key: str | None, event_id: uuid.UUID) -> int:
    """Return the partition of an event: that of its key, so that a key's events stay together."""
    return zlib.crc32(event_id.bytes if key is None else key.encode()) % PARTITIONS


def compression_name(compressor: Compressor) -> str:
    """Return what rows note about their compression: the compressor's ``name``, else its class."""
    name: str = getattr(compressor, "name", None) or type_name(type(compressor))
    if len(name) > 16:
        raise ConfigurationError(f"the compressor's name {name!r} is longer than 16 characters: give it a shorter one")
    return name


def _check_storable(event: INotificationEvent[Any]) -> None:
    for field, limit in _LIMITS.items():
        value = getattr(event, field)
        if value is not None and len(value) > limit:
            raise EventNotStorable(type(event), field, f"has {len(value)} characters, and {limit} is the limit")
        if value is not None and not _is_storable(value):
            raise EventNotStorable(type(event), field, "holds a NUL or half a surrogate pair, which databases refuse")
    if not event.topic:
        raise EventNotStorable(type(event), "topic", "is empty, and the broker needs one")
    for header in event.headers.items():
        if not all(isinstance(part, str) for part in header):
            raise EventNotStorable(type(event), f"headers[{header[0]!r}]", "is not a text")


def _is_storable(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _headers(stored: str | None) -> Mapping[str, str]:
    if stored is None:
        return {}
    headers = json.loads(stored)
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("its headers are not a JSON object of texts")
    return headers
