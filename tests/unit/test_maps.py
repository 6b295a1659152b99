"""What may be bound to what, and what reading a map tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import DuplicateHandler, EventHandlerTypeError, HandlerTypeError, RequestHandlerTypeError
from cqrs_sync.generics import concrete_argument, type_arguments

T = TypeVar("T")
U = TypeVar("U")


class Place(cqrs.Request[str]):
    pass


class PlaceUrgently(Place):
    pass


class Cancel(cqrs.Request[str]):
    pass


class PlaceHandler(cqrs.RequestHandler[Place, str]):
    def handle(self, request: Place) -> str:
        return "placed"


class OtherPlaceHandler(PlaceHandler):
    pass


class CancelHandler(cqrs.RequestHandler[Cancel]):
    def handle(self, request: Cancel) -> str:
        return "cancelled"


class AnyHandler(cqrs.RequestHandler):  # type: ignore[type-arg]
    def handle(self, request: Any) -> Any:
        return "anything"


class PlaceStream(cqrs.StreamingRequestHandler[Place, str]):
    def handle(self, request: Place) -> Iterator[str]:
        yield "placed"


class FirstLink(cqrs.CORRequestHandler[Place, str]):
    def handle(self, request: Place) -> str | None:
        return self.next(request)


class SecondLink(FirstLink):
    pass


class CancelLink(cqrs.CORRequestHandler[Cancel, str]):
    def handle(self, request: Cancel) -> str | None:
        return None


class Placed(cqrs.DomainEvent):
    pass


class PlacedUrgently(Placed):
    pass


class Cancelled(cqrs.DomainEvent):
    pass


class OnPlaced(cqrs.EventHandler[Placed]):
    def handle(self, event: Placed) -> None:
        """Nothing."""


class AlsoOnPlaced(OnPlaced):
    pass


class OnUrgent(cqrs.EventHandler[PlacedUrgently]):
    def handle(self, event: PlacedUrgently) -> None:
        """Nothing."""


class OnAnything(cqrs.EventHandler[cqrs.IEvent]):
    def handle(self, event: cqrs.IEvent) -> None:
        """Nothing."""


FALLBACK = cqrs.RequestHandlerFallback(PlaceHandler, OtherPlaceHandler)
EVENT_FALLBACK = cqrs.EventHandlerFallback(OnPlaced, AlsoOnPlaced)


# --- RequestMap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "binding",
    [PlaceHandler, AnyHandler, PlaceStream, [FirstLink], [FirstLink, SecondLink], (FirstLink, SecondLink), FALLBACK],
)
def test_each_kind_of_binding_is_kept_as_it_was_given(binding: Any) -> None:
    """A handler, a streaming one, a chain of one or more as list or tuple, a fallback."""
    request_map = cqrs.RequestMap()
    request_map.bind(Place, binding)
    assert request_map[Place] is binding
    assert list(request_map) == [Place]


def test_handler_of_a_base_request_may_be_bound_to_a_derived_one() -> None:
    """What handles ``Place`` can handle ``PlaceUrgently``; each is bound for itself."""
    request_map = cqrs.RequestMap()
    request_map.bind(Place, PlaceHandler)
    assert PlaceUrgently not in request_map
    request_map.bind(PlaceUrgently, PlaceHandler)
    assert request_map[PlaceUrgently] is PlaceHandler


@pytest.mark.parametrize(
    ("first", "bound_to"),
    [
        (PlaceHandler, "PlaceHandler"),
        ([FirstLink, SecondLink], "FirstLink, SecondLink"),
        (FALLBACK, "PlaceHandler, OtherPlaceHandler"),
    ],
)
@pytest.mark.parametrize("second", [PlaceHandler, OtherPlaceHandler, [FirstLink]])
def test_second_handler_of_a_request_is_refused(first: Any, bound_to: str, second: Any) -> None:
    """The error names the request, what it is bound to, and the way to have several handlers."""
    request_map = cqrs.RequestMap()
    request_map.bind(Place, first)
    with pytest.raises(DuplicateHandler, match="a list makes a chain of responsibility") as caught:
        request_map.bind(Place, second)
    assert (caught.value.message_type, caught.value.handler_type) == (Place, second)
    assert f"Place already exists in registry: it is bound to {bound_to};" in str(caught.value)
    assert request_map[Place] is first


def refused(bind: Callable[[], object], error: type[HandlerTypeError], culprit: Any, *says: str) -> None:
    with pytest.raises(error) as caught:
        bind()
    assert caught.value.handler_type is culprit
    assert [part for part in says if part not in str(caught.value)] == []


@pytest.mark.parametrize("thing", ["PlaceHandler", object(), object, Place, OnPlaced, None, PlaceHandler()])
def test_what_is_no_request_handler_is_refused(thing: Any) -> None:
    """Also an instance where a class belongs, and the name of a class."""
    refused(lambda: cqrs.RequestMap().bind(Place, thing), RequestHandlerTypeError, thing, "must be a RequestHandler or")


def test_link_of_a_chain_alone_is_refused_with_the_list_that_was_meant() -> None:
    """The remedy can be copied."""
    bind: Any = cqrs.RequestMap().bind
    refused(lambda: bind(Place, FirstLink), RequestHandlerTypeError, FirstLink, "as a list, [FirstLink]")


@pytest.mark.parametrize("foreign", [PlaceHandler, "FirstLink", object()])
def test_foreign_class_in_a_chain_is_refused(foreign: Any) -> None:
    """The error names it, not the chain."""
    bind: Any = cqrs.RequestMap().bind
    refused(
        lambda: bind(Place, [FirstLink, foreign]), RequestHandlerTypeError, foreign, "must be type CORRequestHandler"
    )


def test_empty_chain_and_one_with_a_class_twice_are_refused() -> None:
    """Neither can answer as its author thinks."""
    empty: list[Any] = []
    twice = [FirstLink, SecondLink, FirstLink]
    refused(lambda: cqrs.RequestMap().bind(Place, empty), RequestHandlerTypeError, empty, "at least one handler")
    refused(lambda: cqrs.RequestMap().bind(Place, twice), RequestHandlerTypeError, twice, "each handler class once")


@pytest.mark.parametrize(
    ("binding", "culprit"),
    [
        (CancelHandler, CancelHandler),
        ([FirstLink, CancelLink], CancelLink),
        (cqrs.RequestHandlerFallback(CancelHandler, CancelHandler), CancelHandler),
    ],
)
def test_handler_of_another_request_is_refused(binding: Any, culprit: type) -> None:
    """Alone, in a chain and as a fallback; the error names both requests."""
    says = (f"{culprit.__name__} handles Cancel", "cannot be bound to Place")
    refused(lambda: cqrs.RequestMap().bind(Place, binding), RequestHandlerTypeError, culprit, *says)


def test_handler_of_a_derived_request_is_refused_for_the_base() -> None:
    """It may rely on what only the derived request has."""

    class UrgentHandler(cqrs.RequestHandler[PlaceUrgently, str]):
        def handle(self, request: PlaceUrgently) -> str:
            return "placed"

    bind: Any = cqrs.RequestMap().bind
    refused(lambda: bind(Place, UrgentHandler), RequestHandlerTypeError, UrgentHandler)


@dataclasses.dataclass
class DCGet(cqrs.DCRequest[T], Generic[T]):
    pass


@pytest.mark.parametrize("key", [int, Placed, "Place", DCGet[int], None])
def test_key_that_no_request_has_as_its_class_is_refused(key: Any) -> None:
    """An alias of a generic dataclass is no class; the error says what to do about it."""
    refused(
        lambda: cqrs.RequestMap().bind(key, PlaceHandler), RequestHandlerTypeError, key, "subclass of IRequest", "alias"
    )


# --- EventMap ------------------------------------------------------------------------------------------------


def test_event_has_any_number_of_handlers_in_the_order_of_binding() -> None:
    """Handlers and fallbacks alike."""
    event_map = cqrs.EventMap()
    for handler in (AlsoOnPlaced, EVENT_FALLBACK, OnPlaced, OnAnything):
        event_map.bind(Placed, handler)
    assert event_map[Placed] == [AlsoOnPlaced, EVENT_FALLBACK, OnPlaced, OnAnything]


def test_handlers_of_a_class_come_before_those_of_its_bases_and_each_once() -> None:
    """A handler that is bound to both is not run twice."""
    event_map = cqrs.EventMap()
    event_map.bind(Placed, OnPlaced)
    event_map.bind(Placed, OnAnything)
    event_map.bind(PlacedUrgently, OnUrgent)
    event_map.bind(PlacedUrgently, OnAnything)
    assert event_map.handlers_for(PlacedUrgently) == [OnUrgent, OnAnything, OnPlaced]
    assert event_map.handlers_for(Placed) == [OnPlaced, OnAnything]
    assert event_map.handlers_for(Cancelled) == []


@pytest.mark.parametrize("handler", [OnPlaced, EVENT_FALLBACK])
def test_same_handler_twice_for_an_event_is_refused(handler: Any) -> None:
    """The error names the event and the handler."""
    event_map = cqrs.EventMap()
    event_map.bind(Placed, handler)
    with pytest.raises(DuplicateHandler, match="bind it once") as caught:
        event_map.bind(Placed, handler)
    assert (caught.value.message_type, caught.value.handler_type) == (Placed, handler)
    assert event_map[Placed] == [handler]


@pytest.mark.parametrize("thing", ["OnPlaced", object(), object, PlaceHandler, FirstLink, None, OnPlaced()])
@pytest.mark.parametrize("before", [[], [OnAnything]])
def test_what_is_no_event_handler_is_refused(thing: Any, before: list[Any]) -> None:
    """As the first handler and as a further one."""
    event_map = cqrs.EventMap()
    for handler in before:
        event_map.bind(Placed, handler)
    refused(lambda: event_map.bind(Placed, thing), EventHandlerTypeError, thing, "must be an EventHandler class or")
    assert event_map.get(Placed, []) == before


@pytest.mark.parametrize("binding", [OnPlaced, EVENT_FALLBACK])
@pytest.mark.parametrize("before", [[], [OnAnything]])
def test_handler_of_another_event_is_refused(binding: Any, before: list[Any]) -> None:
    """The error names both events."""
    event_map = cqrs.EventMap()
    for handler in before:
        event_map.bind(Cancelled, handler)
    says = ("OnPlaced handles Placed", "cannot be bound to Cancelled")
    refused(lambda: event_map.bind(Cancelled, binding), EventHandlerTypeError, OnPlaced, *says)


@pytest.mark.parametrize("key", [int, Place, "Placed", cqrs.DCNotificationEvent[int], None])
def test_key_that_no_event_has_as_its_class_is_refused(key: Any) -> None:
    """An alias of a dataclass event would never be found."""
    refused(lambda: cqrs.EventMap().bind(key, OnAnything), EventHandlerTypeError, key, "subclass of IEvent", "alias")


def test_parameterised_notification_event_is_a_key_of_its_own() -> None:
    """pydantic makes a class for each parameter."""

    class OnNumber(cqrs.EventHandler[cqrs.NotificationEvent[int]]):
        def handle(self, event: cqrs.NotificationEvent[int]) -> None:
            """Nothing."""

    event_map = cqrs.EventMap()
    event_map.bind(cqrs.NotificationEvent[int], OnNumber)
    assert event_map.handlers_for(cqrs.NotificationEvent[int]) == [OnNumber]
    assert event_map.handlers_for(cqrs.NotificationEvent[str]) == []
    refused(lambda: event_map.bind(cqrs.NotificationEvent[str], OnNumber), EventHandlerTypeError, OnNumber)


# --- both are dictionaries that only grow --------------------------------------------------------------------


def request_map() -> Any:
    made = cqrs.RequestMap()
    made.bind(Place, PlaceHandler)
    return made


def event_map() -> Any:
    made = cqrs.EventMap()
    made.bind(Placed, OnPlaced)
    return made


in_both_maps = pytest.mark.parametrize("make", [request_map, event_map])


@in_both_maps
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop(next(iter(m))),
        lambda m: m.popitem(),
        lambda m: m.clear(),
        lambda m: m.update({}),
        lambda m: m.setdefault(Cancel, CancelHandler),
        lambda m: m.__delitem__(next(iter(m))),
        lambda m: m.__ior__({}),
    ],
    ids=["pop", "popitem", "clear", "update", "setdefault", "del", "|="],
)
def test_map_refuses_every_other_change(make: Callable[[], Any], change: Callable[[Any], object]) -> None:
    """What is bound stays bound."""
    made = make()
    before = dict(made)
    with pytest.raises(TypeError, match=type(made).__name__):
        change(made)
    assert dict(made) == before


@in_both_maps
def test_item_assignment_is_bound_by_the_same_rules(make: Callable[[], Any]) -> None:
    """A key once, and nothing that is no handler."""
    made = make()
    (key,) = made
    with pytest.raises(DuplicateHandler) as caught:
        made[key] = made[key]
    assert caught.value.message_type is key
    with pytest.raises(HandlerTypeError):
        type(made)()[key] = [object()]


@in_both_maps
def test_map_made_from_a_dictionary_is_bound_by_the_same_rules(make: Callable[[], Any]) -> None:
    """There is no way past the checks."""
    with pytest.raises((HandlerTypeError, TypeError)):
        type(make())({int: [object()]})


def test_list_that_was_assigned_to_an_event_stays_its_givers() -> None:
    """Changing it afterwards binds nothing."""
    handlers: list[Any] = [OnPlaced]
    made = cqrs.EventMap()
    made[Placed] = handlers
    handlers.append(object())
    assert made.handlers_for(Placed) == [OnPlaced]


def test_handler_is_assigned_to_an_event_in_a_list() -> None:
    """A bare class there is an error of the library's own."""
    refused(lambda: cqrs.EventMap().__setitem__(Placed, OnPlaced), EventHandlerTypeError, OnPlaced)  # type: ignore[arg-type]


