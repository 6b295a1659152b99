"""Notification events of handlers are stored in the handler's own transaction, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.errors import ConfigurationError, EventHandlingError, EventNotRegistered, NoActiveUnitOfWork
from cqrs_sync.events.bootstrap import bootstrap as bootstrap_events
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.mock import MemoryOutbox, MockOutboxedEventRepository
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from cqrs_sync.testing.outbox import EVENTS, Numbered
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests.unit.outboxes import Repository, engine_in, table

SEND, HANDLER, NONE = cqrs.ScopeStrategy.SEND, cqrs.ScopeStrategy.HANDLER, cqrs.ScopeStrategy.NONE
STRATEGIES = pytest.mark.parametrize("strategy", [NONE, HANDLER, SEND])

metadata = sa.MetaData()
orders = sa.Table("orders", metadata, sa.Column("name", sa.String, primary_key=True))


class Unknown(cqrs.NotificationEvent[int]):
    """Registered nowhere."""

    event_name: str = "unknown"
    payload: int = 0


class Happened(cqrs.DomainEvent):
    """What event handlers react to."""

    name: str
    then: list[Any] = []
    fails: bool = False


class Place(cqrs.Request[str]):
    """Writes a row and lists or adds events."""

    name: str = "a"
    lists: list[Any] = []
    adds: list[Any] = []
    fails: bool = False


class Emits:
    """A handler's own list of events."""

    @property
    def events(self) -> list[cqrs.IEvent]:
        return vars(self).setdefault("_events", [])


class PlaceHandler(Emits, cqrs.RequestHandler[Place]):
    def __init__(self, session: Session, outbox: OutboxedEventRepository) -> None:
        self._session = session
        self._outbox = outbox

    def handle(self, request: Place) -> str:
        self._session.execute(orders.insert().values(name=request.name))
        for event in request.adds:
            self._outbox.add(event)
        self.events.extend(request.lists)
        if request.fails:
            raise ZeroDivisionError
        return request.name


class Replaces(PlaceHandler):
    """A fallback: writes another row and lists another event."""

    def handle(self, request: Place) -> str:
        self._session.execute(orders.insert().values(name="fallback"))
        self.events.append(Numbered(payload=99))
        return "fallback"


class First(Emits, cqrs.CORRequestHandler[Place, str]):
    """Lists an event and passes on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: Place) -> str | None:
        self._session.execute(orders.insert().values(name="first"))
        self.events.append(Numbered(payload=1))
        return self.next(request)


class Last(Emits, cqrs.CORRequestHandler[Place, str]):
    """Lists an event and answers, or fails."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: Place) -> str | None:
        self._session.execute(orders.insert().values(name="last"))
        self.events.append(Numbered(payload=2))
        if request.fails:
            raise ZeroDivisionError
        return "answered"


class Pieces(Emits, cqrs.StreamingRequestHandler[Place, str]):
    """Writes a row and lists an event before each of three pieces, and one event behind them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: Place) -> Iterator[str]:
        for number in range(3):
            self._session.execute(orders.insert().values(name=f"piece {number}"))
            self.events.append(Numbered(payload=number))
            if request.fails and number == 2:
                raise ZeroDivisionError
            yield f"piece {number}"
        self.events.append(Numbered(payload=3))


class Reacts(Emits, cqrs.EventHandler[Happened]):
    """Writes a row and lists the event's follow-ups."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, event: Happened) -> None:
        self._session.execute(orders.insert().values(name=event.name))
        self.events.extend(event.then)
        if event.fails:
            raise ValueError("unlucky")


class Hears(cqrs.EventHandler[Numbered]):
    """Handles a notification event in this process too."""

    heard: list[int] = []

    def handle(self, event: Numbered) -> None:
        self.heard.append(event.payload)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = engine_in(tmp_path, metadata)
    yield engine
    engine.dispose()


@pytest.fixture
def unit_of_work(engine: sa.Engine) -> SqlAlchemyUnitOfWork:
    return SqlAlchemyUnitOfWork(sessionmaker(engine), outbox=Repository)


@pytest.fixture
def broker() -> Iterator[InMemoryMessageBroker]:
    """A broker that nothing may reach: the outbox alone decides when something is published."""
    broker = InMemoryMessageBroker()
    yield broker
    assert broker.messages == []


