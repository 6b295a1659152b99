"""The outbox without a database, for tests and for programs that need no other."""

from __future__ import annotations

import functools
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from cqrs_sync.compressors import Compressor
from cqrs_sync.events.event import INotificationEvent
from cqrs_sync.outbox.encoding import PARTITIONS, EventEncoder
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import Backlog, Claim, EventStatus, Failure, OutboxedEvent
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.serializers.protocol import EventCodec


class MemoryOutbox:
    """What was committed: the rows that several repositories share. Thread-safe.

    Attributes:
        rows: every event that was stored and not deleted, by number.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Any] = {}
        self.lock = threading.RLock()  # guards rows and claimed
        self.claimed: dict[int, object] = {}
        self._numbers = itertools.count(1)

    def store(self, columns: Iterable[dict[str, Any]]) -> None:
        """Add rows."""
        with self.lock:
            for row in columns:
                number = next(self._numbers)
                self.rows[number] = SimpleNamespace(
                    **row,
                    id=number,
                    status=EventStatus.NEW,
                    attempts=0,
                    available_at=0.0,
                    last_error=None,
                    created_at=time.time(),
                    produced_at=None,
                )

    def in_status(self, *statuses: EventStatus) -> list[Any]:
        """Return rows, the oldest first."""
        with self.lock:
            return [row for row in self.rows.values() if row.status in statuses]


_PENDING = (EventStatus.NEW, EventStatus.NOT_PRODUCED)


class MockOutboxedEventRepository(OutboxStore):
    """Stages events and claims them as the one over SQLAlchemy does, in a :class:`MemoryOutbox`.

    Args:
        session_factory: the outbox to work on, or a function that returns one; the async library's name. A function
            that returns anything else gets an outbox of its own.
        compressor: see :class:`~cqrs_sync.outbox.encoding.EventEncoder`.
        serializer: the codec of events that have none of their own; JSON by default.
        event_map: which events may go in; the process-wide map by default.
    """

    def __init__(
        self,
        session_factory: MemoryOutbox | Callable[[], Any] | None = None,
        compressor: Compressor | None = None,
        *,
        serializer: EventCodec | None = None,
        event_map: OutboxedEventMap | None = None,
    ) -> None:
        given = session_factory() if callable(session_factory) else session_factory
        self.outbox = given if isinstance(given, MemoryOutbox) else MemoryOutbox()
        self._encoder = EventEncoder(event_map, serializer, compressor)
        self._deletes = False
        self._claim: Claim | None = None
        self._staged: dict[uuid.UUID, dict[str, Any]] = {}
        self._changes: list[Callable[[], None]] = []
        self._noted: set[int] = set()  # what the next claim of this transaction leaves out
        self._waiting: set[int] = set()  # what holds its key, too

    def add(self, event: INotificationEvent[Any]) -> None:
        """Stage an event until the commit."""
        self._staged.setdefault(event.event_id, self._encoder.encode(event))

    def staged(self) -> dict[uuid.UUID, dict[str, Any]]:
        """Return what is staged now, for :meth:`restore`."""
        return dict(self._staged)

    def restore(self, staged: dict[uuid.UUID, dict[str, Any]]) -> None:
        """Forget what was staged since: what a savepoint does."""
        self._staged = staged

    def get_many(
        self, batch_size: int = 100, topic: str | None = None, *, partitions: int | None = None
    ) -> list[OutboxedEvent]:
        """Claim events; see :meth:`OutboxedEventRepository.get_many`."""
        now = time.time()
        self._claim = claim = Claim()
        with self.outbox.lock:
            waiting: dict[str, int] = {}  # the first event of each key that waits
            for row in self.outbox.rows.values():
                if row.partition_key is not None and (row.available_at or row.id in self._waiting):
                    waiting.setdefault(row.partition_key, row.id)
            ready = [
                row
                for row in self.outbox.in_status(*_PENDING)
                if row.available_at <= now
                and row.id not in self._noted
                and row.id <= waiting.get(row.partition_key, row.id)
                and topic in (None, row.topic)
                and self.outbox.claimed.get(row.partition, self) is self
            ]
            free = list(dict.fromkeys(row.partition for row in ready))[: partitions or PARTITIONS]
            chosen = [row for row in ready if row.partition in free][:batch_size]
            self.outbox.claimed |= dict.fromkeys((row.partition for row in chosen), self)
            return [self._encoder.decode(row, claim) for row in chosen]

    def mark_produced(self, ids: Sequence[int]) -> None:
        """Note that the broker has these events."""
        changed: dict[str, Any] = {"status": EventStatus.PRODUCED, "produced_at": time.time(), "available_at": 0.0}
        self._noted.update(ids)
        self._changes.append(functools.partial(self._remove if self._deletes else self._change, ids, **changed))

    def mark_failed(self, failures: Sequence[Failure]) -> None:
        """Note that the broker rejected these events."""
        for failure in failures:
            dead = failure.retry_after is None
            self._noted.add(failure.id)
            if not dead or failure.holds_key:
                self._waiting.add(failure.id)
            wait = float("inf") if dead and failure.holds_key else time.time() + (failure.retry_after or 0.0)
            self._changes.append(
                functools.partial(
                    self._change,
                    [failure.id],
                    attempt=1,
                    status=EventStatus.DEAD if dead else EventStatus.NOT_PRODUCED,
                    available_at=0.0 if dead and not failure.holds_key else wait,
                    last_error=failure.reason,
                )
            )

    def commit(self) -> None:
        """Store what was staged and apply what was noted, all at once."""
        staged, self._staged = self._staged, {}
        changes, self._changes = self._changes, []
        with self.outbox.lock:
            self.outbox.store(staged.values())
            for change in changes:
                change()
            self._give_back()

    def rollback(self) -> None:
        """Forget it, and give claimed events back."""
        self._staged, self._changes = {}, []
        self._give_back()

    def delete_produced(self) -> None:
        """Have produced events deleted instead of kept."""
        self._deletes = True

    def backlog(self) -> Backlog:
        """Count what is pending and what is dead."""
        pending = self.outbox.in_status(*_PENDING)
        oldest = min((row.created_at for row in pending), default=None)
        dead = len(self.outbox.in_status(EventStatus.DEAD))
        return Backlog(len(pending), dead, None if oldest is None else max(0.0, time.time() - oldest))

    def dead_letters(self, limit: int = 100) -> list[OutboxedEvent]:
        """Return dead letters, the oldest first."""
        dead = self.outbox.in_status(EventStatus.DEAD)[:limit]
        return [self._encoder.decode(row, status=EventStatus.DEAD) for row in dead]

    def replay(self, ids: Sequence[int] | None = None) -> int:
        """Make dead letters new again."""
        dead = self._dead(ids)
        renewed: dict[str, Any] = {"status": EventStatus.NEW, "attempts": 0, "available_at": 0.0}
        self._changes.append(functools.partial(self._change, dead, **renewed))
        return len(dead)

    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters."""
        dead = self._dead(ids)
        self._changes.append(functools.partial(self._remove, dead))
        return len(dead)

    def purge(self, retention: float, limit: int = 1000) -> int:
        """Delete produced events that are old enough."""
        before = time.time() - retention
        produced = self.outbox.in_status(EventStatus.PRODUCED)
        ids = [row.id for row in produced if row.produced_at < before][:limit]
        self._changes.append(functools.partial(self._remove, ids))
        return len(ids)

    def _dead(self, ids: Sequence[int] | None) -> list[int]:
        return [row.id for row in self.outbox.in_status(EventStatus.DEAD) if ids is None or row.id in ids]

    def _change(self, ids: Sequence[int], *, attempt: int = 0, **changed: Any) -> None:
        for row in [self.outbox.rows[number] for number in ids if number in self.outbox.rows]:
            vars(row).update(changed)
            row.attempts += attempt

    def _remove(self, ids: Sequence[int], **_: Any) -> None:
        for number in ids:
            self.outbox.rows.pop(number, None)

    def _give_back(self) -> None:
        self._noted, self._waiting = set(), set()
        if self._claim is not None:
            self._claim.ended = True
        with self.outbox.lock:
            claimed = self.outbox.claimed
            for partition in [number for number, owner in claimed.items() if owner is self]:
                del claimed[partition]
