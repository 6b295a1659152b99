"""The SQL of an outbox table, built once per table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    FromClause,
    Select,
    String,
    Table,
    Update,
    and_,
    any_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from cqrs_sync.outbox.encoding import PARTITIONS, StoredRow
from cqrs_sync.outbox.models import EventStatus
from cqrs_sync.outbox.tables import partitions_of
from cqrs_sync.sql import UtcDateTime, utc_now

# Literals and no parameters: a plan made for any status could not use the partial index.
NEW = literal_column(f"'{EventStatus.NEW}'", String())
PRODUCED = literal_column(f"'{EventStatus.PRODUCED}'", String())
NOT_PRODUCED = literal_column(f"'{EventStatus.NOT_PRODUCED}'", String())
DEAD = literal_column(f"'{EventStatus.DEAD}'", String())


class OutboxStatements:
    """The statements of one outbox table and its partitions, as every database knows them."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.partitions = partitions_of(table)
        self.claims = functools.cache(self._claims)
        self._select = functools.cache(self._rows)

    def _claims(self, by_topic: bool) -> Sequence[Select[Any]]:
        """Lock partitions that have something to publish, by one statement after the other until there are enough.

        Parameters: ``offset`` (where to begin, so that each gets its turn), ``partitions`` (how many), ``topic``.
        """
        return [self._claim(by_topic).order_by((self.partitions.c.partition + bindparam("offset")) % PARTITIONS)]

    def _claim(self, by_topic: bool) -> Select[Any]:
        partition = self.partitions.c.partition
        # Not EXISTS, which PostgreSQL would turn into a join with the whole backlog: one look into each partition.
        fresh, due = (
            select_pending(self.table.alias(name), partition, by_topic, only_ids=True).limit(1).scalar_subquery()
            for name, select_pending in (("fresh", self._fresh), ("due", self._due))
        )
        columns: list[ColumnElement[Any]] = [partition, utc_now().label("now")]
        has_work = or_(fresh.is_not(None), due.is_not(None))
        return select(*columns).where(has_work).limit(bindparam("partitions")).with_for_update(skip_locked=True)

    def rows(self, claimed: Sequence[int], by_topic: bool) -> tuple[Select[Any], dict[str, Any]]:
        """Read what is to be published, a share from each partition, in the order in which it was stored.

        Returns:
            The statement, and the parameters that say which partitions are claimed. The others are ``share`` (rows of
            a partition), ``size`` (of all) and ``topic``.
        """
        parameters = {f"partition_{number}": partition for number, partition in enumerate(claimed)}
        return self._select(len(claimed), by_topic), parameters

    def _rows(self, partitions: int, by_topic: bool) -> Select[Any]:
        """Two branches for each partition, which read their index in order and stop.

        One condition for all of them would sort the whole backlog.
        """
        branches: list[Select[Any]] = []
        for number in range(partitions):
            partition: ColumnElement[int] = bindparam(f"partition_{number}")
            for name, select_pending in (("fresh", self._fresh), ("due", self._due)):
                branch = select_pending(self.table.alias(f"{name}_{number}"), partition, by_topic)
                branches.append(select(branch.limit(bindparam("share")).subquery()))
        return self._merged(branches)

    def _merged(self, branches: Sequence[Select[Any]]) -> Select[Any]:
        merged = union_all(*branches).subquery("events")
        return select(merged).order_by(merged.c.id).limit(bindparam("size"))

    def _fresh(
        self, events: FromClause, partition: ColumnElement[int], by_topic: bool, *, only_ids: bool = False
    ) -> Select[Any]:
        """What no broker has seen yet, in order."""
        ready = and_(events.c.status == NEW, self._is_in(events, partition))
        return self._pending(events, ready, by_topic, only_ids).order_by(events.c.partition, events.c.id)

    def _due(
        self, events: FromClause, partition: ColumnElement[int], by_topic: bool, *, only_ids: bool = False
    ) -> Select[Any]:
        """What was rejected and has waited long enough, whoever has waited longest first."""
        available_at = events.c.available_at
        # "Not dead", and not NOT_PRODUCED: the condition of the index, and of no other.
        ready = and_(events.c.status != DEAD, self._is_in(events, partition), available_at <= utc_now())
        return self._pending(events, ready, by_topic, only_ids).order_by(events.c.partition, available_at)

    def _pending(self, events: FromClause, ready: ColumnElement[bool], by_topic: bool, only_ids: bool) -> Select[Any]:
        columns = [events.c.id] if only_ids else _columns(events)
        statement = select(*columns).where(ready, ~self._is_behind_another(events))
        return statement.where(events.c.topic == bindparam("topic")) if by_topic else statement

    def _is_behind_another(self, events: FromClause) -> ColumnElement[bool]:
        """Whether an earlier event of the key waits for its next attempt, or is a dead letter that holds the key."""
        held = self.table.alias("held")
        same_key = held.c.partition_key == events.c.partition_key
        earlier = and_(same_key, held.c.available_at.is_not(None), held.c.id < events.c.id)
        # OFFSET keeps PostgreSQL from making it a join, which may read all that waits for each batch.
        return select(held.c.id).where(earlier).correlate(events).limit(1).offset(0).exists()

    def _is_in(self, events: FromClause, partition: ColumnElement[int]) -> ColumnElement[bool]:
        # Not "=": a planner that knows the partition to be constant may read the primary key in order, for the
        # ORDER BY, and walk over every row that was ever produced.
        return and_(events.c.partition >= partition, events.c.partition <= partition)

    @functools.cached_property
    def lock_database(self) -> Update:
        """Become the one that writes (SQLite), where the transaction has begun: changes nothing."""
        partition = self.partitions.c.partition
        return update(self.partitions).where(partition < 0).values(partition=partition)

    @functools.cached_property
    def mark_produced(self) -> Update:
        """Parameter: ``ids``."""
        return (
            update(self.table)
            .where(self._is_one_of_ids())
            .values(status=PRODUCED, produced_at=utc_now(), available_at=None)
        )

    @functools.cached_property
    def delete(self) -> Delete:
        """Parameter: ``ids``."""
        return delete(self.table).where(self._is_one_of_ids())

    def _is_one_of_ids(self) -> ColumnElement[bool]:
        return self.table.c.id.in_(bindparam("ids", expanding=True))

    def mark_failed(self, available_at: dict[int, Any], reasons: dict[int, str], dead: Sequence[int]) -> Update:
        """Note failures, each with its own reason and next attempt, in one statement."""
        table = self.table
        waits = [(table.c.id == row, bindparam(None, at, type_=UtcDateTime())) for row, at in available_at.items()]
        return (
            update(table)
            .where(table.c.id.in_(list(reasons)))
            .values(
                attempts=table.c.attempts + 1,
                status=case((table.c.id.in_(dead), DEAD), else_=NOT_PRODUCED),
                available_at=case(*waits, else_=None) if waits else None,
                last_error=case(reasons, value=table.c.id),
            )
        )

    @functools.cached_property
    def dead_letters(self) -> Select[Any]:
        """Parameter: ``size``."""
        table = self.table
        return select(*_columns(table)).where(table.c.status == DEAD).order_by(table.c.id).limit(bindparam("size"))

    def replay(self, ids: Sequence[int] | None) -> Update:
        """Make dead letters new."""
        table = self.table
        statement = update(table).where(table.c.status == DEAD).values(status=NEW, attempts=0, available_at=None)
        return statement if ids is None else statement.where(table.c.id.in_(ids))

    def discard(self, ids: Sequence[int]) -> Delete:
        """Delete dead letters."""
        return delete(self.table).where(self.table.c.status == DEAD, self.table.c.id.in_(ids))

    @functools.cached_property
    def purgeable(self) -> Select[Any]:
        """Lock produced rows that are old enough. Parameters: ``before``, ``size``."""
        produced_at = self.table.c.produced_at
        return (
            select(self.table.c.id)
            .where(produced_at < bindparam("before", type_=UtcDateTime()))
            .order_by(produced_at)
            .limit(bindparam("size"))
            .with_for_update(skip_locked=True)
        )

    @functools.cached_property
    def backlog(self) -> Select[Any, Any, Any, Any]:
        """Count what is not produced."""
        table = self.table
        is_dead = table.c.status == DEAD
        return select(
            func.count(case((~is_dead, 1))),
            func.count(case((is_dead, 1))),
            func.min(case((~is_dead, table.c.created_at)), type_=UtcDateTime()),
            utc_now(),
        ).where(table.c.status != PRODUCED)


