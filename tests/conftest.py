"""What all tests share."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from tests import postgres


def pool_threads() -> list[str]:
    """The names of the library's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cqrs-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A test that leaves a pool's thread behind fails: whoever opens a mediator closes it."""
    yield
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
