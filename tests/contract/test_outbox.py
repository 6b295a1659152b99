"""The contract of the outbox, run over every store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from cqrs_sync.compressors import Compressor
from cqrs_sync.outbox.mock import MemoryOutbox, MockOutboxedEventRepository
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.outbox.sqlalchemy import Base, OutboxModel, SqlAlchemyOutboxedEventRepository
from cqrs_sync.testing.outbox import EVENTS, Numbered, OutboxContract
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyTransaction


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    """A PostgreSQL database of its own with the tables."""
    yield from _database(postgres_url, "AUTOCOMMIT")


@pytest.fixture(scope="module")
def mariadb(mariadb_url: str) -> Iterator[sa.Engine]:
    """A MariaDB database of its own with the tables."""
    yield from _database(mariadb_url, "AUTOCOMMIT")


def _database(url: str, isolation_level: str) -> Iterator[sa.Engine]:
    name = f"outbox_{uuid.uuid4().hex}"
    server = sa.create_engine(url, isolation_level=isolation_level, poolclass=sa.pool.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine = sa.create_engine(sa.make_url(url).set(database=name))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name}"))
    server.dispose()


class TestMockOutboxedEventRepository(OutboxContract):
    @pytest.fixture(autouse=True)
    def _outbox(self) -> None:
        self.outbox = MemoryOutbox()

    def open(self, compressor: Compressor | None = None) -> OutboxStore:
        return MockOutboxedEventRepository(self.outbox, compressor, event_map=EVENTS)

    def test_a_savepoint_that_fails_takes_its_events_with_it(self) -> None:
        """Alone; and the same event may be added again."""
        transaction = MemoryTransaction(MemoryUnitOfWork(), MockOutboxedEventRepository(self.outbox, event_map=EVENTS))
        event = Numbered(payload=2)
        assert transaction.outbox is not None
        transaction.outbox.add(Numbered(payload=1))
        with suppress(LookupError), transaction.savepoint():
            transaction.outbox.add(event)
            raise LookupError
        transaction.outbox.add(event)
        with suppress(LookupError), transaction.savepoint():
            transaction.outbox.add(Numbered(payload=3))
            raise LookupError
        with transaction.savepoint():
            transaction.outbox.add(Numbered(payload=4))
        transaction.commit()
        assert self.numbers(self.claimed()) == [1, 2, 4]


class SqlContract(OutboxContract):
    """A table in whatever database the engine is of."""

    engine: sa.Engine

    def open(self, compressor: Compressor | None = None) -> SqlAlchemyOutboxedEventRepository:
        return SqlAlchemyOutboxedEventRepository(Session(self.engine), compressor, event_map=EVENTS)

    def empty(self, engine: sa.Engine) -> None:
        self.engine = engine
        with engine.begin() as connection:
            connection.execute(sa.delete(OutboxModel))

    def test_a_savepoint_that_fails_takes_its_events_with_it(self) -> None:
        """Alone; and the same event may be added again."""
        session = Session(self.engine)
        repository = SqlAlchemyOutboxedEventRepository(session, event_map=EVENTS)
        transaction = SqlAlchemyTransaction(session)
        event = Numbered(payload=2)
        repository.add(Numbered(payload=1))
        with suppress(LookupError), transaction.savepoint():
            repository.add(event)
            raise LookupError
        repository.add(event)
        with suppress(LookupError), transaction.savepoint():
            repository.add(Numbered(payload=3))
            session.flush()
            raise LookupError
        with transaction.savepoint():
            repository.add(Numbered(payload=4))
        transaction.commit()
        transaction.close()
        assert self.numbers(self.drained()) == [1, 2, 4]

    def test_the_same_event_may_be_added_in_the_next_transaction(self) -> None:
        """Only then is it another row: what is a duplicate is known within one transaction."""
        event = Numbered(payload=1)
        store = self.open()
        for _ in range(2):
            store.add(event)
            store.session.flush()
            store.add(event)
            store.commit()
        store.close()
        assert self.numbers(self.drained()) == [1, 1]

    def test_a_row_that_was_spoiled_in_the_table_is_claimed_with_its_defect(self) -> None:
        """Headers that are no JSON, or JSON of something else."""
        self.stored(*(Numbered(payload=number) for number in range(3)))
        with self.engine.begin() as connection:
            for number, headers in enumerate(("{", "[1]")):
                first = sa.select(sa.func.min(OutboxModel.id)).scalar_subquery()
                chosen = connection.scalar(sa.select(first)) + number
                connection.execute(sa.update(OutboxModel).where(OutboxModel.id == chosen).values(headers=headers))
        defects = [event.defect for event in self.claimed()]
        assert "JSONDecodeError" in str(defects[0])
        assert "JSON object" in str(defects[1])
        assert defects[2] is None


class TestOutboxOnSqlite(SqlContract):
    one_at_a_time = True

    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> Iterator[None]:
        self.engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 60})
        Base.metadata.create_all(self.engine)
        yield
        self.engine.dispose()


class TestOutboxOnPostgreSQL(SqlContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres: sa.Engine) -> None:
        self.empty(postgres)


class TestOutboxOnMariaDB(SqlContract):
    @pytest.fixture(autouse=True)
    def _database(self, mariadb: sa.Engine) -> None:
        self.empty(mariadb)
