"""Sagas in two tables, through SQLAlchemy: PostgreSQL, SQLite, MySQL 8, MariaDB 10.6 and later."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Insert, Table, Update
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import Session

from cqrs_sync.checks import in_seconds
from cqrs_sync.errors import ConfigurationError, SagaConcurrencyError, SagaNotFound, SagaStorageUnavailable
from cqrs_sync.saga.storage.enums import SagaStatus, SagaStepStatus, statuses_of
from cqrs_sync.saga.storage.models import NewSaga, SagaBacklog, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore
from cqrs_sync.saga.storage.statements import (
    SagaStatements,
    creation_parameters,
    entry_parameters,
    parameters_of,
)
from cqrs_sync.saga.storage.tables import (
    Base,
    SagaExecutionMixin,
    SagaExecutionModel,
    SagaLogMixin,
    SagaLogModel,
    default_models,
    rebind_saga_models,
)
from cqrs_sync.sql import (
    DriverStatement,
    begin_on_sqlite,
    explain_missing,
    require_session_factory,
    takes_driver_statements,
)
from cqrs_sync.sql_errors import is_outage, is_passing
from cqrs_sync.unit_of_work.protocol import Transaction
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyTransaction


class SqlAlchemySagaStorage(SagaStore):
    """Keeps sagas in a database. Thread-safe: each call opens a session and closes it; no connection is held between.

    A step's commit is one round trip on PostgreSQL (one statement, in autocommit), three statements elsewhere.

    Args:
        session_factory: a ``sessionmaker``, or any function that returns a new ``Session``.
        lease: seconds, or a ``timedelta``, for which a runner that is not heard of is left alone. The heartbeat needs
            a connection up to six times in that time.
        execution_model: a model that derives from :class:`SagaExecutionMixin`; the library's own by default.
        log_model: a model that derives from :class:`SagaLogMixin`; the library's own by default.

    Raises:
        ConfigurationError: one of them cannot work.

    Example:
        >>> import sqlalchemy
        >>> from sqlalchemy.orm import sessionmaker
        >>> engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool)
        >>> Base.metadata.create_all(engine)
        >>> SqlAlchemySagaStorage(sessionmaker(engine)).find()
        []
    """

    def __init__(
        self,
        session_factory: Callable[[], Session],
        lease: float | datetime.timedelta = 30.0,
        *,
        execution_model: type[Any] | None = None,
        log_model: type[Any] | None = None,
    ) -> None:
        require_session_factory(session_factory, "SqlAlchemySagaStorage's session_factory")
        self.lease = in_seconds(lease, "lease")
        self._session_factory = session_factory
        self._execution_model = _model(execution_model, SagaExecutionMixin, default_models()[0])
        self._sql = _statements(
            self._execution_model.__table__, _model(log_model, SagaLogMixin, default_models()[1]).__table__
        )

        self._compiled: dict[Insert | Update, DriverStatement] = {}

    def create_saga(self, saga: NewSaga, owner: str) -> bool:
        """Store a new saga; see :meth:`SagaStorage.create_saga`."""
        try:
            with self._connection(autocommit=True) as connection:
                self._execute(connection, self._sql.create, creation_parameters(saga, owner, self.lease))
        except IntegrityError:
            if not self._read([saga.saga_id]):
                raise
            return False
        return True

    def claim(self, saga_id: uuid.UUID, owner: str) -> SagaState:
        """Take a saga on, in three statements; see :meth:`SagaStorage.claim`."""
        with self._connection() as connection:
            row = connection.execute(self._sql.lock, {"of_saga": saga_id}).mappings().one_or_none()
            if row is None:
                raise SagaNotFound(saga_id)
            columns = dict(row)
            is_live = columns.pop("live")
            states = [_state(columns)]
            if states[0].finished_at is None:
                if is_live:
                    raise SagaConcurrencyError(f"saga {saga_id} is run by {states[0].locked_by}")
                states = self._take(connection, states, owner, more_attempts=0)
            return self._with_history(connection, states)[0]

    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        """Write a commit's changes; see :meth:`SagaStorage.write`."""
        if transaction is None:
            with self._connection(autocommit=True) as connection:
                self._write(connection, write)
        else:
            session: Session = transaction.session  # type: ignore[attr-defined]
            with self._errors(joined=True):
                self._write(session.connection({"mapper": self._execution_model}), write)

    def renew(self, leases: Sequence[tuple[uuid.UUID, str]]) -> set[tuple[uuid.UUID, str]]:
        """Lengthen leases, in two statements; see :meth:`SagaStorage.renew`."""
        held = {"leases": list(leases)}
        with self._connection() as connection:
            connection.execute(self._sql.renew, {**held, "lease": self.lease})
            found = {(saga_id, owner) for saga_id, owner in connection.execute(self._sql.held, held)}
        return found.intersection(leases)

    def load_saga_state(self, saga_id: uuid.UUID) -> SagaState:
        """Read a saga and its log; see :meth:`SagaStorage.load_saga_state`."""
        states = self._read([saga_id])
        if not states:
            raise SagaNotFound(saga_id)
        return states[0]

    def begin(self) -> SqlAlchemyTransaction:
        """Open a session; it connects on first use."""
        return SqlAlchemyTransaction(self._session_factory())

    def joins(self, transaction: Transaction) -> bool:
        """Return whether its session would write sagas into the database where this storage looks for them."""
        session = getattr(transaction, "session", None)
        if not isinstance(session, Session):
            return False
        try:
            theirs = session.get_bind(self._execution_model)
        except SQLAlchemyError:
            return False
        ours = self._bind
        if theirs.engine is ours.engine:
            return True
        return theirs.engine.url == ours.engine.url and not _is_in_memory(ours.engine)

    def is_outage(self, error: Exception) -> bool:
        """Return whether the database is away; what it refuses to one transaction alone is no outage."""
        return isinstance(error, SagaStorageUnavailable) or is_outage(error)

    def get_sagas_for_recovery(
        self, owner: str, limit: int = 10, *, names: Collection[str] = (), max_attempts: int | None = None
    ) -> list[SagaState]:
        """Claim sagas that are due, in four statements; see :meth:`SagaStore.get_sagas_for_recovery`."""
        with self._connection() as connection:
            rows = connection.execute(self._sql.due(names, max_attempts), {"size": limit}).mappings()
            states = [_state(dict(row)) for row in rows]
            if not states:
                return []
            return self._with_history(connection, self._take(connection, states, owner, more_attempts=1))

    def find(
        self,
        statuses: Collection[SagaStatus | str] = (),
        names: Collection[str] = (),
        limit: int = 100,
        *,
        min_attempts: int = 0,
        unfit: bool = False,
        after: SagaState | None = None,
    ) -> list[SagaState]:
        """Return sagas; see :meth:`SagaStore.find`."""
        statement = self._sql.find(statuses_of(statuses), names, min_attempts, unfit=unfit, after=after)
        with self._connection() as connection:
            rows = connection.execute(statement, {"size": limit}).mappings()
            return [_state(dict(row)) for row in rows]

    def backlog(self, max_attempts: int | None = None) -> list[SagaBacklog]:
        """Count sagas that wait, in one statement; see :meth:`SagaStore.backlog`."""
        with self._connection() as connection:
            rows = connection.execute(self._sql.backlog(max_attempts)).all()
        return [
            SagaBacklog(name, due, stuck, _seconds_between(since, now), unfit, _seconds_between(written, now))
            for name, due, stuck, since, unfit, written, now in rows
        ]

    def purge(self, retention: float, limit: int = 1000) -> int:
        """Delete sagas that have ended, in three statements; see :meth:`SagaStore.purge`."""
        with self._connection() as connection:
            ids = list(connection.execute(self._sql.purgeable, {"ago": -float(retention), "size": limit}).scalars())
            if ids:
                for statement in self._sql.purge:
                    connection.execute(statement, {"ids": ids})
        return len(ids)

    def _write(self, connection: Connection, write: SagaWrite) -> None:
        parameters = parameters_of(write, self.lease)
        if connection.dialect.name == "postgresql" and write.entries:
            for number, entry in enumerate(write.entries):
                parameters |= entry_parameters(entry, f"_{number}")
            written = self._execute(connection, self._sql.recorded(len(write.entries)), parameters)
        else:
            written = self._execute(connection, self._sql.write, parameters)
        if not written:
            raise SagaConcurrencyError(f"saga {write.saga_id} is no longer run by {write.owner}")
        if connection.dialect.name != "postgresql" and write.entries:
            rows = [{"saga_id": write.saga_id, **entry_parameters(entry)} for entry in write.entries]
            connection.execute(self._sql.log, rows)

    def _execute(self, connection: Connection, statement: Insert | Update, parameters: dict[str, Any]) -> int:
        """Execute what each step executes; returns how many rows it has changed."""
        if connection.engine is not self._autocommit or not takes_driver_statements(connection):
            return connection.execute(statement, parameters).rowcount
        compiled = self._compiled.get(statement)
        if compiled is None:  # two threads may both make one, and then it is the same
            compiled = self._compiled[statement] = DriverStatement(statement, connection.dialect)
        return compiled.execute(connection, parameters)

    def _take(
        self, connection: Connection, states: Sequence[SagaState], owner: str, *, more_attempts: int
    ) -> list[SagaState]:
        """Write the new owner of sagas that are locked, and return them as they are now."""
        in_doubt = {state.saga_id for state in states if state.leaves_doubt}
        ids = [state.saga_id for state in states]
        parameters = {"ids": ids, "owner": owner, "lease": self.lease, "more_attempts": more_attempts}
        connection.execute(self._sql.take, parameters)
        rows = connection.execute(self._sql.read, {"ids": ids}).mappings()
        taken = {row["saga_id"]: _state(dict(row), in_doubt=row["saga_id"] in in_doubt) for row in rows}
        return [taken[saga_id] for saga_id in ids]

    def _read(self, ids: Sequence[uuid.UUID]) -> list[SagaState]:
        with self._connection() as connection:
            rows = connection.execute(self._sql.read, {"ids": list(ids)}).mappings()
            return self._with_history(connection, [_state(dict(row)) for row in rows])

    def _with_history(self, connection: Connection, states: Sequence[SagaState]) -> list[SagaState]:
        logs: dict[uuid.UUID, list[SagaLogEntry]] = {state.saga_id: [] for state in states}
        for saga_id, *columns in connection.execute(self._sql.history, {"ids": list(logs)}):
            step_name, action, status, *rest = columns
            logs[saga_id].append(SagaLogEntry(step_name, action, SagaStepStatus(status), *rest))
        return [dataclasses.replace(state, history=tuple(logs[state.saga_id])) for state in states]

    @functools.cached_property
    def _bind(self) -> Engine | Connection:
        with self._session_factory() as session:
            return session.get_bind(self._execution_model)

    @functools.cached_property
    def _autocommit(self) -> Engine | None:
        """The engine where one statement is all of a transaction, without a BEGIN, which would be a round trip."""
        bind = self._bind
        return bind if isinstance(bind, Engine) and bind.dialect.name == "postgresql" else None

    @contextlib.contextmanager
    def _connection(self, *, autocommit: bool = False) -> Iterator[Connection]:
        """A connection for one transaction, which is committed at the end.

        Args:
            autocommit: the transaction is one statement on PostgreSQL.
        """
        with self._errors():
            if autocommit and self._autocommit is not None:
                with self._autocommit.connect() as connection, _in_autocommit(connection):
                    yield connection
                    connection.commit()
                return
            with self._session_factory() as session, session.begin():
                if not autocommit:  # else it writes first, which is when SQLite's driver begins
                    begin_on_sqlite(session, "BEGIN IMMEDIATE", self._execution_model)
                yield session.connection({"mapper": self._execution_model})

    @contextlib.contextmanager
    def _errors(self, *, joined: bool = False) -> Iterator[None]:
        """Turn the driver's errors that say nothing about the statement into the port's.

        Args:
            joined: it is the transaction of a step, which can be done again as a whole only: its retry decides.
        """
        try:
            yield
        except Exception as error:
            away = is_outage(error)
            if away or (is_passing(error) and not joined):
                what = "cannot be reached" if away else "has refused a transaction, and may take it later"
                reason = str(getattr(error, "orig", error)).partition("\n")[0]
                raise SagaStorageUnavailable(f"the database of the sagas {what}: {reason}") from error
            if isinstance(error, ProgrammingError | OperationalError):
                remedy = (
                    "cqrs_sync.saga.storage.sqlalchemy.Base.metadata.create_all(engine); for models of your own pass "
                    "execution_model=... and log_model=..."
                )
                explain_missing(self._bind.engine, (self._sql.executions, self._sql.logs), remedy, error)
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}(table={self._sql.executions.fullname!r})"


