"""Recovery workers over real databases: several at once, processes that are killed, code that has changed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.saga.administration import SagaAdministration, unfinishable_sagas
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from tests.databases import fresh
from tests.integration import outbox_world as world
from tests.integration.outbox_world import WAIT
from tests.journal import append_to, entries, note
from tests.unit.sagas import Order, mediator_of, saga, step

ROOT = Path(__file__).parents[2]

POLL = 0.02
"""Seconds between a worker's looks."""

LEASE = 1.5
"""Seconds; the tests that kill wait for it."""


@pytest.fixture
def url(url: str) -> str:
    """Each database in turn, with the tables."""
    return _with_tables(url)


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    with world.engine_of(url) as engine:
        yield engine


def _with_tables(url: str) -> str:
    with world.engine_of(url) as engine:
        Base.metadata.create_all(engine)
    return url


def storage_of(engine: sa.Engine, lease: float = 3600.0) -> SqlAlchemySagaStorage:
    return SqlAlchemySagaStorage(sessionmaker(engine), lease)


def handed_over(mediator: SagaMediator) -> uuid.UUID:
    """A saga whose first step is done and that nobody runs."""
    [context_type] = mediator.saga_map
    with closing(mediator.stream(context_type())) as results:
        saga_id = next(results).saga_id
    assert saga_id is not None
    return saga_id


# --- several workers ---------------------------------------------------------------------------------------------


