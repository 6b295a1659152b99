"""One transaction per handler or per send: committed once, rolled back whole, never shared between threads."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool, StaticPool

import cqrs_sync as cqrs
from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import (
    BrokerUnavailable,
    ConfigurationError,
    EventHandlerDoesNotExist,
    EventHandlingError,
    NoActiveUnitOfWork,
    UnresolvableDependency,
)
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox.mock import MemoryOutbox
from cqrs_sync.outbox.sqlalchemy import OutboxModel
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests.unit.shop import Happened, Told, event_handler
from tests.unit.test_event_concurrency import together

SEND, HANDLER, NONE = cqrs.ScopeStrategy.SEND, cqrs.ScopeStrategy.HANDLER, cqrs.ScopeStrategy.NONE
STRATEGIES = pytest.mark.parametrize("strategy", [NONE, HANDLER, SEND])

metadata = sa.MetaData()
rows = sa.Table("rows", metadata, sa.Column("name", sa.String, primary_key=True))


class Write(cqrs.Request[str]):
    """Writes a row and emits events; fails on request."""

    name: str
    emits: list[Any] = []
    fails: bool = False


class Repository:
    """A dependency between the handler and its session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, name: str) -> None:
        self.session.execute(rows.insert().values(name=name))


class WriteHandler(cqrs.RequestHandler[Write]):
    def __init__(self, repository: Repository, session: Session) -> None:
        self._repository = repository
        self._session = session
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: Write) -> str:
        assert self._repository.session is self._session
        self._repository.add(request.name)
        self._events.extend(request.emits)
        if request.fails:
            raise ZeroDivisionError
        return request.name


class Records(cqrs.EventHandler[Happened]):
    """Writes a row in an event handler; fails on number 13."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, event: Happened) -> None:
        self._session.execute(rows.insert().values(name=f"event-{event.number}"))
        self.events = event.then
        if event.number == 13:
            raise ValueError("unlucky")


class Counting(SqlAlchemyUnitOfWork):
    """Keeps the sessions it opened and counts what became of them."""

    def __init__(self, engine: sa.Engine) -> None:
        self.sessions: list[Session] = []
        self.log: list[str] = []
        self._make = sessionmaker(engine)
        super().__init__(self._open)

    def _open(self) -> Session:
        session = self._make()
        sa.event.listen(session, "after_commit", lambda _: self.log.append("commit"))
        sa.event.listen(session, "after_soft_rollback", lambda *_: self.log.append("rollback"))
        self.sessions.append(session)
        return session


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def uow(engine: sa.Engine) -> Counting:
    return Counting(engine)


def names(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(sa.select(rows.c.name)))


def mediator(uow: UnitOfWork, strategy: cqrs.ScopeStrategy, **options: Any) -> cqrs.RequestMediator:
    container = punq.Container()
    container.register(Repository)
    handlers = options.pop("handlers", [Records])
    handler = options.pop("handler", WriteHandler)

    def events(event_map: cqrs.EventMap) -> None:
        for each in handlers:
            event_map.bind(Happened, each)

    return bootstrap(
        container,
        commands_mapper=lambda m: m.bind(Write, handler),
        domain_events_mapper=events,
        scope_strategy=strategy,
        unit_of_work=uow,
        **options,
    )


@STRATEGIES
def test_a_succeeding_handler_commits_once(engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy) -> None:
    """Its repository and itself share one session, which is committed after it returned."""
    assert mediator(uow, strategy).send(Write(name="a")) == "a"
    assert names(engine) == ["a"]
    assert uow.log == ["commit"]
    assert len(uow.sessions) == 1


@STRATEGIES
def test_a_failing_handler_leaves_no_row(engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy) -> None:
    """Its session is rolled back and its events are not emitted."""
    broker = InMemoryMessageBroker()
    with pytest.raises(ZeroDivisionError):
        mediator(uow, strategy, message_broker=broker).send(
            Write(name="a", fails=True, emits=[Told(), Happened(number=1)])
        )
    assert names(engine) == []
    assert uow.log == ["rollback"]
    assert broker.messages == []


@STRATEGIES
def test_an_event_with_nowhere_to_go_rolls_back(engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy) -> None:
    """It is found before the commit."""

    class Lost(cqrs.Event):
        pass

    with pytest.raises(EventHandlerDoesNotExist):
        mediator(uow, strategy).send(Write(name="a", emits=[Lost()]))
    assert names(engine) == []


@STRATEGIES
def test_a_notification_is_published_only_after_the_commit(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """Also that of an event handler."""
    committed: list[int] = []

    class Broker(InMemoryMessageBroker):
        def send_message(self, message: cqrs.Message) -> None:
            committed.append(len(uow.log))
            super().send_message(message)

    broker = Broker()
    mediator(uow, strategy, message_broker=broker).send(
        Write(name="a", emits=[Told(payload=1), Happened(number=1, then=[Told(payload=2)])])
    )
    assert [message.payload["payload"] for message in broker.messages] == [1, 2]
    expected = [1, 1] if strategy is SEND else [1, 2]
    assert committed == expected
    assert set(uow.log) == {"commit"}


@pytest.mark.parametrize("strategy", [NONE, HANDLER])
def test_each_handler_has_a_unit_of_work_of_its_own(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing event handler leaves no row, and its siblings and the command stand."""
    mediator(uow, strategy).send(Write(name="a", emits=[Happened(number=13), Happened(number=1)]))
    assert names(engine) == ["a", "event-1"]
    assert uow.log == ["commit", "rollback", "commit"]
    assert "Records failed on Happened: ValueError" in caplog.text


