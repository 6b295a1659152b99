"""Corners that reviews found: contexts that outlive their send, work that is undone, registrations that race."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import scoped_session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync import executors
from cqrs_sync.container.plans import Plan
from cqrs_sync.container.punq import PunqContainer
from cqrs_sync.errors import ConfigurationError, HandlerTypeError, NoActiveUnitOfWork, SharedHandlerError
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests.unit.shop import Do, DoHandler, Happened, Told, event_handler, mediator_for
from tests.unit.test_executors import WAIT, Gauge

SEND = cqrs.ScopeStrategy.SEND


class Put(cqrs.Request[str]):
    """Writes a key, emits events, and fails on request."""

    key: str
    emits: list[Any] = []
    fails: bool = False


class PutHandler(cqrs.RequestHandler[Put]):
    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def handle(self, request: Put) -> str:
        self._transaction[request.key] = 1
        self.events = list(request.emits)
        if request.fails:
            raise ZeroDivisionError
        return request.key


class Outer(cqrs.Request[Any]):
    pass


class Desk:
    """Mediators for ``Put``, for a stream of it, and for ``Outer``, in one unit of work and with one broker."""

    def __init__(self, outer: Callable[[], Any], fallback: type[Any] | None = None) -> None:
        self.uow = MemoryUnitOfWork()
        self.broker = InMemoryMessageBroker()
        options: dict[str, Any] = {
            "scope_strategy": SEND,
            "unit_of_work": self.uow,
            "message_broker": self.broker,
        }

        class OuterHandler(cqrs.RequestHandler[Outer, Any]):
            def handle(self, request: Outer) -> Any:
                return outer()

        class Pieces(cqrs.StreamingRequestHandler[Put, int]):
            def __init__(self, transaction: MemoryTransaction) -> None:
                self._transaction = transaction

            def handle(self, request: Put) -> Iterator[int]:
                for number in range(3):
                    self._transaction[f"{request.key}{number}"] = 1
                    self.events = [Told(payload=number)]
                    if request.fails and number:
                        raise ZeroDivisionError
                    yield number

        binding: Any = OuterHandler if fallback is None else cqrs.RequestHandlerFallback(OuterHandler, fallback)

        def commands(request_map: cqrs.RequestMap) -> None:
            request_map.bind(Put, PutHandler)
            request_map.bind(Outer, binding)

        self.mediator = bootstrap(punq.Container(), commands_mapper=commands, **options)
        self.streams = bootstrap_streaming(punq.Container(), commands_mapper=lambda m: m.bind(Put, Pieces), **options)

    @property
    def published(self) -> list[Any]:
        return [message.payload["payload"] for message in self.broker.messages]


def test_a_context_that_outlives_its_send_does_not_revive_its_scope() -> None:
    """A callback that runs later in the same thread has a unit of work of its own, and it is committed."""
    contexts: list[contextvars.Context] = []
    desk = Desk(lambda: contexts.append(contextvars.copy_context()))
    desk.mediator.send(Outer())
    contexts[0].run(desk.mediator.send, Put(key="later", emits=[Told(payload=1)]))
    assert desk.uow.store == {"later": 1}
    assert desk.published == [1]
    with pytest.raises(NoActiveUnitOfWork):
        contexts[0].run(desk.uow.transaction)


def test_a_fallback_publishes_nothing_of_what_its_primary_sent() -> None:
    """A nested send inside the failed primary is undone with it, events included."""

    class Instead(cqrs.RequestHandler[Outer, str]):
        def handle(self, request: Outer) -> str:
            return "instead"

    def outer() -> None:
        desk.mediator.send(Put(key="lost", emits=[Told(payload=1)]))
        raise ConnectionError

    desk = Desk(outer, Instead)
    assert desk.mediator.send(Outer()) == "instead"
    assert (desk.uow.store, desk.published) == ({}, [])


def test_a_nested_stream_that_fails_is_undone_alone() -> None:
    """The piece that failed, that is; those that went out belong to the send, which may go on."""

    def outer() -> list[int]:
        pieces: list[int] = []
        with pytest.raises(ZeroDivisionError):
            pieces.extend(desk.streams.stream(Put(key="s", fails=True)))
        return pieces

    desk = Desk(outer)
    assert desk.mediator.send(Outer()) == [0]
    assert (desk.uow.store, desk.published) == ({"s0": 1}, [0])


def test_a_nested_stream_cannot_outlive_its_send() -> None:
    """What it would still write has nobody to commit it."""

    def outer() -> Any:
        stream = desk.streams.stream(Put(key="s"))
        assert next(stream) == 0
        return stream

    desk = Desk(outer)
    stream = desk.mediator.send(Outer())
    with pytest.raises(ConfigurationError, match="draw it inside the handler"):
        next(stream)
    assert (desk.uow.store, desk.published) == ({"s0": 1}, [0])


def test_a_send_that_was_admitted_before_close_keeps_its_events() -> None:
    """It has committed; losing them, or failing, would be worse than being late."""
    entered, leave = threading.Event(), threading.Event()
    seen: list[int] = []
    answers: list[str] = []

    class Slow(DoHandler):
        def handle(self, request: Do) -> str:
            entered.set()
            leave.wait(WAIT)
            return super().handle(request)

    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, Slow),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda event: seen.append(event.number))),
        max_concurrent_event_handlers=3,
    )
    request = Do(emits=[Happened(number=n) for n in range(3)])
    sender = threading.Thread(target=lambda: answers.append(mediator.send(request)))
    sender.start()
    assert entered.wait(WAIT)
    mediator.close()
    leave.set()
    sender.join(WAIT)
    assert (answers, seen) == (["done"], [0, 1, 2])


def test_an_interrupted_caller_leaves_no_follow_up_and_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job on a pool thread returns after its caller was interrupted is dropped."""
    blocked, leave = threading.Event(), threading.Event()
    original = executors._Work.next_after

    def recorded(work: Any, further: list[Any], failure: BaseException | None) -> Any:
        following = original(work, further, failure)
        if failure is not None:
            leave.set()  # the interrupt is known; only now does the other job return
        return following

    monkeypatch.setattr(executors._Work, "next_after", recorded)
    caller = threading.get_ident()
    seen: list[int] = []

    def react(event: Happened) -> None:
        if event.number:
            seen.append(event.number)
        elif threading.get_ident() == caller:
            assert blocked.wait(WAIT)
            raise KeyboardInterrupt
        else:
            blocked.set()
            leave.wait(WAIT)

    mediator = mediator_for(event_handler(react), max_concurrent_event_handlers=2)
    first = Happened(number=0, then=[Happened(number=1) for _ in range(5)])
    with pytest.raises(KeyboardInterrupt):
        mediator.send(Do(emits=[first, first]))
    mediator.close()
    assert seen == []


