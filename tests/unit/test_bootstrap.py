"""What bootstrap sets up, in which order, and what it refuses."""

from __future__ import annotations

import logging
import timeit
from typing import Any

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import (
    ConfigurationError,
    DuplicateHandler,
    EventHandlerTypeError,
    HandlerTypeError,
    RequestHandlerDoesNotExist,
    RequestHandlerTypeError,
    UnresolvableDependency,
)
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.events.bootstrap import setup_mediator as setup_event_mediator
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming, setup_event_emitter, setup_mediator
from tests.unit.shop import Do, DoHandler, Happened, Told, event_handler, mediator_for


class Ask(cqrs.Request[int]):
    pass


class Clock:
    pass


class Needs(cqrs.RequestHandler[Do]):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def handle(self, request: Do) -> str:
        return "tick"


class Reacts(cqrs.EventHandler[Happened]):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def handle(self, event: Happened) -> None: ...


class Streams(cqrs.StreamingRequestHandler[Do, str]):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def handle(self, request: Do) -> Any:
        yield "tick"


class Link(cqrs.CORRequestHandler[Do, str]):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def handle(self, request: Do) -> str | None:
        return self.next(request)


def test_commands_and_queries_go_the_same_way() -> None:
    """One map, two mappers."""

    class AskHandler(cqrs.RequestHandler[Ask]):
        def handle(self, request: Ask) -> int:
            return 42

    with bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        queries_mapper=lambda m: m.bind(Ask, AskHandler),
    ) as mediator:
        assert (mediator.send(Do()), mediator.send(Ask())) == ("done", 42)


def test_start_up_functions_run_first() -> None:
    """Before the container is looked at."""
    container = punq.Container()
    bootstrap(
        container,
        commands_mapper=lambda m: m.bind(Do, Needs),
        on_startup=[lambda: container.register(Clock)],
    )
    order: list[str] = []
    bootstrap_events(container, on_startup=[lambda: order.append("a"), lambda: order.append("b")])
    assert order == ["a", "b"]


def test_a_request_without_a_handler_is_an_error_that_names_it() -> None:
    """Lookup is by exact class."""

    class Derived(Do):
        pass

    with pytest.raises(RequestHandlerDoesNotExist, match=r"no handler for .*Derived: bind one in") as caught:
        mediator_for().send(Derived())
    assert caught.value.message_type is Derived
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    ("handler", "start"),
    [
        (Needs, lambda: bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Needs))),
        (Link, lambda: bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, [Link]))),
        (Streams, lambda: bootstrap_streaming(punq.Container(), commands_mapper=lambda m: m.bind(Do, Streams))),
        (Reacts, lambda: bootstrap(punq.Container(), domain_events_mapper=lambda m: m.bind(Happened, Reacts))),
        (Reacts, lambda: bootstrap_events(punq.Container(), events_mapper=lambda m: m.bind(Happened, Reacts))),
        (
            Needs,
            lambda: bootstrap(
                punq.Container(),
                commands_mapper=lambda m: m.bind(Do, cqrs.RequestHandlerFallback(DoHandler, Needs)),
            ),
        ),
    ],
    ids=["request", "chain", "stream", "domain event", "event", "fallback"],
)
def test_a_missing_dependency_is_refused_with_class_and_parameter(handler: type, start: Any) -> None:
    """At start-up, in every kind of handler."""
    with pytest.raises(UnresolvableDependency, match="parameter 'clock': Clock is not registered") as caught:
        start()
    assert (caught.value.owner, caught.value.parameter, caught.value.dependency) == (handler, "clock", Clock)
    assert isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize(
    ("bindings", "error", "text"),
    [
        ([(Do, DoHandler), (Do, Needs)], DuplicateHandler, "Do already exists in registry: it is bound to DoHandler"),
        ([(Do, [Link, DoHandler])], RequestHandlerTypeError, "must be type CORRequestHandler, and DoHandler is not"),
        ([(Do, Link)], RequestHandlerTypeError, r"bind the chain as a list, \[Link\]"),
        ([(Ask, DoHandler)], RequestHandlerTypeError, "DoHandler handles Do and cannot be bound to Ask"),
        ([(Do, Clock)], RequestHandlerTypeError, "Clock must be a RequestHandler"),
        ([(Do, [])], RequestHandlerTypeError, "needs at least one handler"),
        ([(Do, [Link, Link])], RequestHandlerTypeError, "each handler class once"),
        ([(Clock, DoHandler)], RequestHandlerTypeError, "Clock must be a subclass of IRequest"),
    ],
)
def test_wrong_bindings_of_requests_are_refused(bindings: Any, error: type[Exception], text: str) -> None:
    """Each names the class."""

    def commands(request_map: cqrs.RequestMap) -> None:
        for request, handler in bindings:
            request_map.bind(request, handler)

    with pytest.raises(error, match=text):
        bootstrap(punq.Container(), commands_mapper=commands)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (DoHandler, "DoHandler must be an EventHandler class"),
        (event_handler(print, Told, "TellsNothing"), None),
        (cqrs.EventHandlerFallback, "must be an EventHandler class"),
    ],
)
def test_wrong_bindings_of_events_are_refused(handler: Any, text: str | None) -> None:
    """An untyped handler may be bound to anything."""
    if text is None:
        mediator_for(handler)
        return
    with pytest.raises(EventHandlerTypeError, match=text):
        mediator_for(handler)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_fallback_of_another_kind_is_refused(streaming: bool) -> None:
    """When it is made."""
    one, two = (Streams, DoHandler) if streaming else (DoHandler, Streams)
    with pytest.raises(HandlerTypeError, match="as its primary is") as caught:
        cqrs.RequestHandlerFallback(one, two)
    assert caught.value.handler_type is two