# --- what a handler class says about itself ------------------------------------------------------------------


class Base(cqrs.RequestHandler[T, U], Generic[T, U]):  # type: ignore[type-var]
    def handle(self, request: T) -> U:  # type: ignore[override]
        raise NotImplementedError


class Swapped(Base[U, T], Generic[T, U]):
    pass


class Half(Base[Place, T], Generic[T]):
    pass


class Mixin:
    pass


class OfBase(Base[Place, str]):
    pass


class OfSwapped(Swapped[str, Place]):
    pass


class OfHalf(Mixin, Half[str]):
    pass


class BelowHalf(OfHalf):
    pass


class GenericBelow(PlaceHandler, Generic[T]):
    pass


class OfGenericBelow(GenericBelow[int]):
    pass


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (PlaceHandler, (Place, str)),
        (OtherPlaceHandler, (Place, str)),
        (CancelHandler, (Cancel,)),
        (Base, (T, U)),
        (OfBase, (Place, str)),
        (OfSwapped, (Place, str)),
        (Half, (Place, T)),
        (OfHalf, (Place, str)),
        (BelowHalf, (Place, str)),
        (GenericBelow, (Place, str)),
        (OfGenericBelow, (Place, str)),
        (AnyHandler, ()),
        (Mixin, ()),
        (object, ()),
    ],
)
def test_type_arguments_are_read_through_any_number_of_bases(cls: type, arguments: tuple[Any, ...]) -> None:
    """As many as could be read; the result need not be named."""
    assert type_arguments(cls, cqrs.RequestHandler)[: len(arguments) or None] == arguments


