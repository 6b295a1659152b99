"""The servers that the suites share: each is started by the first that asks for it and ends with the program.

PostgreSQL keeps what it commits, as in production: fsync and synchronous_commit are on. Only checkpoints are put off,
so that none falls into somebody's turn. ``CQRS_TEST_DSN`` and ``CQRS_TEST_KAFKA`` name servers to use instead, with the
settings that they have; the databases made in them are dropped.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import Engine, create_engine, make_url, text

from benchmarks.progress import say
from benchmarks.report import Row, Section
from tests import kafka as kafka_servers
from tests import postgres as postgres_servers

DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
}

_started = ExitStack()


@contextmanager
def database() -> Iterator[Engine]:
    """An empty database, dropped after the block.

    Raises:
        LookupError: there is no server to be had, or no driver.
    """
    server = create_engine(_postgres(), isolation_level="AUTOCOMMIT")
    name = f"bench_{uuid.uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(make_url(_postgres()).set(database=name))
    try:
        yield engine
    finally:
        engine.dispose()
        with server.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()


@functools.cache
def kafka(mock: bool) -> str:
    """The address of a Kafka, or of librdkafka's imitation of one.

    Raises:
        LookupError: there is none to be had.
    """
    say("starting Kafka")
    server = kafka_servers.mock() if mock else kafka_servers.real({"num.partitions": "4"})
    return _started.enter_context(server).address


def stop() -> None:
    """End what was started."""
    _started.close()
    _postgres.cache_clear()
    kafka.cache_clear()


def settings(engine: Engine) -> str:
    """What decides how durable a commit is, for the caption."""
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
    with engine.connect() as connection:
        found = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in names}
    version = str(found.pop("server_version")).split(maxsplit=1)[0]
    return f"PostgreSQL {version}, " + ", ".join(f"{name}={value}" for name, value in found.items())


def absent(title: str, error: Exception) -> Section:
    """The section of what could not be measured."""
    return Section(title, [Row(name="left out", note=" ".join(str(error).split()))])


@functools.cache
def _postgres() -> str:
    say("starting PostgreSQL")
    try:
        import psycopg2  # noqa: F401 (the driver, which the starter needs too)
    except ImportError as error:
        raise LookupError("no driver: pip install 'cqrs-sync[postgres]'") from error
    return _started.enter_context(postgres_servers.server(DURABLE))
