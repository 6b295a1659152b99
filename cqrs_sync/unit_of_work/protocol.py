"""The unit-of-work port: what opens a transaction, and the transaction itself."""

from __future__ import annotations

import abc
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from cqrs_sync.container.plans import Services
from cqrs_sync.errors import NoActiveUnitOfWork
from cqrs_sync.outbox.repository import OutboxedEventRepository

logger = logging.getLogger(__name__)

TransactionT = TypeVar("TransactionT", bound="Transaction")


class Transaction(abc.ABC):
    """One transaction, used by one thread at a time.

    After ``commit`` or ``rollback`` it can be written to again (a stream commits after each piece); ``close`` ends it.
    """

    @abc.abstractmethod
    def commit(self) -> None:
        """Make what was written since the last commit durable, all or nothing."""

    @abc.abstractmethod
    def rollback(self) -> None:
        """Undo what was written since the last commit."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back the connection; undoes what was not committed."""

    @abc.abstractmethod
    def savepoint(self) -> AbstractContextManager[Any]:
        """Return a block that is undone alone when it raises."""


class UnitOfWork(abc.ABC):
    """Opens transactions and says what handlers may ask for from one. Thread-safe; one for a whole application."""

    @abc.abstractmethod
    def begin(self) -> Transaction:
        """Open a transaction; called when a handler first asks for one of ``services``."""

    @property
    @abc.abstractmethod
    def services(self) -> Mapping[Any, Callable[[Any], Any]]:
        """For each type that a constructor may ask for, what returns it from the open transaction."""

    def transaction(self) -> Transaction:
        """Return the transaction of the handler that runs in this context, opening it if need be.

        Raises:
            NoActiveUnitOfWork: no handler runs here.
        """
        unit = open_unit.get()
        while unit is not None and not (unit.unit_of_work is self and unit.is_open_here):
            unit = unit.outer
        if unit is None:
            raise NoActiveUnitOfWork(type(self))
        return unit.transaction

    def injectables(self) -> Services:
        """The services as the container takes them: each returns its object for the handler that runs here."""
        return {
            service: functools.partial(self._from_open_transaction, service, getter)
            for service, getter in self.services.items()
        }

    def _from_open_transaction(self, service: Any, getter: Callable[[Any], Any]) -> Any:
        try:
            transaction = self.transaction()
        except NoActiveUnitOfWork:
            raise NoActiveUnitOfWork(service) from None
        return getter(transaction)


def outbox_services(outbox: Any) -> dict[Any, Callable[[Any], Any]]:
    """What a constructor may ask for where there is an outbox: the port and, if that makes it, the class itself."""
    asked_for = {OutboxedEventRepository, outbox} if isinstance(outbox, type) else {OutboxedEventRepository}
    return dict.fromkeys(asked_for, _outbox_of)


def _outbox_of(transaction: Any) -> OutboxedEventRepository:
    outbox: OutboxedEventRepository = transaction.outbox
    return outbox


class Unit:
    """One unit of work while it is open: begins its transaction on first use, and ends it."""

    def __init__(self, unit_of_work: UnitOfWork) -> None:
        self.unit_of_work = unit_of_work
        self.outer: Unit | None = None
        self._thread: int | None = threading.get_ident()
        self._transaction: Transaction | None = None

    @property
    def is_open_here(self) -> bool:
        """Whether it is open and belongs to this thread: a copied context may outlive it, or be run elsewhere."""
        return self._thread == threading.get_ident()

    @property
    def transaction(self) -> Transaction:
        if self._transaction is None:
            self._transaction = self.unit_of_work.begin()
        return self._transaction

    @property
    def begun(self) -> Transaction | None:
        """The transaction, if anything has asked for it."""
        return self._transaction

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have handlers in this block find this unit."""
        self.outer = open_unit.get()
        self._thread = threading.get_ident()
        token = open_unit.set(self)
        try:
            yield
        finally:
            open_unit.reset(token)

    def commit(self) -> None:
        if self._transaction is not None:
            self._transaction.commit()

    def _rollback(self) -> None:
        if self._transaction is not None:
            self._transaction.rollback()

    @contextmanager
    def undone_alone(self) -> Iterator[None]:
        """Undo what this block has written, and only that, when it raises."""
        if self._transaction is not None:
            with self._transaction.savepoint():
                yield
            return
        try:
            yield
        except BaseException:
            self._rollback()  # begun in the block, so all of it goes
            raise

    def close(self, *, failed: bool) -> None:
        """End the transaction: commit it, or roll it back where the work failed or the commit does.

        A rollback or a close that fails is logged: the first error is the one to see, and a commit stands.
        """
        transaction, self._transaction, self._thread = self._transaction, None, None
        if transaction is None:
            return
        try:
            if failed:
                _attempt(transaction.rollback)
            else:
                transaction.commit()
        except BaseException:
            _attempt(transaction.rollback)
            raise
        finally:
            _attempt(transaction.close)


def _attempt(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:
        logger.exception("%s failed at the end of a unit of work", step.__qualname__)


open_unit: ContextVar[Unit | None] = ContextVar("cqrs_sync_unit", default=None)
"""The innermost unit of work that is open in this context."""
