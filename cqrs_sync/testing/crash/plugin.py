"""The kit as a pytest fixture; ``from cqrs_sync.testing.crash.plugin import crash_kit`` in a ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

from cqrs_sync.errors import NotInstalled
from cqrs_sync.testing.crash.kit import CrashKit

try:
    import pytest
except ImportError as _missing:
    raise NotInstalled.extra(__name__, "test") from _missing


@pytest.fixture(scope="session")
def crash_kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashKit]:
    """One kit for all tests, so that modules are imported once; each run has a directory of its own in it."""
    with CrashKit(tmp_path_factory.mktemp("crash")) as kit:
        yield kit