def test_send_has_one_unit_of_work_with_its_events_inside(engine: sa.Engine, uow: Counting) -> None:
    """Handlers of events and follow-ups write in the command's transaction."""
    mediator(uow, SEND).send(Write(name="a", emits=[Happened(number=1, then=[Happened(number=2)])]))
    assert names(engine) == ["a", "event-1", "event-2"]
    assert uow.log == ["commit"]
    assert len(uow.sessions) == 1


def test_a_failing_event_handler_inside_the_transaction_rolls_everything_back(engine: sa.Engine, uow: Counting) -> None:
    """Errors are raised together there, whatever event_errors says; nothing is published."""
    broker = InMemoryMessageBroker()
    with pytest.raises(EventHandlingError) as caught:
        mediator(uow, SEND, message_broker=broker).send(
            Write(name="a", emits=[Told(), Happened(number=13), Happened(number=1)])
        )
    assert [str(error) for error in caught.value.exceptions] == ["unlucky"]
    assert names(engine) == []
    assert broker.messages == []


def test_a_broker_that_fails_after_the_commit_of_a_send_is_isolated_or_raised_with_the_response(
    engine: sa.Engine, uow: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands either way."""
    full = InMemoryMessageBroker(capacity=0)
    assert mediator(uow, SEND, message_broker=full).send(Write(name="a", emits=[Told()])) == "a"
    assert "InMemoryMessageBroker failed" in caplog.text
    with pytest.raises(EventHandlingError) as caught:
        mediator(uow, SEND, message_broker=full, event_errors="raise").send(Write(name="b", emits=[Told()]))
    assert caught.value.response == "b"
    assert isinstance(caught.value.exceptions[0], BrokerUnavailable)
    assert names(engine) == ["a", "b"]


class Outer(cqrs.Request[str]):
    """Sends another command, and catches its failure."""

    inner: Write
    fails: bool = False


def nesting(uow: UnitOfWork, strategy: cqrs.ScopeStrategy, **options: Any) -> cqrs.RequestMediator:
    inner = mediator(uow, strategy, **options)

    class OuterHandler(cqrs.RequestHandler[Outer]):
        def __init__(self, session: Session) -> None:
            self._session = session

        def handle(self, request: Outer) -> str:
            with contextlib.suppress(ZeroDivisionError, EventHandlingError):
                inner.send(request.inner)
            self._session.execute(rows.insert().values(name="outer"))
            if request.fails:
                raise LookupError
            return "outer"

    return bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Outer, OuterHandler),
        scope_strategy=strategy,
        unit_of_work=uow,
        message_broker=options.get("message_broker"),
    )


def test_a_nested_send_joins_the_transaction(engine: sa.Engine, uow: Counting) -> None:
    """Another mediator with the same unit of work writes in it, and publishes after the outer commit."""
    broker = InMemoryMessageBroker()
    outer = nesting(uow, SEND, message_broker=broker)
    with pytest.raises(LookupError):
        outer.send(Outer(inner=Write(name="a", emits=[Told(), Happened(number=1)]), fails=True))
    assert (names(engine), broker.messages) == ([], [])
    outer.send(Outer(inner=Write(name="a", emits=[Told(), Happened(number=1)])))
    assert names(engine) == ["a", "event-1", "outer"]
    assert len(broker.messages) == 1
    assert len(uow.sessions) == 2


@pytest.mark.parametrize("emits", [[], [Happened(number=13)]])
def test_a_nested_send_that_fails_leaves_no_row_even_where_its_error_is_caught(
    engine: sa.Engine, uow: Counting, emits: list[Any]
) -> None:
    """It is undone alone, and what it wanted to publish is forgotten."""
    broker = InMemoryMessageBroker()
    outer = nesting(uow, SEND, message_broker=broker)
    outer.send(Outer(inner=Write(name="a", fails=not emits, emits=[Told(), *emits])))
    assert names(engine) == ["outer"]
    assert broker.messages == []


def test_a_nested_send_with_a_unit_of_work_per_handler_commits_alone(tmp_path: Any) -> None:
    """The failing outer command does not take the inner one with it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}")
    metadata.create_all(engine)
    uow = Counting(engine)
    with pytest.raises(LookupError):
        nesting(uow, HANDLER).send(Outer(inner=Write(name="a"), fails=True))
    assert names(engine) == ["a"]
    assert len(uow.sessions) == 2
    engine.dispose()