@contextlib.contextmanager
def _in_autocommit(connection: Connection) -> Iterator[None]:
    """Have the driver send no BEGIN and no COMMIT.

    By the driver's own switch: SQLAlchemy's isolation level AUTOCOMMIT costs psycopg2 two round trips, there and back.
    """
    driver: Any = connection.connection.driver_connection
    before, driver.autocommit = driver.autocommit, True
    try:
        yield
    finally:
        if not (connection.invalidated or getattr(driver, "closed", False)):
            driver.autocommit = before


@functools.cache
def _statements(executions: Table, logs: Table) -> SagaStatements:
    return SagaStatements(executions, logs)


def _model(given: Any, mixin: type[Any], default: type[Any]) -> type[Any]:
    if given is None:
        return default
    if not (isinstance(given, type) and issubclass(given, mixin)):
        raise ConfigurationError(f"{given!r} is no model that derives from {mixin.__name__}")
    return given


def _state(columns: dict[str, Any], *, in_doubt: bool = False) -> SagaState:
    columns["status"] = SagaStatus(columns["status"])
    return SagaState(**columns, in_doubt=in_doubt)


def _seconds_between(since: datetime.datetime | None, now: datetime.datetime) -> float | None:
    return None if since is None else max(0.0, (now - since).total_seconds())


def _is_in_memory(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")


__all__ = (
    "Base",
    "SagaExecutionMixin",
    "SagaExecutionModel",
    "SagaLogMixin",
    "SagaLogModel",
    "SqlAlchemySagaStorage",
    "rebind_saga_models",
)
