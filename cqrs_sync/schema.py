"""Finds where a database's tables differ from what the library needs: ``python -m cqrs_sync.schema postgresql://…``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Dialect,
    Engine,
    Index,
    Inspector,
    MetaData,
    Table,
    create_engine,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, DropIndex

from cqrs_sync.errors import ConfigurationError, CQRSError, NotInstalled
from cqrs_sync.sql import is_ours

AUTOGENERATE = "alembic revision --autogenerate writes the migration"


class Drift(NamedTuple):
    """One difference between a table in the database and the table that the library needs.

    Attributes:
        table: its name, with the schema if it has one.
        part: which column or index of it, or "table".
        found: what is there.
        expected: what is needed.
        remedy: how to get there; SQL is on lines of its own.
    """

    table: str
    part: str
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.table}: {self.part}: found {self.found}, expected {self.expected}. Remedy: {self.remedy}"


def check_schema(bind: Engine | Connection, *targets: Any) -> list[Drift]:
    """Compare the library's tables with those in the database; nothing is written.

    Alembic compares where it can. What it does not see is compared here: what partial indexes leave out, fractions of
    a second (MySQL), numbered ids, primary keys, and the engine and collation of tables (MySQL). Columns and indexes
    of your own are no drift, unless a column makes it impossible to insert.

    Args:
        bind: where to look.
        targets: what has the library's tables in its metadata: declarative bases, models, ``MetaData``. By default
            the outbox and the sagas that repositories and storages use by default, as far as any table of theirs is
            there; where there is none of either, the outbox.

    Raises:
        ConfigurationError: a target has none of the library's tables.
        NotInstalled: Alembic is missing.
        sqlalchemy.exc.SQLAlchemyError: the database cannot be reached or read.
    """
    with contextlib.ExitStack() as stack:
        connection = bind if isinstance(bind, Connection) else stack.enter_context(bind.connect())
        drifts: dict[Drift, None] = {}  # as an ordered set: two targets may share a metadata
        for target in targets or _in_use(connection):
            drifts.update(dict.fromkeys(_Comparison(connection, _metadata(target))))
        return list(drifts)


def _in_use(connection: Connection) -> Iterator[Any]:
    """The default models of which there is any table: who has no sagas does not miss their tables."""
    from cqrs_sync.outbox.tables import default_model
    from cqrs_sync.saga.storage.tables import default_models

    inspector: Inspector = inspect(connection)
    outbox, sagas = default_model(), default_models()
    has_outbox, has_sagas = (
        any(inspector.has_table(table.name, table.schema) for table in (model.__table__ for model in models))
        for models in ((outbox,), sagas)
    )
    if has_outbox or not has_sagas:
        yield outbox
    if has_sagas:
        yield from sagas


def _metadata(target: Any) -> MetaData:
    metadata = getattr(target, "metadata", target)
    if not isinstance(metadata, MetaData) or not any(map(is_ours, metadata.tables.values())):
        raise ConfigurationError(
            f"{target!r} has no tables of cqrs_sync in its metadata: derive models from OutboxMixin, or from "
            "SagaExecutionMixin and SagaLogMixin, or call rebind_outbox_model or rebind_saga_models"
        )
    return metadata


class _Comparison:
    """The library's tables of one metadata against one database."""

    def __init__(self, connection: Connection, metadata: MetaData) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._inspector: Inspector = inspect(connection)
        copies = _without_default_schema(metadata, self._dialect.default_schema_name)
        self._metadata = next(iter(copies.values())).metadata
        self._tables = {(copy.schema, copy.name): copy for table, copy in copies.items() if is_ours(table)}

    def __iter__(self) -> Iterator[Drift]:
        known = {(drift.table, drift.part): drift for drift in self._seen_by_alembic()}
        yield from known.values()
        for table in self._tables.values():
            if (table.fullname, "table") not in known:
                found = (*self._columns(table), *self._primary_key(table), *self._indexes(table), *self._options(table))
                yield from (drift for drift in found if (drift.table, drift.part) not in known)

    def _seen_by_alembic(self) -> Iterator[Drift]:
        entries: list[Any] = []
        for entry in self._compare():
            entries.extend(entry if isinstance(entry, list) else [entry])
        missing = {entry[1].fullname for entry in entries if entry[0] == "add_table"}
        others = {entry[1].name: entry[1] for entry in entries if entry[0] == "remove_index"}
        for kind, *details in entries:
            if kind == "add_table":
                remedy = f"{AUTOGENERATE}, or metadata.create_all(engine)"
                yield Drift(details[0].fullname, "table", "none", "a table", remedy)
            elif kind == "add_index" and details[0].table.fullname not in missing:
                yield self._missing_index(details[0], others.get(details[0].name))
            elif kind in _OF_COLUMNS:
                schema, table, *more = details
                yield from _OF_COLUMNS[kind](self._dialect, table if schema is None else f"{schema}.{table}", *more)

    def _compare(self) -> Any:
        try:
            from alembic.autogenerate import compare_metadata
            from alembic.migration import MigrationContext
        except ImportError:
            raise NotInstalled.extra("Alembic", "migrations") from None
        schemas = {schema for schema, _ in self._tables}

        def include_name(name: str | None, kind: str, parents: Any) -> bool:
            if kind == "schema":
                return name in schemas
            return kind != "table" or (parents["schema_name"], name) in self._tables

        def include_object(item: Any, name: str | None, kind: str, *_: Any) -> bool:
            return kind != "table" or (item.schema, name) in self._tables

        options = {
            "compare_type": True,
            "include_schemas": schemas != {None},
            "include_name": include_name,
            "include_object": include_object,
        }
        return compare_metadata(MigrationContext.configure(self._connection, opts=options), self._metadata)

    def _missing_index(self, index: Index, other: Index | None) -> Drift:
        found, expected = ("none" if one is None else f"over {', '.join(one.columns.keys())}" for one in (other, index))
        return self._index(index, found, expected, AUTOGENERATE)

    def _index(self, index: Index, found: str, expected: str, *remedies: str) -> Drift:
        table = index.table
        assert table is not None  # an index of a table's
        steps = [CreateIndex(index)] if found == "none" else [DropIndex(index), CreateIndex(index)]
        statements = "".join(f"\n{step.compile(dialect=self._dialect)};" for step in steps)
        remedy = ", or ".join((*remedies, f"run{statements}"))
        return Drift(table.fullname, f"index {index.name}", found, expected, remedy)

    def _columns(self, table: Table) -> Iterator[Drift]:
        for found in self._inspector.get_columns(table.name, schema=table.schema):
            column = table.c.get(found["name"])
            if column is None:
                continue
            types = found["type"], column.type.dialect_impl(self._dialect)
            # Alembic takes a type without a precision for one with any.
            if getattr(types[0], "fsp", None) != getattr(types[1], "fsp", None):
                yield from _type(self._dialect, table.fullname, column.name, None, *types)
            numbers = found.get("autoincrement") or self._dialect.name == "sqlite"
            if column is table.autoincrement_column and not numbers:
                remedy = "make it AUTO_INCREMENT (MySQL) or GENERATED BY DEFAULT AS IDENTITY (PostgreSQL)"
                yield Drift(
                    table.fullname, f"column {column.name}", "no numbering", "numbering by the database", remedy
                )

    def _primary_key(self, table: Table) -> Iterator[Drift]:
        found = self._inspector.get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]
        expected = [column.name for column in table.primary_key]
        if found != expected:
            words = (", ".join(found) or "none", ", ".join(expected))
            yield Drift(table.fullname, "primary key", *words, "a migration with op.create_primary_key")

    def _indexes(self, table: Table) -> Iterator[Drift]:
        option = f"{self._dialect.name}_where"
        expected = {str(index.name): index for index in table.indexes}
        invalid = self._invalid_indexes(table)
        for found in self._inspector.get_indexes(table.name, schema=table.schema):
            index = expected.get(str(found["name"]))
            if index is None or option not in index.dialect_kwargs:
                continue
            if index.name in invalid:
                yield self._index(index, "an invalid index, which no statement uses", "a valid one")
                continue
            rows = [found.get("dialect_options", {}).get(option), index.dialect_kwargs[option]]
            if _normal(rows[0]) != _normal(rows[1]):
                yield self._index(
                    index, *("over all rows" if one is None else f"over rows where {one}" for one in rows)
                )

    def _invalid_indexes(self, table: Table) -> set[str]:
        """What a CREATE INDEX CONCURRENTLY that failed has left behind (PostgreSQL)."""
        if self._dialect.name != "postgresql":
            return set()
        name = self._dialect.identifier_preparer.format_table(table)
        invalid = text(
            "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE indrelid = CAST(:name AS regclass) AND NOT indisvalid"
        )
        return set(self._connection.execute(invalid, {"name": name}).scalars())

    def _options(self, table: Table) -> Iterator[Drift]:
        name = self._dialect.name
        if name not in ("mysql", "mariadb"):
            return
        options: dict[str, Any] = dict(self._inspector.get_table_options(table.name, schema=table.schema))
        remedies = {"engine": "ENGINE = {}", "collate": "CONVERT TO CHARACTER SET utf8mb4 COLLATE {}"}
        for option, remedy in remedies.items():
            found, expected = options.get(f"{name}_{option}"), table.dialect_kwargs[f"{name}_{option}"]
            if found != expected:
                statement = f"ALTER TABLE {table.fullname} {remedy.format(expected)};"
                yield Drift(table.fullname, option, str(found), expected, f"run\n{statement}")


