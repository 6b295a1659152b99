"""The relay: what a batch becomes, when it idles, what it survives and what it tells."""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.compressors import ZlibCompressor
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageRejected
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.outbox import relay as relay_module
from cqrs_sync.outbox.mock import MemoryOutbox, MockOutboxedEventRepository
from cqrs_sync.outbox.models import Failure
from cqrs_sync.outbox.relay import PURGE_INTERVAL, PURGE_SIZE, OutboxRelay, RelayHealth
from cqrs_sync.outbox.sqlalchemy import OutboxMixin, OutboxModel, SqlAlchemyOutboxedEventRepository
from cqrs_sync.testing.outbox import EVENTS, Numbered
from tests.unit.outboxes import (
    WAIT,
    Broker,
    Repository,
    away,
    engine_in,
    make_due,
    statements_of,
    statuses,
    store,
    table,
    until,
)

FOREVER = 3600.0
"""Seconds that no test lasts."""

NOW = Backoff(initial=0.001, maximum=0.002)
"""As good as no back-off."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = engine_in(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def relay_for(sessions: sessionmaker[Session], broker: Broker) -> Iterator[Callable[..., OutboxRelay]]:
    """Makes relays over the tables, and stops them."""
    relays: list[OutboxRelay] = []

    def make(**options: Any) -> OutboxRelay:
        defaults: dict[str, Any] = {"repository": Repository, "poll_interval": FOREVER, "outage_backoff": NOW}
        relays.append(OutboxRelay(sessions, broker, **{**defaults, **options}))
        return relays[-1]

    yield make
    for relay in relays:
        relay.stop()


MakeRelay = Callable[..., OutboxRelay]
Sessions = sessionmaker[Session]


@contextmanager
def refusing(engine: sa.Engine, start: str) -> Iterator[None]:
    """Have the database fail at each COMMIT, or at statements that start so."""

    def refuse(*seen: Any) -> None:
        if start == "COMMIT" or seen[2].startswith(start):
            raise OperationalError(start, {}, Exception("connection lost"))

    event = "commit" if start == "COMMIT" else "before_cursor_execute"
    sa.event.listen(engine, event, refuse)
    try:
        yield
    finally:
        sa.event.remove(engine, event, refuse)


# --- one batch ---------------------------------------------------------------------------------------------------


def test_a_batch_is_published_and_marked(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """And is not published again."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(3)))
    relay = relay_for()
    assert relay.run_once() == 3
    assert relay.run_once() == 0
    assert broker.sent == [0, 1, 2]
    assert statuses(engine) == ["produced"] * 3
    assert all(row.produced_at is not None for row in table(engine))


