"""What the outbox over SQLAlchemy does beyond the contract: sessions, binds, tables, wake-ups."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker
from sqlalchemy.schema import CreateIndex, CreateTable

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox import sqlalchemy as outbox_module
from cqrs_sync.outbox import tables, wakeup
from cqrs_sync.outbox.encoding import PARTITIONS
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import (
    Base,
    OutboxMixin,
    OutboxModel,
    SqlAlchemyOutboxedEventRepository,
    rebind_outbox_model,
)
from cqrs_sync.sql import UtcDateTime, begin_on_sqlite
from cqrs_sync.testing.outbox import Numbered
from tests.unit.outboxes import Repository, engine_in, store, table


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = engine_in(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def woken() -> Iterator[list[int]]:
    """One entry for each time that the relays of this process are woken."""
    wakes: list[int] = []

    def wake() -> None:
        wakes.append(1)

    wakeup.add_waker(wake)
    yield wakes
    wakeup.remove_waker(wake)


# --- sessions ------------------------------------------------------------------------------------------------------


def test_adding_writes_when_the_session_does(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """The caller commits; the repository does nothing of its own."""
    with sessions() as session:
        Repository(session).add(Numbered(payload=1))
        assert len(session.new) == 1
        session.commit()
    assert len(table(engine)) == 1


def test_two_repositories_may_share_a_session(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """As a handler and its service do that make one each."""
    with sessions() as session:
        for number in range(2):
            Repository(session).add(Numbered(payload=number))
        session.commit()
    assert len(table(engine)) == 2


def test_two_repositories_of_a_session_store_an_event_once(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """A handler's own and the one of the unit of work."""
    event = Numbered(payload=1)
    with sessions() as session:
        Repository(session).add(event)
        Repository(session).add(event)
        session.commit()
        assert len(table(engine)) == 1
        Repository(session).add(event)  # another transaction: somebody wants it again
        session.commit()
    assert len(table(engine)) == 2


def test_a_claim_locks_a_database_whose_transactions_are_begun_by_a_listener(tmp_path: Path) -> None:
    """As SQLAlchemy's documentation shows it for SQLite: two relays would both read."""
    engines = [engine_in(tmp_path), sa.create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 0.1})]
    for engine in engines:
        sa.event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    store(sessionmaker(engines[0]), 1)
    one, two = (Repository(Session(engine)) for engine in engines)
    with closing(one), closing(two):
        assert len(one.get_many()) == 1
        with pytest.raises(OperationalError, match="locked"):
            two.get_many()
    for engine in engines:
        engine.dispose()


