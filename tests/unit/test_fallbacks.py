"""A second handler for when the first fails: of a request, a stream and an event."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.dispatcher import RequestDispatcher, StreamingRequestDispatcher
from cqrs_sync.errors import EventHandlerTypeError, EventHandlingError, HandlerTypeError, RequestHandlerTypeError
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork

T = TypeVar("T")


class Charge(cqrs.Request[str]):
    """A request that a service answers, or its stand-in."""


class Refund(cqrs.Request[str]):
    """Another request."""


class Noted(cqrs.DomainEvent):
    by: str


class Charged(cqrs.DomainEvent):
    """An event with a primary handler and a fallback."""


class Lost(ConnectionError):
    """What the primary is expected to fail with."""


class Primary(cqrs.RequestHandler[Charge, str]):
    """Emits an event, then fails as the test wants."""

    error: Exception | None = None

    def handle(self, request: Charge) -> str:
        self.events = [Noted(by="primary")]
        if self.error is not None:
            raise self.error
        return "primary"


class Fallback(cqrs.RequestHandler[Charge]):
    def handle(self, request: Charge) -> str:
        self.events = [Noted(by="fallback")]
        return "fallback"


class PrimaryStream(cqrs.StreamingRequestHandler[Charge, str]):
    error: Exception | None = None

    def handle(self, request: Charge) -> Iterator[str]:
        self.events = [Noted(by="primary 1")]
        yield "p1"
        if self.error is not None:
            self.events = [Noted(by="primary lost")]
            raise self.error
        yield "p2"


class FallbackStream(cqrs.StreamingRequestHandler[Charge, str]):
    def handle(self, request: Charge) -> Iterator[str]:
        for number in (1, 2):
            self.events = [Noted(by=f"fallback {number}")]
            yield f"f{number}"


class OnCharged(cqrs.EventHandler[Charged]):
    error: Exception | None = None

    def handle(self, event: Charged) -> None:
        self.events = [Noted(by="primary")]
        if self.error is not None:
            raise self.error


class InsteadOnCharged(cqrs.EventHandler[Charged]):
    def handle(self, event: Charged) -> None:
        self.events = [Noted(by="fallback")]


class Link(cqrs.CORRequestHandler[Charge, str]):
    def handle(self, request: Charge) -> str | None:
        return None


class RefundHandler(cqrs.RequestHandler[Refund, str]):
    def handle(self, request: Refund) -> str:
        return "refunded"


class NumberHandler(cqrs.RequestHandler[Charge, int]):
    def handle(self, request: Charge) -> int:
        return 1


class Unnamed(cqrs.RequestHandler):  # type: ignore[type-arg]
    def handle(self, request: Any) -> Any:
        return None


class StillGeneric(cqrs.RequestHandler[T, str], Generic[T]):  # type: ignore[type-var]
    def handle(self, request: T) -> str:  # type: ignore[override]
        return ""


class OnNoted(cqrs.EventHandler[Noted]):
    def handle(self, event: Noted) -> None:
        """Nothing."""


class UnnamedEvent(cqrs.EventHandler):  # type: ignore[type-arg]
    def handle(self, event: Any) -> None:
        """Nothing."""


class Breaker:
    """Lets calls through and counts them, or refuses them."""

    class Open(Exception):
        """The refusal."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self.calls: list[Any] = []

    def call(self, identifier: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(identifier)
        if self.is_open:
            raise self.Open
        return func(*args, **kwargs)

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return isinstance(exc, self.Open)


@pytest.fixture
def noted() -> list[str]:
    return []


@pytest.fixture
def note(noted: list[str]) -> type[cqrs.EventHandler[Noted]]:
    """What notes whose events were handled."""

    class Notes(cqrs.EventHandler[Noted]):
        def handle(self, event: Noted) -> None:
            noted.append(event.by)

    return Notes


Note = type[cqrs.EventHandler[Noted]]


def mediator(note: Note, *given: Any, **options: Any) -> cqrs.RequestMediator:
    binding = cqrs.RequestHandlerFallback(Primary, Fallback, *given)
    return bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Charge, binding),
        domain_events_mapper=lambda m: m.bind(Noted, note),
        **options,
    )


