"""A command that writes an order and stores its event, and what publishes the event: with the library's outbox."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import punq
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

import cqrs_sync as cqrs
from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxedEventMap, OutboxMixin, OutboxRelay, SqlAlchemyOutboxedEventRepository
from cqrs_sync.producer import EventProducer
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.testing.crash import Case, LedgerBroker, note
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests import kafka as servers

BATCH = 3
"""So few that two orders, of two events each, take several batches."""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


class Outbox(OutboxMixin, Base):
    __tablename__ = "outbox"


class PlaceOrder(cqrs.Request[None]):
    number: int
    topic: str


class Told(cqrs.NotificationEvent[int]):
    """Of an order: its number, or minus its number."""

    event_name: str = "told"
    payload: int = 0


EVENTS = OutboxedEventMap()
EVENTS.register("told", Told)

Repository = functools.partial(SqlAlchemyOutboxedEventRepository, event_map=EVENTS, model=Outbox)


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder]):
    """Tells of an order twice: with the outbox in hand, and by its ``events``. Odd and even orders have a key each."""

    def __init__(self, session: Session, outbox: cqrs.OutboxedEventRepository) -> None:
        self._session = session
        self._outbox = outbox
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: PlaceOrder) -> None:
        key = f"customer-{request.number % 2}"
        self._session.add(Order(id=request.number))
        self._outbox.add(Told(payload=request.number, topic=request.topic, partition_key=key))
        self._events.append(Told(payload=-request.number, topic=request.topic, partition_key=key))


@contextmanager
def engine_of(case: Case) -> Iterator[sa.Engine]:
    """A file of the case's own, or a schema of its own where a server is given."""
    url = case.settings.get("url")
    if url is None:
        engine = sa.create_engine(f"sqlite:///{case.directory / 'shop.sqlite3'}")
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    else:
        engine = sa.create_engine(url, connect_args={"options": f"-csearch_path={case.name}"})
    try:
        yield engine
    finally:
        engine.dispose()


CLIENTS: dict[str, Any] = {
    "kafka-python": KafkaProducerAdapter,
    "confluent": ConfluentProducerAdapter,
    # It takes the mock cluster half a second to give a client the number that this needs.
    "without-idempotence": functools.partial(ConfluentProducerAdapter, enable_idempotence=False),
}


class NotedBroker(MessageBroker):
    """Writes down what is in hand before Kafka gets it."""

    def __init__(self, inner: MessageBroker) -> None:
        self._inner = inner

    def send_message(self, message: Message) -> None:
        raise NotImplementedError("a relay sends batches")

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        note("in hand", payloads=[message.payload["payload"] for message in messages])
        return self._inner.send_messages(messages)


@contextmanager
def broker_of(case: Case) -> Iterator[MessageBroker]:
    """The ledger, or a Kafka where one is given."""
    address = case.settings.get("kafka")
    if address is None:
        yield LedgerBroker()
        return
    with KafkaMessageBroker(CLIENTS[case.settings["client"]](address)) as broker:
        yield NotedBroker(broker)


def topic_of(case: Case) -> str:
    """A name that no case of another test has."""
    return f"{case.settings.get('test', 'orders')}.{case.name}"


def prepare(case: Case) -> None:
    with engine_of(case) as engine:
        if "url" in case.settings:
            with engine.begin() as connection:
                connection.execute(DropSchema(case.name, cascade=True, if_exists=True))
                connection.execute(CreateSchema(case.name))
        Base.metadata.create_all(engine, checkfirst=False)


def prepare_warm(case: Case) -> None:
    """The same with a relay that was there before: the table of partitions is filled."""
    prepare(case)
    drain(case)


def prepare_topic(case: Case) -> None:
    """The same with a topic in Kafka."""
    servers.create(servers.Kafka(case.settings["kafka"]), topic_of(case))
    prepare_warm(case)


def prepare_placed(case: Case) -> None:
    """Everything is in the outbox; what is killed is the relay alone."""
    prepare_warm(case)
    with engine_of(case) as engine:
        _place(case, engine)


def place_and_relay(case: Case) -> None:
    """Commands, then a relay that publishes."""
    with engine_of(case) as engine:
        _place(case, engine)
    drain(case)


def place_and_produce(case: Case) -> None:
    """The same with a loop by hand."""
    with engine_of(case) as engine:
        _place(case, engine)
    produce(case)


def drain(case: Case) -> None:
    """Publish what can be claimed."""
    with relay_of(case) as relay:
        relay.drain()


def recover(case: Case) -> None:
    """What a restart does; the locks of a killed relay may be there a moment longer."""
    with relay_of(case) as relay:
        while relay.health().pending:
            relay.drain()


def produce(case: Case) -> None:
    """The loop of the article, until nothing is left."""
    with engine_of(case) as engine, broker_of(case) as broker, closing(Repository(Session(engine))) as repository:
        producer = EventProducer(message_broker=broker, repository=repository, poll_interval=0.05)
        while pending(repository):
            for events in producer.event_batch_generator(BATCH):
                for event in events:
                    producer.send_message(event)
                producer.repository.commit()
                break


def pending(repository: SqlAlchemyOutboxedEventRepository) -> bool:
    found = repository.backlog().pending > 0
    repository.rollback()
    return found


@contextmanager
def relay_of(case: Case) -> Iterator[OutboxRelay]:
    options: dict[str, Any] = {"batch_size": BATCH, "repository": Repository}
    if case.settings.get("deletes"):
        options["retention"] = 0
    with engine_of(case) as engine, broker_of(case) as broker:
        yield OutboxRelay(sessionmaker(engine), broker, **options)


def _place(case: Case, engine: sa.Engine) -> None:
    mediator = bootstrap(
        punq.Container(),
        commands_mapper=lambda commands: commands.bind(PlaceOrder, PlaceOrderHandler),
        unit_of_work=SqlAlchemyUnitOfWork(sessionmaker(engine), outbox=Repository),
    )
    for number in range(1, case.settings.get("orders", 2) + 1):
        mediator.send(PlaceOrder(number=number, topic=topic_of(case)))


def mark_first(case: Case) -> None:
    """Wrong: what is marked and not yet sent is lost."""
    with engine_of(case) as engine, closing(Repository(Session(engine))) as repository:
        events = repository.get_many(partitions=32)
        repository.mark_produced([event.id for event in events])
        repository.commit()
        for event in events:
            LedgerBroker().send_message(event.to_message())


def publish_and_place(case: Case) -> None:
    """Wrong: the event of an order that was never placed."""
    with engine_of(case) as engine, Session(engine) as session:
        repository = Repository(session)
        session.add(Order(id=1))
        repository.add(Told(payload=1, topic=topic_of(case), partition_key="customer-1"))
        repository.add(Told(payload=-1, topic=topic_of(case), partition_key="customer-1"))
        session.flush()
        events = repository.get_many(partitions=32)
        for event in events:
            LedgerBroker().send_message(event.to_message())
        repository.mark_produced([event.id for event in events])
        repository.commit()
