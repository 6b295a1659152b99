"""The recovery worker over sagas in memory; with several processes see tests/integration/test_saga_recovery.py."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import logging
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import punq
import pytest

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import ConfigurationError, MediatorClosed, SagaRolledBack, SagaStorageUnavailable, StopTimeout
from cqrs_sync.saga import recovering, recovery_worker
from cqrs_sync.saga.administration import SagaAdministration
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.leases import new_owner
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.models import SagaState
from cqrs_sync.saga.storage.protocol import SagaStorage
from tests.unit.sagas import HOPELESS, Died, Order, Storage, mediator_of, saga, step

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""

NEVER = 3600.0
"""An interval that no test lives to see the end of."""


def abandoned(mediator: Any, storage: Storage, writes: int = 1, context: Any = None) -> uuid.UUID:
    """Store a saga whose process dies after so many writes, and whose lease has ended."""
    saga_id = uuid.uuid4()
    storage.die_after = storage._count + writes
    with suppress(Died):
        mediator.run(context or Order(), saga_id)
    storage.restart()
    return saga_id


def status_of(storage: SagaStorage, saga_id: uuid.UUID) -> SagaStatus:
    return storage.load_saga_state(saga_id).status


class Gate:
    """Stops a step in the middle of it."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, step: Any, context: Any) -> None:
        self.reached.set()
        assert self.opened.wait(WAIT)

    def wait(self) -> None:
        assert self.reached.wait(WAIT)


class Signal:
    """Says that a step has run."""

    def __init__(self) -> None:
        self._ran = threading.Event()

    def __call__(self, step: Any, context: Any) -> None:
        self._ran.set()

    def wait(self) -> None:
        assert self._ran.wait(WAIT)


def until(condition: Any, worker: SagaRecoveryWorker) -> None:
    """Return when a condition holds that the worker's threads make true soon."""
    paused = threading.Event()
    for _ in range(int(WAIT / 0.005)):
        if condition():
            return
        paused.wait(0.005)
    raise AssertionError(f"it did not come true: {worker.health()}")


# --- finishing ---------------------------------------------------------------------------------------------------


def test_a_saga_whose_process_has_died_is_finished_forward(effects: list[str], storage: Storage) -> None:
    """With the context that is stored; the step that was running runs again."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage, writes=2, context=Order(note="stored"))
        worker = SagaRecoveryWorker(mediator)
        assert worker.run_once() == 1
        assert worker.run_once() == 0
        state = storage.load_saga_state(saga_id)
        assert (state.status, '"stored"' in state.context) == (SagaStatus.COMPLETED, True)
        assert effects == ["reserve", "ship"]
        assert worker.health() == (False, None, 1, 0, 0, None, {}, {}, 0, None)


def test_a_saga_that_was_rolled_back_when_its_process_died_is_rolled_back(effects: list[str], storage: Storage) -> None:
    """To a clean end, which counts as one."""
    order_saga = saga(step("reserve", effects), step("ship", effects, OSError("no truck")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = abandoned(mediator, storage, writes=3)
        assert SagaRecoveryWorker(mediator).run_once() == 1
        assert status_of(storage, saga_id) is SagaStatus.FAILED
        assert effects == ["reserve", "ship", "-reserve"]


def test_a_worker_finishes_sagas_in_the_background(storage: Storage, effects: list[str]) -> None:
    """More than it has threads; all that were there, and those that come."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        ids = [abandoned(mediator, storage) for _ in range(5)]
        with SagaRecoveryWorker(mediator, max_workers=2, poll_interval=0.01) as worker:
            until(lambda: worker.health().finished == 5, worker)
            ids.append(abandoned(mediator, storage))
            until(lambda: worker.health().finished == 6, worker)
            assert worker.health().running
        assert not worker.running
        assert worker.health().finished == 6
        assert {status_of(storage, saga_id) for saga_id in ids} == {SagaStatus.COMPLETED}
        with worker:  # it can be started again, and goes on counting
            abandoned(mediator, storage)
            until(lambda: worker.health().finished == 7, worker)


def test_a_slow_saga_keeps_no_other_waiting(storage: Storage, effects: list[str]) -> None:
    """The other thread takes on what is due."""
    slow, gate = threading.Event(), Gate()

    def act(self: Any, context: Order) -> None:
        if not slow.is_set():
            slow.set()
            gate(self, context)

    with mediator_of(saga(step("ship", effects, act)), storage) as mediator:
        first = abandoned(mediator, storage)
        with SagaRecoveryWorker(mediator, max_workers=2, poll_interval=0.01) as worker:
            gate.wait()
            for _ in range(3):
                abandoned_at_once(mediator, storage)
            until(lambda: worker.health().finished == 3, worker)
            assert status_of(storage, first) is SagaStatus.RUNNING
            gate.opened.set()
            until(lambda: worker.health().finished == 4, worker)


