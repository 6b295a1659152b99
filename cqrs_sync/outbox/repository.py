"""The outbox port: what handlers store events with, and what relays take them out with (Richardson, *Transactional
outbox*).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from cqrs_sync.backoff import Backoff
from cqrs_sync.events.event import INotificationEvent
from cqrs_sync.outbox.models import Backlog, EventStatus, Failure, OutboxedEvent


class OutboxedEventRepository(abc.ABC):
    """Notification events in the caller's transaction. Used by one thread at a time, like the transaction itself.

    A handler calls :meth:`add` and nothing else; its unit of work commits. Whoever publishes by hand calls
    :meth:`get_many`, sends, says what became of each event, and calls :meth:`commit`: until then no other process
    gets events of the same partitions, and a process that dies gives them back at once.
    """

    @abc.abstractmethod
    def add(self, event: INotificationEvent[Any]) -> None:
        """Stage an event in the caller's transaction: it is stored when that commits, and never published before.

        The same event (by ``event_id``) added twice in one transaction is stored once.

        Raises:
            EventNotRegistered: its name or type is not in the map.
            EventNotSerializable: it does not become bytes.
            EventNotStorable: its name, topic or key is longer than the table takes.
        """

    @abc.abstractmethod
    def get_many(
        self, batch_size: int = 100, topic: str | None = None, *, partitions: int | None = None
    ) -> list[OutboxedEvent]:
        """Claim events until the end of the transaction, and return them in the order in which they were stored.

        Events that wait for their next attempt are left out, and so are those behind them with the same key. Rows
        that cannot be decoded are among the events, with their ``defect``.

        Args:
            batch_size: how many at most.
            topic: only events for this topic.
            partitions: how many of the 32 partitions to claim at most; some by default, so that others get theirs.
        """

    @abc.abstractmethod
    def mark_produced(self, ids: Sequence[int]) -> None:
        """Note that the broker has these events; written with the next :meth:`commit`, in one statement."""

    @abc.abstractmethod
    def mark_failed(self, failures: Sequence[Failure]) -> None:
        """Note that the broker rejected these events; written with the next :meth:`commit`, in one statement."""

    @abc.abstractmethod
    def commit(self) -> None:
        """Write what was noted and commit the transaction."""

    @abc.abstractmethod
    def rollback(self) -> None:
        """Forget what was added and noted, and give claimed events back."""

    def update_status(self, outboxed_event_id: int, new_status: EventStatus) -> None:
        """Note what became of one event; the async library's way to say it.

        ``NOT_PRODUCED`` counts an attempt and waits a second: :meth:`mark_failed` says more.
        """
        if new_status is EventStatus.PRODUCED:
            self.mark_produced([outboxed_event_id])
        elif new_status is not EventStatus.NEW:
            wait = None if new_status is EventStatus.DEAD else Backoff(jitter=0).delay(1)
            self.mark_failed([Failure(outboxed_event_id, "marked by hand", wait)])


class OutboxStore(OutboxedEventRepository):
    """An outbox as a relay and its operators need it: with dead letters, retention and figures.

    These methods write in the session's transaction too; call :meth:`commit` after them.
    """

    @abc.abstractmethod
    def backlog(self) -> Backlog:
        """Count what is pending and what is dead."""

    @abc.abstractmethod
    def dead_letters(self, limit: int = 100) -> list[OutboxedEvent]:
        """Return dead letters, the oldest first, each with its reason in ``last_error``."""

    @abc.abstractmethod
    def replay(self, ids: Sequence[int] | None = None) -> int:
        """Make dead letters (all of them, or these) new again, with all their attempts; returns how many."""

    @abc.abstractmethod
    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters for good; returns how many there were."""

    @abc.abstractmethod
    def purge(self, retention: float, limit: int = 1000) -> int:
        """Delete produced events older than ``retention`` seconds, ``limit`` at most; returns how many."""

    def delete_produced(self) -> None:
        """Have :meth:`mark_produced` delete events instead of keeping them; what a retention of 0 means."""

    def close(self) -> None:
        """Give the connection back; undoes what was not committed."""
        self.rollback()