@pytest.mark.parametrize("limit", [1, 4])
def test_events_may_be_a_generator(limit: int) -> None:
    """It is read once."""

    class Yields(cqrs.RequestHandler[Do]):
        @property
        def events(self) -> Iterator[cqrs.IEvent]:
            yield Happened(number=1)
            yield Happened(number=2)

        def handle(self, request: Do) -> str:
            return "done"

    seen: list[int] = []
    with bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Do, Yields),
        domain_events_mapper=lambda m: m.bind(Happened, event_handler(lambda event: seen.append(event.number))),
        max_concurrent_event_handlers=limit,
    ) as mediator:
        mediator.send(Do())
    assert sorted(seen) == [1, 2]


def test_a_factory_that_returns_one_object_is_found_out() -> None:
    """Nobody can see beforehand what it returns."""
    one = DoHandler()
    container = punq.Container()
    container.register(DoHandler, factory=lambda: one)
    mediator = mediator_for(event_handler(lambda event: None), di_container=container)
    mediator.send(Do(emits=[Happened()]))
    with pytest.raises(SharedHandlerError):
        mediator.send(Do(emits=[Happened()]))


def test_a_factory_that_returns_new_objects_is_welcome() -> None:
    """Each time."""
    container = punq.Container()
    container.register(DoHandler, factory=lambda: DoHandler())
    seen: list[int] = []
    mediator = mediator_for(event_handler(lambda event: seen.append(event.number)), di_container=container)
    for number in range(3):
        mediator.send(Do(emits=[Happened(number=number)]))
    assert seen == [0, 1, 2]