class Watch:
    """Notes which sagas have a step at work, and refuses a second one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.overlaps: list[str] = []

    def __call__(self, step: Any, context: Order) -> None:
        saga_id = str(step.saga_id)
        with self._lock:
            self.calls[saga_id, type(step).__name__] += 1
            if saga_id in self._running:
                self.overlaps.append(saga_id)
            self._running.add(saga_id)
        threading.Event().wait(0.002)  # so that there is something to overlap with
        with self._lock:
            self._running.discard(saga_id)


def test_workers_at_once_never_run_a_saga_at_once(engine: sa.Engine) -> None:
    """Two workers of four threads each, and every step runs once."""
    watch, storage = Watch(), storage_of(engine)
    order_saga = saga(*(step(name, [], watch) for name in "abc"))
    with mediator_of(order_saga, storage) as one, mediator_of(order_saga, storage_of(engine)) as two:
        ids = [handed_over(one) for _ in range(30)]
        with (
            SagaRecoveryWorker(one, poll_interval=POLL, name="one") as first,
            SagaRecoveryWorker(two, poll_interval=POLL, name="two") as second,
        ):
            world.eventually(lambda: first.health().finished + second.health().finished == 30)
            assert (first.last_error, second.last_error) == (None, None)
        assert not watch.overlaps
        assert watch.calls == Counter({(str(saga_id), name): 1 for saga_id in ids for name in "abc"})
        assert {storage.load_saga_state(saga_id).status for saga_id in ids} == {SagaStatus.COMPLETED}
        assert SagaRecoveryWorker(one, retention=0).purge() in (29, 30)  # not one that has ended in this millisecond


# --- stuck -------------------------------------------------------------------------------------------------------


def test_a_compensation_that_keeps_failing_waits_for_an_operator_and_a_retry_finishes_it(engine: sa.Engine) -> None:
    """Attempts with back-off, then it is seen in health and in the list of the stuck."""
    mended, effects = threading.Event(), list[str]()

    def refund(self: Any, context: Order) -> None:
        if not mended.is_set():
            raise OSError("the bank is away")

    charge = step("charge", effects, None, refund, compensate_retry=Retry(attempts=3, delay=0.001, backoff=2.0))
    order_saga = saga(step("reserve", effects), charge, step("ship", effects, OSError("no truck")))
    storage = storage_of(engine)
    administration = SagaAdministration(storage)
    with mediator_of(order_saga, storage, recovery_backoff=Backoff(initial=0.01, maximum=0.01)) as mediator:
        saga_id = handed_over(mediator)
        with SagaRecoveryWorker(mediator, poll_interval=POLL, max_attempts=2) as worker:
            world.eventually(lambda: worker.health().stuck)
            health = worker.health()
            assert (health.stuck, health.recoverable, health.finished) == (1, 0, 0)
            [stuck] = administration.find(stuck=True)
            assert (stuck.saga_id, stuck.status) == (saga_id, SagaStatus.COMPENSATION_FAILED)
            assert "compensate of charge failed: OSError: the bank is away" in str(stuck.error)
            mended.set()
            administration.retry(saga_id, actor="jo@shop", reason="the bank is back")
            world.eventually(lambda: worker.health().finished == 1)
        state = administration.show(saga_id)
        assert state.status is SagaStatus.FAILED
        assert effects == ["reserve", "charge", "ship", *["-charge"] * 10, "-reserve"]
        [entry] = [entry for entry in state.history if entry.action == "retry"]
        assert (entry.actor, entry.details) == ("jo@shop", "the bank is back")


def test_a_saga_behind_its_pivot_is_tried_again_until_it_succeeds(engine: sa.Engine) -> None:
    """Each time after a longer wait; it is not due meanwhile."""
    effects: list[str] = []

    def truck(self: Any, context: Order) -> None:
        if effects.count("ship") < 4:
            raise OSError("no truck")

    order_saga = saga(step("charge", effects, kind="pivot"), step("ship", effects, truck, kind="retriable"))
    backoff = Backoff(initial=0.02, maximum=1.0, jitter=0)
    with mediator_of(order_saga, storage_of(engine), recovery_backoff=backoff) as mediator:
        assert mediator.run(Order()).status is SagaStatus.RUNNING
        with SagaRecoveryWorker(mediator, poll_interval=POLL) as worker:
            world.eventually(lambda: worker.health().finished == 1)
    assert effects == ["charge", "ship", "ship", "ship", "ship"]


# --- other code --------------------------------------------------------------------------------------------------


def test_sagas_that_are_not_todays_are_left_alone_and_block_no_other(engine: sa.Engine) -> None:
    """One of an unknown name, and one that has done a step that there is no more."""
    storage, effects = storage_of(engine), list[str]()
    reserve, charge, ship = (step(name, effects) for name in ("reserve", "charge", "ship"))
    with mediator_of(saga(reserve, charge, saga_name="unheard-of"), storage) as other:
        unknown = handed_over(other)
    with mediator_of(saga(reserve, charge), storage) as old:
        changed = handed_over(old)
    with mediator_of(saga(charge, ship), storage) as today:
        fits = handed_over(today)
        with SagaRecoveryWorker(today, max_workers=1, poll_interval=POLL, max_attempts=1) as worker:
            world.eventually(lambda: worker.health().finished == 1 and worker.health().changed)
            health = worker.health()
        assert (health.unknown, list(health.changed), health.stuck) == ({"unheard-of": 1}, [changed], 0)
        assert storage.load_saga_state(fits).status is SagaStatus.COMPLETED
        for saga_id in (unknown, changed):
            state = storage.load_saga_state(saga_id)
            assert (state.status, state.attempts) == (SagaStatus.RUNNING, 0)
            assert state.locked_by == ("(unfit)" if saga_id == changed else None)
        found = {each.state.saga_id: each.difference for each in unfinishable_sagas(storage, today.saga_map)}
        assert set(found) == {unknown, changed}
        assert "now 'charge > ship'; reserve was done" in found[changed]
    SagaAdministration(storage).retry(changed, actor="jo@shop", reason="the old code is back")
    with mediator_of(saga(reserve, charge), storage) as old:
        assert SagaRecoveryWorker(old).run_once() == 1


# --- processes that are killed -----------------------------------------------------------------------------------


class Journal:
    """What steps have done, in all processes; each line is one write.

    Args:
        worker: in whose process.
        hangs_in: the step that never returns, once it is noted: to be killed there.
    """

    def __init__(self, path: Path, worker: str, hangs_in: str | None = None) -> None:
        self._file = append_to(path)
        self._worker = worker
        self._hangs_in = hangs_in

    def call(self, step: SagaStepHandler[Any, Any]) -> None:
        name = step.execution.step_name
        entry = {"worker": self._worker, "step": name, "saga": str(step.saga_id), "key": step.idempotency_key}
        note(self._file, **entry, what="begun")
        if name == self._hangs_in:
            threading.Event().wait()
        time.sleep(0.001)
        note(self._file, **entry, what="done")


@dataclasses.dataclass
class Parcel(SagaContext):
    number: int = 0
    steps: list[str] = dataclasses.field(default_factory=list)


class _Noted(SagaStepHandler[Parcel, None]):
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def act(self, context: Parcel) -> SagaStepResult[Parcel, None]:
        self._journal.call(self)
        context.steps.append(self.execution.step_name)
        return self._generate_step_result(None)

    def compensate(self, context: Parcel) -> None:
        raise AssertionError("nothing here is rolled back")


class Pack(_Noted): ...


class Label(_Noted): ...


class Send(_Noted): ...


class ParcelSaga(Saga[Parcel]):
    steps = [Pack, Label, Send]


@contextmanager
def shop(url: str, journal: Journal, lease: float = LEASE) -> Iterator[SagaMediator]:
    """A process's part of the application."""
    container = punq.Container()
    container.register(Journal, instance=journal)
    with (
        world.engine_of(url) as engine,
        bootstrap(
            container, sagas_mapper=lambda m: m.bind(Parcel, ParcelSaga), saga_storage=storage_of(engine, lease)
        ) as mediator,
    ):
        yield mediator