def test_ten_thousand_handlers_can_be_bound_and_send_stays_flat() -> None:
    """A send costs as many calls among ten thousand handlers as among ten."""

    def calls(count: int) -> int:
        requests: list[type[cqrs.Request[Any]]] = []

        def commands(request_map: cqrs.RequestMap) -> None:
            for number in range(count):
                request = type(f"Request{number}", (cqrs.Request,), {})
                handler = type(f"Handler{number}", (cqrs.RequestHandler,), {"handle": lambda self, request: None})
                request_map.bind(request, handler)
                requests.append(request)

        mediator = bootstrap(punq.Container(), commands_mapper=commands)
        message = requests[-1]()
        mediator.send(message)
        return _calls_of(lambda: mediator.send(message))

    assert calls(10_000) == calls(10)


def _calls_of(function: Any) -> int:
    """How many Python and C functions one call enters."""
    import sys

    entered = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered
        entered += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered


def test_the_hot_path_stays_short() -> None:
    """A default send enters a known number of functions, so that nobody lengthens it by accident."""
    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, DoHandler))
    message = Do()
    mediator.send(message)
    assert _calls_of(lambda: mediator.send(message)) <= 19
    assert timeit  # the time itself is measured by benchmarks/


def test_the_logging_middleware_is_innermost_and_added_once(caplog: pytest.LogCaptureFixture) -> None:
    """Unless one is given."""
    order: list[str] = []

    def outer(request: Any, handle: Any) -> Any:
        order.append("outer")
        return handle(request)

    class Mine(cqrs.LoggingMiddleware):
        def __call__(self, request: Any, handle: Any) -> Any:
            order.append("mine")
            return super().__call__(request, handle)

    with caplog.at_level(logging.DEBUG):
        mediator_for(middlewares=[outer]).send(Do())
        assert [record.getMessage() for record in caplog.records] == ["handling Do", "handled Do"]
        assert caplog.records[0].__dict__["cqrs_request"] == {"emits": [], "answer": "done"}
        assert caplog.records[1].__dict__["cqrs_response"] == "done"
        caplog.clear()
        mediator_for(middlewares=[Mine(), outer]).send(Do())
        assert len(caplog.records) == 2
    assert order == ["outer", "mine", "outer"]


