"""What runs around a call: order, short cuts, repetition, events, and what is logged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.middlewares import LoggingMiddleware, MiddlewareChain
from cqrs_sync.middlewares.base import compose
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from tests.unit.shop import Do, DoHandler, Happened, event_handler

Handle = Callable[[Any], Any]


def adding(letter: str) -> Callable[[Any, Handle], Any]:
    """A middleware that adds a letter to the request and to the response."""
    return lambda request, handle: handle(request + letter) + letter.upper()


class Adding:
    """The same as an object."""

    def __init__(self, letter: str) -> None:
        self._letter = letter

    def __call__(self, request: Any, handle: Handle) -> Any:
        return adding(self._letter)(request, handle)


# --- the chain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("middlewares", "response"),
    [
        ([], "<r>"),
        ([adding("a")], "<ra>A"),
        ([adding("a"), Adding("b")], "<rab>BA"),
        ([adding("a"), Adding("b"), adding("c")], "<rabc>CBA"),
    ],
)
def test_first_middleware_is_the_outermost(middlewares: list[Any], response: str) -> None:
    """It sees the request first and the response last; functions and objects alike."""
    chain = MiddlewareChain(middlewares)
    handle = chain.wrap(lambda request: f"<{request}>")
    assert handle("r") == handle("r") == response


def test_chain_can_be_built_up_and_replaced() -> None:
    """``add`` puts a middleware inside of those that are there."""
    chain = MiddlewareChain([adding("a")])
    chain.add(adding("b"))
    assert chain.wrap(str)("r") == "rabBA"
    chain.set([adding("c")])
    assert chain.wrap(str)("r") == "rcC"


def test_chain_keeps_no_list_of_somebody_else() -> None:
    """Changing the list afterwards changes nothing."""
    given: list[Any] = []
    chain = MiddlewareChain(given)
    given.append(adding("a"))
    assert chain.wrap(str)("r") == "r"
    chain.set(given)
    given.append(adding("b"))
    assert chain.wrap(str)("r") == "raA"


def test_compiled_chain_is_nothing_where_there_is_no_middleware() -> None:
    """So that a call without middlewares costs nothing."""
    assert compose(MiddlewareChain().compile()) is None


def test_compiled_chain_takes_what_is_at_its_end_with_each_call() -> None:
    """One chain serves every handler."""
    compiled = compose(MiddlewareChain([adding("a"), adding("b")]).compile())
    assert compiled is not None
    assert compiled("r", str) == "rabBA"
    assert compiled("r", str.upper) == "RABBA"


def request_mediator(chain: MiddlewareChain) -> Any:
    return cqrs.RequestMediator(cqrs.RequestMap(), punq.Container(), middleware_chain=chain)


def streaming_mediator(chain: MiddlewareChain) -> Any:
    return cqrs.StreamingRequestMediator(cqrs.RequestMap(), punq.Container(), middleware_chain=chain)


def event_mediator(chain: MiddlewareChain) -> Any:
    return cqrs.EventMediator(cqrs.EventMap(), punq.Container(), chain)


@pytest.mark.parametrize("build", [request_mediator, streaming_mediator, event_mediator])
@pytest.mark.parametrize(
    "change", [lambda chain: chain.add(adding("a")), lambda chain: chain.set([])], ids=["add", "set"]
)
def test_chain_of_a_mediator_refuses_changes(
    build: Callable[[MiddlewareChain], Any], change: Callable[[MiddlewareChain], None]
) -> None:
    """They would have no effect, in none of the mediators, and nobody would notice."""
    chain = MiddlewareChain([adding("a")])
    build(chain)
    with pytest.raises(ConfigurationError, match="before building it"):
        change(chain)


@pytest.mark.parametrize("thing", [object(), "logging", None, LoggingMiddleware])
def test_what_is_no_middleware_is_refused_at_start_up(thing: Any) -> None:
    """A class where an instance belongs is the usual mistake."""
    with pytest.raises(ConfigurationError, match=r"(?i)middleware"):
        bootstrap(punq.Container(), middlewares=[thing], commands_mapper=lambda m: m.bind(Do, DoHandler))


# --- around a send -------------------------------------------------------------------------------------------


class Numbered(DoHandler):
    """Emits the number of its instance."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.number = type(self).made

    def handle(self, request: Do) -> str:
        self._events.append(Happened(number=self.number))
        return f"answer {self.number}"


def send_through(*middlewares: Any, handler: type[Any] = Numbered, **options: Any) -> tuple[Any, list[int]]:
    """What a send returns, and the numbers of the events it led to."""
    Numbered.made = 0
    seen: list[int] = []
    mediator = bootstrap(
        punq.Container(),
        middlewares=middlewares,
        commands_mapper=lambda m: m.bind(Do, handler),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.append(e.number))),
        **options,
    )
    return mediator.send(Do()), seen


def test_middleware_may_change_the_response() -> None:
    """The caller gets what the outermost returns."""
    assert send_through(lambda request, handle: handle(request).upper()) == ("ANSWER 1", [1])


