"""Which notification events may go into the outbox: their names on the wire and their types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, get_args, get_origin

from cqrs_sync.checks import require_instance
from cqrs_sync.errors import ConfigurationError, DuplicateEventName, EventNotRegistered, type_name
from cqrs_sync.events.event import INotificationEvent
from cqrs_sync.serializers.protocol import EventCodec, EventSerializer

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _OnClassToo(Generic[_P, _R]):
    """A method that on the class itself works on the map that the whole process shares."""

    def __init__(self, function: Callable[Concatenate[OutboxedEventMap, _P], _R]) -> None:
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    def __get__(self, instance: OutboxedEventMap | None, owner: type[OutboxedEventMap]) -> Callable[_P, _R]:
        return functools.partial(self._function, instance if instance is not None else owner.shared())


class Registration(NamedTuple):
    """What is known of one event name.

    Attributes:
        event_type: the class (or parameterised class) of the events.
        serializer: the codec of this event alone; None for that of the outbox.
    """

    event_type: Any
    serializer: EventSerializer | None


class OutboxedEventMap:
    """Maps event names to event types. Filled at start-up; reading is thread-safe.

    Called on the class, its methods work on one map that the whole process shares, and which repositories use
    unless they are given another; ``OutboxedEventMap()`` is a map of its own.

    >>> from cqrs_sync.events.event import NotificationEvent
    >>> events = OutboxedEventMap()
    >>> events.register("user_joined", NotificationEvent[dict[str, str]])
    >>> events.get("user_joined") is NotificationEvent[dict[str, str]]
    True
    """

    _shared: OutboxedEventMap | None = None

    def __init__(self) -> None:
        self._registered: dict[str, Registration] = {}

    @classmethod
    def shared(cls) -> OutboxedEventMap:
        """Return the map of the whole process."""
        if OutboxedEventMap._shared is None:
            OutboxedEventMap._shared = OutboxedEventMap()
        return OutboxedEventMap._shared

    @_OnClassToo
    def register(self, event_name: str, event_type: Any, serializer: EventSerializer | None = None) -> None:
        """Let events of this name and type into the outbox; doing it again, just the same, is harmless.

        Args:
            event_name: the name on the wire, as in ``event.event_name``.
            event_type: a class of notification events, most often ``NotificationEvent[Payload]``.
            serializer: a codec for this event alone; that of the repository, JSON by default, where it is None.

        Raises:
            DuplicateEventName: the name is taken, by another type or with another serializer.
            ConfigurationError: it is no name, or no class of notification events.
        """
        require_instance(event_name, str, "event_name", "pass the event's name on the wire")
        if not event_name:
            raise ConfigurationError("an event's name on the wire cannot be empty")
        bare = get_origin(event_type) or event_type
        if not (isinstance(bare, type) and issubclass(bare, INotificationEvent)):
            raise ConfigurationError(
                f"{type_name(event_type)} cannot be registered as {event_name!r}: only notification events go into "
                "the outbox, NotificationEvent[YourPayload] for example"
            )
        wanted = Registration(event_type, serializer)
        found = self._registered.setdefault(event_name, wanted)
        if found != wanted:
            raise DuplicateEventName(event_name, found.event_type, event_type)

    @_OnClassToo
    def get(self, event_name: str) -> Any:
        """Return the type that is registered under a name, or None."""
        found = self._registered.get(event_name)
        return found.event_type if found else None

    @_OnClassToo
    def get_serializer(self, event_name: str) -> EventSerializer | None:
        """Return the codec that was registered for this event alone, or None."""
        found = self._registered.get(event_name)
        return found.serializer if found else None

    @_OnClassToo
    def as_serializer(self, default: EventCodec) -> EventCodec:
        """Return a codec that uses the one registered for each event's name, else ``default``."""
        return _ByName(self, default)

    @_OnClassToo
    def check(self, event: INotificationEvent[Any]) -> None:
        """Refuse an event that is not registered, or whose type is not the one that is.

        A subclass passes, and so does ``NotificationEvent(payload=Joined())`` for ``NotificationEvent[Joined]``.

        Raises:
            EventNotRegistered: naming the event and what was expected.
        """
        if not isinstance(event, INotificationEvent):
            raise EventNotRegistered(
                f"{type_name(type(event))} cannot go into the outbox: only notification events can", type(event)
            )
        found = self._registered.get(event.event_name)
        if found is None:
            raise EventNotRegistered(
                f"no event is registered under {event.event_name!r}: call OutboxedEventMap.register("
                f"{event.event_name!r}, {type_name(type(event))}) at start-up",
                type(event),
                event.event_name,
            )
        if not _matches(event, found.event_type):
            raise EventNotRegistered(
                f"{event.event_name!r} is registered for {type_name(found.event_type)}, and this event is a "
                f"{type_name(type(event))} with a {type_name(type(event.payload))} as payload",
                type(event),
                event.event_name,
            )

    @_OnClassToo
    def decode(self, default: EventCodec, event_name: str, payload: bytes) -> INotificationEvent[Any]:
        """Return the event in these bytes.

        Raises:
            EventNotRegistered: nobody has registered the name.
            EventNotReadable: the bytes are no event of the type.
        """
        found = self._registered.get(event_name)
        if found is None:
            raise EventNotRegistered(f"no event is registered under {event_name!r}", None, event_name)
        codec: Any = found.serializer or default
        event: INotificationEvent[Any] = codec.deserialize(payload, found.event_type)
        return event

    def __iter__(self) -> Iterator[str]:
        return iter(self._registered)

    def __len__(self) -> int:
        return len(self._registered)


def _matches(event: INotificationEvent[Any], expected: Any) -> bool:
    of_pydantic = getattr(expected, "__pydantic_generic_metadata__", {})
    bare = get_origin(expected) or of_pydantic.get("origin")
    if bare is None:
        return isinstance(event, expected)
    payload, *_ = get_args(expected) or of_pydantic["args"]
    return isinstance(event, bare) and _may_be(event.payload, payload)


def _may_be(value: Any, expected: Any) -> bool:
    """Whether a value can be of a type; what ``isinstance`` cannot decide (a TypedDict, a union of lists) may be."""
    accepted = get_origin(expected) or expected
    if not isinstance(accepted, type) or accepted in (Any, UnionType):
        return True
    try:
        return isinstance(value, accepted)
    except TypeError:
        return True


class _ByName:
    """A codec that picks the codec of each event."""

    def __init__(self, events: OutboxedEventMap, default: EventCodec) -> None:
        self._events = events
        self._default = default

    def serialize(self, event: INotificationEvent[Any]) -> bytes:
        return self._of(event.event_name).serialize(event)

    def content_type_for(self, event: INotificationEvent[Any]) -> str | None:
        return self._of(event.event_name).content_type_for(event)

    def deserialize(self, payload: bytes, event_type: type[INotificationEvent[Any]]) -> INotificationEvent[Any]:
        for name in self._events:
            codec: Any = self._events.get_serializer(name)
            if codec is not None and self._events.get(name) == event_type:
                event: INotificationEvent[Any] = codec.deserialize(payload, event_type)
                return event
        return self._default.deserialize(payload, event_type)

    def _of(self, event_name: str) -> EventSerializer:
        return self._events.get_serializer(event_name) or self._default