def run_a_saga(url: str, path: Path, saga_id: uuid.UUID, hangs_in: str) -> None:
    with shop(url, Journal(path, "first", hangs_in)) as mediator:
        mediator.run(Parcel(7), saga_id)


def run_a_worker(url: str, path: Path, worker: str, hangs_in: str | None = None) -> None:
    with shop(url, Journal(path, worker, hangs_in)) as mediator:
        SagaRecoveryWorker(mediator, poll_interval=POLL).run_forever(stop_timeout=WAIT)


def is_hanging(path: Path, worker: str, step: str) -> bool:
    return any((entry["worker"], entry["step"]) == (worker, step) for entry in entries(path))


def test_what_a_killed_process_was_running_is_finished_elsewhere(url: str, tmp_path: Path) -> None:
    """Not before its lease has ended; only the step in its hand runs twice, with the same idempotency key."""
    path, saga_id = tmp_path / "journal", uuid.uuid4()
    with world.children() as children, shop(url, Journal(path, "here")) as mediator:
        process = children.start(run_a_saga, url, path, saga_id, "Label")
        world.eventually(lambda: is_hanging(path, "first", "Label"))
        with SagaRecoveryWorker(mediator, poll_interval=POLL) as worker:
            time.sleep(1.5 * LEASE)  # its heartbeat keeps the saga, however long the step takes
            assert worker.health().recoverable == 0
            assert {entry["worker"] for entry in entries(path)} == {"first"}
            children.kill(process)
            world.eventually(lambda: worker.health().finished == 1)
        state = mediator.engine.storage.load_saga_state(saga_id)
    assert state.status is SagaStatus.COMPLETED
    assert json.loads(state.context) == {"number": 7, "steps": ["Pack", "Label", "Send"]}
    begun = [(entry["worker"], entry["step"]) for entry in entries(path) if entry["what"] == "begun"]
    assert begun == [("first", "Pack"), ("first", "Label"), ("here", "Label"), ("here", "Send")]
    assert len({entry["key"] for entry in entries(path) if entry["step"] == "Label"}) == 1