def test_middleware_that_answers_by_itself_leads_to_no_event() -> None:
    """A cache hit emits nothing, and builds no handler."""
    assert send_through(lambda request, handle: "cached") == ("cached", [])
    assert Numbered.made == 0


def test_middleware_that_repeats_the_call_gets_new_handlers_and_the_events_of_all() -> None:
    """The work of each call that succeeded stands, so its events count."""

    def twice(request: Any, handle: Handle) -> Any:
        handle(request)
        return handle(request)

    assert send_through(twice) == ("answer 2", [1, 2])


def test_middleware_that_retries_emits_the_events_of_the_attempt_that_succeeded() -> None:
    """Those of failed attempts died with their handlers."""

    class FailsTwice(Numbered):
        def handle(self, request: Do) -> str:
            answer = super().handle(request)
            if self.number < 3:
                raise ConnectionError
            return answer

    FailsTwice.made = 0

    def retry(request: Any, handle: Handle) -> Any:
        while True:
            try:
                return handle(request)
            except ConnectionError:
                continue

    assert send_through(retry, handler=FailsTwice) == ("answer 3", [3])


def test_error_of_a_handler_passes_through_middlewares() -> None:
    """They may look at it, and it leads to no event."""
    seen: list[Exception] = []

    class Fails(Numbered):
        def handle(self, request: Do) -> str:
            super().handle(request)
            raise ValueError("broke")

    def watch(request: Any, handle: Handle) -> Any:
        try:
            return handle(request)
        except ValueError as error:
            seen.append(error)
            raise

    with pytest.raises(ValueError, match="broke"):
        send_through(watch, handler=Fails)
    assert [str(error) for error in seen] == ["broke"]


def test_error_of_a_middleware_behind_the_handler_leads_to_no_event() -> None:
    """The send failed, so nothing that it emitted is handled."""
    seen: list[Any] = []

    def breaks(request: Any, handle: Handle) -> Any:
        handle(request)
        raise ValueError("audit failed")

    mediator = bootstrap(
        punq.Container(),
        middlewares=[breaks],
        commands_mapper=lambda m: m.bind(Do, Numbered),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(seen.append)),
    )
    with pytest.raises(ValueError, match="audit failed"):
        mediator.send(Do())
    assert seen == []


def test_events_are_handled_outside_of_the_middlewares() -> None:
    """What a middleware holds, a lock say, is free again."""
    log: list[str] = []

    def around(request: Any, handle: Handle) -> Any:
        log.append("in")
        response = handle(request)
        log.append("out")
        return response

    mediator = bootstrap(
        punq.Container(),
        middlewares=[around],
        commands_mapper=lambda m: m.bind(Do, Numbered),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda _: log.append("event"))),
    )
    mediator.send(Do())
    assert log == ["in", "out", "event"]


def test_one_middleware_serves_concurrent_sends() -> None:
    """Each call keeps its own events and response."""
    meet = threading.Barrier(2)
    answers: list[Any] = []

    def waits(request: Any, handle: Handle) -> Any:
        response = handle(request)
        meet.wait(10)
        return response

    seen: list[int] = []
    mediator = bootstrap(
        punq.Container(),
        middlewares=[waits],
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.append(e.number))),
    )
    requests = [Do(answer=str(number), emits=[Happened(number=number)]) for number in range(2)]
    threads = [threading.Thread(target=lambda r=r: answers.append((r.answer, mediator.send(r)))) for r in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [("0", "0"), ("1", "1")]
    assert sorted(seen) == [0, 1]


# --- around a stream and an event ----------------------------------------------------------------------------


class Pieces(cqrs.StreamingRequestHandler[Do, str]):
    def handle(self, request: Do) -> Iterator[str]:
        yield "a"
        yield "b"


def stream_through(*middlewares: Any) -> list[Any]:
    mediator = bootstrap_streaming(
        punq.Container(), middlewares=middlewares, commands_mapper=lambda m: m.bind(Do, Pieces)
    )
    return list(mediator.stream(Do()))


def test_middleware_around_a_stream_may_change_its_pieces() -> None:
    """``handle`` returns the iterator of the pieces."""
    assert stream_through(lambda request, handle: map(str.upper, handle(request))) == ["A", "B"]


def test_middleware_around_a_stream_may_be_a_generator() -> None:
    """It wraps the whole stream, from the first piece to its end."""
    log: list[str] = []

    def timed(request: Any, handle: Handle) -> Iterator[str]:
        log.append("begin")
        for piece in handle(request):
            log.append(piece)
            yield piece
        log.append("end")

    assert stream_through(timed) == ["a", "b"]
    assert log == ["begin", "a", "b", "end"]


def test_middleware_around_a_stream_may_answer_by_itself() -> None:
    """Any iterator will do."""
    assert stream_through(lambda request, handle: iter(["cached"])) == ["cached"]


def test_middleware_around_an_event_sees_the_event() -> None:
    """It runs once per ``send``, and may stop or change the event."""
    seen: list[int] = []
    mediator = bootstrap_events(
        punq.Container(),
        middlewares=[lambda event, handle: handle(Happened(number=event.number + 1)) if event.number else None],
        events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.append(e.number))),
    )
    mediator.send(Happened(number=1))
    mediator.send(Happened(number=0))
    assert seen == [2]


