"""Owners, leases, and the heartbeat that renews them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_sync.errors import SagaConcurrencyError, SagaStorageUnavailable
from cqrs_sync.saga import engine, leases, record, recovering
from cqrs_sync.saga.leases import Heartbeat, Lease, clock, new_owner
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from tests.unit.sagas import Order, Storage, mediator_of, saga, step

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""


@pytest.fixture(autouse=True)
def _rest() -> Iterator[None]:
    yield
    leases.rest()


class Renewing(Storage):
    """A storage that notes which leases are renewed, and forgets some."""

    def __init__(self, lease: float = 3600.0) -> None:
        super().__init__(lease)
        self.renewals: list[set[Any]] = []
        self.renewed_at = 0.0
        self.forgotten: set[Any] = set()
        self.renewed = threading.Event()

    def renew(self, leases: Any) -> set[Any]:
        self._away()
        self.renewals.append(set(leases))
        self.renewed_at = clock()
        self.renewed.set()
        return set(leases) - self.forgotten


def lease_in(storage: Storage, left: float = 1.0) -> Lease:
    """A lease of which this share is left."""
    lease = Lease(storage, uuid.uuid4(), new_owner(), leases.clock())
    lease.ends = leases.clock() + left * storage.lease
    return lease


def test_owners_are_names_that_nobody_else_has() -> None:
    """Of this process, and of no other claim."""
    first, second = new_owner(), new_owner()
    assert first != second
    assert first.rpartition("/")[0] == second.rpartition("/")[0]
    assert len(first) < 200


def test_a_lease_is_renewed_when_it_ends_soon() -> None:
    """Not before."""
    storage = Renewing()
    lease_in(storage).ensure()
    assert storage.renewals == []
    short = lease_in(storage, 0.2)
    short.ensure()
    assert storage.renewals == [{short.key}]
    assert not short.is_short(0.9)


def test_a_lease_that_cannot_be_renewed_is_lost() -> None:
    """For good."""
    storage = Renewing()
    lost = lease_in(storage, -1)
    storage.forgotten.add(lost.key)
    for _ in range(2):
        with pytest.raises(SagaConcurrencyError):
            lost.ensure()
    assert len(storage.renewals) == 1
    storage.outages = 1
    with pytest.raises(SagaStorageUnavailable):
        lease_in(storage, 0.1).ensure()


def test_a_lease_is_of_no_use_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent still runs the saga; to leave a block that keeps the lease does no harm there."""
    storage = Renewing()
    lease = lease_in(storage, 0.2)
    keeping = lease.kept()
    keeping.__enter__()
    leases.rest()
    assert not lease.is_foreign
    storage.renewals.clear()
    monkeypatch.setattr(leases, "_leases", leases._Leases())
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert lease.is_foreign
    with pytest.raises(SagaConcurrencyError, match="is run by the process that this one was forked from"):
        lease.ensure()
    with pytest.raises(SagaConcurrencyError, match="forked"):
        lease.renewed(clock())
    with pytest.raises(SagaConcurrencyError, match="forked"), lease.kept():
        pytest.fail("the block is run")
    keeping.__exit__(None, None, None)
    assert storage.renewals == []
    assert leases._leases.held() == []


