"""The unit of work over SQLAlchemy sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork


class SqlAlchemyUnitOfWork(UnitOfWork):
    """Opens one ``Session`` per unit of work and injects it wherever a constructor asks for ``Session``.

    Handlers write with the session and never commit it. It connects on first use, so a handler that asks for no
    session costs no connection.

    Args:
        session_factory: a ``sessionmaker``, or any function that returns a new ``Session``.

    Raises:
        ConfigurationError: it is a ``scoped_session``, which would share one session between units of work.

    Example:
        >>> import sqlalchemy
        >>> from sqlalchemy.orm import sessionmaker
        >>> unit_of_work = SqlAlchemyUnitOfWork(sessionmaker(sqlalchemy.create_engine("sqlite://")))
    """

    def __init__(self, session_factory: Callable[[], Session]) -> None:
        if isinstance(session_factory, scoped_session):
            raise ConfigurationError(
                "SqlAlchemyUnitOfWork opens a new session for each unit of work, and a scoped_session hands out the "
                "same one again: pass its sessionmaker (scoped.session_factory)"
            )
        candidate: Any = session_factory
        if not callable(candidate) or type(candidate).__name__ == "async_sessionmaker":
            raise ConfigurationError(
                "SqlAlchemyUnitOfWork takes a sessionmaker, or a function that returns a new Session, and not "
                f"{session_factory!r}"
            )
        self._session_factory = session_factory
        session_types: set[type] = {Session}
        if isinstance(session_factory, sessionmaker):
            session_types.add(session_factory.class_)
        self._services = dict.fromkeys(session_types, _session_of)

    def begin(self) -> SqlAlchemyTransaction:
        """Open a session; see :meth:`UnitOfWork.begin`."""
        return SqlAlchemyTransaction(self._session_factory())

    @property
    def services(self) -> Mapping[Any, Callable[[Any], Any]]:
        """``Session``, and the sessionmaker's own session class."""
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

    def __init__(self, session: Session) -> None:
        self.session = session

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
        _begin_on_sqlite(self.session)
        with self.session.begin_nested():
            yield


def _session_of(transaction: Any) -> Session:
    session: Session = transaction.session
    return session


def _begin_on_sqlite(session: Session) -> None:
    """Begin for real: sqlite3 waits for the first INSERT, and a SAVEPOINT alone would commit when it is released."""
    try:
        connection = session.connection()
    except UnboundExecutionError:  # several databases behind one session, none of them the default
        return
    if connection.dialect.name != "sqlite":
        return
    driver_connection = connection.connection.driver_connection
    if driver_connection is not None and not driver_connection.in_transaction:
        connection.exec_driver_sql("BEGIN")
