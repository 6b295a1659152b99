"""The contract of saga storages, run over every one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.protocol import SagaStore
from cqrs_sync.saga.storage.sqlalchemy import Base, SagaExecutionModel, SagaLogModel, SqlAlchemySagaStorage
from cqrs_sync.testing.saga_storage import AN_HOUR, EVERYTHING, SagaStorageContract
from tests.databases import fresh


@pytest.fixture(scope="module")
def postgres(postgres_url: str) -> Iterator[sa.Engine]:
    """A PostgreSQL database of its own with the tables."""
    yield from _database(postgres_url)


@pytest.fixture(scope="module")
def mariadb(mariadb_url: str) -> Iterator[sa.Engine]:
    """A MariaDB database of its own with the tables."""
    yield from _database(mariadb_url)


def _database(server: str) -> Iterator[sa.Engine]:
    with fresh(server) as url:
        engine = sa.create_engine(url)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


class TestMemorySagaStorage(SagaStorageContract):
    @pytest.fixture(autouse=True)
    def _storages(self) -> None:
        self.first: MemorySagaStorage | None = None

    def make(self, lease: float = AN_HOUR) -> SagaStore:
        made = MemorySagaStorage(lease)
        if self.first is None:
            self.first = made
        # As several processes would be: over the same sagas, with leases of their own.
        vars(made).update({name: value for name, value in vars(self.first).items() if name != "lease"})
        return made


class SqlContract(SagaStorageContract):
    """Tables in whatever database the engine is of."""

    engine: sa.Engine

    def make(self, lease: float = AN_HOUR) -> SagaStore:
        return SqlAlchemySagaStorage(sessionmaker(self.engine), lease)

    def empty(self, engine: sa.Engine) -> None:
        self.engine = engine
        with engine.begin() as connection:
            for model in (SagaLogModel, SagaExecutionModel):
                connection.execute(sa.delete(model))

    def test_a_purged_saga_leaves_no_log(self) -> None:
        """Entries without a saga would stay for ever."""
        storage = self.make()
        self.left(storage, status=SagaStatus.COMPLETED, available_in=None, entries=(self.entry("A"),))
        self.left(storage, entries=(self.entry("B"),))
        assert storage.purge(EVERYTHING) == 1
        with self.engine.connect() as connection:
            assert list(connection.scalars(sa.select(SagaLogModel.step_name))) == ["B"]


class TestSagaStorageOnSqlite(SqlContract):
    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> Iterator[None]:
        self.engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 60})
        Base.metadata.create_all(self.engine)
        yield
        self.engine.dispose()


class TestSagaStorageOnPostgreSQL(SqlContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres: sa.Engine) -> None:
        self.empty(postgres)


class TestSagaStorageOnMariaDB(SqlContract):
    @pytest.fixture(autouse=True)
    def _database(self, mariadb: sa.Engine) -> None:
        self.empty(mariadb)
