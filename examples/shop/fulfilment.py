"""The saga that brings an order to its customer: reserve the goods, charge the delivery, ship.

The partners know nothing of each other, so what was done with one has to be undone when the next says no. The shop's
own books are left as they are then: somebody calls the customer.
"""

import dataclasses
import uuid
from contextlib import suppress

import cqrs_sync as cqrs
from cqrs_sync.errors import SagaConcurrencyError
from cqrs_sync.saga import SagaContext
from examples.shop.messages import OrderShipped, OrderToShip, ShippedOrder
from examples.shop.partners import Bank, Carrier, Warehouse

DELIVERY = 590
"""Cents that a delivery costs."""

LEASE = 2.0
"""Seconds after which a process that is not heard of counts as dead. Short, for the demo: in production, 30."""

_IDS = uuid.UUID("d0b6d2f8-9f0c-4a57-9f57-3f5a2a9f4c11")


@dataclasses.dataclass
class Fulfilment(SagaContext):
    """What the steps know of the order."""

    order_id: str
    customer: str
    product: str
    quantity: int


class Reserve(cqrs.SagaStepHandler[Fulfilment, None]):
    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def act(self, context: Fulfilment) -> cqrs.SagaStepResult[Fulfilment, None]:
        self._warehouse.reserve(context.order_id, context.product, context.quantity, key=self.idempotency_key)
        return self._generate_step_result(None)

    def compensate(self, context: Fulfilment) -> None:
        self._warehouse.put_back(context.order_id, key=self.idempotency_key)


class Charge(cqrs.SagaStepHandler[Fulfilment, None]):
    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def act(self, context: Fulfilment) -> cqrs.SagaStepResult[Fulfilment, None]:
        self._bank.charge(context.order_id, context.customer, DELIVERY, key=self.idempotency_key)
        return self._generate_step_result(None)

    def compensate(self, context: Fulfilment) -> None:
        self._bank.refund(context.order_id, key=self.idempotency_key)


class Ship(cqrs.SagaStepHandler[Fulfilment, None]):
    """Ships, and has it announced: the event is in the outbox if and only if the step is in the saga's log."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def act(self, context: Fulfilment) -> cqrs.SagaStepResult[Fulfilment, None]:
        self._carrier.ship(context.order_id, context.customer, key=self.idempotency_key)
        shipped = ShippedOrder(order_id=context.order_id, customer=context.customer)
        self.events = [OrderShipped(payload=shipped, partition_key=context.customer)]
        return self._generate_step_result(None)

    def compensate(self, context: Fulfilment) -> None:
        self._carrier.call_back(context.order_id, key=self.idempotency_key)


class FulfilmentSaga(cqrs.Saga[Fulfilment]):
    steps = [Reserve, Charge, Ship]


def bind_sagas(sagas: cqrs.SagaMap) -> None:
    """Bind the one saga."""
    sagas.bind(Fulfilment, FulfilmentSaga)


def saga_id_of(order_id: str) -> uuid.UUID:
    """The id of an order's saga: always the same, so that no order has two."""
    return uuid.uuid5(_IDS, order_id)


def ship(sagas: cqrs.SagaMediator, order: OrderToShip) -> None:
    """Run the saga of an order; what it has failed with is in its log."""
    with suppress(SagaConcurrencyError):  # this process was held up for longer than its lease, and another goes on
        sagas.run(Fulfilment(**order.model_dump()), saga_id_of(order.order_id))
