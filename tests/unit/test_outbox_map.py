"""Which events may go into the outbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Generic, Literal, Optional, TypeVar

import pydantic
import pytest
from typing_extensions import TypedDict

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError, CQRSError, DuplicateEventName, EventNotRegistered
from cqrs_sync.events.event import DCNotificationEvent, IEvent, NotificationEvent
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.serializers import EventNotReadable, JsonEventSerializer

T = TypeVar("T")


class Joined(pydantic.BaseModel):
    name: str


class Left(pydantic.BaseModel):
    name: str


class Named(TypedDict):
    name: str


class Generous(NotificationEvent[T], Generic[T]):
    """A generic event of one's own."""


@dataclasses.dataclass(frozen=True)
class Plain(DCNotificationEvent[Joined]):
    """A dataclass event."""


class Shouting(JsonEventSerializer):
    """A codec that can be told from the default."""

    content_type = "application/shout"

    def serialize(self, event: Any) -> bytes:
        return super().serialize(event).upper()

    def deserialize(self, payload: bytes, event_type: Any) -> Any:
        return super().deserialize(payload.lower(), event_type)


@pytest.fixture
def events() -> OutboxedEventMap:
    return OutboxedEventMap()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process-wide map that is gone after the test."""
    monkeypatch.setattr(OutboxedEventMap, "_shared", None)
    return iter(())


def test_what_is_registered_is_found(events: OutboxedEventMap) -> None:
    """By its name; what is not is None."""
    codec = Shouting()
    events.register("joined", NotificationEvent[Joined], codec)
    assert events.get("joined") is NotificationEvent[Joined]
    assert events.get_serializer("joined") is codec
    assert events.get("left") is None
    assert events.get_serializer("left") is None
    assert list(events) == ["joined"]
    assert len(events) == 1


def test_a_name_is_registered_once(events: OutboxedEventMap) -> None:
    """The error says what is there and what wanted to be."""
    events.register("joined", NotificationEvent[Joined])
    with pytest.raises(DuplicateEventName, match=r"'joined' is registered for .*Joined") as caught:
        events.register("joined", NotificationEvent[Left])
    assert isinstance(caught.value, KeyError)
    assert (caught.value.event_name, caught.value.event_type) == ("joined", NotificationEvent[Left])
    assert events.get("joined") is NotificationEvent[Joined]


@pytest.mark.parametrize("event_type", [NotificationEvent[Joined], DCNotificationEvent[Joined], Plain])
@pytest.mark.parametrize("codec", [None, Shouting()])
def test_the_same_registration_twice_is_harmless(events: OutboxedEventMap, event_type: Any, codec: Any) -> None:
    """A module may be imported again, in tests for example."""
    events.register("joined", event_type, codec)
    events.register("joined", event_type, codec)
    assert events.get("joined") is event_type
    assert events.get_serializer("joined") is codec


def test_a_second_serializer_for_a_name_is_refused(events: OutboxedEventMap) -> None:
    """Which one would it be?"""
    codec = Shouting()
    events.register("joined", NotificationEvent[Joined], codec)
    for other in (None, Shouting()):
        with pytest.raises(DuplicateEventName, match=r"registered for .*\[Joined\] .* with another serializer"):
            events.register("joined", NotificationEvent[Joined], other)
    assert events.get_serializer("joined") is codec


def test_the_error_for_a_name_that_is_taken_tells_the_modules() -> None:
    """Classes may share their names, and even their modules, where one was imported twice."""

    def made_in(module: str) -> Any:
        return NotificationEvent[type("Joined", (pydantic.BaseModel,), {"__module__": module})]

    ours, twin, theirs = made_in("shop.events"), made_in("shop.events"), made_in("__main__")
    name, base = NotificationEvent.__name__, NotificationEvent.__module__
    taken = f"event name 'joined' is registered for {name}[Joined] ({base}, shop.events)"
    assert str(DuplicateEventName("joined", ours, theirs)) == (
        f"{taken} and cannot be for {name}[Joined] ({base}, __main__) too: give each event type a name of its own"
    )
    assert str(DuplicateEventName("joined", ours, twin)) == (
        f"{taken} and cannot be for another class of that name: import its module once, under one name"
    )


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_text(events: OutboxedEventMap, name: Any) -> None:
    """Of at least one character."""
    with pytest.raises(ConfigurationError, match="name"):
        events.register(name, NotificationEvent[Joined])
    assert len(events) == 0


@pytest.mark.parametrize("event_type", [cqrs.DomainEvent, IEvent, Joined, dict[str, int], "text", None])
def test_only_notification_events_are_registered(events: OutboxedEventMap, event_type: Any) -> None:
    """Domain events never leave the process."""
    with pytest.raises(ConfigurationError, match="only notification events"):
        events.register("joined", event_type)


def test_the_class_itself_is_the_map_of_the_process(shared: None, events: OutboxedEventMap) -> None:
    """An instance is a map of its own."""
    OutboxedEventMap.register("joined", NotificationEvent[Joined])
    assert OutboxedEventMap.get("joined") is NotificationEvent[Joined]
    assert OutboxedEventMap.shared() is OutboxedEventMap.shared()
    assert list(OutboxedEventMap.shared()) == ["joined"]
    assert events.get("joined") is None
    events.register("left", NotificationEvent[Left])
    assert OutboxedEventMap.get("left") is None


def test_a_derived_map_shares_the_same_one(shared: None) -> None:
    """There is one per process, however it is reached."""

    class Ours(OutboxedEventMap):
        pass

    Ours.register("joined", NotificationEvent[Joined])
    assert OutboxedEventMap.get("joined") is NotificationEvent[Joined]


@pytest.mark.parametrize(
    ("registered", "event"),
    [
        (NotificationEvent[Joined], NotificationEvent[Joined](event_name="e", payload=Joined(name="a"))),
        (NotificationEvent[Joined], NotificationEvent(event_name="e", payload=Joined(name="a"))),
        (NotificationEvent[Any], NotificationEvent[int](event_name="e", payload=1)),
        (NotificationEvent[int | str], NotificationEvent[int](event_name="e", payload=1)),
        (NotificationEvent[Optional[int]], NotificationEvent[None](event_name="e", payload=None)),  # noqa: UP045
        (DCNotificationEvent[int | str], DCNotificationEvent(event_name="e", payload=1)),
        (NotificationEvent[Named], NotificationEvent[Named](event_name="e", payload={"name": "a"})),
        (NotificationEvent[Literal["a"]], NotificationEvent[str](event_name="e", payload="a")),
        (NotificationEvent[dict[str, int]], NotificationEvent[dict[str, int]](event_name="e", payload={"a": 1})),
        (NotificationEvent, NotificationEvent[int](event_name="e", payload=1)),
        (Generous[int], Generous[int](event_name="e", payload=1)),
        (Generous, Generous[int](event_name="e", payload=1)),
        (Plain, Plain(event_name="e", payload=Joined(name="a"))),
        (DCNotificationEvent[Joined], Plain(event_name="e", payload=Joined(name="a"))),
        (DCNotificationEvent[Joined], DCNotificationEvent(event_name="e", payload=Joined(name="a"))),
    ],
)
def test_an_event_of_the_registered_type_passes(events: OutboxedEventMap, registered: Any, event: Any) -> None:
    """Also of a subclass, and one whose parameter shows in its payload alone."""
    events.register("e", registered)
    events.check(event)


@pytest.mark.parametrize(
    ("registered", "event"),
    [
        (NotificationEvent[Joined], NotificationEvent[Left](event_name="e", payload=Left(name="a"))),
        (NotificationEvent[Joined], NotificationEvent(event_name="e", payload={"name": "a"})),
        (NotificationEvent[dict[str, int]], NotificationEvent[int](event_name="e", payload=1)),
        (Generous[int], NotificationEvent[int](event_name="e", payload=1)),
        (Plain, DCNotificationEvent(event_name="e", payload=Joined(name="a"))),
        (DCNotificationEvent[Joined], DCNotificationEvent(event_name="e", payload=Left(name="a"))),
    ],
)
def test_an_event_of_another_type_is_refused(events: OutboxedEventMap, registered: Any, event: Any) -> None:
    """A TypeError that names the event and what was expected."""
    events.register("e", registered)
    with pytest.raises(EventNotRegistered, match="'e' is registered for") as caught:
        events.check(event)
    assert isinstance(caught.value, TypeError)
    assert (caught.value.event_type, caught.value.event_name) == (type(event), "e")


def test_an_unregistered_event_is_refused_with_the_line_that_helps(events: OutboxedEventMap) -> None:
    """And nothing else is said of its content."""
    with pytest.raises(EventNotRegistered, match=r"OutboxedEventMap\.register\('joined'") as caught:
        events.check(NotificationEvent[str](event_name="joined", payload="secret"))
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, CQRSError)


def test_what_is_no_notification_event_is_refused(events: OutboxedEventMap) -> None:
    """A domain event, say."""
    event: Any = cqrs.DomainEvent()
    with pytest.raises(EventNotRegistered, match="only notification events can"):
        events.check(event)


def test_bytes_become_the_registered_type_again(events: OutboxedEventMap) -> None:
    """Through the codec of the event, else the default one."""
    events.register("joined", NotificationEvent[Joined])
    events.register("left", NotificationEvent[Left], Shouting())
    default = JsonEventSerializer()
    for name, payload in (("joined", Joined(name="a")), ("left", Left(name="a"))):
        event = NotificationEvent(event_name=name, payload=payload)
        codec: Any = events.get_serializer(name) or default
        assert events.decode(default, name, codec.serialize(event)).payload == payload


def test_bytes_of_an_unknown_name_or_type_are_refused(events: OutboxedEventMap) -> None:
    """The first by the map, the second by the codec."""
    with pytest.raises(EventNotRegistered, match="no event is registered under 'joined'"):
        events.decode(JsonEventSerializer(), "joined", b"{}")
    events.register("joined", NotificationEvent[Joined])
    with pytest.raises(EventNotReadable):
        events.decode(JsonEventSerializer(), "joined", b"{}")


def test_a_map_as_a_serializer_picks_the_codec_of_each_event(events: OutboxedEventMap) -> None:
    """So that direct publishing and the outbox make the same bytes."""
    events.register("joined", NotificationEvent[Joined], Shouting())
    events.register("left", NotificationEvent[Left])
    codec = events.as_serializer(JsonEventSerializer())
    joined = NotificationEvent[Joined](event_name="joined", payload=Joined(name="a"))
    left = NotificationEvent[Left](event_name="left", payload=Left(name="a"))
    assert codec.serialize(joined) == JsonEventSerializer().serialize(joined).upper()
    assert codec.serialize(left) == JsonEventSerializer().serialize(left)
    assert [codec.content_type_for(event) for event in (joined, left)] == ["application/shout", "application/json"]
    for event in (joined, left):
        assert codec.deserialize(codec.serialize(event), type(event)) == event
