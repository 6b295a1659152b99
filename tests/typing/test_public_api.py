"""What ``send`` and ``stream`` return for type checkers, and which bindings they refuse."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from typing import Any, assert_type

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import EventHandlerTypeError, RequestHandlerTypeError
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming


class User(cqrs.Response):
    name: str


@dataclasses.dataclass
class Piece(cqrs.DCResponse):
    number: int


# --- requests of each kind, each with a handler that names the request alone ---------------------------------


class GetUser(cqrs.Request[User]):
    name: str


class GetUserHandler(cqrs.RequestHandler[GetUser]):
    def handle(self, request: GetUser) -> User:
        return User(name=request.name)


@dataclasses.dataclass
class FindUser(cqrs.DCRequest[User]):
    name: str


class FindUserHandler(cqrs.RequestHandler[FindUser, User]):
    def handle(self, request: FindUser) -> User:
        return User(name=request.name)


class OwnGetUser(cqrs.IRequest[User]):
    def __init__(self, name: str) -> None:
        self.name = name

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_dict(cls, **kwargs: Any) -> OwnGetUser:
        return cls(**kwargs)


class OwnGetUserHandler(cqrs.RequestHandler[OwnGetUser]):
    def handle(self, request: OwnGetUser) -> User:
        return User(name=request.name)


class ListUsers(cqrs.Request[list[User]]):
    pass


class ListUsersHandler(cqrs.RequestHandler[ListUsers, list[User]]):
    def handle(self, request: ListUsers) -> list[User]:
        return [User(name="Ada")]


class MaybeUser(cqrs.Request[User | None]):
    pass


class MaybeUserHandler(cqrs.RequestHandler[MaybeUser]):
    def handle(self, request: MaybeUser) -> User | None:
        return None


class DropUser(cqrs.Request[None]):
    pass


class DropUserHandler(cqrs.RequestHandler[DropUser]):
    def handle(self, request: DropUser) -> None:
        return None


class Ping(cqrs.Request):
    pass


class PingHandler(cqrs.RequestHandler[Ping, str]):
    def handle(self, request: Ping) -> str:
        return "pong"


class GetPieces(cqrs.Request[Piece]):
    count: int


class GetPiecesHandler(cqrs.StreamingRequestHandler[GetPieces]):
    def handle(self, request: GetPieces) -> Iterator[Piece]:
        yield from map(Piece, range(request.count))


# --- a chain, a fallback and an event ------------------------------------------------------------------------


class Pay(cqrs.Request[str]):
    method: str


class PayByCard(cqrs.CORRequestHandler[Pay, str]):
    def handle(self, request: Pay) -> str | None:
        if request.method == "card":
            return "card"
        answer = self.next(request)
        assert_type(answer, str | None)
        return answer


class Refuse(cqrs.CORRequestHandler[Pay]):
    def handle(self, request: Pay) -> str | None:
        return "refused"


class SpareHandler(GetUserHandler):
    pass


class Joined(cqrs.DomainEvent):
    name: str


@dataclasses.dataclass(frozen=True)
class Left(cqrs.DCDomainEvent):
    name: str


class OnJoined(cqrs.EventHandler[Joined]):
    def handle(self, event: Joined) -> None:
        return None


class OnAnyEvent(cqrs.EventHandler[cqrs.IEvent]):
    """An audit log: may be bound to every event."""

    def handle(self, event: cqrs.IEvent) -> None:
        return None


def requests_mapper(m: cqrs.RequestMap) -> None:
    m.bind(GetUser, cqrs.RequestHandlerFallback(GetUserHandler, SpareHandler))
    m.bind(FindUser, FindUserHandler)
    m.bind(OwnGetUser, OwnGetUserHandler)
    m.bind(ListUsers, ListUsersHandler)
    m.bind(MaybeUser, MaybeUserHandler)
    m.bind(DropUser, DropUserHandler)
    m.bind(Ping, PingHandler)
    m.bind(Pay, [PayByCard, Refuse])


def events_mapper(m: cqrs.EventMap) -> None:
    m.bind(Joined, OnJoined)
    m.bind(Joined, OnAnyEvent)
    m.bind(Left, OnAnyEvent)


def test_send_returns_what_the_request_names() -> None:
    """Whatever kind of class the request is, and whether or not its handler names the result too."""
    mediator = bootstrap(punq.Container(), commands_mapper=requests_mapper)
    assert_type(mediator, cqrs.RequestMediator)
    assert_type(mediator.send(GetUser(name="Ada")), User)
    assert_type(mediator.send(FindUser(name="Ada")), User)
    assert_type(mediator.send(OwnGetUser(name="Ada")), User)
    assert_type(mediator.send(ListUsers()), list[User])
    assert_type(mediator.send(MaybeUser()), User | None)
    assert_type(mediator.send(Pay(method="cash")), str)
    assert_type(mediator.send(DropUser()), None)


def test_request_that_names_no_result_is_answered_with_any() -> None:
    """``class Ping(cqrs.Request)`` needs no parameter, under strict settings either."""
    mediator = bootstrap(punq.Container(), commands_mapper=requests_mapper)
    assert_type(mediator.send(Ping()), Any)


def test_stream_is_a_generator_of_what_the_request_names() -> None:
    """A generator, so that it can be closed."""
    with bootstrap_streaming(
        punq.Container(), queries_mapper=lambda m: m.bind(GetPieces, GetPiecesHandler)
    ) as mediator:
        assert_type(mediator, cqrs.StreamingRequestMediator)
        pieces = mediator.stream(GetPieces(count=2))
        assert_type(pieces, Generator[Piece, None, None])
        assert [piece.number for piece in pieces] == [0, 1]


def test_event_mediator_takes_events_of_each_kind() -> None:
    """Pydantic models and dataclasses alike."""
    with bootstrap_events(punq.Container(), events_mapper=events_mapper) as mediator:
        assert_type(mediator, cqrs.EventMediator)
        mediator.send(Joined(name="Ada"))
        mediator.send(Left(name="Ada"))


def test_settings_are_known_by_name() -> None:
    """A misspelled setting is an error for type checkers, not a surprise at run time."""
    bootstrap(punq.Container(), event_errors="raise", max_event_depth=3)
    with pytest.raises(TypeError):
        bootstrap(punq.Container(), event_error="raise")  # type: ignore[call-arg]
    with pytest.raises(ValueError):
        bootstrap(punq.Container(), event_errors="ignore")  # type: ignore[arg-type]


def test_messages_are_checked_like_their_models() -> None:
    """Constructors know their fields and ``from_dict`` its own class."""
    assert_type(GetUser.from_dict(name="Ada"), GetUser)
    assert_type(FindUser.from_dict(name="Ada"), FindUser)
    assert_type(Joined.from_dict(name="Ada"), Joined)
    assert_type(Left(name="Ada").to_dict(), dict[str, Any])
    event = cqrs.NotificationEvent[Piece](event_name="piece", payload=Piece(1))
    assert_type(event.payload, Piece)
    spare = cqrs.DCNotificationEvent(event_name="piece", payload=Piece(1))
    assert_type(spare.payload, Piece)


def test_binding_a_handler_of_another_request_is_refused() -> None:
    """By type checkers and at run time: alone, in a chain, as a stream."""
    m = cqrs.RequestMap()
    with pytest.raises(RequestHandlerTypeError):
        m.bind(GetUser, PingHandler)  # type: ignore[misc]
    with pytest.raises(RequestHandlerTypeError):
        m.bind(GetUser, [PayByCard])  # type: ignore[misc]
    with pytest.raises(RequestHandlerTypeError):
        m.bind(GetUser, GetPiecesHandler)  # type: ignore[misc]
    with pytest.raises(RequestHandlerTypeError):
        m.bind(Pay, PayByCard)  # type: ignore[arg-type]
    assert not m


def test_binding_a_handler_of_another_event_is_refused() -> None:
    """By type checkers and at run time; a handler of a base class may be bound to its subclasses."""
    m = cqrs.EventMap()
    with pytest.raises(EventHandlerTypeError):
        m.bind(Left, OnJoined)  # type: ignore[misc]
    with pytest.raises(EventHandlerTypeError):
        m.bind(Joined, PingHandler)  # type: ignore[arg-type]
    assert not m


def test_sending_what_is_no_request_is_refused() -> None:
    """An event is not for ``RequestMediator.send``."""
    mediator = bootstrap(punq.Container())
    with pytest.raises(LookupError):
        mediator.send(Joined(name="Ada"))  # type: ignore[arg-type]
