"""What the sagas of the async library get wrong: each test fails on the behaviour described for its number."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import logging
import threading
import uuid
from contextlib import closing, suppress
from typing import Any

import punq
import pytest
import sqlalchemy as sa

import cqrs_sync as cqrs
from cqrs_sync.errors import (
    BrokerUnavailable,
    ContextNotSerializable,
    SagaConcurrencyError,
    SagaDefinitionChanged,
    SagaRolledBack,
)
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox.mock import MemoryOutbox
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.recovery import recover_saga
from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import SagaStepHandler
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.sqlalchemy import Base
from cqrs_sync.unit_of_work.memory import MemoryUnitOfWork
from tests.unit.sagas import Died, Order, Storage, log_of, mediator_of, saga, step

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""


class Shipped(cqrs.NotificationEvent[int]):
    """Told to other services when the step of that number is done."""

    event_name: str = "shipped"
    payload: int = 0


def recovered(saga_type: Any, saga_id: uuid.UUID, storage: Storage, **settings: Any) -> Any:
    """The outcome of a recovery by another process."""
    storage.restart()
    return recover_saga(saga_type, saga_id, Order, punq.Container(), storage, **settings)


def test_s1_the_point_of_no_return_is_durable(effects: list[str], storage: Storage) -> None:
    """A crash right after the refund: recovery goes on rolling back, and ships nothing."""
    ship = step("ship", effects, ValueError("no truck"))
    order_saga = saga(step("reserve", effects), step("charge", effects), ship)
    storage.die_before = 5  # create, reserve, charge, COMPENSATING; then what records the refund
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert effects == ["reserve", "charge", "ship", "-charge"]
    assert storage.load_saga_state(saga_id).status is SagaStatus.COMPENSATING
    outcome = recovered(order_saga, saga_id, storage)
    assert effects[4:] == ["-charge", "-reserve"]
    assert outcome.status is SagaStatus.FAILED


def test_s2_a_live_saga_is_run_by_one(effects: list[str], storage: Storage) -> None:
    """Neither a recoverer nor a second stream takes it, however long its step lasts."""
    entered, leave = threading.Event(), threading.Event()

    def act(self: Any, context: Order) -> None:
        entered.set()
        assert leave.wait(WAIT)

    order_saga = saga(step("reserve", effects, act), step("charge", effects))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator:
        runner = threading.Thread(target=mediator.run, args=(Order(), saga_id))
        runner.start()
        assert entered.wait(WAIT)
        assert storage.get_sagas_for_recovery("recoverer") == []
        for attempt in (
            lambda: recover_saga(order_saga, saga_id, Order, punq.Container(), storage),
            lambda: mediator.run(Order(), saga_id),
        ):
            with pytest.raises(SagaConcurrencyError):
                attempt()
        leave.set()
        runner.join(WAIT)
    assert effects == ["reserve", "charge"]


def test_s2_a_runner_that_lost_its_lease_stops(effects: list[str], storage: Storage) -> None:
    """Its late result changes nothing, and it takes no further step."""
    saga_id = uuid.uuid4()

    def act(self: Any, context: Order) -> None:
        if effects.count("reserve") == 1:  # frozen meanwhile, and taken for dead
            storage.expire(saga_id)
            assert recover_saga(order_saga, saga_id, Order, punq.Container(), storage).completed
            context.note = "late"

    order_saga = saga(step("reserve", effects, act), step("charge", effects))
    with mediator_of(order_saga, storage) as mediator, pytest.raises(SagaConcurrencyError):
        mediator.run(Order(), saga_id)
    assert effects == ["reserve", "reserve", "charge"]
    state = storage.load_saga_state(saga_id)
    assert state.status is SagaStatus.COMPLETED
    assert "late" not in state.context


def test_s3_the_context_of_a_recovery_is_read_under_the_claim(effects: list[str], storage: Storage) -> None:
    """And every write says which version it is based on."""

    def note(self: Any, context: Order) -> None:
        context.note = "r1"

    order_saga = saga(step("reserve", effects), step("charge", effects, note), step("ship", effects))
    storage.die_before = 4
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert recovered(order_saga, saga_id, storage).context.note == "r1"
    assert '"note":"r1"' in storage.load_saga_state(saga_id).context
    assert [write.version for write in storage.writes] == [1, 2, 4]


def test_s4_a_saga_that_is_taken_on_has_its_stored_context(effects: list[str], storage: Storage) -> None:
    """The caller's is used for a new saga alone, so the compensation knows what to release."""
    released: list[Any] = []

    def reserve(self: Any, context: Order) -> None:
        context.note = "r1"

    def release(self: Any, context: Order) -> None:
        released.append(context.note)

    order_saga = saga(step("reserve", effects, reserve, release), step("ship", effects, ValueError("no truck")))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator:
        with closing(mediator.stream(Order(), saga_id)) as stream:
            next(stream)
        outcome = mediator.run(Order(note="another"), saga_id)
    assert outcome.status is SagaStatus.FAILED
    assert released == ["r1"]


