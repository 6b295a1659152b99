"""An outbox is drained to Kafka: ``python examples/outbox_kafka.py localhost:9092`` (or set ``KAFKA``)."""

import os
import sys

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

import cqrs_sync as cqrs
from cqrs_sync.message_brokers import BrokerUnavailable
from cqrs_sync.outbox import OutboxModel


class OrderPlaced(cqrs.NotificationEvent[dict[str, str]]):
    event_name: str = "order_placed"
    topic: str = "orders"


def main(address: str) -> int:
    from cqrs_sync.adapters.kafka import KafkaProducerAdapter  # pip install 'cqrs-sync[kafka]'
    from cqrs_sync.message_brokers.kafka import KafkaMessageBroker

    cqrs.OutboxedEventMap.register("order_placed", OrderPlaced)
    engine = create_engine("sqlite://", poolclass=StaticPool)  # in memory: for one thread
    OutboxModel.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with sessions.begin() as session:  # in an application a handler does this: self.events = [OrderPlaced(...)]
        outbox = cqrs.SqlAlchemyOutboxedEventRepository(session)
        for order_id in ("o-1", "o-2", "o-3"):
            outbox.add(OrderPlaced(payload={"order_id": order_id}, partition_key="customer-7"))

    with KafkaMessageBroker(KafkaProducerAdapter([address], timeout=10)) as broker:
        relay = cqrs.OutboxRelay(sessions, broker)
        try:
            print(f"Kafka took {relay.drain()} events into the topic 'orders'")
        except BrokerUnavailable as error:
            print(f"{relay.health().pending} events wait in the outbox: {error}")
            return 1
        finally:
            engine.dispose()
    return 0


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("KAFKA")
    if given is None:
        print("skipped: this example needs a Kafka, python examples/outbox_kafka.py localhost:9092")
        sys.exit()
    sys.exit(main(given))
