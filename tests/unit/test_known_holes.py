"""What the async library gets wrong: each test fails on the behaviour described for its number."""

from __future__ import annotations

import doctest
import gc
import importlib
import inspect
import itertools
import logging
import pathlib
import queue
import re
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from concurrent.futures.thread import _threads_queues
from typing import Any

import punq
import pytest

import cqrs_sync as cqrs
import cqrs_sync.events.bootstrap
import cqrs_sync.requests.bootstrap
from cqrs_sync.errors import EventHandlerDoesNotExist, EventHandlingError, FollowUpLoop, SharedHandlerError
from cqrs_sync.events import event_processor
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import BrokerUnavailable, Message, MessageBroker
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from tests.unit.shop import Do, DoHandler, Happened, Told, event_handler, mediator_for

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""

in_both_modes = pytest.mark.parametrize("limit", [1, 4])
"""In the caller's thread, and in the pool."""


class Ask(cqrs.Request[str]):
    """A request for chains and streams."""

    name: str = "Ada"


class Answers(cqrs.StreamingRequestHandler[Ask, str]):
    """Streams two pieces, with an event before each and one behind the last."""

    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: Ask) -> Iterator[str]:
        for number, piece in enumerate(("hello", request.name)):
            self._events.append(Happened(number=number))
            yield piece
        self._events.append(Happened(number=2))


def link(number: int, *, answers: bool, seen: list[str] | None = None) -> type[cqrs.CORRequestHandler[Any, Any]]:
    """A handler of a chain that emits an event with its number, and answers or passes on."""

    class Link(cqrs.CORRequestHandler[Ask, str]):
        def __init__(self) -> None:
            self._events: list[cqrs.IEvent] = []

        @property
        def events(self) -> list[cqrs.IEvent]:
            return self._events

        def handle(self, request: Ask) -> str | None:
            self._events.append(Happened(number=number))
            return f"answer {number}" if answers else self.next(request)

    return Link


def chain_mediator(
    *links: type[cqrs.CORRequestHandler[Any, Any]], on_event: Callable[[Any], object], **options: Any
) -> cqrs.RequestMediator:
    """A mediator with one chain and one handler of the events that its links emit."""
    return bootstrap(
        options.pop("di_container", None) or punq.Container(),
        commands_mapper=lambda m: m.bind(Ask, list(links)),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(on_event)),
        **options,
    )


class Failing(MessageBroker):
    """A broker that is down."""

    def __init__(self) -> None:
        self.tried: list[Message] = []
        self.failed = threading.Event()

    def send_message(self, message: Message) -> None:
        self.tried.append(message)
        self.failed.set()
        raise BrokerUnavailable("the broker is down", message)


def in_threads(*functions: Callable[[], object]) -> None:
    """Run functions side by side and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * 3)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if errors:
        raise errors[0]


# --- M1: events of a chain -----------------------------------------------------------------------------------


def test_m01_chain_reports_the_events_of_every_handler_that_ran() -> None:
    """The step that answered counts, and so do those that passed the request on; the rest never ran."""
    seen: list[int] = []
    chain = [link(0, answers=False), link(1, answers=False), link(2, answers=True), link(3, answers=True)]
    mediator = chain_mediator(*chain, on_event=lambda event: seen.append(event.number))
    assert mediator.send(Ask()) == "answer 2"
    assert seen == [0, 1, 2]


def test_m01_chain_whose_head_answers_reports_the_head_alone() -> None:
    """Handlers behind the one that answered have nothing to say."""
    seen: list[int] = []
    mediator = chain_mediator(
        link(0, answers=True), link(1, answers=True), on_event=lambda event: seen.append(event.number)
    )
    mediator.send(Ask())
    assert seen == [0]


def test_m01_chain_that_nobody_answers_still_reports_its_events() -> None:
    """Passing on at the end of the chain loses no event."""
    seen: list[int] = []
    mediator = chain_mediator(
        link(0, answers=False), link(1, answers=False), on_event=lambda event: seen.append(event.number)
    )
    assert mediator.send(Ask()) is None
    assert seen == [0, 1]


# --- M2: middlewares in every mediator -----------------------------------------------------------------------


class Recording:
    """A middleware that notes what passes through it."""

    def __init__(self, log: list[str], name: str = "only") -> None:
        self._log = log
        self._name = name

    def __call__(self, request: Any, handle: Callable[[Any], Any]) -> Any:
        self._log.append(f"{self._name} before {type(request).__name__}")
        response = handle(request)
        self._log.append(f"{self._name} after {type(request).__name__}")
        return response


def run_request(middlewares: list[Any]) -> None:
    bootstrap(punq.Container(), middlewares=middlewares, commands_mapper=lambda m: m.bind(Do, DoHandler)).send(Do())


def run_chain(middlewares: list[Any]) -> None:
    chain = [link(0, answers=False), link(1, answers=True)]
    chain_mediator(*chain, on_event=lambda _: None, middlewares=middlewares).send(Ask())


def run_stream(middlewares: list[Any]) -> None:
    mediator = bootstrap_streaming(
        punq.Container(), middlewares=middlewares, commands_mapper=lambda m: m.bind(Ask, Answers)
    )
    assert list(mediator.stream(Ask())) == ["hello", "Ada"]


def run_event(middlewares: list[Any]) -> None:
    two = [event_handler(lambda _: None, name="First"), event_handler(lambda _: None, name="Second")]

    def bind(event_map: cqrs.EventMap) -> None:
        for handler in two:
            event_map.bind(Happened, handler)

    bootstrap_events(punq.Container(), middlewares=middlewares, events_mapper=bind).send(Happened())


in_every_mediator = pytest.mark.parametrize(
    ("run", "message"), [(run_request, "Do"), (run_chain, "Ask"), (run_stream, "Ask"), (run_event, "Happened")]
)


@in_every_mediator
def test_m02_middlewares_run_once_per_call_in_every_mediator(run: Callable[[list[Any]], None], message: str) -> None:
    """The first middleware is the outermost, also around a chain, a stream and an event with two handlers."""
    log: list[str] = []
    run([Recording(log, "outer"), Recording(log, "inner")])
    assert log == [
        f"outer before {message}",
        f"inner before {message}",
        f"inner after {message}",
        f"outer after {message}",
    ]


@in_every_mediator
def test_m02_logging_middleware_is_added_to_every_mediator(
    run: Callable[[list[Any]], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every bootstrap adds it, and it is called."""
    caplog.set_level(logging.DEBUG, "cqrs_sync.middlewares.logging")
    run([])
    assert f"handling {message}" in caplog.messages