def test_a_handler_that_becomes_a_singleton_later_is_refused_then() -> None:
    """A registration after bootstrap is seen by the next send, and so is what is wrong with it."""
    container = punq.Container()
    mediator = mediator_for(di_container=container)
    mediator.send(Do())
    container.register(DoHandler, scope=punq.Scope.singleton)
    with pytest.raises(SharedHandlerError):
        mediator.send(Do())


def test_a_list_of_events_in_the_class_is_refused() -> None:
    """All instances would share it; a tuple is constant and welcome."""

    class Shares(cqrs.RequestHandler[Do]):
        events = []

        def handle(self, request: Do) -> str:
            return "done"

    class Constant(cqrs.RequestHandler[Do]):
        events = (Told(payload=1),)

        def handle(self, request: Do) -> str:
            return "done"

    with pytest.raises(SharedHandlerError, match="give each instance its own list"):
        bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Shares))
    broker = InMemoryMessageBroker()
    bootstrap(punq.Container(), broker, commands_mapper=lambda m: m.bind(Do, Constant)).send(Do())
    assert len(broker.messages) == 1


def test_a_broker_that_is_empty_is_still_the_broker() -> None:
    """One with a length is falsy before the first message."""

    class Sized(InMemoryMessageBroker):
        def __len__(self) -> int:
            return len(self.messages)

    broker = Sized()
    mediator_for(message_broker=broker).send(Do(emits=[Told()]))
    assert len(broker) == 1


def test_a_scope_that_was_bound_serves_its_own_thread_only() -> None:
    """What lives in it (a session, say) is not for event handlers on other threads."""

    class Resource:
        pass

    used: list[int] = []
    both = threading.Barrier(2)

    class Uses(cqrs.EventHandler[Happened]):
        def __init__(self, session: Resource) -> None:
            self.session = session

        def handle(self, event: Happened) -> None:
            both.wait(WAIT)
            used.append(id(self.session))

    Uses.__init__.__annotations__["session"] = Resource
    root = punq.Container()
    root.register(Resource)
    child = root.child()
    child.register(Resource, instance=Resource())
    with (
        mediator_for(Uses, di_container=root, max_concurrent_event_handlers=2) as mediator,
        cqrs.bind_scope(child),
    ):
        mediator.send(Do(emits=[Happened(), Happened()]))
    assert len(set(used)) == 2


def test_a_retried_stream_starts_with_a_new_handler() -> None:
    """Events of the attempt that failed are not emitted."""
    attempts: list[int] = []

    class Flaky(cqrs.StreamingRequestHandler[Do, int]):
        def handle(self, request: Do) -> Iterator[int]:
            attempts.append(1)
            self.events = [Told(payload=len(attempts))]
            if len(attempts) == 1:
                raise ConnectionError
            yield len(attempts)

    def retry(request: Any, handle: Any) -> Iterator[Any]:
        try:
            yield from handle(request)
        except ConnectionError:
            yield from handle(request)

    def cached(request: Any, handle: Any) -> Iterator[Any]:
        return iter([0])

    broker = InMemoryMessageBroker()
    streams = bootstrap_streaming(
        punq.Container(), broker, middlewares=[retry], commands_mapper=lambda m: m.bind(Do, Flaky)
    )
    assert list(streams.stream(Do())) == [2]
    assert [message.payload["payload"] for message in broker.messages] == [2]
    answered = bootstrap_streaming(punq.Container(), middlewares=[cached], commands_mapper=lambda m: m.bind(Do, Flaky))
    assert list(answered.stream(Do())) == [0]


