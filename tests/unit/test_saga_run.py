"""One saga while it runs: forward, in groups, back, and given away."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from contextlib import closing
from typing import Any

import punq
import pytest

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import (
    ConfigurationError,
    MediatorClosed,
    OutcomeUnknown,
    SagaConcurrencyError,
    SagaRolledBack,
    SagaStorageUnavailable,
)
from cqrs_sync.saga import leases
from cqrs_sync.saga.administration import SagaAdministration
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.recovery import recover_saga
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from tests.unit.sagas import AT_ONCE, Died, Order, Storage, log_of, mediator_of, saga, step

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to no wait for a storage that is away."""
    monkeypatch.setattr("cqrs_sync.saga.record.PATIENCE", Backoff(initial=0.001, maximum=0.001))


def dies_in(mediator: Any, storage: Storage, *, before: int = 0, after: int = 0) -> uuid.UUID:
    """Run a saga in a process that dies before or after a write."""
    storage.die_before, storage.die_after = before, after
    saga_id = uuid.uuid4()
    with pytest.raises(Died):
        mediator.run(Order(), saga_id)
    storage.restart()
    return saga_id


class Opened(Exception):
    """A circuit breaker's refusal."""


class Breaker:
    """A circuit breaker that is open, or lets everything through."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self.calls: list[Any] = []

    def call(self, identifier: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(identifier)
        if self.is_open:
            raise Opened
        return func(*args, **kwargs)

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return isinstance(exc, Opened)


# --- forward ---------------------------------------------------------------------------------------------------


def test_steps_run_in_order_and_each_is_one_commit(effects: list[str], storage: Storage) -> None:
    """The last of which also ends the saga."""
    order_saga = saga(step("reserve", effects), step("charge", effects), step("ship", effects))
    context = Order()
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(context)
    assert outcome.completed
    assert outcome.context is context
    assert outcome.raise_for_status() is outcome
    assert [result.response for result in outcome.results] == effects == ["reserve", "charge", "ship"]
    assert {result.saga_id for result in outcome.results} == {outcome.saga_id}
    assert storage.commits == 4
    assert [write.status for write in storage.writes] == [SagaStatus.RUNNING] * 2 + [SagaStatus.COMPLETED]
    assert [write.current_step for write in storage.writes] == ["charge", "ship", None]


def test_a_step_is_committed_before_its_result_is_handed_out(effects: list[str], storage: Storage) -> None:
    """And nothing runs before the first result is asked for."""
    order_saga = saga(step("reserve", effects), step("ship", effects))
    with mediator_of(order_saga, storage) as mediator, closing(mediator.stream(Order())) as stream:
        assert storage.find() == []
        result = next(stream)
        assert result.saga_id is not None
        assert log_of(storage, result.saga_id) == [("reserve", "act", "completed")]
        assert effects == ["reserve"]


def test_a_step_may_return_its_response_alone(storage: Storage) -> None:
    """Or nothing; it has had its effect all the same."""

    class Answer(SagaStepHandler[Order, int]):
        def act(self, context: Order) -> Any:
            return 7

        def compensate(self, context: Order) -> None: ...

    with mediator_of(saga(Answer), storage) as mediator:
        [result] = mediator.run(Order()).results
    assert result == SagaStepResult(7, Answer, saga_id=result.saga_id)


def test_a_step_may_return_a_result_of_its_own_class(storage: Storage) -> None:
    """With whatever it has beside."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class Charged(SagaStepResult[Order, str]):
        receipt: str = ""

    class Charge(SagaStepHandler[Order, str]):
        def act(self, context: Order) -> Charged:
            return Charged("charged", Charge, receipt="r1")

        def compensate(self, context: Order) -> None: ...

    saga_id = uuid.uuid4()
    with mediator_of(saga(Charge), storage) as mediator:
        [result] = mediator.run(Order(), saga_id).results
    assert isinstance(result, Charged)
    assert (result.receipt, result.saga_id) == ("r1", saga_id)


def test_a_saga_without_steps_is_completed(storage: Storage) -> None:
    """With two commits."""
    with mediator_of(saga(), storage) as mediator:
        assert mediator.run(Order()).completed
    assert storage.commits == 2


