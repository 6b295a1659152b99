"""What errors of real databases say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.errors import SagaStorageUnavailable
from cqrs_sync.saga.leases import new_owner
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from cqrs_sync.sql_errors import is_outage, is_passing
from tests.unit.sagas import Order, mediator_of, saga, step

SERVERS = pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """Each database in turn, with a table of two rows and those of sagas."""
    engine = sa.create_engine(url, connect_args={"timeout": 0.05} if url.startswith("sqlite") else {})
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE places (id INTEGER PRIMARY KEY, taken INTEGER)"))
        connection.execute(sa.text("INSERT INTO places VALUES (1, 0), (2, 0)"))
    yield engine
    engine.dispose()


def take(connection: Any, place: int) -> None:
    connection.execute(sa.text(f"UPDATE places SET taken = taken + 1 WHERE id = {place}"))


def wait_briefly(connection: Any) -> None:
    """Have the transaction wait for locks for a second at most."""
    if connection.get_bind().dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL lock_timeout = '100ms'"))
    elif connection.get_bind().dialect.name != "sqlite":
        connection.execute(sa.text("SET SESSION innodb_lock_wait_timeout = 1"))


@SERVERS
def test_a_deadlock_passes(engine: sa.Engine) -> None:
    """One of the two is undone, and may try again."""
    barrier = threading.Barrier(2)
    errors: list[Exception] = []

    def take_both(first: int, second: int) -> None:
        try:
            with engine.begin() as connection:
                take(connection, first)
                barrier.wait(10)
                take(connection, second)
        except sa.exc.DBAPIError as error:
            errors.append(error)

    threads = [threading.Thread(target=take_both, args=places) for places in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    [error] = errors
    assert (is_outage(error), is_passing(error)) == (False, True)


@ON_POSTGRESQL
def test_a_serialization_failure_passes(engine: sa.Engine) -> None:
    """At a statement, and at COMMIT, whose error has no statement."""
    strict = engine.execution_options(isolation_level="SERIALIZABLE")
    errors = []
    for places in ((1, 1), (1, 2)):
        with strict.connect() as one, strict.connect() as other:
            for connection, place in zip((one, other), places, strict=True):
                connection.execute(sa.text("SELECT SUM(taken) FROM places"))
                if connection is other and places == (1, 1):
                    one.commit()
                try:
                    take(connection, place)
                except sa.exc.DBAPIError as error:
                    errors.append(error)
            if places == (1, 2):
                one.commit()
                with pytest.raises(sa.exc.DBAPIError) as caught:
                    other.commit()
                assert caught.value.statement is None
                errors.append(caught.value)
    assert [(is_outage(error), is_passing(error)) for error in errors] == [(False, True)] * 2


@ON_POSTGRESQL
def test_a_statement_that_takes_too_long_passes(engine: sa.Engine) -> None:
    """It is the statement's fault, not the server's."""
    with engine.connect() as connection:
        connection.execute(sa.text("SET LOCAL statement_timeout = '20ms'"))
        with pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(sa.text("SELECT pg_sleep(5)"))
    assert (is_outage(caught.value), is_passing(caught.value)) == (False, True)


@SERVERS
def test_a_connection_that_is_killed_is_an_outage(engine: sa.Engine) -> None:
    """And so is a server that does not answer at all."""
    with engine.connect() as victim, engine.connect() as killer:
        if engine.dialect.name == "postgresql":
            number = victim.scalar(sa.text("SELECT pg_backend_pid()"))
            killer.execute(sa.text(f"SELECT pg_terminate_backend({number})"))
        else:
            number = victim.scalar(sa.text("SELECT CONNECTION_ID()"))
            killer.execute(sa.text(f"KILL {number}"))
        with pytest.raises(sa.exc.DBAPIError) as caught:
            take(victim, 1)
        assert is_outage(caught.value)
    nobody = sa.create_engine(engine.url.set(host="127.0.0.1", port=1, query={}))
    with pytest.raises(sa.exc.DBAPIError) as caught:
        nobody.connect()
    assert is_outage(caught.value)


def test_a_column_that_is_missing_is_no_outage(engine: sa.Engine) -> None:
    """Though SQLite and MariaDB have the same class of errors for both."""
    for statement in ("SELECT gone FROM places", "SELECT * FROM gone"):
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError) as caught:
            connection.execute(sa.text(statement))
        assert (is_outage(caught.value), is_passing(caught.value)) == (False, False)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE saga_executions RENAME COLUMN error TO mistake"))
    with pytest.raises(sa.exc.DBAPIError, match="error"):
        SqlAlchemySagaStorage(sessionmaker(engine)).find()


# --- sagas -------------------------------------------------------------------------------------------------------


def test_a_storage_is_unavailable_while_somebody_has_its_locks(engine: sa.Engine) -> None:
    """It may be asked again; also where the driver's BEGIN is what waits."""
    impatient = sa.create_engine(engine.url, connect_args=_impatient(engine))
    storage = SqlAlchemySagaStorage(sessionmaker(impatient))
    stream_storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with mediator_of(saga(step("a", []), step("b", [])), stream_storage) as mediator:
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        assert saga_id is not None
        stream.close()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.execute(sa.text("UPDATE saga_executions SET version = version"))
        with pytest.raises(SagaStorageUnavailable, match="cannot be reached" if _is_sqlite(engine) else "may take it"):
            storage.claim(saga_id, new_owner())
    assert storage.claim(saga_id, new_owner()).status is SagaStatus.RUNNING
    impatient.dispose()


