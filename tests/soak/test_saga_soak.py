"""Sagas for minutes: processes killed all the time, and the database with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import saga_world as sagas
from tests.integration.saga_world import Journal

pytestmark = pytest.mark.soak


def test_two_thousand_sagas_while_processes_are_killed_for_a_minute(postgres_url: str, tmp_path: Path) -> None:
    """Eight recovery workers in four processes, and four that run sagas of their own."""
    sagas.kill_at_random(postgres_url, Journal(tmp_path / "journal", "test"), count=2_000, seconds=60.0, lease=4.0)
