"""How many event handlers run at once, in which order they start, and what becomes of their errors."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable

import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import (
    ConfigurationError,
    EventHandlerDoesNotExist,
    EventHandlingError,
    FollowUpLoop,
    MediatorClosed,
)
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from tests.unit.shop import Do, Happened, Told, event_handler, mediator_for
from tests.unit.test_executors import WAIT, Gauge


def together(count: int, function: Callable[[int], object]) -> None:
    """Call a function with 0 to count - 1 in as many threads at once, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT * 6)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("limit", [2, 4])
def test_at_most_n_handlers_run_at_once_over_50_sends_with_8_events_of_4_handlers(limit: int) -> None:
    """The bound counts handlers, not events, over all concurrent sends of a mediator."""
    gauge = Gauge()
    pause = threading.Event()

    def react(event: Happened) -> None:
        with gauge:
            pause.wait(0.0005)  # give others the chance to be too many

    handlers = [event_handler(react, name=f"Reacts{number}") for number in range(4)]
    with mediator_for(*handlers, max_concurrent_event_handlers=limit) as mediator:
        events = [Happened(number=number) for number in range(8)]
        together(50, lambda _: mediator.send(Do(emits=events)))
    assert gauge.total == 50 * 8 * 4
    assert gauge.highest == limit


def test_one_handler_at_once_means_in_order_in_each_callers_thread() -> None:
    """The default does not serialise sends against each other: two callers are in their handlers together."""
    both = threading.Barrier(2)
    seen: dict[int, list[int]] = {}

    def react(event: Happened) -> None:
        both.wait(WAIT)
        seen.setdefault(threading.get_ident(), []).append(event.number)

    with mediator_for(event_handler(react)) as mediator:
        together(2, lambda _: mediator.send(Do(emits=[Happened(number=n) for n in range(5)])))
    assert sorted(seen.values()) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_nested_sends_five_levels_deep_never_deadlock(limit: int) -> None:
    """Handlers that send, whose handlers send, from several callers at once."""
    gauge = Gauge()
    mediators: list[cqrs.RequestMediator] = []

    def react(event: Happened) -> None:
        with gauge:
            pass
        if event.number:
            below = [Happened(number=event.number - 1) for _ in range(2)]
            mediators[0].send(Do(emits=below))

    with mediator_for(event_handler(react), max_concurrent_event_handlers=limit) as mediator:
        mediators.append(mediator)
        together(8, lambda _: mediator.send(Do(emits=[Happened(number=5)])))
    assert gauge.total == 8 * (2**6 - 1)


def test_the_bound_holds_for_the_innermost_handlers_of_nested_sends() -> None:
    """A handler that waits for its nested send is not at work; those that are never exceed n."""
    gauge = Gauge()
    pause = threading.Event()
    mediators: list[cqrs.RequestMediator] = []

    def react(event: Happened) -> None:
        if event.number:
            mediators[0].send(Do(emits=[Happened(number=event.number - 1) for _ in range(3)]))
        else:
            with gauge:
                pause.wait(0.0005)

    with mediator_for(event_handler(react), max_concurrent_event_handlers=2) as mediator:
        mediators.append(mediator)
        together(6, lambda _: mediator.send(Do(emits=[Happened(number=3)])))
    assert gauge.total == 6 * 27
    assert gauge.highest <= 2


def test_two_mediators_whose_handlers_send_to_each_other_never_deadlock() -> None:
    """Each has all its places taken by handlers that wait for the other."""
    all_in = threading.Barrier(4)

    def crossing(event: Happened) -> None:
        if event.number < 2:
            all_in.wait(WAIT)
            mediators[1 - event.number].send(Do(emits=[Happened(number=2)]))

    mediators = [mediator_for(event_handler(crossing), max_concurrent_event_handlers=2) for _ in range(2)]
    together(2, lambda n: mediators[n].send(Do(emits=[Happened(number=n), Happened(number=n)])))
    for mediator in mediators:
        mediator.close(WAIT)