def test_s5_a_recovery_that_fails_is_repeated(effects: list[str], storage: Storage) -> None:
    """Whatever went wrong; and what was done is compensated at last."""
    order_saga = saga(step("reserve", effects), step("ship", effects, ValueError("no truck")))
    saga_id = uuid.uuid4()
    storage.die_before = 4
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    for number in range(6):
        storage.restart()
        [state] = storage.get_sagas_for_recovery(f"r{number}")
        assert (state.saga_id, state.attempts) == (saga_id, number + 1)
    assert recovered(order_saga, saga_id, storage).status is SagaStatus.FAILED
    assert effects == ["reserve", "ship", "-reserve", "-reserve"]


def test_s6_an_exhausted_compensation_has_a_status_of_its_own(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """It is found, logged as an error, and not compensated again by whoever looks at it."""
    stuck = step("charge", effects, compensate=ConnectionError("bank is closed"))
    order_saga = saga(step("reserve", effects), stuck, step("ship", effects, ValueError("no truck")))
    with mediator_of(order_saga, storage) as mediator, caplog.at_level(logging.ERROR):
        outcome = mediator.run(Order())
        assert outcome.status is SagaStatus.COMPENSATING
        assert caplog.text == ""
        storage.restart()
        assert SagaRecoveryWorker(mediator, max_attempts=1).run_once() == 0
        assert effects.count("-charge") == 6
        assert "-reserve" not in effects  # in reverse order, or not at all
        assert "compensate of charge failed: ConnectionError: bank is closed; it is stuck" in caplog.text
        assert len(caplog.records) == 1
        [found] = storage.find([SagaStatus.COMPENSATION_FAILED])
        assert found.saga_id == outcome.saga_id
        assert found.error == ("ValueError: no truck; compensate of charge failed: ConnectionError: bank is closed")
        storage.restart()
        assert storage.get_sagas_for_recovery("r1") == []
        assert mediator.run(Order(), outcome.saga_id).status is SagaStatus.COMPENSATION_FAILED
    assert effects.count("-charge") == 6


def test_s6_a_saga_that_was_compensating_is_compensated_once(effects: list[str], storage: Storage) -> None:
    """Three attempts are three, whoever begins."""
    stuck = step("charge", effects, compensate=ConnectionError("bank is closed"))
    order_saga = saga(stuck, step("ship", effects, ValueError("no truck")))
    storage.die_after = 3
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert effects == ["charge", "ship"]
    assert recovered(order_saga, saga_id, storage).status is SagaStatus.COMPENSATING
    assert effects[2:] == ["-charge"] * 3


def test_s7_a_step_that_could_not_be_recorded_is_compensated(effects: list[str], storage: Storage) -> None:
    """It has had its effect."""

    def spoil(self: Any, context: Order) -> None:
        context.note = object()

    order_saga = saga(step("reserve", effects), step("charge", effects, spoil))
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(Order())
    assert isinstance(outcome.error, ContextNotSerializable)
    assert outcome.error.field == "note"
    assert outcome.status is SagaStatus.FAILED
    assert effects == ["reserve", "charge", "-charge", "-reserve"]
    assert ("charge", "act", "unknown") in log_of(storage, outcome.saga_id)


def test_s7_a_storage_that_is_away_for_a_moment_costs_nothing(
    effects: list[str], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is written again; and one whose answer was lost is known to be there."""
    monkeypatch.setattr("cqrs_sync.saga.record.PATIENCE", cqrs_backoff())

    def away(self: Any, context: Order) -> None:
        storage.outages, storage.answers_lost = 2, 1

    order_saga = saga(step("reserve", effects, away), step("charge", effects))
    with mediator_of(order_saga, storage) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["reserve", "charge"]


def cqrs_backoff() -> Any:
    """Next to no wait."""
    from cqrs_sync.backoff import Backoff

    return Backoff(initial=0.001, maximum=0.001)


def test_s8_there_is_no_moment_in_which_a_saga_is_not_recoverable(effects: list[str], storage: Storage) -> None:
    """It is created as RUNNING, in one commit; and one that is pending is taken on."""
    order_saga = saga(step("reserve", effects))
    storage.die_after = 1
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert storage.load_saga_state(saga_id).status is SagaStatus.RUNNING
    storage._sagas[saga_id] = dataclasses.replace(storage._sagas[saga_id], status=SagaStatus.PENDING)
    storage.restart()
    assert [state.saga_id for state in storage.get_sagas_for_recovery("r1")] == [saga_id]
    assert recovered(order_saga, saga_id, storage).completed
    assert effects == ["reserve"]


class BrokenBroker(MessageBroker):
    """A broker that is away."""

    def send_message(self, message: Message) -> None:
        raise BrokerUnavailable("no route", message)


def tells(number: int) -> dict[str, Any]:
    """What makes a step that emits an event."""

    def act(self: Any, context: Order) -> None:
        self.events = [Shipped(payload=number)]

    return {"act": act}


def test_s9_a_broker_that_fails_does_not_stop_a_saga(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is committed; that its event is lost without an outbox is logged."""
    order_saga = saga(step("reserve", effects, **tells(1)), step("ship", effects))
    with mediator_of(order_saga, storage, message_broker=BrokenBroker()) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["reserve", "ship"]
    assert "BrokenBroker" in caplog.text


def test_s10_events_of_a_step_are_in_its_transaction(effects: list[str], storage: Storage) -> None:
    """With an outbox they are stored with what the step has written; those of a failed one are not."""

    def fail(self: Any, context: Order) -> None:
        self.events = [Shipped(payload=2)]
        raise ValueError("no truck")

    outbox = MemoryOutbox()
    cqrs.OutboxedEventMap.register("shipped", Shipped) if cqrs.OutboxedEventMap.get("shipped") is None else None
    order_saga = saga(step("reserve", effects, **tells(1)), step("ship", effects, fail))
    with mediator_of(order_saga, storage, unit_of_work=MemoryUnitOfWork(outbox)) as mediator:
        mediator.run(Order())
    assert [event.event.payload for event in outbox_events(outbox)] == [1]


def outbox_events(outbox: MemoryOutbox) -> list[Any]:
    from cqrs_sync.outbox.mock import MockOutboxedEventRepository

    return list(MockOutboxedEventRepository(outbox).get_many())


def test_s10_a_recovered_step_emits_like_a_fresh_one(effects: list[str], storage: Storage) -> None:
    """The same events go the same way."""
    broker = InMemoryMessageBroker()
    order_saga = saga(step("reserve", effects, **tells(1)), step("ship", effects, **tells(2)))
    storage.die_before = 3
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage, message_broker=broker) as mediator:
        with pytest.raises(Died):
            mediator.run(Order(), saga_id)
        storage.restart()
        assert mediator.recover(saga_id).completed
    assert [message.payload["payload"] for message in broker.messages] == [1, 2]


def test_s11_the_same_step_twice_is_two_steps(effects: list[str], storage: Storage) -> None:
    """Told apart by position, also after a crash."""
    notify = step("notify", effects)
    order_saga = saga(notify, step("ship", effects), notify)
    storage.die_after = 3
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert recovered(order_saga, saga_id, storage).completed
    assert effects == ["notify", "ship", "notify"]
    assert [name for name, _, _ in log_of(storage, saga_id)] == ["notify", "ship", "notify#2"]


def test_s11_a_renamed_class_keeps_its_step_name(effects: list[str], storage: Storage) -> None:
    """Declared on the step, or on the saga; undeclared, the saga is refused and nothing runs."""
    storage.die_after = 2
    saga_id = uuid.uuid4()
    with mediator_of(saga(step("reserve", effects), step("ship", effects)), storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    renamed, ship = step("book", effects), step("ship", effects)
    with pytest.raises(SagaDefinitionChanged, match="reserve was done and is no step of it now") as caught:
        recovered(saga(renamed, ship), saga_id, storage)
    assert "'reserve > ship', and now 'book > ship'" in caught.value.difference
    assert effects == ["reserve"]
    assert recovered(saga(renamed, ship, renamed_steps={"reserve": "book"}), saga_id, storage).completed
    assert effects == ["reserve", "ship"]


def test_s12_failures_are_logged_under_their_own_names(effects: list[str], storage: Storage) -> None:
    """Both of a primary and of its fallback."""
    primary, fallback = (step(name, effects, ValueError(name)) for name in ("charge", "invoice"))
    order_saga = saga(step("reserve", effects), Fallback(primary, fallback))
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(Order())
    assert log_of(storage, outcome.saga_id) == [
        ("reserve", "act", "completed"),
        ("charge", "act", "failed"),
        ("invoice", "act", "started"),
        ("invoice", "act", "failed"),
        ("reserve", "compensate", "completed"),
    ]


def test_s13_a_step_is_repeated_with_the_same_idempotency_key(effects: list[str], storage: Storage) -> None:
    """That it runs at least once is said where it is written, and the key makes it harmless."""
    keys: list[str] = []

    def act(self: Any, context: Order) -> None:
        keys.append(self.idempotency_key)

    order_saga = saga(step("charge", effects, act))
    storage.die_before = 2
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert recovered(order_saga, saga_id, storage).completed
    assert keys == [f"{saga_id}/charge/act"] * 2
    assert "at least once" in str(SagaStepHandler.act.__doc__)
    assert "at least once" in str(SagaStepHandler.compensate.__doc__)


def test_s13_a_step_in_doubt_that_fails_when_repeated_is_compensated(effects: list[str], storage: Storage) -> None:
    """Its first attempt may have had its effect."""

    def fail_the_second_time(self: Any, context: Order) -> None:
        if effects.count("charge") == 2:
            raise ValueError("card expired")

    order_saga = saga(step("reserve", effects), step("charge", effects, fail_the_second_time))
    storage.die_before = 3
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    assert recovered(order_saga, saga_id, storage).status is SagaStatus.FAILED
    assert effects == ["reserve", "charge", "charge", "-charge", "-reserve"]


def test_s14_no_transaction_is_open_while_a_step_runs(effects: list[str], tmp_path: Any) -> None:
    """Neither at the start nor when a saga is taken on, nor while it is rolled back."""
    from sqlalchemy.orm import sessionmaker

    from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'db'}", poolclass=sa.pool.QueuePool)
    Base.metadata.create_all(engine)
    out: list[int] = []

    def look(self: Any, context: Order) -> None:
        out.append(engine.pool.checkedout())  # type: ignore[attr-defined]

    def fail(self: Any, context: Order) -> None:
        look(self, context)
        raise ValueError("no truck")

    order_saga = saga(step("reserve", effects, look, look), step("ship", effects, fail))
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, SqlAlchemySagaStorage(sessionmaker(engine))) as mediator:
        with closing(mediator.stream(Order(), saga_id)) as stream:
            next(stream)
        mediator.run(Order(), saga_id)
    engine.dispose()
    assert out == [0, 0, 0]


