"""Events become bytes and come back; what cannot is refused with the event and the field."""

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
import zoneinfo
from typing import Any, Self

import pydantic
import pytest

from cqrs_sync.events.event import DCNotificationEvent, DomainEvent, NotificationEvent
from cqrs_sync.serializers import (
    EventCodec,
    EventNotReadable,
    EventNotSerializable,
    JsonEventSerializer,
    ProtobufEventSerializer,
    SerializationError,
    default_serializer,
)

UTC = datetime.UTC


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Item(pydantic.BaseModel):
    name: str
    price: decimal.Decimal


class SpecialItem(Item):
    discount: int


@dataclasses.dataclass(frozen=True)
class Address:
    city: str
    since: datetime.date


class Everything(pydantic.BaseModel):
    identifier: uuid.UUID = uuid.UUID(int=7)
    at: datetime.datetime = datetime.datetime(2024, 2, 29, 12, 30, 1, 123456, tzinfo=UTC)
    at_offset: datetime.datetime = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-5)))
    day: datetime.date = datetime.date(2024, 2, 29)
    time: datetime.time = datetime.time(23, 59, 59, 1)
    duration: datetime.timedelta = datetime.timedelta(days=1, microseconds=5)
    amount: decimal.Decimal = decimal.Decimal("1.10")
    large: int = 2**80
    ratio: float = 0.1
    infinite: float = math.inf
    item: Item = Item(name="pen", price=decimal.Decimal("0.30"))
    address: Address = Address("Oslo", datetime.date(2020, 1, 1))
    pair: tuple[int, str] = (1, "a")
    many: tuple[int, ...] = (1, 2, 3)
    tags: frozenset[str] = frozenset({"a", "b"})
    numbers: set[int] = {1, 2}
    text: bytes = b"utf-8 \xc3\xa9"
    colour: Colour = Colour.RED
    level: Level = Level.HIGH
    by_id: dict[uuid.UUID, int] = {uuid.UUID(int=1): 1}
    by_number: dict[int, str] = {1: "one"}
    nothing: str | None = None


class Happened(NotificationEvent[Everything], frozen=True):
    event_name: str = "happened"


class Loose(NotificationEvent[Any], frozen=True):
    event_name: str = "loose"


class Ordered(NotificationEvent[Item], frozen=True):
    event_name: str = "ordered"


@dataclasses.dataclass(frozen=True)
class Moved(DCNotificationEvent[Address]):
    event_name: str = "moved"
    payload: Address = Address("Oslo", datetime.date(2020, 1, 1))


def round_trip(event: Any, event_type: Any = None) -> Any:
    codec: EventCodec = JsonEventSerializer()
    return codec.deserialize(codec.serialize(event), event_type or type(event))


class TestJsonRoundTrip:
    @pytest.mark.parametrize("field", Everything.model_fields)
    def test_annotated_field_comes_back_equal_and_of_its_type(self, field: str) -> None:
        event = Happened(payload=Everything())
        before, after = getattr(event.payload, field), getattr(round_trip(event).payload, field)
        assert after == before
        assert type(after) is type(before)

    def test_envelope_comes_back(self) -> None:
        event = Happened(payload=Everything(), topic="t", partition_key="k", headers={"trace": "1"})
        assert round_trip(event) == event

    def test_dataclass_event_comes_back_with_its_payload(self) -> None:
        event = Moved()
        assert round_trip(event) == event

    def test_parameterised_pydantic_event_comes_back(self) -> None:
        event = NotificationEvent[Item](event_name="n", payload=Item(name="pen", price=decimal.Decimal("1.0")))
        assert round_trip(event) == event

    def test_parameterised_dataclass_event_comes_back_if_the_parameter_is_given(self) -> None:
        event = DCNotificationEvent("moved", Address("Oslo", datetime.date(2020, 1, 1)))
        assert round_trip(event, DCNotificationEvent[Address]) == event
        assert round_trip(event, DCNotificationEvent).payload == {"city": "Oslo", "since": "2020-01-01"}

    def test_nan_comes_back_as_nan(self) -> None:
        event = NotificationEvent[float](event_name="n", payload=math.nan)
        assert math.isnan(round_trip(event).payload)

    def test_wire_is_json_that_any_parser_reads(self) -> None:
        def refuse(word: str) -> None:
            pytest.fail(f"{word} is not JSON")

        content = json.loads(JsonEventSerializer().serialize(Happened(payload=Everything())), parse_constant=refuse)
        assert content["payload"]["amount"] == "1.10"
        assert content["event_name"] == "happened"


