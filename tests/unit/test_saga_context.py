"""What is stored of a context is read again as it was, or refused."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import uuid
from decimal import Decimal
from typing import Annotated, Any

import punq
import pydantic
import pytest

from cqrs_sync.errors import ConfigurationError, ContextNotSerializable, SagaDefinitionChanged, SagaTypeError
from cqrs_sync.saga.models import SagaContext, checked_text, decode
from cqrs_sync.saga.recovery import recover_saga
from tests.unit.sagas import Order, Storage, mediator_of, saga, step


class Colour(enum.StrEnum):
    """An enumeration whose members are texts."""

    RED = "red"


class Level(enum.Enum):
    """An enumeration whose members are not numbers."""

    LOW = 1


class Model(pydantic.BaseModel):
    """A nested model."""

    price: float = 0.0


@dataclasses.dataclass
class Address:
    """A nested dataclass."""

    city: str = "Ulm"
    height: float = 0.0
    cached: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(eq=False)
class Identified:
    """A dataclass that is equal to itself alone."""

    number: float = 0.0


class Incomparable:
    """Raises when it is compared, as arrays do."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth is ambiguous")

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            lambda _: cls(), serialization=core_schema.plain_serializer_function_ser_schema(lambda _: 1)
        )


@dataclasses.dataclass
class Everything(SagaContext):
    """A context with fields of many kinds."""

    text: str = ""
    maybe: str | None = None
    number: float = 0.0
    maybe_number: float | None = None
    whole: int = 0
    flag: bool = False
    price: Decimal = Decimal(0)
    when: datetime.datetime | None = None
    day: datetime.date | None = None
    ident: uuid.UUID | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    numbers: list[float] = dataclasses.field(default_factory=list)
    by_name: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    pair: tuple[int, float] = (0, 0.0)
    tags: set[str] = dataclasses.field(default_factory=set)
    address: Address = dataclasses.field(default_factory=Address)
    identified: Identified = dataclasses.field(default_factory=Identified)
    model: Model = dataclasses.field(default_factory=Model)
    anything: Any = None
    strange: Incomparable | None = None