def test_a_commit_that_fails_gives_everything_back(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """The claim says why, so that whoever publishes does not go on at once; the session can be used again."""
    store(sessions, 1)

    def refuse(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if statement.startswith("UPDATE outbox SET"):
            raise OperationalError(statement, {}, Exception("connection lost"))

    with closing(Repository(sessions())) as repository:
        [event] = repository.get_many()
        repository.mark_produced([event.id])
        sa.event.listen(engine, "before_cursor_execute", refuse)
        with pytest.raises(OperationalError):
            repository.commit()
        sa.event.remove(engine, "before_cursor_execute", refuse)
        assert event.claim is not None
        assert event.claim.ended
        assert isinstance(event.claim.outage, OperationalError)
        repository.commit()
        assert len(repository.get_many()) == 1


def test_a_commit_of_events_that_fails_is_rolled_back(sessions: sessionmaker[Session], engine: sa.Engine) -> None:
    """Without any claim."""
    with closing(Repository(sessions())) as repository:
        repository.add(Numbered(payload=1))
        Base.metadata.drop_all(engine)
        with pytest.raises(OperationalError):
            repository.commit()
        Base.metadata.create_all(engine)
        repository.add(Numbered(payload=2))
        repository.commit()
    assert len(table(engine)) == 1


def test_notifications_are_refused_where_there_are_none(sessions: sessionmaker[Session]) -> None:
    """When the repository is made, and not at the first event."""
    with pytest.raises(ConfigurationError, match="notify=True is for PostgreSQL"):
        Repository(sessions(), notify=True)


def test_a_scoped_session_stands_for_its_session(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """The one of this thread."""
    scoped = scoped_session(sessions)
    repository = Repository(scoped)  # type: ignore[arg-type]
    repository.add(Numbered(payload=1))
    assert repository.session is scoped()
    scoped.commit()
    scoped.remove()
    assert len(table(engine)) == 1


def test_a_repository_names_its_table(sessions: sessionmaker[Session]) -> None:
    """In logs."""
    assert repr(Repository(sessions())) == "SqlAlchemyOutboxedEventRepository(table='outbox')"


def test_an_outbox_in_a_database_of_its_own_is_locked_there(tmp_path: Path) -> None:
    """The session finds it by its model, and has no other database."""
    engine = engine_in(tmp_path)
    binds = sessionmaker(binds={OutboxModel: engine})
    with closing(Repository(binds())) as one:
        one.add(Numbered(payload=1))
        one.commit()
        assert len(one.get_many()) == 1
        driver = one.session.connection({"mapper": OutboxModel}).connection.driver_connection
        assert driver is not None
        assert driver.in_transaction
    engine.dispose()


def test_beginning_where_there_is_no_database_is_left_to_the_first_statement() -> None:
    """The session knows its database by model alone."""
    with sessionmaker(binds={OutboxModel: sa.create_engine("sqlite://")})() as session:
        begin_on_sqlite(session)


def test_claiming_inside_a_transaction_of_the_caller_begins_none(
    engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    """And completes the partitions in it."""
    store(sessions, 1)
    with sessions() as session:
        session.execute(sa.select(sa.literal(1)))
        assert len(Repository(session).get_many()) == 1
        session.rollback()
    with closing(Repository(sessions())) as repository:
        assert len(repository.get_many()) == 1
    with closing(Repository(sessions())) as repository:
        assert len(repository.get_many()) == 1


def test_partitions_that_somebody_deleted_are_completed(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """At the first claim of a process."""
    store(sessions, *range(50))
    with engine.begin() as connection:
        for number in range(0, PARTITIONS, 2):
            connection.execute(sa.text(f"INSERT INTO outbox_partitions VALUES ({number})"))
    assert OutboxRelay(sessions, InMemoryMessageBroker(), repository=Repository).drain() == 50


def test_partitions_that_are_deleted_in_a_living_process_are_completed(
    engine: sa.Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests empty all tables and go on: at once after events of this process, after a minute for those of others."""
    relay = OutboxRelay(sessions, InMemoryMessageBroker(), repository=Repository)
    store(sessions, 1)
    assert relay.drain() == 1
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM outbox_partitions"))
    store(sessions, 2)
    assert relay.drain() == 1
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM outbox_partitions"))
        copied = "event_id, event_name, topic, partition, payload, created_at, status, attempts"
        source = copied.replace("status", "'new'")
        connection.execute(sa.text(f"INSERT INTO outbox ({copied}) SELECT {source} FROM outbox WHERE id = 1"))
    assert relay.drain() == 0
    monkeypatch.setattr(outbox_module.time, "monotonic", lambda: time.monotonic_ns() / 1e9 + outbox_module.TRUST)
    assert relay.drain() == 1


@pytest.mark.parametrize("name", ["outbox", "outbox_partitions"])
def test_a_missing_table_is_named_with_the_remedy(
    engine: sa.Engine, sessions: sessionmaker[Session], name: str
) -> None:
    """In the log of the relay that was started before the migrations."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP TABLE {name}"))
    relay = OutboxRelay(sessions, InMemoryMessageBroker(), repository=Repository)
    with pytest.raises(ConfigurationError, match=f"no table '{name}': run your migrations.*model=YourModel"):
        relay.run_once()


def test_partitions_that_another_relay_inserts_meanwhile_are_no_error(
    engine: sa.Engine, sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was first."""
    store(sessions, 1)
    with closing(Repository(sessions())) as repository:
        repository.get_many()
        repository.rollback()
        real = outbox_module.select
        monkeypatch.setattr(
            outbox_module, "select", lambda column: real(column).where(sa.false()) if column.name else None
        )
        outbox_module._complete.clear()
        assert len(repository.get_many()) == 1


def test_a_database_that_fails_is_not_called_unprepared(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """The tables are there: the error is the database's own."""

    def refuse(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        if "FROM outbox_partitions" in statement:
            raise OperationalError(statement, {}, Exception("connection lost"))

    sa.event.listen(engine, "before_cursor_execute", refuse)
    with closing(Repository(sessions())) as repository, pytest.raises(OperationalError):
        repository.get_many()


# --- wake-ups ------------------------------------------------------------------------------------------------------


def test_relays_are_woken_once_after_a_transaction_with_events(
    sessions: sessionmaker[Session], woken: list[int]
) -> None:
    """Not before, and not after one without."""
    with sessions() as session:
        session.execute(sa.select(sa.literal(1)))
        session.commit()
        assert woken == []
        repository = Repository(session)
        repository.add(Numbered(payload=1))
        session.flush()
        with session.begin_nested():
            repository.add(Numbered(payload=2))
        assert woken == []
        session.commit()
        assert woken == [1]
        session.execute(sa.select(sa.literal(1)))
        session.commit()
        assert woken == [1]


@pytest.mark.parametrize("what", ["replay", "discard"])
def test_relays_are_woken_by_what_operators_do(sessions: sessionmaker[Session], woken: list[int], what: str) -> None:
    """A replayed event may go, and so may what a discarded one held back."""
    with closing(Repository(sessions())) as repository:
        assert getattr(repository, what)([1]) == 0
        assert woken == []
        repository.commit()
        assert woken == [1]


def test_a_waker_that_is_unknown_is_removed_in_silence() -> None:
    """Twice, too."""
    wakeup.remove_waker(lambda: None)


# --- tables --------------------------------------------------------------------------------------------------------


def test_the_tables_are_what_each_database_needs() -> None:
    """Counting ids, long bytes, microseconds, and small indexes where there are partial ones."""
    on_postgres = str(CreateTable(OutboxModel.__table__).compile(dialect=postgresql.dialect()))
    on_sqlite = str(CreateTable(OutboxModel.__table__).compile(dialect=sqlite.dialect()))
    on_mysql = str(CreateTable(OutboxModel.__table__).compile(dialect=mysql.dialect()))
    assert "id BIGSERIAL" in on_postgres
    assert "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in on_sqlite
    assert "LONGBLOB" in on_mysql
    assert "DATETIME(6)" in on_mysql
    pending = next(index for index in OutboxModel.__table__.indexes if index.name == "ix_outbox_pending")
    assert "WHERE status <> 'produced'" in str(CreateIndex(pending).compile(dialect=postgresql.dialect()))
    assert "WHERE" not in str(CreateIndex(pending).compile(dialect=mysql.dialect()))


def test_a_model_of_ones_own_brings_its_partitions(tmp_path: Path) -> None:
    """In the same metadata and schema, once."""

    class Ours(DeclarativeBase):
        metadata = sa.MetaData(schema="shop")

    class Outbox(OutboxMixin, Ours):
        __tablename__ = "events"

    assert set(Ours.metadata.tables) == {"shop.events", "shop.events_partitions"}
    found: Any = Outbox.__table__
    assert tables.partitions_of(found) is Ours.metadata.tables["shop.events_partitions"]


def test_a_rebound_model_is_the_default_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its old name or a new one."""
    monkeypatch.setattr(tables, "_default_model", OutboxModel)

    class Ours(DeclarativeBase):
        pass

    rebound = rebind_outbox_model(OutboxModel, Ours, "our_outbox")
    assert tables.default_model() is rebound
    assert rebound.__tablename__ == "our_outbox"
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ours'}")
    Ours.metadata.create_all(engine)
    store(sessionmaker(engine), 1)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM our_outbox")) == 1
    engine.dispose()


def test_rebinding_another_model_leaves_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be several outboxes."""
    monkeypatch.setattr(tables, "_default_model", OutboxModel)

    class One(DeclarativeBase):
        pass

    class Two(DeclarativeBase):
        pass

    class Other(OutboxMixin, One):
        __tablename__ = "other"

    assert rebind_outbox_model(Other, Two).__tablename__ == "other"
    assert tables.default_model() is OutboxModel


@pytest.mark.parametrize("wrong", [object, Base, None, "OutboxModel"])
def test_only_an_outbox_can_be_rebound(wrong: Any) -> None:
    """At import, with a text that says so."""
    with pytest.raises(ConfigurationError, match="rebind_outbox_model takes OutboxModel"):
        rebind_outbox_model(wrong, Base)


# --- times ---------------------------------------------------------------------------------------------------------


def test_times_go_into_the_database_as_utc_and_come_back_aware(engine: sa.Engine) -> None:
    """Whatever zone they were given in; None stays None."""
    given = datetime.datetime(2024, 6, 1, 12, 0, 0, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    with engine.connect() as connection:
        text, back, nothing = connection.execute(
            sa.select(
                sa.cast(sa.literal(given, UtcDateTime()), sa.String()),
                sa.literal(given, UtcDateTime()),
                sa.literal(None, UtcDateTime()),
            )
        ).one()
    assert text == "2024-06-01 10:00:00.000005"
    assert back == given
    assert back.tzinfo is datetime.UTC
    assert nothing is None


def test_the_async_librarys_constructor_works(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    """A session and a compressor, by position."""
    repository = SqlAlchemyOutboxedEventRepository(sessions(), None)
    repository.close()
