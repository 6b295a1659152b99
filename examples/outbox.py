"""An order and its event are written by one transaction; a relay takes the event to the broker."""

import tempfile
import time

import punq
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.message_brokers import InMemoryMessageBroker
from cqrs_sync.outbox import OutboxModel
from cqrs_sync.requests.bootstrap import bootstrap


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)


class PlaceOrder(cqrs.Request[None]):
    order_id: str


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: PlaceOrder) -> None:
        self._session.add(Order(id=request.order_id))
        self.events = [cqrs.NotificationEvent(event_name="order_placed", topic="orders", payload=request.order_id)]


if __name__ == "__main__":
    cqrs.OutboxedEventMap.register("order_placed", cqrs.NotificationEvent[str])
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(f"sqlite:///{directory}/shop.sqlite3")
        Base.metadata.create_all(engine)
        OutboxModel.metadata.create_all(engine)
        sessions, broker = sessionmaker(engine), InMemoryMessageBroker()
        mediator = bootstrap(
            punq.Container(),
            commands_mapper=lambda commands: commands.bind(PlaceOrder, PlaceOrderHandler),
            unit_of_work=cqrs.SqlAlchemyUnitOfWork(sessions, outbox=cqrs.SqlAlchemyOutboxedEventRepository),
        )
        with cqrs.OutboxRelay(sessions, broker) as relay:
            for order_id in ("o-1", "o-2", "o-1"):
                try:
                    mediator.send(PlaceOrder(order_id=order_id))
                except IntegrityError:
                    print(f"{order_id} was placed before, and is not announced again")
            while relay.health().pending:
                time.sleep(0.01)
        engine.dispose()
    print("published:", *(message.payload["payload"] for message in broker.messages))