NAN = float("nan")
NOW = datetime.datetime(2030, 5, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"number": 1, "numbers": [1, 2.5], "maybe_number": -0.0},  # an int may be given for a float
        {"price": Decimal("1.10"), "when": NOW, "day": NOW.date(), "ident": uuid.uuid4(), "tags": {"a", "b"}},
        {
            "whole": True,
            "text": Colour.RED,
            "by_name": collections.defaultdict(list, a=[1.0]),
        },  # kinds of an int, a text, a dictionary
        {"address": Address("Bonn", cached="not compared"), "identified": Identified(1), "model": Model(price=2)},
        {"anything": {"a": [1, "b", None, {"c": 1.5}]}},
    ],
)
def test_what_fits_its_annotation_comes_back_equal(fields: dict[str, Any]) -> None:
    """With parts of the same types."""
    context = Everything(**fields)
    restored = decode(Everything, checked_text(context))
    context.identified = restored.identified
    assert restored == context


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("maybe", 42, "42, which is written as 42, would not be read again: Input should be a valid string"),
        ("number", NAN, "nan, which is written as None, would not be read again: Input should be a valid number"),
        ("number", float("inf"), "inf, which is written as None, would not be read again"),
        ("maybe_number", NAN, "the float would come back as a NoneType (nan as None)"),
        ("numbers", [1.0, NAN], "[1.0, nan], which is written as None, would not be read again"),
        ("number", Decimal("1.1"), "the Decimal would come back as a float (Decimal('1.1') as 1.1)"),
        ("number", Decimal("1.5"), "the Decimal would come back as a float (Decimal('1.5') as 1.5)"),
        ("number", 2**60 + 1, "the int would come back as a float"),
        ("whole", 1.0, "the float would come back as a int (1.0 as 1)"),
        ("whole", "7", "the str would come back as a int ('7' as 7)"),
        ("flag", 1, "the int would come back as a bool (1 as True)"),
        ("price", 5, "the int would come back as a Decimal (5 as Decimal('5'))"),
        ("ident", str(uuid.UUID(int=1)), "the str would come back as a UUID"),
        ("when", NOW.isoformat(), "the str would come back as a datetime"),
        ("day", NOW, "would not be read again"),
        ("colour", "red", "the str would come back as a Colour ('red' as <Colour.RED: 'red'>)"),
        ("numbers", [Decimal("1.5")], "its value would change ([Decimal('1.5')] as [1.5])"),
        ("numbers", (1.0,), "the tuple would come back as a list ((1.0,) as [1.0])"),
        ("by_name", {"a": [1.0, Decimal("1.5")]}, "its value would change"),
        ("pair", (1, Decimal("1.5")), "its value would change ((1, Decimal('1.5')) as (1, 1.5))"),
        ("address", Address(height=Decimal("1.5")), "its value would change"),  # type: ignore[arg-type]
        ("identified", Identified(Decimal("1.5")), "its value would change"),  # type: ignore[arg-type]
        ("model", Model.model_construct(price=Decimal("1.5")), "its value would change"),
        ("anything", Decimal("1.5"), "the Decimal would come back as a str (Decimal('1.5') as '1.5')"),
        ("anything", {1: 2}, "its value would change ({1: 2} as {'1': 2})"),
        ("anything", NAN, "the float would come back as a NoneType (nan as None)"),
        ("strange", Incomparable(), "its value would change"),
        ("text", "x" * 5000 + "\ud800", "surrogates not allowed"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(field: str, value: Any, says: str) -> None:
    """With the field, and with both values; a step may assign what its annotation does not allow."""
    context = Everything()
    setattr(context, field, value)
    with pytest.raises(ContextNotSerializable) as caught:
        checked_text(context)
    assert (caught.value.context_type, caught.value.field) == (Everything, field)
    assert f"Everything.{field} cannot be stored with the saga: " in str(caught.value)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_nan_that_is_kept_is_refused_too() -> None:
    """It is equal to nothing, so nobody can tell whether it has come back."""

    @pydantic.dataclasses.dataclass(config={"ser_json_inf_nan": "constants"})
    class Keeps(SagaContext):
        number: float = 0.0

    assert checked_text(Keeps(number=float("inf"))) == '{"number":Infinity}'
    with pytest.raises(ContextNotSerializable, match=r"Keeps\.number .* its value would change \(nan as nan\)"):
        checked_text(Keeps(number=NAN))


def test_a_context_that_its_own_class_refuses_is_refused() -> None:
    """Whatever that raises."""

    @dataclasses.dataclass
    class Picky(SagaContext):
        number: int = 0

        def __post_init__(self) -> None:
            if self.number > 1:
                raise self.error("too much")

    for Picky.error in (ValueError, TypeError):  # type: ignore[misc, attr-defined]
        context = Picky()
        context.number = 2
        with pytest.raises(ContextNotSerializable, match=r"would not be read again: .*too much") as caught:
            checked_text(context)
        assert caught.value.field == "(all)"


def test_a_field_that_hides_is_refused() -> None:
    """One that is not written comes back with its default."""

    @dataclasses.dataclass
    class Hides(SagaContext):
        secret: Annotated[str, pydantic.Field(exclude=True)] = ""

    assert checked_text(Hides()) == "{}"
    with pytest.raises(ContextNotSerializable, match=r"its value would change \('hush' as ''\)"):
        checked_text(Hides("hush"))


def test_decimals_keep_their_places() -> None:
    """They are written as texts."""
    with decimal.localcontext() as precision:
        precision.prec = 3
        assert decode(Everything, checked_text(Everything(price=Decimal("1.23456")))).price == Decimal("1.23456")


# --- contexts of stored sagas ------------------------------------------------------------------------------------


def left(storage: Storage) -> tuple[Any, uuid.UUID]:
    """A saga of which the first of two steps is done, and nobody goes on."""
    order_saga = saga(step("a", []), step("b", []))
    with mediator_of(order_saga, storage) as mediator:
        stream = mediator.stream(Order("o7"))
        saga_id = next(stream).saga_id
        stream.close()
    assert saga_id is not None
    return order_saga, saga_id


@pytest.mark.parametrize(
    ("build", "note"),
    [
        (None, None),
        (Order, None),
        (Order.from_dict, None),
        (lambda fields: Order(fields["order_id"], fields["numbers"], note="rebuilt"), "rebuilt"),
    ],
)
def test_a_function_may_make_the_context_of_a_saga_that_is_recovered(build: Any, note: Any) -> None:
    """Of the stored fields; what it has made is stored with the next step."""
    storage = Storage()
    order_saga, saga_id = left(storage)
    outcome = recover_saga(order_saga, saga_id, build, punq.Container(), storage)
    assert outcome.completed
    assert outcome.context == Order("o7", {"a": 0, "b": 1}, note)
    assert decode(Order, storage.load_saga_state(saga_id).context) == outcome.context


async def waits(fields: dict[str, Any]) -> Order:
    """Make a context for somebody who would await it."""
    return Order()


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda fields: fields["gone"], SagaDefinitionChanged, "<lambda> does not take the stored context: KeyError"),
        (lambda fields: Everything.from_dict(text=1), SagaDefinitionChanged, "does not fit .*<lambda>: text: Input"),
        (lambda fields: None, SagaTypeError, "OrderSaga works on Order, and was given an instance of NoneType"),
        (dict, SagaTypeError, "OrderSaga works on Order, and was given an instance of dict"),
        (SagaContext, SagaTypeError, "OrderSaga works on Order, and was given an instance of SagaContext"),
        ({}, ConfigurationError, "context_builder must be a context class or a function, not {}"),
        (waits, ConfigurationError, "context_builder waits is async"),
    ],
)
def test_what_makes_no_context_of_the_saga_is_refused(build: Any, error: Any, says: str) -> None:
    """And nothing is changed: the saga can be taken on with another one."""
    storage = Storage()
    order_saga, saga_id = left(storage)
    before = storage.load_saga_state(saga_id)
    with pytest.raises(error, match=says):
        recover_saga(order_saga, saga_id, build, punq.Container(), storage)
    assert storage.load_saga_state(saga_id) == before
    assert recover_saga(order_saga, saga_id, container=punq.Container(), storage=storage).completed
