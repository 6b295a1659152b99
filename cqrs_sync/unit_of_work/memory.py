"""The unit of work without a database: a dictionary with commit and rollback, for tests and examples."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cqrs_sync.checks import require_instance
from cqrs_sync.outbox.mock import MemoryOutbox, MockOutboxedEventRepository
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork, outbox_services


class MemoryUnitOfWork(UnitOfWork):
    """Keeps committed values in ``store`` and injects a :class:`MemoryTransaction`.

    A commit applies all writes of its transaction at once; two transactions that write one key: the later commit wins.

    Args:
        outbox: where notification events of handlers are stored, with the rest of their transaction.

    Attributes:
        store: what was committed.
        commits: how many transactions committed.
    """

    def __init__(self, outbox: MemoryOutbox | None = None) -> None:
        if outbox is not None:
            require_instance(outbox, MemoryOutbox, "outbox", "pass MemoryOutbox()")
        self._outbox = outbox
        self.store: dict[Any, Any] = {}
        self.commits = 0
        self._lock = threading.Lock()  # guards store and commits

    def begin(self) -> MemoryTransaction:
        """Open a transaction."""
        return MemoryTransaction(self, None if self._outbox is None else MockOutboxedEventRepository(self._outbox))

    @property
    def services(self) -> Mapping[Any, Callable[[Any], Any]]:
        """:class:`MemoryTransaction` itself and, where there is one, the outbox."""
        own: dict[Any, Callable[[Any], Any]] = {MemoryTransaction: lambda transaction: transaction}
        return own if self._outbox is None else own | outbox_services(MockOutboxedEventRepository)

    def apply(self, written: Mapping[Any, Any]) -> None:
        """Make a transaction's writes visible."""
        with self._lock:
            self.store.update(written)
            self.commits += 1


class MemoryTransaction(Transaction):
    """What one handler has written and not yet committed; read and written like a dictionary."""

    def __init__(self, unit_of_work: MemoryUnitOfWork, outbox: MockOutboxedEventRepository | None = None) -> None:
        self._unit_of_work = unit_of_work
        self.outbox = outbox
        self._written: dict[Any, Any] = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self._written[key] = value

    def __getitem__(self, key: Any) -> Any:
        return self._written[key] if key in self._written else self._unit_of_work.store[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._written or key in self._unit_of_work.store

    def commit(self) -> None:
        """Apply the writes, and store the events."""
        self._unit_of_work.apply(self._written)
        self._written = {}
        if self.outbox is not None:
            self.outbox.commit()

    def rollback(self) -> None:
        """Drop the writes and the events."""
        self._written = {}
        if self.outbox is not None:
            self.outbox.rollback()

    def close(self) -> None:
        """Drop what was not committed."""
        self.rollback()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Drop the block's writes alone when it raises."""
        before = dict(self._written)
        added = None if self.outbox is None else self.outbox.staged()
        try:
            yield
        except BaseException:
            self._written = before
            if self.outbox is not None and added is not None:
                self.outbox.restore(added)
            raise
