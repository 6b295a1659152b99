"""Waits for PostgreSQL NOTIFY, so that a relay sees what other processes commit at once."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, text
from sqlalchemy.orm import sessionmaker

from cqrs_sync.background import BackgroundLoop
from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository

SLICE = 0.5
"""Seconds between looks whether to stop."""


class Listener(BackgroundLoop):
    """Keeps one connection that listens, and wakes a relay at each notification. It needs psycopg2.

    Losing the connection loses notifications and nothing else: the relay polls too. The connection is one of the
    engine's pool, which is short of it meanwhile.

    Args:
        session_factory: opens a session on the database.
        name: the thread's name.
        backoff: how long to wait before connecting again.
        repository: makes the outbox of a session, whose database and channel it listens to.

    Raises:
        ConfigurationError: the database is known, and it is none that can be listened to.
    """

    def __init__(
        self,
        session_factory: Callable[[], Any],
        name: str,
        backoff: Backoff,
        repository: Callable[[Any], OutboxStore] = SqlAlchemyOutboxedEventRepository,
    ) -> None:
        super().__init__(name, backoff)
        if isinstance(session_factory, sessionmaker) and not session_factory.kw.get("binds"):
            engine = session_factory.kw.get("bind")
            if isinstance(engine, Engine):
                _require_psycopg2(engine.dialect)
        self._session_factory = session_factory
        self._repository = repository
        self._connection: Connection | None = None
        self._notify: Callable[[], None] = lambda: None

    def listen_for(self, notify: Callable[[], None]) -> None:
        """Start, and call ``notify`` for each notification."""
        self._notify = notify
        self.start()

    def step(self) -> float:
        """Wait for a notification for half a second; connects first where it must."""
        if self._connection is None:
            self._connection = self._connect()
            self._notify()  # whatever was committed while nobody listened
        try:
            self._wait(self._connection)
        except BaseException:
            self._disconnect()
            raise
        return 0.0

    def stop(self, timeout: float = 30.0) -> None:
        """End the thread and close the connection."""
        super().stop(timeout)
        self._disconnect()

    def forget_thread(self) -> None:
        """Leave the parent's connection alone: closing it here would end it there."""
        super().forget_thread()
        _left_behind.append(self._connection)
        self._connection = None

    def _connect(self) -> Connection:
        with closing(self._repository(self._session_factory())) as outbox:
            if not isinstance(outbox, SqlAlchemyOutboxedEventRepository):
                raise ConfigurationError(f"listen=True is for SqlAlchemyOutboxedEventRepository, not for {outbox!r}")
            engine, channel = outbox.session.get_bind(outbox.model).engine, outbox.channel
        _require_psycopg2(engine.dialect)
        connection = engine.connect()
        try:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {engine.dialect.identifier_preparer.quote(channel)}"))
        except BaseException:
            _give_up(connection)
            raise
        return connection

    def _wait(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        if select.select([driver], [], [], SLICE)[0]:
            driver.poll()
            if driver.notifies:
                driver.notifies.clear()
                self._notify()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _give_up(connection)


def _give_up(connection: Connection) -> None:
    """Close a connection for good: it may be broken, or listen still, and must not serve anybody else."""
    with suppress(Exception):
        connection.invalidate()
    with suppress(Exception):
        connection.close()


def _require_psycopg2(dialect: Dialect) -> None:
    if (dialect.name, dialect.driver) != ("postgresql", "psycopg2"):
        raise ConfigurationError(
            f"listen=True needs PostgreSQL through psycopg2, and this is {dialect.name} through {dialect.driver}: "
            "leave it out, and the relay polls"
        )


_left_behind: list[Any] = []
"""Connections of a parent process: never touched, because their sockets are still the parent's."""