def test_registrations_beside_sends_neither_fail_nor_get_lost() -> None:
    """Plans are made and invalidated from many threads."""
    container = punq.Container()
    adapter = PunqContainer(container)
    stop = threading.Event()
    errors: list[Exception] = []

    class Thing:
        def __init__(self, number: int) -> None:
            self.number = number

    Thing.__init__.__annotations__["number"] = int
    container.register(int, instance=-1)

    def plan() -> None:
        while not stop.is_set():
            try:
                adapter.plan(Thing, {}).build()
            except Exception as error:
                errors.append(error)
                return

    planners = [threading.Thread(target=plan) for _ in range(3)]
    for planner in planners:
        planner.start()
    kept = adapter.plan(Thing, {})
    for number in range(200):
        container.register(int, instance=number)
        assert kept.build().number == number
    stop.set()
    for planner in planners:
        planner.join(WAIT)
    assert errors == []


def test_unrelated_singletons_do_not_wait_for_each_other() -> None:
    """A constructor may even wait for a thread that resolves another one."""

    class Fast:
        pass

    class Slow:
        def __init__(self) -> None:
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.append(adapter.resolve(Fast)))
            thread.start()
            thread.join(WAIT)
            assert found, "the other singleton could not be built"

    container = punq.Container()
    container.register(Fast, scope=punq.Scope.singleton)
    container.register(Slow, scope=punq.Scope.singleton)
    adapter = PunqContainer(container)
    assert adapter.resolve(Slow) is adapter.resolve(Slow)


def test_a_singleton_that_another_thread_builds_is_waited_for() -> None:
    """And not built twice."""
    entered, leave = threading.Event(), threading.Event()
    made = Gauge()

    class Slow:
        def __init__(self) -> None:
            with made:
                entered.set()
                leave.wait(WAIT)

    container = punq.Container()
    container.register(Slow, scope=punq.Scope.singleton)
    adapter = PunqContainer(container)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(adapter.resolve(Slow))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(WAIT)
    leave.set()
    for thread in threads:
        thread.join(WAIT)
    assert made.total == 1
    assert len({id(each) for each in found}) == 1


def test_a_plan_that_was_overtaken_while_it_compiled_compiles_again() -> None:
    """On its first build, too."""
    compiled: list[int] = []

    def compile_() -> Callable[[], int]:
        compiled.append(1)
        number = len(compiled)
        if number == 1:
            plan.invalidate()
        return lambda: number

    plan = Plan(compile_)
    plan.compile()
    assert [plan.build(), plan.build()] == [2, 2]