def abandoned_at_once(mediator: Any, storage: Storage) -> uuid.UUID:
    """Store a saga that nobody runs, without touching the leases of others."""
    saga_id = uuid.uuid4()
    order_saga = next(iter(mediator.saga_map.values()))
    opening = mediator.engine.prepare(order_saga.definition, Order(), saga_id)
    assert mediator.engine.create(opening.definition, opening.context, saga_id, opening.text)
    storage.expire(saga_id)
    return saga_id


def test_a_batch_is_no_larger_than_the_threads_that_are_free(storage: Storage, effects: list[str]) -> None:
    """No saga waits for a thread while its lease runs."""
    gate = Gate()
    with mediator_of(saga(step("ship", effects, gate)), storage) as mediator:
        for _ in range(5):
            abandoned_at_once(mediator, storage)
        with SagaRecoveryWorker(mediator, max_workers=2, poll_interval=0.01) as worker:
            until(lambda: effects == ["ship", "ship"], worker)
            assert worker.health().recoverable == 3
            gate.opened.set()
            until(lambda: worker.health().finished == 5, worker)


def test_two_workers_never_run_a_saga_at_once(storage: Storage, effects: list[str]) -> None:
    """Each is finished once, and none of its steps runs twice."""
    with mediator_of(saga(step("a", effects), step("b", effects)), storage) as mediator:
        ids = [abandoned_at_once(mediator, storage) for _ in range(20)]
        with (
            SagaRecoveryWorker(mediator, poll_interval=0.001, name="one") as one,
            SagaRecoveryWorker(mediator, poll_interval=0.001, name="two") as two,
        ):
            until(lambda: one.health().finished + two.health().finished == 20, one)
        assert sorted(effects) == ["a"] * 20 + ["b"] * 20
        assert {status_of(storage, saga_id) for saga_id in ids} == {SagaStatus.COMPLETED}


def test_run_once_takes_each_saga_on_once(storage: Storage, effects: list[str]) -> None:
    """One that is due again at once is given back."""

    class AtOnce(Backoff):
        def delay(self, attempt: int) -> float:
            return 0.0

    ship = step("ship", effects, OSError("no truck"), kind="retriable")
    order_saga = saga(step("charge", effects, kind="pivot"), ship)
    with mediator_of(order_saga, storage, recovery_backoff=AtOnce()) as mediator:
        saga_id = mediator.run(Order()).saga_id
        assert SagaRecoveryWorker(mediator).run_once() == 0
        assert effects == ["charge", "ship", "ship"]
        assert storage.load_saga_state(saga_id).attempts == 1


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_compensation_that_keeps_failing_is_tried_with_back_off_and_then_stuck(
    effects: list[str], storage: Storage
) -> None:
    """Some times in a row, and then later and later. It is seen in health, and no worker touches it again."""
    retry = Retry(attempts=3, delay=0.001, backoff=2.0)
    reserve = step("reserve", effects, None, OSError("no"), compensate_retry=retry)
    backoff = Backoff(initial=100, factor=2, maximum=1000, jitter=0)
    order_saga = saga(reserve, step("ship", effects, OSError("no truck")))
    with mediator_of(order_saga, storage, recovery_backoff=backoff) as mediator:
        outcome = mediator.run(Order())
        saga_id = outcome.saga_id
        assert (outcome.status, str(outcome.error)) == (SagaStatus.COMPENSATING, "no truck")
        [note] = outcome.error.__notes__  # type: ignore[union-attr]
        assert "compensate of reserve failed: OSError: no; recovery tries again in 100.0 s" in note
        assert storage.writes[-1].available_in == 100
        worker = SagaRecoveryWorker(mediator, max_attempts=2)
        assert worker.run_once() == 0
        assert worker.health().recoverable == 0, "it is not due"
        storage.expire(saga_id)
        assert worker.run_once() == 0
        assert storage.writes[-1].available_in == 200
        state = storage.load_saga_state(saga_id)
        assert (state.status, state.attempts, state.error) == (SagaStatus.COMPENSATING, 1, "OSError: no truck")
        storage.expire(saga_id)
        assert worker.run_once() == 0
        state = storage.load_saga_state(saga_id)
        assert state.status is SagaStatus.COMPENSATION_FAILED
        assert state.error == "OSError: no truck; compensate of reserve failed: OSError: no"
        assert effects == ["reserve", "ship", *["-reserve"] * 9]
        health = worker.health()
        assert (health.stuck, health.recoverable, health.oldest_age) == (1, 0, None)
        assert worker.run_once() == 0