class TestWhatJsonDoesNotBringBack:
    """The limits that the docstring of JsonEventSerializer names."""

    @pytest.mark.parametrize(
        ("value", "received"),
        [
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (decimal.Decimal("1.10"), "1.10"),
            ((1, 2), [1, 2]),
            ({1}, [1]),
            (b"text", "text"),
            (Colour.RED, "red"),
            ({1: "one"}, {"1": "one"}),
            ({(1, 2): "pair"}, {"1,2": "pair"}),
            (datetime.date(2024, 1, 1), "2024-01-01"),
        ],
    )
    def test_value_under_any_stays_what_json_has(self, value: Any, received: Any) -> None:
        assert round_trip(Loose(payload=value)).payload == received

    def test_timezone_keeps_its_offset_and_loses_its_name(self) -> None:
        before = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Oslo"))
        after = round_trip(NotificationEvent[datetime.datetime](event_name="n", payload=before)).payload
        assert after == before
        assert not isinstance(after.tzinfo, zoneinfo.ZoneInfo)

    @pytest.mark.filterwarnings("ignore:.*serializ")
    def test_subclass_in_a_field_of_its_base_is_cut_to_the_base(self) -> None:
        event = Ordered(payload=SpecialItem(name="pen", price=decimal.Decimal(1), discount=5))
        assert round_trip(event).payload == Item(name="pen", price=decimal.Decimal(1))


class TestWhatJsonRefuses:
    @pytest.mark.parametrize(
        ("payload", "field"),
        [
            (object(), "payload"),
            ({"file": b"\xff"}, "payload.file"),
            ({"items": [1, {"price": 1.5}, {"price": object()}]}, "payload.items[2].price"),
            ([[object()]], "payload[0][0]"),
            ({"text": "\ud800"}, "payload.text"),
        ],
    )
    def test_error_names_the_event_and_the_field(self, payload: Any, field: str) -> None:
        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(
                Loose.model_construct(**Loose(payload=None).to_dict() | {"payload": payload})
            )
        assert caught.value.event_type is Loose
        assert caught.value.field == field
        assert str(caught.value).startswith(f"Loose field {field!r} cannot be serialized")

    def test_field_of_a_dataclass_in_the_payload_is_named(self) -> None:
        event = DCNotificationEvent("n", {"home": Address("Oslo", object())})  # type: ignore[arg-type]
        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(event)
        assert caught.value.field == "payload.home.since"

    def test_field_of_a_model_in_a_dataclass_event_is_named(self) -> None:
        payload = Item.model_construct(name="pen", price=object())
        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(DCNotificationEvent("n", [payload]))
        assert caught.value.field == "payload[0].price"

    def test_dictionary_of_the_users_own_is_searched_too(self) -> None:
        class Own(Loose, frozen=True):
            def to_dict(self) -> dict[str, Any]:
                return {"payload": self.payload}

        event = Own.model_construct(payload=Address("Oslo", object()))  # type: ignore[arg-type]
        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(event)
        assert caught.value.field == "payload.since"

    def test_value_that_contains_itself_is_refused(self) -> None:
        class Knotted(Loose, frozen=True):
            def to_dict(self) -> dict[str, Any]:
                knot: dict[str, Any] = {"inner": {}}
                knot["inner"]["outer"] = knot
                return {"payload": knot}

        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(Knotted(payload=None))
        assert caught.value.field == "payload.inner.outer"

    def test_key_json_cannot_express_is_blamed_on_its_mapping(self) -> None:
        with pytest.raises(EventNotSerializable) as caught:
            JsonEventSerializer().serialize(Loose(payload={"names": {b"\xff": 1}}))
        assert caught.value.field == "payload.names"

    def test_error_is_one_of_the_librarys_and_a_type_error(self) -> None:
        with pytest.raises(SerializationError) as caught:
            JsonEventSerializer().serialize(Loose(payload=object()))
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value.__cause__, ValueError)

    def test_error_without_a_culprit_names_the_event_alone(self) -> None:
        assert str(EventNotSerializable(Loose, "too large")) == "Loose cannot be serialized: too large"