def test_a_scope_that_cannot_be_closed_after_the_commit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The commit stands, and so does what is published after it."""

    class Scoped:
        def resolve(self, type_: Any) -> Any:
            return type_()

        @contextmanager
        def open_scope(self, context: Mapping[type, Any] | None = None) -> Iterator[Any]:
            yield Scoped()
            raise OSError("finalizer")

    broker = InMemoryMessageBroker()
    options: dict[str, Any] = {"commands_mapper": lambda m: m.bind(Do, DoHandler), "scope_strategy": SEND}
    with_unit = bootstrap(Scoped(), broker, unit_of_work=MemoryUnitOfWork(), **options)
    assert with_unit.send(Do(emits=[Told()])) == "done"
    assert len(broker.messages) == 1
    assert "scope could not be closed" in caplog.text
    with pytest.raises(OSError, match="finalizer"):  # there the scope itself may be what commits
        bootstrap(Scoped(), broker, **options).send(Do(emits=[Told()]))
    assert len(broker.messages) == 1


def test_a_session_without_a_default_database_can_be_nested() -> None:
    """sessionmaker(binds={...})."""
    uow = SqlAlchemyUnitOfWork(sessionmaker(binds={}))
    transaction = uow.begin()
    with pytest.raises(ZeroDivisionError), transaction.savepoint():
        raise ZeroDivisionError
    transaction.close()


def test_a_nested_send_that_asks_for_no_session_opens_no_connection() -> None:
    """Where nothing was written before, nothing has to be kept apart."""
    connections: list[int] = []
    engine = sa.create_engine("sqlite://")
    sa.event.listen(engine, "connect", lambda *_: connections.append(1))

    class Inner(cqrs.Request[str]):
        pass

    class InnerHandler(cqrs.RequestHandler[Inner]):
        def handle(self, request: Inner) -> str:
            return "inner"

    class Nests(cqrs.RequestHandler[Do]):
        def __init__(self, mediator: cqrs.RequestMediator) -> None:
            self._mediator = mediator

        def handle(self, request: Do) -> str:
            return self._mediator.send(Inner())

    def commands(request_map: cqrs.RequestMap) -> None:
        request_map.bind(Do, Nests)
        request_map.bind(Inner, InnerHandler)

    mediator = bootstrap(
        punq.Container(),
        commands_mapper=commands,
        scope_strategy=SEND,
        unit_of_work=SqlAlchemyUnitOfWork(sessionmaker(engine)),
    )
    assert mediator.send(Do()) == "inner"
    assert connections == []
    engine.dispose()


def test_what_a_failed_nested_send_began_is_undone_whole() -> None:
    """It began the transaction itself."""

    def outer() -> str:
        with pytest.raises(ZeroDivisionError):
            desk.mediator.send(Put(key="lost", fails=True))
        return desk.mediator.send(Put(key="kept"))

    desk = Desk(outer)
    assert desk.mediator.send(Outer()) == "kept"
    assert desk.uow.store == {"kept": 1}


def test_a_nested_send_that_fails_before_it_has_written_leaves_nothing_to_undo() -> None:
    """And the outer one goes on."""

    class Fails(cqrs.RequestHandler[Do]):
        def handle(self, request: Do) -> str:
            raise ConnectionError

    uow = MemoryUnitOfWork()
    inner = bootstrap(
        punq.Container(), commands_mapper=lambda m: m.bind(Do, Fails), scope_strategy=SEND, unit_of_work=uow
    )

    class Copes(PutHandler):
        def handle(self, request: Put) -> str:
            with pytest.raises(ConnectionError):
                inner.send(Do())
            return "coped"

    class Lazy(cqrs.RequestHandler[Put]):
        def handle(self, request: Put) -> str:
            with pytest.raises(ConnectionError):
                inner.send(Do())
            return "coped"

    for handler, commits in ((Copes, 1), (Lazy, 1)):
        outer = bootstrap(
            punq.Container(),
            commands_mapper=lambda m, handler=handler: m.bind(Put, handler),
            scope_strategy=SEND,
            unit_of_work=uow,
        )
        assert outer.send(Put(key="k")) == "coped"
        assert uow.commits == commits


def test_a_scoped_session_is_refused() -> None:
    """Nested units of work would share its one session."""
    with pytest.raises(ConfigurationError, match="pass its sessionmaker"):
        SqlAlchemyUnitOfWork(scoped_session(sessionmaker()))


class Async(cqrs.RequestHandler[Do]):
    async def handle(self, request: Do) -> str:  # type: ignore[override]
        return "never"


class AsyncEvents(cqrs.EventHandler[Happened]):
    async def handle(self, event: Happened) -> None:  # type: ignore[override]
        """Nobody would await it."""


class Generates(cqrs.RequestHandler[Do]):
    def handle(self, request: Do) -> Any:
        yield "piece"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (lambda: bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Async)), "take out async and await"),
        (lambda: mediator_for(AsyncEvents), "take out async and await"),
        (lambda: bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Generates)), "bootstrap_streaming"),
        (lambda: bootstrap(punq.Container), "is no container"),
    ],
)
def test_what_was_left_from_the_async_library_is_refused_by_name(start: Callable[[], Any], text: str) -> None:
    """A coroutine that nobody awaits would do nothing, silently."""
    with pytest.raises((HandlerTypeError, ConfigurationError), match=text):
        start()


async def _async(*_: Any) -> None:
    """Nobody would await it."""


class _AsyncBroker(InMemoryMessageBroker):
    async def send_message(self, message: cqrs.Message) -> None:  # type: ignore[override]
        """Nobody would await it."""


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope_strategy": "send"}, "scope_strategy must be a ScopeStrategy, not 'send'"),
        ({"unit_of_work": sessionmaker()}, r"pass SqlAlchemyUnitOfWork\(sessionmaker\)"),
        ({"unit_of_work": SqlAlchemyUnitOfWork}, "not the class SqlAlchemyUnitOfWork"),
        ({"message_broker": InMemoryMessageBroker}, "not the class InMemoryMessageBroker"),
        ({"message_broker": _AsyncBroker()}, "nobody would await it"),
        ({"middlewares": [_async]}, "nobody would await it"),
        ({"on_startup": [_async]}, "nobody would await it"),
        ({"max_concurrent_event_handlers": 2, "worker_context": _async}, "nobody would await it"),
        ({"max_concurrent_event_handlers": "4"}, "must be a int, not '4'"),
    ],
)
def test_what_would_do_nothing_silently_is_refused_at_start_up(options: dict[str, Any], text: str) -> None:
    """By the name of the parameter, with the remedy."""
    with pytest.raises(ConfigurationError, match=text):
        mediator_for(**options)


def test_async_mappers_and_sessions_are_refused() -> None:
    """An empty mediator, or a commit that nobody awaits, would be the result."""
    for mapper in ("commands_mapper", "domain_events_mapper"):
        with pytest.raises(ConfigurationError, match="mapper _async is async"):
            bootstrap(punq.Container(), **{mapper: _async})
    for wrong in (sa.create_engine("sqlite://"), type("async_sessionmaker", (), {"__call__": _async})()):
        with pytest.raises(ConfigurationError, match="must be a sessionmaker"):
            SqlAlchemyUnitOfWork(wrong)  # type: ignore[arg-type]


def test_a_misspelt_setting_is_named_with_those_there_are() -> None:
    """And not by a class that the caller has never seen."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'unitofwork'; the settings of events are unit_of"):
        mediator_for(unitofwork=1)


def test_sending_a_class_says_so() -> None:
    """The usual slip."""
    from cqrs_sync.errors import RequestHandlerDoesNotExist

    with pytest.raises(RequestHandlerDoesNotExist, match="send an instance"):
        mediator_for().send(Do)  # type: ignore[arg-type]


@pytest.mark.parametrize("events", [Told(payload=1), [Told]])
def test_events_that_are_no_list_of_events_are_refused(events: Any) -> None:
    """One event alone, or a class."""

    class Slips(cqrs.RequestHandler[Do]):
        def handle(self, request: Do) -> str:
            self.events = events
            return "done"

    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Do, Slips))
    with pytest.raises(HandlerTypeError, match="events must be a list of events"):
        mediator.send(Do())


def test_the_error_of_event_handlers_names_them() -> None:
    """And the event, so that it says enough in another process too."""
    from cqrs_sync.errors import EventHandlingError

    def fail(event: Happened) -> None:
        raise ValueError

    mediator = mediator_for(event_handler(fail, name="Fails"), event_errors="raise")
    with pytest.raises(EventHandlingError, match=r"Fails on Happened \(ValueError\)"):
        mediator.send(Do(emits=[Happened()]))
