"""The tables of sagas, on the library's own metadata or on yours."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import Float, Index, Integer, String, Table, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Mapper, mapped_column

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.saga.storage.models import NAME_LENGTH
from cqrs_sync.sql import big_id, long_text, mark_as_ours, portable_uuid, utc_time

STATUS_LENGTH = 32


class _SagaTable:
    """What both mixins refuse."""

    __tablename__: str

    def __init_subclass__(cls, **options: Any) -> None:
        if issubclass(cls, MappedAsDataclass):
            raise ConfigurationError(
                f"{cls.__name__} cannot be a dataclass, which would want a value for every column: give it a base of "
                "its own, class SagaBase(DeclarativeBase): metadata = Base.metadata, or call rebind_saga_models(Base)"
            )
        super().__init_subclass__(**options)


class SagaExecutionMixin(_SagaTable):
    """The columns and indexes of the table of sagas, for a model on your own declarative base.

    >>> class Base(DeclarativeBase): ...
    >>> class OrderSagas(SagaExecutionMixin, Base):
    ...     __tablename__ = "order_sagas"
    >>> sorted(index.name for index in OrderSagas.__table__.indexes)
    ['ix_order_sagas_finished', 'ix_order_sagas_unfinished']
    """

    id: Mapped[Any] = mapped_column(portable_uuid(), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    status: Mapped[str] = mapped_column(String(STATUS_LENGTH))
    context: Mapped[str] = mapped_column(long_text())  # JSON
    definition: Mapped[str] = mapped_column(long_text())
    version: Mapped[int] = mapped_column(Integer())
    current_step: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    attempts: Mapped[int] = mapped_column(Integer(), default=0, server_default="0")
    locked_by: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    available_at: Mapped[datetime.datetime | None] = mapped_column(utc_time())
    error: Mapped[str | None] = mapped_column(long_text())
    created_at: Mapped[datetime.datetime] = mapped_column(utc_time())
    updated_at: Mapped[datetime.datetime] = mapped_column(utc_time())
    finished_at: Mapped[datetime.datetime | None] = mapped_column(utc_time())


class SagaLogMixin(_SagaTable):
    """The columns and the index of the log of sagas, for a model on your own declarative base."""

    id: Mapped[int] = mapped_column(big_id(), primary_key=True, autoincrement=True)
    # No foreign key: an entry is only ever written by the statement, or the transaction, that has updated its saga.
    saga_id: Mapped[Any] = mapped_column(portable_uuid())
    step_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    action: Mapped[str] = mapped_column(String(STATUS_LENGTH))
    status: Mapped[str] = mapped_column(String(STATUS_LENGTH))
    details: Mapped[str | None] = mapped_column(long_text())
    attempts: Mapped[int] = mapped_column(Integer(), default=1, server_default="1")
    duration: Mapped[float | None] = mapped_column(Float())
    actor: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    created_at: Mapped[datetime.datetime] = mapped_column(utc_time())


# Not in __table_args__, which a model with a schema or constraints of its own would replace.
@event.listens_for(SagaExecutionMixin, "instrument_class", propagate=True)
def _complete_executions(mapper: Mapper[Any], model: type) -> None:  # noqa: ARG001 (the event's signature)
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    # What recovery and operators look at. No column of it changes from step to step, so PostgreSQL need not write
    # into any index then (a HOT update); available_at would.
    unfinished = "finished_at IS NULL"
    columns = (table.c.finished_at, table.c.created_at)
    Index(f"ix_{table.name}_unfinished", *columns, postgresql_where=text(unfinished), sqlite_where=text(unfinished))
    # What retention deletes.
    finished = "finished_at IS NOT NULL"
    finished_at = table.c.finished_at
    Index(f"ix_{table.name}_finished", finished_at, postgresql_where=text(finished), sqlite_where=text(finished))
    mark_as_ours(table)


@event.listens_for(SagaLogMixin, "instrument_class", propagate=True)
def _complete_log(mapper: Mapper[Any], model: type) -> None:  # noqa: ARG001
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    Index(f"ix_{table.name}_saga", table.c.saga_id, table.c.id)
    mark_as_ours(table)


class Base(DeclarativeBase):
    """The library's own declarative base: ``Base.metadata.create_all(engine)`` makes both tables."""


class SagaExecutionModel(SagaExecutionMixin, Base):
    """The sagas on the library's own metadata."""

    __tablename__ = "saga_executions"


class SagaLogModel(SagaLogMixin, Base):
    """The log of sagas on the library's own metadata."""

    __tablename__ = "saga_logs"


_default_models: tuple[type[Any], type[Any]] = (SagaExecutionModel, SagaLogModel)


def default_models() -> tuple[type[Any], type[Any]]:
    """The models of storages that are given none: of sagas, and of their log."""
    return _default_models


def rebind_saga_models(
    new_base: type[Any], execution_table: str | None = None, log_table: str | None = None
) -> tuple[type[Any], type[Any]]:
    """Put the tables of sagas on your own declarative base, so that its metadata (and Alembic) has them.

    Call it at import, where your models are defined, once. Storages that are given no models use these from then on.

    Args:
        new_base: your declarative base, of any kind; of one that makes dataclasses only the metadata is used.
        execution_table: another name for the table of sagas.
        log_table: another name for the table of their log.

    Returns:
        The models of sagas and of their log.
    """
    global _default_models
    if issubclass(new_base, MappedAsDataclass):
        new_base = type(new_base.__name__, (DeclarativeBase,), {"metadata": new_base.metadata})  # type: ignore[attr-defined]
    execution_table = execution_table or SagaExecutionModel.__tablename__
    log_table = log_table or SagaLogModel.__tablename__
    execution = type("SagaExecutionModel", (SagaExecutionMixin, new_base), {"__tablename__": execution_table})
    log = type("SagaLogModel", (SagaLogMixin, new_base), {"__tablename__": log_table})
    _default_models = (execution, log)
    return _default_models