def test_m02_middleware_can_answer_an_event_in_the_handlers_place() -> None:
    """A middleware around an event is more than an observer."""
    seen: list[Any] = []
    mediator = bootstrap_events(
        punq.Container(),
        middlewares=[lambda event, handle: None],
        events_mapper=lambda m: m.bind(Happened, event_handler(seen.append)),
    )
    mediator.send(Happened())
    assert seen == []


# --- M3: errors of event handlers ----------------------------------------------------------------------------


def two_failing_between_two(ran: list[str]) -> list[Any]:
    def fail(name: str, error: Exception) -> Callable[[Any], None]:
        def react(_: Any) -> None:
            ran.append(name)
            raise error

        return react

    return [
        event_handler(lambda _: ran.append("first"), name="First"),
        event_handler(fail("second", ValueError("second broke")), name="Second"),
        event_handler(fail("third", LookupError("third broke")), name="Third"),
        event_handler(lambda _: ran.append("fourth"), name="Fourth"),
    ]


@in_both_modes
def test_m03_isolated_error_leaves_siblings_and_response_and_its_traceback_in_the_log(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By default the command has succeeded, and what failed is in the log with its traceback."""
    ran: list[str] = []
    with mediator_for(*two_failing_between_two(ran), max_concurrent_event_handlers=limit) as mediator:
        assert mediator.send(Do(emits=[Happened()])) == "done"
    assert sorted(ran) == ["first", "fourth", "second", "third"]
    logged = {record.exc_info[1].args[0]: record for record in caplog.records if record.exc_info}
    assert set(logged) == {"second broke", "third broke"}
    assert all(record.levelno == logging.ERROR and record.exc_info[2] for record in logged.values())


@in_both_modes
def test_m03_raised_errors_arrive_together_after_all_siblings_ran(limit: int) -> None:
    """``event_errors="raise"`` is the other policy: one group with every error, and the response on it."""
    ran: list[str] = []
    handlers = two_failing_between_two(ran)
    with (
        mediator_for(*handlers, max_concurrent_event_handlers=limit, event_errors="raise") as mediator,
        pytest.raises(EventHandlingError) as caught,
    ):
        mediator.send(Do(emits=[Happened()], answer="charged"))
    assert sorted(ran) == ["first", "fourth", "second", "third"]
    assert {type(error) for error in caught.value.exceptions} == {ValueError, LookupError}
    assert caught.value.response == "charged"


@in_both_modes
def test_m03_follow_ups_of_siblings_are_handled_when_a_handler_fails(limit: int) -> None:
    """What succeeded goes on."""
    seen: list[int] = []

    def react(event: Happened) -> None:
        seen.append(event.number)
        if event.number == 0:
            raise ValueError("broke")

    events = [Happened(number=0), Happened(number=1, then=[Happened(number=2)])]
    with mediator_for(event_handler(react), max_concurrent_event_handlers=limit) as mediator:
        mediator.send(Do(emits=events))
    assert sorted(seen) == [0, 1, 2]


# --- M4: errors of the broker --------------------------------------------------------------------------------


@in_both_modes
def test_m04_broker_failure_keeps_the_response_and_the_remaining_events(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The command has committed: its caller gets the response, and the events behind the failed one their handlers."""
    seen: list[int] = []
    broker = Failing()
    handler = event_handler(lambda event: seen.append(event.number))
    events = [Told(payload=0), Happened(number=1), Told(payload=2), Happened(number=3)]
    with mediator_for(handler, message_broker=broker, max_concurrent_event_handlers=limit) as mediator:
        assert mediator.send(Do(emits=events)) == "done"
    assert sorted(seen) == [1, 3]
    assert sorted(message.payload["payload"] for message in broker.tried) == [0, 2]
    failures = [record for record in caplog.records if record.exc_info]
    assert [type(record.exc_info[1]) for record in failures] == [BrokerUnavailable] * 2


@in_both_modes
def test_m04_raised_broker_failure_carries_the_response(limit: int) -> None:
    """Whoever asks for errors can tell that the command itself must not be repeated."""
    options = {"message_broker": Failing(), "max_concurrent_event_handlers": limit, "event_errors": "raise"}
    with mediator_for(**options) as mediator, pytest.raises(EventHandlingError) as caught:
        mediator.send(Do(emits=[Told()], answer="charged"))
    assert caught.value.response == "charged"
    assert [type(error) for error in caught.value.exceptions] == [BrokerUnavailable]


def test_m04_send_waits_for_the_siblings_of_a_failed_publication() -> None:
    """In the pool nothing is left running behind the caller's back when the broker fails."""
    broker = Failing()
    finished: list[str] = []

    def react(_: Any) -> None:
        assert broker.failed.wait(WAIT)
        finished.append("handled after the failure")

    options = {"message_broker": broker, "max_concurrent_event_handlers": 2, "event_errors": "raise"}
    with mediator_for(event_handler(react), **options) as mediator:
        with pytest.raises(EventHandlingError):
            mediator.send(Do(emits=[Happened(), Told()]))
        assert finished == ["handled after the failure"]


# --- M5: the bound of the pool -------------------------------------------------------------------------------


def test_m05_number_alone_bounds_the_handlers_of_all_sends() -> None:
    """With 2, exactly 2 of 72 handlers run at once: 3 sends of 4 events of 6 handlers, without a second switch."""
    lock, pair = threading.Lock(), threading.Barrier(2)
    inside, highest, total = 0, 0, 0

    def react(_: Any) -> None:
        nonlocal inside, highest, total
        with lock:
            inside, total = inside + 1, total + 1
            highest = max(highest, inside)
        pair.wait(WAIT)  # nobody gets further alone
        with lock:
            inside -= 1

    handlers = [event_handler(react, name=f"Reacts{number}") for number in range(6)]
    with mediator_for(*handlers, max_concurrent_event_handlers=2, event_errors="raise") as mediator:
        in_threads(*[lambda: mediator.send(Do(emits=[Happened()] * 4))] * 3)
    assert (total, highest) == (72, 2)


def test_m05_handlers_of_one_event_share_the_bound() -> None:
    """Not events are counted but handlers: 6 of one event run 2 at a time too."""
    started: queue.Queue[int] = queue.Queue()
    release = threading.Semaphore(0)

    def react_as(number: int) -> Callable[[Any], None]:
        def react(_: Any) -> None:
            started.put(number)
            assert release.acquire(timeout=WAIT)

        return react

    handlers = [event_handler(react_as(number), name=f"Reacts{number}") for number in range(6)]
    with mediator_for(*handlers, max_concurrent_event_handlers=2, event_errors="raise") as mediator:
        sender = threading.Thread(target=mediator.send, args=(Do(emits=[Happened()]),))
        sender.start()
        order = [started.get(timeout=WAIT), started.get(timeout=WAIT)]
        while len(order) < 6:
            assert started.empty()  # both places are taken
            release.release()
            order.append(started.get(timeout=WAIT))
        release.release(2)
        sender.join(WAIT)
    assert sorted(order) == list(range(6))


# --- M6: events with nowhere to go ---------------------------------------------------------------------------


class Plain(cqrs.Event):
    """Neither a domain event nor a notification event."""


class Special(Happened):
    """A derived domain event."""


@in_both_modes
def test_m06_plain_event_without_handler_is_an_error(limit: int) -> None:
    """It does not disappear, whatever the error policy is."""
    with mediator_for(max_concurrent_event_handlers=limit) as mediator:
        with pytest.raises(EventHandlerDoesNotExist) as caught:
            mediator.send(Do(emits=[Plain()]))
        assert caught.value.message_type is Plain


@in_both_modes
def test_m06_plain_follow_up_without_handler_is_an_error(limit: int) -> None:
    """Further down the queue it is reported all the same."""
    with (
        mediator_for(event_handler(lambda _: None), max_concurrent_event_handlers=limit) as mediator,
        pytest.raises(EventHandlingError) as caught,
    ):
        mediator.send(Do(emits=[Happened(then=[Plain()])]))
    (error,) = caught.value.exceptions
    assert isinstance(error, EventHandlerDoesNotExist)
    assert error.message_type is Plain


def test_m06_plain_event_reaches_its_handler() -> None:
    """An event of the base class is an event like any other where somebody handles it."""
    seen: list[Any] = []
    with mediator_for(event_handler(seen.append), event_type=Plain) as mediator:
        mediator.send(Do(emits=[event := Plain()]))
    assert seen == [event]


def test_m06_derived_event_reaches_the_handlers_of_its_base() -> None:
    """An audit log bound to a base class sees the whole family, after the class's own handlers."""
    seen: list[str] = []

    def events(event_map: cqrs.EventMap) -> None:
        event_map.bind(Happened, event_handler(lambda _: seen.append("base")))
        event_map.bind(Special, event_handler(lambda _: seen.append("own")))

    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, DoHandler), domain_events_mapper=events)
    mediator.send(Do(emits=[Special()]))
    assert seen == ["own", "base"]