def test_hand_wired_mediators_need_no_bootstrap() -> None:
    """Constructors take the async library's keyword arguments."""
    request_map, event_map = cqrs.RequestMap(), cqrs.EventMap()
    seen: list[int] = []
    request_map.bind(Do, DoHandler)
    event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    container = cqrs.DIContainer()
    container.attach_external_container(punq.Container())
    emitter = cqrs.EventEmitter(event_map=event_map, container=container, message_broker=InMemoryMessageBroker())
    chain = cqrs.MiddlewareChain()
    chain.add(lambda request, handle: handle(request) + "!")
    with cqrs.RequestMediator(
        request_map=request_map,
        container=container,
        event_emitter=emitter,
        middleware_chain=chain,
        event_map=event_map,
        max_concurrent_event_handlers=2,
        concurrent_event_handle_enable=True,
    ) as mediator:
        assert mediator.send(Do(emits=[Happened(number=1)])) == "done!"
    assert seen == [1]
    with pytest.raises(ConfigurationError, match="serves a mediator already"):
        chain.add(print)


def test_a_mediator_wired_without_an_emitter_loses_no_event() -> None:
    """It makes one from the event map; what cannot go anywhere is an error."""
    request_map, event_map = cqrs.RequestMap(), cqrs.EventMap()
    seen: list[int] = []
    request_map.bind(Do, DoHandler)
    event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    mediator = cqrs.RequestMediator(request_map, punq.Container(), event_map=event_map)
    mediator.send(Do(emits=[Happened(number=1)]))
    assert seen == [1]
    from cqrs_sync.errors import MessageBrokerNotConfigured

    with pytest.raises(MessageBrokerNotConfigured, match="Told must be published") as caught:
        mediator.send(Do(emits=[Told()]))
    assert caught.value.message_type is Told
    assert cqrs.RequestMediator(request_map, punq.Container()).send(Do()) == "done"


def test_setup_functions_put_the_same_parts_together() -> None:
    """As the async library's do."""
    seen: list[int] = []

    def events(event_map: cqrs.EventMap) -> None:
        event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))

    container = cqrs.DIContainer(punq.Container())
    mediator = setup_mediator(
        setup_event_emitter(container, events), container, [], commands_mapper=lambda m: m.bind(Do, DoHandler)
    )
    mediator.send(Do(emits=[Happened(number=1)]))
    setup_event_mediator(container, [], events).send(Happened(number=2))
    setup_event_mediator(container, []).close()
    assert seen == [1, 2]


def test_an_event_mediator_handles_raises_and_warns() -> None:
    """What came from outside is not published again; its follow-ups are."""
    broker = InMemoryMessageBroker()
    seen: list[Any] = []

    class Tells(cqrs.EventHandler[Told]):
        def handle(self, event: Told) -> None:
            seen.append(event.payload)
            if event.payload < 2:
                self.events = [Told(payload=event.payload + 1)]

    mediator = bootstrap_events(
        punq.Container(),
        middlewares=[lambda event, handle: (seen.append(type(event).__name__), handle(event))[1]],
        events_mapper=lambda m: m.bind(Told, Tells),
        message_broker=broker,
    )
    mediator.send(Told(payload=1))
    assert seen == ["Told", 1, 2]
    assert [message.payload["payload"] for message in broker.messages] == [2]
    from cqrs_sync.errors import EventHandlerDoesNotExist, EventHandlingError, MediatorClosed

    with pytest.raises(EventHandlerDoesNotExist):
        mediator.send(cqrs.NotificationEvent[int](event_name="other", payload=1))
    mediator.send(Happened())  # a domain event may have no handler

    def fail(event: Any) -> None:
        raise ValueError

    with pytest.raises(EventHandlingError):
        bootstrap_events(punq.Container(), events_mapper=lambda m: m.bind(Told, event_handler(fail))).send(Told())
    bootstrap_events(
        punq.Container(), events_mapper=lambda m: m.bind(Told, event_handler(fail)), event_errors="isolate"
    ).send(Told())
    mediator.close()
    with pytest.raises(MediatorClosed, match="EventMediator was closed"):
        mediator.send(Told())


def test_an_event_dispatcher_can_be_used_alone() -> None:
    """With the async library's arguments."""
    from cqrs_sync.dispatcher import EventDispatcher

    seen: list[int] = []
    event_map = cqrs.EventMap()
    event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    EventDispatcher(event_map=event_map, container=punq.Container()).dispatch(Happened(number=3))
    assert seen == [3]


