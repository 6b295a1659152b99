"""Events as pydantic models; :mod:`cqrs_sync.events.event` offers them and loads this module on first use."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Generic

import pydantic

from cqrs_sync.events.event import IDomainEvent, IEvent, INotificationEvent, PayloadT, default_topic, utc_now
from cqrs_sync.models import PydanticMessage


class PydanticEvent(PydanticMessage, pydantic.BaseModel, IEvent):
    """An event as an immutable pydantic model; the default, also called ``Event``.

    An event that derives from this class alone needs a handler: where none is bound, emitting it is an error.
    """

    # Not frozen=True in the class line: type checkers would ask for it in every derived event.
    model_config = pydantic.ConfigDict(frozen=True)


class PydanticDomainEvent(PydanticEvent, IDomainEvent):
    """A domain event as an immutable pydantic model; the default, also called ``DomainEvent``.

    >>> class OrderPlaced(PydanticDomainEvent):
    ...     order_id: str
    >>> OrderPlaced(order_id="o1")
    OrderPlaced(order_id='o1')
    """


class PydanticNotificationEvent(PydanticEvent, INotificationEvent[PayloadT], Generic[PayloadT]):
    """A notification event as an immutable pydantic model; the default, also called ``NotificationEvent``.

    >>> event = PydanticNotificationEvent[dict[str, int]](event_name="user_joined", payload={"user": 1})
    >>> event.topic, event.event_timestamp.tzinfo
    ('output_topic', datetime.timezone.utc)
    """

    model_config = pydantic.ConfigDict(from_attributes=True)

    payload: PayloadT
    event_name: str
    event_id: uuid.UUID = pydantic.Field(default_factory=uuid.uuid4)
    event_timestamp: pydantic.AwareDatetime = pydantic.Field(default_factory=utc_now)
    topic: str = pydantic.Field(default_factory=default_topic)
    partition_key: str | None = None
    headers: Mapping[str, str] = pydantic.Field(default_factory=dict)

    # pydantic would hash all fields, and a payload need not be hashable.
    def __hash__(self) -> int:
        return hash(self.event_id)


Event = PydanticEvent
DomainEvent = PydanticDomainEvent
NotificationEvent = PydanticNotificationEvent

__all__ = (
    "DomainEvent",
    "Event",
    "NotificationEvent",
    "PydanticDomainEvent",
    "PydanticEvent",
    "PydanticNotificationEvent",
)