def test_context_variables_reach_handlers_on_pool_threads() -> None:
    """A trace id set by the caller is seen by every handler."""
    trace = contextvars.ContextVar("trace", default="none")
    seen: list[tuple[str, bool]] = []
    barrier = threading.Barrier(3)

    def react(event: Happened) -> None:
        barrier.wait(WAIT)
        seen.append((trace.get(), threading.current_thread().name.startswith("cqrs-events")))

    with mediator_for(event_handler(react), max_concurrent_event_handlers=3) as mediator:
        trace.set("t-1")
        mediator.send(Do(emits=[Happened() for _ in range(3)]))
    assert sorted(seen) == [("t-1", False), ("t-1", True), ("t-1", True)]


@pytest.mark.parametrize("limit", [1, 4])
def test_a_failing_handler_leaves_its_siblings_alone_and_its_traceback_in_the_log(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By default errors are isolated: the response comes, the others run, the log tells."""
    seen: list[int] = []

    def fail(event: Happened) -> None:
        raise ValueError("broken handler")

    with mediator_for(
        event_handler(fail, name="Fails"),
        event_handler(lambda event: seen.append(event.number)),
        max_concurrent_event_handlers=limit,
    ) as mediator:
        assert mediator.send(Do(emits=[Happened(number=n, then=[Happened(number=9)]) for n in range(3)])) == "done"
    assert sorted(seen) == [0, 1, 2, 9, 9, 9]
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(records) == 6
    assert "Fails failed on Happened: ValueError" in records[0].getMessage()
    assert records[0].exc_info is not None
    assert "broken handler" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("limit", [1, 4])
def test_raised_errors_come_together_with_the_response(limit: int, caplog: pytest.LogCaptureFixture) -> None:
    """event_errors="raise" raises once, after all siblings ran, and does not lose the answer."""
    seen: list[int] = []

    def fail(event: Happened) -> None:
        raise ValueError(event.number)

    with (
        mediator_for(
            event_handler(fail, name="Fails"),
            event_handler(lambda event: seen.append(event.number)),
            max_concurrent_event_handlers=limit,
            event_errors="raise",
        ) as mediator,
        pytest.raises(EventHandlingError) as caught,
    ):
        mediator.send(Do(emits=[Happened(number=n) for n in range(3)]))
    assert sorted(error.args[0] for error in caught.value.exceptions) == [0, 1, 2]
    assert caught.value.response == "done"
    assert sorted(seen) == [0, 1, 2]
    assert not caplog.records


def test_a_failing_request_handler_emits_nothing() -> None:
    """Events count only when the handler has returned."""
    seen: list[Happened] = []

    class Breaks(cqrs.RequestHandler[Do, str]):
        def handle(self, request: Do) -> str:
            self.events = [Happened()]
            raise ZeroDivisionError

    import punq

    from cqrs_sync.requests.bootstrap import bootstrap

    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, Breaks),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(seen.append)),
    )
    with pytest.raises(ZeroDivisionError):
        mediator.send(Do())
    assert seen == []


def test_notifications_and_domain_events_share_one_queue() -> None:
    """They go out in the order in which the handler listed them, follow-ups behind."""
    order: list[str] = []

    class Broker(InMemoryMessageBroker):
        def send_message(self, message: cqrs.Message) -> None:
            order.append(f"told {message.payload['payload']}")

    with mediator_for(
        event_handler(lambda event: order.append(f"happened {event.number}")), message_broker=Broker()
    ) as mediator:
        mediator.send(
            Do(emits=[Told(payload=1), Happened(number=2, then=[Told(payload=5)]), Told(payload=3), Happened(number=4)])
        )
    assert order == ["told 1", "happened 2", "told 3", "happened 4", "told 5"]


def test_a_broker_that_fails_drops_no_other_event(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is isolated like a handler's, and everything else goes on."""
    seen: list[int] = []
    with mediator_for(
        event_handler(lambda event: seen.append(event.number)), message_broker=InMemoryMessageBroker(capacity=1)
    ) as mediator:
        mediator.send(Do(emits=[Told(), Told(), Happened(number=1)]))
    assert seen == [1]
    assert "InMemoryMessageBroker failed on Told: the in-memory broker is full" in caplog.text


def test_what_is_published_carries_all_parts_of_the_event() -> None:
    """Name, id, topic, key, headers, content type and bytes."""
    broker = InMemoryMessageBroker()
    event = Told(payload=7, partition_key="k", headers={"h": "1"}, topic="t")
    with mediator_for(message_broker=broker) as mediator:
        mediator.send(Do(emits=[event]))
    (message,) = broker.topic("t")
    assert (message.message_name, message.message_id, message.key) == ("told", event.event_id, "k")
    assert message.headers == {"h": "1"}
    assert message.content_type == "application/json"
    assert message.payload_bytes is not None
    assert cqrs.JsonEventSerializer().deserialize(message.payload_bytes, Told) == event
    assert broker.drain() == [message]
    assert broker.messages == []


def test_an_event_with_nowhere_to_go_fails_the_handler_before_anything_is_emitted() -> None:
    """A plain Event without a handler is an error that names it."""

    class Lost(cqrs.Event):
        pass

    seen: list[int] = []
    mediator = mediator_for(event_handler(lambda event: seen.append(1)))
    with pytest.raises(EventHandlerDoesNotExist, match=r"no handler for .*Lost") as caught:
        mediator.send(Do(emits=[Happened(), Lost()]))
    assert caught.value.message_type is Lost
    assert seen == []


def test_a_follow_up_with_nowhere_to_go_is_raised_even_where_errors_are_isolated() -> None:
    """A wiring error is not a handler's failure."""

    class Lost(cqrs.Event):
        pass

    mediator = mediator_for(event_handler(lambda event: None))
    with pytest.raises(EventHandlingError) as caught:
        mediator.send(Do(emits=[Happened(then=[Lost()])]))
    assert isinstance(caught.value.exceptions[0], EventHandlerDoesNotExist)
    assert caught.value.response == "done"


@pytest.mark.parametrize("limit", [1, 3])
def test_a_loop_of_follow_ups_is_cut_at_the_stated_depth(limit: int) -> None:
    """The error shows the path and is always raised."""
    count: list[int] = []

    class Loops(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            count.append(1)
            self.events = [event]

    with (
        mediator_for(Loops, max_concurrent_event_handlers=limit, max_event_depth=5) as mediator,
        pytest.raises(EventHandlingError) as caught,
    ):
        mediator.send(Do(emits=[Happened()]))
    (loop,) = caught.value.exceptions
    assert isinstance(loop, FollowUpLoop)
    assert loop.path == (Happened,) * 7
    assert "Happened -> Happened" in str(loop)
    assert len(count) == 6


def test_a_loop_that_branches_is_cut_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two follow-ups each would make 2**32 events before their depth ends it."""
    monkeypatch.setattr("cqrs_sync.events.event_processor.MAX_FOLLOW_UPS", 1000)
    count: list[int] = []

    class Doubles(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            count.append(1)
            self.events = [event, event]

    mediator = mediator_for(Doubles)
    with pytest.raises(EventHandlingError) as caught:
        mediator.send(Do(emits=[Happened()]))
    assert any(isinstance(error, FollowUpLoop) for error in caught.value.exceptions)
    assert len(count) <= 1002


def test_an_event_reaches_handlers_bound_to_its_base_classes() -> None:
    """The most derived class's handlers come first, and each handler runs once."""
    order: list[str] = []

    class HappenedTwice(Happened):
        pass

    class Audit(cqrs.EventHandler[cqrs.IEvent]):
        def handle(self, event: cqrs.IEvent) -> None:
            order.append("audit")

    class Twice(cqrs.EventHandler[HappenedTwice]):
        def handle(self, event: HappenedTwice) -> None:
            order.append("twice")

    import punq

    from cqrs_sync.requests.bootstrap import bootstrap
    from tests.unit.shop import DoHandler

    def events(event_map: cqrs.EventMap) -> None:
        event_map.bind(cqrs.IEvent, Audit)
        event_map.bind(Happened, Audit)
        event_map.bind(HappenedTwice, Twice)

    broker = InMemoryMessageBroker()
    mediator = bootstrap(
        punq.Container(),
        broker,
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=events,
    )
    mediator.send(Do(emits=[HappenedTwice(), Told()]))
    assert order == ["twice", "audit", "audit"]
    assert len(broker.messages) == 1


def test_a_domain_event_without_handlers_warns_once_per_class(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers of domain events are optional."""
    mediator = mediator_for()
    for _ in range(3):
        mediator.send(Do(emits=[Happened()]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no handler for domain event Happened" in caplog.text


def test_a_closed_mediator_refuses_calls_but_lets_handlers_at_work_finish_theirs() -> None:
    """close() waits for what is at work, nested sends included."""
    entered, leave = threading.Event(), threading.Event()
    seen: list[int] = []
    mediators: list[cqrs.RequestMediator] = []

    def react(event: Happened) -> None:
        if event.number:
            entered.set()
            leave.wait(WAIT)
            mediators[0].send(Do(emits=[Happened(number=0)]))
        seen.append(event.number)

    mediator = mediator_for(event_handler(react), max_concurrent_event_handlers=2)
    mediators.append(mediator)
    sender = threading.Thread(target=mediator.send, args=(Do(emits=[Happened(number=1)]),))
    sender.start()
    assert entered.wait(WAIT)
    closer = threading.Thread(target=mediator.close)
    closer.start()
    while not mediator._closed:
        pass
    with pytest.raises(MediatorClosed, match="RequestMediator was closed"):
        mediator.send(Do())
    leave.set()
    sender.join(WAIT)
    closer.join(WAIT)
    assert seen == [0, 1]


def test_an_emitter_used_alone_runs_everything_and_raises_together() -> None:
    """emit() returns follow-ups, and raises after all have run."""
    import punq

    seen: list[int] = []

    def fail(event: Happened) -> None:
        raise ValueError("one")

    event_map = cqrs.EventMap()
    event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    emitter = EventEmitter(event_map=event_map, container=punq.Container())
    after = Happened(number=2)
    assert list(emitter.emit(Happened(number=1, then=[after]))) == [after]
    failing = cqrs.EventMap()
    failing.bind(Happened, event_handler(fail))
    failing.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    with pytest.raises(EventHandlingError):
        EventEmitter(failing, punq.Container()).emit(Happened(number=3))
    assert seen == [1, 3]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_concurrent_event_handlers": 0}, "max_concurrent_event_handlers must be at least 1, not 0"),
        ({"event_errors": "ignore"}, "event_errors must be 'isolate' or 'raise', not 'ignore'"),
        ({"max_event_depth": 0}, "max_event_depth must be at least 1"),
        (
            {"scope_strategy": cqrs.ScopeStrategy.SEND, "max_concurrent_event_handlers": 2},
            "leave max_concurrent_event_handlers at 1",
        ),
        (
            {"scope_strategy": cqrs.ScopeStrategy.SEND, "concurrent_event_handle_enable": True},
            "leave max_concurrent_event_handlers at 1",
        ),
        ({"scope_strategy": cqrs.ScopeStrategy.SEND, "event_errors": "isolate"}, "cannot isolate errors"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(options: dict[str, object], text: str) -> None:
    """At start-up, with the remedy."""
    with pytest.raises(ConfigurationError, match=text):
        mediator_for(**options)


def test_a_processor_without_an_emitter_is_refused() -> None:
    """It would lose every event."""
    with pytest.raises(ConfigurationError, match="needs an event_emitter"):
        EventProcessor(cqrs.EventMap())


def test_concurrency_can_be_switched_off_in_the_async_librarys_way() -> None:
    """concurrent_event_handle_enable=False runs handlers in the caller's thread, whatever the number."""
    threads: set[int] = set()
    mediator = mediator_for(
        event_handler(lambda event: threads.add(threading.get_ident())),
        max_concurrent_event_handlers=4,
        concurrent_event_handle_enable=False,
    )
    mediator.send(Do(emits=[Happened() for _ in range(20)]))
    assert threads == {threading.get_ident()}
