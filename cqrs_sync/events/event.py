"""Events, named in the past tense (``OrderPlaced``).

A *domain event* stays in the process: the mediator hands it to the event handlers bound for it. A *notification
event* is for other services: it carries a payload, an id and a topic, and goes to the message broker (or, with an
outbox, into the transaction).
"""

from __future__ import annotations

import abc
import dataclasses
import datetime
import inspect
import os
import typing
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Self

import pydantic
from typing_extensions import TypeVar

from cqrs_sync.generics import type_arguments
from cqrs_sync.lazy import lazy_names
from cqrs_sync.models import DataclassMessage

if TYPE_CHECKING:
    from cqrs_sync.events.pydantic_event import DomainEvent as DomainEvent
    from cqrs_sync.events.pydantic_event import Event as Event
    from cqrs_sync.events.pydantic_event import NotificationEvent as NotificationEvent
    from cqrs_sync.events.pydantic_event import PydanticDomainEvent as PydanticDomainEvent
    from cqrs_sync.events.pydantic_event import PydanticEvent as PydanticEvent
    from cqrs_sync.events.pydantic_event import PydanticNotificationEvent as PydanticNotificationEvent
else:  # the first model makes pydantic load most of itself
    __getattr__, __dir__ = lazy_names(
        __name__,
        dict.fromkeys(
            (
                "DomainEvent",
                "Event",
                "NotificationEvent",
                "PydanticDomainEvent",
                "PydanticEvent",
                "PydanticNotificationEvent",
            ),
            "cqrs_sync.events.pydantic_event",
        ),
    )

PayloadT = TypeVar("PayloadT", default=Any)

_TYPE_VARIABLES = (typing.TypeVar, TypeVar)


def default_topic() -> str:
    """The topic of notification events that name none: ``$DEFAULT_OUTPUT_TOPIC``, else ``output_topic``."""
    return os.environ.get("DEFAULT_OUTPUT_TOPIC", "output_topic")


def utc_now() -> datetime.datetime:
    """Now, timezone-aware in UTC."""
    return datetime.datetime.now(datetime.UTC)


class IEvent(abc.ABC):
    """The interface of an event; derive from it to bring a class of your own."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        """Build the event from its fields."""


class IDomainEvent(IEvent):
    """The interface of a domain event: handled in this process, by any number of handlers (or none)."""


class INotificationEvent(IEvent, Generic[PayloadT]):
    """The interface of a notification event: published to the message broker.

    Attributes:
        event_id: identifies the event; consumers recognise a redelivery by it.
        event_timestamp: when it happened, timezone-aware.
        event_name: its name on the wire, by which consumers decode it.
        topic: the broker's topic.
        payload: the content.
        partition_key: events with the same key stay in order; None means no order is needed.
        headers: text headers of the broker's message.
    """

    if TYPE_CHECKING:
        event_id: uuid.UUID
        event_timestamp: datetime.datetime
        event_name: str
        topic: str
        payload: PayloadT
        partition_key: str | None
        headers: Mapping[str, str]

    def proto(self) -> Any:
        """Return the event as a protobuf message; override it to use the protobuf serializer."""
        raise NotImplementedError(f"{type(self).__name__}.proto() must be overridden to serialize it as protobuf")

    @classmethod
    def from_proto(cls, proto: Any) -> Self:
        """Build the event from a protobuf message; override it to use the protobuf serializer."""
        raise NotImplementedError(f"{cls.__name__}.from_proto() must be overridden to read it from protobuf")


@dataclasses.dataclass(frozen=True)
class DCEvent(DataclassMessage, IEvent):
    """An event as a frozen dataclass; decorate your subclass with ``@dataclass(frozen=True)`` too."""


@dataclasses.dataclass(frozen=True)
class DCDomainEvent(DCEvent, IDomainEvent):
    """A domain event as a frozen dataclass."""


@dataclasses.dataclass(frozen=True)
class DCNotificationEvent(DCEvent, INotificationEvent[PayloadT], Generic[PayloadT]):
    """A notification event as a frozen dataclass."""

    event_name: str
    payload: PayloadT
    event_id: uuid.UUID = dataclasses.field(default_factory=uuid.uuid4)
    event_timestamp: pydantic.AwareDatetime = dataclasses.field(default_factory=utc_now)
    topic: str = dataclasses.field(default_factory=default_topic)
    partition_key: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.event_id)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # The decorator of a derived class would hash all fields, and reads annotations without their type arguments.
        cls.__hash__ = DCNotificationEvent.__hash__  # type: ignore[method-assign]
        own = inspect.get_annotations(cls)
        payload = type_arguments(cls, DCNotificationEvent)
        if payload and "payload" not in own and not isinstance(payload[0], _TYPE_VARIABLES):
            cls.__annotations__ = {**own, "payload": payload[0]}


__all__ = (
    "DCDomainEvent",
    "DCEvent",
    "DCNotificationEvent",
    "DomainEvent",
    "Event",
    "IDomainEvent",
    "IEvent",
    "INotificationEvent",
    "NotificationEvent",
    "PayloadT",
    "PydanticDomainEvent",
    "PydanticEvent",
    "PydanticNotificationEvent",
    "default_topic",
)
