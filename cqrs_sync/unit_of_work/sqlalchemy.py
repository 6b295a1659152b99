"""The unit of work over SQLAlchemy sessions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.checks import require_factory
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.sql import begin_on_sqlite, require_session_factory
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork, outbox_services


class SqlAlchemyUnitOfWork(UnitOfWork):
    """Opens one ``Session`` per unit of work and injects it wherever a constructor asks for ``Session``.

    Handlers write with the session and never commit it. It connects on first use, so a handler that asks for no
    session costs no connection.

    Args:
        session_factory: a ``sessionmaker``, or any function that returns a new ``Session``.
        outbox: makes the outbox of a session: ``SqlAlchemyOutboxedEventRepository``, or a ``functools.partial`` of it
            that sets its options. With it the notification events of handlers are stored in their own transaction,
            and a constructor that asks for ``OutboxedEventRepository`` gets it.

    Raises:
        ConfigurationError: ``session_factory`` opens no new sessions (a ``scoped_session`` shares one between units of
            work), or ``outbox`` makes no outboxes.

    Example:
        >>> import sqlalchemy
        >>> from sqlalchemy.orm import sessionmaker
        >>> unit_of_work = SqlAlchemyUnitOfWork(sessionmaker(sqlalchemy.create_engine("sqlite://")))
    """

    def __init__(
        self,
        session_factory: Callable[[], Session],
        *,
        outbox: Callable[[Session], OutboxedEventRepository] | None = None,
    ) -> None:
        require_session_factory(session_factory, "SqlAlchemyUnitOfWork's session_factory")
        if outbox is not None:
            remedy = "pass the class SqlAlchemyOutboxedEventRepository, or a functools.partial of it"
            require_factory(outbox, OutboxedEventRepository, "outbox", remedy)
        self._session_factory = session_factory
        session_types: set[type] = {Session}
        if isinstance(session_factory, sessionmaker):
            session_types.add(session_factory.class_)
        self._services: dict[Any, Callable[[Any], Any]] = dict.fromkeys(session_types, _session_of)
        self._outbox = outbox
        if outbox is not None:
            self._services |= outbox_services(outbox)

    def begin(self) -> SqlAlchemyTransaction:
        """Open a session; see :meth:`UnitOfWork.begin`."""
        return SqlAlchemyTransaction(self._session_factory(), self._outbox)

    @property
    def services(self) -> Mapping[Any, Callable[[Any], Any]]:
        """``Session``, the sessionmaker's own session class and, where there is one, the outbox."""
        return self._services

    @property
    def session(self) -> Session:
        """The session of the handler that runs here; for containers that cannot be given services.

        Raises:
            NoActiveUnitOfWork: no handler runs here.
        """
        return _session_of(self.transaction())


class SqlAlchemyTransaction(Transaction):
    """One session and its transaction."""

    def __init__(self, session: Session, outbox: Callable[[Session], OutboxedEventRepository] | None = None) -> None:
        self.session = session
        self._make_outbox = outbox

    @functools.cached_property
    def outbox(self) -> OutboxedEventRepository:
        """The outbox in this transaction."""
        assert self._make_outbox is not None  # or nobody could ask for it
        return self._make_outbox(self.session)

    def commit(self) -> None:
        """Flush and commit the session."""
        self.session.commit()

    def rollback(self) -> None:
        """Roll the session back."""
        self.session.rollback()

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Write in a SAVEPOINT that is rolled back alone when the block raises."""
        begin_on_sqlite(self.session)
        with self.session.begin_nested():
            yield


def _session_of(transaction: Any) -> Session:
    session: Session = transaction.session
    return session
