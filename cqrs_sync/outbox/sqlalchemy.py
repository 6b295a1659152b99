"""The outbox in a table, through SQLAlchemy sessions: PostgreSQL, SQLite, MySQL 8, MariaDB 10.6 and later.

Relays do not claim rows but *partitions*: whoever has locked a partition's row in ``outbox_partitions`` is alone with
its events until the transaction ends. So the events of a key stay in order over any number of relays, none is sent
by two, and a relay that dies gives its partitions back as its connection closes.
"""

from __future__ import annotations

import datetime
import functools
import random
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from cqrs_sync.compressors import Compressor
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.events.event import INotificationEvent
from cqrs_sync.outbox.encoding import PARTITIONS, EventEncoder, StoredRow
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import Backlog, Claim, EventStatus, Failure, OutboxedEvent
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.outbox.statements import MySQLStatements, OutboxStatements, PostgreSQLStatements
from cqrs_sync.outbox.tables import Base, OutboxMixin, OutboxModel, default_model, rebind_outbox_model
from cqrs_sync.outbox.wakeup import at_end_of_transaction, transactions_with_events
from cqrs_sync.reasons import storable
from cqrs_sync.serializers.protocol import EventCodec
from cqrs_sync.sql import begin_on_sqlite, explain_missing, utc_now

CLAIMED_PARTITIONS = 8
"""How many partitions one claim takes at most: few enough for others to find some, enough to fill a batch."""

SHARES = 2
"""How many times its fair share of a batch a partition may fill, so that batches are full where few have much."""

TRUST = 60.0
"""Seconds for which the table of partitions is taken to be filled."""

FAR_FUTURE = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
"""Until when a dead letter that holds its key waits."""