class PostgreSQLStatements(OutboxStatements):
    """The statements that PostgreSQL takes in a cheaper form; a batch of 500 costs 2.5 ms less."""

    def rows(self, claimed: Sequence[int], by_topic: bool) -> tuple[Select[Any], dict[str, Any]]:
        """Read what is to be published; see :meth:`OutboxStatements.rows`."""
        return self._select(len(claimed), by_topic), {"claimed": list(claimed)}

    def _rows(self, partitions: int, by_topic: bool) -> Select[Any]:  # noqa: ARG002 (one form for any number)
        """Two branches, planned once and run for each partition."""
        partition = self.partitions.c.partition
        is_claimed = partition.in_(bindparam("claimed", expanding=True))
        branches: list[Select[Any]] = []
        for name, select_pending in (("fresh", self._fresh), ("due", self._due)):
            events = select_pending(self.table.alias(name), partition, by_topic)
            share = events.limit(bindparam("share")).lateral(f"{name}_share")
            branches.append(select(share).select_from(self.partitions.join(share, true())).where(is_claimed))
        return self._merged(branches)

    def _is_one_of_ids(self) -> ColumnElement[bool]:
        return self.table.c.id == any_(bindparam("ids", type_=ARRAY(BigInteger)))


class MySQLStatements(OutboxStatements):
    """The statements as MySQL and MariaDB need them."""

    def _claims(self, by_topic: bool) -> Sequence[Select[Any]]:
        """Two statements, each in the order of the primary key.

        InnoDB locks all rows that it sorts, so with one in another order the first relay would have every partition.
        """
        partition = self.partitions.c.partition
        offset: ColumnElement[int] = bindparam("offset")
        claim = self._claim(by_topic).order_by(partition)
        return [claim.where(partition >= offset), claim.where(partition < offset)]

    def _fresh(
        self, events: FromClause, partition: ColumnElement[int], by_topic: bool, *, only_ids: bool = False
    ) -> Select[Any]:
        # Or it may read the primary key: see _is_in.
        statement = super()._fresh(events, partition, by_topic, only_ids=only_ids)
        return self._reads(statement, events, "pending")

    def _due(
        self, events: FromClause, partition: ColumnElement[int], by_topic: bool, *, only_ids: bool = False
    ) -> Select[Any]:
        statement = super()._due(events, partition, by_topic, only_ids=only_ids)
        return self._reads(statement, events, "waiting")

    def _reads(self, statement: Select[Any], events: FromClause, index: str) -> Select[Any]:
        hint = f"FORCE INDEX (`ix_{self.table.name}_{index}`)"
        return statement.with_hint(events, hint, "mysql").with_hint(events, hint, "mariadb")

    def _is_in(self, events: FromClause, partition: ColumnElement[int]) -> ColumnElement[bool]:
        # MariaDB 10.11 takes a range for each row of another table from its first row, and finds nothing.
        return events.c.partition == partition


def _columns(events: FromClause) -> list[ColumnElement[Any]]:
    """The columns of a :class:`StoredRow`; the event's id as it is stored, because converting it may fail."""
    as_stored = {"event_id": type_coerce(events.c.event_id, String()).label("event_id")}
    return [as_stored.get(name, events.c[name]) for name in StoredRow._fields]
