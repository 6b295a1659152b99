"""Sagas in many processes: killed at any time, and frozen past their leases."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.storage.enums import SagaStatus
from tests.integration import outbox_world as world
from tests.integration import saga_world as sagas
from tests.integration.saga_world import Journal, Services


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield sagas.with_tables(f"sqlite:///{tmp_path / 'sagas.sqlite3'}")
        return
    with sagas.database(request.getfixturevalue("postgres_url")) as found:
        yield found


# --- killed ------------------------------------------------------------------------------------------------------


def test_processes_that_are_killed_all_the_time_never_run_a_saga_at_once(postgres_url: str, tmp_path: Path) -> None:
    """Eight recovery workers in four processes, and four that run sagas of their own: every saga ends as it must."""
    sagas.kill_at_random(postgres_url, Journal(tmp_path / "journal", "test"), count=200, seconds=10.0, lease=3.0)


# --- frozen ------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(process: Any) -> Iterator[None]:
    """Stop a process, as a virtual machine that is moved stops, and let it go on afterwards."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("url", "number", "waits_in", "ends"),
    [
        ("postgresql", 1, "Charge/act", SagaStatus.COMPLETED),
        ("postgresql", 4, "Ship/act", SagaStatus.FAILED),
        ("postgresql", 4, "Charge/compensate", SagaStatus.FAILED),
        ("postgresql", 1, "Pack/act", SagaStatus.COMPLETED),  # its transaction would lock all of an SQLite
        ("sqlite", 1, "Charge/act", SagaStatus.COMPLETED),
        ("sqlite", 4, "Ship/act", SagaStatus.FAILED),
        ("sqlite", 4, "Charge/compensate", SagaStatus.FAILED),
    ],
    indirect=["url"],
)
def test_what_a_frozen_runner_does_when_it_wakes_up_changes_nothing(
    url: str, tmp_path: Path, number: int, waits_in: str, ends: SagaStatus
) -> None:
    """Its saga was finished elsewhere meanwhile; its write is refused, and it takes no further step."""
    lease = 0.8
    journal, gate = Journal(tmp_path / "journal", "test"), tmp_path / "gate"
    options: dict[str, Any] = {"number": number, "lease": lease, "gate": gate, "waits_in": waits_in}
    with (
        world.children() as children,
        sagas.shop(url, Services(journal), lease) as mediator,
        world.engine_of(url) as engine,
    ):
        process = children.start(sagas.run_one, url, journal.path, "frozen", **options)
        world.eventually(lambda: any(entry["call"] == waits_in for entry in journal.entries("begun")))
        storage, recovery = mediator.engine.storage, SagaRecoveryWorker(mediator)
        assert recovery.run_once() == 0, "it has its lease"
        with frozen(process):
            world.eventually(recovery.run_once)
            before, calls = storage.load_saga_state(sagas.id_of(number)), len(journal.entries())
            written = _parcels(engine)
            gate.touch()
        process.join(world.WAIT)
        assert process.exitcode == 0
        assert storage.load_saga_state(sagas.id_of(number)) == before
        assert _parcels(engine) == written
    assert before.status is ends
    *_, own, refused = [(entry["what"], entry.get("call")) for entry in journal.entries()[calls:]]
    assert own == ("failed" if waits_in == "Ship/act" else "done", waits_in), "the late result"
    assert refused == ("refused", None)
    assert len(journal.entries()) == calls + 2, "it took a further step"
    context = json.loads(before.context)
    assert context["done"] == (sagas.STEPS if ends is SagaStatus.COMPLETED else _there_and_back(waits_in))


def _there_and_back(waits_in: str) -> list[str]:
    """What the context says of a saga that found no truck; a step in doubt is undone as well."""
    back = sagas.STEPS if waits_in == "Ship/act" else sagas.STEPS[:3]
    return [*sagas.STEPS[:3], *(f"-{step}" for step in reversed(back))]


def _parcels(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(sagas.parcels)))