# --- M7: EventMediator publishes -----------------------------------------------------------------------------


def test_m07_event_mediator_publishes_notification_follow_ups() -> None:
    """They reach the broker, not a warning; the event that came from outside is not sent back."""
    broker = InMemoryMessageBroker()

    class Counts(cqrs.EventHandler[Plain]):
        def handle(self, event: Plain) -> None:
            self.events = [Told(payload=1, topic="answers"), Told(payload=2, topic="answers")]

    mediator = bootstrap_events(punq.Container(), events_mapper=lambda m: m.bind(Plain, Counts), message_broker=broker)
    mediator.send(Plain())
    assert [(message.topic, message.payload["payload"]) for message in broker.messages] == [
        ("answers", 1),
        ("answers", 2),
    ]
    inbound = InMemoryMessageBroker()
    bootstrap_events(
        punq.Container(),
        events_mapper=lambda m: m.bind(Told, event_handler(lambda _: None, name="Hears")),
        message_broker=inbound,
    ).send(Told())
    assert inbound.messages == []


# --- M8: handlers that are shared ----------------------------------------------------------------------------


class Ticks(cqrs.RequestHandler[Do]):
    """Keeps its events in a list that it assigns, and adds one at each call."""

    def __init__(self) -> None:
        self.events = []

    def handle(self, request: Do) -> str:
        self.events.append(Happened(number=int(request.answer)))
        return request.answer


