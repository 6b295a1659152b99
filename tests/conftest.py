"""What all tests share."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest


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
