"""The tables of the outbox, on the library's own metadata or on yours."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from sqlalchemy import Column, Index, Integer, SmallInteger, String, Table, Text, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Mapper, mapped_column

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.outbox.encoding import NAME_LENGTH, TOPIC_LENGTH
from cqrs_sync.sql import big_id, long_bytes, mark_as_ours, portable_uuid, utc_now, utc_time


class OutboxMixin:
    """The columns and indexes of an outbox, for a model on your own declarative base.

    The table of partitions, ``<table>_partitions``, comes with it in the same metadata and schema. A
    ``__table_args__`` of your own adds to what is here. A model that is a dataclass will not do; a second declarative
    base, over the same metadata, will. Times that are read through the model are UTC, and without a time zone where
    the database keeps none (SQLite, MySQL).

    >>> class Base(DeclarativeBase): ...
    >>> class Outbox(OutboxMixin, Base):
    ...     __tablename__ = "shop_outbox"
    >>> sorted(Base.metadata.tables)
    ['shop_outbox', 'shop_outbox_partitions']
    """

    __tablename__: str
    __mapper_args__: ClassVar[Any] = {"eager_defaults": False}  # nobody reads them back, so no INSERT need return them

    id: Mapped[int] = mapped_column(big_id(), primary_key=True, autoincrement=True)
    event_id: Mapped[Any] = mapped_column(portable_uuid())
    event_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    topic: Mapped[str] = mapped_column(String(TOPIC_LENGTH))
    partition_key: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    partition: Mapped[int] = mapped_column(SmallInteger())
    payload: Mapped[bytes] = mapped_column(long_bytes())
    content_type: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    compression: Mapped[str | None] = mapped_column(String(16))
    headers: Mapped[str | None] = mapped_column(Text())  # JSON; as text, so that one bad row does not spoil a batch
    status: Mapped[str] = mapped_column(String(16), default="new", server_default="new")
    attempts: Mapped[int] = mapped_column(Integer(), default=0, server_default="0")
    # Set only while a row waits: for its next attempt or, in the far future, as a dead letter that holds its key.
    available_at: Mapped[datetime.datetime | None] = mapped_column(utc_time())
    last_error: Mapped[str | None] = mapped_column(Text())
    created_at: Mapped[datetime.datetime] = mapped_column(utc_time(), default=utc_now())
    produced_at: Mapped[datetime.datetime | None] = mapped_column(utc_time())

    def __init_subclass__(cls, **options: Any) -> None:
        if issubclass(cls, MappedAsDataclass):
            raise ConfigurationError(
                f"{cls.__name__} cannot be a dataclass, which would want a value for every column: give it a base of "
                "its own, class OutboxBase(DeclarativeBase): metadata = Base.metadata, or call "
                "rebind_outbox_model(OutboxModel, Base)"
            )
        super().__init_subclass__(**options)


# Not in __table_args__, which a model with a schema or constraints of its own would replace.
@event.listens_for(OutboxMixin, "instrument_class", propagate=True)
def _complete(mapper: Mapper[Any], model: type) -> None:  # noqa: ARG001 (the event's signature)
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    # What a relay reads: the new events of a partition in order. Produced rows are not in it where the database has
    # partial indexes, so it stays as small as the backlog.
    pending = (table.c.status, table.c.partition, table.c.id)
    partial_index(f"ix_{table.name}_pending", *pending, where="status <> 'produced'")
    # Rows that wait for their next attempt, in the order in which they are due.
    waits = "available_at IS NOT NULL"
    waiting = (table.c.partition, table.c.available_at)
    partial_index(f"ix_{table.name}_waiting", *waiting, where=f"status <> 'dead' AND {waits}")
    # Keys behind such a row, which are looked up for each event. The conditions of the indexes differ so that each
    # statement can use one of them only: statistics are old when much is rejected at once, and the planner would err.
    held = (table.c.partition_key, table.c.available_at)
    partial_index(f"ix_{table.name}_held", *held, where=f"partition_key IS NOT NULL AND {waits}")
    # What retention deletes.
    partial_index(f"ix_{table.name}_produced", table.c.produced_at, where="produced_at IS NOT NULL")
    # Or SQLite would give the number of a purged row to a new one.
    table.dialect_kwargs["sqlite_autoincrement"] = True
    mark_as_ours(table)
    partitions_of(table)


def partial_index(name: str, *columns: Column[Any], where: str) -> Index:
    """An index over the rows that are wanted; over all of them where the database has no partial indexes (MySQL)."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


def partitions_of(table: Table) -> Table:
    """The table whose rows relays lock, beside an outbox table in its metadata and schema."""
    name = f"{table.name}_partitions"
    known = table.metadata.tables.get(name if table.schema is None else f"{table.schema}.{name}")
    if known is not None:
        return known
    column = Column("partition", SmallInteger(), primary_key=True, autoincrement=False)
    return mark_as_ours(Table(name, table.metadata, column, schema=table.schema))


class Base(DeclarativeBase):
    """The library's own declarative base: ``Base.metadata.create_all(engine)`` makes all that a relay needs."""


class OutboxModel(OutboxMixin, Base):
    """The outbox on the library's own metadata."""

    __tablename__ = "outbox"


_default_model: type[Any] = OutboxModel


def default_model() -> type[Any]:
    """The model of repositories that are given none."""
    return _default_model


def rebind_outbox_model(model: type[Any], new_base: type[Any], table_name: str | None = None) -> type[Any]:
    """Put the outbox on your own declarative base, so that its metadata (and Alembic) has the tables.

    Call it at import, where your models are defined. The async library changes ``model`` in place; here a new model is
    made, which repositories use from then on where they are given none. A further call makes a further outbox, and
    leaves that as it is.

    Args:
        model: the outbox's, ``OutboxModel``.
        new_base: your declarative base, of any kind; of one that makes dataclasses only the metadata is used.
        table_name: another name for the table.

    Returns:
        The model on your base.

    Raises:
        ConfigurationError: ``model`` is not a model of an outbox.
    """
    global _default_model
    candidate: Any = model
    if not (isinstance(candidate, type) and issubclass(candidate, OutboxMixin)):
        raise ConfigurationError(f"rebind_outbox_model takes OutboxModel (or another OutboxMixin), not {model!r}")
    if issubclass(new_base, MappedAsDataclass):
        new_base = type(new_base.__name__, (DeclarativeBase,), {"metadata": new_base.metadata})  # type: ignore[attr-defined]
    # SQLAlchemy warns of two models with one name on a base.
    name = model.__name__ if table_name is None else f"{model.__name__}_{table_name}"
    body = {"__tablename__": table_name or model.__tablename__, "__module__": model.__module__}
    rebound = type(name, (OutboxMixin, new_base), body)
    if model is _default_model:
        _default_model = rebound
    return rebound