class OneForAll:
    """A container of a kind the library does not know, which hands out one object per class."""

    def __init__(self) -> None:
        self._built: dict[type, Any] = {}

    def resolve(self, type_: type[Any]) -> Any:
        if type_ not in self._built:
            self._built[type_] = type_()
        return self._built[type_]


class TwoInTurn(OneForAll):
    """A container that hands out two objects per class in turn, as one with a singleton for each thread does."""

    def __init__(self) -> None:
        self._turns = itertools.cycle([OneForAll(), OneForAll()])

    def resolve(self, type_: type[Any]) -> Any:
        return next(self._turns).resolve(type_) if type_ in (DoHandler, Ticks) else type_()


def singletons(*classes: type) -> punq.Container:
    container = punq.Container()
    for cls in classes:
        container.register(cls, scope=punq.Scope.singleton)
    return container


def instances(*classes: type) -> punq.Container:
    container = punq.Container()
    for cls in classes:
        container.register(cls, instance=cls())
    return container


class Reacts(cqrs.EventHandler[Happened]):
    """An event handler with events of its own."""

    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, event: Happened) -> None:
        pass


FIRST, SECOND = link(0, answers=False), link(1, answers=True)
SPARE = type("Spare", (DoHandler,), {})


@pytest.mark.parametrize("register", [singletons, instances])
@pytest.mark.parametrize(
    ("culprit", "start"),
    [
        (DoHandler, lambda c: bootstrap(c, commands_mapper=lambda m: m.bind(Do, DoHandler))),
        (
            SPARE,
            lambda c: bootstrap(c, commands_mapper=lambda m: m.bind(Do, cqrs.RequestHandlerFallback(DoHandler, SPARE))),
        ),
        (SECOND, lambda c: bootstrap(c, commands_mapper=lambda m: m.bind(Ask, [FIRST, SECOND]))),
        (Answers, lambda c: bootstrap_streaming(c, commands_mapper=lambda m: m.bind(Ask, Answers))),
        (Reacts, lambda c: bootstrap(c, domain_events_mapper=lambda m: m.bind(Happened, Reacts))),
        (Reacts, lambda c: bootstrap_events(c, events_mapper=lambda m: m.bind(Happened, Reacts))),
    ],
    ids=["request", "fallback", "chain", "stream", "domain event", "event"],
)
def test_m08_singleton_with_state_is_refused_at_start_up(
    register: Callable[[type], punq.Container], culprit: type, start: Callable[[punq.Container], Any]
) -> None:
    """Its events, or its place in a chain, would leak from one send into the next."""
    with pytest.raises(SharedHandlerError) as caught:
        start(register(culprit))
    assert caught.value.handler_type is culprit
    assert culprit.__qualname__ in str(caught.value)
    assert "transient" in str(caught.value)


def numbers_handled(container: Any, handler: type, *, sends: int = 3) -> list[list[int]]:
    """Which events each of several sends led to, up to the first that was refused."""
    seen: list[list[int]] = []
    mediator = bootstrap(
        container,
        commands_mapper=lambda m: m.bind(Do, handler),
        domain_events_mapper=lambda m: m.bind(
            Happened, type("Sees", (cqrs.EventHandler,), {"handle": lambda self, e: seen[-1].append(e.number)})
        ),
    )
    for number in range(sends):
        seen.append([])
        try:
            mediator.send(Do(emits=[Happened(number=number)], answer=str(number)))
        except SharedHandlerError:
            break
    return seen


@pytest.mark.parametrize("handler", [DoHandler, Ticks], ids=["property", "assigned list"])
@pytest.mark.parametrize(
    "container",
    [punq.Container, lambda: singletons(Ticks), lambda: instances(Ticks), OneForAll, TwoInTurn],
    ids=["transient", "punq singleton", "punq instance", "unknown container", "one for each thread"],
)
def test_m08_events_of_one_send_never_come_again(container: Callable[[], Any], handler: type) -> None:
    """Three sends lead to 0, 1 and 2, or to a refusal, never to ``0 | 0,1 | 0,1,2``."""
    for number, handled in enumerate(numbers_handled(container(), handler)):
        assert set(handled) <= {number}


@pytest.mark.parametrize("handler", [DoHandler, Ticks], ids=["property", "assigned list"])
def test_m08_events_never_come_again_from_a_scope_that_somebody_else_opened(handler: type) -> None:
    """A bound scope that hands out one object per class is no loophole."""
    with cqrs.bind_scope(OneForAll()):
        for number, handled in enumerate(numbers_handled(punq.Container(), handler)):
            assert set(handled) <= {number}


