"""The article that the library mirrors: its snippets run in their sync form, kept as files beside this one."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import threading
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

import punq
import pytest
from sqlalchemy import create_engine, update
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

import cqrs_sync as cqrs
from cqrs_sync.errors import RequestHandlerDoesNotExist, UnresolvableDependency
from cqrs_sync.outbox.sqlalchemy import Base, OutboxModel
from cqrs_sync.requests import bootstrap
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.sqlalchemy import Base as SagaBase
from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from tests.databases import fresh
from tests.kafka import Kafka, create, read

ARTICLE = pathlib.Path(__file__).parent / "article"

RUN = {
    "chain",
    "command",
    "consume",
    "domain_events",
    "emit_to_kafka",
    "outbox_publisher",
    "outboxed_event_map",
    "query",
    "saga",
    "streaming",
}
"""Snippets that run."""


Run = Callable[..., ModuleType]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """What runs a snippet as a module, with the names that the article leaves to the reader."""

    def run_snippet(name: str, **given: Any) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"article_{name}", ARTICLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        vars(module).update(given)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where pydantic looks for the classes of generic models
        spec.loader.exec_module(module)
        return module

    return run_snippet


def handled_by(handler: type, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note what a snippet's event handler is given, which itself does nothing with it."""
    seen: list[Any] = []
    original: Callable[[Any, Any], Any] = handler.handle  # type: ignore[attr-defined]

    def handle(self: Any, event: Any) -> Any:
        seen.append(event)
        return original(self, event)

    monkeypatch.setattr(handler, "handle", handle)
    return seen


def test_every_snippet_is_tested() -> None:
    """A snippet that no test runs would prove nothing."""
    snippets = {path.stem for path in ARTICLE.glob("*.py")} - {"conftest"}
    assert snippets == RUN


def test_command_is_answered_by_a_handler_that_was_never_registered(run: Run) -> None:
    """See it in code: one command, one handler, ``mediator.send``."""
    module = run("command")
    assert isinstance(module.result, module.CreateUserResponse)
    assert module.result.to_dict() == {"user_id": "user_user@example.com"}


def test_query_is_answered_with_a_read_model(run: Run) -> None:
    """Query: the same mediator and the same ``send``."""
    module = run("query")
    assert isinstance(module.user, module.UserDto)
    assert module.user.to_dict() == {"user_id": "u1", "name": "Ada"}
    with pytest.raises(RequestHandlerDoesNotExist):
        module.mediator.send(cqrs.Request())