class FailsAfterWriting(cqrs.RequestHandler[Write, str]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: Write) -> str:
        self._session.execute(rows.insert().values(name="half"))
        raise ConnectionError


class Breaker(ICircuitBreaker):
    def call(self, identifier: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return False


@STRATEGIES
@pytest.mark.parametrize("breaker", [None, Breaker()])
def test_what_a_failed_primary_wrote_is_not_committed_with_its_fallback(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy, breaker: ICircuitBreaker | None
) -> None:
    """Also inside one transaction for the whole send, where it is undone alone."""
    fallback = cqrs.RequestHandlerFallback(FailsAfterWriting, WriteHandler, circuit_breaker=breaker)  # type: ignore[arg-type]
    assert mediator(uow, strategy, handler=fallback).send(Write(name="a")) == "a"
    assert names(engine) == ["a"]


@STRATEGIES
def test_an_event_handlers_failed_primary_is_undone_too(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """Fallbacks of events share the mechanism."""

    class Fails(cqrs.EventHandler[Happened]):
        def __init__(self, session: Session) -> None:
            self._session = session

        def handle(self, event: Happened) -> None:
            self._session.execute(rows.insert().values(name="half"))
            raise ConnectionError

    mediator(uow, strategy, handlers=[cqrs.EventHandlerFallback(Fails, Records)]).send(
        Write(name="a", emits=[Happened(number=1)])
    )
    assert names(engine) == ["a", "event-1"]


def test_a_middleware_that_repeats_the_call_gets_a_new_handler_and_a_new_unit_of_work(
    engine: sa.Engine, uow: Counting
) -> None:
    """Nothing of the failed attempt is left, neither rows nor events."""
    attempts: list[int] = []
    broker = InMemoryMessageBroker()

    class FailsOnce(WriteHandler):
        def handle(self, request: Write) -> str:
            super().handle(request)
            attempts.append(1)
            if len(attempts) == 1:
                raise ConnectionError
            return request.name

    def retry(request: Any, handle: Any) -> Any:
        try:
            return handle(request)
        except ConnectionError:
            return handle(request)

    mediator(uow, HANDLER, handler=FailsOnce, middlewares=[retry], message_broker=broker).send(
        Write(name="a", emits=[Told()])
    )
    assert uow.log == ["rollback", "commit"]
    assert names(engine) == ["a"]
    assert len(broker.messages) == 1


def test_a_handler_that_asks_for_no_session_opens_none(uow: Counting) -> None:
    """The session is opened on first use."""

    class Ping(cqrs.Request[str]):
        pass

    class PingHandler(cqrs.RequestHandler[Ping]):
        def handle(self, request: Ping) -> str:
            return "pong"

    ping = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Ping, PingHandler), unit_of_work=uow)
    assert ping.send(Ping()) == "pong"
    assert uow.sessions == []