def test_m08_singleton_without_state_is_served() -> None:
    """A handler that emits nothing may be shared: the same object answers every send."""
    answered: list[int] = []

    class Quiet(cqrs.RequestHandler[Do]):
        def handle(self, request: Do) -> str:
            answered.append(id(self))
            return "quiet"

    mediator = bootstrap(singletons(Quiet), commands_mapper=lambda m: m.bind(Do, Quiet))
    assert [mediator.send(Do()), mediator.send(Do())] == ["quiet", "quiet"]
    assert len(set(answered)) == 1


@in_both_modes
def test_m08_concurrent_sends_never_see_each_others_events(limit: int) -> None:
    """Two sends that are inside of their handlers at the same time each lead to their own event, once."""
    meet = threading.Barrier(2)
    seen: queue.Queue[str] = queue.Queue()

    class Meets(cqrs.RequestHandler[Do]):
        def __init__(self) -> None:
            self._events: list[cqrs.IEvent] = []

        @property
        def events(self) -> list[cqrs.IEvent]:
            return self._events

        def handle(self, request: Do) -> str:
            self._events.append(Happened(number=int(request.answer)))
            meet.wait(WAIT)  # both have emitted before either returns
            return request.answer

    container = punq.Container()
    with bootstrap(
        container,
        commands_mapper=lambda m: m.bind(Do, Meets),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.put(e.number))),
        max_concurrent_event_handlers=limit,
    ) as mediator:
        in_threads(lambda: mediator.send(Do(answer="1")), lambda: mediator.send(Do(answer="2")))
    assert sorted(seen.queue) == [1, 2]


def test_m08_concurrent_sends_never_share_the_links_of_a_chain() -> None:
    """Two requests that walk the chain at the same time do so on handlers of their own."""
    meet = threading.Barrier(2)
    heads: list[Any] = []
    tails: list[Any] = []

    class Head(cqrs.CORRequestHandler[Ask, str]):
        def handle(self, request: Ask) -> str | None:
            heads.append(self)
            meet.wait(WAIT)
            return self.next(request)

    class Tail(cqrs.CORRequestHandler[Ask, str]):
        def handle(self, request: Ask) -> str | None:
            tails.append(self)
            meet.wait(WAIT)
            return request.name

    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Ask, [Head, Tail]))
    answers: list[Any] = []
    in_threads(*[lambda name=name: answers.append(mediator.send(Ask(name=name))) for name in "ab"])
    assert sorted(answers) == ["a", "b"]
    assert len(set(map(id, heads))) == len(set(map(id, tails))) == 2


def test_m08_singleton_chain_behind_an_unknown_container_is_refused() -> None:
    """A chain that the container hands out again would keep its first links."""
    mediator = bootstrap(OneForAll(), commands_mapper=lambda m: m.bind(Ask, [FIRST, SECOND]))
    mediator.send(Ask())
    with pytest.raises(SharedHandlerError):
        mediator.send(Ask())


# --- M9: circuit breaker of a stream -------------------------------------------------------------------------