class SqlAlchemyOutboxedEventRepository(OutboxStore):
    """Stores events in the transaction of a session, and claims them in it.

    Give the class itself to :class:`~cqrs_sync.unit_of_work.sqlalchemy.SqlAlchemyUnitOfWork` as ``outbox`` and
    handlers need not know it; or use ``functools.partial`` to set more than the session. It may be used where its
    session may. Claiming needs READ COMMITTED, which it asks for where it begins the transaction.

    Args:
        session: the caller's; committed by :meth:`commit` alone.
        compressor: shrinks payloads in the table; see :class:`~cqrs_sync.outbox.encoding.EventEncoder`.
        serializer: the codec of events that have none of their own; JSON by default.
        event_map: which events may go in; the process-wide :class:`OutboxedEventMap` by default.
        model: a model that derives from :class:`OutboxMixin`; the library's own by default.
        notify: whether a transaction with events sends a PostgreSQL NOTIFY, for relays that listen. It costs writers
            one statement and, when there are many at once, a good part of their throughput.

    Attributes:
        session: as given; the thread's own of a ``scoped_session``.
        model: as given, or the default.
    """

    def __init__(
        self,
        session: Session,
        compressor: Compressor | None = None,
        *,
        serializer: EventCodec | None = None,
        event_map: OutboxedEventMap | None = None,
        model: type[Any] | None = None,
        notify: bool = False,
    ) -> None:
        self.session = _checked(session)
        self._encoder = EventEncoder(event_map, serializer, compressor)
        self.model = model if model is not None else default_model()
        self._notify = notify
        if notify and self.session.get_bind(self.model).dialect.name != "postgresql":
            raise ConfigurationError("notify=True is for PostgreSQL: leave it out, and relays poll")
        self._added_key = f"cqrs_sync.outbox.added.{self.model.__table__.key}"
        self._claim: Claim | None = None
        self._produced: list[int] = []
        self._failures: list[Failure] = []
        self._deletes = False
        self._clock = (datetime.datetime.now(datetime.UTC), time.monotonic())

    def add(self, event: INotificationEvent[Any]) -> None:
        """Stage an event; all that one flush stores go with one INSERT. See :meth:`OutboxedEventRepository.add`."""
        columns = self._encoder.encode(event)
        added = self._added()
        # A row that a savepoint has undone is no longer in the session, and is not a duplicate.
        before = added.rows.get(event.event_id)
        if before is not None and before in self.session:
            return
        row = added.rows[event.event_id] = self.model(**columns)
        self.session.add(row)
        # A savepoint that has undone that row has undone the NOTIFY as well.
        if self._notify and (added.notified is None or added.notified not in self.session):
            added.notified = row
            # Not through the session, which would flush first.
            self._connection().execute(select(func.pg_notify(self.channel, "")))

    @property
    def channel(self) -> str:
        """The PostgreSQL channel of its NOTIFY: the table's name."""
        name: str = self.model.__table__.name
        return name

    def _added(self) -> _Added:
        """What this transaction has added, through whichever repository of the session."""
        info = self.session.info
        added: _Added | None = info.get(self._added_key)
        if added is None:
            added = info[self._added_key] = _Added()
            at_end_of_transaction(self.session, functools.partial(info.pop, self._added_key))
        return added

    def get_many(
        self, batch_size: int = 100, topic: str | None = None, *, partitions: int | None = None
    ) -> list[OutboxedEvent]:
        """Claim events in two statements (three on MySQL); see :meth:`OutboxedEventRepository.get_many`.

        The second needs a snapshot younger than the lock: one statement alone would read rows that the last holder
        of the partition has just marked.
        """
        self._write_marks()
        parameters: dict[str, Any] = {"offset": random.randrange(PARTITIONS)}
        by_topic = topic is not None
        if by_topic:
            parameters["topic"] = topic
        connection, claimed = self._claim_partitions(parameters, partitions or CLAIMED_PARTITIONS)
        self._claim = claim = Claim()
        if not claimed:
            return []
        self._clock = (claimed[0].now, time.monotonic())
        share = min(batch_size, -(-SHARES * batch_size // len(claimed)))
        statement, which = self._sql.rows([row.partition for row in claimed], by_topic)
        rows = connection.execute(statement, {**parameters, **which, "size": batch_size, "share": share}).all()
        decode = self._encoder.decode
        return [decode(row, claim) for row in map(StoredRow._make, rows)]

    def _claim_partitions(self, parameters: dict[str, Any], wanted: int) -> tuple[Connection, list[Any]]:
        begins = not self.session.in_transaction()
        connection = self._begin_claim()
        try:
            claimed = self._lock_partitions(connection, parameters, wanted)
        except DBAPIError as error:
            self._explain(connection.engine, error)
            raise
        if claimed or not self._is_in_doubt(connection) or not self._complete_partitions(connection):
            return connection, claimed
        if begins:
            self.session.commit()
            connection = self._begin_claim()
        return connection, self._lock_partitions(connection, parameters, wanted)

    def _lock_partitions(self, connection: Connection, parameters: dict[str, Any], wanted: int) -> list[Any]:
        claimed: list[Any] = []
        for statement in self._sql.claims("topic" in parameters):
            if len(claimed) < wanted:
                claimed += connection.execute(statement, {**parameters, "partitions": wanted - len(claimed)})
        return claimed

    def mark_produced(self, ids: Sequence[int]) -> None:
        """Note that the broker has these events; see :meth:`OutboxedEventRepository.mark_produced`."""
        self._produced.extend(ids)

    def mark_failed(self, failures: Sequence[Failure]) -> None:
        """Note that the broker rejected these events; see :meth:`OutboxedEventRepository.mark_failed`."""
        self._failures.extend(failures)

    def commit(self) -> None:
        """Write what was noted, at most two statements, and commit the session; rolls back where that fails."""
        try:
            self._write_marks()
            self.session.commit()
        except Exception as error:
            if self._claim is not None:
                self._claim.outage = error
            self.rollback()
            raise
        self._end_claim()

    def rollback(self) -> None:
        """Forget what was noted and roll the session back."""
        self._end_claim()
        self.session.rollback()

    def close(self) -> None:
        """Close the session."""
        self._end_claim()
        self.session.close()

    def delete_produced(self) -> None:
        """Have produced events deleted instead of kept."""
        self._deletes = True

    def backlog(self) -> Backlog:
        """Count what is pending and what is dead, in one statement."""
        pending, dead, oldest, now = self._connection().execute(self._sql.backlog).one()
        return Backlog(pending, dead, None if oldest is None else max(0.0, (now - oldest).total_seconds()))

    def dead_letters(self, limit: int = 100) -> list[OutboxedEvent]:
        """Return dead letters; see :meth:`OutboxStore.dead_letters`."""
        rows = self._connection().execute(self._sql.dead_letters, {"size": limit}).all()
        return [self._encoder.decode(row, status=EventStatus.DEAD) for row in map(StoredRow._make, rows)]

    def replay(self, ids: Sequence[int] | None = None) -> int:
        """Make dead letters new again; see :meth:`OutboxStore.replay`."""
        at_end_of_transaction(self.session, lambda: None)
        return self._connection().execute(self._sql.replay(ids)).rowcount

    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters; see :meth:`OutboxStore.discard`."""
        at_end_of_transaction(self.session, lambda: None)  # what they held back may go
        return self._connection().execute(self._sql.discard(ids)).rowcount

    def purge(self, retention: float, limit: int = 1000) -> int:
        """Delete old produced events in three statements; rows that another relay is deleting are left to it."""
        connection = self._connection()
        before = connection.execute(select(utc_now())).scalar_one() - datetime.timedelta(seconds=retention)
        ids = list(connection.execute(self._sql.purgeable, {"before": before, "size": limit}).scalars())
        if ids:
            connection.execute(self._sql.delete, {"ids": ids})
        return len(ids)

    def _write_marks(self) -> None:
        produced, self._produced = self._produced, []
        failures, self._failures = self._failures, []
        if produced:
            statement = self._sql.delete if self._deletes else self._sql.mark_produced
            self._connection().execute(statement, {"ids": produced})
        if failures:
            self._connection().execute(self._sql.mark_failed(*_written_out(failures, self._now())))

    @functools.cached_property
    def _sql(self) -> OutboxStatements:
        return _statements(self.model.__table__, self.session.get_bind(self.model).dialect.name)

    def _now(self) -> datetime.datetime:
        """The database's time, by which rows are claimed; this process's own until a claim has told it."""
        then, read = self._clock
        return then + datetime.timedelta(seconds=time.monotonic() - read)

    def _connection(self, **options: Any) -> Connection:
        return self.session.connection({"mapper": self.model}, **options)

    def _end_claim(self) -> None:
        self._produced, self._failures = [], []
        if self._claim is not None:
            self._claim.ended = True
            self._claim = None

    def _begin_claim(self) -> Connection:
        engine = self.session.get_bind(self.model)
        is_sqlite = engine.dialect.name == "sqlite"
        if not is_sqlite and isinstance(engine, Engine) and not self.session.in_transaction():
            self._connection(execution_options={"isolation_level": "READ COMMITTED"})
        connection = self._connection()
        if is_sqlite and not begin_on_sqlite(self.session, "BEGIN IMMEDIATE", self.model):
            connection.execute(self._sql.lock_database)  # it was begun by an event listener or by the driver
        return connection

    def _explain(self, engine: Engine, error: DBAPIError) -> None:
        """Raise something clearer where the tables are missing."""
        self.rollback()
        remedy = (
            "cqrs_sync.outbox.sqlalchemy.Base.metadata.create_all(engine); for a model of your own pass "
            "repository=functools.partial(SqlAlchemyOutboxedEventRepository, model=YourModel)"
        )
        explain_missing(engine, (self._sql.table, self._sql.partitions), remedy, error)

    def _is_in_doubt(self, connection: Connection) -> bool:
        """Whether rows of the table of partitions may be missing: tests empty all tables, and go on."""
        until, transactions = _complete.get(connection.engine, {}).get(self._sql.partitions.fullname, (0.0, -1))
        return time.monotonic() > until or transactions != transactions_with_events()

    def _complete_partitions(self, connection: Connection) -> bool:
        """Insert the rows to lock where they are missing: migrations make the table, but not what is in it."""
        table = self._sql.partitions
        known = set(connection.execute(select(table.c.partition)).scalars())
        missing = [{"partition": number} for number in range(PARTITIONS) if number not in known]
        if not missing:
            complete = _complete.setdefault(connection.engine, {})
            complete[table.fullname] = (time.monotonic() + TRUST, transactions_with_events())
            return False
        with suppress(IntegrityError), connection.begin_nested():  # another relay may be first
            connection.execute(insert(table), missing)
            if connection.dialect.name == "postgresql":
                # It takes an unknown table for 2,706 rows, and autovacuum never looks at one of 32: claims would seem
                # so expensive that each is compiled first (jit), in 200 ms.
                name = connection.dialect.identifier_preparer.format_table(table)
                connection.execute(text(f"ANALYZE {name}"))
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(table={self.model.__table__.fullname!r})"


class _Added:
    """What a transaction has added to one outbox."""

    def __init__(self) -> None:
        self.rows: dict[uuid.UUID, Any] = {}
        self.notified: Any = None  # the row that its NOTIFY came with


_complete: WeakKeyDictionary[Engine, dict[str, tuple[float, int]]] = WeakKeyDictionary()
"""Databases with the tables of partitions that are filled: until when that is taken for granted, and for how many
transactions with events."""


@functools.cache
def _statements(table: Table, dialect: str) -> OutboxStatements:
    kinds = {"postgresql": PostgreSQLStatements, "mysql": MySQLStatements, "mariadb": MySQLStatements}
    return kinds.get(dialect, OutboxStatements)(table)


def _checked(session: Any) -> Session:
    candidate = session() if hasattr(session, "registry") else session  # a scoped_session
    if not isinstance(candidate, Session):
        raise ConfigurationError(
            f"SqlAlchemyOutboxedEventRepository takes a Session, not {session!r}: open one with the sessionmaker"
        )
    return candidate


def _written_out(
    failures: Sequence[Failure], now: datetime.datetime
) -> tuple[dict[int, Any], dict[int, str], list[int]]:
    available_at: dict[int, Any] = {}
    for failure in failures:
        if failure.retry_after is not None:
            available_at[failure.id] = now + datetime.timedelta(seconds=failure.retry_after)
        elif failure.holds_key:
            available_at[failure.id] = FAR_FUTURE
    reasons = {failure.id: storable(failure.reason) for failure in failures}
    return available_at, reasons, [failure.id for failure in failures if failure.retry_after is None]


__all__ = ("Base", "OutboxMixin", "OutboxModel", "SqlAlchemyOutboxedEventRepository", "rebind_outbox_model")