@STRATEGIES
def test_200_sends_on_16_threads_mix_no_sessions(tmp_path: Any, strategy: cqrs.ScopeStrategy) -> None:
    """Each send's handlers see the one session of their unit of work, and no other thread does."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}", poolclass=QueuePool, pool_size=20)
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 60000"))
    metadata.create_all(engine)
    uow = Counting(engine)
    users: dict[Session, set[int]] = {}
    users_lock = threading.Lock()

    class Traced(WriteHandler):
        def handle(self, request: Write) -> str:
            with users_lock:
                users.setdefault(self._session, set()).add(threading.get_ident())
            self._session.execute(sa.text("BEGIN IMMEDIATE"))
            return super().handle(request)

    shared = mediator(uow, strategy, handler=Traced)
    turns = iter(range(200))
    turns_lock = threading.Lock()

    def work(_: int) -> None:
        while True:
            with turns_lock:
                turn = next(turns, None)
            if turn is None:
                return
            shared.send(Write(name=f"w{turn:03}", emits=[Happened(number=100 + turn)]))

    together(16, work)
    assert len(names(engine)) == 400
    assert len(users) == 200
    assert all(len(threads) == 1 for threads in users.values())
    engine.dispose()


def test_event_handlers_on_the_pool_have_sessions_of_their_own(tmp_path: Any) -> None:
    """One session, one thread."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}")
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 60000"))
    metadata.create_all(engine)
    uow = Counting(engine)
    with mediator(uow, HANDLER, max_concurrent_event_handlers=4) as pooled:
        pooled.send(Write(name="a", emits=[Happened(number=100 + n) for n in range(20)]))
    assert len(names(engine)) == 21
    assert len(uow.sessions) == 21
    engine.dispose()


@pytest.mark.parametrize("strategy", [NONE, SEND])
def test_an_event_mediator_handles_in_a_unit_of_work(
    engine: sa.Engine, uow: Counting, strategy: cqrs.ScopeStrategy
) -> None:
    """With SEND all handlers and follow-ups of an event share one transaction; notifications follow the commit."""
    broker = InMemoryMessageBroker()
    events = bootstrap_events(
        punq.Container(),
        events_mapper=lambda m: m.bind(Happened, Records),
        scope_strategy=strategy,
        message_broker=broker,
        unit_of_work=uow,
    )
    events.send(Happened(number=1, then=[Happened(number=2), Told()]))
    assert names(engine) == ["event-1", "event-2"]
    assert len(broker.messages) == 1
    assert len(uow.log) == (1 if strategy is SEND else 2)
    with pytest.raises(EventHandlingError):
        events.send(Happened(number=3, then=[Happened(number=13)]))
    assert ("event-3" in names(engine)) == (strategy is NONE)
    events.close()


def test_an_event_mediator_joins_the_transaction_of_a_request(engine: sa.Engine, uow: Counting) -> None:
    """Two mediators with one unit of work: what the inner one publishes waits for the outer commit."""
    broker = InMemoryMessageBroker()
    events = bootstrap_events(
        punq.Container(),
        events_mapper=lambda m: m.bind(Happened, Records),
        scope_strategy=SEND,
        message_broker=broker,
        unit_of_work=uow,
    )

    class Forwards(WriteHandler):
        def handle(self, request: Write) -> str:
            events.send(Happened(number=1, then=[Told()]))
            assert broker.messages == []
            return super().handle(request)

    mediator(uow, SEND, handler=Forwards).send(Write(name="a"))
    assert names(engine) == ["a", "event-1"]
    assert len(uow.sessions) == 1
    assert len(broker.messages) == 1


def test_the_session_can_be_had_where_the_container_cannot_inject_it(engine: sa.Engine, uow: Counting) -> None:
    """unit_of_work.session is the running handler's; outside of one it is an error that says so."""

    class Opaque:
        def resolve(self, type_: Any) -> Any:
            return type_(uow.session, uow.session) if type_ is WriteHandler else type_()

    class Handler(WriteHandler):
        def __init__(self) -> None:
            super().__init__(Repository(uow.session), uow.session)

    opaque = bootstrap(Opaque(), commands_mapper=lambda m: m.bind(Write, Handler), unit_of_work=uow)
    opaque.send(Write(name="a"))
    assert names(engine) == ["a"]
    with pytest.raises(NoActiveUnitOfWork, match="none is open here"):
        uow.session  # noqa: B018
    with pytest.raises(NoActiveUnitOfWork) as caught:
        uow.injectables()[Session]()
    assert caught.value.service is Session


