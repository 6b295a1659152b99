"""What operators see of sagas and do with them."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from typing import Any

import pytest

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import ConfigurationError, OutcomeUnknown, SagaActionRefused, SagaConcurrencyError, SagaNotFound
from cqrs_sync.saga import administration as administration_module
from cqrs_sync.saga.administration import SagaAdministration, unfinishable_sagas
from cqrs_sync.saga.leases import new_owner
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.models import SagaWrite
from tests.unit.sagas import HOPELESS, Order, Storage, log_of, mediator_of, saga, step
from tests.unit.test_saga_recovery_worker import abandoned, abandoned_at_once, status_of

WHO: dict[str, str] = {"actor": "jo@shop", "reason": "the bank is back"}


@pytest.fixture
def administration(storage: Storage) -> SagaAdministration:
    return SagaAdministration(storage)


class Bank:
    """Refuses refunds until it is mended."""

    def __init__(self) -> None:
        self.is_mended = False

    def __call__(self, step: Any, context: Any) -> None:
        if not self.is_mended:
            raise OSError("no")


def stuck_saga(effects: list[str], bank: Bank) -> Any:
    """A saga that fails in its last step, and whose second step cannot be compensated."""
    charge = step("charge", effects, None, bank, compensate_retry=HOPELESS)
    return saga(step("reserve", effects), charge, step("ship", effects, OSError("no truck")))


# --- acting ------------------------------------------------------------------------------------------------------


def test_after_the_fix_a_retry_finishes_a_rollback_that_was_stuck(
    effects: list[str], storage: Storage, administration: SagaAdministration, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker goes on with it; who wanted that, and why, is in the log."""
    bank = Bank()
    with mediator_of(stuck_saga(effects, bank), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        worker = SagaRecoveryWorker(mediator)
        administration.retry(saga_id, **WHO)
        assert worker.run_once() == 0
        assert status_of(storage, saga_id) is SagaStatus.COMPENSATION_FAILED, "it is not mended yet"
        bank.is_mended = True
        administration.retry(saga_id, **WHO)
        state = storage.load_saga_state(saga_id)
        assert (state.status, state.current_step, state.attempts) == (SagaStatus.COMPENSATING, "charge", 0)
        assert worker.run_once() == 1
        assert status_of(storage, saga_id) is SagaStatus.FAILED
    assert effects == ["reserve", "charge", "ship", *["-charge"] * 3, "-reserve"]
    entry = next(entry for entry in storage.get_step_history(saga_id) if entry.action == "retry")
    assert (entry.actor, entry.details, entry.step_name) == ("jo@shop", "the bank is back", "")
    assert f"jo@shop: retry of saga {saga_id} (OrderSaga), which was compensation_failed" in caplog.text


def test_a_retry_gives_a_saga_its_attempts_back(
    effects: list[str], storage: Storage, administration: SagaAdministration
) -> None:
    """And makes it due at once, whatever its back-off; it stays in doubt if it was."""

    def unknown(self: Any, context: Order) -> None:
        raise OutcomeUnknown("no answer")

    ship = step("ship", effects, unknown, kind="retriable")
    order_saga = saga(step("charge", effects, kind="pivot"), ship)
    with mediator_of(order_saga, storage, recovery_backoff=Backoff(initial=100, maximum=100)) as mediator:
        saga_id = mediator.run(Order()).saga_id
        storage.expire(saga_id)
        worker = SagaRecoveryWorker(mediator, max_attempts=1)
        worker.run_once()
        assert worker.run_once() == 0
        assert len(effects) == 3
        administration.retry(saga_id, **WHO)
        [state] = storage.get_sagas_for_recovery(new_owner())
        assert (state.attempts, state.in_doubt, state.status) == (1, True, SagaStatus.RUNNING)


def test_a_compensation_can_be_skipped(
    effects: list[str], storage: Storage, administration: SagaAdministration, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator has made the refund himself; the rest is undone."""
    with mediator_of(stuck_saga(effects, Bank()), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        with pytest.raises(SagaActionRefused, match="to be compensated is charge, and not reserve") as caught:
            administration.skip_compensation(saga_id, "reserve", **WHO)
        assert (caught.value.saga_id, caught.value.status) == (saga_id, SagaStatus.COMPENSATION_FAILED)
        administration.skip_compensation(saga_id, "charge", **WHO)
        assert SagaRecoveryWorker(mediator).run_once() == 1
        assert status_of(storage, saga_id) is SagaStatus.FAILED
    assert effects[-1] == "-reserve"
    assert ("charge", "compensate", "skipped") in log_of(storage, saga_id)
    assert "jo@shop: skipped compensation of charge of saga" in caplog.text


def test_when_the_last_compensation_is_skipped_the_saga_ends(
    effects: list[str], storage: Storage, administration: SagaAdministration
) -> None:
    """As rolled back."""
    order_saga = saga(step("charge", effects, None, OSError("no")), step("ship", effects, OSError("no truck")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        administration.skip_compensation(saga_id, "charge", **WHO)
        assert mediator.run(Order(), saga_id).status is SagaStatus.FAILED


@pytest.mark.parametrize("is_stuck", [True, False])
def test_an_abandoned_saga_is_not_touched_any_more(
    effects: list[str], storage: Storage, administration: SagaAdministration, is_stuck: bool
) -> None:
    """It counts as ended; what was done stays done."""
    with mediator_of(stuck_saga(effects, Bank()), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id if is_stuck else abandoned(mediator, storage, writes=2)
        before = list(effects)
        administration.abandon(saga_id, **WHO)
        state = administration.show(saga_id)
        assert (state.status, state.locked_by, state.available_at) == (SagaStatus.ABANDONED, None, None)
        assert state.finished_at is not None
        assert state.history[-1].action == "abandon"
        assert SagaRecoveryWorker(mediator).run_once() == 0
        assert administration.find() == []
    assert effects == before


# --- refusing ----------------------------------------------------------------------------------------------------


def test_a_saga_that_is_run_is_refused(
    effects: list[str], storage: Storage, administration: SagaAdministration
) -> None:
    """Nothing is changed."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        assert saga_id is not None
        before = storage.load_saga_state(saga_id)
        for action in (administration.retry, administration.abandon):
            with pytest.raises(SagaConcurrencyError, match="is run by"):
                action(saga_id, **WHO)
        assert storage.load_saga_state(saga_id) == before
        assert len(list(stream)) == 1


def test_what_does_not_fit_how_far_it_has_come_is_refused(
    effects: list[str], storage: Storage, administration: SagaAdministration
) -> None:
    """Nothing can be done about what has ended, and forward there is nothing to compensate."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        ended, waits = mediator.run(Order()).saga_id, abandoned(mediator, storage, writes=2)
        for action in (administration.retry, administration.abandon):
            with pytest.raises(SagaActionRefused, match="is completed: this is for sagas that are pending or running"):
                action(ended, **WHO)
        before = storage.load_saga_state(waits)
        with pytest.raises(SagaActionRefused, match="is running: this is for sagas that are compensating or comp"):
            administration.skip_compensation(waits, "reserve", **WHO)
        assert storage.load_saga_state(waits) == before
        with pytest.raises(SagaNotFound):
            administration.retry(uuid.uuid4(), **WHO)


@pytest.mark.parametrize("how", ["stuck", "running", "ended"])
def test_a_saga_that_was_run_between_looking_and_claiming_is_refused(
    effects: list[str], storage: Storage, administration: SagaAdministration, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The operator decides on what he has seen; it is given back as it is."""
    bank = Bank()
    with mediator_of(stuck_saga(effects, bank), storage) as mediator:
        saga_id = abandoned(mediator, storage, writes=2)
        claim = storage.claim

        def late(saga_id: uuid.UUID, owner: str) -> Any:
            monkeypatch.setattr(storage, "claim", claim)
            bank.is_mended = how == "ended"
            if how == "running":
                [state] = storage.get_sagas_for_recovery(new_owner())
                mediator.engine.give_back(state)
            else:
                SagaRecoveryWorker(mediator).run_once()
            return storage.claim(saga_id, owner)

        monkeypatch.setattr(storage, "claim", late)
        with pytest.raises(SagaConcurrencyError, match="look at it again"):
            administration.abandon(saga_id, **WHO)
        state = storage.load_saga_state(saga_id)
        statuses = {"stuck": SagaStatus.COMPENSATION_FAILED, "running": SagaStatus.RUNNING, "ended": SagaStatus.FAILED}
        assert state.status is statuses[how]
        assert (state.available_at is not None) == (how == "running")
        assert state.locked_by == ("(in doubt)" if how == "running" else None)


@pytest.mark.parametrize(
    "who",
    [
        {"actor": "", "reason": "why"},
        {"actor": "jo", "reason": " "},
        {"actor": None, "reason": "why"},
        {"actor": "jo", "reason": "a\0b"},
        {"actor": "j" * 256, "reason": "why"},
    ],
)
def test_nobody_acts_without_a_name_and_a_reason(administration: SagaAdministration, who: Any) -> None:
    """It is refused before the saga is looked for."""
    with pytest.raises(ConfigurationError, match=r"actor|reason"):
        administration.retry(uuid.uuid4(), **who)


def test_it_needs_a_storage_that_can_be_searched() -> None:
    with pytest.raises(ConfigurationError, match="storage"):
        SagaAdministration(object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_attempts"):
        SagaAdministration(Storage(), max_attempts=0)


# --- looking -----------------------------------------------------------------------------------------------------


def test_sagas_are_found_by_status_and_name(
    effects: list[str], storage: Storage, administration: SagaAdministration
) -> None:
    """By default what has not ended; stuck ones are those that nobody takes on by himself."""
    with mediator_of(stuck_saga(effects, Bank()), storage) as mediator:
        stuck = mediator.run(Order()).saga_id
        waits = abandoned_at_once(mediator, storage)
    with mediator_of(saga(step("ship", effects), saga_name="other"), storage) as mediator:
        mediator.run(Order())
        exhausted = abandoned_at_once(mediator, storage)
        for _ in range(10):
            storage.get_sagas_for_recovery(new_owner(), names=["other"])
            storage.expire(exhausted)

    def found(**options: Any) -> list[uuid.UUID]:
        return [state.saga_id for state in administration.find(**options)]

    assert found() == [stuck, waits, exhausted]
    assert found(names=["other"]) == [exhausted]
    assert found(statuses=[SagaStatus.COMPLETED, SagaStatus.COMPENSATION_FAILED], limit=1) == [stuck]
    assert found(stuck=True) == [stuck, exhausted]
    assert found(stuck=True, limit=1) == [stuck]
    assert found(stuck=True, names=["other"]) == [exhausted]
    assert found(stuck=True, statuses=[SagaStatus.COMPENSATION_FAILED]) == [stuck]
    assert found(stuck=True, statuses=[SagaStatus.RUNNING]) == [exhausted]
    assert [state.saga_id for state in SagaAdministration(storage, None).find(stuck=True)] == [stuck]

    [state] = storage.get_sagas_for_recovery(new_owner(), names=["OrderSaga"])
    storage.write(dataclasses.replace(SagaWrite.release(state), unfit=True))
    [state] = storage.get_sagas_for_recovery(new_owner(), names=["other"])
    storage.write(dataclasses.replace(SagaWrite.release(state), unfit=True))
    assert found(stuck=True) == [stuck, waits, exhausted], "each of them once"
    assert found(stuck=True, statuses=[SagaStatus.COMPENSATION_FAILED]) == [stuck]
    administration.retry(waits, **WHO)
    assert found(stuck=True) == [stuck, exhausted], "it is to be looked at again"


# --- what today's code cannot finish -----------------------------------------------------------------------------


def test_sagas_that_todays_code_cannot_finish_are_listed_with_the_difference(
    effects: list[str], storage: Storage
) -> None:
    """Those with other steps that fit, or that have ended, are not; nothing is claimed."""
    reserve, charge, ship = (step(name, effects) for name in ("reserve", "charge", "ship"))
    with mediator_of(saga(reserve, charge), storage) as mediator:
        mediator.run(Order())
        changed = abandoned(mediator, storage, writes=2)
        fits = abandoned_at_once(mediator, storage)
    with mediator_of(saga(reserve, saga_name="gone"), storage) as mediator:
        unknown = abandoned_at_once(mediator, storage)
    before = storage.find()
    with mediator_of(saga(ship), storage) as mediator:
        found = unfinishable_sagas(storage, mediator.saga_map)
        assert [each.state.saga_id for each in found] == [changed, fits, unknown]
        assert "'reserve > charge', and now 'ship'; reserve was done" in found[0].difference
        assert "reserve may have run, and ship is next now" in found[1].difference
        assert found[2].difference == "no saga named 'gone' is bound"
        assert [each.state.saga_id for each in unfinishable_sagas(storage, mediator.saga_map, ["gone"])] == [unknown]
    with mediator_of(saga(reserve, charge, ship), storage) as mediator:
        assert [each.state.saga_id for each in unfinishable_sagas(storage, mediator.saga_map)] == [unknown]
    with mediator_of(saga(reserve, charge), storage) as mediator:
        assert unfinishable_sagas(storage, mediator.saga_map, limit=1) == []
    assert storage.find() == before


def test_what_newer_code_has_done_counts_when_it_is_taken_back(effects: list[str], storage: Storage) -> None:
    """The saga was begun with the steps of today, and the newer code has done another one meanwhile."""
    reserve, check, ship = (step(name, effects) for name in ("reserve", "check", "ship"))
    with mediator_of(saga(reserve, ship), storage) as old, mediator_of(saga(reserve, check, ship), storage) as new:
        saga_id = uuid.uuid4()
        for mediator, done in ((old, reserve), (new, check)):
            stream = mediator.stream(Order(), saga_id)
            assert next(stream).step_type is done
            stream.close()
        [found] = unfinishable_sagas(storage, old.saga_map)
        assert found.state.saga_id == saga_id
        assert "check was done and is no step of it now" in found.difference
        assert unfinishable_sagas(storage, new.saga_map) == []


def test_all_sagas_are_looked_at_a_page_at_a_time(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, unless a limit is asked for."""
    monkeypatch.setattr(administration_module, "PAGE", 3)
    with mediator_of(saga(step("reserve", effects)), storage) as mediator:
        ids = [abandoned_at_once(mediator, storage) for _ in range(7)]
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        found = unfinishable_sagas(storage, mediator.saga_map)
        assert [each.state.saga_id for each in found] == ids
        assert len(unfinishable_sagas(storage, mediator.saga_map, limit=4)) == 4


def test_a_context_that_cannot_be_read_is_a_difference_too(effects: list[str], storage: Storage) -> None:
    """Its class has got a field without a default, say."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned_at_once(mediator, storage)
        vars(storage._sagas[saga_id])["context"] = '{"order_id": {}}'
        [found] = unfinishable_sagas(storage, mediator.saga_map)
        assert "the stored context does not fit Order: order_id" in found.difference


@pytest.mark.parametrize("purged", [True, False])
def test_a_saga_that_ends_while_it_is_looked_at_is_no_difference(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch, purged: bool
) -> None:
    """Nor is one that is purged."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        saga_id = abandoned_at_once(mediator, storage)
        load = storage.load_saga_state

        def ended(saga_id: uuid.UUID) -> Any:
            monkeypatch.setattr(storage, "load_saga_state", load)
            mediator.run(Order(), saga_id)
            if purged:
                storage._forget(saga_id)
            return load(saga_id)

        with mediator_of(saga(step("ship", effects)), storage) as new:
            monkeypatch.setattr(storage, "load_saga_state", ended)
            assert unfinishable_sagas(storage, new.saga_map) == []
        assert not purged or saga_id not in storage._sagas


def test_a_stuck_saga_is_looked_at_as_one_that_is_rolled_back(effects: list[str], storage: Storage) -> None:
    """A retry needs the steps that it has done."""
    with mediator_of(stuck_saga(effects, Bank()), storage) as mediator:
        mediator.run(Order())
    with mediator_of(saga(step("reserve", effects)), storage) as mediator:
        [found] = unfinishable_sagas(storage, mediator.saga_map)
        assert "charge was done and is no step of it now" in found.difference


def test_what_operators_do_is_in_the_log_of_the_program(
    effects: list[str], storage: Storage, administration: SagaAdministration, caplog: pytest.LogCaptureFixture
) -> None:
    """As a warning, with the saga's id."""
    with mediator_of(saga(step("ship", effects)), storage) as mediator:
        saga_id = abandoned_at_once(mediator, storage)
        administration.abandon(saga_id, **WHO)
    [record] = [record for record in caplog.records if record.name.endswith("administration")]
    assert (record.levelno, vars(record)["saga_id"], vars(record)["actor"]) == (
        logging.WARNING,
        str(saga_id),
        "jo@shop",
    )