# --- LoggingMiddleware ---------------------------------------------------------------------------------------


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "cqrs_sync.middlewares.logging")
    return caplog


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    """Each message with what is attached to it."""
    return [
        (record.getMessage(), getattr(record, "cqrs_request", getattr(record, "cqrs_response", None)))
        for record in caplog.records
    ]


class Answer(cqrs.Response):
    number: int


def call(middleware: Any, response: Any) -> Any:
    return MiddlewareChain([middleware]).wrap(lambda request: response)(Do())


def test_request_and_response_are_logged_as_dictionaries(debug: pytest.LogCaptureFixture) -> None:
    """At DEBUG, in ``extra``; the messages themselves name the class alone."""
    assert call(LoggingMiddleware(), Answer(number=7)) == Answer(number=7)
    assert logged(debug) == [("handling Do", Do().to_dict()), ("handled Do", {"number": 7})]
    assert {record.levelno for record in debug.records} == {logging.DEBUG}


@pytest.mark.parametrize("response", [None, "text", [1, 2]])
def test_response_without_to_dict_is_logged_as_it_is(response: Any, debug: pytest.LogCaptureFixture) -> None:
    """Not every handler answers with a response class."""
    assert call(LoggingMiddleware(), response) is response
    assert logged(debug)[1] == ("handled Do", response)


def test_stream_is_not_consumed_by_logging(debug: pytest.LogCaptureFixture) -> None:
    """The iterator is handed on untouched."""
    assert list(call(LoggingMiddleware(), iter([1, 2]))) == [1, 2]
    assert [message for message, _ in logged(debug)] == ["handling Do", "streaming Do"]


def test_error_is_not_logged_twice(debug: pytest.LogCaptureFixture) -> None:
    """It reaches the caller, who decides."""
    handle = MiddlewareChain([LoggingMiddleware()]).wrap(lambda request: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        handle(Do())
    assert [message for message, _ in logged(debug)] == ["handling Do"]


class Unspeakable:
    """An answer that cannot become a dictionary."""

    def to_dict(self) -> dict[str, Any]:
        raise TypeError("cannot pickle '_thread.lock' object")


@pytest.mark.parametrize("response", [Unspeakable(), Unspeakable], ids=["failing", "class"])
def test_answer_that_cannot_be_logged_does_not_fail_the_send(response: Any, debug: pytest.LogCaptureFixture) -> None:
    """The handler has committed; a log level must not turn that into an error."""
    assert call(LoggingMiddleware(), response) is response
    assert [message for message, _ in logged(debug)] == ["handling Do", "handled Do"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["handling Do", "handled Do"]),
        ([LoggingMiddleware()], ["handling Do", "handled Do"]),
        ([type("Own", (LoggingMiddleware,), {})()], ["handling Do", "handled Do"]),
        ([LoggingMiddleware(), LoggingMiddleware()], ["handling Do"] * 2 + ["handled Do"] * 2),
    ],
    ids=["none", "one", "derived", "two"],
)
def test_logging_is_added_unless_it_is_given(
    given: list[Any], expected: list[str], debug: pytest.LogCaptureFixture
) -> None:
    """One's own is not doubled, wherever in the chain it stands."""
    bootstrap(punq.Container(), middlewares=given, commands_mapper=lambda m: m.bind(Do, DoHandler)).send(Do())
    assert [message for message, _ in logged(debug)] == expected


def test_added_logging_is_innermost(debug: pytest.LogCaptureFixture) -> None:
    """It logs what the handler gets, not what the caller sent."""

    def renames(request: Any, handle: Handle) -> Any:
        return handle(Do(answer="renamed"))

    bootstrap(punq.Container(), middlewares=[renames], commands_mapper=lambda m: m.bind(Do, DoHandler)).send(Do())
    assert logged(debug)[0][1]["answer"] == "renamed"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_any_number_of_middlewares_nest_in_order(count: int) -> None:
    """The nesting is written out, whatever its depth."""
    order: list[str] = []

    def layer(letter: str) -> Callable[[Any, Callable[[Any], Any]], Any]:
        def middleware(request: Any, handle: Callable[[Any], Any]) -> Any:
            order.append(letter)
            response = handle(request)
            order.append(letter.upper())
            return response

        return middleware

    letters = "abcdefg"[:count]
    mediator = bootstrap(
        punq.Container(),
        middlewares=[layer(letter) for letter in letters],
        commands_mapper=lambda m: m.bind(Do, DoHandler),
    )
    assert mediator.send(Do()) == "done"
    assert "".join(order) == letters + letters[::-1].upper()
