"""The contract of :class:`~cqrs_sync.unit_of_work.protocol.UnitOfWork`."""

from __future__ import annotations

import abc
from typing import Any

from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork


class UnitOfWorkContract(abc.ABC):
    """What every unit of work does. Derive a test class, return one from :meth:`make`, and say how to write and read.

    The three methods work on the same store; :meth:`make` is called once per test, first.
    """

    @abc.abstractmethod
    def make(self) -> UnitOfWork:
        """Return a unit of work over an empty store."""

    @abc.abstractmethod
    def write(self, transaction: Transaction, name: str) -> None:
        """Write a name in a transaction."""

    @abc.abstractmethod
    def committed(self) -> set[str]:
        """Return the names that anybody else can read now."""

    def test_nothing_is_seen_before_the_commit(self) -> None:
        """And all of it after."""
        transaction = self.make().begin()
        self.write(transaction, "a")
        self.write(transaction, "b")
        transaction.commit()
        transaction.close()
        assert self.committed() == {"a", "b"}

    def test_a_rollback_undoes_what_was_not_committed(self) -> None:
        """And the transaction can be written to again."""
        transaction = self.make().begin()
        self.write(transaction, "a")
        transaction.commit()
        self.write(transaction, "b")
        transaction.rollback()
        self.write(transaction, "c")
        transaction.commit()
        transaction.close()
        assert self.committed() == {"a", "c"}

    def test_closing_undoes_what_was_not_committed(self) -> None:
        """A handler that dies leaves nothing."""
        transaction = self.make().begin()
        self.write(transaction, "a")
        transaction.close()
        assert self.committed() == set()

    def test_a_savepoint_that_fails_is_undone_alone(self) -> None:
        """Even as the first thing in a transaction, and one inside another."""
        transaction = self.make().begin()
        with transaction.savepoint():
            self.write(transaction, "kept")
            self._fail_in_savepoint(transaction, "lost")
        self._fail_in_savepoint(transaction, "lost too")
        self.write(transaction, "after")
        transaction.commit()
        transaction.close()
        assert self.committed() == {"kept", "after"}

    def test_a_rollback_undoes_released_savepoints_too(self) -> None:
        """A savepoint is not a commit."""
        transaction = self.make().begin()
        with transaction.savepoint():
            self.write(transaction, "a")
        transaction.rollback()
        transaction.close()
        assert self.committed() == set()

    def test_services_come_from_the_transaction(self) -> None:
        """Every service can be had, and is the same within one transaction."""
        unit_of_work = self.make()
        assert unit_of_work.services
        transaction = unit_of_work.begin()
        for getter in unit_of_work.services.values():
            service: Any = getter(transaction)
            assert getter(transaction) is service
        transaction.close()

    def _fail_in_savepoint(self, transaction: Transaction, name: str) -> None:
        try:
            with transaction.savepoint():
                self.write(transaction, name)
                raise LookupError(name)
        except LookupError:
            pass