def test_s15_an_error_is_no_reason_to_begin_again(effects: list[str], storage: Storage) -> None:
    """A context that cannot be read, say, is an error and not a new saga."""
    saga_id = uuid.uuid4()
    order_saga = saga(step("reserve", effects), step("ship", effects))
    with mediator_of(order_saga, storage) as mediator:
        with closing(mediator.stream(Order(), saga_id)) as stream:
            next(stream)
        storage._sagas[saga_id] = dataclasses.replace(storage._sagas[saga_id], context='{"order_id": null}')
        with pytest.raises(SagaDefinitionChanged, match="stored context does not fit Order: order_id"):
            mediator.run(Order(), saga_id)
    assert effects == ["reserve"]


def test_s16_a_step_is_tried_again_and_a_live_saga_keeps_its_lease(effects: list[str], storage: Storage) -> None:
    """By a retry of its own; meanwhile the heartbeat renews the lease, so nobody takes it for dead."""

    def fail_twice(self: Any, context: Order) -> None:
        if effects.count("charge") < 3:
            raise TimeoutError

    order_saga = saga(step("charge", effects, fail_twice, retry=Retry(attempts=3, delay=0)))
    with mediator_of(order_saga, storage) as mediator:
        outcome = mediator.run(Order())
    assert outcome.completed
    [entry] = storage.get_step_history(outcome.saga_id)
    assert entry.attempts == 3