def _missing_column(dialect: Dialect, table: str, column: Column[Any]) -> Iterator[Drift]:
    yield Drift(table, f"column {column.name}", "none", column.type.compile(dialect), AUTOGENERATE)


def _extra_column(_: Dialect, table: str, column: Column[Any]) -> Iterator[Drift]:
    if not column.nullable and column.server_default is None and column.identity is None:
        found = "NOT NULL without a default, and not in the model"
        remedy = "give it a default, allow NULL, or add it to your model"
        yield Drift(table, f"column {column.name}", found, "nothing that refuses new rows", remedy)


def _type(dialect: Dialect, table: str, column: str, _: Any, found: Any, expected: Any) -> Iterator[Drift]:
    words = (found.compile(dialect), expected.compile(dialect))
    schema, _, name = table.rpartition(".")
    arguments = f"{name!r}, {column!r}, type_=..." + (f", schema={schema!r}" if schema else "")
    remedy = f"a migration with op.alter_column({arguments}) that makes it {words[1]}"
    yield Drift(table, f"column {column}", *words, remedy)


def _nullable(_: Dialect, table: str, column: str, __: Any, found: bool, expected: bool) -> Iterator[Drift]:
    words = ("NULL allowed" if found else "NOT NULL", "NULL allowed" if expected else "NOT NULL")
    yield Drift(table, f"column {column}", *words, AUTOGENERATE)


