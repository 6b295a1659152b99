"""What the unit tests of sagas share; others have fixtures of their own with these names."""

from __future__ import annotations

import pytest

from tests.unit.sagas import Storage


@pytest.fixture
def effects() -> list[str]:
    """What steps have done."""
    return []


@pytest.fixture
def storage() -> Storage:
    """Sagas in memory."""
    return Storage()