def test_what_killed_workers_had_in_hand_is_finished_by_the_others(url: str, tmp_path: Path) -> None:
    """No saga is run by two at once, and what ran twice was in the hand of one that was killed."""
    path, killed = tmp_path / "journal", ["w0", "w1"]
    with shop(url, Journal(path, "here"), lease=3600.0) as mediator, world.children() as children:
        ids = [handed_over(mediator) for _ in range(24)]
        workers = {name: children.start(run_a_worker, url, path, name, "Send") for name in killed}
        for name in killed:
            world.eventually(lambda name=name: is_hanging(path, name, "Send"))
            children.kill(workers[name])
        others = [children.start(run_a_worker, url, path, name) for name in ("w2", "w3")]
        storage = mediator.engine.storage
        world.eventually(lambda: not storage.find())  # type: ignore[attr-defined]
        assert children.end(*others) == [0, 0]
        assert {storage.load_saga_state(saga_id).status for saga_id in ids} == {SagaStatus.COMPLETED}
    check(entries(path), [str(saga_id) for saga_id in ids], killed)


def check(journal: list[dict[str, Any]], ids: list[str], killed: list[str]) -> None:
    """Every step of every saga was done, once; what was begun and not done was a killed worker's."""
    done = Counter((entry["saga"], entry["step"]) for entry in journal if entry["what"] == "done")
    assert set(done) == {(saga_id, name) for saga_id in ids for name in ("Pack", "Label", "Send")}
    at_work: dict[str, dict[str, Any]] = {}
    repeated = 0
    for entry in journal:
        before = at_work.pop(entry["saga"], None)
        if entry["what"] == "begun":
            if before is not None:
                assert before["worker"] in killed, "two ran a saga at once"
                assert before["key"] == entry["key"]
                repeated += 1
            at_work[entry["saga"]] = entry
        else:
            assert before is not None
            assert before["worker"] == entry["worker"]
    assert not at_work
    assert repeated >= len(killed)
    # A step that was done may run again only where its worker was killed before it could say so.
    assert sum(done.values()) - len(done) <= 4 * len(killed)


def test_a_worker_in_the_foreground_finishes_its_step_at_sigterm(url: str, tmp_path: Path) -> None:
    """Its saga is handed over, and is due at once."""
    path = tmp_path / "journal"
    with shop(url, Journal(path, "here"), lease=3600.0) as mediator, world.children() as children:
        for _ in range(40):
            handed_over(mediator)
        process = children.start(run_a_worker, url, path, "w0")
        world.eventually(lambda: is_hanging(path, "w0", "Label"))
        assert children.end(process) == [0]
        worker = SagaRecoveryWorker(mediator)
        left = worker.health().recoverable
        assert worker.run_once() == left
        assert mediator.engine.storage.find() == []  # type: ignore[attr-defined]
    done = Counter((entry["saga"], entry["step"]) for entry in entries(path) if entry["what"] == "done")
    assert set(done.values()) == {1}
    assert len(done) == 3 * 40


FORK = """
import os, sys, threading, uuid
from pathlib import Path
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from tests.integration import outbox_world as world
from tests.integration.test_saga_recovery import POLL, Journal, Parcel, handed_over, shop, storage_of

url, path = sys.argv[1], Path(sys.argv[2])
with shop(url, Journal(path, "parent")) as mediator:
    worker = SagaRecoveryWorker(mediator, poll_interval=POLL)
    worker.start()
    handed_over(mediator)
    world.eventually(lambda: worker.health().finished == 1)
    child = os.fork()
    if not child:
        mediator.engine.storage._bind.dispose(close=False)  # what SQLAlchemy asks of every child
        assert not worker.running
        assert not [t.name for t in threading.enumerate() if t.name.startswith("cqrs-")]
        worker.stop()
        for _ in range(2):
            with worker:
                before = worker.health().finished
                saga_id = handed_over(mediator)
                world.eventually(lambda: mediator.engine.storage.load_saga_state(saga_id).status.is_final)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert worker.running
    handed_over(mediator)
    world.eventually(lambda: worker.health().finished >= 2)
    worker.stop()
print("ok")
"""


def test_a_child_of_a_process_with_a_worker_starts_it_again(postgres_url: str, tmp_path: Path) -> None:
    """It has none of the threads, and the parent's go on."""
    with fresh(postgres_url) as url:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FORK, _with_tables(url), str(tmp_path / "journal")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