def test_a_copied_context_does_not_lend_its_session_to_another_thread(uow: Counting) -> None:
    """One session, one thread, even where context variables travel."""
    import contextvars

    errors: list[Exception] = []

    class Handler(WriteHandler):
        def handle(self, request: Write) -> str:
            def elsewhere() -> None:
                try:
                    uow.session  # noqa: B018
                except NoActiveUnitOfWork as error:
                    errors.append(error)

            thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
            thread.start()
            thread.join()
            return super().handle(request)

    mediator(uow, HANDLER, handler=Handler).send(Write(name="a"))
    assert len(errors) == 1


def test_the_sessionmakers_own_class_can_be_asked_for(engine: sa.Engine) -> None:
    """A derived Session is injected under its own name too."""

    class MySession(Session):
        pass

    class Handler(cqrs.RequestHandler[Write]):
        def __init__(self, session: MySession, plain: Session) -> None:
            assert session is plain
            session.execute(rows.insert().values(name="mine"))

        def handle(self, request: Write) -> str:
            return "ok"

    mine = SqlAlchemyUnitOfWork(sessionmaker(engine, class_=MySession))
    mediator(mine, NONE, handler=Handler).send(Write(name="a"))
    assert names(engine) == ["mine"]


@pytest.mark.parametrize("outbox", [OutboxModel, MemoryOutbox(), "outbox"])
def test_what_makes_no_outbox_is_refused(engine: sa.Engine, outbox: Any) -> None:
    """A model, an outbox itself: the first handler would find out otherwise."""
    with pytest.raises(ConfigurationError, match=r"outbox must make .*: pass the class SqlAlchemy"):
        SqlAlchemyUnitOfWork(sessionmaker(engine), outbox=outbox)


def test_a_singleton_that_would_keep_a_session_is_refused(uow: Counting) -> None:
    """The error names the class, the parameter and the singleton."""
    container = punq.Container()
    container.register(Repository, scope=punq.Scope.singleton)
    with pytest.raises(UnresolvableDependency, match="Repository is a singleton that would keep it for ever") as caught:
        bootstrap(container, commands_mapper=lambda m: m.bind(Write, WriteHandler), unit_of_work=uow)
    assert (caught.value.owner, caught.value.parameter) == (Repository, "session")


def test_a_session_without_a_unit_of_work_is_refused_by_bootstrap() -> None:
    """Nothing is registered that could fill it."""
    container = punq.Container()
    container.register(Repository)
    with pytest.raises(UnresolvableDependency, match="'session': Session is not registered; pass unit_of_work="):
        bootstrap(container, commands_mapper=lambda m: m.bind(Write, WriteHandler))


def test_an_outbox_without_one_in_the_unit_of_work_is_refused_by_bootstrap(uow: Counting) -> None:
    """With the argument that is missing."""

    class Storing(WriteHandler):
        def __init__(self, outbox: cqrs.OutboxedEventRepository) -> None:
            raise NotImplementedError

    with pytest.raises(UnresolvableDependency, match=r"'outbox': OutboxedEventRepository is not .*outbox=SqlAlchemy"):
        bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Write, Storing), unit_of_work=uow)


def test_an_emitter_with_other_scopes_than_the_mediator_is_refused(uow: Counting) -> None:
    """Hand-wired parts must share the unit of work."""
    emitter = cqrs.EventEmitter(cqrs.EventMap(), punq.Container(), unit_of_work=uow)
    with pytest.raises(ConfigurationError, match="must have the same scope_strategy and unit_of_work"):
        cqrs.RequestMediator(cqrs.RequestMap(), punq.Container(), emitter)
    other = cqrs.EventMap()
    other.bind(Happened, event_handler(lambda event: None))
    with pytest.raises(ConfigurationError, match="event_map differs"):
        cqrs.RequestMediator(cqrs.RequestMap(), punq.Container(), emitter, event_map=other, unit_of_work=uow)


class Fragile(Transaction):
    """A transaction whose parts fail by name."""

    def __init__(self, failing: set[str], log: list[str]) -> None:
        self._failing = failing
        self._log = log

    def _step(self, name: str) -> None:
        self._log.append(name)
        if name in self._failing:
            raise OSError(name)

    def commit(self) -> None:
        self._step("commit")

    def rollback(self) -> None:
        self._step("rollback")

    def close(self) -> None:
        self._step("close")

    def savepoint(self) -> Any:
        raise NotImplementedError


