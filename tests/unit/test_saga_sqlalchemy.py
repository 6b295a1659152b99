"""The saga storage over SQLAlchemy: what it is given, what it refuses, and how it tells of errors."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, MappedAsDataclass, Session, scoped_session, sessionmaker

from cqrs_sync.errors import ConfigurationError, SagaStorageUnavailable
from cqrs_sync.saga.storage import tables
from cqrs_sync.saga.storage.models import NewSaga
from cqrs_sync.saga.storage.sqlalchemy import (
    Base,
    SagaExecutionMixin,
    SagaExecutionModel,
    SagaLogMixin,
    SqlAlchemySagaStorage,
    _in_autocommit,
    rebind_saga_models,
)
from cqrs_sync.sql import DriverStatement, UtcDateTime, utc_in
from cqrs_sync.unit_of_work.memory import MemoryUnitOfWork
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyTransaction

NEW = NewSaga(saga_id=uuid.uuid4(), name="Saga", context="{}", definition="A", current_step="A")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A file with the tables."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def default_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the library's models back afterwards."""
    monkeypatch.setattr(tables, "_default_models", tables._default_models)


def test_models_may_be_of_your_own(tmp_path: Path) -> None:
    """On your own base, under names of yours."""

    class Own(DeclarativeBase):
        pass

    class OrderSagas(SagaExecutionMixin, Own):
        __tablename__ = "order_sagas"

    class OrderSagaLog(SagaLogMixin, Own):
        __tablename__ = "order_saga_log"

    class Derived(OrderSagas):
        """In the same table: it has its indexes already."""

    class DerivedLog(OrderSagaLog):
        """As well."""

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}")
    Own.metadata.create_all(engine)
    storage = SqlAlchemySagaStorage(sessionmaker(engine), execution_model=OrderSagas, log_model=OrderSagaLog)
    assert storage.create_saga(NEW, "o1")
    assert repr(storage) == "SqlAlchemySagaStorage(table='order_sagas')"
    assert len(OrderSagas.__table__.indexes) == 2  # type: ignore[attr-defined]
    engine.dispose()
    with pytest.raises(ConfigurationError, match="no model that derives from SagaExecutionMixin"):
        SqlAlchemySagaStorage(sessionmaker(engine), execution_model=OrderSagaLog)


@pytest.mark.usefixtures("default_models")
def test_the_tables_can_be_put_on_your_own_base() -> None:
    """Storages that are given no models use them; a base that makes dataclasses will do."""

    class Own(DeclarativeBase):
        pass

    class Dataclasses(MappedAsDataclass, DeclarativeBase):
        pass

    assert [model.__tablename__ for model in rebind_saga_models(Own)] == ["saga_executions", "saga_logs"]
    assert sorted(Own.metadata.tables) == ["saga_executions", "saga_logs"]
    execution, _ = rebind_saga_models(Dataclasses, "sagas", "saga_log")
    assert sorted(Dataclasses.metadata.tables) == ["saga_log", "sagas"]
    assert SqlAlchemySagaStorage(sessionmaker(sa.create_engine("sqlite://")))._execution_model is execution
    with pytest.raises(ConfigurationError, match="cannot be a dataclass"):
        type("Sagas", (SagaExecutionMixin, Dataclasses), {"__tablename__": "no"})


@pytest.mark.parametrize("lease", [0, -1, True, "30"])
def test_a_lease_is_a_time(lease: Any) -> None:
    """Of more than nothing."""
    with pytest.raises(ConfigurationError, match="lease must be"):
        SqlAlchemySagaStorage(sessionmaker(), lease)


def test_a_session_that_others_use_is_refused() -> None:
    """As everywhere in the library."""
    with pytest.raises(ConfigurationError, match="must open a new session at each call"):
        SqlAlchemySagaStorage(scoped_session(sessionmaker()))  # type: ignore[arg-type]


def test_missing_tables_are_named() -> None:
    """With what makes them."""
    storage = SqlAlchemySagaStorage(sessionmaker(sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)))
    for call in (lambda: storage.create_saga(NEW, "o1"), storage.find, lambda: storage.renew([(uuid.uuid4(), "o1")])):
        with pytest.raises(ConfigurationError, match="has no table 'saga_executions': run your migrations, or"):
            call()


def test_other_errors_of_statements_are_raised_as_they_are(engine: sa.Engine) -> None:
    """A value that the database refuses is no outage."""
    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with pytest.raises(sa.exc.IntegrityError):
        storage.create_saga(dataclasses.replace(NEW, context=None), "o1")  # type: ignore[arg-type]
    with pytest.raises(sa.exc.StatementError):
        storage.load_saga_state("no id")  # type: ignore[arg-type]


