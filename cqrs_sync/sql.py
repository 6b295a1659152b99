"""What the tables of the library share: times that mean the same in every database, and SQLite's BEGIN."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Executable,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    inspect,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from cqrs_sync.errors import ConfigurationError


class UtcDateTime(TypeDecorator[datetime.datetime]):
    """A time with microseconds: aware in Python, ``timestamp with time zone`` or UTC in the database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type; MySQL's drops fractions of a second unless it is told."""
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        """Refuse naive times, which mean another moment on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone: use datetime.now(timezone.utc)")
        in_utc = value.astimezone(datetime.UTC)
        return in_utc if dialect.name == "postgresql" else in_utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:  # noqa: ARG002
        """Give every time its zone back."""
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


class utc_now(FunctionElement[datetime.datetime]):  # noqa: N801 (used as a function)
    """The database's clock: the start of the transaction or of the statement, whatever the database offers."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(utc_now)
def _standard_now(element: utc_now, compiler: Any, **options: Any) -> str:  # noqa: ARG001 (the hook's signature)
    return "CURRENT_TIMESTAMP"


@compiles(utc_now, "mysql")
@compiles(utc_now, "mariadb")
def _mysql_now(element: utc_now, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    return "UTC_TIMESTAMP(6)"


@compiles(utc_now, "sqlite")
def _sqlite_now(element: utc_now, compiler: Any, **options: Any) -> str:  # noqa: ARG001
    # SQLAlchemy stores times as text with microseconds, SQLite's clock has milliseconds.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


class utc_in(FunctionElement[datetime.datetime]):  # noqa: N801 (used as a function)
    """The database's clock while the statement runs, so many seconds later; NULL where the seconds are NULL.

    Without seconds it is the clock itself. Unlike :class:`utc_now` it goes on within a transaction, which may have
    begun long ago.
    """

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, *seconds: Any) -> None:
        super().__init__(*seconds)


@compiles(utc_in)
def _standard_in(element: utc_in, compiler: Any, **options: Any) -> str:
    if len(element.clauses) == 0:
        return "CLOCK_TIMESTAMP()"
    return f"CLOCK_TIMESTAMP() + ({compiler.process(element.clauses, **options)}) * INTERVAL '1 second'"


@compiles(utc_in, "mysql")
@compiles(utc_in, "mariadb")
def _mysql_in(element: utc_in, compiler: Any, **options: Any) -> str:
    if len(element.clauses) == 0:
        return "UTC_TIMESTAMP(6)"
    seconds = compiler.process(element.clauses, **options)
    return f"(UTC_TIMESTAMP(6) + INTERVAL ROUND(({seconds}) * 1000000) MICROSECOND)"


@compiles(utc_in, "sqlite")
def _sqlite_in(element: utc_in, compiler: Any, **options: Any) -> str:
    if len(element.clauses) == 0:
        return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', ROUND({seconds}, 3) || ' seconds')"


