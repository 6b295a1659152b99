"""A relay that listens for PostgreSQL's NOTIFY."""

from __future__ import annotations

import functools
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import StopTimeout
from cqrs_sync.outbox import listening
from cqrs_sync.outbox.listening import Listener
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import Base, OutboxMixin, OutboxModel, SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.wakeup import remove_waker
from cqrs_sync.testing.outbox import EVENTS, Numbered
from tests.unit.outboxes import WAIT, Broker, Repository, store, until

Notifying = functools.partial(SqlAlchemyOutboxedEventRepository, event_map=EVENTS, notify=True)
FOREVER = 3600.0
NOW = Backoff(initial=0.001, maximum=0.002)


@pytest.fixture(scope="module")
def engine(postgres_url: str) -> Iterator[sa.Engine]:
    """A database of its own with the tables."""
    name = f"listening_{uuid.uuid4().hex}"
    server = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine = sa.create_engine(sa.make_url(postgres_url).set(database=name))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> sessionmaker[Session]:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE outbox"))
    return sessionmaker(engine)


@pytest.fixture
def relay(sessions: sessionmaker[Session]) -> Iterator[OutboxRelay]:
    """One that listens, never polls, and hears nothing of this process's own commits."""
    relay = OutboxRelay(
        sessions, Broker(), repository=Repository, listen=True, poll_interval=FOREVER, outage_backoff=NOW
    )
    with relay:
        remove_waker(relay.waker)
        until(lambda: listeners(sessions))
        until(lambda: relay._listener is not None and relay._listener._connection is not None)
        yield relay


def listeners(sessions: sessionmaker[Session]) -> list[int]:
    """The backends that listen."""
    query = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    with sessions() as session:
        return list(session.scalars(sa.text(query)))


def notify(sessions: sessionmaker[Session], number: int) -> None:
    """Store an event as another process does that notifies."""
    with closing(Notifying(sessions())) as repository:
        repository.add(Numbered(payload=number))
        repository.commit()


def sent(relay: OutboxRelay) -> list[int]:
    broker: Any = relay._publisher.message_broker
    found: list[int] = broker.sent
    return found


def test_a_notification_wakes_the_relay(relay: OutboxRelay, sessions: sessionmaker[Session]) -> None:
    """Each time."""
    for number in range(3):
        notify(sessions, number)
        until(lambda number=number: number in sent(relay))


def test_a_transaction_notifies_once_and_only_when_it_commits(
    sessions: sessionmaker[Session], engine: sa.Engine
) -> None:
    """However many events it has."""
    listener = sessions()
    driver: Any = listener.connection(execution_options={"isolation_level": "AUTOCOMMIT"}).connection.driver_connection
    listener.execute(sa.text("LISTEN outbox"))
    with closing(Notifying(sessions())) as repository:
        repository.add(Numbered(payload=1))
        repository.rollback()
        for number in range(3):
            repository.add(Numbered(payload=number))
        repository.commit()
    until(lambda: driver.poll() or driver.notifies)
    assert len(driver.notifies) == 1
    listener.connection().invalidate()
    listener.close()


def test_a_lost_connection_is_made_anew_and_nothing_is_missed(
    relay: OutboxRelay, sessions: sessionmaker[Session]
) -> None:
    """What was committed meanwhile is looked for after connecting."""
    [lost] = listeners(sessions)
    store(sessions, 1)
    with sessions() as session:
        session.execute(sa.text(f"SELECT pg_terminate_backend({lost})"))
    until(lambda: sent(relay) == [1])
    until(lambda: listeners(sessions) not in ([], [lost]))
    notify(sessions, 2)
    until(lambda: sent(relay) == [1, 2])


def test_stopping_closes_the_connection_that_listened(relay: OutboxRelay, sessions: sessionmaker[Session]) -> None:
    """It does not go back to the pool, where it would listen for somebody else."""
    relay.stop()
    until(lambda: not listeners(sessions))  # a backend ends a moment after its connection
    relay.stop()
    relay.start()
    until(lambda: listeners(sessions))


