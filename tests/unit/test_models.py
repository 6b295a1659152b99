"""Requests, responses and events: pydantic models, dataclasses and classes of one's own."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from typing import Any, Generic, TypeVar

import pydantic
import pytest

import cqrs_sync as cqrs

UTC = datetime.UTC
WHEN = datetime.datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
ID = uuid.UUID("11111111-2222-4333-8444-555555555555")


class Line(pydantic.BaseModel):
    sku: str
    price: decimal.Decimal = decimal.Decimal("1.50")


class PlaceOrder(cqrs.Request[str]):
    order_id: uuid.UUID
    at: datetime.datetime
    lines: list[Line] = []


@dataclasses.dataclass
class DCLine:
    sku: str
    price: decimal.Decimal = decimal.Decimal("1.50")


@dataclasses.dataclass
class DCPlaceOrder(cqrs.DCRequest[str]):
    order_id: uuid.UUID
    at: datetime.datetime
    lines: list[DCLine] = dataclasses.field(default_factory=list)


class Receipt(cqrs.Response):
    order_id: uuid.UUID


@dataclasses.dataclass
class DCReceipt(cqrs.DCResponse):
    order_id: uuid.UUID


class OrderPlaced(cqrs.DomainEvent):
    order_id: uuid.UUID


@dataclasses.dataclass(frozen=True)
class DCOrderPlaced(cqrs.DCDomainEvent):
    order_id: uuid.UUID


class Payload(pydantic.BaseModel):
    user_id: int


@dataclasses.dataclass(frozen=True)
class DCPayload:
    user_id: int


class UserJoined(cqrs.NotificationEvent[Payload]):
    event_name: str = "user_joined"


@dataclasses.dataclass(frozen=True)
class DCUserJoined(cqrs.DCNotificationEvent[DCPayload]):
    note: str = ""


MESSAGES = [
    PlaceOrder(order_id=ID, at=WHEN, lines=[Line(sku="a")]),
    DCPlaceOrder(order_id=ID, at=WHEN, lines=[DCLine(sku="a")]),
    Receipt(order_id=ID),
    DCReceipt(order_id=ID),
    OrderPlaced(order_id=ID),
    DCOrderPlaced(order_id=ID),
    UserJoined(payload=Payload(user_id=7)),
    DCUserJoined("user_joined", DCPayload(7), note="n"),
    cqrs.NotificationEvent[Payload](event_name="n", payload=Payload(user_id=7), headers={"k": "v"}),
    cqrs.DCNotificationEvent("n", 7, partition_key="k"),
]

each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)


# --- to and from dictionaries --------------------------------------------------------------------------------


@each_message
def test_message_comes_back_from_its_dictionary(message: Any) -> None:
    """``from_dict(**to_dict())`` is an equal message of the same class."""
    back = type(message).from_dict(**message.to_dict())
    assert back == message
    assert type(back) is type(message)


@pytest.mark.parametrize("message", MESSAGES[:2], ids=["pydantic", "dataclass"])
def test_dictionary_holds_python_values_and_nested_dictionaries(message: Any) -> None:
    """Not JSON yet: ids and dates stay what they are, nested models and dataclasses become dictionaries."""
    assert message.to_dict() == {
        "order_id": ID,
        "at": WHEN,
        "lines": [{"sku": "a", "price": decimal.Decimal("1.50")}],
    }


@pytest.mark.parametrize("request_type", [PlaceOrder, DCPlaceOrder])
def test_text_becomes_what_the_fields_say(request_type: Any) -> None:
    """Ids, dates and nested messages are restored from JSON's values."""
    order = request_type.from_dict(order_id=str(ID), at="2026-11-05T12:30:00Z", lines=[{"sku": "a", "price": "2.00"}])
    assert order.order_id == ID
    assert order.at == WHEN
    assert order.lines[0].price == decimal.Decimal("2.00")
    assert isinstance(order.lines[0], Line | DCLine)


@pytest.mark.parametrize("request_type", [PlaceOrder, DCPlaceOrder])
@pytest.mark.parametrize("fields", [{}, {"order_id": "no id", "at": WHEN}])
def test_missing_and_unfit_fields_are_refused(request_type: Any, fields: dict[str, Any]) -> None:
    """Reading validates, of dataclasses too."""
    with pytest.raises(pydantic.ValidationError, match="order_id"):
        request_type.from_dict(**fields)