# --- the clock -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boottime", [7, None])
def test_leases_end_by_a_clock_that_a_suspended_machine_does_not_stop(
    monkeypatch: pytest.MonkeyPatch, boottime: int | None
) -> None:
    """Where there is such a clock."""
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", boottime, raising=False)
    if boottime is None:
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.setattr(time, "clock_gettime", {7: 5000.0}.__getitem__, raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None, raising=False)
    spec = importlib.util.find_spec(leases.__name__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.clock() == (5000.0 if boottime else 1000.0)


def test_whoever_asks_for_a_lease_looks_at_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a machine which was suspended for some days: no lease may look as if it had ended."""
    effects: list[str] = []
    for module in (leases, engine, record, recovering):
        monkeypatch.setattr(module, "clock", lambda: clock() + 1e6)
    storage = Renewing()

    def look(self: Any, context: Order) -> None:
        [lease] = leases._leases.held()
        assert not lease.is_short(0.9)
        lease.ends -= 3600  # the write of the step is a renewal

    order_saga = saga(step("a", effects, look), step("b", effects, look), step("c", effects, look))
    with mediator_of(order_saga, storage) as mediator:
        assert mediator.run(Order()).completed
        for recover in (mediator.recover, lambda _: SagaRecoveryWorker(mediator).run_once()):
            stream = mediator.stream(Order(), saga_id := uuid.uuid4())
            next(stream)
            stream.close()
            recover(saga_id)
            assert mediator.engine.storage.load_saga_state(saga_id).status == "completed"
    assert effects == ["a", "b", "c"] * 3
    assert storage.renewals == []


# --- when the heartbeats look ----------------------------------------------------------------------------------


class Hours:
    """A clock that tests move, and heartbeats that look by it, without threads.

    Whenever the clock moves, no lease that is kept may be older than a third of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 1000.0
        self.looks: dict[Heartbeat, float] = {}
        self.wakes = 0
        monkeypatch.setattr(leases, "clock", lambda: self.at)
        monkeypatch.setattr(Heartbeat, "running", property(lambda heartbeat: heartbeat in self.looks))
        monkeypatch.setattr(Heartbeat, "start", lambda heartbeat: self.looks.update({heartbeat: self.at}))
        monkeypatch.setattr(Heartbeat, "stop", lambda heartbeat, _=0: self.looks.pop(heartbeat, None))
        monkeypatch.setattr(Heartbeat, "wake", lambda heartbeat: self._wake(heartbeat))

    def _wake(self, heartbeat: Heartbeat) -> None:
        self.wakes += 1
        self.looks[heartbeat] = self.at

    def lease(self, storage: Storage, age: float = 0.0) -> Lease:
        """A lease of which this share has passed."""
        return Lease(storage, uuid.uuid4(), new_owner(), self.at - age * storage.lease)

    def pass_by(self, seconds: float) -> None:
        until = self.at + seconds
        while self.looks and min(self.looks.values()) <= until:
            heartbeat = min(self.looks, key=self.looks.__getitem__)
            self._move(max(self.at, self.looks[heartbeat]))
            pause = heartbeat.step()
            if heartbeat in self.looks:  # it has not ended
                self.looks[heartbeat] = self.at + pause
        self._move(until)

    def _move(self, at: float) -> None:
        if at == self.at:  # a lease that was old already has just been taken, or is about to be renewed
            return
        self.at = at
        for lease in leases._leases.held():
            age = at - (lease.ends - lease.storage.lease)
            assert age <= lease.storage.lease / 3 + 2 * leases.SHORTEST, f"{age} of {lease.storage.lease} s"


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    return Hours(monkeypatch)


@pytest.mark.parametrize("seed", range(12))
def test_no_lease_gets_older_than_a_third_of_it(hours: Hours, seed: int) -> None:
    """Whatever comes before it: other leases, shorter or longer ones, or nothing at all."""
    rng = random.Random(seed)
    storages = [Renewing(lease) for lease in (0.6, 2.0, 2.0, 30.0, 3600.0)]
    with contextlib.ExitStack() as forever:
        kept: list[contextlib.ExitStack] = []
        for _ in range(60):
            if kept and rng.random() < 0.5:
                kept.pop(rng.randrange(len(kept))).close()
            if rng.random() < 0.6:
                kept.append(forever.enter_context(contextlib.ExitStack()))
                age = rng.choice([0.0, 0.0, 0.2, 0.5, 0.9])  # recovery may have claimed it a while ago
                kept[-1].enter_context(hours.lease(rng.choice(storages), age).kept())
            hours.pass_by(rng.choice([0.0, 0.1, 1.0, 8.0, 25.0]))
    hours.pass_by(2 * leases.LINGER)
    assert not hours.looks


def test_a_lease_after_an_idle_time_is_renewed_as_the_first_was() -> None:
    """In real time, of which the heartbeat has slept a part when the lease is taken."""
    storage = Renewing(3.0)
    with lease_in(storage).kept():
        pass
    time.sleep(0.8)
    lease = lease_in(storage)
    ends = lease.ends
    with lease.kept():
        assert storage.renewed.wait(WAIT)
    assert storage.renewed_at < ends


def test_quick_sagas_wake_no_heartbeat(hours: Hours) -> None:
    """Nor do they start a thread each, or renew anything."""
    storage = Renewing(30.0)
    for _ in range(90):
        with hours.lease(storage).kept(), hours.lease(storage).kept():
            assert len(hours.looks) == 1
            hours.pass_by(0.1)
    assert (hours.wakes, storage.renewals) == (0, [])


def test_leases_that_are_due_at_different_times_are_renewed_together(hours: Hours) -> None:
    """Twenty sagas that were begun one after the other cost no more than one would, twice."""
    storage = Renewing(30.0)
    with contextlib.ExitStack() as all_of_them:
        for _ in range(20):
            all_of_them.enter_context(hours.lease(storage).kept())
            hours.pass_by(1.0)
        hours.pass_by(300.0)
    assert len(storage.renewals) <= 2 * (320 / 10)


def test_the_heartbeat_renews_what_has_grown_short_with_one_call(hours: Hours) -> None:
    """What it finds lost is marked, and not asked for again."""
    storage = Renewing()
    fresh, due, soon, lost = (hours.lease(storage, age) for age in (0.0, 0.4, 0.2, 0.5))
    storage.forgotten.add(lost.key)
    with fresh.kept(), due.kept(), soon.kept(), lost.kept():
        [heartbeat] = hours.looks
        assert heartbeat.step() == leases.LINGER
        assert storage.renewals == [{due.key, soon.key, lost.key}]
        assert (lost.lost, due.lost) == (True, False)
        assert heartbeat.step() == leases.LINGER
        assert len(storage.renewals) == 1


def test_a_lease_is_renewed_until_the_last_who_keeps_it_has_left(hours: Hours) -> None:
    """Several steps of a group may keep the lease of their saga."""
    storage = Renewing(30.0)
    lease = hours.lease(storage)
    first, second = lease.kept(), lease.kept()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    hours.pass_by(11.0)
    assert storage.renewals == [{lease.key}]
    second.__exit__(None, None, None)
    hours.pass_by(60.0)
    assert len(storage.renewals) == 1
    assert leases._leases.held() == []


def test_a_heartbeat_that_was_replaced_ends_without_its_successor(hours: Hours) -> None:
    """Whose leases go on being renewed."""
    storage = Renewing(30.0)
    with hours.lease(storage).kept():
        [before] = hours.looks
    leases.rest()
    lease = hours.lease(storage)
    with lease.kept():
        assert before.step() == 0
        hours.pass_by(11.0)
        assert storage.renewals == [{lease.key}]


def test_the_garbage_collector_may_give_up_a_lease_anywhere(hours: Hours) -> None:
    """Of a stream that was forgotten: even while the same thread looks at the leases."""
    lease, other = hours.lease(Renewing()), hours.lease(Renewing())
    with other.kept():
        keeping = lease.kept()
        keeping.__enter__()
        with leases._leases._lock:
            keeping.__exit__(None, None, None)
        assert leases._leases.held() == [other]


def test_the_wait_after_an_error_leaves_time_for_more_attempts() -> None:
    """However short the lease is; even one of no length has a heartbeat."""
    storage = Renewing()
    for storage.lease, most in ((3600.0, 5.0), (30.0, 5.0), (0.6, 0.1), (0.0, 0.01)):
        backoff = Heartbeat(storage)._backoff
        assert max(backoff.delay(attempt) for attempt in range(1, 20)) == pytest.approx(most, rel=0.2)


# --- their threads ---------------------------------------------------------------------------------------------


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "cqrs-saga-heartbeat"]


