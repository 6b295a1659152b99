"""Sagas behind a mediator: middlewares, events, scopes, units of work; and without one."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import punq
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

import cqrs_sync as cqrs
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import ConfigurationError, ContextNotSerializable, SagaDoesNotExist, SagaNotFound
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox.sqlalchemy import Base as OutboxBase
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.saga.bootstrap import bootstrap, setup_event_emitter, setup_saga_mediator
from cqrs_sync.saga.map import SagaMap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaContext, checked_text, decode, encode
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from tests.unit.sagas import Died, Order, Storage, log_of, mediator_of, saga, step


class Happened(cqrs.DomainEvent):
    """A domain event."""

    number: int = 0


class Told(cqrs.NotificationEvent[int]):
    """A notification event."""

    event_name: str = "told_by_saga"
    payload: int = 0


def lists(*events: Any, error: Exception | None = None) -> Any:
    """What makes a step that lists events, and may fail then."""

    def call(self: Any, context: Any) -> None:
        self.events = list(events)
        if error is not None:
            raise error

    return call


def handler(seen: list[Any], error: Exception | None = None) -> Any:
    """An event handler class that notes what it gets."""

    class Handler(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            seen.append(event)
            if error is not None:
                raise error

    return Handler


# --- the mediator ----------------------------------------------------------------------------------------------


def test_middlewares_see_one_call_per_stream(effects: list[str], storage: Storage) -> None:
    """Around all steps; for a recovery too."""
    calls: list[Any] = []

    def middleware(context: Any, handle: Any) -> Any:
        calls.append(context)
        return handle(context)

    with mediator_of(saga(step("a", effects), step("b", effects)), storage, middlewares=[middleware]) as mediator:
        context = Order()
        assert [result.response for result in mediator.stream(context)] == ["a", "b"]
        assert calls == [context]
        saga_id = mediator.run(Order()).saga_id
        assert mediator.recover(saga_id).completed
    assert len(calls) == 3


def test_a_middleware_may_answer_in_place_of_a_saga(effects: list[str], storage: Storage) -> None:
    """With an iterator; there is no outcome then."""
    with mediator_of(saga(step("a", effects)), storage, middlewares=[lambda context, handle: iter("xy")]) as mediator:
        assert list(mediator.stream(Order())) == ["x", "y"]  # type: ignore[comparison-overlap]
        with pytest.raises(ConfigurationError, match="there is no outcome"):
            mediator.run(Order())
    text, failure = (lambda context, handle: "x"), (lambda context, handle: fails())
    for middleware, error in ((text, ConfigurationError), (failure, LookupError)):
        with mediator_of(saga(step("a", effects)), storage, middlewares=[middleware]) as mediator, pytest.raises(error):
            mediator.run(Order())
    assert effects == []


def fails() -> Any:
    raise LookupError


def test_an_unknown_context_or_name_has_no_saga(effects: list[str], storage: Storage) -> None:
    """The caller is told before anything is stored."""
    with mediator_of(saga(step("a", effects)), storage) as mediator:
        with pytest.raises(SagaDoesNotExist) as caught:
            mediator.stream(SagaContext())
        assert caught.value.message_type is SagaContext
        with pytest.raises(SagaNotFound):
            mediator.recover(uuid.uuid4())
        saga_id = mediator.run(Order()).saga_id
        storage._sagas[saga_id] = dataclasses.replace(storage._sagas[saga_id], name="Gone")
        with pytest.raises(SagaDoesNotExist, match="Gone"):
            mediator.recover(saga_id)
        assert mediator.saga_map.named("OrderSaga") is not None


def test_a_saga_mediator_is_injected(effects: list[str], storage: Storage) -> None:
    """Into steps, which may run another saga; and into event handlers."""
    got: list[Any] = []

    class Step(SagaStepHandler[Order, None]):
        def __init__(self, mediator: SagaMediator) -> None:
            got.append(mediator)
            self.events = [Happened()]

        def act(self, context: Order) -> None: ...  # type: ignore[override]

        def compensate(self, context: Order) -> None: ...

    class OnHappened(cqrs.EventHandler[Happened]):
        def __init__(self, mediator: SagaMediator) -> None:
            got.append(mediator)

        def handle(self, event: Happened) -> None: ...

    with mediator_of(saga(Step), storage, domain_events_mapper=lambda m: m.bind(Happened, OnHappened)) as mediator:
        assert mediator.run(Order()).completed
        assert got == [mediator, mediator]


def test_a_mediator_can_be_put_together_by_hand(effects: list[str], storage: Storage) -> None:
    """With the async library's names."""
    order_saga = saga(step("a", effects))
    container = punq.Container()
    emitter = setup_event_emitter(container, None, InMemoryMessageBroker())
    with setup_saga_mediator(emitter, container, [], lambda m: m.bind(Order, order_saga), storage) as mediator:
        assert mediator.run(Order()).completed
    with setup_saga_mediator(emitter, container, [], lambda m: m.bind(Order, order_saga)) as mediator:
        assert isinstance(mediator.engine.storage, MemorySagaStorage)
    with SagaMediator(SagaMap({Order: order_saga}), container, storage, compensation_retry_count=1) as mediator:
        assert mediator.run(Order()).completed
    with bootstrap(container, sagas_mapper=lambda m: m.bind(Order, order_saga)) as mediator:
        assert mediator.run(Order()).completed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"saga_storage": MemorySagaStorage}, "saga_storage must be a SagaStorage"),
        ({"max_parallel_steps": 0}, "max_parallel_steps must be at least 1"),
        ({"compensation_retry_count": 0}, "attempts must be at least 1"),
        ({"recovery_backoff": 3}, "recovery_backoff must be a Backoff"),
        ({"event_errors": "raise"}, 'event_errors="raise" cannot be for sagas'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Any, says: str) -> None:
    """By bootstrap."""
    with pytest.raises(ConfigurationError, match=says):
        bootstrap(punq.Container(), **settings)


