"""What the async library's outbox gets wrong: each test fails on the behaviour described for its number."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import punq
import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.schema import CreateTable

import cqrs_sync as cqrs
from cqrs_sync.backoff import Backoff
from cqrs_sync.compressors import ZlibCompressor
from cqrs_sync.errors import BrokerUnavailable, DuplicateEventName, MessageRejected
from cqrs_sync.events.event import DCNotificationEvent, NotificationEvent
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.outbox.encoding import EventEncoder
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import EventStatus, OutboxedEvent
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.outbox.sqlalchemy import Base, OutboxMixin, OutboxModel, rebind_outbox_model
from cqrs_sync.producer import EventProducer
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.sql import UtcDateTime
from cqrs_sync.testing.outbox import EVENTS, Numbered
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests.unit.outboxes import WAIT, Broker, Repository, away, engine_in, make_due, statuses, store, table

Sessions = sessionmaker[Session]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = engine_in(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> Sessions:
    return sessionmaker(engine)


def relay_for(sessions: Sessions, broker: Broker, **options: Any) -> OutboxRelay:
    return OutboxRelay(sessions, broker, repository=Repository, **options)


def keyed(number: int) -> Numbered:
    return Numbered(payload=number, partition_key="k")


def test_o1_an_outage_of_many_polls_loses_nothing(engine: sa.Engine, sessions: Sessions) -> None:
    """20 events, 50 failing polls, the broker is back: all are delivered, and none has lost an attempt."""
    broker = Broker()
    broker.outage = away()
    store(sessions, *range(20))
    relay = relay_for(sessions, broker)
    for _ in range(50):
        with pytest.raises(BrokerUnavailable):
            relay.run_once()
    assert [row.attempts for row in table(engine)] == [0] * 20
    broker.outage = None
    relay.drain()
    assert sorted(broker.sent) == list(range(20))


def test_o1_what_is_given_up_is_a_dead_letter_that_can_be_replayed(engine: sa.Engine, sessions: Sessions) -> None:
    """It is counted, shown with its reason, and not simply never selected again."""
    broker = Broker()
    broker.errors[1] = MessageRejected("too large")
    store(sessions, 1)
    relay = relay_for(sessions, broker, max_attempts=3)
    for _ in range(3):
        relay.drain()
        make_due(engine)
    assert relay.health().dead == 1
    with closing(Repository(sessions())) as repository:
        assert [letter.last_error for letter in repository.dead_letters()] == ["too large"]
        assert repository.replay() == 1
        repository.commit()
    broker.errors.clear()
    assert relay.drain() == 1


def test_o2_two_producers_send_each_event_once(sessions: Sessions) -> None:
    """100 rows are 100 sends."""
    broker = Broker()
    store(sessions, *range(100))
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    def produce() -> None:
        try:
            relay = relay_for(sessions, broker, batch_size=10)
            together.wait(WAIT)
            relay.drain()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=produce) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert sorted(broker.tried) == list(range(100))


def test_o3_a_retried_event_is_sent_before_later_ones_of_its_key(engine: sa.Engine, sessions: Sessions) -> None:
    """0,1,2,3,4,5 and not 1,2,3,4,5,0; and the broker gets the key."""
    broker = Broker()
    broker.errors[0] = MessageRejected("not now")
    store(sessions, *(keyed(number) for number in range(6)))
    relay = relay_for(sessions, broker)
    relay.drain()
    broker.errors.clear()
    make_due(engine)
    relay.drain()
    assert broker.sent == [0, 1, 2, 3, 4, 5]
    assert {message.key for message in broker.messages} == {"k"}


def test_o4_produced_events_are_purged_and_new_ones_found_by_an_index(engine: sa.Engine, sessions: Sessions) -> None:
    """The table does not grow for ever, and a poll reads what is pending alone."""
    broker = Broker()
    relay = relay_for(sessions, broker, retention=0.0)
    store(sessions, *range(10))
    relay.drain()
    assert table(engine) == []
    [pending] = [index for index in OutboxModel.__table__.indexes if index.name == "ix_outbox_pending"]
    assert [column.name for column in pending.columns] == ["status", "partition", "id"]
    assert str(pending.dialect_options["postgresql"]["where"]) == "status <> 'produced'"


def test_o4_a_row_that_is_committed_late_is_not_skipped(engine: sa.Engine, sessions: Sessions) -> None:
    """Nobody remembers how far it has read: a smaller number that appears later is sent."""
    broker = Broker()
    relay = relay_for(sessions, broker)
    store(sessions, 0, 1)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE outbox SET id = id + 100"))
    relay.drain()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE outbox SET status = 'new', id = 5 WHERE id = 101"))
    assert relay.drain() == 1


def test_o5_a_crash_in_a_batch_sends_no_acknowledged_message_again(engine: sa.Engine, sessions: Sessions) -> None:
    """What was sent before the loop broke off is marked: 0,1,2,3,4 and not 0,1,2,3,0,1,2,3,4."""
    broker = Broker()
    store(sessions, *(keyed(number) for number in range(5)))

    def loop(crash_at: int | None) -> None:
        with closing(Repository(sessions())) as repository:
            producer = EventProducer(broker, repository)
            for events in producer.event_batch_generator():
                for event in events:
                    if event.event.payload == crash_at:
                        raise LookupError
                    producer.send_message(event)
                repository.commit()
                producer.stop()

    with pytest.raises(LookupError):
        loop(crash_at=4)
    loop(crash_at=None)
    assert broker.sent == [0, 1, 2, 3, 4]


def test_o5_a_batch_is_one_call_of_the_broker_and_one_update(engine: sa.Engine, sessions: Sessions) -> None:
    """Not one of each per row."""
    calls: list[int] = []

    class Counts(Broker):
        def send_messages(self, messages: Any) -> list[Exception | None]:
            calls.append(len(messages))
            return super().send_messages(messages)

    store(sessions, *(keyed(number) for number in range(100)))
    updates: list[str] = []
    sa.event.listen(
        engine, "before_cursor_execute", lambda *seen: updates.append(seen[2]) if "UPDATE" in seen[2] else None
    )
    relay_for(sessions, Counts()).run_once()
    assert calls == [100]
    assert len(updates) == 1


def test_o6_the_generator_yields_no_empty_batch_and_can_be_stopped(sessions: Sessions) -> None:
    """It does not spin: it holds no transaction and waits until it is told to stop."""
    with closing(Repository(sessions())) as repository:
        producer = EventProducer(Broker(), repository, poll_interval=3600.0)
        rolled_back = repository.rollback

        def stop_once_waiting() -> None:
            rolled_back()
            assert not repository.session.in_transaction()
            producer.stop()

        repository.rollback = stop_once_waiting  # type: ignore[method-assign]
        assert list(producer.event_batch_generator()) == []


def test_o7_an_error_while_marking_does_not_end_the_loop(
    engine: sa.Engine, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are sent again, the error is logged with its traceback, and the reason of a failure is in the row."""
    broker = Broker()
    store(sessions, 1)
    failures = [OperationalError("", {}, Exception("connection lost"))]

    def refuse(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if failures and statement.startswith("UPDATE"):
            raise failures.pop()

    sa.event.listen(engine, "before_cursor_execute", refuse)
    with closing(Repository(sessions())) as repository:
        producer = EventProducer(broker, repository, backoff=Backoff(initial=0.001, maximum=0.001))
        for events in producer.event_batch_generator():
            producer.send_message(events[0])
            if len(broker.sent) == 2:
                producer.stop()
    assert statuses(engine) == ["produced"]
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert "kafka" not in caplog.text.lower()
    store(sessions, 2)
    broker.errors[2] = MessageRejected("too large")
    relay_for(sessions, broker).drain()
    assert table(engine)[1].last_error == "too large"


class Place(cqrs.Request[None]):
    """Lists the event that it adds."""

    fails: bool = False


class PlaceHandler(cqrs.RequestHandler[Place]):
    """Commits nothing itself."""

    def __init__(self, outbox: OutboxedEventRepository) -> None:
        self._outbox = outbox
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: Place) -> None:
        added = Numbered(payload=1)
        self._outbox.add(added)
        self._events.extend([added, Numbered(payload=2)])
        if request.fails:
            raise ZeroDivisionError