def test_domain_events_reach_their_handler_before_the_response(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Domain events: handled in the same turn, with up to 4 handlers at once."""
    module = run("domain_events")
    seen = handled_by(module.OnOrderLineAdded, monkeypatch)
    with module.mediator as mediator:
        for order_id in ("o1", "o2"):
            assert mediator.send(module.CreateOrder(order_id=order_id)) == module.OrderCreated()
            assert seen.pop() == module.OrderLineAdded(order_id=order_id, sku="sku-1")
    assert seen == []


def test_domain_event_handlers_of_the_article_run_four_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number alone caps parallel domain handlers: 4 sends of one event each meet in their handlers."""
    module = run("domain_events")
    meet = threading.Barrier(4)
    monkeypatch.setattr(module.OnOrderLineAdded, "handle", lambda self, event: meet.wait(10))
    with module.mediator as mediator:
        senders = [
            threading.Thread(target=mediator.send, args=(module.CreateOrder(order_id=str(number)),))
            for number in range(4)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(30)
    assert not meet.broken


def test_stream_yields_a_chunk_for_each_file_behind_its_event(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Streaming: the handler has no ``clear_events`` of its own, and each event is handled once, before its chunk."""
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    module = run("streaming")
    seen = handled_by(module.OnFileDone, monkeypatch)
    with module.mediator as mediator:
        stream = mediator.stream(module.ProcessFilesCommand(file_ids=["a", "b"]))
        for file_id in ("a", "b"):
            assert next(stream) == module.FileResult(file_id=file_id, status="ok")
            assert seen.pop() == module.FileDone(file_id=file_id)
            assert seen == []
        assert list(stream) == []
        module.run_stream()
    assert capsys.readouterr().out == "1 ok\n2 ok\n3 ok\n"
    assert [event.file_id for event in seen] == ["1", "2", "3"]
    assert naps == [0.01] * 5


def test_stream_that_is_left_early_handles_no_further_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming: closing the generator ends the handler."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    module = run("streaming")
    seen = handled_by(module.OnFileDone, monkeypatch)
    with module.mediator as mediator:
        stream = mediator.stream(module.ProcessFilesCommand(file_ids=["a", "b"]))
        next(stream)
        stream.close()
    assert [event.file_id for event in seen] == ["a"]


@pytest.mark.parametrize(("method", "ok", "msg"), [("card", True, "card"), ("cash", False, "unsupported: cash")])
def test_first_handler_of_the_chain_that_matches_answers(run: Run, method: str, ok: bool, msg: str) -> None:
    """Chain of responsibility: the ordered chain is bound as a list."""
    module = run("chain")
    mediator = bootstrap.bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda m: m.bind(module.PayCmd, [module.CardHandler, module.DefaultPay]),
    )
    answer = mediator.send(module.PayCmd(amount=1.5, method=method, user_id="u1"))
    assert answer == module.PayResult(ok=ok, msg=msg)


def test_notification_event_from_outside_reaches_its_handler(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """EventMediator: what a consumer hands over is handled, payload and all."""
    module = run("consume")
    seen = handled_by(module.OnUserCreated, monkeypatch)
    body = cqrs.NotificationEvent[module.UserCreatedPayload](
        event_name="user_created", payload=module.UserCreatedPayload(user_id="u1")
    )
    received = type(body).from_dict(**body.to_dict())
    mediator = module.mediator_factory()
    assert mediator is module.mediator_factory()
    module.on_message(received, mediator)
    assert seen == [body]
    assert seen[0].payload == module.UserCreatedPayload(user_id="u1")


def stored_by(*events: Any) -> sessionmaker[Session]:
    """A database whose outbox holds these events, each stored by the handler of a command."""

    class Tell(cqrs.Request[None]):
        event: Any

    class TellHandler(cqrs.RequestHandler[Tell]):
        def handle(self, request: Tell) -> None:
            self.events = [request.event]

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    mediator = bootstrap.bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda m: m.bind(Tell, TellHandler),
        unit_of_work=cqrs.SqlAlchemyUnitOfWork(sessions, outbox=cqrs.SqlAlchemyOutboxedEventRepository),
    )
    for event in events:
        mediator.send(Tell(event=event))
    return sessions


@pytest.fixture
def user_joined(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """What makes events of the kind that the article registers."""
    monkeypatch.setattr(cqrs.OutboxedEventMap, "_shared", None)  # the process-wide map, and this test is not alone
    payload = run("outboxed_event_map").UserJoinedPayload
    return lambda number: cqrs.NotificationEvent[payload](
        event_name="user_joined",
        topic="users",
        partition_key="m1",
        payload=payload(user_id=f"u{number}", meeting_id="m1"),
    )


def test_registered_event_goes_into_the_outbox_with_the_handlers_transaction(
    user_joined: Callable[[int], Any],
) -> None:
    """OutboxedEventMap: the name on the wire and the payload type, once."""
    with stored_by(user_joined(1))() as session:
        [row] = cqrs.SqlAlchemyOutboxedEventRepository(session).get_many()
        assert (row.event_name, row.topic) == ("user_joined", "users")
        assert row.event.payload.user_id == "u1"


def test_publisher_of_the_article_sends_what_handlers_stored(
    run: Run, user_joined: Callable[[int], Any], kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outbox -> broker: to a real Kafka, in order, and each event once; the loop sleeps between its batches."""
    sessions = stored_by(*map(user_joined, range(3)))
    monkeypatch.setattr("cqrs_sync.adapters.kafka.kafka_producer_factory", _at(kafka.address))
    topic = new_topic(kafka)
    with sessions() as session:
        session.execute(update(OutboxModel).values(topic=topic))
        session.commit()
        module = run("outbox_publisher", outbox_repository=cqrs.SqlAlchemyOutboxedEventRepository(session))
        monkeypatch.setattr("time.sleep", lambda seconds: module.producer.stop())
        module.publish_loop()
    module.broker.close()
    with sessions() as session:
        assert cqrs.SqlAlchemyOutboxedEventRepository(session).backlog().pending == 0
    users = [json.loads(record.value())["payload"]["user_id"] for record in read(kafka.address, topic)]
    assert users == ["u0", "u1", "u2"]


def test_events_of_handlers_reach_kafka_without_an_outbox_too(
    run: Run, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP path: ``message_broker=`` publishes after the handler."""
    topic = new_topic(kafka)

    class Emit(cqrs.Request[None]):
        pass

    class EmitHandler(cqrs.RequestHandler[Emit]):
        def handle(self, request: Emit) -> None:
            self.events = [cqrs.NotificationEvent(event_name="emitted", topic=topic, payload={"n": 1})]

    adapter = importlib.import_module("cqrs_sync.adapters.kafka")
    with monkeypatch.context() as patch:
        patch.setattr(
            adapter,
            "KafkaProducerAdapter",
            functools.partial(_redirected, adapter.KafkaProducerAdapter, kafka.address),
        )
        module = run("emit_to_kafka", commands_mapper=lambda m: m.bind(Emit, EmitHandler), events_mapper=lambda m: None)
    with module.kafka_broker:
        module.mediator.send(Emit())
    [record] = read(kafka.address, topic)
    assert json.loads(record.value())["payload"] == {"n": 1}


def new_topic(kafka: Kafka) -> str:
    """A topic of this test alone."""
    topic = f"article-{uuid.uuid4().hex}"
    create(kafka, topic)
    return topic


def _redirected(make: Callable[..., Any], address: str, bootstrap_servers: list[str]) -> Any:
    """The article's localhost:9092 is wherever this Kafka is."""
    assert bootstrap_servers == ["localhost:9092"]
    return make(bootstrap_servers=[address])


def _at(address: str) -> Callable[..., Any]:
    from cqrs_sync.adapters import kafka as adapters

    make = adapters.kafka_producer_factory

    def factory(dsn: str) -> Any:
        assert dsn == "localhost:9092"
        return make(dsn=address)

    return factory


class Inventory:
    """What the article leaves to the reader."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def reserve(self, order_id: str, items: list[str]) -> str:
        self.calls.append((order_id, items))
        return f"reservation of {order_id}"

    def release(self, reservation_id: str) -> None:
        self.calls.append(reservation_id)


def test_saga_of_the_article_runs_with_the_inventory_that_is_registered(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orchestrated saga: context, steps, map, bootstrap and stream; ``inventory`` is found by its name."""
    inventory, container = Inventory(), punq.Container()
    container.register("inventory", instance=inventory)
    with monkeypatch.context() as patch:
        patch.setattr(punq, "Container", lambda: container)
        module = run("saga")
    with module.mediator as mediator:
        module.run_saga()
        assert inventory.calls == [("o1", ["a", "b"])]
        context = module.OrderContext(order_id="o2", items=[], total_amount=1.0)
        assert mediator.run(context).completed
        assert context.reservation_id == "reservation of o2"
    module.ReserveInventoryStep(inventory).compensate(context)
    assert inventory.calls[-1] == "reservation of o2"


def test_saga_of_the_article_as_written_says_what_is_missing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A warning at bootstrap, and then the failure of the step; nothing has happened that must be undone."""
    module = run("saga")
    assert "OrderSaga cannot run yet: ReserveInventoryStep.__init__ parameter 'inventory'" in caplog.text
    with module.mediator as mediator:
        outcome = mediator.run(module.OrderContext(order_id="o1", items=[], total_amount=1.0))
    assert (outcome.status, type(outcome.error)) == ("failed", UnresolvableDependency)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_saga_of_the_article_is_stored_and_compensated_in_a_database(
    run: Run,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    request: pytest.FixtureRequest,
) -> None:
    """Orchestrated saga: with its "SQLAlchemy storage in prod", and a second step that fails."""
    inventory, container = Inventory(), punq.Container()
    container.register("inventory", instance=inventory)
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/sagas.sqlite3"
        if database == "postgresql":
            url = stack.enter_context(fresh(request.getfixturevalue("postgres_url")))
        engine = create_engine(url)
        stack.callback(engine.dispose)
        SagaBase.metadata.create_all(engine)
        storage = SqlAlchemySagaStorage(sessionmaker(engine))
        with monkeypatch.context() as patch:
            patch.setattr(punq, "Container", lambda: container)
            patch.setattr("cqrs_sync.saga.storage.memory.MemorySagaStorage", lambda: storage)
            module = run("saga")
        with module.mediator:
            module.run_saga()
            [stored] = storage.find([SagaStatus.COMPLETED])
            assert '"reservation_id":"reservation of o1"' in stored.context

            class Charge(module.ReserveInventoryStep):  # type: ignore[misc, name-defined]
                def act(self, context: Any) -> Any:
                    raise ConnectionError("the card is refused")

            class PaidSaga(Saga[module.OrderContext]):  # type: ignore[misc, name-defined]
                steps = [module.ReserveInventoryStep, Charge]

            context = module.OrderContext(order_id="o2", items=[], total_amount=1.0)
            with pytest.raises(ConnectionError), PaidSaga.transaction(context, container, storage) as saga:
                list(saga)
            assert storage.load_saga_state(saga.saga_id).status is SagaStatus.FAILED
            assert inventory.calls[-1] == "reservation of o2"
