"""Empty databases on the servers of the tests."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import sqlalchemy as sa


@contextlib.contextmanager
def fresh(url: str) -> Iterator[str]:
    """The URL of a new database on a server, which is dropped at the end."""
    name = f"cqrs_{uuid.uuid4().hex[:16]}"
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.exec_driver_sql(
                f"DROP DATABASE {name}" + (" WITH (FORCE)" if server.dialect.name == "postgresql" else "")
            )