@pytest.mark.parametrize("strategy", list(cqrs.ScopeStrategy))
def test_o8_events_of_a_handler_are_in_its_transaction_and_go_out_once(
    engine: sa.Engine, sessions: Sessions, strategy: cqrs.ScopeStrategy
) -> None:
    """Listed or added or both, with no commit in the handler, and past the broker that is configured beside."""
    broker = Broker()
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda m: m.bind(Place, PlaceHandler),
        message_broker=broker,
        scope_strategy=strategy,
        unit_of_work=SqlAlchemyUnitOfWork(sessions, outbox=Repository),
    )
    with pytest.raises(ZeroDivisionError):
        mediator.send(Place(fails=True))
    assert table(engine) == []
    mediator.send(Place())
    assert broker.sent == []
    relay_for(sessions, broker).drain()
    assert sorted(broker.sent) == [1, 2]


class Joined(pydantic.BaseModel):
    name: str


def test_o9_maps_are_objects_and_a_name_has_one_type() -> None:
    """Two applications in one process keep theirs apart; a second type for a name is refused where it is given."""
    one, two = OutboxedEventMap(), OutboxedEventMap()
    one.register("joined", NotificationEvent[Joined])
    two.register("joined", NotificationEvent[int])
    assert one.get("joined") is NotificationEvent[Joined]
    with pytest.raises(DuplicateEventName):
        one.register("joined", NotificationEvent[int])


