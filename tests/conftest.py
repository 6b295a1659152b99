"""What all tests share."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests import kafka as kafka_server
from tests import mariadb, postgres


def pool_threads() -> list[str]:
    """The names of the library's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cqrs-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A test that leaves a pool's thread behind fails: whoever opens a mediator closes it."""
    yield
    leases = sys.modules.get("cqrs_sync.saga.leases")
    if leases is not None:
        leases.rest()  # the heartbeat of sagas, which ends by itself some seconds later
    if pool_threads():
        gc.collect()
        assert not pool_threads()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL; where there is none, tests are skipped on a laptop and fail in CI."""
    try:
        with postgres.server() as url:
            yield url
    except LookupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """A real MariaDB, beside PostgreSQL a second opinion: only where it is installed."""
    try:
        with mariadb.server() as url:
            yield url
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka() -> Iterator[kafka_server.Kafka]:
    """A real Kafka; where there is none, tests are skipped on a laptop, loudly, and fail in CI."""
    try:
        with kafka_server.real() as found:
            yield found
    except LookupError as error:
        _do_without(error)


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[kafka_server.MockKafka]:
    """librdkafka's mock cluster; where it is missing, as for ``kafka``."""
    try:
        with kafka_server.mock() as found:
            yield found
    except LookupError as error:
        _do_without(error)


def _do_without(error: LookupError) -> NoReturn:
    if os.environ.get("CI"):
        raise error
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"\n*** NOT TESTED AGAINST KAFKA: {error}\n")
    pytest.skip(str(error))