def test_pydantic_message_is_validated_when_built_and_a_dataclass_is_not() -> None:
    """The difference between the two kinds."""
    with pytest.raises(pydantic.ValidationError):
        Receipt(order_id="no id")
    assert DCReceipt(order_id="no id").order_id == "no id"  # type: ignore[arg-type]


def test_dictionary_of_a_dataclass_shares_nothing_with_it() -> None:
    """Whoever changes the dictionary does not change the message."""
    order = DCPlaceOrder(order_id=ID, at=WHEN, lines=[DCLine(sku="a")])
    order.to_dict()["lines"].clear()
    assert len(order.lines) == 1


def test_message_with_an_alias_comes_back_from_its_dictionary() -> None:
    """A field that goes by another name on the wire is no obstacle."""

    class GetUser(cqrs.Request[str]):
        user_id: int = pydantic.Field(alias="userId")

    request = GetUser(userId=7)
    assert GetUser.from_dict(**request.to_dict()) == request


def test_payload_comes_back_as_the_model_that_the_event_names() -> None:
    """Of a parameterised notification event and of a class derived from one."""
    for event_type in (cqrs.NotificationEvent[Payload], UserJoined):
        event = event_type.from_dict(event_name="user_joined", payload={"user_id": "7"})
        assert event.payload == Payload(user_id=7)
    event = DCUserJoined.from_dict(event_name="user_joined", payload={"user_id": "7"})
    assert event.payload == DCPayload(7)


# --- requests and responses ----------------------------------------------------------------------------------


def test_requests_can_be_changed_and_events_cannot() -> None:
    """An event tells what has happened."""
    order = PlaceOrder(order_id=ID, at=WHEN)
    order.lines = [Line(sku="b")]
    with pytest.raises(pydantic.ValidationError):
        OrderPlaced(order_id=ID).order_id = uuid.uuid4()
    with pytest.raises(dataclasses.FrozenInstanceError):
        DCOrderPlaced(order_id=ID).order_id = uuid.uuid4()  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        UserJoined(payload=Payload(user_id=7)).topic = "other"


@pytest.mark.parametrize("result", [str, list[Receipt], dict[str, int], Receipt | None, None, Any])
def test_request_may_name_any_result(result: Any) -> None:
    """Whatever type the answer has, the request is a class like any other."""

    class Asks(cqrs.Request[result]):  # type: ignore[valid-type]
        number: int

    @dataclasses.dataclass
    class DCAsks(cqrs.DCRequest[result]):  # type: ignore[valid-type]
        number: int

    assert Asks(number="1").to_dict() == DCAsks(number=1).to_dict() == {"number": 1}  # type: ignore[arg-type]
    assert issubclass(Asks, cqrs.IRequest)
    assert issubclass(DCAsks, cqrs.IRequest)


def test_request_needs_to_name_no_result() -> None:
    """``class Ping(cqrs.Request)`` is enough."""

    class Ping(cqrs.Request):
        pass

    assert Ping().to_dict() == {}


def test_request_may_be_generic_itself() -> None:
    """A family of requests with one definition."""
    item = TypeVar("item")

    class Get(cqrs.Request[list[item]], Generic[item]):  # type: ignore[valid-type]
        ids: list[item]  # type: ignore[valid-type]

    class GetNumbers(Get[int]):
        pass

    assert GetNumbers(ids=["1"]).ids == [1]  # type: ignore[list-item]
    assert issubclass(GetNumbers, cqrs.IRequest)


@pytest.mark.parametrize(
    "interface", [cqrs.IRequest, cqrs.IResponse, cqrs.IEvent, cqrs.IDomainEvent, cqrs.INotificationEvent]
)
def test_interface_needs_both_dictionary_methods(interface: type) -> None:
    """A class of one's own that lacks one cannot be instantiated."""

    class Half(interface):  # type: ignore[misc]
        def to_dict(self) -> dict[str, Any]:
            return {}

    with pytest.raises(TypeError, match="abstract"):
        Half()

    class Whole(Half):
        @classmethod
        def from_dict(cls, **kwargs: Any) -> Any:
            return cls(**kwargs)

    assert isinstance(Whole(), interface)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (cqrs.Request, cqrs.PydanticRequest),
        (cqrs.Response, cqrs.PydanticResponse),
        (cqrs.Event, cqrs.PydanticEvent),
        (cqrs.DomainEvent, cqrs.PydanticDomainEvent),
        (cqrs.NotificationEvent, cqrs.PydanticNotificationEvent),
    ],
)
def test_short_names_are_the_pydantic_classes(short: type, long: type) -> None:
    """As in the async library's 4.x."""
    assert short is long