class FragileUnitOfWork(UnitOfWork):
    def __init__(self, *failing: str) -> None:
        self.failing = set(failing)
        self.log: list[str] = []

    def begin(self) -> Transaction:
        return Fragile(self.failing, self.log)

    @property
    def services(self) -> dict[Any, Any]:
        return {Fragile: lambda transaction: transaction}


class Use(cqrs.Request[str]):
    fails: bool = False


class UseHandler(cqrs.RequestHandler[Use]):
    def __init__(self, transaction: Fragile) -> None:
        pass

    def handle(self, request: Use) -> str:
        if request.fails:
            raise ZeroDivisionError
        return "ok"


def use(uow: FragileUnitOfWork, *, fails: bool = False) -> str:
    return bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Use, UseHandler), unit_of_work=uow).send(
        Use(fails=fails)
    )


def test_a_commit_that_fails_is_raised_after_a_rollback() -> None:
    """The caller learns that nothing was written."""
    uow = FragileUnitOfWork("commit")
    with pytest.raises(OSError, match="commit"):
        use(uow)
    assert uow.log == ["commit", "rollback", "close"]


def test_a_rollback_that_fails_does_not_hide_the_first_error(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged."""
    uow = FragileUnitOfWork("rollback", "close")
    with pytest.raises(ZeroDivisionError):
        use(uow, fails=True)
    assert uow.log == ["rollback", "close"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_a_close_that_fails_after_the_commit_does_not_undo_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What is committed stands."""
    uow = FragileUnitOfWork("close")
    assert use(uow) == "ok"
    assert "Fragile.close failed at the end of a unit of work" in caplog.text


def test_the_memory_unit_of_work_commits_all_or_nothing() -> None:
    """Its transaction is injected like a session."""
    uow = MemoryUnitOfWork()

    class Put(cqrs.Request[bool]):
        fails: bool

    class PutHandler(cqrs.RequestHandler[Put]):
        def __init__(self, transaction: MemoryTransaction) -> None:
            self._transaction = transaction

        def handle(self, request: Put) -> bool:
            self._transaction["key"] = "value"
            assert "key" in self._transaction
            assert self._transaction["key"] == "value"
            if request.fails:
                raise ZeroDivisionError
            return "other" in self._transaction

    put = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Put, PutHandler), unit_of_work=uow)
    with pytest.raises(ZeroDivisionError):
        put.send(Put(fails=True))
    assert (uow.store, uow.commits) == ({}, 0)
    assert put.send(Put(fails=False)) is False
    assert (uow.store, uow.commits) == ({"key": "value"}, 1)
    assert uow.begin()["key"] == "value"


def test_a_send_joins_its_own_scope_through_a_mediator_with_another_one(engine: sa.Engine, uow: Counting) -> None:
    """Two units of work do not hide each other: the innermost write is in the outermost transaction."""
    other = MemoryUnitOfWork()
    inner = mediator(uow, SEND)

    class Between(cqrs.Request[str]):
        pass

    class BetweenHandler(cqrs.RequestHandler[Between]):
        def handle(self, request: Between) -> str:
            other.transaction()
            return inner.send(Write(name="inner"))

    between = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Between, BetweenHandler),
        scope_strategy=SEND,
        unit_of_work=other,
    )

    class Outermost(WriteHandler):
        def handle(self, request: Write) -> str:
            between.send(Between())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        mediator(uow, SEND, handler=Outermost).send(Write(name="outer"))
    assert names(engine) == []
    assert len(uow.sessions) == 1
    assert other.commits == 1


def test_a_dispatcher_used_alone_opens_no_send() -> None:
    """Who uses one by hand under SEND opens the scope by hand; a fallback works all the same."""
    from cqrs_sync.dispatcher import RequestDispatcher

    class Fails(cqrs.RequestHandler[Write]):
        def handle(self, request: Write) -> str:
            raise ConnectionError

    class Answers(cqrs.RequestHandler[Write]):
        def handle(self, request: Write) -> str:
            return "fallback"

    request_map = cqrs.RequestMap()
    request_map.bind(Write, cqrs.RequestHandlerFallback(Fails, Answers))
    dispatcher = RequestDispatcher(request_map, punq.Container(), scope_strategy=SEND)
    assert dispatcher.dispatch(Write(name="a")).response == "fallback"
