"""What becomes of a saga's context: each attempt begins with what is stored, and only what comes back is stored."""

from __future__ import annotations

import dataclasses
import math
import uuid
from decimal import Decimal
from typing import Any

import punq
import pytest

from cqrs_sync.errors import ContextNotSerializable
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.record import SagaRecord
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from tests.unit.sagas import AT_ONCE, Order, Storage, log_of, mediator_of, saga, step


@dataclasses.dataclass
class Bill(SagaContext):
    """A context whose fields say what they hold."""

    total: float = 10.0
    note: str = ""
    extra: Any = None


def context_of(storage: Storage, saga_id: uuid.UUID) -> str:
    return storage.load_saga_state(saga_id).context


def test_each_attempt_begins_with_what_is_stored(effects: list[str], storage: Storage) -> None:
    """As it would after a crash: what a failed attempt has changed is gone."""

    def charge(self: Any, context: Order) -> None:
        context.note = (context.note or 0) + 10
        if effects.count("charge") < 3:
            raise ConnectionError

    with mediator_of(saga(step("charge", effects, charge, retry=AT_ONCE)), storage) as mediator:
        context = Order()
        assert mediator.run(context).completed
    assert context.note == 10


def test_compensations_begin_with_what_is_stored_too(effects: list[str], storage: Storage) -> None:
    """Each attempt of theirs."""
    seen: list[Any] = []

    def undo(self: Any, context: Order) -> None:
        seen.append(context.note)
        context.note = "undoing"
        if len(seen) < 3:
            raise ConnectionError

    order_saga = saga(step("reserve", effects, compensate=undo), step("charge", effects, ValueError("no")))
    with mediator_of(order_saga, storage) as mediator:
        mediator.run(Order())
    assert seen == [None, None, None]


def test_a_step_that_has_failed_leaves_no_trace_in_the_context(effects: list[str], storage: Storage) -> None:
    """Only one that may have had its effect does, for its compensation."""

    def fail(self: Any, context: Order) -> None:
        context.note = "payment 7"
        raise ValueError("no")

    seen: list[Any] = []

    def undo(self: Any, context: Order) -> None:
        seen.append(context.note)

    for unknown in ((), (ValueError,)):
        charge = step("charge", effects, fail, undo, unknown_outcomes=unknown)
        with mediator_of(saga(step("reserve", effects, compensate=undo), charge), storage) as mediator:
            mediator.run(Order())
    assert seen == [None, "payment 7", "payment 7"]


def test_members_of_a_group_begin_with_what_was_before_it(effects: list[str], storage: Storage) -> None:
    """Each attempt of each."""

    def charge(self: Any, context: Order) -> None:
        context.note = (context.note or 0) + 10
        if effects.count("charge") < 3:
            raise ConnectionError

    group = Parallel(step("charge", effects, charge, retry=AT_ONCE), step("reserve", effects))
    with mediator_of(saga(group), storage) as mediator:
        context = Order()
        assert mediator.run(context).completed
    assert context.note == 10


@pytest.mark.parametrize(
    ("field", "value"), [("total", math.nan), ("note", 42), ("total", "abc"), ("total", Decimal("1.10"))]
)
def test_a_step_whose_context_would_not_come_back_is_undone(
    effects: list[str], storage: Storage, field: str, value: Any
) -> None:
    """It would be stored as done, and nobody could take the saga on again: not even to undo it."""

    class Charge(SagaStepHandler[Bill, None]):
        def act(self, context: Bill) -> Any:
            effects.append("charge")
            setattr(context, field, value)

        def compensate(self, context: Bill) -> None:
            effects.append("-charge")

    class BillSaga(Saga[Bill]):
        steps = [Charge]

    with bootstrap(punq.Container(), sagas_mapper=lambda m: m.bind(Bill, BillSaga), saga_storage=storage) as mediator:
        outcome = mediator.run(Bill())
    assert isinstance(outcome.error, ContextNotSerializable)
    assert f"Bill.{field}" in str(outcome.error)
    assert outcome.status is SagaStatus.FAILED
    assert effects == ["charge", "-charge"]
    assert '"total":10.0,"note":""' in context_of(storage, outcome.saga_id)


def test_one_members_bad_value_is_not_the_others(effects: list[str], storage: Storage) -> None:
    """They are done, and are undone as what they are."""

    def spoil(self: Any, context: Order) -> None:
        context.note = object()

    group = Parallel(step("bad", effects, spoil), step("good", effects))
    with mediator_of(saga(group), storage, max_parallel_steps=1) as mediator:
        outcome = mediator.run(Order())
    assert outcome.status is SagaStatus.FAILED
    log = log_of(storage, outcome.saga_id)
    assert ("bad", "act", "unknown") in log
    assert ("good", "act", "completed") in log


def test_a_transactional_step_that_is_tried_again_does_not_keep_the_ids_of_what_was_undone(
    effects: list[str], storage: Storage
) -> None:
    """Its rows are gone with the transaction."""
    seen: list[Any] = []

    class Place(TransactionalSagaStep[Order, None]):
        retry = Retry(attempts=2, delay=0)

        def act(self, context: Order, session: Any) -> Any:
            seen.append(context.note)
            context.note = f"row {len(seen)}"
            if len(seen) == 1:
                raise ConnectionError

        def compensate(self, context: Order, session: Any) -> None: ...

    with mediator_of(saga(Place), storage) as mediator:
        assert mediator.run(Order()).completed
    assert seen == [None, None]


def test_an_interrupt_behind_the_write_of_a_step_leaves_a_saga_that_can_go_on(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the run knows of it by then."""
    write = SagaRecord.write

    def interrupted(self: Any, *arguments: Any, **settings: Any) -> None:
        write(self, *arguments, **settings)
        monkeypatch.undo()
        raise KeyboardInterrupt

    saga_id = uuid.uuid4()
    with mediator_of(saga(*(step(name, effects) for name in "abc")), storage) as mediator:
        monkeypatch.setattr(SagaRecord, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mediator.run(Order(), saga_id)
        assert mediator.recover(saga_id).completed
    assert effects == ["a", "b", "c"]