def test_a_heartbeat_runs_while_its_storage_has_leases_and_ends_soon_after() -> None:
    """One thread for all of a storage; the next lease starts another."""
    storage = Renewing(0.2)
    with lease_in(storage).kept(), lease_in(storage).kept():
        assert len(threads()) == 1
    until = time.monotonic() + WAIT
    while threads() and time.monotonic() < until:
        time.sleep(0.001)
    assert threads() == []
    with lease_in(storage).kept():
        assert len(threads()) == 1


def test_a_storage_that_hangs_or_is_away_loses_no_leases_of_others(caplog: pytest.LogCaptureFixture) -> None:
    """Each has its own thread; errors are logged."""
    hangs, away, here = Hanging(0.1), Renewing(0.1), Renewing(0.1)
    away.outages = 10**9
    with lease_in(hangs, 0.5).kept(), lease_in(away, 0.5).kept():
        assert hangs.reached.wait(WAIT)
        with lease_in(here, 0.5).kept():
            assert len(threads()) == 3
            for _ in range(5):
                assert here.renewed.wait(WAIT)
                here.renewed.clear()
        hangs.goes_on.set()
    assert "cqrs-saga-heartbeat: attempt 1 failed" in caplog.text


class Hanging(Renewing):
    """A storage that does not answer for now."""

    def __init__(self, lease: float) -> None:
        super().__init__(lease)
        self.reached = threading.Event()
        self.goes_on = threading.Event()

    def renew(self, leases: Any) -> set[Any]:
        self.reached.set()
        assert self.goes_on.wait(WAIT)
        return super().renew(leases)


def test_a_storage_that_hangs_does_not_keep_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """Its thread is left behind, with a warning."""
    storage = Hanging(3600.0)
    with lease_in(storage, 0.5).kept():
        assert storage.reached.wait(WAIT)
        leases.rest(0.0)
    assert "cqrs-saga-heartbeat" in caplog.text
    storage.goes_on.set()
    until = time.monotonic() + WAIT
    while threads() and time.monotonic() < until:
        time.sleep(0.001)
    assert threads() == []


def test_a_storage_for_each_saga_does_not_leave_a_thread_for_each() -> None:
    """As where a mediator is built for every request."""
    for _ in range(3 * leases.MAX_IDLE):
        with lease_in(Renewing()).kept():
            assert len(leases._leases._heartbeats) <= leases.MAX_IDLE + 1
    until = time.monotonic() + WAIT
    while len(threads()) > leases.MAX_IDLE + 1 and time.monotonic() < until:
        time.sleep(0.001)
    assert len(threads()) <= leases.MAX_IDLE + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_a_driver_has_ended_is_replaced() -> None:
    """By the next saga, and it renews the leases of those before, too."""
    storage = Exiting(3600.0)
    first = lease_in(storage, 0.5)
    with first.kept():
        heartbeat = leases._leases._heartbeats[id(storage)]
        until = time.monotonic() + WAIT
        while heartbeat.running and time.monotonic() < until:  # it leaves the list of threads before it has ended
            time.sleep(0.001)
        with lease_in(storage).kept():
            assert storage.renewed.wait(WAIT)
            assert storage.renewals == [{first.key}]


class Exiting(Renewing):
    """A storage whose driver ends the thread, once."""

    has_exited = False

    def renew(self, leases: Any) -> set[Any]:
        if not self.has_exited:
            self.has_exited = True
            raise SystemExit
        return super().renew(leases)