_OF_COLUMNS: dict[str, Callable[..., Iterator[Drift]]] = {
    "add_column": _missing_column,
    "remove_column": _extra_column,
    "modify_type": _type,
    "modify_nullable": _nullable,
}


def _without_default_schema(metadata: MetaData, default: str | None) -> dict[Table, Table]:
    """Copies of all tables, without the schema where it is the connection's default: Alembic knows that as None."""

    def renamed(schema: str | None) -> str | None:
        return None if schema == default else schema

    copy = MetaData(naming_convention=metadata.naming_convention)
    copies: dict[Table, Table] = {}
    for table in metadata.tables.values():
        schema: Any = renamed(table.schema)
        copies[table] = table.to_metadata(
            copy, schema=schema, referred_schema_fn=lambda _, __, ___, referred: renamed(referred)
        )
    return copies


def _normal(condition: Any) -> str:
    """A condition without what databases add when they store it: casts, parentheses, spaces."""
    return re.sub(r"::[a-z ]+|[()\s\"`]", "", str(condition).lower())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 for no drift, 1 for drift, 2 for what could not be checked."""
    parser = argparse.ArgumentParser(
        prog="python -m cqrs_sync.schema",
        description="Compares the library's tables in a database with what this version of the library needs.",
        epilog="Exit code: 0 no drift; 1 drift, and how to end it; 2 the check was not possible.",
    )
    parser.add_argument(
        "url",
        nargs="?",
        default=os.environ.get("DATABASE_URL"),
        help="the database, as an SQLAlchemy URL: postgresql://user:password@host/name; by default $DATABASE_URL",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="your declarative base, a model on it, or its MetaData; may be repeated. By default the library's own "
        "tables, outbox and sagas, of what the database has any table of",
    )
    options = parser.parse_args(arguments)
    if not options.url:
        parser.error("name the database, or set DATABASE_URL")
    try:
        drifts = _check(options.url, [_load(name) for name in options.model])
    except (CQRSError, SQLAlchemyError, ImportError, AttributeError, ValueError) as error:
        sys.stderr.write(f"cannot check: {error}\n")
        return 2
    for drift in drifts:
        sys.stdout.write(f"{drift}\n")
    count = "no drift" if not drifts else "1 difference" if len(drifts) == 1 else f"{len(drifts)} differences"
    sys.stdout.write(f"{count}\n")
    return 1 if drifts else 0


def _check(url: str, targets: list[Any]) -> list[Drift]:
    engine = _engine(url)
    try:
        return check_schema(engine, *targets)
    finally:
        engine.dispose()


def _engine(given: str) -> Engine:
    """An engine with whichever driver is installed, where the URL names none; SQLAlchemy's defaults vary."""
    url = _url(given)
    for driver in ("", *_DRIVERS.get(url.drivername, ())):
        with contextlib.suppress(ModuleNotFoundError):
            return create_engine(url.set(drivername=url.drivername + driver))
    return create_engine(url)


def _url(given: str) -> URL:
    """Parse a URL, and refuse what would fail with less to say, or make a new database."""
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # their texts may have the password
        raise ConfigurationError(
            "this is no database URL; one looks like postgresql://user:password@host:5432/name or sqlite:///shop.db, "
            "with %40 for an @ in the password"
        ) from None
    backend = url.get_backend_name()
    if backend == "postgres":
        raise ConfigurationError("SQLAlchemy does not know postgres://, write postgresql://")
    if url.get_dialect().is_async:
        driver = url.get_driver_name()
        raise ConfigurationError(f"{driver} is an asynchronous driver and the check is not: write {backend}://")
    file = url.database if backend == "sqlite" else None
    if file and not file.startswith((":memory:", "file:")) and not os.path.exists(file):
        raise ConfigurationError(f"there is no SQLite file {os.path.abspath(file)}")
    return url


_DRIVERS = {"postgresql": ("+psycopg2", "+psycopg"), "mysql": ("+pymysql",), "mariadb": ("+pymysql",)}


def _load(name: str) -> Any:
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigurationError(f"--model takes package.module:Name, not {name!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # what it imports is missing
            raise
        raise ConfigurationError(
            f"there is no module {error.name}: run this in the project's directory, or set PYTHONPATH to it"
        ) from None
    return operator.attrgetter(attribute)(found)


if __name__ == "__main__":
    sys.exit(main())
