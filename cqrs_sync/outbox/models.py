"""What an outbox holds: events with their status, and what became of an attempt to publish one."""

from __future__ import annotations

import enum
import functools
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from cqrs_sync.message_brokers.protocol import Message

if TYPE_CHECKING:
    from cqrs_sync.events.event import INotificationEvent


class EventStatus(enum.StrEnum):
    """Where a row of the outbox stands.

    ``NEW`` is what no broker has seen yet. ``NOT_PRODUCED`` was rejected at least once and waits for its next attempt.
    ``DEAD`` is a dead letter: its attempts are spent, its reason is in ``last_error``, and ``replay`` makes it new
    again.
    """

    NEW = "new"
    PRODUCED = "produced"
    NOT_PRODUCED = "not_produced"
    DEAD = "dead"


class Failure(NamedTuple):
    """An event that the broker did not take, for a reason of the event's own.

    Attributes:
        id: the row's; its attempts are counted up by one.
        reason: for people; kept with the row.
        retry_after: seconds until the next attempt; None for a dead letter.
        holds_key: whether a dead letter keeps later events of its key back until it is replayed or discarded.
    """

    id: int
    reason: str
    retry_after: float | None
    holds_key: bool = False


class Backlog(NamedTuple):
    """What is still to be done.

    Attributes:
        pending: how many events wait to be published, those that wait for their next attempt included.
        dead: how many dead letters there are.
        oldest_age: seconds since the oldest pending event was stored; None where nothing is pending.
    """

    pending: int
    dead: int
    oldest_age: float | None


class Claim:
    """What the events of one ``get_many`` have in common while they are published.

    Attributes:
        held_keys: keys of which an event has failed; the later ones stay behind it.
        outage: why the broker is not to be tried again for this claim.
        ended: whether its transaction is over, and with it the right to publish them.
    """

    __slots__ = ("ended", "held_keys", "outage")

    def __init__(self) -> None:
        self.held_keys: set[str] = set()
        self.outage: Exception | None = None
        self.ended = False


class OutboxedEvent:
    """One row of an outbox.

    Attributes:
        id: the row's number; events of a key are published in its order.
        event_id: the event's, which stays the same however often it is sent.
        event_name: its name on the wire.
        topic: the broker's topic.
        partition_key: events with the same key stay in order; None means no order is needed.
        payload: the bytes that the broker gets; empty where ``defect`` says why.
        content_type: their MIME type.
        headers: text headers.
        attempts: how often the broker has rejected it.
        status: where it stands.
        last_error: why it was rejected the last time.
        defect: why the row cannot be published at all; None for a sound one.
        claim: what it was claimed with.
    """

    __slots__ = (
        "_decode",
        "attempts",
        "claim",
        "content_type",
        "defect",
        "event_id",
        "event_name",
        "headers",
        "id",
        "last_error",
        "partition_key",
        "payload",
        "status",
        "topic",
    )

    def __init__(
        self,
        *,
        id: int,  # noqa: A002 (the column's name)
        event_id: uuid.UUID,
        event_name: str,
        topic: str,
        partition_key: str | None,
        payload: bytes,
        content_type: str | None,
        headers: Mapping[str, str],
        attempts: int = 0,
        status: EventStatus = EventStatus.NEW,
        last_error: str | None = None,
        defect: str | None = None,
        claim: Claim | None = None,
        decode: Callable[[str, bytes], INotificationEvent[Any]] | None = None,
    ) -> None:
        self.id = id
        self.event_id = event_id
        self.event_name = event_name
        self.topic = topic
        self.partition_key = partition_key
        self.payload = payload
        self.content_type = content_type
        self.headers = headers
        self.attempts = attempts
        self.status = EventStatus.NOT_PRODUCED if attempts and status is EventStatus.NEW else status
        self.last_error = last_error
        self.defect = defect
        self.claim = claim
        self._decode = decode

    @property
    def event_status(self) -> EventStatus:
        """The async library's name of ``status``."""
        return self.status

    @property
    def event(self) -> INotificationEvent[Any]:
        """The event itself, decoded anew at each use; publishing does not need it.

        Raises:
            EventNotRegistered: its name is not in the map of this process.
            EventNotReadable: the bytes are not an event of the registered type.
        """
        assert self._decode is not None  # repositories always give one
        return self._decode(self.event_name, self.payload)

    def to_message(self) -> Message:
        """Return it as the broker gets it: the stored bytes, untouched."""
        return _StoredMessage(self)

    def __repr__(self) -> str:
        return f"OutboxedEvent(id={self.id}, event_name={self.event_name!r}, topic={self.topic!r}, {self.status})"


class _StoredMessage(Message):
    """A message whose bytes are at hand and whose dictionary is made only for brokers that keep objects."""

    def __init__(self, row: OutboxedEvent) -> None:
        vars(self).update(
            message_name=row.event_name,
            topic=row.topic,
            message_id=row.event_id,
            payload_bytes=row.payload,
            content_type=row.content_type,
            headers=row.headers,
            key=row.partition_key,
        )

    @functools.cached_property
    def payload(self) -> Any:
        """The JSON object in the bytes; None for other content types."""
        is_json = self.content_type is None or self.content_type.split(";")[0].endswith("json")
        return from_json(self.payload_bytes or b"null") if is_json else None