# --- events ----------------------------------------------------------------------------------------------------


def test_events_are_handled_behind_the_commit_of_their_step(effects: list[str], storage: Storage) -> None:
    """And before its result is handed out; those of a compensation too, those of a failed call not."""
    seen: list[Any] = []
    broker = InMemoryMessageBroker()
    order_saga = saga(
        step("a", effects, lists(Happened(number=1), Told(payload=1)), lists(Happened(number=3))),
        step("b", effects, lists(Happened(number=2), error=ValueError("no"))),
    )
    mapper = lambda m: m.bind(Happened, handler(seen))  # noqa: E731
    with mediator_of(order_saga, storage, domain_events_mapper=mapper, message_broker=broker) as mediator:
        stream = mediator.stream(Order())
        next(stream)
        assert [event.number for event in seen] == [1]
        assert [message.payload["payload"] for message in broker.messages] == [1]
        with pytest.raises(ValueError, match="no"):
            next(stream)
    assert [event.number for event in seen] == [1, 3]


def test_errors_of_event_handlers_are_logged(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """The step stands, the saga goes on."""
    mapper = lambda m: m.bind(Happened, handler([], LookupError("broken handler")))  # noqa: E731
    order_saga = saga(step("a", effects, lists(Happened())), step("b", effects))
    with mediator_of(order_saga, storage, domain_events_mapper=mapper) as mediator:
        assert mediator.run(Order()).completed
    assert "broken handler" in caplog.text


def test_an_event_with_nowhere_to_go_fails_its_step(effects: list[str], storage: Storage) -> None:
    """Which has had its effect, and is compensated."""

    class Lost(cqrs.Event):
        pass

    with mediator_of(saga(step("a", effects, lists(Lost()))), storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert effects == ["a", "-a"]


def test_follow_ups_that_fail_their_wiring_are_logged(
    effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """What other mediators raise after a commit cannot undo a step."""

    class Loops(cqrs.EventHandler[Happened]):
        def handle(self, event: Happened) -> None:
            self.events = [Happened()]

    mapper = lambda m: m.bind(Happened, Loops)  # noqa: E731
    with mediator_of(saga(step("a", effects, lists(Happened()))), storage, domain_events_mapper=mapper) as mediator:
        assert mediator.run(Order()).completed
    assert "events of a were not handled everywhere" in caplog.text


# --- units of work and scopes ----------------------------------------------------------------------------------


@pytest.fixture
def sessions() -> Iterator[sessionmaker[Session]]:
    """A database with the tables of sagas, of an outbox and of an application."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    OutboxBase.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE charges (key TEXT PRIMARY KEY)"))
    yield sessionmaker(engine)
    engine.dispose()


def charges(sessions: sessionmaker[Session]) -> list[str]:
    """The keys in the application's table."""
    with sessions() as session:
        return sorted(session.execute(text("SELECT key FROM charges")).scalars())


def charge(session: Session, key: str) -> None:
    """Write one."""
    session.execute(text("INSERT INTO charges VALUES (:key)"), {"key": key})


def transactional(name: str, effects: list[str], error: Exception | None = None, **attributes: Any) -> Any:
    """A transactional step that charges, and takes it back."""

    class Charge(TransactionalSagaStep[Order, str]):
        step_name = name

        def act(self, context: Order, session: Session) -> Any:
            effects.append(name)
            charge(session, f"{name} {effects.count(name)}")
            if error is not None:
                raise error
            return name

        def compensate(self, context: Order, session: Session) -> None:
            effects.append(f"-{name}")
            session.execute(text("DELETE FROM charges"))

    for attribute, value in attributes.items():
        setattr(Charge, attribute, value)
    return Charge


@pytest.mark.parametrize("with_unit_of_work", [True, False])
def test_a_transactional_step_is_written_with_its_record(
    effects: list[str], sessions: sessionmaker[Session], with_unit_of_work: bool
) -> None:
    """Or not at all: what it wrote before it failed is undone with it."""
    settings = {"unit_of_work": cqrs.SqlAlchemyUnitOfWork(sessions)} if with_unit_of_work else {}
    storage = SqlAlchemySagaStorage(sessions)
    order_saga = saga(transactional("charge", effects), transactional("fee", effects, ValueError("no")))
    with mediator_of(order_saga, storage, **settings) as mediator:
        stream = mediator.stream(Order())
        next(stream)
        assert charges(sessions) == ["charge 1"]
        with pytest.raises(ValueError, match="no"):
            next(stream)
    assert effects == ["charge", "fee", "-charge"]
    assert charges(sessions) == []


def test_a_transactional_step_is_done_exactly_once(effects: list[str], sessions: sessionmaker[Session]) -> None:
    """A process that dies before the commit has not done it; nothing of it is in doubt."""

    class Dying(SqlAlchemySagaStorage):
        dies = True

        def write(self, write: Any, transaction: Any = None) -> None:
            super().write(write, transaction)
            if transaction is not None and self.dies:
                raise Died

    storage = Dying(sessions)
    saga_id = uuid.uuid4()
    with mediator_of(saga(transactional("charge", effects), step("ship", effects)), storage) as mediator:
        with pytest.raises(Died):
            mediator.run(Order(), saga_id)
        assert charges(sessions) == []
        storage.dies = False
        assert mediator.recover(saga_id).completed
    assert effects == ["charge", "charge", "ship"]
    assert charges(sessions) == ["charge 2"]


def test_a_transactional_step_in_doubt_that_fails_is_not_compensated(
    effects: list[str], sessions: sessionmaker[Session]
) -> None:
    """Its first attempt was undone with its transaction."""

    def interrupt() -> Any:
        error = KeyboardInterrupt() if effects.count("charge") == 1 else ValueError("no")
        raise error

    class Charge(TransactionalSagaStep[Order, str]):
        def act(self, context: Order, session: Session) -> Any:
            effects.append("charge")
            interrupt()

        def compensate(self, context: Order, session: Session) -> None:
            effects.append("-charge")

    saga_id = uuid.uuid4()
    with mediator_of(saga(Charge), SqlAlchemySagaStorage(sessions)) as mediator:
        with pytest.raises(KeyboardInterrupt):
            mediator.run(Order(), saga_id)
        assert mediator.run(Order(), saga_id).status is SagaStatus.FAILED
    assert effects == ["charge", "charge"]


@pytest.mark.parametrize("refused", ["act", "write", "commit"])
@pytest.mark.parametrize("error", [ValueError("no"), OperationalError("COMMIT", {}, Exception("deadlock detected"))])
def test_a_transactional_step_that_is_undone_is_tried_again(
    effects: list[str], sessions: sessionmaker[Session], error: Exception, refused: str
) -> None:
    """Where it asks for that: a deadlock, or a commit that is refused, has left nothing behind."""

    class Refusing(SqlAlchemySagaStorage):
        left = 1

        def refuse(self, where: str) -> None:
            if self.left and where == refused:
                self.left -= 1
                raise error

        def write(self, write: Any, transaction: Any = None) -> None:
            super().write(write, transaction)
            if transaction is not None:
                self.refuse("write")

    storage = Refusing(sessions)
    event.listen(sessions, "before_commit", lambda _: storage.refuse("commit") if effects else None)

    class Charge(TransactionalSagaStep[Order, str]):
        retry = Retry(attempts=2, delay=0)

        def act(self, context: Order, session: Session) -> Any:
            effects.append("charge")
            charge(session, f"charge {len(effects)}")
            storage.refuse("act")

        def compensate(self, context: Order, session: Session) -> None: ...

    with mediator_of(saga(Charge), storage) as mediator:
        assert mediator.run(Order()).completed
    assert effects == ["charge", "charge"]
    assert charges(sessions) == ["charge 2"]


def test_a_transactional_step_in_memory_gets_a_transaction(effects: list[str], storage: Storage) -> None:
    """Read and written like a dictionary."""

    class Charge(TransactionalSagaStep[Order, str]):
        def act(self, context: Order, session: MemoryTransaction) -> Any:
            session["charge"] = 1

        def compensate(self, context: Order, session: MemoryTransaction) -> None: ...

    with mediator_of(saga(Charge), storage) as mediator:
        assert mediator.run(Order()).completed
    assert storage.unit_of_work.store == {"charge": 1}


def test_a_transactional_step_needs_the_storage_s_database(
    effects: list[str], storage: Storage, sessions: sessionmaker[Session]
) -> None:
    """Else it could not be exactly once; refused at bootstrap."""
    for saga_storage, unit_of_work in (
        (storage, cqrs.SqlAlchemyUnitOfWork(sessions)),
        (SqlAlchemySagaStorage(sessions), MemoryUnitOfWork()),
    ):
        with (
            pytest.raises(ConfigurationError, match="Charge is recorded in its own transaction"),
            mediator_of(saga(transactional("charge", effects)), saga_storage, unit_of_work=unit_of_work),
        ):
            pass


class Writer(SagaStepHandler[Order, None]):
    """A step that writes with the session of the unit of work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def act(self, context: Order) -> Any:
        charge(self._session, context.order_id)
        self.events = [Told(payload=1)]

    def compensate(self, context: Order) -> None:
        self._session.execute(text("DELETE FROM charges"))


def test_what_a_step_writes_and_tells_is_one_transaction_with_its_record(
    effects: list[str], sessions: sessionmaker[Session]
) -> None:
    """By the session that its constructor asks for, and the outbox."""
    events = cqrs.OutboxedEventMap()
    events.register("told_by_saga", Told)

    def outbox(session: Session) -> SqlAlchemyOutboxedEventRepository:
        return SqlAlchemyOutboxedEventRepository(session, event_map=events)

    unit_of_work = cqrs.SqlAlchemyUnitOfWork(sessions, outbox=outbox)

    class Refusing(SqlAlchemySagaStorage):
        refuses = False

        def write(self, write: Any, transaction: Any = None) -> None:
            super().write(write, transaction)
            if self.refuses:
                self.refuses = False
                raise LookupError("not this time")

    storage = Refusing(sessions)
    with mediator_of(saga(Writer, step("ship", effects)), storage, unit_of_work=unit_of_work) as mediator:
        assert mediator.run(Order()).completed
        with sessions() as session:
            assert len(outbox(session).get_many()) == 1
        assert charges(sessions) == ["o1"]
        storage.refuses = True
        outcome = mediator.run(Order("o2"))
        assert isinstance(outcome.error, LookupError)
        assert outcome.status is SagaStatus.FAILED
        assert log_of(storage, outcome.saga_id)[0] == ("Writer", "act", "unknown")
    with sessions() as session:
        assert len(outbox(session).get_many()) == 1


def test_a_unit_of_work_of_another_database_is_committed_first(
    effects: list[str], storage: Storage, sessions: sessionmaker[Session]
) -> None:
    """What it has may be there twice, but is never lost."""
    with mediator_of(saga(Writer), storage, unit_of_work=cqrs.SqlAlchemyUnitOfWork(sessions)) as mediator:
        storage.die_before = 2
        with pytest.raises(Died):
            mediator.run(Order())
    assert charges(sessions) == ["o1"]


def test_under_send_a_step_and_its_event_handlers_share_a_transaction(
    effects: list[str], sessions: sessionmaker[Session]
) -> None:
    """An error of a handler fails the step; what is published waits for the commit."""
    broker = InMemoryMessageBroker()
    fails = [False]

    class OnHappened(cqrs.EventHandler[Happened]):
        def __init__(self, session: Session) -> None:
            self._session = session

        def handle(self, event: Happened) -> None:
            charge(self._session, "by handler")
            assert broker.messages == []
            if fails[0]:
                raise LookupError

    class Both(Writer):
        def act(self, context: Order) -> Any:
            super().act(context)
            self.events = [Told(payload=1), Happened()]

    with mediator_of(
        saga(Both),
        SqlAlchemySagaStorage(sessions),
        unit_of_work=cqrs.SqlAlchemyUnitOfWork(sessions),
        scope_strategy=ScopeStrategy.SEND,
        domain_events_mapper=lambda m: m.bind(Happened, OnHappened),
        message_broker=broker,
    ) as mediator:
        assert mediator.run(Order()).completed
        assert charges(sessions) == ["by handler", "o1"]
        assert len(broker.messages) == 1
        fails[0] = True
        with sessions.begin() as session:
            session.execute(text("DELETE FROM charges"))
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert charges(sessions) == []


def test_under_send_a_transactional_step_without_a_unit_of_work_publishes_behind_its_commit(
    effects: list[str], storage: Storage
) -> None:
    """Its transaction is the storage's own, which event handlers do not share."""
    broker = InMemoryMessageBroker()

    class Charge(TransactionalSagaStep[Order, str]):
        def act(self, context: Order, session: Any) -> Any:
            self.events = [Told(payload=1)]

        def compensate(self, context: Order, session: Any) -> None: ...

    with mediator_of(saga(Charge), storage, scope_strategy=ScopeStrategy.SEND, message_broker=broker) as mediator:
        storage.die_before = 2
        with pytest.raises(Died):
            mediator.run(Order())
        assert broker.messages == []
        storage.restart()
        assert mediator.run(Order()).completed
    assert len(broker.messages) == 1


# --- without a mediator ----------------------------------------------------------------------------------------


def test_a_transaction_is_a_run_without_a_mediator(effects: list[str], storage: Storage) -> None:
    """It knows its saga, its results and its context."""
    order_saga = saga(step("a", effects), step("b", effects))
    context = Order()
    with order_saga.transaction(context, punq.Container(), storage) as transaction:
        assert transaction.status is SagaStatus.PENDING
        assert transaction.context is context
        assert transaction.completed_steps == []
        for result in transaction:
            assert result.saga_id == transaction.saga_id
            assert transaction.status in (SagaStatus.RUNNING, SagaStatus.COMPLETED)
        assert [result.response for result in transaction.completed_steps] == ["a", "b"]
        assert list(transaction) == []
    assert transaction.status is SagaStatus.COMPLETED
    saga_id = uuid.uuid4()
    assert (
        order_saga().transaction(context=Order(), container=punq.Container(), storage=storage, saga_id=saga_id).saga_id
        == saga_id
    )


def test_an_error_in_the_block_of_a_transaction_rolls_the_saga_back(effects: list[str], storage: Storage) -> None:
    """It is in the log, and raised."""
    order_saga = saga(step("a", effects), step("b", effects))
    transaction = order_saga.transaction(Order(), punq.Container(), storage)
    with pytest.raises(LookupError), transaction:  # noqa: PT012
        for _ in transaction:
            raise LookupError("mine")
    assert effects == ["a", "-a"]
    assert log_of(storage, transaction.saga_id) == [
        ("a", "act", "completed"),
        ("", "abort", "failed"),
        ("a", "compensate", "completed"),
    ]
    assert storage.load_saga_state(transaction.saga_id).error == "LookupError: mine"


def test_an_error_of_a_step_is_compensated_once(effects: list[str], storage: Storage) -> None:
    """Though it leaves the block too; and one behind the last step changes nothing."""
    order_saga = saga(step("a", effects), step("b", effects, ValueError("no")))
    with pytest.raises(ValueError, match="no"), order_saga.transaction(Order(), punq.Container(), storage) as failed:
        list(failed)
    assert effects == ["a", "b", "-a"]
    done = saga(step("c", effects))
    with pytest.raises(LookupError), done.transaction(Order(), punq.Container(), storage) as completed:  # noqa: PT012
        list(completed)
        raise LookupError
    assert completed.status is SagaStatus.COMPLETED


def test_a_transaction_that_is_left_otherwise_hands_the_saga_over(effects: list[str], storage: Storage) -> None:
    """By ``break``, or by Ctrl-C; before the first step there is no saga yet."""
    order_saga = saga(step("a", effects), step("b", effects))
    for error in (None, KeyboardInterrupt()):
        try:
            with order_saga.transaction(Order(), punq.Container(), storage) as transaction:
                for _ in transaction:
                    if error is not None:
                        raise error
                    break
        except KeyboardInterrupt:
            pass
        assert storage.load_saga_state(transaction.saga_id).locked_by is None
    with pytest.raises(LookupError), order_saga.transaction(Order(), punq.Container(), storage) as transaction:
        raise LookupError
    with order_saga.transaction(Order(), punq.Container(), storage, transaction.saga_id):
        pass
    with pytest.raises(SagaNotFound):
        storage.load_saga_state(transaction.saga_id)
    assert effects == ["a", "a"]


# --- contexts --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Loose(SagaContext):
    """A context with fields that may hold anything."""

    anything: Any = None
    number: float = 0.0
    items: list[str] = dataclasses.field(default_factory=list)


class Identity:
    """Equal to itself alone."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            lambda _: cls(), serialization=core_schema.plain_serializer_function_ser_schema(lambda _: 1)
        )


@dataclasses.dataclass
class WithIdentity(SagaContext):
    """Has one."""

    identity: Identity = dataclasses.field(default_factory=Identity)


def test_a_context_that_cannot_be_stored_is_refused_before_any_step(effects: list[str], storage: Storage) -> None:
    """Naming the field."""
    with mediator_of(saga(step("a", effects)), storage) as mediator:
        with pytest.raises(ContextNotSerializable) as caught:
            mediator.stream(Order(note=object()))
        assert (caught.value.context_type, caught.value.field) == (Order, "note")
        assert "Order.note cannot be stored with the saga" in str(caught.value)
        with pytest.raises(ContextNotSerializable, match="the datetime would come back as a str"):
            mediator.run(Order(note=datetime.datetime.now(datetime.UTC)))
    assert effects == []
    assert storage.commits == 0


def test_a_context_must_come_back_as_it_was() -> None:
    """Values that compare equal do."""
    assert checked_text(Loose(number=1)) == '{"anything":null,"number":1.0,"items":[]}'
    assert checked_text(WithIdentity()) == '{"identity":1}'
    for context, field, says in (
        (Loose(items=("a",)), "items", "the tuple would come back as a list"),  # type: ignore[arg-type]
        (Loose(anything={1: 2}), "anything", "its value would change"),
        (Loose(number=float("nan")), "number", "would not be read again"),
    ):
        with pytest.raises(ContextNotSerializable, match=says) as caught:
            checked_text(context)
        assert caught.value.field == field


def test_the_culprit_is_found_where_annotations_are_for_type_checkers_only() -> None:
    """Or where no field is to blame on its own."""

    @dataclasses.dataclass
    class Strange(SagaContext):
        fine: Unknown = 1  # type: ignore[name-defined]  # noqa: F821
        broken: Any = None

    for broken, field in ((object(), "broken"), (1, "(all)")):
        with pytest.raises(ContextNotSerializable) as caught:
            encode(Strange(broken=broken))
        assert caught.value.field == field


def test_contexts_are_made_of_dictionaries_and_keywords() -> None:
    """As the async library's are."""
    assert Order.from_dict({"order_id": "a"}, note=1) == Order("a", {}, 1)
    assert Order.from_dict(order_id="a").model_dump() == {"order_id": "a", "numbers": {}, "note": None}
    assert decode(Order, '{"order_id": "a", "gone": 1}') == Order("a")


def test_the_sagas_of_a_forgotten_stream_are_handed_over(effects: list[str], storage: Storage) -> None:
    """When it is collected, with its middlewares."""
    with mediator_of(saga(step("a", effects), step("b", effects)), storage) as mediator:
        stream: Any = mediator.stream(Order())
        next(stream)
        del stream
        gc.collect()
        assert len(storage.get_sagas_for_recovery("r1")) == 1


def test_debug_logging_takes_contexts(effects: list[str], storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """The middleware that is there by default."""
    caplog.set_level(logging.DEBUG, "cqrs_sync.middlewares")
    with mediator_of(saga(step("a", effects)), storage) as mediator:
        mediator.run(Order())
    assert "streaming Order" in caplog.text