def test_a_relay_ends_although_its_listener_does_not(
    sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that hangs in its connecting is told of, and ends when it can."""
    connecting, go = threading.Event(), threading.Event()
    connect = Listener._connect

    def hang(self: Listener) -> sa.Connection:
        connecting.set()
        go.wait(WAIT)
        return connect(self)

    monkeypatch.setattr(Listener, "_connect", hang)
    relay = OutboxRelay(sessions, Broker(), repository=Repository, listen=True)
    relay.start()
    assert connecting.wait(WAIT)
    with pytest.raises(StopTimeout, match="cqrs-outbox-relay-listen"):
        relay.stop(0.01)
    until(lambda: not relay.running)
    go.set()
    relay.stop()
    until(lambda: not listeners(sessions))  # a backend ends a moment after its connection


def test_a_session_with_several_databases_listens_to_that_of_the_outbox(engine: sa.Engine) -> None:
    """Which need not be the one that it takes by default, or has."""
    shop = sa.create_engine("sqlite://")
    for factory in (sessionmaker(binds={OutboxModel: engine}), sessionmaker(shop, binds={OutboxModel: engine})):
        listener, notified = Listener(factory, "cqrs-listen", NOW), threading.Event()
        listener.listen_for(notified.set)
        until(lambda: listeners(sessionmaker(engine)))
        until(notified.is_set)  # which is so once it has connected
        notified.clear()
        notify(sessionmaker(engine), 1)
        assert notified.wait(WAIT)
        listener.stop()
    shop.dispose()


def test_a_model_of_ones_own_is_listened_to(sessions: sessionmaker[Session]) -> None:
    """By the name of its table, in quotes where it needs them."""
    listener = Listener(sessions, "cqrs-listen", NOW, functools.partial(Repository, model=Odd))
    connection = listener._connect()
    assert list(connection.scalars(sa.text("SELECT pg_listening_channels()"))) == ["Odd Outbox"]
    connection.invalidate()
    connection.close()


def test_a_connection_that_cannot_listen_goes_back_to_the_pool(
    engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    """Or each attempt would cost one."""
    busy = engine.pool.checkedout()  # type: ignore[attr-defined]
    listener = Listener(sessions, "cqrs-listen", NOW)

    def refuse(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("LISTEN"):
            raise ConnectionError("on a replica")

    sa.event.listen(engine, "before_cursor_execute", refuse)
    with pytest.raises(ConnectionError, match="on a replica"):
        listener.step()
    sa.event.remove(engine, "before_cursor_execute", refuse)
    assert engine.pool.checkedout() == busy  # type: ignore[attr-defined]


class OddBase(DeclarativeBase):
    pass


class Odd(OutboxMixin, OddBase):
    __tablename__ = "Odd Outbox"


class FakeConnection:
    """A connection on which something arrives that is no notification."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.notifies: list[Any] = []
        self.log: list[str] = []

    def fileno(self) -> int:
        return self.near.fileno()

    def poll(self) -> None:
        self.log.append("poll")

    @property
    def connection(self) -> Any:
        return SimpleNamespace(driver_connection=self)

    def invalidate(self) -> None:
        self.log.append("invalidate")

    def close(self) -> None:
        self.log.append("close")
        self.near.close()
        self.far.close()


@pytest.fixture
def listener() -> Iterator[Parts]:
    found: Any = Listener(lambda: None, "cqrs-listen", NOW)
    connection, notified = FakeConnection(), list[int]()
    found._connection = connection
    found._notify = functools.partial(notified.append, 1)
    yield found, connection, notified
    connection.near.close()
    connection.far.close()


Parts = tuple[Listener, FakeConnection, list[int]]


def test_what_arrives_and_is_no_notification_wakes_nobody(listener: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does silence; a notification does."""
    found, connection, notified = listener
    connection.far.send(b"x")
    found.step()
    assert (connection.log, notified) == (["poll"], [])
    connection.notifies.append("outbox")
    found.step()
    assert notified == [1]
    assert connection.notifies == []
    connection.near.recv(1)
    monkeypatch.setattr(listening, "SLICE", 0.0)
    found.step()
    assert notified == [1]


def test_an_error_gives_the_connection_up(listener: Parts) -> None:
    """It is made anew with the next step."""
    found, connection, _ = listener
    connection.far.close()

    def fail() -> None:
        raise OSError("gone")

    connection.poll = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        found.step()
    assert connection.log == ["invalidate", "close"]
    assert found._connection is None
    found.stop()


def test_a_forked_child_leaves_the_connection_of_its_parent_alone(listener: Parts) -> None:
    """Closing it there would end it here."""
    found, connection, _ = listener
    found.forget_thread()
    found.stop()
    assert connection.log == []
    assert listening._left_behind.pop() is connection
