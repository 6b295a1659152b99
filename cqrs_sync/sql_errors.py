"""What an error of a database says: that the database is away, or that it may take the same transaction later."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# By codes: the classes of errors are no help. OperationalError, for example, has deadlocks in it, and on SQLite and
# MySQL even columns that do not exist.

POSTGRESQL_AWAY = (
    "08",  # connection exceptions
    "57P0",  # the server is shut down, or starts
    "53300",  # too many connections
    "53100",  # its disk is full
    "25006",  # it has become a standby, which takes no writes
)
"""How the SQLSTATE begins."""

POSTGRESQL_LATER = (
    "40001",  # serialization failures
    "40P01",  # deadlocks
    "55P03",  # lock_timeout, NOWAIT
    "57014",  # statement_timeout
    "53200",  # out of memory, or of locks
)

MYSQL_AWAY = frozenset(
    {
        *(2002, 2003, 2005, 2006, 2013, 2055, 4031),  # the client: no server, or not any more
        *(1158, 1159, 1160, 1161),  # the network
        *(1040, 1203),  # too many connections
        *(1053, 1927, 3168),  # it is shut down, or has killed the connection
        1021,  # its disk is full
    }
)

MYSQL_LATER = frozenset(
    {
        *(1205, 3572),  # lock timeouts, NOWAIT
        *(1213, 1614),  # deadlocks
        1020,  # MariaDB's snapshot isolation: somebody else has changed the row
        *(1969, 3024),  # timeouts of statements
    }
)

SQLITE_AWAY = frozenset(
    {
        5,  # BUSY: somebody writes for longer than the driver waits, and there is one lock for the whole database
        10,  # IOERR
        13,  # FULL: of the disk
        14,  # CANTOPEN
        15,  # PROTOCOL: the locks of WAL
    }
)
"""Primary result codes."""

SQLITE_LATER = frozenset(
    {
        6,  # LOCKED: by another connection with the same cache
        517,  # BUSY_SNAPSHOT: what the transaction has read was changed meanwhile, so it cannot write
    }
)


def is_outage(error: BaseException) -> bool:
    """Return whether the database cannot be reached, or takes nothing from anybody.

    What it has refused to this transaction alone is none: a deadlock, a timeout, a table that does not exist.
    """
    if isinstance(error, PoolTimeout):
        return True
    match _code_of(error):
        case _ if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        case ("postgresql", None):  # no answer of the server
            return isinstance(error, OperationalError | InterfaceError)
        case ("postgresql", str(state)):
            return state.startswith(POSTGRESQL_AWAY)
        case ("mysql", code):
            return code in MYSQL_AWAY
        case ("sqlite", int(code)):
            return code & 0xFF in SQLITE_AWAY and code not in SQLITE_LATER
    return False


def is_passing(error: BaseException) -> bool:
    """Return whether the same transaction may succeed later: somebody else was in its way, or it took too long."""
    match _code_of(error):
        case ("postgresql", str(state)):
            return state.startswith(POSTGRESQL_LATER)
        case ("mysql", code):
            return code in MYSQL_LATER
        case ("sqlite", int(code)):
            return code in SQLITE_LATER or code & 0xFF in SQLITE_LATER
    return False


def _code_of(error: BaseException) -> tuple[str, Any] | None:
    """Return the kind of database and its code; None where it is no error of a driver that is known."""
    # BEGIN on SQLite goes past SQLAlchemy, and its errors are the driver's own.
    driver_error: Any = error.orig if isinstance(error, DBAPIError) else error
    if hasattr(driver_error, "sqlite_errorcode"):
        return "sqlite", driver_error.sqlite_errorcode
    if not isinstance(error, DBAPIError):
        return None
    first = driver_error.args[0] if driver_error is not None and driver_error.args else None
    number = getattr(driver_error, "errno", first)  # the connectors of MySQL and of MariaDB have an attribute
    if isinstance(number, int):
        return "mysql", number
    for name in ("sqlstate", "pgcode"):  # psycopg, psycopg2; None for errors of the connection
        if hasattr(driver_error, name):
            return "postgresql", getattr(driver_error, name)
    return None