@pytest.mark.parametrize(
    ("cls", "position", "argument"),
    [
        (PlaceHandler, 0, Place),
        (PlaceHandler, 1, str),
        (PlaceHandler, 2, None),
        (OfHalf, 0, Place),
        (Base, 0, None),
        (AnyHandler, 0, None),
    ],
)
def test_only_a_plain_class_counts_as_named(cls: type, position: int, argument: type | None) -> None:
    """A type variable names nothing, and neither does what is not there."""
    assert concrete_argument(cls, cqrs.RequestHandler, position) is argument


def test_generic_alias_names_no_plain_class() -> None:
    """``list[str]`` is no class that an answer could be checked against."""

    class Lists(cqrs.RequestHandler[Place, list[str]]):
        def handle(self, request: Place) -> list[str]:
            return []

    assert type_arguments(Lists, cqrs.RequestHandler) == (Place, list[str])
    assert concrete_argument(Lists, cqrs.RequestHandler, 1) is None


@pytest.mark.parametrize("handler", [OfBase, OfSwapped, OfHalf, BelowHalf, OfGenericBelow])
def test_request_named_by_a_base_is_checked_too(handler: Any) -> None:
    """Deriving a handler from a generic one of the application's own loses no check."""
    cqrs.RequestMap().bind(Place, handler)
    refused(lambda: cqrs.RequestMap().bind(Cancel, handler), RequestHandlerTypeError, handler)