def test_a_dispatcher_of_ones_own_is_asked_for_every_send() -> None:
    """dispatcher_type swaps the dispatcher, as in the async library."""
    from cqrs_sync.dispatcher import RequestDispatcher, RequestDispatchResult

    class Shouts(RequestDispatcher):
        def dispatch(self, request: Any) -> RequestDispatchResult:
            result = super().dispatch(request)
            return result._replace(response=result.response.upper())

    seen: list[int] = []
    request_map, event_map = cqrs.RequestMap(), cqrs.EventMap()
    request_map.bind(Do, DoHandler)
    event_map.bind(Happened, event_handler(lambda event: seen.append(event.number)))
    for strategy in (cqrs.ScopeStrategy.NONE, cqrs.ScopeStrategy.SEND):
        mediator = cqrs.RequestMediator(
            request_map, punq.Container(), event_map=event_map, scope_strategy=strategy, dispatcher_type=Shouts
        )
        assert mediator.send(Do(emits=[Happened(number=1)])) == "DONE"
    assert seen == [1, 1]


class Chains(cqrs.RequestHandler[Do]):
    """Sends another command through the mediator that called it."""

    def __init__(self, mediator: cqrs.RequestMediator) -> None:
        self._mediator = mediator

    def handle(self, request: Do) -> str:
        return f"{request.answer} {self._mediator.send(Ask())}"


class AskHandler(cqrs.RequestHandler[Ask]):
    def handle(self, request: Ask) -> int:
        return 42


class Orders(cqrs.EventHandler[Happened]):
    """Answers an event with a command."""

    asked: list[int] = []

    def __init__(self, mediator: cqrs.RequestMediator) -> None:
        self._mediator = mediator

    def handle(self, event: Happened) -> None:
        self.asked.append(self._mediator.send(Ask()))


def chaining(container: punq.Container) -> cqrs.RequestMediator:
    def commands(request_map: cqrs.RequestMap) -> None:
        request_map.bind(Do, Chains)
        request_map.bind(Ask, AskHandler)

    return bootstrap(container, commands_mapper=commands, domain_events_mapper=lambda m: m.bind(Happened, Orders))


def test_a_handler_that_asks_for_the_mediator_gets_the_one_that_called_it() -> None:
    """Request handlers and event handlers, and singletons they depend on."""

    class Service:
        def __init__(self, mediator: cqrs.RequestMediator) -> None:
            self.mediator = mediator

    class Uses(cqrs.RequestHandler[Do]):
        def __init__(self, service: Service) -> None:
            self.service = service

        def handle(self, request: Do) -> str:
            self.events = [Happened()]
            return str(self.service.mediator is mediators[0])

    Uses.__init__.__annotations__["service"] = Service
    assert chaining(punq.Container()).send(Do()) == "done 42"
    container = punq.Container()
    container.register(Service, scope=punq.Scope.singleton)

    def commands(request_map: cqrs.RequestMap) -> None:
        request_map.bind(Do, Uses)
        request_map.bind(Ask, AskHandler)

    mediators = [
        bootstrap(container, commands_mapper=commands, domain_events_mapper=lambda m: m.bind(Happened, Orders))
    ]
    assert mediators[0].send(Do()) == "True"
    assert Orders.asked == [42]


def test_a_mediator_that_is_registered_comes_before_the_one_that_called() -> None:
    """Whoever registers one means it; and a streaming handler can ask for it."""
    other = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Ask, AskHandler))
    container = punq.Container()
    container.register(cqrs.RequestMediator, instance=other)

    class Streaming(cqrs.StreamingRequestHandler[Do, int]):
        def __init__(self, mediator: cqrs.RequestMediator) -> None:
            self.mediator = mediator

        def handle(self, request: Do) -> Any:
            yield self.mediator.send(Ask())

    streams = bootstrap_streaming(container, commands_mapper=lambda m: m.bind(Do, Streaming))
    assert list(streams.stream(Do())) == [42]
    mediator = bootstrap(container, commands_mapper=lambda m: m.bind(Do, Chains))
    assert mediator.send(Do()) == "done 42"