def test_o9_times_have_a_zone(engine: sa.Engine, sessions: Sessions) -> None:
    """In the event, in its bytes and in the table; a naive one is refused."""
    event = Numbered(payload=1)
    assert event.event_timestamp.tzinfo is not None
    store(sessions, event)
    [row] = table(engine)
    in_utc = row.created_at.replace(tzinfo=datetime.UTC)  # SQLite has no zones: what is there is UTC
    assert abs(in_utc - event.event_timestamp) < datetime.timedelta(minutes=1)
    ddl = str(CreateTable(OutboxModel.__table__).compile(dialect=postgresql.dialect()))
    assert ddl.count("TIMESTAMP WITH TIME ZONE") == 3
    assert "WITHOUT" not in ddl
    naive = datetime.datetime(2024, 1, 1)  # noqa: DTZ001 (what is refused)
    with pytest.raises(pydantic.ValidationError, match="timezone"):
        Numbered(payload=1, event_timestamp=naive)
    with engine.begin() as connection, pytest.raises(sa.exc.StatementError, match="has no time zone"):
        connection.execute(sa.select(sa.literal(naive, UtcDateTime())))


class Foreign:
    """A codec whose bytes this library would never write, and which cannot read."""

    def serialize(self, event: Any) -> bytes:
        return b'{ "payload" :   1 }\n'

    def content_type_for(self, event: Any) -> str:
        return "application/json"

    def deserialize(self, payload: bytes, event_type: Any) -> Any:
        raise AssertionError("publishing decodes nothing")


def test_o10_the_broker_gets_the_bytes_that_were_stored(sessions: Sessions) -> None:
    """Untouched: they are neither decoded nor encoded again."""
    received: list[Message] = []

    class Receives(Broker):
        def send_message(self, message: Message) -> None:
            received.append(message)

    with closing(Repository(sessions(), serializer=Foreign())) as repository:
        repository.add(Numbered(payload=1))
        repository.commit()
    relay_for(sessions, Receives()).drain()
    [message] = received
    assert message.payload_bytes == b'{ "payload" :   1 }\n'
    assert message.content_type == "application/json"


def test_o10_the_compressor_may_change_while_rows_are_stored(engine: sa.Engine, sessions: Sessions) -> None:
    """Each row says how it is compressed, and a relay needs no setting for zlib."""
    events = [keyed(number) for number in range(3)]
    for event, compressor in zip(events, (None, ZlibCompressor(), None), strict=True):
        with closing(Repository(sessions(), compressor)) as repository:
            repository.add(event)
            repository.commit()
    assert [row.compression for row in table(engine)] == [None, "zlib", None]
    broker = Broker()
    relay_for(sessions, broker).drain()
    plain = [EventEncoder(EVENTS).encode(event)["payload"] for event in events]
    assert [message.payload_bytes for message in broker.messages] == plain


def test_o11_sqlite_works_and_the_table_may_have_another_name(tmp_path: Path) -> None:
    """With ids of its own; the name is given in code and by no environment variable."""

    class Ours(DeclarativeBase):
        pass

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ours'}")
    model = type("Renamed", (OutboxMixin, Ours), {"__tablename__": "our_outbox"})
    Ours.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with closing(Repository(sessions(), model=model)) as repository:
        for number in range(3):
            repository.add(keyed(number))
        repository.commit()
        claimed: list[OutboxedEvent] = repository.get_many()
    assert [event.id for event in claimed] == [1, 2, 3]
    assert {event.status for event in claimed} == {EventStatus.NEW}
    assert set(sa.inspect(engine).get_table_names()) == {"our_outbox", "our_outbox_partitions"}
    engine.dispose()


def test_o11_rebinding_leaves_the_librarys_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The async library changes it in place, so that a second base cannot have it."""

    class One(DeclarativeBase):
        pass

    class Two(DeclarativeBase):
        pass

    monkeypatch.setattr("cqrs_sync.outbox.tables._default_model", OutboxModel)
    rebind_outbox_model(OutboxModel, One, "one")
    rebind_outbox_model(OutboxModel, Two)
    assert set(One.metadata.tables) == {"one", "one_partitions"}
    assert set(Two.metadata.tables) == {"outbox", "outbox_partitions"}
    assert OutboxModel.metadata is Base.metadata


def test_dataclass_events_go_through_the_outbox_too(sessions: Sessions) -> None:
    """With a payload of their parameter's type."""
    events = OutboxedEventMap()
    events.register("joined", DCNotificationEvent[Joined])
    event = DCNotificationEvent[Joined](event_name="joined", payload=Joined(name="Ada"))
    with closing(Repository(sessions(), event_map=events)) as repository:
        repository.add(event)
        repository.commit()
        [found] = repository.get_many()
        assert found.event == event