def _is_sqlite(engine: sa.Engine) -> bool:
    return engine.dialect.name == "sqlite"


def _impatient(engine: sa.Engine) -> dict[str, Any]:
    if _is_sqlite(engine):
        return {"timeout": 0.05}
    if engine.dialect.name == "postgresql":
        return {"options": "-c lock_timeout=100ms"}
    return {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}


@SERVERS
def test_a_transactional_step_that_gets_no_lock_has_failed(engine: sa.Engine) -> None:
    """When its attempts are used up: the database is there, so the saga is rolled back."""
    effects: list[str] = []

    class Take(TransactionalSagaStep[Order, None]):
        retry = Retry(attempts=2, delay=0)

        def act(self, context: Order, session: Session) -> Any:
            effects.append("take")
            wait_briefly(session)
            take(session, 1)

        def compensate(self, context: Order, session: Session) -> None: ...

    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with mediator_of(saga(step("charge", effects), Take), storage) as mediator, engine.begin() as other:
        take(other, 1)
        outcome = mediator.run(Order())
    assert isinstance(outcome.error, sa.exc.OperationalError)
    assert outcome.status is SagaStatus.FAILED
    assert effects == ["charge", "take", "take", "-charge"]


def test_a_transactional_step_that_asks_for_what_is_missing_has_failed(engine: sa.Engine) -> None:
    """On every database."""
    effects: list[str] = []

    class Take(TransactionalSagaStep[Order, None]):
        def act(self, context: Order, session: Session) -> Any:
            session.execute(sa.text("INSERT INTO palces VALUES (3, 1)"))

        def compensate(self, context: Order, session: Session) -> None: ...

    storage = SqlAlchemySagaStorage(sessionmaker(engine))
    with mediator_of(saga(step("charge", effects), Take), storage) as mediator:
        outcome = mediator.run(Order())
    assert isinstance(outcome.error, sa.exc.DBAPIError)
    assert outcome.status is SagaStatus.FAILED
    assert effects == ["charge", "-charge"]


@ON_POSTGRESQL
def test_where_transactions_are_repeatable_a_retry_helps_a_slow_transactional_step(engine: sa.Engine) -> None:
    """The heartbeat has written the saga's row meanwhile, which the step's transaction does not see."""
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    storage = SqlAlchemySagaStorage(sessionmaker(repeatable))
    tries: list[str] = []

    class Take(TransactionalSagaStep[Order, None]):
        retry = Retry(attempts=2, delay=0, exceptions=(sa.exc.OperationalError,))

        def act(self, context: Order, session: Session) -> Any:
            take(session, 1)
            tries.append(self.execution.owner)
            if len(tries) == 1:
                assert storage.renew([(self.saga_id, self.execution.owner)])

        def compensate(self, context: Order, session: Session) -> None: ...

    with mediator_of(saga(Take), storage) as mediator:
        assert mediator.run(Order()).completed
    assert len(tries) == 2
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT SUM(taken) FROM places")) == 1