def test_s16_the_heartbeat_keeps_a_long_step_alive(effects: list[str]) -> None:
    """It lasts several leases."""
    storage = MemorySagaStorage(lease=0.05)
    lease_ends: list[Any] = []

    def last(self: Any, context: Order) -> None:
        first = storage.load_saga_state(self.saga_id).available_at
        assert first is not None
        until = threading.Event()
        for _ in range(1000):
            until.wait(0.005)
            lease_ends.append(storage.load_saga_state(self.saga_id).available_at)
            if lease_ends[-1] > first + 4 * datetime.timedelta(seconds=storage.lease):
                return

    with mediator_of(saga(step("charge", effects, last), step("ship", effects)), storage) as mediator:
        assert mediator.run(Order()).completed
    assert len(set(lease_ends)) >= 4


def test_s17_sagas_that_have_ended_go_and_tables_have_indexes(effects: list[str], storage: Storage) -> None:
    """By retention, or in memory by number; what is handed out is nobody's state; the log has an order of its own."""
    bounded = MemorySagaStorage(keep=2)
    with mediator_of(saga(step("reserve", effects)), bounded) as mediator:
        ids = [mediator.run(Order()).saga_id for _ in range(4)]
    assert list(bounded._sagas) == ids[2:]
    state = bounded.load_saga_state(ids[2])
    with suppress(dataclasses.FrozenInstanceError):
        state.version = 99  # type: ignore[misc]
    assert bounded.load_saga_state(ids[2]) == state
    assert bounded.purge(-60.0) == 2
    indexes = {
        index.name: list(index.columns.keys()) for table in Base.metadata.tables.values() for index in table.indexes
    }
    assert indexes == {
        "ix_saga_executions_unfinished": ["finished_at", "created_at"],
        "ix_saga_executions_finished": ["finished_at"],
        "ix_saga_logs_saga": ["saga_id", "id"],
    }