def test_a_completed_saga_yields_nothing_when_it_is_run_again(effects: list[str], storage: Storage) -> None:
    """The same id is the same saga."""
    with mediator_of(saga(step("reserve", effects)), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        again = mediator.run(Order(), saga_id)
        assert (again.completed, again.results, again.error) == (True, (), None)
        assert list(mediator.stream(Order(), saga_id)) == []
    assert effects == ["reserve"]


def test_a_step_knows_its_call(effects: list[str], storage: Storage) -> None:
    """Its saga, its name, which attempt it is, and the owner's token."""
    seen: list[Any] = []

    def act(self: Any, context: Order) -> None:
        seen.append(self.execution)
        assert self.saga_id == self.execution.saga_id
        if len(seen) == 1:
            raise ValueError

    charge = step("charge", effects, act, retry=Retry(attempts=2, delay=0))
    with mediator_of(saga(charge), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
    first, second = seen
    assert (first.saga_id, first.saga_name, first.step_name, first.action) == (saga_id, "OrderSaga", "charge", "act")
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.owner == second.owner == storage.get_step_history(saga_id)[0].actor
    assert first.idempotency_key == second.idempotency_key
    with pytest.raises(ConfigurationError, match="no saga calls charge in this context"):
        charge().execution  # noqa: B018


# --- back ------------------------------------------------------------------------------------------------------


def test_a_failure_is_compensated_in_reverse_order_and_raised(effects: list[str], storage: Storage) -> None:
    """The step that failed is not: it says that it had no effect."""
    error = ValueError("no truck")
    order_saga = saga(step("reserve", effects), step("charge", effects), step("ship", effects, error))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(ValueError) as caught:
        for _ in mediator.stream(Order(), saga_id):
            pass
    assert caught.value is error
    assert effects == ["reserve", "charge", "ship", "-charge", "-reserve"]
    state = storage.load_saga_state(saga_id)
    assert (state.status, state.error) == (SagaStatus.FAILED, "ValueError: no truck")
    assert [write.status for write in storage.writes[2:]] == [
        SagaStatus.COMPENSATING,
        SagaStatus.COMPENSATING,
        SagaStatus.FAILED,
    ]
    assert [write.current_step for write in storage.writes[2:]] == ["charge", "reserve", None]


def test_a_first_step_that_fails_ends_the_saga_at_once(effects: list[str], storage: Storage) -> None:
    """There is nothing to compensate."""
    with mediator_of(saga(step("reserve", effects, ValueError("none left"))), storage) as mediator:
        outcome = mediator.run(Order())
    assert outcome.status is SagaStatus.FAILED
    assert storage.commits == 2
    with pytest.raises(ValueError, match="none left"):
        outcome.raise_for_status()


def test_compensations_are_retried(effects: list[str], storage: Storage) -> None:
    """As often as the mediator says, or the step itself; a new handler each time."""

    def fail_once(self: Any, context: Order) -> None:
        if effects.count("-reserve") == 1:
            raise ConnectionError

    order_saga = saga(
        step("reserve", effects, compensate=fail_once, compensate_retry=None), step("ship", effects, ValueError("no"))
    )
    with mediator_of(order_saga, storage, compensation_retry_count=2) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["reserve", "ship", "-reserve", "-reserve"]


def test_the_step_s_error_says_that_the_rollback_is_stuck(effects: list[str], storage: Storage) -> None:
    """In a note."""
    order_saga = saga(
        step("reserve", effects, compensate=ConnectionError("away")), step("ship", effects, ValueError("no truck"))
    )
    with mediator_of(order_saga, storage) as mediator, pytest.raises(ValueError) as caught:
        for _ in mediator.stream(Order()):
            pass
    assert "compensate of reserve failed" in caught.value.__notes__[0]


def test_what_may_have_had_its_effect_is_compensated_too(effects: list[str], storage: Storage) -> None:
    """By an error that the step declares, or raises for that."""
    for error, attributes in ((TimeoutError("late"), {"unknown_outcomes": (TimeoutError,)}), (OutcomeUnknown(), {})):
        effects.clear()
        charge = step("charge", effects, error, **attributes)
        with mediator_of(saga(step("reserve", effects), charge), storage) as mediator:
            outcome = mediator.run(Order())
        assert effects == ["reserve", "charge", "-charge", "-reserve"]
        assert outcome.status is SagaStatus.FAILED
        assert ("charge", "act", "unknown") in log_of(storage, outcome.saga_id)


def test_an_unknown_outcome_is_not_forgotten_over_retries(effects: list[str], storage: Storage) -> None:
    """The first attempt may have charged, though the second says that it did not."""

    def act(self: Any, context: Order) -> None:
        raise TimeoutError if effects.count("charge") == 1 else ValueError

    charge = step("charge", effects, act, unknown_outcomes=(TimeoutError,), retry=AT_ONCE)
    with mediator_of(saga(charge), storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["charge"] * 3 + ["-charge"]


def test_only_errors_that_call_for_it_are_retried(effects: list[str], storage: Storage) -> None:
    """Others fail the step at once."""
    charge = step("charge", effects, ValueError("no card"), retry=Retry(3, 0, exceptions=(TimeoutError,)))
    with mediator_of(saga(charge), storage) as mediator:
        mediator.run(Order())
    assert effects == ["charge"]


def test_a_context_that_cannot_be_stored_does_not_stop_a_rollback(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """What was stored last stays."""

    def spoil(self: Any, context: Order) -> None:
        context.note = object()
        raise OutcomeUnknown

    with mediator_of(saga(step("reserve", effects), step("charge", effects, spoil)), storage) as mediator:
        outcome = mediator.run(Order())
    assert outcome.status is SagaStatus.FAILED
    assert "rolled back with the context that was stored last" in caplog.text


def test_a_long_or_strange_error_is_stored_in_ascii(effects: list[str], storage: Storage) -> None:
    """It must not be what keeps the failure from being stored."""
    with mediator_of(saga(step("reserve", effects, ValueError("é\0" + "x" * 5000))), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
    error = storage.load_saga_state(saga_id).error
    assert error is not None
    assert error.startswith("ValueError: \\xe9xxx")
    assert len(error) < 2010


# --- fallbacks -------------------------------------------------------------------------------------------------


def test_a_fallback_runs_on_the_context_as_it_was(effects: list[str], storage: Storage) -> None:
    """And is what is compensated."""

    def spoil(self: Any, context: Order) -> None:
        context.note = "spoiled"
        raise ConnectionError

    seen: list[Any] = []

    def look(self: Any, context: Order) -> None:
        seen.append((context.note, dict(context.numbers)))

    fallback = Fallback(step("card", effects, spoil), step("invoice", effects, look), ConnectionError)  # type: ignore[arg-type]
    context = Order(note="clean")
    with mediator_of(saga(fallback, step("ship", effects, ValueError("no"))), storage) as mediator:
        outcome = mediator.run(context)
    assert outcome.context is context
    assert seen == [("clean", {"invoice": 0})]
    assert effects == ["card", "invoice", "ship", "-invoice"]
    assert log_of(storage, outcome.saga_id)[:2] == [("card", "act", "failed"), ("invoice", "act", "started")]


def test_a_fallback_is_for_the_errors_that_it_names(effects: list[str], storage: Storage) -> None:
    """Others fail the step."""
    fallback = Fallback(step("card", effects, ValueError("no")), step("invoice", effects), (ConnectionError,))
    with mediator_of(saga(fallback), storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["card"]


def test_a_primary_that_succeeds_needs_no_fallback(effects: list[str], storage: Storage) -> None:
    """Nor a further commit."""
    breaker = Breaker(is_open=False)
    card = step("card", effects)
    with mediator_of(saga(Fallback(card, step("invoice", effects), (), breaker)), storage) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["card"]
    assert breaker.calls == [card]
    assert storage.commits == 2


def test_an_open_circuit_goes_straight_to_the_fallback(effects: list[str], storage: Storage) -> None:
    """Without an attempt, and without a retry."""
    card = step("card", effects, retry=AT_ONCE)
    breaker = Breaker(is_open=True)
    fallback = Fallback(card, step("invoice", effects), (ConnectionError,), breaker)
    with mediator_of(saga(fallback), storage) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["invoice"]
    assert breaker.calls == [card]


def test_no_fallback_takes_over_from_what_may_have_had_its_effect(effects: list[str], storage: Storage) -> None:
    """The customer would pay twice."""
    card = step("card", effects, TimeoutError(), unknown_outcomes=(TimeoutError,))
    with mediator_of(saga(Fallback(card, step("invoice", effects))), storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["card", "-card"]


def test_no_fallback_takes_over_from_a_step_that_a_crash_has_left_in_doubt(
    effects: list[str], storage: Storage
) -> None:
    """It may have paid before its process died, whatever it says the second time."""

    def charge(self: Any, context: Order) -> None:
        error = Died() if effects.count("card") == 1 else ConnectionError("away now")
        raise error

    saga_id = uuid.uuid4()
    with mediator_of(saga(Fallback(step("card", effects, charge), step("invoice", effects))), storage) as mediator:
        with pytest.raises(Died):
            mediator.run(Order(), saga_id)
        storage.restart()
        assert mediator.recover(saga_id).status is SagaStatus.FAILED
    assert effects == ["card", "card", "-card"]


def test_a_breaker_that_fails_behind_the_step_changes_nothing(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is done and recorded: its fallback would do it again."""

    class Flaky:
        def call(self, step_type: Any, function: Any, *arguments: Any) -> Any:
            function(*arguments)
            raise ConnectionError("nowhere to count it")

        def is_circuit_breaker_error(self, error: Exception) -> bool:
            return False

    card, invoice = step("card", effects), step("invoice", effects)
    order_saga = saga(Fallback(card, invoice, circuit_breaker=Flaky()), step("ship", effects))
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(Order())
    assert outcome.completed
    assert effects == ["card", "ship"]
    assert [result.response for result in outcome.results] == ["card", "ship"]
    assert "its circuit breaker failed" in caplog.text


def test_a_saga_that_died_in_its_fallback_goes_on_with_it(effects: list[str], storage: Storage) -> None:
    """To begin with the first step again could leave both effects."""

    def fail_once(self: Any, context: Order) -> None:
        if effects.count("card") == 1:
            raise ConnectionError

    order_saga = saga(Fallback(step("card", effects, fail_once), step("invoice", effects)), step("ship", effects))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = dies_in(mediator, storage, before=3)
        assert storage.load_saga_state(saga_id).current_step == "invoice"
        assert mediator.recover(saga_id).completed
    assert effects == ["card", "invoice", "invoice", "ship"]


def test_a_fallback_in_doubt_that_fails_is_compensated(effects: list[str], storage: Storage) -> None:
    """As any step in doubt; its primary is not, which has failed for certain."""

    def fail_the_second_time(self: Any, context: Order) -> None:
        if effects.count("invoice") == 2:
            raise ValueError

    fallback = Fallback(step("card", effects, ConnectionError()), step("invoice", effects, fail_the_second_time))
    with mediator_of(saga(fallback), storage) as mediator:
        saga_id = dies_in(mediator, storage, before=3)
        assert mediator.recover(saga_id).status is SagaStatus.FAILED
    assert effects == ["card", "invoice", "invoice", "-invoice"]


# --- pivots ----------------------------------------------------------------------------------------------------


def test_past_the_pivot_a_failure_is_tried_again_by_recovery(effects: list[str], storage: Storage) -> None:
    """Nothing is compensated; the saga waits, longer each time, and completes at last."""

    def fail_twice(self: Any, context: Order) -> None:
        if effects.count("ship") < 3:
            raise ConnectionError("no truck")

    order_saga = saga(
        step("reserve", effects),
        step("charge", effects, kind="pivot"),
        step("ship", effects, fail_twice, kind="retriable"),
    )
    backoff = Backoff(initial=100, factor=2, maximum=1000, jitter=0)
    with mediator_of(order_saga, storage, recovery_backoff=backoff) as mediator:
        outcome = mediator.run(Order())
        assert (outcome.status, type(outcome.error)) == (SagaStatus.RUNNING, ConnectionError)
        state = storage.load_saga_state(outcome.saga_id)
        assert (state.status, state.locked_by, state.current_step) == (SagaStatus.RUNNING, None, "ship")
        assert state.error == "ConnectionError: no truck"
        assert storage.writes[-1].available_in == 100
        storage.expire(outcome.saga_id)
        [claimed] = storage.get_sagas_for_recovery("r1")
        assert claimed.attempts == 1
        mediator.engine.give_back(claimed)
        assert mediator.recover(outcome.saga_id).status is SagaStatus.RUNNING
        assert storage.writes[-1].available_in == 200
        assert mediator.recover(outcome.saga_id).completed
    assert effects == ["reserve", "charge", "ship", "ship", "ship"]


def mail_or_sms(effects: list[str], mail: Any, sms: Any = None, **attributes: Any) -> Any:
    """A saga that tells the customer behind its pivot."""
    first = step("mail", effects, mail, kind="retriable", **attributes)
    second = step("sms", effects, sms, kind="retriable", **attributes)
    return saga(step("charge", effects, kind="pivot"), Fallback(first, second, (ConnectionError,)))


def test_what_only_puts_a_saga_off_does_not_call_for_the_fallback(effects: list[str], storage: Storage) -> None:
    """Recovery tries the first step again, and falls back when an error calls for it."""

    def fail(self: Any, context: Order) -> None:
        raise ConnectionError if effects.count("mail") == 3 else ValueError

    with mediator_of(mail_or_sms(effects, fail), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        assert mediator.recover(saga_id).status is SagaStatus.RUNNING
        assert effects == ["charge", "mail", "mail"]
        assert mediator.recover(saga_id).completed
    assert effects == ["charge", "mail", "mail", "mail", "sms"]


def test_a_fallback_that_is_added_to_a_step_that_has_failed_is_not_taken_directly(
    effects: list[str], storage: Storage
) -> None:
    """The new code decides by the error that it sees itself."""
    mail = step("mail", effects, ConnectionError(), kind="retriable")
    with mediator_of(saga(step("charge", effects, kind="pivot"), mail), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
    with mediator_of(mail_or_sms(effects, None), storage) as mediator:
        assert mediator.recover(saga_id).completed
    assert effects == ["charge", "mail", "mail"]


def test_past_the_pivot_a_fallback_that_has_failed_leaves_the_turn_to_the_first_step(
    effects: list[str], storage: Storage
) -> None:
    """Which may be back hours later; only a fallback that may have had its effect is run again."""
    with mediator_of(mail_or_sms(effects, ConnectionError(), ValueError("no")), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        mediator.recover(saga_id)
        assert effects == ["charge", "mail", "sms", "mail", "sms"]
        effects.clear()
    unknown = mail_or_sms(effects, ConnectionError(), TimeoutError("late"), unknown_outcomes=(TimeoutError,))
    with mediator_of(unknown, storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        mediator.recover(saga_id)
        assert effects == ["charge", "mail", "sms", "sms"]


def test_before_the_pivot_a_failure_is_compensated(effects: list[str], storage: Storage) -> None:
    """The pivot's own failure too."""
    order_saga = saga(step("reserve", effects), step("charge", effects, ValueError("no"), kind="pivot"))
    with mediator_of(order_saga, storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["reserve", "charge", "-reserve"]


def test_an_exception_in_the_block_does_not_roll_back_past_the_pivot(effects: list[str], storage: Storage) -> None:
    """What is shipped is not refunded: recovery goes on."""
    order_saga = saga(
        step("charge", effects), step("ship", effects, kind="pivot"), step("mail", effects, kind="retriable")
    )

    def ship() -> Any:
        with order_saga.transaction(Order(), punq.Container(), storage) as running:
            for result in running:
                if result.response == "ship":
                    raise ValueError("mine")
        return running  # pragma: no cover

    with pytest.raises(ValueError, match="mine"):
        ship()
    [state] = storage.get_sagas_for_recovery("r1")
    assert (state.status, state.in_doubt) == (SagaStatus.RUNNING, False)
    assert effects == ["charge", "ship"]


@pytest.mark.parametrize("in_fallback", [False, True])
@pytest.mark.parametrize("is_declared", [False, True])
def test_a_pivot_that_may_be_done_is_not_rolled_back(
    effects: list[str], storage: Storage, in_fallback: bool, is_declared: bool
) -> None:
    """By a timeout, or a crash in it: recovery calls it until it answers."""

    def ship(self: Any, context: Order) -> None:
        if effects.count("ship") == 1:
            raise TimeoutError if is_declared else Died
        if effects.count("ship") == 2:
            raise ConnectionError("away now")

    pivot: Any = step("ship", effects, ship, kind="pivot", unknown_outcomes=(TimeoutError,))
    pivot = Fallback(pivot, step("pick up", effects, kind="pivot")) if in_fallback else pivot
    saga_id = uuid.uuid4()
    with mediator_of(saga(step("charge", effects), pivot), storage) as mediator:
        if is_declared:
            assert mediator.run(Order(), saga_id).status is SagaStatus.RUNNING
        else:
            with pytest.raises(Died):
                mediator.run(Order(), saga_id)
            storage.restart()
        assert storage.load_saga_state(saga_id).status is SagaStatus.RUNNING
        assert mediator.recover(saga_id).status is SagaStatus.RUNNING
        assert mediator.recover(saga_id).completed
    assert effects == ["charge", "ship", "ship", "ship"]


def test_what_never_ran_is_not_in_doubt(effects: list[str], storage: Storage) -> None:
    """A crash in a transactional pivot leaves none, and its fallback has just said that it has failed: roll back."""

    def act(self: Any, context: Order) -> None:
        raise Died if effects.count("a") == 1 else ValueError("no")

    first = step("a", effects, act, base=TransactionalSagaStep[Order, str], kind="pivot")
    order_saga = saga(step("r", effects), Fallback(first, step("b", effects, ValueError("no"), kind="pivot")))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator:
        with pytest.raises(Died):
            mediator.run(Order(), saga_id)
        storage.restart()
        assert mediator.recover(saga_id).status is SagaStatus.FAILED
    assert effects == ["r", "a", "a", "b", "-r"]


def test_a_fallback_that_takes_over_again_and_again_is_no_progress(effects: list[str], storage: Storage) -> None:
    """Behind the pivot, the saga waits longer each time, and is stuck at last."""
    backoff = Backoff(initial=100, factor=2, maximum=1000, jitter=0)
    both_fail = mail_or_sms(effects, ConnectionError(), ValueError("no"))
    with mediator_of(both_fail, storage, recovery_backoff=backoff) as mediator:
        saga_id = mediator.run(Order()).saga_id
        for attempt, wait in enumerate((200, 400, 800), start=1):
            storage.expire(saga_id)
            [state] = storage.get_sagas_for_recovery("r1")
            assert state.attempts == attempt
            mediator.engine.give_back(state)
            mediator.recover(saga_id)
            assert storage.writes[-1].available_in == wait


# --- groups ----------------------------------------------------------------------------------------------------


def test_steps_of_a_group_run_at_the_same_time(effects: list[str], storage: Storage) -> None:
    """On the pool; each is one commit, and their changes come together."""
    meet = threading.Barrier(2)

    def act(name: str) -> Any:
        def call(self: Any, context: Order) -> None:
            meet.wait(WAIT)
            setattr(context, "note" if name == "a" else "order_id", name)

        return call

    members = [step(name, effects, act(name)) for name in "ab"]
    context = Order(order_id="o1")
    with mediator_of(saga(Parallel(*members), step("c", effects)), storage) as mediator:
        outcome = mediator.run(context)
    assert outcome.completed
    assert outcome.context is context
    assert (context.note, context.order_id) == ("a", "b")
    assert sorted(effects[:2]) == ["a", "b"]
    assert effects[2:] == ["c"]
    assert sorted(result.response for result in outcome.results[:2]) == ["a", "b"]
    assert storage.commits == 4
    assert [write.current_step for write in storage.writes] == ["a & b", "c", None]


def test_a_group_is_compensated_in_reverse_of_its_completion(effects: list[str], storage: Storage) -> None:
    """Not in the order in which it is declared."""
    first = threading.Event()

    def wait(self: Any, context: Order) -> None:
        assert first.wait(WAIT)
        time.sleep(0)

    done: list[str] = []

    def act(self: Any, context: Order) -> None:
        first.set()

    order_saga = saga(
        Parallel(step("late", effects, wait), step("early", effects, act)), step("ship", effects, ValueError("no"))
    )
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(Order())
    done = [name for name, action, _ in log_of(storage, outcome.saga_id) if action == "act"][:2]
    undone = [name for name, action, _ in log_of(storage, outcome.saga_id) if action == "compensate"]
    assert undone == done[::-1]
    assert outcome.status is SagaStatus.FAILED


def test_a_member_that_fails_lets_the_others_finish(effects: list[str], storage: Storage) -> None:
    """Then all of them are compensated."""
    members = [step("a", effects), step("b", effects, ValueError("b")), step("c", effects, TimeoutError("c"))]
    with mediator_of(saga(step("first", effects), Parallel(*members)), storage) as mediator:
        outcome = mediator.run(Order())
    assert isinstance(outcome.error, ValueError | TimeoutError)
    assert outcome.status is SagaStatus.FAILED
    assert sorted(effects[1:4]) == ["a", "b", "c"]
    assert effects[4:] == ["-a", "-first"]
    assert {("b", "act", "failed"), ("c", "act", "failed")} <= set(log_of(storage, outcome.saga_id))


def test_a_group_that_was_interrupted_goes_on_with_what_is_left(effects: list[str], storage: Storage) -> None:
    """What was recorded is not run again."""
    group = Parallel(step("a", effects), step("b", effects))
    with mediator_of(saga(group, step("c", effects)), storage, max_parallel_steps=1) as mediator:
        saga_id = dies_in(mediator, storage, after=2)
        done = {name for name, _, _ in log_of(storage, saga_id)}
        assert len(done) == 1
        effects.clear()
        assert mediator.recover(saga_id).completed
    assert effects == [*({"a", "b"} - done), "c"]


def test_fallbacks_work_in_groups(effects: list[str], storage: Storage) -> None:
    """The group keeps its label while one of its members falls back."""
    group = Parallel(Fallback(step("card", effects, ValueError()), step("invoice", effects)), step("b", effects))
    with mediator_of(saga(group), storage, max_parallel_steps=1) as mediator:
        outcome = mediator.run(Order())
    assert outcome.completed
    assert sorted(effects) == ["b", "card", "invoice"]
    assert {write.current_step for write in storage.writes} <= {"card & b", "invoice", None}


# --- giving away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_what_is_thrown_into_a_stream_hands_the_saga_over(
    effects: list[str], storage: Storage, error: BaseException
) -> None:
    """Nothing is compensated, nothing is in doubt."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        saga_id = uuid.uuid4()
        stream = mediator.stream(Order(), saga_id)
        next(stream)
        with pytest.raises(type(error)):
            stream.throw(error)
        [state] = storage.get_sagas_for_recovery("r1")
        assert (state.saga_id, state.in_doubt) == (saga_id, False)
    assert effects == ["reserve"]


def test_a_consumer_that_stops_behind_the_last_step_changes_nothing(effects: list[str], storage: Storage) -> None:
    """The saga is completed."""
    with mediator_of(saga(step("reserve", effects)), storage) as mediator:
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        stream.close()
    assert saga_id is not None
    assert storage.load_saga_state(saga_id).status is SagaStatus.COMPLETED
    assert storage.commits == 2


def test_an_interrupted_step_is_handed_over_in_doubt(effects: list[str], storage: Storage) -> None:
    """Ctrl-C in the middle of it: recovery can begin at once, and runs it again."""

    def interrupt(self: Any, context: Order) -> None:
        if effects.count("ship") == 1:
            raise KeyboardInterrupt

    with mediator_of(saga(step("reserve", effects), step("ship", effects, interrupt)), storage) as mediator:
        saga_id = uuid.uuid4()
        with pytest.raises(KeyboardInterrupt):
            mediator.run(Order(), saga_id)
        [state] = storage.get_sagas_for_recovery("r1")
        assert state.in_doubt
        mediator.engine.give_back(state)
        stream = mediator.stream(Order(), saga_id)
        next(stream)
        assert list(stream) == []
    assert effects == ["reserve", "ship", "ship"]


def test_a_doubt_stays_until_the_step_has_run(effects: list[str], storage: Storage) -> None:
    """Also when whoever took the saga on is interrupted in his turn."""

    def interrupt(self: Any, context: Order) -> None:
        if effects.count("ship") <= 2:
            raise KeyboardInterrupt

    with mediator_of(saga(step("ship", effects, interrupt)), storage) as mediator:
        saga_id = uuid.uuid4()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                mediator.run(Order(), saga_id)
            assert storage.load_saga_state(saga_id).locked_by is not None
        assert mediator.run(Order(), saga_id).completed


def test_steps_of_a_group_that_was_given_back_do_not_begin(effects: list[str], storage: Storage) -> None:
    """An interrupt while the caller waits for the pool may leave some in its queue."""
    jobs: list[Any] = []

    class Interrupted:
        def run(self, take: Any, items: Any) -> None:
            jobs.extend((take, item) for item in items)
            raise KeyboardInterrupt

        def close(self, timeout: float) -> None: ...

    with mediator_of(saga(Parallel(step("a", effects), step("b", effects))), storage) as mediator:
        mediator.engine._pool = Interrupted()  # type: ignore[assignment]
        saga_id = uuid.uuid4()
        with pytest.raises(KeyboardInterrupt):
            mediator.run(Order(), saga_id)
        before = storage.load_saga_state(saga_id)
        assert before.locked_by is not None  # in doubt
        for take, item in jobs:
            take(item)
    assert effects == []
    assert storage.load_saga_state(saga_id) == before


def test_closing_the_mediator_ends_the_waits_between_attempts(effects: list[str], storage: Storage) -> None:
    """The saga is handed over, and recovery goes on with it."""
    waiting = threading.Event()

    def fail(self: Any, context: Order) -> None:
        waiting.set()
        raise ConnectionError

    charge = step("charge", effects, fail, retry=Retry(attempts=2, delay=3600))
    errors: list[Exception] = []

    def run() -> None:
        try:
            mediator.run(Order())
        except MediatorClosed as error:
            errors.append(error)

    with mediator_of(saga(charge), storage) as mediator:
        runner = threading.Thread(target=run)
        runner.start()
        assert waiting.wait(WAIT)
        mediator.close()
        runner.join(WAIT)
        with pytest.raises(MediatorClosed):
            mediator.stream(Order())
    assert len(errors) == 1
    [state] = storage.get_sagas_for_recovery("r1")
    assert not state.in_doubt  # the attempt before has failed for certain
    assert effects == ["charge"]


@pytest.mark.parametrize("in_group", [True, False])
def test_closing_between_attempts_leaves_a_doubt_where_the_last_one_has(
    effects: list[str], storage: Storage, in_group: bool
) -> None:
    """In a group, too."""
    ship = step("ship", effects, TimeoutError("late"), unknown_outcomes=(TimeoutError,), retry=AT_ONCE)
    with mediator_of(saga(Parallel(ship, step("b", effects)) if in_group else ship), storage) as mediator:
        mediator.engine._stopping.set()
        saga_id = uuid.uuid4()
        with pytest.raises(MediatorClosed):
            mediator.run(Order(), saga_id)
    assert storage.load_saga_state(saga_id).locked_by == "(in doubt)"


def test_a_child_that_a_step_has_forked_writes_nothing(effects: list[str], storage: Storage) -> None:
    """It returns from the step as its parent does; the saga is the parent's."""

    def fork(self: Any, context: Order) -> None:
        for lease in leases._leases.held():
            lease._process = -1  # as it is there

    saga_id = uuid.uuid4()
    with (
        mediator_of(saga(step("a", effects, fork), step("b", effects)), storage) as mediator,
        pytest.raises(SagaConcurrencyError, match="forked from"),
    ):
        mediator.run(Order(), saga_id)
    assert effects == ["a"]
    assert storage.writes == []


def test_a_step_of_a_group_that_ends_its_thread_is_in_doubt(effects: list[str], storage: Storage) -> None:
    """Whatever the others raise."""

    def leave(self: Any, context: Order) -> None:
        raise SystemExit

    ship = step("ship", effects, ConnectionError(), retry=AT_ONCE)
    with mediator_of(saga(Parallel(ship, step("b", effects, leave))), storage, max_parallel_steps=1) as mediator:
        mediator.engine._stopping.set()
        saga_id = uuid.uuid4()
        with pytest.raises((MediatorClosed, SystemExit)):
            mediator.run(Order(), saga_id)
    assert storage.load_saga_state(saga_id).locked_by == "(in doubt)"


def test_a_saga_that_cannot_be_handed_over_is_left_to_its_lease(
    effects: list[str], storage: Storage, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The storage may be away at that moment."""
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator:
        stream = mediator.stream(Order())
        next(stream)
        storage.outages = 10**9
        storage.lease = 0.0
        for lease in leases._leases.held():
            lease.ends = 0.0
        stream.close()
        storage.outages = 0
    assert "could not be handed over; its lease ends" in caplog.text


# --- leases and storages that go away --------------------------------------------------------------------------


def test_a_runner_that_was_frozen_asks_before_it_goes_on(effects: list[str], storage: Storage) -> None:
    """By its own clock its lease has ended: where nobody has taken the saga it is renewed, else it stops."""

    def freeze(self: Any, context: Order) -> None:
        [lease] = leases._leases.held()
        lease.ends = time.monotonic() - 1

    order_saga = saga(step("a", effects, freeze, retry=AT_ONCE), step("b", effects))
    with mediator_of(order_saga, storage) as mediator:
        assert mediator.run(Order()).completed

        effects.clear()
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        assert saga_id is not None
        [lease] = leases._leases.held()
        lease.ends = time.monotonic() - 1
        storage.expire(saga_id)
        storage.claim(saga_id, "another")
        with pytest.raises(SagaConcurrencyError, match="somebody else runs it"):
            next(stream)
    assert effects == ["a"]
    assert storage.load_saga_state(saga_id).locked_by == "another"


def test_a_lease_that_the_heartbeat_found_lost_stops_the_runner(effects: list[str], storage: Storage) -> None:
    """Before its next step."""
    with mediator_of(saga(step("a", effects), step("b", effects)), storage) as mediator:
        stream = mediator.stream(Order())
        next(stream)
        [lease] = leases._leases.held()
        lease.lost = True
        with pytest.raises(SagaConcurrencyError):
            next(stream)
    assert effects == ["a"]


def test_a_storage_that_stays_away_hands_the_saga_to_recovery(
    effects: list[str], storage: Storage, impatient: None
) -> None:
    """The caller is told; when the lease has ended, others repeat the step that could not be recorded."""

    def go_away(self: Any, context: Order) -> None:
        if effects.count("b") == 1:
            storage.outages = 10**9
            [lease] = leases._leases.held()
            lease.ends = time.monotonic() + 0.05

    saga_id = uuid.uuid4()
    with mediator_of(saga(step("a", effects), step("b", effects, go_away)), storage) as mediator:
        with pytest.raises(SagaStorageUnavailable):
            mediator.run(Order(), saga_id)
        storage.outages = 0
        storage.restart()
        assert mediator.recover(saga_id).completed
    assert effects == ["a", "b", "b"]


def test_an_answer_that_was_lost_behind_another_owner_s_claim_is_not_taken_for_mine(
    effects: list[str], storage: Storage, impatient: None
) -> None:
    """Only the very next version with this owner's name is."""
    saga_id = uuid.uuid4()

    def steal(self: Any, context: Order) -> None:
        storage.expire(saga_id)
        storage.claim(saga_id, "another")
        storage.outages = 1

    with mediator_of(saga(step("a", effects, steal)), storage) as mediator, pytest.raises(SagaConcurrencyError):
        mediator.run(Order(), saga_id)


class Flaky(MemoryUnitOfWork):
    """Transactions of which the next commits are done, and the answer is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_lost = 0
        self.begun = 0

    def begin(self) -> MemoryTransaction:
        self.begun += 1
        outer = self

        class Transaction(MemoryTransaction):
            def commit(self) -> None:
                super().commit()
                if outer.answers_lost:
                    outer.answers_lost -= 1
                    raise SagaStorageUnavailable("the answer is lost")

        return Transaction(self)


class Joined(SagaStepHandler[Order, str]):
    """A step that writes in the unit of work."""

    before: Any = None

    def __init__(self, transaction: MemoryTransaction) -> None:
        self._transaction = transaction

    def act(self, context: Order) -> Any:
        self._transaction["done"] = True
        if self.before is not None:
            type(self).before(self)

    def compensate(self, context: Order) -> None: ...


def test_a_commit_whose_answer_was_lost_is_looked_up(effects: list[str], storage: Storage, impatient: None) -> None:
    """Where it is in the storage, the step is done."""
    unit_of_work = Flaky()
    unit_of_work.answers_lost = 1

    def go_away(self: Any) -> None:
        storage.answers_lost = 0

    joined = type("Once", (Joined,), {"before": go_away})
    with mediator_of(saga(joined, step("ship", effects)), storage, unit_of_work=unit_of_work) as mediator:
        assert mediator.run(Order()).completed
    assert unit_of_work.store == {"done": True}


def test_a_commit_that_was_lost_hands_the_saga_to_recovery(
    effects: list[str], storage: Storage, impatient: None
) -> None:
    """The transaction is undone, and so is the record; a storage that stays away is the same."""

    def lose(self: Any) -> None:
        storage.outages = outages
        [lease] = leases._leases.held()
        lease.ends = time.monotonic() + 0.05

    joined = type("Once", (Joined,), {"before": lose})
    for outages in (1, 10**9):
        saga_id = uuid.uuid4()
        with mediator_of(saga(joined), storage, unit_of_work=Flaky()) as mediator:
            with pytest.raises(SagaStorageUnavailable):
                mediator.run(Order(), saga_id)
            storage.outages = outages = 0
            storage.restart()
            assert mediator.recover(saga_id).completed


def test_a_joined_write_is_fenced_too(effects: list[str], storage: Storage) -> None:
    """What the step has written is undone."""
    saga_id = uuid.uuid4()

    def steal(self: Any) -> None:
        storage.expire(saga_id)
        storage.claim(saga_id, "another")

    unit_of_work = Flaky()
    joined = type("Stolen", (Joined,), {"before": steal})
    with (
        mediator_of(saga(joined), storage, unit_of_work=unit_of_work) as mediator,
        pytest.raises(SagaConcurrencyError),
    ):
        mediator.run(Order(), saga_id)
    assert unit_of_work.store == {}


def test_a_transactional_step_whose_database_goes_away_is_no_failure(effects: list[str], storage: Storage) -> None:
    """It is undone with its transaction, and recovery runs it again."""

    class Charge(TransactionalSagaStep[Order, str]):
        def act(self, context: Order, session: Any) -> Any:
            effects.append("charge")
            if len(effects) == 1:
                raise SagaStorageUnavailable("the server was restarted")

        def compensate(self, context: Order, session: Any) -> None: ...

    saga_id = uuid.uuid4()
    with mediator_of(saga(Charge), storage) as mediator:
        with pytest.raises(SagaStorageUnavailable, match=r"did not take Charge .* the server was restarted"):
            mediator.run(Order(), saga_id)
        storage.restart()
        assert mediator.recover(saga_id).completed
    assert effects == ["charge", "charge"]


def test_a_stuck_or_failed_saga_that_is_streamed_says_so(effects: list[str], storage: Storage) -> None:
    """With its status and its reason."""
    with mediator_of(saga(step("a", effects, ValueError("no"))), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        with pytest.raises(SagaRolledBack) as caught:
            next(mediator.stream(Order(), saga_id))
    assert (caught.value.saga_id, caught.value.status, caught.value.reason) == (saga_id, "failed", "ValueError: no")


def test_a_rollback_that_was_interrupted_goes_on_where_it_was(effects: list[str], storage: Storage) -> None:
    """And when nothing is left to undo, it ends."""
    order_saga = saga(step("a", effects), step("b", effects), step("c", effects, ValueError("no")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = dies_in(mediator, storage, after=5)
        assert effects == ["a", "b", "c", "-b"]
        outcome = mediator.recover(saga_id)
        assert outcome.status is SagaStatus.FAILED
    assert effects[4:] == ["-a"]


def test_a_rollback_with_nothing_left_ends(effects: list[str], storage: Storage) -> None:
    """An operator may have skipped the last compensation."""
    from cqrs_sync.saga.storage.enums import SagaStepStatus
    from cqrs_sync.saga.storage.models import SagaLogEntry, SagaWrite

    order_saga = saga(step("a", effects, compensate=ValueError("stuck")), step("b", effects, ValueError("no")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        state = storage.claim(saga_id, "operator")
        storage.write(
            SagaWrite(
                saga_id=saga_id,
                owner="operator",
                version=state.version,
                status=SagaStatus.COMPENSATING,
                entries=(SagaLogEntry("a", "compensate", SagaStepStatus.SKIPPED, "refunded by hand", actor="Ada"),),
                holds=False,
                available_in=0.0,
            )
        )
        assert mediator.recover(saga_id).status is SagaStatus.FAILED


def test_an_interrupt_before_a_rollback_with_nothing_left_hands_it_over(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is next there."""
    order_saga = saga(step("a", effects, compensate=ValueError("stuck")), step("b", effects, ValueError("no")))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
        SagaAdministration(storage).skip_compensation(saga_id, "a", actor="Ada", reason="refunded by hand")
        write = storage.write

        def interrupt(*_: Any) -> None:
            monkeypatch.setattr(storage, "write", write)
            raise KeyboardInterrupt

        monkeypatch.setattr(storage, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mediator.recover(saga_id)
        state = storage.load_saga_state(saga_id)
        assert (state.status, state.current_step, state.locked_by) == (SagaStatus.COMPENSATING, None, "(in doubt)")
        assert mediator.recover(saga_id).status is SagaStatus.FAILED


def test_recover_saga_takes_instances_and_needs_a_storage(effects: list[str], storage: Storage) -> None:
    """The class of the context is the saga's where no other one is given."""
    order_saga = saga(step("a", effects), step("b", effects))
    with mediator_of(order_saga, storage) as mediator:
        saga_id = dies_in(mediator, storage, after=2)
    assert recover_saga(order_saga(), saga_id, container=punq.Container(), storage=storage).completed
    with pytest.raises(ConfigurationError, match="saga_storage must be a SagaStorage"):
        recover_saga(order_saga, saga_id, container=punq.Container())


def test_events_without_a_mediator_are_dropped_with_a_warning(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each step class."""
    import cqrs_sync as cqrs

    def tell(self: Any, context: Order) -> None:
        self.events = [cqrs.DomainEvent(), cqrs.DomainEvent()]

    tells = step("a", effects, tell)
    order_saga = saga(tells, tells)
    with caplog.at_level(logging.WARNING), order_saga.transaction(Order(), punq.Container(), storage) as transaction:
        assert len(list(transaction)) == 2
    assert [record.message for record in caplog.records] == [
        "events of a are dropped: run the saga through a SagaMediator"
    ]