@pytest.fixture
def build(unit_of_work: SqlAlchemyUnitOfWork, broker: InMemoryMessageBroker) -> Iterator[Callable[..., Any]]:
    """Makes mediators with a broker *and* an outbox."""
    with contextlib.ExitStack() as opened:

        def make(handler: Any = PlaceHandler, *reacting: Any, streams: bool = False, **options: Any) -> Any:
            def events(event_map: cqrs.EventMap) -> None:
                event_map.bind(Happened, Reacts)
                for each in reacting:
                    event_map.bind(Numbered, each)

            make_mediator: Any = bootstrap_streaming if streams else bootstrap
            mediator = make_mediator(
                punq.Container(),
                commands_mapper=lambda m: m.bind(Place, handler),
                domain_events_mapper=events,
                unit_of_work=unit_of_work,
                message_broker=broker,
                **options,
            )
            return opened.enter_context(mediator)

        yield make


Build = Callable[..., Any]


def names(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return sorted(connection.scalars(sa.select(orders.c.name)))


def numbers(engine: sa.Engine) -> list[int]:
    """The numbers of the stored events, in order."""
    encoder = Repository(Session())._encoder
    return [encoder.decode(row).event.payload for row in table(engine)]


@STRATEGIES
def test_listed_events_are_stored_with_the_handlers_rows(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """In one transaction, in order; the broker gets nothing."""
    assert build(scope_strategy=strategy).send(Place(lists=[Numbered(payload=1), Numbered(payload=2)])) == "a"
    assert names(engine) == ["a"]
    assert numbers(engine) == [1, 2]


@STRATEGIES
def test_a_handler_that_fails_stores_nothing(engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy) -> None:
    """Neither what it listed nor what it added."""
    with pytest.raises(ZeroDivisionError):
        build(scope_strategy=strategy).send(Place(lists=[Numbered(payload=1)], adds=[Numbered(payload=2)], fails=True))
    assert names(engine) == []
    assert numbers(engine) == []


@STRATEGIES
@pytest.mark.parametrize("how", ["lists", "adds"])
def test_an_unregistered_event_rolls_the_handler_back(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy, how: str
) -> None:
    """The caller learns of it, and the event's absence is not found out in production."""
    with pytest.raises(EventNotRegistered, match=r"OutboxedEventMap\.register\('unknown'"):
        build(scope_strategy=strategy).send(Place(**{how: [Numbered(payload=1), Unknown()]}))
    assert names(engine) == []
    assert numbers(engine) == []


@STRATEGIES
def test_the_injected_outbox_is_in_the_handlers_transaction(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """The port and the class give the same one, over the session that was injected beside it."""
    seen: list[Any] = []

    class Looks(PlaceHandler):
        def __init__(self, session: Session, outbox: OutboxedEventRepository, again: OutboxedEventRepository) -> None:
            super().__init__(session, outbox)
            seen.extend((outbox is again, outbox.session is session))  # type: ignore[attr-defined]

    build(Looks, scope_strategy=strategy).send(Place(adds=[Numbered(payload=1)]))
    assert seen == [True, True]
    assert names(engine) == ["a"]
    assert numbers(engine) == [1]


def test_the_class_of_the_outbox_can_be_asked_for(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is given as it is."""
    monkeypatch.setattr(OutboxedEventMap, "_shared", None)
    OutboxedEventMap.register("numbered", Numbered)

    class Asks(PlaceHandler):
        def __init__(self, session: Session, outbox: SqlAlchemyOutboxedEventRepository) -> None:
            super().__init__(session, outbox)

    unit_of_work = SqlAlchemyUnitOfWork(sessionmaker(engine), outbox=SqlAlchemyOutboxedEventRepository)
    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Place, Asks), unit_of_work=unit_of_work)
    mediator.send(Place(adds=[Numbered(payload=1)]))
    assert numbers(engine) == [1]


@STRATEGIES
def test_an_event_that_is_added_and_listed_is_stored_once(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """Both ways may be mixed."""
    event = Numbered(payload=1)
    build(scope_strategy=strategy).send(Place(adds=[event], lists=[event, Numbered(payload=2)]))
    assert numbers(engine) == [1, 2]


@STRATEGIES
def test_a_notification_event_goes_to_its_handlers_here_as_well(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """After it was stored, once."""
    Hears.heard = []
    build(PlaceHandler, Hears, scope_strategy=strategy).send(Place(lists=[Numbered(payload=1)]))
    assert Hears.heard == [1]
    assert numbers(engine) == [1]


@STRATEGIES
def test_follow_ups_are_stored_in_the_transaction_of_their_handler(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """Of a handler of a domain event, at any depth."""
    deeper = Happened(name="c", then=[Numbered(payload=2)])
    build(scope_strategy=strategy).send(Place(lists=[Happened(name="b", then=[Numbered(payload=1), deeper])]))
    assert names(engine) == ["a", "b", "c"]
    assert numbers(engine) == [1, 2]


@pytest.mark.parametrize("strategy", [NONE, HANDLER])
def test_an_event_handler_that_fails_loses_its_own_events_alone(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """It has a transaction of its own; the command's stands."""
    failing = Happened(name="b", then=[Numbered(payload=2)], fails=True)
    build(scope_strategy=strategy).send(Place(lists=[Numbered(payload=1), failing]))
    assert names(engine) == ["a"]
    assert numbers(engine) == [1]


def test_an_event_handler_that_fails_inside_a_send_loses_all(engine: sa.Engine, build: Build) -> None:
    """There is one transaction."""
    failing = Happened(name="b", then=[Numbered(payload=2)], fails=True)
    with pytest.raises(EventHandlingError):
        build(scope_strategy=SEND).send(Place(lists=[Numbered(payload=1), failing]))
    assert names(engine) == []
    assert numbers(engine) == []


def test_event_handlers_on_the_pool_store_their_events_too(engine: sa.Engine, build: Build) -> None:
    """Each in its own thread and transaction."""
    happened = [Happened(name=f"event {number}", then=[Numbered(payload=number)]) for number in range(6)]
    build(max_concurrent_event_handlers=3, event_errors="raise").send(Place(lists=happened))
    assert sorted(numbers(engine)) == list(range(6))


@STRATEGIES
def test_a_chain_stores_the_events_of_all_that_ran(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """In one transaction; none where the last one fails."""
    mediator = build([First, Last], scope_strategy=strategy)
    with pytest.raises(ZeroDivisionError):
        mediator.send(Place(fails=True))
    assert numbers(engine) == []
    assert mediator.send(Place()) == "answered"
    assert names(engine) == ["first", "last"]
    assert numbers(engine) == [1, 2]


@STRATEGIES
def test_the_events_of_a_failed_primary_are_not_stored(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """Those of its fallback are."""
    mediator = build(cqrs.RequestHandlerFallback(PlaceHandler, Replaces), scope_strategy=strategy)
    failing = Place(lists=[Numbered(payload=1)], adds=[Numbered(payload=2)], fails=True)
    assert mediator.send(failing) == "fallback"
    assert names(engine) == ["fallback"]
    assert numbers(engine) == [99]


@STRATEGIES
def test_an_event_that_the_failed_primary_added_can_be_added_again(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """What was undone with its savepoint is no duplicate."""
    event = Numbered(payload=1)

    class AddsTheSame(PlaceHandler):
        def handle(self, request: Place) -> str:
            self._outbox.add(event)
            return "fallback"

    mediator = build(cqrs.RequestHandlerFallback(PlaceHandler, AddsTheSame), scope_strategy=strategy)
    mediator.send(Place(adds=[event], fails=True))
    assert numbers(engine) == [1]


@STRATEGIES
def test_a_stream_stores_the_events_of_each_piece_with_the_piece(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """Before the caller gets it."""
    stream = build(Pieces, streams=True, scope_strategy=strategy).stream(Place())
    seen = [(len(names(engine)), len(numbers(engine))) for _ in stream]
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert numbers(engine) == [0, 1, 2, 3]


@STRATEGIES
def test_a_stream_that_fails_keeps_what_was_handed_out(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """And nothing of the piece that failed."""
    stream = build(Pieces, streams=True, scope_strategy=strategy).stream(Place(fails=True))
    assert [next(stream), next(stream)] == ["piece 0", "piece 1"]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert names(engine) == ["piece 0", "piece 1"]
    assert numbers(engine) == [0, 1]


@STRATEGIES
def test_an_event_mediator_stores_follow_ups_and_not_what_it_received(
    engine: sa.Engine, unit_of_work: SqlAlchemyUnitOfWork, broker: InMemoryMessageBroker, strategy: cqrs.ScopeStrategy
) -> None:
    """What came from outside is not sent back."""

    class Passes(Emits, cqrs.EventHandler[Numbered]):
        def handle(self, event: Numbered) -> None:
            self.events.append(Numbered(payload=event.payload + 1))

    class Once(Emits, cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            self.events.extend(event.then)

    mediator = bootstrap_events(
        punq.Container(),
        events_mapper=lambda m: m.bind(Happened, Once),
        message_broker=broker,
        unit_of_work=unit_of_work,
        scope_strategy=strategy,
    )
    mediator.send(Happened(name="b", then=[Numbered(payload=1)]))
    assert numbers(engine) == [1]
    receiving = bootstrap_events(
        punq.Container(),
        events_mapper=lambda m: m.bind(Numbered, Hears),
        unit_of_work=unit_of_work,
        scope_strategy=strategy,
    )
    receiving.send(Numbered(payload=7))
    assert numbers(engine) == [1]


@STRATEGIES
def test_events_emitted_by_hand_are_stored(engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy) -> None:
    """Outside of any handler: in a transaction of their own."""
    processor = build(scope_strategy=strategy)._processor
    processor.emit_events([Numbered(payload=1), Numbered(payload=2)])
    processor.emit_events([])
    processor.emitter.emit(Numbered(payload=3))
    assert numbers(engine) == [1, 2, 3]
    with pytest.raises(EventHandlingError):
        processor.emitter.emit(Unknown())


@pytest.mark.parametrize("strategy", [NONE, HANDLER])
def test_follow_ups_of_an_event_emitted_by_hand_are_stored(
    engine: sa.Engine, build: Build, strategy: cqrs.ScopeStrategy
) -> None:
    """In the transaction of the handler that lists them."""
    processor = build(scope_strategy=strategy)._processor
    processor.emit_events([Happened(name="b", then=[Numbered(payload=1)])])
    assert names(engine) == ["b"]
    assert numbers(engine) == [1]


def test_events_emitted_by_hand_inside_a_send_are_in_its_transaction(engine: sa.Engine, build: Build) -> None:
    """And go with it when it fails."""
    processors: list[Any] = []

    class EmitsByHand(PlaceHandler):
        def handle(self, request: Place) -> str:
            processors[0].emit_events([Numbered(payload=5)])
            return super().handle(request)

    mediator = build(EmitsByHand, scope_strategy=SEND)
    processors.append(mediator._processor)
    with pytest.raises(ZeroDivisionError):
        mediator.send(Place(fails=True))
    assert numbers(engine) == []
    mediator.send(Place())
    assert numbers(engine) == [5]


def test_an_outbox_is_to_be_had_inside_a_handler_only(unit_of_work: SqlAlchemyUnitOfWork) -> None:
    """There is no transaction elsewhere."""
    with pytest.raises(NoActiveUnitOfWork):
        unit_of_work.injectables()[OutboxedEventRepository]()


def test_without_an_outbox_the_broker_gets_the_events_after_the_commit(engine: sa.Engine) -> None:
    """And nobody can ask for one."""

    class Plain(Emits, cqrs.RequestHandler[Place]):
        def handle(self, request: Place) -> str:
            self.events.extend(request.lists)
            return "done"

    broker = InMemoryMessageBroker()
    options: dict[str, Any] = {"unit_of_work": SqlAlchemyUnitOfWork(sessionmaker(engine)), "message_broker": broker}
    mediator = bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Place, Plain), **options)
    mediator.send(Place(lists=[Numbered(payload=1)]))
    assert len(broker.messages) == 1
    assert numbers(engine) == []
    with pytest.raises(ConfigurationError, match="OutboxedEventRepository"):
        bootstrap(punq.Container(), commands_mapper=lambda m: m.bind(Place, PlaceHandler), **options)


@STRATEGIES
def test_the_outbox_in_memory_goes_with_its_unit_of_work(strategy: cqrs.ScopeStrategy) -> None:
    """The same without a database."""
    asked: list[Any] = []

    class Keeps(Emits, cqrs.RequestHandler[Place]):
        def __init__(self, transaction: MemoryTransaction, outbox: MockOutboxedEventRepository) -> None:
            self._transaction = transaction
            asked.append(outbox is transaction.outbox)

        def handle(self, request: Place) -> str:
            self._transaction[request.name] = True
            self.events.extend(request.lists)
            if request.fails:
                raise ZeroDivisionError
            return request.name

    outbox = MemoryOutbox()
    unit_of_work = MemoryUnitOfWork(outbox)
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Place, Keeps),
        unit_of_work=unit_of_work,
        scope_strategy=strategy,
    )
    with pytest.raises(EventNotRegistered):
        mediator.send(Place(lists=[Unknown()]))
    with pytest.raises(ZeroDivisionError):
        mediator.send(Place(fails=True))
    assert (unit_of_work.store, outbox.rows) == ({}, {})
    mediator.send(Place())
    assert unit_of_work.store == {"a": True}
    assert asked == [True] * 3


@STRATEGIES
def test_the_outbox_in_memory_stores_listed_events(
    strategy: cqrs.ScopeStrategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the map of the process, which it takes where it is given none."""
    monkeypatch.setattr(OutboxedEventMap, "_shared", EVENTS)

    class Lists(Emits, cqrs.RequestHandler[Place]):
        def handle(self, request: Place) -> str:
            self.events.extend(request.lists)
            return "done"

    outbox = MemoryOutbox()
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Place, Lists),
        unit_of_work=MemoryUnitOfWork(outbox),
        scope_strategy=strategy,
    )
    mediator.send(Place(lists=[Numbered(payload=1)]))
    [row] = outbox.rows.values()
    assert row.event_name == "numbered"