class DriverStatement:
    """A statement in the words of its driver, compiled once, for connections of one engine.

    For a statement that it has compiled before, SQLAlchemy spends much of its time to find the text and the parameters
    again, which this keeps. Engine events see it like any other text.

    Args:
        statement: an INSERT, UPDATE or DELETE with named parameters, none of which expands.
        dialect: the engine's; its driver takes parameters by name.
    """

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        self._text = str(compiled)
        self._constants: dict[str, Any] = {}
        self._processors: dict[str, Callable[[Any], Any]] = {}
        for parameter, name in compiled.bind_names.items():
            processor = parameter.type.dialect_impl(dialect).bind_processor(dialect)
            if not parameter.required:
                value = parameter.effective_value
                self._constants[name] = value if processor is None else processor(value)
            elif processor is not None:
                self._processors[name] = processor

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Execute it; returns how many rows it has changed."""
        given = {**self._constants, **parameters}
        for name, process in self._processors.items():
            given[name] = process(given[name])
        return connection.exec_driver_sql(self._text, given).rowcount


def takes_driver_statements(connection: Connection) -> bool:
    """Whether a :class:`DriverStatement` does on a connection what the statement does that it was made of."""
    dialect: Any = connection.dialect
    return not dialect.positional and "schema_translate_map" not in connection.get_execution_options()


def big_id() -> TypeEngine[int]:
    """The type of a growing primary key; SQLite counts up plain INTEGERs only."""
    return BigInteger().with_variant(Integer(), "sqlite")


def long_bytes() -> TypeEngine[bytes]:
    """The type of bytes of any length; MySQL's BLOB ends at 64 KiB."""
    return LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def utc_time() -> TypeEngine[datetime.datetime]:
    """The type of a column of times, which statements read and write as :class:`UtcDateTime`.

    Of SQLAlchemy's own types, so that Alembic writes migrations that run as they are: of a type of ours it would write
    the name without the import.
    """
    return DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def long_text() -> TypeEngine[str]:
    """The type of text of any length; MySQL's TEXT ends at 64 KiB."""
    return Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def portable_uuid() -> TypeEngine[uuid.UUID]:
    """The type of a UUID; text on MariaDB too, whose own type SQLAlchemy uses in some versions and URLs only."""
    return Uuid().with_variant(Uuid(native_uuid=False), "mysql", "mariadb")


def mark_as_ours(table: Table) -> Table:
    """Let :mod:`cqrs_sync.schema` find the table; MySQL gives it transactions, and tells keys apart as Python does."""
    table.metadata.info.setdefault(_OURS, set()).add(table.key)  # not in the table's own info, which migrations repeat
    for dialect in ("mysql", "mariadb"):
        table.dialect_kwargs[f"{dialect}_engine"] = "InnoDB"
        table.dialect_kwargs[f"{dialect}_charset"] = "utf8mb4"
        table.dialect_kwargs[f"{dialect}_collate"] = "utf8mb4_bin"
    return table


def is_ours(table: Table) -> bool:
    """Whether the library works with the table, in whosever metadata it is."""
    return table.key in table.metadata.info.get(_OURS, ())


_OURS = "cqrs_sync.tables"


def require_session_factory(factory: Any, name: str) -> None:
    """Refuse what opens no sessions, asynchronous ones, or the same one again.

    Raises:
        ConfigurationError: with ``name``, what it was given as, and what to pass.
    """
    if isinstance(factory, scoped_session):
        raise ConfigurationError(
            f"{name} must open a new session at each call, and a scoped_session hands out its thread's again, which "
            "others use and would find closed: pass its sessionmaker (scoped.session_factory)"
        )
    if not callable(factory) or type(factory).__name__ == "async_sessionmaker":
        raise ConfigurationError(
            f"{name} must be a sessionmaker, or a function that returns a new Session, and not {factory!r}"
        )


def explain_missing(engine: Engine, tables: Iterable[Table], remedy: str, error: Exception) -> None:
    """Raise something clearer than the error of a statement whose table is missing; return where none is.

    Raises:
        ConfigurationError: with the table, and how else to come to it than by migrations.
    """
    with suppress(SQLAlchemyError):  # if it cannot be looked for, the first error says more
        for table in tables:
            if not inspect(engine).has_table(table.name, schema=table.schema):
                raise ConfigurationError(
                    f"the database has no table {table.fullname!r}: run your migrations, or {remedy}"
                ) from error


def begin_on_sqlite(session: Session, statement: str = "BEGIN", model: type[Any] | None = None) -> bool:
    """Begin for real: sqlite3 itself waits for the first INSERT, so reads and savepoints would not be in it.

    Returns:
        Whether it did: not on other databases, nor where the transaction has begun.
    """
    try:
        connection = session.connection(None if model is None else {"mapper": model})
    except UnboundExecutionError:  # several databases behind one session, none of them the default
        return False
    if connection.dialect.name != "sqlite":
        return False
    driver_connection = connection.connection.driver_connection
    if driver_connection is None or driver_connection.in_transaction:
        return False
    driver_connection.execute(statement)
    return True