# --- notification events -------------------------------------------------------------------------------------


def new_events() -> list[Any]:
    return [
        UserJoined(payload=Payload(user_id=7)),
        cqrs.NotificationEvent(event_name="user_joined", payload={"user_id": 7}),
        DCUserJoined("user_joined", DCPayload(7)),
        cqrs.DCNotificationEvent("user_joined", {"user_id": 7}),
    ]


EVENT_KINDS = ["pydantic", "plain pydantic", "dataclass", "plain dataclass"]
each_kind = pytest.mark.parametrize("kind", range(4), ids=EVENT_KINDS)


@each_kind
def test_event_timestamp_is_aware_and_now(kind: int) -> None:
    """UTC, never the server's local time without a zone."""
    before = datetime.datetime.now(UTC)
    event = new_events()[kind]
    assert event.event_timestamp.tzinfo is UTC
    assert before <= event.event_timestamp <= datetime.datetime.now(UTC)


@each_kind
def test_each_event_has_an_id_of_its_own(kind: int) -> None:
    """By which consumers know a redelivery."""
    first, second = new_events()[kind], new_events()[kind]
    assert isinstance(first.event_id, uuid.UUID)
    assert first.event_id != second.event_id


@each_kind
def test_event_is_hashed_by_its_id(kind: int) -> None:
    """Whatever its payload is, an event can be put into a set; a derived class's too."""
    event = new_events()[kind]
    assert hash(event) == hash(event.event_id)
    assert len({event, type(event).from_dict(**event.to_dict())}) == 1


@each_kind
def test_topic_is_the_environments_at_the_time_of_the_event(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the time of the import."""
    monkeypatch.delenv("DEFAULT_OUTPUT_TOPIC", raising=False)
    assert new_events()[kind].topic == "output_topic"
    monkeypatch.setenv("DEFAULT_OUTPUT_TOPIC", "orders")
    assert new_events()[kind].topic == "orders"


@each_kind
def test_event_has_no_key_and_no_headers_by_default(kind: int) -> None:
    """They are the user's to give, and no two events share a dictionary of headers."""
    first, second = new_events()[kind], new_events()[kind]
    assert first.partition_key is None
    assert dict(first.headers) == {}
    assert first.headers is not second.headers


@pytest.mark.parametrize("event_type", [UserJoined, DCUserJoined])
def test_timestamp_without_a_zone_is_refused_when_read(event_type: Any) -> None:
    """Nobody can say when it was."""
    with pytest.raises(pydantic.ValidationError, match="event_timestamp"):
        event_type.from_dict(event_name="n", payload={"user_id": 7}, event_timestamp="2026-11-05T12:30:00")


def test_event_needs_a_name() -> None:
    """Consumers decode by it."""
    with pytest.raises(pydantic.ValidationError, match="event_name"):
        cqrs.NotificationEvent(payload=1)
    with pytest.raises(TypeError, match="event_name"):
        cqrs.DCNotificationEvent(payload=1)  # type: ignore[call-arg]


@each_kind
def test_protobuf_has_to_be_brought_along(kind: int) -> None:
    """The error names the class and the method."""
    event = new_events()[kind]
    with pytest.raises(NotImplementedError, match=r"\.proto\(\) must be overridden"):
        event.proto()
    with pytest.raises(NotImplementedError, match=r"\.from_proto\(\) must be overridden"):
        type(event).from_proto(b"")


def test_notification_event_is_no_domain_event() -> None:
    """The two kinds go different ways."""
    for event in new_events():
        assert isinstance(event, cqrs.INotificationEvent)
        assert not isinstance(event, cqrs.IDomainEvent)
    assert not isinstance(OrderPlaced(order_id=ID), cqrs.INotificationEvent)


def test_dataclass_event_with_a_parameter_is_an_alias_and_pydantics_is_a_class() -> None:
    """``DCNotificationEvent[P]`` makes events of the bare class; derive a class from it to bind it."""
    assert isinstance(cqrs.NotificationEvent[Payload], type)
    alias: Any = cqrs.DCNotificationEvent[DCPayload]
    assert type(alias("n", DCPayload(7))) is cqrs.DCNotificationEvent
