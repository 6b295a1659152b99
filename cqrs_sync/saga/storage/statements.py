"""The SQL of the tables of sagas, built once per pair of tables."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Delete,
    Float,
    Insert,
    Integer,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
    update,
)

from cqrs_sync.saga.storage.enums import RECOVERABLE, SagaStatus
from cqrs_sync.saga.storage.models import NOBODY, UNFITS, NewSaga, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.sql import UtcDateTime, utc_in

TIMES = ("available_at", "created_at", "updated_at", "finished_at")


class SagaStatements:
    """The statements over a table of sagas and its log, as every database knows them."""

    def __init__(self, executions: Table, logs: Table) -> None:
        self.executions = executions
        self.logs = logs
        self.recorded = functools.cache(self._recorded)

    @functools.cached_property
    def create(self) -> Insert:
        """Parameters: those of :func:`creation_parameters`."""
        now = utc_in()
        return insert(self.executions).values(
            id=bindparam("of_saga"),
            name=bindparam("new_name"),
            status=SagaStatus.RUNNING.value,
            context=bindparam("new_context"),
            definition=bindparam("new_definition"),
            version=1,
            current_step=bindparam("new_current_step"),
            attempts=0,
            locked_by=bindparam("owner"),
            available_at=utc_in(bindparam("lease", type_=Float())),
            created_at=now,
            updated_at=now,
        )

    @functools.cached_property
    def write(self) -> Update:
        """Parameters: those of :func:`parameters_of`."""
        table = self.executions
        available_in, ends_in = (bindparam(name, type_=Float()) for name in ("available_in", "ends_in"))
        return (
            update(table)
            .where(table.c.id == bindparam("of_saga"), table.c.version == bindparam("read_version"))
            .where(table.c.locked_by == bindparam("owner"))
            .values(
                status=bindparam("new_status"),
                version=table.c.version + literal_column("1", Integer()),
                current_step=bindparam("new_current_step"),
                context=func.coalesce(bindparam("new_context", type_=Text()), table.c.context),
                error=func.coalesce(bindparam("new_error", type_=Text()), table.c.error),
                attempts=func.coalesce(bindparam("new_attempts", type_=Integer()), table.c.attempts),
                locked_by=bindparam("new_owner"),
                available_at=utc_in(available_in),
                updated_at=utc_in(),
                finished_at=utc_in(ends_in),
            )
        )

    @functools.cached_property
    def log(self) -> Insert:
        """Parameters: those of :func:`entry_parameters`, any number of times."""
        return insert(self.logs).values(created_at=utc_in())

    def _recorded(self, entries: int) -> Insert:
        """The write with its entries as one statement, which PostgreSQL needs one round trip for.

        Parameters: those of :func:`parameters_of`, and those of :func:`entry_parameters` with the entry's number.
        It has inserted nothing where the write was refused.
        """
        written = self.write.returning(self.executions.c.id).cte("written")
        columns = ["saga_id", "step_name", "action", "status", "details", "attempts", "duration", "actor", "created_at"]
        rows: list[Select[Any]] = []
        for number in range(entries):
            texts = {name: bindparam(f"{name}_{number}", type_=Text()) for name in columns[1:5]}
            # Casts, because a NULL in a UNION is taken for text.
            attempts = cast(bindparam(f"attempts_{number}", type_=Integer()), Integer())
            duration = cast(bindparam(f"duration_{number}", type_=Float()), Float())
            actor = bindparam(f"actor_{number}", type_=Text())
            now = utc_in()
            rows.append(select(written.c.id, *texts.values(), attempts, duration, actor, now))
        return insert(self.logs).from_select(columns, rows[0] if entries == 1 else union_all(*rows))

    @functools.cached_property
    def lock(self) -> Select[Any]:
        """Lock and read a saga, and say whether somebody holds its lease. Parameter: ``of_saga``."""
        table = self.executions
        statement = select(self._is_live().label("live"), *self._columns()).where(table.c.id == bindparam("of_saga"))
        return statement.with_for_update()

    def _is_live(self) -> ColumnElement[bool]:
        """Whether somebody holds the lease; NULL where ``locked_by`` is, which is as good as false."""
        table = self.executions
        return and_(table.c.locked_by.not_in(NOBODY), table.c.available_at > utc_in())

    def due(self, names: Collection[str], max_attempts: int | None) -> Select[Any]:
        """Lock and read sagas that can be taken on, in the order of the index. Parameter: ``size``.

        Any other order would read, and sort, all that are due for each claim. ``finished_at`` is in it for PostgreSQL,
        which does not see that it is the same for all.
        """
        table = self.executions
        statement = select(*self._columns()).where(
            table.c.finished_at.is_(None),
            table.c.status.in_([status.value for status in RECOVERABLE]),
            table.c.available_at <= utc_in(),
        )
        if names:
            statement = statement.where(table.c.name.in_(names))
        if max_attempts is not None:
            statement = statement.where(table.c.attempts < max_attempts)
        ordered = statement.order_by(table.c.finished_at, table.c.created_at).limit(bindparam("size", type_=Integer()))
        return ordered.with_for_update(skip_locked=True)

    @functools.cached_property
    def take(self) -> Update:
        """Give sagas that are locked a new owner. Parameters: ``ids``, ``owner``, ``lease``, ``more_attempts``."""
        table = self.executions
        return (
            update(table)
            .where(table.c.id.in_(bindparam("ids", expanding=True)))
            .values(
                version=table.c.version + 1,
                attempts=table.c.attempts + bindparam("more_attempts", type_=Integer()),
                locked_by=bindparam("owner"),
                available_at=utc_in(bindparam("lease", type_=Float())),
                updated_at=utc_in(),
            )
        )

    @functools.cached_property
    def renew(self) -> Update:
        """Lengthen leases. Parameters: ``leases`` (pairs of id and owner), ``lease``."""
        return (
            update(self.executions)
            .where(self._is_held())
            .values(available_at=utc_in(bindparam("lease", type_=Float())))
        )

    @functools.cached_property
    def held(self) -> Select[Any, Any]:
        """Which leases are held. Parameter: ``leases``."""
        return select(self.executions.c.id, self.executions.c.locked_by).where(self._is_held())

    def _is_held(self) -> ColumnElement[bool]:
        table = self.executions
        return tuple_(table.c.id, table.c.locked_by).in_(bindparam("leases", expanding=True))

    @functools.cached_property
    def read(self) -> Select[Any]:
        """Read sagas. Parameter: ``ids``."""
        return select(*self._columns()).where(self.executions.c.id.in_(bindparam("ids", expanding=True)))

    @functools.cached_property
    def history(self) -> Select[Any]:
        """Read the logs of sagas. Parameter: ``ids``."""
        log = self.logs
        columns = [
            type_coerce(log.c[name], UtcDateTime()).label(name) if name == "created_at" else log.c[name]
            for name in SagaLogEntry.__dataclass_fields__
        ]
        return (
            select(log.c.saga_id, *columns)
            .where(log.c.saga_id.in_(bindparam("ids", expanding=True)))
            .order_by(log.c.id)
        )

    def find(
        self,
        statuses: Collection[SagaStatus],
        names: Collection[str],
        min_attempts: int,
        *,
        unfit: bool,
        after: SagaState | None,
    ) -> Select[Any]:
        """Read sagas in some statuses. Parameter: ``size``."""
        table = self.executions
        statement = select(*self._columns())
        if not statuses:
            statement = statement.where(table.c.finished_at.is_(None))
        elif not any(status.is_final for status in statuses):  # for the index
            statement = statement.where(
                table.c.finished_at.is_(None), table.c.status.in_([status.value for status in statuses])
            )
        else:
            statement = statement.where(table.c.status.in_([status.value for status in statuses]))
        if names:
            statement = statement.where(table.c.name.in_(names))
        if min_attempts:
            statement = statement.where(table.c.attempts >= min_attempts)
        if unfit:
            statement = statement.where(table.c.locked_by.in_(UNFITS))
        if after is not None:
            created_at = literal(after.created_at, UtcDateTime())
            # The index knows the first alone: two conditions and no tuples, for the sake of it.
            behind = or_(table.c.created_at > created_at, table.c.id > after.saga_id)
            statement = statement.where(table.c.created_at >= created_at, behind)
        return statement.order_by(table.c.created_at, table.c.id).limit(bindparam("size", type_=Integer()))

    def backlog(self, max_attempts: int | None) -> Select[Any, Any, Any, Any, Any, Any, Any]:
        """Count sagas by name, with the times by which the oldest are old, and the clock."""
        table, now = self.executions, utc_in()
        recoverable = table.c.status.in_([status.value for status in RECOVERABLE])
        due = and_(recoverable, table.c.available_at <= now)
        running = and_(recoverable, self._is_live())
        stuck = table.c.status == SagaStatus.COMPENSATION_FAILED.value
        unfit = table.c.locked_by.in_(UNFITS)
        if max_attempts is not None:
            stuck = or_(stuck, and_(due, table.c.attempts >= max_attempts))
            due = and_(due, table.c.attempts < max_attempts)
        return (
            select(
                table.c.name,
                func.count(case((due, 1))),
                func.count(case((stuck, 1))),
                func.min(case((due, table.c.available_at)), type_=UtcDateTime()),
                func.count(case((unfit, 1))),
                func.min(case((running, table.c.updated_at)), type_=UtcDateTime()),
                now,
            )
            .where(table.c.finished_at.is_(None), or_(due, stuck, unfit, running))
            .group_by(table.c.name)
            .order_by(table.c.name)
        )

    @functools.cached_property
    def purgeable(self) -> Select[Any]:
        """Lock sagas that ended long enough ago. Parameters: ``ago`` (negative seconds), ``size``."""
        finished_at = self.executions.c.finished_at
        return (
            select(self.executions.c.id)
            .where(finished_at < utc_in(bindparam("ago", type_=Float())))
            .order_by(finished_at)
            .limit(bindparam("size", type_=Integer()))
            .with_for_update(skip_locked=True)
        )

    @functools.cached_property
    def purge(self) -> tuple[Delete, Delete]:
        """Delete logs, and then sagas. Parameter: ``ids``."""
        logs, executions = (
            delete(table).where(column.in_(bindparam("ids", expanding=True)))
            for table, column in ((self.logs, self.logs.c.saga_id), (self.executions, self.executions.c.id))
        )
        return logs, executions

    def _columns(self) -> list[ColumnElement[Any]]:
        """The columns of a state, under the names of its fields."""
        columns: list[ColumnElement[Any]] = []
        for name in SagaState.__dataclass_fields__:
            column = self.executions.c.get("id" if name == "saga_id" else name)
            if column is not None:
                columns.append((type_coerce(column, UtcDateTime()) if name in TIMES else column).label(name))
        return columns


def parameters_of(write: SagaWrite, lease: float) -> dict[str, Any]:
    """The parameters of a write; none has a column's name, which SQLAlchemy would take for a value of its own."""
    return {
        "of_saga": write.saga_id,
        "read_version": write.version,
        "owner": write.owner,
        "new_status": write.status.value,
        "new_current_step": write.current_step,
        "new_context": write.context,
        "new_error": write.error,
        "new_attempts": write.attempts,
        "new_owner": write.new_owner,
        "available_in": write.new_availability(lease),
        "ends_in": 0.0 if write.status.is_final else None,
    }


def creation_parameters(saga: NewSaga, owner: str, lease: float) -> dict[str, Any]:
    """The parameters of a creation."""
    return {
        "of_saga": saga.saga_id,
        "new_name": saga.name,
        "new_context": saga.context,
        "new_definition": saga.definition,
        "new_current_step": saga.current_step,
        "owner": owner,
        "lease": lease,
    }


def entry_parameters(entry: SagaLogEntry, suffix: str = "") -> dict[str, Any]:
    """The parameters of an entry."""
    return {
        f"step_name{suffix}": entry.step_name,
        f"action{suffix}": entry.action,
        f"status{suffix}": entry.status.value,
        f"details{suffix}": entry.details,
        f"attempts{suffix}": entry.attempts,
        f"duration{suffix}": entry.duration,
        f"actor{suffix}": entry.actor,
    }