def test_a_batch_has_its_size_at_most(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """And drain() takes as many as there are."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(7)))
    relay = relay_for(batch_size=3)
    assert relay.run_once() == 3
    assert relay.drain() == 4
    assert relay.drain() == 0
    assert broker.sent == list(range(7))
    assert relay.health().published == 7


def test_events_of_all_partitions_are_drained(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """Though a claim takes some partitions only."""
    store(sessions, *range(100))
    assert relay_for().drain() == 100
    assert sorted(broker.sent) == list(range(100))


def test_a_rejection_is_noted_with_its_reason_and_does_not_stop_the_others(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """The row waits; when its time has come it goes first."""
    store(sessions, *(Numbered(payload=number, partition_key=key) for number, key in enumerate("aab")))
    broker.errors[0] = MessageRejected("no room")
    relay = relay_for()
    assert relay.drain() == 1
    first, second, third = table(engine)
    assert (first.status, first.attempts, first.last_error) == ("not_produced", 1, "no room")
    assert first.available_at is not None
    assert (second.status, second.attempts) == ("new", 0)
    assert third.status == "produced"
    broker.errors.clear()
    make_due(engine)
    assert relay.drain() == 2
    assert broker.sent == [2, 0, 1]


def test_an_outage_raises_in_the_caller_and_leaves_the_rows_alone(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """What was taken before is marked and counted."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(4)))
    relay = relay_for()
    broker.errors[2] = away()
    for method in (relay.run_once, relay.drain):
        with pytest.raises(BrokerUnavailable, match="nobody answers"):
            method()
    assert statuses(engine) == ["produced", "produced", "new", "new"]
    assert [row.attempts for row in table(engine)] == [0] * 4
    assert relay.health().published == 2


def test_after_an_outage_one_event_is_tried(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """And then whole batches again."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(5)))
    relay = relay_for()
    broker.outage = away()
    for _ in range(3):
        with pytest.raises(BrokerUnavailable):
            relay.run_once()
    broker.outage = None
    assert [relay.run_once() for _ in range(3)] == [1, 4, 0]


def test_an_event_that_breaks_the_broker_becomes_a_dead_letter_in_the_end(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """And the others get through."""
    store(sessions, *(Numbered(payload=number, partition_key=str(number)) for number in range(5)))
    broker.errors[1] = ZeroDivisionError("bug")
    relay = relay_for(max_attempts=2, backoff=NOW)
    for _ in range(50):
        try:
            if not relay.drain() and statuses(engine).count("new") == 0:
                break
        except ZeroDivisionError:
            make_due(engine)
    assert sorted(broker.sent) == [0, 2, 3, 4]
    [letter] = [row for row in table(engine) if row.status == "dead"]
    assert (letter.attempts, letter.last_error) == (2, "ZeroDivisionError: bug")


@pytest.mark.parametrize(("policy", "sent"), [("continue", [1]), ("wait", [])])
def test_the_policy_says_whether_a_key_goes_on_behind_a_dead_letter(
    sessions: Sessions, broker: Broker, relay_for: MakeRelay, policy: str, sent: list[int]
) -> None:
    """Until somebody replays it."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(2)))
    broker.errors[0] = MessageRejected("no")
    relay = relay_for(max_attempts=1, dead_letters=policy)
    relay.drain()
    assert broker.sent == sent
    broker.errors.clear()
    with closing(Repository(sessions())) as repository:
        assert repository.replay() == 1
        repository.commit()
    relay.drain()
    assert broker.sent == [*sent, 0, *([] if sent else [1])]


def test_a_row_that_cannot_be_read_becomes_a_dead_letter(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """It spoils nothing else."""
    store(sessions, *range(3))
    with engine.begin() as connection:
        connection.execute(sa.update(OutboxModel).where(OutboxModel.id == 2).values(headers="{"))
    assert relay_for(max_attempts=1).drain() == 2
    assert statuses(engine) == ["produced", "dead", "produced"]
    assert "JSONDecodeError" in table(engine)[1].last_error


def test_a_failing_commit_publishes_the_batch_again(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """At least once, and nothing is counted that is not in the table."""
    store(sessions, 1)
    relay = relay_for()
    with refusing(engine, "UPDATE"), pytest.raises(OperationalError):
        relay.run_once()
    assert relay.health().published == 0
    assert relay.run_once() == 1
    assert broker.sent == [1, 1]


@pytest.mark.parametrize("start", ["UPDATE", "COMMIT"])
def test_results_that_cannot_be_written_cost_one_event_an_attempt(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay, start: str
) -> None:
    """The batch is not sent again and again while the database fails behind it."""
    relay = relay_for()
    assert relay.drain() == 0
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(5)))
    with refusing(engine, start):
        for _ in range(4):
            with pytest.raises(OperationalError):
                relay.run_once()
    assert broker.sent == [0, 1, 2, 3, 4, 0, 0, 0]
    assert [relay.run_once() for _ in range(3)] == [1, 4, 0]
    assert statuses(engine) == ["produced"] * 5


# --- the thread --------------------------------------------------------------------------------------------------


def test_a_commit_in_this_process_wakes_the_relay(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """It need not poll."""
    relay = relay_for()
    with relay, statements_of(sessions.kw["bind"]) as statements:
        until(lambda: statements)
        for number in range(3):
            store(sessions, number)
            until(lambda number=number: number in broker.sent)
    assert broker.sent == [0, 1, 2]


def test_a_relay_that_is_stopped_is_woken_no_longer(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """And one that is started again is."""
    relay = relay_for()
    for number in (1, 2):
        relay.start()
        store(sessions, number)
        until(lambda number=number: number in broker.sent)
        relay.stop()
        relay.stop()
    store(sessions, 3)
    assert broker.sent == [1, 2]
    assert not relay.running


def test_polling_finds_what_other_processes_committed(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """At each interval, for they wake nobody here."""
    with relay_for(poll_interval=0.01) as relay:
        until(lambda: relay.running)
        store(sessions, 1)
        until(lambda: broker.sent == [1])
        with engine.begin() as connection:
            connection.execute(sa.update(OutboxModel).values(status="new"))
        until(lambda: broker.sent == [1, 1])


def test_the_relay_survives_an_outage_and_delivers_everything(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """Its health tells of the outage while it lasts."""
    broker.outage = away()
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(10)))
    with relay_for() as relay:
        until(lambda: len(broker.tried) > 5)
        health = relay.health()
        assert isinstance(health.last_error, BrokerUnavailable)
        assert (health.running, health.pending, health.dead, health.published) == (True, 10, 0, 0)
        broker.outage = None
        until(lambda: relay.health().published == 10)
        until(lambda: relay.health().last_error is None)
    assert broker.sent == list(range(10))
    assert [row.attempts for row in table(engine)] == [0] * 10


def test_the_relay_survives_an_outage_of_the_database(sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """It may even start before the database."""
    store(sessions, 1)
    down = threading.Event()
    down.set()

    def open_session() -> Session:
        if down.is_set():
            raise OperationalError("", {}, Exception("connection refused"))
        return sessions()

    relay = OutboxRelay(open_session, broker, repository=Repository, poll_interval=FOREVER, outage_backoff=NOW)
    with relay:
        until(lambda: relay.last_error is not None)
        health = relay.health()
        assert isinstance(health.last_error, OperationalError)
        assert health[3:] == (None, None, None)
        down.clear()
        until(lambda: broker.sent == [1])


def test_stopping_finishes_the_batch_in_hand(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """What the broker has is marked."""
    store(sessions, 1)
    inside, go = threading.Event(), threading.Event()
    send = broker.send_message

    def slow(message: Message) -> None:
        inside.set()
        go.wait(WAIT)
        send(message)

    broker.send_message = slow  # type: ignore[method-assign]
    relay = relay_for()
    relay.start()
    assert inside.wait(WAIT)
    stopper = threading.Thread(target=relay.stop)
    stopper.start()
    go.set()
    stopper.join(WAIT)
    assert not relay.running
    assert statuses(engine) == ["produced"]


def test_two_relays_share_the_work_in_order(sessions: Sessions, relay_for: MakeRelay, broker: Broker) -> None:
    """Each event goes once, those of a key in order."""
    store(sessions, *(Numbered(payload=number, partition_key=f"key {number % 7}") for number in range(140)))
    with relay_for(batch_size=5, name="cqrs-one") as one, relay_for(batch_size=5, name="cqrs-two") as two:
        until(lambda: len(broker.sent) >= 140)
        until(lambda: one.health().published + two.health().published == 140)
    assert sorted(broker.sent) == list(range(140))
    for key in range(7):
        of_key = [number for number in broker.sent if number % 7 == key]
        assert of_key == sorted(of_key)


# --- retention ---------------------------------------------------------------------------------------------------


def test_no_retention_deletes_events_at_once(
    engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay
) -> None:
    """Except those that the broker did not take."""
    store(sessions, *range(3))
    broker.errors[1] = MessageRejected("no")
    assert relay_for(retention=0).drain() == 2
    assert [row.id for row in table(engine)] == [2]


def produced(engine: sa.Engine, sessions: Sessions, number: int) -> None:
    """Store events that were produced an hour ago."""
    store(sessions, *range(number))
    with engine.begin() as connection:
        long_ago = sa.func.strftime("%Y-%m-%d %H:%M:%f000", "now", "-3600 seconds")
        connection.execute(sa.text("UPDATE outbox SET status = 'produced'"))
        connection.execute(sa.update(OutboxModel.__table__).values(produced_at=long_ago))


@pytest.mark.parametrize(("retention", "left"), [(None, 3), (7200.0, 3), (1800.0, 0), (0, 0)])
def test_what_is_older_than_the_retention_is_purged(
    engine: sa.Engine, sessions: Sessions, relay_for: MakeRelay, retention: float | None, left: int
) -> None:
    """None keeps all; 0 also takes what was kept under another setting."""
    produced(engine, sessions, 3)
    relay = relay_for(retention=retention)
    assert relay.purge() == 3 - left
    assert len(table(engine)) == left


def test_the_thread_purges_batch_after_batch_and_then_rests(
    engine: sa.Engine, sessions: Sessions, relay_for: MakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full batches follow each other; the next look is a minute later."""
    monkeypatch.setattr(relay_module, "PURGE_SIZE", 2)
    clock = [1000.0]
    monkeypatch.setattr(relay_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    produced(engine, sessions, 5)
    relay = relay_for(retention=1800.0)
    assert [relay.step() for _ in range(3)] == [0.0, 0.0, FOREVER]
    assert table(engine) == []
    produced(engine, sessions, 1)
    relay.step()
    assert len(table(engine)) == 1
    clock[0] += PURGE_INTERVAL
    relay.step()
    assert table(engine) == []
    assert PURGE_SIZE == 1000


def test_a_purge_that_fails_keeps_no_event_waiting(
    engine: sa.Engine,
    sessions: Sessions,
    broker: Broker,
    relay_for: MakeRelay,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged and tried again a minute later."""
    clock = [1000.0]
    monkeypatch.setattr(relay_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    produced(engine, sessions, 1)
    relay = relay_for(retention=1800.0)
    with refusing(engine, "DELETE"):
        for number in (1, 2):
            store(sessions, number)
            relay.step()
    assert sorted(broker.sent) == [1, 2]
    assert caplog.text.count("could not purge") == 1
    clock[0] += PURGE_INTERVAL
    relay.step()
    assert statuses(engine) == ["produced", "produced"]
    assert len(table(engine)) == 2


def test_a_busy_relay_does_not_idle(sessions: Sessions, relay_for: MakeRelay) -> None:
    """Only an empty outbox is waited for."""
    store(sessions, *(Numbered(payload=number, partition_key="k") for number in range(3)))
    relay = relay_for(batch_size=2)
    assert [relay.step() for _ in range(3)] == [0.0, 0.0, FOREVER]


async def open_coroutine(session: Any) -> None:
    """Opens nothing for anybody who does not await it."""


# --- health and configuration --------------------------------------------------------------------------------------


def test_health_counts_the_backlog(engine: sa.Engine, sessions: Sessions, broker: Broker, relay_for: MakeRelay) -> None:
    """In one statement."""
    relay = relay_for(max_attempts=1)
    assert relay.health() == RelayHealth(False, None, 0, 0, 0, None)
    broker.errors[0] = MessageRejected("no")
    store(sessions, 0)
    relay.drain()
    store(sessions, 1, 2)
    with statements_of(engine) as statements:
        health = relay.health()
    assert len(statements) == 1
    assert (health.pending, health.dead, health.published) == (2, 1, 0)
    assert health.oldest_age is not None


def test_a_relay_may_run_over_an_outbox_in_memory(broker: Broker) -> None:
    """With a session factory that has nothing to open."""
    outbox = MemoryOutbox()
    repository = MockOutboxedEventRepository(outbox, ZlibCompressor(), event_map=EVENTS)
    for number in range(3):
        repository.add(Numbered(payload=number))
    repository.commit()
    relay = OutboxRelay(lambda: outbox, broker, repository=lambda outbox: MockOutboxedEventRepository(outbox))
    assert relay.drain() == 3
    assert sorted(broker.sent) == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, not 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number, not True"),
        ({"poll_interval": 0}, "poll_interval must be more than 0 seconds, and a century at most, not 0"),
        ({"poll_interval": math.nan}, "poll_interval must be .*, not nan"),
        ({"poll_interval": math.inf}, "poll_interval must be .*, not inf"),
        ({"poll_interval": timedelta(0)}, r"poll_interval must be .*, not datetime\.timedelta\(0\)"),
        ({"poll_interval": "1"}, "poll_interval must be a number of seconds or a timedelta, not '1'"),
        ({"poll_interval": True}, "poll_interval must be a number of seconds or a timedelta, not True"),
        ({"retention": -1}, "retention must be 0 or more seconds, .*, not -1"),
        ({"retention": math.inf}, "retention must be .*, not inf"),
        ({"retention": math.nan}, "retention must be .*, not nan"),
        ({"retention": "week"}, "retention must be a number of seconds or a timedelta, not 'week'"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"max_attempts": 2.0}, r"max_attempts must be a whole number, not 2\.0"),
        ({"dead_letters": "drop"}, "dead_letters must be .*, not 'drop'"),
        ({"backoff": 1.0}, r"backoff must be a Backoff, not 1\.0"),
        ({"outage_backoff": 30}, "outage_backoff must be a Backoff, not 30"),
        ({"outage_backoff": Backoff}, "outage_backoff must be a Backoff, not the class Backoff"),
        (
            {"repository": OutboxModel},
            "repository must make an instance of OutboxStore, and the class OutboxModel does not: pass Sql",
        ),
        ({"repository": functools.partial(OutboxModel)}, "repository must make .*the class OutboxModel"),
        ({"repository": MockOutboxedEventRepository()}, "repository must make .*MockOutboxedEventRepository object"),
        ({"repository": None}, "repository must make .*None does not"),
        ({"repository": open_coroutine}, "repository open_coroutine is async"),
        ({"listen": True}, "needs PostgreSQL through psycopg2, and this is sqlite through pysqlite: leave it out"),
    ],
)
def test_what_cannot_work_is_refused_at_start_up(sessions: Sessions, wrong: dict[str, Any], text: str) -> None:
    """By name, with what it was given as."""
    with pytest.raises(ConfigurationError, match=text):
        OutboxRelay(sessions, Broker(), **wrong)


def test_times_may_be_timedeltas(engine: sa.Engine, sessions: Sessions, relay_for: MakeRelay) -> None:
    """Retention and interval."""
    produced(engine, sessions, 2)
    assert relay_for(retention=timedelta(hours=2)).purge() == 0
    relay = relay_for(retention=timedelta(minutes=30), poll_interval=timedelta(minutes=1))
    assert relay.purge() == 2
    assert relay.step() == 60.0


def test_a_scoped_session_is_refused(sessions: Sessions) -> None:
    """The thread that runs the relay by hand has it open for something else, and would find it closed."""
    with pytest.raises(ConfigurationError, match=r"pass its sessionmaker \(scoped.session_factory\)"):
        OutboxRelay(scoped_session(sessions), Broker())


# --- what it tells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "source"),
    [
        (SqlAlchemyOutboxedEventRepository, "outbox"),
        (functools.partial(SqlAlchemyOutboxedEventRepository, model=OutboxModel), "outbox"),
        (lambda session: Repository(session), "<lambda>"),
        (functools.partial(MockOutboxedEventRepository, compressor=None), "MockOutboxedEventRepository"),
    ],
)
def test_a_start_is_logged_with_its_ends(
    relay_for: MakeRelay, caplog: pytest.LogCaptureFixture, repository: Any, source: str
) -> None:
    """The table, where it is known, and the broker."""
    caplog.set_level(logging.INFO, relay_module.__name__)
    with relay_for(repository=repository):
        assert f"cqrs-outbox-relay publishes from {source} to Broker" in caplog.messages


class Own(DeclarativeBase):
    pass


class OwnOutbox(OutboxMixin, Own):
    """A table of the program's own, for which a relay may forget to be told."""

    __tablename__ = "own_outbox"


@pytest.mark.parametrize(
    ("repository", "times"),
    [
        (SqlAlchemyOutboxedEventRepository, 1),
        (Repository, 1),
        (functools.partial(Repository, model=OutboxModel), 0),
        (functools.partial(Repository, model=OwnOutbox), 0),
        (lambda session: Repository(session), 0),
        (MockOutboxedEventRepository, 0),
    ],
)
def test_a_relay_that_names_no_table_warns_where_there_are_several(
    relay_for: MakeRelay, caplog: pytest.LogCaptureFixture, repository: Any, times: int
) -> None:
    """It might wait for ever at one while events are stored in another."""
    relay_for(repository=repository)
    warnings = [message for message in caplog.messages if "'own_outbox'" in message]
    assert len(warnings) == times
    assert all("the table 'outbox'" in text and text.endswith("model=OwnOutbox)") for text in warnings)


@pytest.mark.parametrize("known", ["by its sessions", "later"])
def test_why_nothing_is_heard_is_in_the_health(engine: sa.Engine, sessions: Sessions, known: str) -> None:
    """The relay itself is well, and polls; a database that is not known at once is found out then."""
    unbound = sessionmaker()
    factory = unbound if known == "later" else lambda: sessions()
    relay = OutboxRelay(factory, Broker(), repository=Repository, listen=True, outage_backoff=NOW)
    unbound.configure(bind=engine)
    assert relay.health().last_error is None
    with relay:
        until(lambda: relay.health().last_error is not None)
        assert "this is sqlite through pysqlite" in str(relay.health().last_error)
        assert relay.last_error is None


def test_an_outbox_in_memory_has_nothing_to_listen_to() -> None:
    """Which is told in the health as well."""
    outbox = MemoryOutbox()
    repository = MockOutboxedEventRepository
    with OutboxRelay(lambda: outbox, Broker(), repository=repository, listen=True, outage_backoff=NOW) as relay:
        until(lambda: relay.health().last_error is not None)
        assert "listen=True is for SqlAlchemyOutboxedEventRepository, not for" in str(relay.health().last_error)


# --- what others do --------------------------------------------------------------------------------------------------


def test_what_is_no_session_factory_and_no_broker_is_refused(sessions: Sessions) -> None:
    """Before any thread starts."""
    wrong: Any = object()
    with pytest.raises(ConfigurationError, match="session_factory"):
        OutboxRelay(wrong, Broker())
    with pytest.raises(ConfigurationError, match="message_broker"):
        OutboxRelay(sessions, wrong)


def test_a_database_without_tables_says_what_to_do(tmp_path: Path, broker: Broker) -> None:
    """And not 'no such table'."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'empty'}")
    with pytest.raises(ConfigurationError, match="run your migrations"):
        OutboxRelay(sessionmaker(engine), broker).run_once()
    engine.dispose()


def test_a_session_that_is_none_is_refused(broker: Broker) -> None:
    """With what to pass instead."""
    with pytest.raises(ConfigurationError, match="takes a Session, not"):
        OutboxRelay(lambda: object(), broker).run_once()


def test_a_failure_of_a_row_that_is_gone_is_nothing(sessions: Sessions) -> None:
    """Somebody discarded it meanwhile."""
    with closing(Repository(sessions())) as repository:
        repository.mark_failed([Failure(77, "gone", 1.0)])
        repository.commit()