class TestJsonReading:
    @pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[1]", b"null", b'"text"', b"{}", b'{"payload": 1}'])
    def test_anything_but_the_event_is_an_error_that_names_it(self, payload: bytes) -> None:
        with pytest.raises(EventNotReadable, match="Ordered") as caught:
            JsonEventSerializer().deserialize(payload, Ordered)
        assert caught.value.event_type is Ordered
        assert isinstance(caught.value, ValueError)

    def test_error_names_the_fields_and_not_the_values(self) -> None:
        with pytest.raises(EventNotReadable) as caught:
            JsonEventSerializer().deserialize(b'{"payload": {"name": "pen", "price": "s3cret"}}', Ordered)
        assert "payload.price: Input should be a valid decimal" in str(caught.value)
        assert "s3cret" not in str(caught.value)

    def test_from_dict_of_the_users_own_is_used(self) -> None:
        @dataclasses.dataclass(frozen=True)
        class Renamed(DCNotificationEvent[Any]):
            @classmethod
            def from_dict(cls, **kwargs: Any) -> Self:
                return super().from_dict(event_name=kwargs["name"], payload=None)

        assert JsonEventSerializer().deserialize(b'{"name": "old"}', Renamed).event_name == "old"

    def test_failing_from_dict_of_the_users_own_is_unreadable_too(self) -> None:
        class Picky(Loose, frozen=True):
            @classmethod
            def from_dict(cls, **kwargs: Any) -> Self:
                raise KeyError("version")

        with pytest.raises(EventNotReadable, match="KeyError: 'version'"):
            JsonEventSerializer().deserialize(b"{}", Picky)

    def test_content_type_is_announced(self) -> None:
        assert JsonEventSerializer().content_type_for(Loose(payload=1)) == "application/json"


class Message:
    """What protoc generates, as far as the serializer looks."""

    def __init__(self, text: str) -> None:
        self.text = text

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.text.encode()

    @classmethod
    def FromString(cls, data: bytes) -> "Message":  # noqa: N802
        return cls(data.decode())


class Greeted(NotificationEvent[str], frozen=True):
    event_name: str = "greeted"

    def proto(self) -> Message:
        return Message(self.payload)

    @classmethod
    def from_proto(cls, proto: Message) -> Self:
        return cls(payload=proto.text)


class TestProtobuf:
    def test_event_comes_back_through_its_message(self) -> None:
        codec: EventCodec = ProtobufEventSerializer({Greeted: Message})
        event = codec.deserialize(codec.serialize(Greeted(payload="hi")), Greeted)
        assert event.payload == "hi"
        assert codec.content_type_for(event) == "application/x-protobuf"

    def test_event_without_an_entry_is_refused(self) -> None:
        with pytest.raises(EventNotSerializable, match="no entry in proto_types"):
            ProtobufEventSerializer({}).serialize(Greeted(payload="hi"))
        with pytest.raises(EventNotReadable, match="no entry in proto_types"):
            ProtobufEventSerializer({}).deserialize(b"hi", Greeted)

    def test_event_that_does_not_override_proto_is_refused(self) -> None:
        codec = ProtobufEventSerializer({Loose: Message})
        with pytest.raises(EventNotSerializable, match=r"does not implement proto\(\)"):
            codec.serialize(Loose(payload="hi"))
        with pytest.raises(EventNotReadable, match="from_proto"):
            codec.deserialize(b"hi", Loose)

    def test_foreign_event_class_without_the_methods_is_refused(self) -> None:
        class Foreign:
            pass

        codec = ProtobufEventSerializer({Foreign: Message})  # type: ignore[dict-item]
        with pytest.raises(EventNotSerializable, match=r"does not implement proto\(\)"):
            codec.serialize(Foreign())  # type: ignore[arg-type]
        with pytest.raises(EventNotReadable, match=r"from_proto\(\) is missing"):
            codec.deserialize(b"hi", Foreign)  # type: ignore[arg-type]

    def test_other_bytes_are_not_readable(self) -> None:
        with pytest.raises(EventNotReadable, match="UnicodeDecodeError"):
            ProtobufEventSerializer({Greeted: Message}).deserialize(b"\xff", Greeted)


class TestDefaultSerializer:
    def test_object_with_to_dict_is_sent_as_that(self) -> None:
        class Placed(DomainEvent, frozen=True):
            order_id: uuid.UUID

        assert default_serializer(Placed(order_id=uuid.UUID(int=1))) == (
            b'{"order_id":"00000000-0000-0000-0000-000000000001"}'
        )

    def test_model_is_sent_as_its_dump(self) -> None:
        assert default_serializer(Item(name="pen", price=decimal.Decimal(1))) == b'{"name":"pen","price":"1"}'

    @pytest.mark.parametrize(
        ("value", "sent"), [({"a": (1,)}, b'{"a":[1]}'), ("é", '"é"'.encode()), (None, b"null"), (math.nan, b'"NaN"')]
    )
    def test_anything_else_is_sent_as_it_is(self, value: Any, sent: bytes) -> None:
        assert default_serializer(value) == sent

    def test_what_json_cannot_express_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="object"):
            default_serializer(object())