def test_a_compensation_that_is_undone_at_last_gives_the_attempts_back(effects: list[str], storage: Storage) -> None:
    """They are counted since the rollback has last come further."""

    def fail(self: Any, context: Order) -> None:
        if effects.count("-b") < 2:
            raise OSError("no")

    once = Retry(attempts=1)
    a = step("a", effects, None, OSError("no"), compensate_retry=once)
    b = step("b", effects, None, fail, compensate_retry=once)
    with mediator_of(saga(a, b, step("ship", effects, OSError("no truck"))), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        storage.expire(saga_id)
        assert SagaRecoveryWorker(mediator, max_attempts=1).run_once() == 0
        state = storage.load_saga_state(saga_id)
        assert (state.status, state.current_step, state.attempts) == (SagaStatus.COMPENSATING, "a", 0)
    assert effects == ["a", "b", "ship", "-b", "-b", "-a"]


def test_without_a_worker_a_rollback_is_put_off_each_time(effects: list[str], storage: Storage) -> None:
    """Whoever takes it on by its id tries at once, and is told how it is."""
    order_saga = saga(step("a", effects, None, OSError("no")), step("ship", effects, OSError("no truck")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        for _ in range(3):
            with pytest.raises(SagaRolledBack, match="compensating: OSError: no truck; compensate of a") as caught:
                list(mediator.stream(Order(), saga_id))
            assert caught.value.status is SagaStatus.COMPENSATING
    assert effects.count("-a") == 12


def test_an_error_that_no_retry_mends_is_stuck_at_once(effects: list[str], storage: Storage) -> None:
    """``exceptions`` of the step's ``compensate_retry`` name those that are worth a wait."""
    a = step("a", effects, None, OSError("no"), compensate_retry=HOPELESS)
    with mediator_of(saga(a, step("ship", effects, OSError("no truck"))), storage) as mediator:
        outcome = mediator.run(Order())
    assert outcome.status is SagaStatus.COMPENSATION_FAILED
    assert "it is stuck, and waits for an operator" in outcome.error.__notes__[0]  # type: ignore[union-attr]
    assert effects == ["a", "ship", "-a"]


def test_a_saga_past_its_pivot_is_tried_until_its_attempts_are_used_up(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """With the back-off of the mediator; then it waits for an operator."""
    ship = step("ship", effects, OSError("no truck"), kind="retriable")
    order_saga = saga(step("charge", effects, kind="pivot"), ship)
    with mediator_of(order_saga, storage, recovery_backoff=Backoff(initial=60, jitter=0, maximum=900)) as mediator:
        saga_id = mediator.run(Order()).saga_id
        worker = SagaRecoveryWorker(mediator, max_attempts=2)
        assert worker.run_once() == 0
        for attempts in (1, 2):
            storage.expire(saga_id)
            assert worker.health().recoverable == 1
            assert worker.run_once() == 0
            assert storage.load_saga_state(saga_id).attempts == attempts
            assert storage.writes[-1].available_in == 60 * 2**attempts
        storage.expire(saga_id)
        assert worker.run_once() == 0
        assert effects == ["charge", "ship", "ship", "ship"]
        assert worker.health()[3:5] == (0, 1)
        assert "to an operator after 2 attempts" in caplog.text
        assert SagaRecoveryWorker(mediator, max_attempts=None).health()[3:5] == (1, 0)
        SagaRecoveryWorker(mediator, max_attempts=None).run_once()
        assert effects == ["charge", "ship", "ship", "ship", "ship"]


def test_a_saga_that_cannot_be_run_is_put_off_and_stops_no_other(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """A middleware's error is no step's; the saga is tried again later."""
    broken = {"a"}

    def middleware(request: Any, handle: Any) -> Any:
        if request.order_id in broken:
            raise LookupError("broken")
        return handle(request)

    backoff = Backoff(initial=60, jitter=0, maximum=900)
    with mediator_of(saga(step("ship", effects)), storage, middlewares=[middleware]) as mediator:
        first, second = (abandoned(mediator, storage, context=Order(name)) for name in ("b1", "b2"))
        broken |= {"b1"}
        assert SagaRecoveryWorker(mediator, backoff=backoff).run_once() == 1
        assert storage.writes[-2].available_in == 60 or storage.writes[-1].available_in == 60
        assert (status_of(storage, first), status_of(storage, second)) == (SagaStatus.RUNNING, SagaStatus.COMPLETED)
        assert "LookupError: broken" in caplog.text
        storage.expire(first)
        broken.clear()
        assert SagaRecoveryWorker(mediator).run_once() == 1


def test_a_saga_that_somebody_else_has_by_now_is_left_to_him(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The process was stopped for longer than the lease, say."""

    def lose(self: Any, context: Order) -> None:
        storage.expire(saga_id)
        storage.claim(saga_id, "another")

    with mediator_of(saga(step("ship", effects, lose)), storage) as mediator:
        saga_id = abandoned_at_once(mediator, storage)
        assert SagaRecoveryWorker(mediator).run_once() == 0
        assert storage.load_saga_state(saga_id).locked_by == "another"
        assert "no longer run by" in caplog.text


def test_an_outage_is_raised_and_the_saga_stays(effects: list[str], storage: Storage) -> None:
    """Its lease ends by itself."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        storage.outages = 1
        worker = SagaRecoveryWorker(mediator)
        fetch = storage.get_sagas_for_recovery
        storage.get_sagas_for_recovery = lambda *args, **options: (storage._away(), fetch(*args, **options))[1]  # type: ignore[method-assign]
        with pytest.raises(SagaStorageUnavailable):
            worker.run_once()
        assert worker.run_once() == 1
        assert status_of(storage, saga_id) is SagaStatus.COMPLETED


def test_an_outage_while_a_saga_is_run_keeps_no_other_waiting(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be that saga's alone; where it is not, the next claim says so. It goes on when its lease has ended."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        first, second, third = (abandoned_at_once(mediator, storage) for _ in range(3))
        worker = SagaRecoveryWorker(mediator, poll_interval=0.001, outage_backoff=Backoff(initial=NEVER, maximum=NEVER))
        take_on = mediator.take_on

        def away(state: SagaState, *args: Any) -> Any:
            if state.saga_id == first:
                raise SagaStorageUnavailable("away")
            return take_on(state, *args)

        monkeypatch.setattr(mediator, "take_on", away)
        assert worker.run_once() == 2
        state = storage.load_saga_state(first)
        assert (state.status, state.locked_by is not None, state.attempts) == (SagaStatus.RUNNING, True, 1)
        assert f"leaves saga {first} (OrderSaga) until its lease has ended: away" in caplog.text
        with worker:
            storage.expire(first)
            until(lambda: caplog.text.count("until its lease has ended") == 2, worker)
            monkeypatch.setattr(mediator, "take_on", take_on)
            storage.expire(first)
            until(lambda: worker.health().finished == 3, worker)
            assert worker.last_error is None
        assert {status_of(storage, each) for each in (first, second, third)} == {SagaStatus.COMPLETED}


def test_a_saga_that_cannot_be_given_back_keeps_its_lease_to_the_end(effects: list[str], storage: Storage) -> None:
    """An outage there stops no other saga either."""
    with mediator_of(saga(step("gone", effects), step("ship", effects)), storage) as old:
        misfit = abandoned(old, storage, writes=2)
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        fits = abandoned_at_once(mediator, storage)
        storage.outages = 1
        assert SagaRecoveryWorker(mediator).run_once() == 1
        assert status_of(storage, fits) is SagaStatus.COMPLETED
        assert storage.load_saga_state(misfit).locked_by is not None


def test_without_a_storage_health_says_why(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known is None."""
    with mediator_of(saga(step("ship", [])), storage) as mediator:
        error = SagaStorageUnavailable("away")

        def away(max_attempts: int | None) -> Any:
            raise error

        monkeypatch.setattr(storage, "backlog", away)
        assert SagaRecoveryWorker(mediator).health() == (False, error, 0, None, None, None, {}, {}, None, None)


def test_a_step_that_hangs_is_seen(effects: list[str], storage: Storage) -> None:
    """By how long ago its saga was written; that its lease is renewed does not hide it."""
    gate = Gate()
    with (
        mediator_of(saga(step("ship", effects, gate)), storage) as mediator,
        mediator_of(saga(step("ship", effects), saga_name="theirs"), storage) as other,
    ):
        worker = SagaRecoveryWorker(mediator)
        assert worker.health().oldest_running is None
        with SagaRecoveryWorker(mediator, poll_interval=0.001) as running:
            saga_id = abandoned_at_once(mediator, storage)
            gate.wait()
            state = storage._sagas[saga_id]
            began = state.updated_at - datetime.timedelta(seconds=900)
            storage._sagas[saga_id] = dataclasses.replace(state, updated_at=began)
            assert state.locked_by is not None
            assert storage.renew([(saga_id, state.locked_by)])
            health = worker.health()
            assert health.oldest_running is not None
            assert 900 <= health.oldest_running < 900 + WAIT
            assert (health.recoverable, health.stuck, health.unknown) == (0, 0, {})
            elsewhere = SagaRecoveryWorker(other).health()
            assert (elsewhere.oldest_running, elsewhere.unknown) == (None, {}), "it is another service's"
            gate.opened.set()
            until(lambda: running.health().finished == 1, running)
        assert worker.health().oldest_running is None


def test_behind_a_closed_mediator_sagas_are_given_back(effects: list[str], storage: Storage) -> None:
    """As they were: it is no attempt."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        worker = SagaRecoveryWorker(mediator)
        mediator.close()
        with pytest.raises(MediatorClosed):
            worker.run_once()
        state = storage.load_saga_state(saga_id)
        assert (state.attempts, state.status) == (0, SagaStatus.RUNNING)


def test_a_step_that_ends_the_program_does_not_end_the_thread(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The saga is handed over, and tried again."""

    def leave(self: Any, context: Order) -> None:
        if len(effects) == 1:
            raise SystemExit

    with mediator_of(saga(step("ship", effects, leave)), storage) as mediator:
        abandoned(mediator, storage)
        with SagaRecoveryWorker(mediator, max_workers=1, poll_interval=0.001) as worker:
            until(lambda: worker.health().finished == 1, worker)
        assert "what ends programs" in caplog.text
        assert effects == ["ship", "ship"]


# --- sagas that are another's ------------------------------------------------------------------------------------


def test_a_saga_of_an_unknown_name_is_left_alone_and_reported_once(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not claimed, and blocks no other."""
    with mediator_of(saga(step("ship", effects), saga_name="unheard-of"), storage) as mediator:
        unknown = abandoned(mediator, storage)
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        before = storage.load_saga_state(unknown)
        abandoned_at_once(mediator, storage)
        worker = SagaRecoveryWorker(mediator)
        assert worker.run_once() == 1
        for _ in range(2):
            health = worker.health()
            assert (health.unknown, health.recoverable, health.stuck) == ({"unheard-of": 1}, 0, 0)
        assert storage.load_saga_state(unknown) == before
        assert caplog.text.count("'unheard-of'") == 1


def test_what_another_service_takes_on_soon_is_not_reported(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Services may share the tables."""
    with mediator_of(saga(step("ship", effects), saga_name="theirs"), storage) as mediator:
        abandoned_at_once(mediator, storage)
        [state] = storage.get_sagas_for_recovery(new_owner())
        mediator.engine.give_back(state)
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        assert SagaRecoveryWorker(mediator).health().unknown == {"theirs": 1}
        assert "theirs" not in caplog.text


def test_a_worker_without_sagas_claims_none(storage: Storage, effects: list[str]) -> None:
    """No names would be all."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        before = storage.load_saga_state(saga_id)
    with bootstrap(punq.Container(), saga_storage=storage) as mediator:
        assert SagaRecoveryWorker(mediator).run_once() == 0
        assert storage.load_saga_state(saga_id) == before


def test_a_saga_that_does_not_fit_the_steps_of_today_is_left_alone(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses up no attempts, is reported once, waits longer each time, and is finished by the old code."""
    monkeypatch.setattr(recovering, "LEFT_ALONE", Backoff(initial=30, jitter=0, maximum=3600))
    reserve, ship = step("reserve", effects), step("ship", effects)
    with mediator_of(saga(reserve, ship), storage) as old, mediator_of(saga(ship), storage) as new:
        saga_id = abandoned(old, storage, writes=2)
        fits = abandoned_at_once(new, storage)
        worker = SagaRecoveryWorker(new, max_attempts=1)
        for wait in (30, 60):
            worker.run_once()
            state = storage.load_saga_state(saga_id)
            assert (state.status, state.attempts) == (SagaStatus.RUNNING, 0)
            assert next(write for write in storage.writes[::-1] if write.saga_id == saga_id).available_in == wait
            [difference] = worker.health().changed.values()
            assert "reserve was done and is no step of it now" in difference
            storage.expire(saga_id)
        assert caplog.text.count("leaves it alone") == 1
        assert status_of(storage, fits) is SagaStatus.COMPLETED
        assert SagaRecoveryWorker(old).run_once() == 1
        monkeypatch.setattr(recovering, "STALE", -NEVER)
        assert worker.health().changed == {}
    assert effects == ["reserve", "ship", "ship"]


def test_that_a_saga_does_not_fit_is_seen_from_every_process(effects: list[str], storage: Storage) -> None:
    """With the reason, in its row and once in its log, as long as nobody goes on with it."""
    reserve, ship = step("reserve", effects), step("ship", effects)
    with mediator_of(saga(reserve, ship), storage) as old, mediator_of(saga(ship), storage) as new:
        saga_id = abandoned(old, storage, writes=2)
        for _ in range(3):
            storage.expire(saga_id)
            SagaRecoveryWorker(new).run_once()
        for mediator in (old, new):
            health = SagaRecoveryWorker(mediator).health()
            assert (health.unfit, health.recoverable, health.stuck, health.changed) == (1, 0, 0, {})
        [found] = SagaAdministration(storage).find(stuck=True)
        assert found.saga_id == saga_id
        assert found.error is not None
        assert "reserve was done and is no step of it now" in found.error
        assert found.error.count("SagaDefinitionChanged") == 1
        [entry] = [entry for entry in storage.get_step_history(saga_id) if entry.action == "leave"]
        assert (entry.details, entry.status, entry.step_name) == (found.error, "failed", "")
        assert entry.actor
        storage.expire(saga_id)
        assert SagaRecoveryWorker(old).run_once() == 1
        assert SagaRecoveryWorker(new).health().unfit == 0
        assert SagaAdministration(storage).find(stuck=True) == []


def test_what_a_saga_is_rolled_back_for_is_kept_where_it_does_not_fit(effects: list[str], storage: Storage) -> None:
    """Whoever waits for it is told of that; and a doubt stays one."""
    reserve = step("reserve", effects, None, OSError("no"))
    with mediator_of(saga(reserve, step("ship", effects, OSError("no truck"))), storage) as old:
        saga_id = old.run(Order()).saga_id
    with mediator_of(saga(step("ship", effects)), storage) as new:
        for _ in range(2):
            storage.expire(saga_id)
            [state] = storage.get_sagas_for_recovery(new_owner())
            new.engine.give_back(dataclasses.replace(state, in_doubt=True))
            SagaRecoveryWorker(new).run_once()
        state = storage.load_saga_state(saga_id)
    assert state.error is not None
    assert state.error.startswith("OSError: no truck; SagaDefinitionChanged: ")
    assert (state.locked_by, state.error.count("SagaDefinitionChanged")) == ("(unfit, in doubt)", 1)


def test_sagas_of_others_that_do_not_fit_are_theirs(effects: list[str], storage: Storage) -> None:
    """As are those that wait; they count where their name is bound."""
    reserve, ship = step("reserve", effects), step("ship", effects)
    with mediator_of(saga(reserve, ship, saga_name="theirs"), storage) as old:
        abandoned(old, storage, writes=2)
    with mediator_of(saga(ship, saga_name="theirs"), storage) as new:
        SagaRecoveryWorker(new).run_once()
        assert SagaRecoveryWorker(new).health().unfit == 1
    with mediator_of(saga(ship), storage) as mediator:
        health = SagaRecoveryWorker(mediator).health()
        assert (health.unfit, health.unknown) == (0, {})


def test_a_saga_that_fits_again_is_no_longer_reported(effects: list[str], storage: Storage) -> None:
    """An operator has mended it, say."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        worker = SagaRecoveryWorker(mediator)
        state = storage._sagas[saga_id]
        storage._sagas[saga_id] = dataclasses.replace(state, context='{"numbers": 1}')
        worker.run_once()
        assert "does not fit Order" in worker.health().changed[saga_id]
        storage._sagas[saga_id] = state
        worker.run_once()
        assert worker.health().changed == {}


# --- stopping ----------------------------------------------------------------------------------------------------


def test_a_step_that_runs_is_finished_and_its_saga_handed_over(effects: list[str], storage: Storage) -> None:
    """Without doubt; another worker goes on at once."""
    gate = Gate()
    with mediator_of(saga(step("reserve", effects, gate), step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        worker = SagaRecoveryWorker(mediator, poll_interval=NEVER)
        worker.start()
        gate.wait()
        with pytest.raises(StopTimeout):
            worker.stop(timeout=0.01)
        assert worker.running
        with pytest.raises(ConfigurationError, match="running already"):
            worker.start()
        gate.opened.set()
        worker.stop()
        assert not worker.running
        assert effects == ["reserve"]
        [state] = storage.get_sagas_for_recovery(new_owner())
        assert (state.saga_id, state.in_doubt, state.current_step) == (saga_id, False, "ship")
        mediator.engine.give_back(state)
        assert SagaRecoveryWorker(mediator).run_once() == 1
        assert effects == ["reserve", "ship"]


def test_a_rollback_is_handed_over_after_the_step_that_is_being_undone(effects: list[str], storage: Storage) -> None:
    """The rest is undone by whoever takes it on."""
    gate = Gate()
    steps = [step("a", effects), step("b", effects, None, gate), step("c", effects, OSError("no"))]
    with mediator_of(saga(*steps), storage) as mediator:
        saga_id = abandoned(mediator, storage, writes=4)
        worker = SagaRecoveryWorker(mediator, poll_interval=NEVER)
        worker.start()
        gate.wait()
        with pytest.raises(StopTimeout):
            worker.stop(timeout=0.01)
        gate.opened.set()
        worker.stop()
        assert effects == ["a", "b", "c", "-b"]
        assert status_of(storage, saga_id) is SagaStatus.COMPENSATING
        assert SagaRecoveryWorker(mediator).run_once() == 1
        assert effects == ["a", "b", "c", "-b", "-a"]


def test_stopping_ends_a_wait_between_attempts(effects: list[str], storage: Storage) -> None:
    """However long it would have been."""
    ran = Signal()

    def fail(self: Any, context: Order) -> None:
        ran(self, context)
        raise OSError("no truck")

    ship = step("ship", effects, fail, retry=Retry(attempts=2, delay=NEVER))
    with mediator_of(saga(ship), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        with SagaRecoveryWorker(mediator, poll_interval=NEVER):
            ran.wait()
        [state] = storage.get_sagas_for_recovery(new_owner())
        assert (state.saga_id, state.status) == (saga_id, SagaStatus.RUNNING)


def test_a_step_can_stop_the_worker(effects: list[str], storage: Storage) -> None:
    """It is finished as any other, and its saga handed over."""
    with mediator_of(saga(step("a", effects, lambda *_: worker.stop()), step("b", effects)), storage) as mediator:
        saga_id = abandoned_at_once(mediator, storage)
        worker = SagaRecoveryWorker(mediator, poll_interval=NEVER)
        worker.start()
        until(lambda: storage.load_saga_state(saga_id).current_step == "b" and not worker.running, worker)
        assert storage.load_saga_state(saga_id).status is SagaStatus.RUNNING
        worker.stop()
        until(lambda: worker.run_once() == 1, worker)
        assert effects == ["a", "b"]


@pytest.mark.parametrize("away", [False, True])
def test_a_saga_that_was_claimed_and_not_begun_is_given_back(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """As it was; where the storage is away its lease ends."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        worker = SagaRecoveryWorker(mediator)
        [claimed] = worker._recoverer.claim(2)
        runner = recovery_worker._Runner("r", worker._recoverer, threading.Event(), None, lambda: None)
        runner.take(claimed)
        assert not runner.is_free
        storage.outages = int(away)
        runner.stop()
        state = storage.load_saga_state(saga_id)
        assert (state.attempts, state.locked_by is None) == ((1, False) if away else (0, False))
        assert (worker.run_once() == 1) is not away


def test_a_mediator_that_was_closed_is_an_error_of_the_worker(effects: list[str], storage: Storage) -> None:
    """Which keeps nothing that it has claimed: another one may have an open mediator."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned(mediator, storage)
        worker = SagaRecoveryWorker(mediator, poll_interval=0.01)
        mediator.close()
        with worker:
            until(lambda: isinstance(worker.last_error, MediatorClosed), worker)
    state = storage.load_saga_state(saga_id)
    assert (state.attempts, state.leaves_doubt) == (0, True)  # as its process has left it
    assert effects == []


def test_a_forked_child_has_no_threads(storage: Storage) -> None:
    """It may start its own."""
    with mediator_of(saga(step("ship", [])), storage) as mediator:
        worker = SagaRecoveryWorker(mediator)
        worker.start()
        runners, thread = worker._runners, worker._run
        worker.forget_thread()
        assert not worker.running
        for loop in (*runners, thread):
            stop = loop.request_stop if loop is thread else loop.stop
            stop()
        assert thread.thread is not None
        thread.thread.join(WAIT)
        with worker:
            assert worker.running


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_forgotten_ends_and_warns_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads do not keep it alive."""
    with mediator_of(saga(step("ship", [])), storage) as mediator, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        worker = SagaRecoveryWorker(mediator, poll_interval=NEVER)
        worker.start()
        threads = [loop._run.thread for loop in (worker, *worker._runners)]
        del worker
        gc.collect()
        for thread in threads:
            assert thread is not None
            thread.join(WAIT)
            assert not thread.is_alive()
    assert [str(each.message) for each in caught] == [
        "cqrs-saga-recovery was forgotten while it ran: call stop()",
    ]


# --- housekeeping ------------------------------------------------------------------------------------------------


def test_sagas_that_have_ended_are_purged_when_their_retention_is_over(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch after batch, by the thread; those that have not ended stay."""
    monkeypatch.setattr(recovery_worker, "PURGE_SIZE", 2)
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        ended = [mediator.run(Order()).saga_id for _ in range(5)]
        waits = abandoned_at_once(mediator, storage)
        assert SagaRecoveryWorker(mediator, retention=None).purge() == 0
        assert SagaRecoveryWorker(mediator).purge() == 0
        assert SagaRecoveryWorker(mediator, retention=0).purge() == 2
    with (
        bootstrap(punq.Container(), saga_storage=storage) as mediator,
        SagaRecoveryWorker(mediator, poll_interval=NEVER, retention=0) as worker,
    ):
        until(lambda: list(storage._sagas) == [waits], worker)
    assert len(ended) == 5


def test_an_error_of_the_purge_keeps_no_saga_waiting(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""
    monkeypatch.setattr(storage, "purge", lambda *_: 1 / 0)
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        abandoned(mediator, storage)
        with SagaRecoveryWorker(mediator, poll_interval=NEVER) as worker:
            until(lambda: worker.health().finished == 1 and "could not purge" in caplog.text, worker)
            assert worker.last_error is None


def test_the_context_of_workers_is_around_each_saga(effects: list[str], storage: Storage) -> None:
    """It frees what is bound to the thread."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        effects.append("entered")
        yield
        effects.append("left")

    with mediator_of(saga(step("ship", effects)), storage, worker_context=around) as mediator:
        abandoned(mediator, storage)
        del effects[:]
        with SagaRecoveryWorker(mediator, poll_interval=NEVER) as worker:
            until(lambda: "left" in effects, worker)
        assert effects == ["entered", "ship", "left"]


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"max_workers": 0}, "max_workers"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"retention": -1}, "retention"),
        ({"backoff": 1.0}, "backoff"),
        ({"outage_backoff": 1.0}, "backoff"),
    ],
)
def test_settings_that_cannot_work_are_refused(storage: Storage, settings: dict[str, Any], culprit: str) -> None:
    """At once, and by name."""
    with (
        mediator_of(saga(step("ship", [])), storage) as mediator,
        pytest.raises(ConfigurationError, match=culprit),
    ):
        SagaRecoveryWorker(mediator, **settings)


def test_a_worker_needs_a_mediator_and_a_storage_that_can_be_searched() -> None:
    """The engine's own port is not enough."""
    with pytest.raises(ConfigurationError, match="mediator must be a SagaMediator"):
        SagaRecoveryWorker(None)  # type: ignore[arg-type]
    narrow = type("Narrow", (SagaStorage,), dict.fromkeys(SagaStorage.__abstractmethods__, lambda *_: None))()
    with (
        mediator_of(saga(step("ship", [])), narrow) as mediator,
        pytest.raises(ConfigurationError, match="Narrow is no SagaStore"),
    ):
        SagaRecoveryWorker(mediator)


def test_starting_says_what_is_looked_for(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing, where nothing is bound."""
    caplog.set_level(logging.INFO)
    with mediator_of(saga(step("ship", [])), storage) as mediator, SagaRecoveryWorker(mediator):
        assert "looks for OrderSaga" in caplog.text
    with bootstrap(punq.Container(), saga_storage=storage) as mediator, SagaRecoveryWorker(mediator):
        assert "none is bound" in caplog.text