def test_s18_a_recovery_returns_its_outcome(effects: list[str], storage: Storage) -> None:
    """What a step raises is in it, even a RuntimeError; nobody has to read the text of an error."""
    error = RuntimeError("recovered in FAILED state")
    order_saga = saga(step("reserve", effects), step("ship", effects, error))
    storage.die_after = 2
    saga_id = uuid.uuid4()
    with mediator_of(order_saga, storage) as mediator, pytest.raises(Died):
        mediator.run(Order(), saga_id)
    outcome = recovered(order_saga, saga_id, storage)
    assert (outcome.status, outcome.error) == (SagaStatus.FAILED, error)
    again = recovered(order_saga, saga_id, storage)
    assert again.status is SagaStatus.FAILED
    assert isinstance(again.error, SagaRolledBack)
    assert again.error.reason == "RuntimeError: recovered in FAILED state"


def test_s19_an_abandoned_stream_leaves_a_resumable_saga(effects: list[str], storage: Storage) -> None:
    """The saga is handed over when the generator is closed or forgotten; nothing is compensated."""
    order_saga = saga(step("reserve", effects), step("ship", effects))
    with mediator_of(order_saga, storage) as mediator:
        for forget in (True, False):
            saga_id = uuid.uuid4()
            stream: Any = mediator.stream(Order(), saga_id)
            assert next(stream).saga_id == saga_id
            if not forget:
                stream.close()
            del stream
            gc.collect()
            state = storage.load_saga_state(saga_id)
            assert (state.status, state.locked_by, state.current_step) == (SagaStatus.RUNNING, None, "ship")
            assert [result.response for result in mediator.stream(Order(), saga_id)] == ["ship"]
    assert effects == ["reserve", "ship"] * 2


@dataclasses.dataclass
class Item:
    """A part of a context."""

    sku: str
    due: datetime.date


@dataclasses.dataclass
class Rich(SagaContext):
    """A context with values of many kinds."""

    customer_id: uuid.UUID
    items: list[Item]
    tags: set[str]


def test_s20_contexts_keep_the_names_of_their_fields_and_are_written_when_they_change(effects: list[str]) -> None:
    """Values come back as they were."""
    storage = Storage()
    context = Rich(uuid.uuid4(), [Item("sku", datetime.date(2026, 1, 2))], {"a", "b"})

    class Look(SagaStepHandler[Rich, None]):
        def act(self, context: Rich) -> Any:
            return None

        def compensate(self, context: Rich) -> None: ...

    class Change(Look):
        def act(self, context: Rich) -> Any:
            context.tags.add("c")

    rich_saga = saga(Look, Change, context=Rich)
    from cqrs_sync.saga.bootstrap import bootstrap

    with bootstrap(punq.Container(), sagas_mapper=lambda m: m.bind(Rich, rich_saga), saga_storage=storage) as mediator:
        saga_id = mediator.run(context).saga_id
    assert [write.context is not None for write in storage.writes] == [False, True]
    state = storage.load_saga_state(saga_id)
    assert '"customer_id":' in state.context
    outcome = recover_saga(rich_saga, saga_id, Rich, punq.Container(), storage)
    assert outcome.context == context