def streaming(note: Note, *given: Any, **options: Any) -> cqrs.StreamingRequestMediator:
    binding = cqrs.RequestHandlerFallback(PrimaryStream, FallbackStream, *given)
    return bootstrap_streaming(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Charge, binding),
        domain_events_mapper=lambda m: m.bind(Noted, note),
        **options,
    )


def for_events(note: Note, *given: Any, **options: Any) -> cqrs.EventMediator:
    def events(m: cqrs.EventMap) -> None:
        m.bind(Charged, cqrs.EventHandlerFallback(OnCharged, InsteadOnCharged, *given))
        m.bind(Noted, note)

    return bootstrap_events(punq.Container(), events_mapper=events, **options)


# --- requests ------------------------------------------------------------------------------------------------


def test_primary_that_succeeds_answers_alone(note: Note, noted: list[str]) -> None:
    """The fallback is not built, not called and not heard."""
    breaker = Breaker()
    assert mediator(note, (), breaker).send(Charge()) == "primary"
    assert noted == ["primary"]
    assert breaker.calls == [Primary]


@pytest.mark.parametrize("expected", [(), (Lost,), (ConnectionError, KeyError), (Exception,)])
@pytest.mark.parametrize("breaker", [None, Breaker()], ids=["bare", "behind a breaker"])
def test_fallback_answers_for_an_expected_error_with_its_own_events(
    expected: Any, breaker: Any, note: Note, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error named means every error; what the primary emitted before it failed is dropped."""
    monkeypatch.setattr(Primary, "error", Lost())
    assert mediator(note, expected, breaker).send(Charge()) == "fallback"
    assert noted == ["fallback"]


@pytest.mark.parametrize("breaker", [None, Breaker()], ids=["bare", "behind a breaker"])
def test_unexpected_error_of_the_primary_reaches_the_caller(
    breaker: Any, note: Note, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, and nothing is emitted."""
    error = ValueError("no such card")
    monkeypatch.setattr(Primary, "error", error)
    with pytest.raises(ValueError) as caught:
        mediator(note, (Lost,), breaker).send(Charge())
    assert caught.value is error
    assert noted == []


def test_open_circuit_is_followed_by_the_fallback_without_the_primary(note: Note, noted: list[str]) -> None:
    """Whatever errors are named, a refusal calls for the fallback."""
    breaker = Breaker(is_open=True)
    assert mediator(note, (Lost,), breaker).send(Charge()) == "fallback"
    assert breaker.calls == [Primary]
    assert noted == ["fallback"]


def test_error_of_the_fallback_reaches_the_caller_with_the_primarys_behind_it(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no third handler, and the traceback tells both stories."""
    first, second = Lost(), RuntimeError("down too")
    monkeypatch.setattr(Primary, "error", first)

    def fail(self: Any, request: Charge) -> str:
        raise second

    monkeypatch.setattr(Fallback, "handle", fail)
    with pytest.raises(RuntimeError) as caught:
        mediator(note).send(Charge())
    assert caught.value is second
    assert caught.value.__context__ is first


def test_what_ends_the_program_is_no_failure_of_the_primary(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt passes through, though every error calls for the fallback."""
    monkeypatch.setattr(Primary, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        mediator(note).send(Charge())


def test_middlewares_run_around_each_of_the_two(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of the circuit breaker: it counts what middlewares make of the primary."""
    monkeypatch.setattr(Primary, "error", Lost())
    log: list[str] = []

    def middleware(request: Any, handle: Callable[[Any], Any]) -> Any:
        log.append("before")
        try:
            return handle(request)
        finally:
            log.append("after")

    assert mediator(note, middlewares=[middleware]).send(Charge()) == "fallback"
    assert log == ["before", "after", "before", "after"]


def test_fallback_is_logged_with_its_cause(
    note: Note, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A WARNING that names both handlers and the class of the error; the traceback is attached."""
    error = Lost("secret text")
    monkeypatch.setattr(Primary, "error", error)
    mediator(note).send(Charge())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "Primary: Lost was raised; its fallback Fallback takes over"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_open_circuit_is_logged_at_debug_without_a_traceback(note: Note, caplog: pytest.LogCaptureFixture) -> None:
    """The breaker said when it opened; a WARNING at every call would say no more."""
    caplog.set_level(logging.DEBUG, "cqrs_sync.invocation")
    mediator(note, (), Breaker(is_open=True)).send(Charge())
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == "Primary: its circuit is open; its fallback Fallback takes over"
    assert not record.exc_info


# --- with a unit of work -------------------------------------------------------------------------------------


class WritesAndFails(cqrs.RequestHandler[Charge, str]):
    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def handle(self, request: Charge) -> str:
        self._transaction["primary"] = "half done"
        raise Lost


class Writes(cqrs.RequestHandler[Charge, str]):
    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def handle(self, request: Charge) -> str:
        self._transaction["fallback"] = "done"
        return "fallback"


class StreamsAndFails(cqrs.StreamingRequestHandler[Charge, str]):
    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def handle(self, request: Charge) -> Iterator[str]:
        self._transaction["first piece"] = "handed out"
        yield "p1"
        self._transaction["primary"] = "half done"
        raise Lost


class StreamsOn(cqrs.StreamingRequestHandler[Charge, str]):
    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def handle(self, request: Charge) -> Iterator[str]:
        self._transaction["fallback"] = "done"
        yield "f1"


@pytest.mark.parametrize("strategy", cqrs.ScopeStrategy)
def test_writes_of_a_failed_primary_are_undone_and_the_fallbacks_committed(strategy: cqrs.ScopeStrategy) -> None:
    """Also where one transaction spans the whole send."""
    unit_of_work = MemoryUnitOfWork()
    binding = cqrs.RequestHandlerFallback(WritesAndFails, Writes, (Lost,))
    bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Charge, binding),
        unit_of_work=unit_of_work,
        scope_strategy=strategy,
    ).send(Charge())
    assert unit_of_work.store == {"fallback": "done"}
    assert unit_of_work.commits == 1


@pytest.mark.parametrize("strategy", cqrs.ScopeStrategy)
def test_pieces_of_a_failed_stream_stay_and_its_last_writes_are_undone(strategy: cqrs.ScopeStrategy) -> None:
    """What the consumer has seen is committed; what came after is not."""
    unit_of_work = MemoryUnitOfWork()
    binding = cqrs.RequestHandlerFallback(StreamsAndFails, StreamsOn, (Lost,))
    mediator = bootstrap_streaming(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Charge, binding),
        unit_of_work=unit_of_work,
        scope_strategy=strategy,
    )
    assert list(mediator.stream(Charge())) == ["p1", "f1"]
    assert unit_of_work.store == {"first piece": "handed out", "fallback": "done"}


@pytest.mark.parametrize("strategy", cqrs.ScopeStrategy)
def test_dispatchers_used_by_hand_fall_back_too(strategy: cqrs.ScopeStrategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mediator no send is open, so there is nothing to undo alone."""
    monkeypatch.setattr(Primary, "error", Lost())
    monkeypatch.setattr(PrimaryStream, "error", Lost())
    requests, streams = cqrs.RequestMap(), cqrs.RequestMap()
    requests.bind(Charge, cqrs.RequestHandlerFallback(Primary, Fallback))
    streams.bind(Charge, cqrs.RequestHandlerFallback(PrimaryStream, FallbackStream))
    answer = RequestDispatcher(requests, punq.Container(), scope_strategy=strategy).dispatch(Charge())
    pieces = StreamingRequestDispatcher(streams, punq.Container(), scope_strategy=strategy).dispatch(Charge())
    assert (answer.response, list(answer.events)) == ("fallback", [Noted(by="fallback")])
    assert [piece.response for piece in pieces] == ["p1", "f1", "f2"]


# --- streams -------------------------------------------------------------------------------------------------


def test_stream_of_a_primary_that_succeeds_is_all(note: Note, noted: list[str]) -> None:
    """The fallback adds nothing."""
    assert list(streaming(note).stream(Charge())) == ["p1", "p2"]
    assert noted == ["primary 1"]


@pytest.mark.parametrize("breaker", [None, Breaker()], ids=["bare", "behind a breaker"])
def test_stream_that_fails_goes_on_with_the_fallbacks_from_its_start(
    breaker: Any, note: Note, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed out stays, with its events; those of the piece that never came are dropped."""
    monkeypatch.setattr(PrimaryStream, "error", Lost())
    assert list(streaming(note, (Lost,), breaker).stream(Charge())) == ["p1", "f1", "f2"]
    assert noted == ["primary 1", "fallback 1", "fallback 2"]


def test_unexpected_error_of_a_stream_reaches_the_consumer(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """From ``next()``, behind the pieces before it."""
    error = ValueError("no such card")
    monkeypatch.setattr(PrimaryStream, "error", error)
    stream = streaming(note, (Lost,)).stream(Charge())
    assert next(stream) == "p1"
    with pytest.raises(ValueError) as caught:
        next(stream)
    assert caught.value is error


def test_open_circuit_of_a_stream_is_followed_by_the_fallback(note: Note, noted: list[str]) -> None:
    """The primary does not begin."""
    assert list(streaming(note, (Lost,), Breaker(is_open=True)).stream(Charge())) == ["f1", "f2"]
    assert noted == ["fallback 1", "fallback 2"]


def test_consumer_that_leaves_early_gets_no_fallback(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the stream is no failure of the primary."""
    started: list[str] = []

    def handle(self: Any, request: Charge) -> Iterator[str]:
        started.append("fallback")
        yield "f1"

    monkeypatch.setattr(FallbackStream, "handle", handle)
    stream = streaming(note).stream(Charge())
    next(stream)
    stream.close()
    assert started == []


def test_failing_event_handler_is_no_failure_of_the_stream(note: Note, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer gets the error, not a second beginning."""
    monkeypatch.setattr(note, "handle", lambda self, event: 1 / 0)
    stream = streaming(note, event_errors="raise").stream(Charge())
    with pytest.raises(EventHandlingError):
        next(stream)
    assert list(stream) == []


def test_breaker_may_return_any_iterator(note: Note) -> None:
    """The port asks for no more; one without ``close()`` does as well."""

    class Plain:
        def __init__(self, pieces: Iterator[Any]) -> None:
            self._pieces = pieces

        def __iter__(self) -> Plain:
            return self

        def __next__(self) -> Any:
            return next(self._pieces)

    class Wraps(Breaker):
        def call(self, identifier: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return Plain(func(*args, **kwargs))

    assert list(streaming(note, (), Wraps()).stream(Charge())) == ["p1", "p2"]


# --- events --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaker", [None, Breaker()], ids=["bare", "behind a breaker"])
def test_fallback_handles_the_event_with_its_own_follow_ups(
    breaker: Any, note: Note, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the failed primary are dropped; nothing is raised."""
    for_events(note, (Lost,), breaker).send(Charged())
    assert noted == ["primary"]
    monkeypatch.setattr(OnCharged, "error", Lost())
    for_events(note, (Lost,), breaker).send(Charged())
    assert noted == ["primary", "fallback"]


def test_unexpected_error_of_a_primary_event_handler_is_an_error_like_any_other(
    note: Note, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins the group of its siblings' errors."""
    error = ValueError("broke")
    monkeypatch.setattr(OnCharged, "error", error)
    with pytest.raises(EventHandlingError) as caught:
        for_events(note, (Lost,)).send(Charged())
    assert caught.value.exceptions == (error,)
    assert noted == []


def test_open_circuit_of_an_event_handler_is_followed_by_the_fallback(note: Note, noted: list[str]) -> None:
    """The breaker is asked for the primary's class."""
    breaker = Breaker(is_open=True)
    for_events(note, (Lost,), breaker).send(Charged())
    assert noted == ["fallback"]
    assert breaker.calls == [OnCharged]


# --- what fits in whose place --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primary", "fallback", "culprit", "says"),
    [
        ("Primary", Fallback, "Primary", "primary Primary must be a subclass of RequestHandler or"),
        (Primary, Fallback(), "instance", "fallback"),
        (Link, Fallback, Link, "primary Link must be a subclass of"),
        (Primary, Link, Link, "fallback Link must be a subclass of"),
        (Primary, OnCharged, OnCharged, "fallback OnCharged must be a subclass of"),
        (Primary, FallbackStream, FallbackStream, "must be a RequestHandler as its primary is"),
        (PrimaryStream, Fallback, Fallback, "must be a StreamingRequestHandler as its primary is"),
        (Primary, RefundHandler, RefundHandler, "RefundHandler is for Refund but its primary Primary is for Charge"),
        (Primary, NumberHandler, NumberHandler, "NumberHandler is for int but its primary Primary is for str"),
        (Unnamed, Fallback, Unnamed, "Unnamed must name what it handles, as in RequestHandler[MyMessage]"),
        (Primary, Unnamed, Unnamed, "Unnamed must name what it handles"),
        (Primary, StillGeneric, StillGeneric, "StillGeneric must name what it handles"),
        (Unnamed, Unnamed, Unnamed, "must name what it handles"),
    ],
)
def test_misfit_is_refused_when_the_fallback_is_made(primary: Any, fallback: Any, culprit: Any, says: str) -> None:
    """At the line that is wrong, naming the class that is."""
    with pytest.raises(RequestHandlerTypeError) as caught:
        cqrs.RequestHandlerFallback(primary, fallback)
    assert caught.value.handler_type is (fallback if culprit == "instance" else culprit)
    assert says in str(caught.value)
    assert str(caught.value).startswith("RequestHandlerFallback")


@pytest.mark.parametrize(
    ("primary", "fallback", "culprit", "says"),
    [
        (Primary, InsteadOnCharged, Primary, "primary Primary must be a subclass of EventHandler"),
        (OnCharged, "OnCharged", "OnCharged", "fallback OnCharged must be a subclass of EventHandler"),
        (OnCharged, OnNoted, OnNoted, "OnNoted is for Noted but its primary OnCharged is for Charged"),
        (OnCharged, UnnamedEvent, UnnamedEvent, "must name what it handles, as in EventHandler[MyMessage]"),
        (UnnamedEvent, OnCharged, UnnamedEvent, "must name what it handles"),
    ],
)
def test_misfit_of_event_handlers_is_refused_too(primary: Any, fallback: Any, culprit: Any, says: str) -> None:
    """By the same rules, with the class of error that belongs to events."""
    with pytest.raises(EventHandlerTypeError) as caught:
        cqrs.EventHandlerFallback(primary, fallback)
    assert caught.value.handler_type is culprit
    assert says in str(caught.value)


def test_fallback_need_not_name_the_result() -> None:
    """Where the request names it, one of the two may leave it out."""
    binding = cqrs.RequestHandlerFallback(Primary, Fallback)
    assert (binding.failure_exceptions, binding.circuit_breaker) == ((), None)


@pytest.mark.parametrize("make", [cqrs.RequestHandlerFallback, cqrs.EventHandlerFallback])
def test_fallback_cannot_be_changed(make: Any) -> None:
    """It is bound once and read by many threads."""
    pair = (Primary, Fallback) if make is cqrs.RequestHandlerFallback else (OnCharged, InsteadOnCharged)
    binding = make(*pair)
    with pytest.raises(AttributeError):
        binding.primary = pair[1]
    assert binding == make(*pair)
    assert hash(binding) == hash(make(*pair))


@pytest.mark.parametrize("failures", [[Lost], Lost, ("Lost",), (int,)])
@pytest.mark.parametrize(
    ("make", "pair"),
    [(cqrs.RequestHandlerFallback, (Primary, Fallback)), (cqrs.EventHandlerFallback, (OnCharged, InsteadOnCharged))],
)
def test_failures_that_are_no_tuple_of_exceptions_work_or_are_refused_at_once(
    make: Any, pair: tuple[type, type], failures: Any
) -> None:
    """Never a TypeError in the place of the primary's error, or no fallback at all, at the moment of the outage."""
    try:
        binding = make(*pair, failures)
    except (HandlerTypeError, ValueError):
        return
    assert isinstance(Lost(), binding.failure_exceptions)
    hash(binding)


def test_circuit_breaker_need_not_be_hashable(note: Note, noted: list[str]) -> None:
    """One that compares by its settings serves events as well."""

    class Equal(Breaker):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    for_events(note, (), Equal()).send(Charged())
    assert noted == ["primary"]
