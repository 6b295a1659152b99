"""From a command to a Kafka topic: what is read there is what was stored, whoever is killed on the way."""

from __future__ import annotations

import gc
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import punq
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
from cqrs_sync.adapters.kafka import KafkaProducerAdapter
from cqrs_sync.compressors import ZlibCompressor
from cqrs_sync.message_brokers.kafka import KafkaMessageBroker
from cqrs_sync.outbox import OutboxRelay
from cqrs_sync.requests.bootstrap import bootstrap
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from tests import kafka as servers
from tests.integration import outbox_world as world
from tests.integration.outbox_world import Counted, Journal, Relays, Repository

# kafka-python leaves a socket to the garbage collector for every connection that fails.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # while the filter above holds


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)


class PlaceOrder(cqrs.Request[None]):
    number: int
    topic: str
    fails: bool = False


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder]):
    def __init__(self, session: Session) -> None:
        self._session = session
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: PlaceOrder) -> None:
        self._session.add(Order(id=request.number))
        key, padding = f"käufer-{request.number % 3}", "ü€🦊\u2028"
        self._events.append(
            Counted(
                payload=request.number,
                topic=request.topic,
                partition_key=key,
                padding=padding,
                headers={"traceparent": TRACE, "tenant": "köln"},
            )
        )
        if request.fails:
            self._session.flush()
            raise LookupError


@pytest.mark.parametrize("adapter", [KafkaProducerAdapter, ConfluentProducerAdapter])
def test_a_command_s_event_is_read_from_kafka_as_it_was_stored(
    kafka: servers.Kafka, postgres_url: str, adapter: Any
) -> None:
    """Key, headers and bytes, compressed in the table or not; of a command that failed nothing."""
    topic = f"orders-{uuid.uuid4().hex}"
    servers.create(kafka, topic, partitions=3)
    with world.database(postgres_url) as url, world.engine_of(url) as engine:
        Base.metadata.create_all(engine)
        sessions = sessionmaker(engine)

        def outbox(session: Session) -> Any:
            return Repository(session, ZlibCompressor())

        mediator = bootstrap(
            punq.Container(),
            commands_mapper=lambda commands: commands.bind(PlaceOrder, PlaceOrderHandler),
            unit_of_work=SqlAlchemyUnitOfWork(sessions, outbox=outbox),
        )
        with (
            KafkaMessageBroker(adapter(kafka.address)) as broker,
            OutboxRelay(sessions, broker, poll_interval=3600, repository=Repository),
        ):
            threads = [
                threading.Thread(target=lambda n=number: mediator.send(PlaceOrder(number=n, topic=topic)))
                for number in range(1, 7)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(world.WAIT)
            with pytest.raises(LookupError):
                mediator.send(PlaceOrder(number=7, topic=topic, fails=True))
            world.eventually(lambda: world.statuses(engine) == {"produced": 6})
        rows = {row.event_id: row for row in world.rows(engine)}
        with engine.connect() as connection:
            assert set(connection.scalars(sa.select(Order.id))) == set(range(1, 7))
    found = servers.read(kafka.address, topic)
    assert len(found) == 6
    for message in found:
        headers = dict(message.headers())
        row = rows[uuid.UUID(headers["message-id"].decode())]
        assert message.key() == row.partition_key.encode()
        assert message.value() == ZlibCompressor().decompress(bytes(row.payload))
        assert headers["message-name"] == b"counted"
        assert headers["content-type"] == row.content_type.encode()
        assert headers["traceparent"] == TRACE.encode()
        assert headers["tenant"] == "köln".encode()
        event = Counted.from_dict(**json.loads(message.value()))
        assert (event.event_id, event.padding) == (row.event_id, "ü€🦊\u2028")
    assert {row.status for row in rows.values()} == {"produced"}


# --- relays that are killed --------------------------------------------------------------------------------------


def test_kafka_has_every_event_of_four_relays_of_which_one_after_the_other_is_killed(
    kafka: servers.Kafka, postgres_url: str, tmp_path: Path
) -> None:
    """Each dies while it is at work; what was in its hand may be there twice, and nothing else is."""
    rounds, each, keys, batch = 8, 500, 100, 20
    events = rounds * each
    journal, topic = Journal(tmp_path / "journal"), f"killed-{uuid.uuid4().hex}"
    servers.create(kafka, topic, partitions=4)
    numbered = [event.model_copy(update={"topic": topic}) for event in world.numbered(events, keys)]
    options: dict[str, Any] = {"kafka": kafka.address, "batch_size": batch}
    with world.database(postgres_url) as url, world.engine_of(url) as engine, world.children() as children:
        relays = Relays(children, url, journal, 4, **options)
        for number in range(rounds):
            before = len(journal.entries())
            world.store(sessionmaker(engine), numbered[number * each : (number + 1) * each])
            what = "sent" if number % 2 else "claimed"
            relays.kill(world.eventually(lambda n=before, w=what: relays.running.keys() & journal.who(w, n)).pop())
        world.eventually(lambda: world.statuses(engine) == {"produced": events})
        relays.end()
    again = journal.check_read(servers.read(kafka.address, topic), world.expected(events, keys), relays.killed)
    assert len(relays.killed) == rounds
    assert journal.interrupted(relays.killed), "nobody had anything in hand"
    assert again <= rounds * batch
