"""What errors of databases say, by the codes of their drivers."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from cqrs_sync.sql_errors import is_outage, is_passing


def driver_error(*args: Any, **attributes: Any) -> Exception:
    """What a driver raises."""
    error = Exception(*args)
    vars(error).update(attributes)
    return error


def sqlite_error(code: int) -> Exception:
    return driver_error("message", sqlite_errorcode=code)


AWAY = [
    driver_error("connection refused", pgcode=None),
    driver_error("connection refused", sqlstate=None),
    *(driver_error("message", pgcode=code) for code in ("08006", "57P01", "57P02", "57P03", "53300", "53100", "25006")),
    driver_error("message", sqlstate="57P01"),
    *(driver_error(code, "message") for code in (2002, 2003, 2006, 2013, 2055, 1040, 1053, 1927, 1021)),
    driver_error("message", errno=2003, sqlstate="HY000"),
    *(sqlite_error(code) for code in (5, 261, 10, 522, 13, 14, 15)),
]

PASSING = [
    *(driver_error("message", pgcode=code) for code in ("40001", "40P01", "55P03", "57014", "53200")),
    *(driver_error(code, "message") for code in (1205, 1213, 1020, 3572, 1969, 3024)),
    driver_error("message", errno=1213, sqlstate="40001"),
    *(sqlite_error(code) for code in (6, 262, 517)),
]

NEITHER = [
    *(driver_error("message", pgcode=code) for code in ("42P01", "22003", "57000", "25P02", "40002")),
    *(driver_error(code, "message") for code in (1054, 1146, 1690)),
    *(sqlite_error(code) for code in (1, 11, 26)),
    driver_error("no code at all"),
    driver_error(),
    driver_error("pg8000", {}),
]


@pytest.mark.parametrize(("errors", "away", "passes"), [(AWAY, 1, 0), (PASSING, 0, 1), (NEITHER, 0, 0)])
def test_the_code_decides(errors: list[Exception], away: int, passes: int) -> None:
    """And neither the class nor the statement, which an error of COMMIT has none of."""
    for error in errors:
        for statement in ("SELECT 1", None):
            wrapped = OperationalError(statement, None, error)
            assert (is_outage(wrapped), is_passing(wrapped)) == (away, passes), repr(error)


def test_a_connection_that_was_lost_is_an_outage_whatever_the_code() -> None:
    """SQLAlchemy knows more drivers."""
    lost = DBAPIError("SELECT 1", None, driver_error("gone"), connection_invalidated=True)
    assert is_outage(lost)
    assert not is_passing(lost)


def test_what_postgresql_s_driver_refuses_itself_is_no_outage() -> None:
    """It has no code either."""
    error = driver_error("can't adapt type", pgcode=None)
    assert not is_outage(ProgrammingError("SELECT 1", None, error))
    assert is_outage(InterfaceError("SELECT 1", None, error))


def test_errors_of_other_things_are_neither() -> None:
    """Of code, with numbers that mean something in databases."""
    for error in (ValueError(), KeyError(2006), OSError(1205, "no"), driver_error(pgcode="57P01")):
        assert not is_outage(error)
        assert not is_passing(error)


def test_sqlite_is_believed_also_where_sqlalchemy_was_not_asked(tmp_path: Path) -> None:
    """As for its BEGIN."""
    with pytest.raises(sqlite3.OperationalError) as caught:
        sqlite3.connect(tmp_path / "missing" / "db")
    assert is_outage(caught.value)


def test_a_pool_that_is_empty_is_an_outage() -> None:
    """No connection can be had."""
    assert is_outage(sa.exc.TimeoutError("QueuePool limit"))