class Breaker:
    """A circuit breaker that counts calls and opens after one failure."""

    class Open(Exception):
        pass

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.failures = 0

    def call(self, identifier: Any, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
        self.calls.append(identifier)
        if self.failures:
            raise self.Open
        return self._counted(func(*args, **kwargs))

    def _counted(self, pieces: Any) -> Iterator[Any]:
        try:
            yield from pieces
        except Exception:
            self.failures += 1
            raise

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return isinstance(exc, self.Open)


def streaming_with(breaker: Any, started: list[str]) -> cqrs.StreamingRequestMediator:
    class Primary(cqrs.StreamingRequestHandler[Ask, str]):
        def handle(self, request: Ask) -> Iterator[str]:
            started.append("primary")
            yield "p1"
            raise ConnectionError("lost")

    class Fallback(cqrs.StreamingRequestHandler[Ask, str]):
        def handle(self, request: Ask) -> Iterator[str]:
            started.append("fallback")
            yield "f1"
            yield "f2"

    binding = cqrs.RequestHandlerFallback(Primary, Fallback, (ConnectionError,), breaker)
    return bootstrap_streaming(punq.Container(), commands_mapper=lambda m: m.bind(Ask, binding))


def test_m09_circuit_breaker_of_a_stream_is_called_and_counts_its_failures() -> None:
    """The breaker sees the primary fail, and once it is open the primary is not started any more."""
    breaker, started = Breaker(), []
    mediator = streaming_with(breaker, started)
    assert list(mediator.stream(Ask())) == ["p1", "f1", "f2"]
    assert len(breaker.calls) == breaker.failures == 1
    assert list(mediator.stream(Ask())) == ["f1", "f2"]
    assert len(breaker.calls) == 2
    assert started == ["primary", "fallback", "fallback"]
    assert breaker.calls[0].__name__ == "Primary"


def test_m09_shipped_circuit_breaker_opens_for_streams() -> None:
    """The adapter counts a stream that breaks after its first piece as a failure."""
    pytest.importorskip("pybreaker")
    from cqrs_sync.adapters.circuit_breaker import PyBreakerAdapter

    started: list[str] = []
    mediator = streaming_with(PyBreakerAdapter(fail_max=2, timeout_duration=3600), started)
    assert [list(mediator.stream(Ask())) for _ in range(4)] == [["p1", "f1", "f2"]] * 2 + [["f1", "f2"]] * 2
    assert started.count("primary") == 2


# --- M10: the default broker ---------------------------------------------------------------------------------


def test_m10_default_broker_keeps_nothing_and_logs_no_payload(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand notification events without a broker leave no message behind and one WARNING without content."""
    caplog.set_level(logging.DEBUG)

    class Leaks(cqrs.RequestHandler[Do]):
        def handle(self, request: Do) -> str:
            self.events = [Told(event_name="secret-name", payload=424_242_424, topic="m10") for _ in range(1000)]
            return "done"

    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Leaks))
    mediator.send(Do())
    gc.collect()
    kept = [kept for kept in gc.get_objects() if isinstance(kept, Message | Told) and kept.topic == "m10"]
    assert kept == []
    assert not [record for record in caplog.records if "424242424" in str(vars(record))]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.name for record in warnings] == ["cqrs_sync.message_brokers.devnull"]


# --- M11: import and logging ---------------------------------------------------------------------------------


def test_m11_import_leaves_levels_and_environment_alone(tmp_path: pathlib.Path) -> None:
    """The application's levels stand, whether they were set or not, and no ``.env`` is read."""
    (tmp_path / ".env").write_text("DEFAULT_OUTPUT_TOPIC=from-dotenv\n")
    program = """
import logging, os, sys
names = ("", "cqrs", "cqrs_sync", "cqrs_sync.middlewares.logging")
logging.getLogger("cqrs_sync").setLevel(logging.ERROR)
logging.getLogger("cqrs").setLevel(logging.CRITICAL)
before = {name: logging.getLogger(name).level for name in names}
environment = dict(os.environ)
import cqrs_sync, cqrs_sync.requests.bootstrap, cqrs_sync.events.bootstrap
assert {name: logging.getLogger(name).level for name in names} == before, "levels"
own = [name for name in logging.root.manager.loggerDict if name.startswith("cqrs_sync.")]
assert all(logging.getLogger(name).level == logging.NOTSET for name in own), "levels"
assert dict(os.environ) == environment, "environment"
assert cqrs_sync.NotificationEvent(event_name="n", payload=1).topic == "output_topic", "dotenv"
"""
    environment = {"PYTHONPATH": str(pathlib.Path(cqrs.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)


class Untold(cqrs.IRequest[Any]):
    """A request, and a response, that nobody may turn into a dictionary."""

    def to_dict(self) -> dict[str, Any]:
        raise AssertionError("to_dict was called")

    @classmethod
    def from_dict(cls, **kwargs: Any) -> Untold:
        raise NotImplementedError


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_m11_logging_middleware_looks_at_nothing_while_its_level_is_off(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither request nor response become dictionaries, and neither gets into a record."""
    caplog.set_level(level)

    class Echoes(cqrs.RequestHandler[Untold, Any]):
        def handle(self, request: Untold) -> Untold:
            return request

    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Untold, Echoes))
    request = Untold()
    assert mediator.send(request) is request
    assert caplog.records == []


def test_m11_payloads_are_in_no_record_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Also where handlers and the broker fail, what is logged names classes and ids."""
    caplog.set_level(logging.INFO)

    def fail(_: Any) -> None:
        raise ValueError("broke")

    events = [Happened(number=424_242_424), Told(payload=424_242_424)]
    with mediator_for(event_handler(fail), message_broker=Failing()) as mediator:
        mediator.send(Do(emits=events, answer="424242424"))
    assert len(caplog.records) == 2
    assert not [record for record in caplog.records if "424242424" in caplog.handler.format(record)]
    fields = [{k: v for k, v in vars(record).items() if k != "exc_info"} for record in caplog.records]
    assert "424242424" not in str(fields)


# --- M12: loops of follow-ups --------------------------------------------------------------------------------


class Ping(cqrs.DomainEvent):
    """Answered with Pong."""


class Pong(cqrs.DomainEvent):
    """Answered with Ping."""


class OnPing(cqrs.EventHandler[Ping]):
    def handle(self, event: Ping) -> None:
        self.events = [Pong()]


class OnPong(cqrs.EventHandler[Pong]):
    def handle(self, event: Pong) -> None:
        self.events = [Ping()]


class Splits(cqrs.EventHandler[Ping]):
    def handle(self, event: Ping) -> None:
        self.events = [Ping(), Ping()]


def ping_pong(event_map: cqrs.EventMap) -> None:
    event_map.bind(Ping, OnPing)
    event_map.bind(Pong, OnPong)


class Serves(cqrs.StreamingRequestHandler[Ask, str]):
    def handle(self, request: Ask) -> Iterator[str]:
        self.events = [Ping()]
        yield "served"


def loop_by_request(limit: int) -> None:
    with bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=ping_pong,
        max_concurrent_event_handlers=limit,
    ) as mediator:
        mediator.send(Do(emits=[Ping()]))


def loop_by_stream(limit: int) -> None:
    with bootstrap_streaming(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Ask, Serves),
        domain_events_mapper=ping_pong,
        max_concurrent_event_handlers=limit,
    ) as mediator:
        list(mediator.stream(Ask()))


def loop_by_event(limit: int) -> None:
    options = {"max_concurrent_event_handlers": limit}
    with bootstrap_events(punq.Container(), events_mapper=ping_pong, **options) as mediator:
        mediator.send(Ping())


@in_both_modes
@pytest.mark.parametrize("loop", [loop_by_request, loop_by_stream, loop_by_event])
def test_m12_loop_of_follow_ups_is_cut_and_its_path_shown(loop: Callable[[int], None], limit: int) -> None:
    """Events that answer each other for ever end in one error that names them in their order."""
    with pytest.raises(EventHandlingError) as caught:
        loop(limit)
    (error,) = caught.value.exceptions
    assert isinstance(error, FollowUpLoop)
    assert isinstance(error, RecursionError)
    assert error.path == tuple(itertools.islice(itertools.cycle([Ping, Pong]), len(error.path)))
    assert len(error.path) == event_processor.MAX_EVENT_DEPTH + 2
    assert "Ping -> Pong -> Ping" in str(error)


@in_both_modes
def test_m12_branching_loop_ends_with_one_error_per_handler_at_work(
    limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that doubles is cut by its number of events, and does not leave as many errors as it had events."""
    monkeypatch.setattr(event_processor, "MAX_FOLLOW_UPS", 2000)
    with (
        mediator_for(Splits, event_type=Ping, max_concurrent_event_handlers=limit) as mediator,
        pytest.raises(EventHandlingError) as caught,
    ):
        mediator.send(Do(emits=[Ping()]))
    assert all(isinstance(error, FollowUpLoop) for error in caught.value.exceptions)
    assert len(caught.value.exceptions) <= limit
    assert len(caplog.records) <= limit


@in_both_modes
def test_m12_stated_depth_is_a_setting_and_no_limit_of_the_call_stack(limit: int) -> None:
    """Five thousand follow-ups out of each other are handled where the setting allows them."""
    seen: list[int] = []

    class Counts(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            seen.append(event.number)
            self.events = [Happened(number=event.number + 1)] if event.number < 5000 else []

    with mediator_for(Counts, max_concurrent_event_handlers=limit, max_event_depth=5000) as mediator:
        mediator.send(Do(emits=[Happened()]))
    assert seen == list(range(5001))


# --- M13: order and bounds of what waits ---------------------------------------------------------------------


def test_m13_handlers_start_in_the_order_of_events_and_bindings() -> None:
    """Whenever one of two places becomes free, the next handler in order starts, and only that one."""
    started: queue.Queue[tuple[int, int]] = queue.Queue()
    finish = {(event, handler): threading.Event() for event in range(5) for handler in range(2)}

    def react_as(number: int) -> Callable[[Any], None]:
        def react(event: Happened) -> None:
            started.put((event.number, number))
            assert finish[event.number, number].wait(WAIT)

        return react

    handlers = [event_handler(react_as(number), name=f"Reacts{number}") for number in range(2)]
    with mediator_for(*handlers, max_concurrent_event_handlers=2, event_errors="raise") as mediator:
        events = [Happened(number=number) for number in range(5)]
        sender = threading.Thread(target=mediator.send, args=(Do(emits=events),))
        sender.start()
        running = {started.get(timeout=WAIT), started.get(timeout=WAIT)}
        waiting = sorted(set(finish) - running)
        assert running == {(0, 0), (0, 1)}
        for expected in waiting:
            finish[done := max(running)].set()  # the younger one, so that the order cannot come from the threads
            running.remove(done)
            running.add(started.get(timeout=WAIT))
            assert expected in running
        for left in running:
            finish[left].set()
        sender.join(WAIT)
    assert started.empty()


def test_m13_neither_threads_nor_invitations_grow_with_the_events() -> None:
    """A thousand events of two follow-ups each occupy two threads, and not thousands of queued tasks."""
    highest_threads = highest_queued = 0

    def react(_: Any) -> None:
        nonlocal highest_threads, highest_queued
        pool = [thread for thread in threading.enumerate() if thread.name.startswith("cqrs-events")]
        highest_threads = max(highest_threads, len(pool))
        queued = [tasks.qsize() for tasks in map(_threads_queues.get, pool) if tasks is not None]
        highest_queued = max(highest_queued, *queued, 0)

    with mediator_for(event_handler(react), max_concurrent_event_handlers=2, event_errors="raise") as mediator:
        mediator.send(Do(emits=[Happened(then=[Happened(), Happened()]) for _ in range(1000)]))
    assert highest_threads <= 2
    assert highest_queued <= 4


# --- M14: what the documentation shows -----------------------------------------------------------------------


class AssignsAtOnce(cqrs.RequestHandler[Do]):
    def __init__(self) -> None:
        self.events = []

    def handle(self, request: Do) -> str:
        self.events = [Happened(number=1)]
        return "done"


class AssignsInTheChain(cqrs.CORRequestHandler[Do, str]):
    def __init__(self) -> None:
        self.events = []

    def handle(self, request: Do) -> str | None:
        self.events = [Happened(number=1)]
        return "done"


class AssignsInTheStream(cqrs.StreamingRequestHandler[Do, str]):
    def __init__(self) -> None:
        self.events = []

    def handle(self, request: Do) -> Iterator[str]:
        self.events = [Happened(number=1)]
        yield "done"


@pytest.mark.parametrize("binding", [AssignsAtOnce, [AssignsInTheChain]], ids=["request", "chain"])
def test_m14_assigned_events_are_emitted(binding: Any) -> None:
    """``self.events = [...]`` works as the documentation has it, in ``__init__`` and in ``handle``."""
    seen: list[int] = []
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, binding),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.append(e.number))),
    )
    assert mediator.send(Do()) == "done"
    assert seen == [1]


def test_m14_assigned_events_of_a_stream_are_emitted_once() -> None:
    """Emptying the list between pieces loses and repeats nothing."""
    seen: list[int] = []
    mediator = bootstrap_streaming(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, AssignsInTheStream),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda e: seen.append(e.number))),
    )
    assert list(mediator.stream(Do())) == ["done"]
    assert seen == [1]


def test_m14_assigned_follow_ups_of_an_event_handler_are_handled() -> None:
    """Event handlers may assign too."""
    seen: list[int] = []

    class Assigns(cqrs.EventHandler[Happened]):
        def __init__(self) -> None:
            self.events = []

        def handle(self, event: Happened) -> None:
            seen.append(event.number)
            self.events = [Happened(number=1)] if event.number == 0 else []

    with mediator_for(Assigns) as mediator:
        mediator.send(Do(emits=[Happened()]))
    assert seen == [0, 1]


@pytest.mark.parametrize(
    "name",
    [
        "requests.request_handler",
        "requests.bootstrap",
        "requests.mermaid",
        "events.event_handler",
        "events.bootstrap",
        "events.pydantic_event",
    ],
)
def test_m14_examples_in_docstrings_run(name: str) -> None:
    """Where a docstring shows code, the code runs as shown."""
    results = doctest.testmod(
        importlib.import_module(f"cqrs_sync.{name}"), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert results.attempted > 0
    assert results.failed == 0


def test_m14_documentation_calls_no_method_that_no_mediator_has() -> None:
    """No docstring names a ``mediator.emit()`` that does not exist."""
    mediators = (cqrs.RequestMediator, cqrs.StreamingRequestMediator, cqrs.EventMediator)
    sources = pathlib.Path(cqrs.__file__).parent.rglob("*.py")
    called = {name for source in sources for name in re.findall(r"\bmediator\.(\w+)\(", source.read_text())}
    assert called >= {"send", "stream"}
    assert not [name for name in called if not any(hasattr(mediator, name) for mediator in mediators)]


# --- M15: one set of defaults --------------------------------------------------------------------------------

requests_roots = cqrs_sync.requests.bootstrap
events_roots = cqrs_sync.events.bootstrap


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Each parameter with its default, and what the keywords behind ``**settings`` are."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {
        parameter.name: parameter.annotation if parameter.kind is parameter.VAR_KEYWORD else parameter.default
        for parameter in parameters
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (requests_roots.bootstrap, cqrs.RequestMediator),
        (requests_roots.bootstrap_streaming, cqrs.StreamingRequestMediator),
        (requests_roots.bootstrap, requests_roots.bootstrap_streaming),
        (requests_roots.setup_mediator, cqrs.RequestMediator),
        (requests_roots.setup_streaming_mediator, cqrs.StreamingRequestMediator),
        (requests_roots.bootstrap, events_roots.bootstrap),
        (events_roots.bootstrap, cqrs.EventMediator),
        (events_roots.setup_mediator, cqrs.EventMediator),
        (requests_roots.bootstrap, cqrs.EventProcessor),
        (requests_roots.bootstrap, cqrs.EventEmitter),
    ],
    ids=lambda function: f"{function.__module__}.{function.__name__}",
)
def test_m15_same_parameter_has_the_same_default_everywhere(
    first: Callable[..., Any], second: Callable[..., Any]
) -> None:
    """``bootstrap`` and the constructor it calls start from the same behaviour."""
    ours, theirs = defaults(first), defaults(second)
    empty = inspect.Parameter.empty
    shared = {name for name in ours.keys() & theirs.keys() if empty not in (ours[name], theirs[name])}
    assert shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


@pytest.mark.parametrize("name", ["bootstrap", "bootstrap_streaming"])
def test_m15_bootstrap_knows_every_setting_of_its_constructor(name: str) -> None:
    """What the constructor takes beside the parts that ``bootstrap`` makes can be said to ``bootstrap``."""
    made = {"request_map", "container", "event_emitter", "middleware_chain", "event_map", "dispatcher_type"}
    root = getattr(requests_roots, name)
    mediator = typing.get_type_hints(root)["return"]
    assert set(defaults(mediator)) - made <= set(defaults(root))


def test_m15_there_is_one_bootstrap_and_not_ten_overloads() -> None:
    """One signature says it all."""
    for root in (requests_roots.bootstrap, requests_roots.bootstrap_streaming, events_roots.bootstrap):
        assert typing.get_overloads(root) == []


def test_m15_constructor_and_bootstrap_handle_events_in_the_callers_thread_by_default() -> None:
    """Neither starts a pool unless told to."""
    seen: list[int] = []

    def sees(_: Any) -> None:
        seen.append(threading.get_ident())

    request_map, event_map = cqrs.RequestMap(), cqrs.EventMap()
    request_map.bind(Do, DoHandler)
    event_map.bind(Happened, event_handler(sees))
    by_hand = cqrs.RequestMediator(request_map, cqrs.PunqContainer(punq.Container()), event_map=event_map)
    for mediator in (by_hand, mediator_for(event_handler(sees))):
        mediator.send(Do(emits=[Happened()]))
    assert seen == [threading.get_ident()] * 2


@pytest.mark.parametrize("root", [bootstrap, bootstrap_streaming])
def test_m15_event_map_is_built_once(root: Callable[..., Any]) -> None:
    """The mapper of the events is called once, by the streaming bootstrap too."""
    built: list[cqrs.EventMap] = []
    root(punq.Container(), domain_events_mapper=built.append)
    assert len(built) == 1