def test_a_database_that_cannot_be_reached_is_an_outage(tmp_path: Path) -> None:
    """And so is a pool without a free connection."""
    nowhere = sa.create_engine(f"sqlite:///{tmp_path / 'missing' / 'db'}")
    storage = SqlAlchemySagaStorage(sessionmaker(nowhere))
    with pytest.raises(SagaStorageUnavailable, match="cannot be reached: unable to open database file") as caught:
        storage.find()
    assert storage.is_outage(caught.value)
    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    assert storage.is_outage(caught.value.__cause__)
    assert not storage.is_outage(ValueError())
    nowhere.dispose()

    busy = sa.create_engine("sqlite://", poolclass=sa.pool.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
    storage = SqlAlchemySagaStorage(sessionmaker(busy))
    with busy.connect(), pytest.raises(SagaStorageUnavailable, match="QueuePool limit"):
        storage.find()
    busy.dispose()


def test_a_database_that_is_locked_is_an_outage(tmp_path: Path) -> None:
    """Somebody else writes, for longer than the driver waits."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 0.01})
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(SagaStorageUnavailable, match="database is locked"):
            SqlAlchemySagaStorage(sessionmaker(engine)).create_saga(NEW, "o1")
    engine.dispose()


def test_a_storage_joins_transactions_of_its_database(engine: sa.Engine) -> None:
    """Through whichever engine; no other ones."""
    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    other_engine = sa.create_engine(engine.url)
    memory = [sa.create_engine("sqlite://") for _ in range(2)]
    with engine.connect() as connection:
        for factory, joins in (
            (sessionmaker(engine), True),
            (sessionmaker(connection), True),
            (sessionmaker(other_engine), True),
            (sessionmaker(memory[0]), False),
            (sessionmaker(), False),
            (sessionmaker(binds={SagaExecutionModel: engine}), True),
        ):
            transaction = SqlAlchemyTransaction(factory())
            assert storage.joins(transaction) is joins
            transaction.close()
    in_memory = SqlAlchemySagaStorage(sessionmaker(memory[0]))
    assert not in_memory.joins(SqlAlchemyTransaction(Session(memory[1])))
    assert not storage.joins(MemoryUnitOfWork().begin())
    other_engine.dispose()


def test_a_storage_works_in_the_connection_of_a_test(engine: sa.Engine) -> None:
    """Sessions that are bound to a connection, whose transaction is rolled back afterwards."""
    with engine.connect() as connection:
        outer = connection.begin()
        storage = SqlAlchemySagaStorage(sessionmaker(connection))
        assert storage.create_saga(NEW, "o1")
        assert storage.load_saga_state(NEW.saga_id).locked_by == "o1"
        outer.rollback()
    assert SqlAlchemySagaStorage(sessionmaker(engine)).find() == []


def test_times_from_now_are_written_for_each_database() -> None:
    """By the clock that goes on within a transaction."""
    expression = sa.select(utc_in(sa.bindparam("seconds", type_=sa.Float())))
    for dialect, wanted in (
        (postgresql.dialect(), "CLOCK_TIMESTAMP() + (%(seconds)s) * INTERVAL '1 second'"),
        (mysql.dialect(), "UTC_TIMESTAMP(6) + INTERVAL ROUND((%s) * 1000000) MICROSECOND"),
        (sqlite.dialect(), "strftime('%Y-%m-%d %H:%M:%f000', 'now', ROUND(?, 3) || ' seconds')"),
    ):
        assert wanted in str(expression.compile(dialect=dialect))


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_connection_that_broke_is_not_touched_again(is_broken: bool) -> None:
    """Its driver would raise, in place of what broke it."""
    driver = SimpleNamespace(autocommit=False)
    connection: Any = SimpleNamespace(connection=SimpleNamespace(driver_connection=driver), invalidated=False)
    with _in_autocommit(connection):
        assert driver.autocommit
        connection.invalidated = is_broken
    assert driver.autocommit is is_broken


def test_the_clock_itself_is_written_without_seconds() -> None:
    """Nothing to add, and nothing to send."""
    for dialect, wanted in (
        (postgresql.dialect(), "SELECT CLOCK_TIMESTAMP() AS"),
        (mysql.dialect(), "SELECT UTC_TIMESTAMP(6) AS"),
        (sqlite.dialect(), "SELECT strftime('%Y-%m-%d %H:%M:%f000', 'now') AS"),
    ):
        assert str(sa.select(utc_in()).compile(dialect=dialect)).startswith(wanted)


def test_statement_in_the_words_of_the_driver_keeps_constants_and_converts_what_it_is_given() -> None:
    """As SQLAlchemy would, at each execution."""
    table = sa.Table("t", sa.MetaData(), sa.Column("at", UtcDateTime()), sa.Column("n", sa.Integer()))
    then = datetime.datetime(2026, 1, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    statement = (
        sa.update(table)
        .where(table.c.n == 7, table.c.at > then)
        .values(at=sa.bindparam("new_at", type_=UtcDateTime()), n=sa.bindparam("new_n"))
    )
    dialect: Any = postgresql.dialect(paramstyle="pyformat")  # type: ignore[no-untyped-call]
    sent: list[tuple[str, dict[str, Any]]] = []

    class Recorder:
        rowcount = 3

        def exec_driver_sql(self, text: str, parameters: dict[str, Any]) -> Recorder:
            sent.append((text, parameters))
            return self

    connection: Any = Recorder()
    assert DriverStatement(statement, dialect).execute(connection, {"new_at": then, "new_n": 1}) == 3
    [(text, parameters)] = sent
    in_utc = then.astimezone(datetime.UTC)
    assert sorted(map(str, parameters.values())) == sorted(map(str, [7, in_utc, in_utc, 1]))
    assert all(parameters[name].tzinfo is datetime.UTC for name in ("new_at", "at_1"))
    assert all(f"%({name})s" in text for name in parameters)
