"""What the shop understands: commands and queries with their answers, and events. Money is in cents."""

import uuid
from pathlib import Path

import pydantic

import cqrs_sync as cqrs

ORDERS_TOPIC = "shop.orders"

# --- orders ------------------------------------------------------------------------------------------------------


class Card(pydantic.BaseModel):
    """A payment card, by the token that stands for its number; ``expires`` is a month such as ``2027-04``."""

    token: str
    expires: str = pydantic.Field(pattern=r"^\d{4}-\d{2}$")


class Payment(pydantic.BaseModel):
    """How a customer wants to pay; a voucher may be backed by a card."""

    method: str
    voucher: str | None = None
    card: Card | None = None


class OrderConfirmation(cqrs.Response):
    order_id: str
    customer: str
    total: int
    paid_by: str


class PlaceOrder(cqrs.Request[OrderConfirmation]):
    order_id: str
    placed_at: pydantic.AwareDatetime
    customer: str
    product: str
    quantity: int = pydantic.Field(gt=0)
    payment: Payment


class OrderPlaced(cqrs.DomainEvent):
    order_id: str
    customer: str
    product: str
    quantity: int
    total: int
    paid_by: str


class PlacedOrder(pydantic.BaseModel):
    """What other services are told of an order."""

    order_id: str
    customer: str
    product: str
    quantity: int
    total: int


class OrderAnnounced(cqrs.NotificationEvent[PlacedOrder]):
    """Goes to the broker; its key is the customer, so that consumers see the orders of each in order."""

    event_name: str = "order_placed"
    topic: str = ORDERS_TOPIC


class OrderToShip(cqrs.Response):
    order_id: str
    customer: str
    product: str
    quantity: int


class FindOrdersToShip(cqrs.Request[list[OrderToShip]]):
    """Asks for orders that nobody has begun to ship, the oldest first."""

    limit: int | None = None


class ShippedOrder(pydantic.BaseModel):
    """What other services are told of an order that is on its way."""

    order_id: str
    customer: str


class OrderShipped(cqrs.NotificationEvent[ShippedOrder]):
    """Goes where the order was announced, under the same key: whoever hears of both hears of the order first."""

    event_name: str = "order_shipped"
    topic: str = ORDERS_TOPIC


# --- payments ----------------------------------------------------------------------------------------------------


class Receipt(cqrs.Response):
    paid_by: str


class TakePayment(cqrs.Request[Receipt]):
    """Collects an amount in whichever way is open; the two balances are what the customer has left."""

    order_id: str
    placed_at: pydantic.AwareDatetime
    amount: int
    payment: Payment
    voucher_left: int
    credit_left: int


class ChargeCard(cqrs.Request[Receipt]):
    order_id: str
    placed_at: pydantic.AwareDatetime
    amount: int
    token: str


# --- the import of a file of orders ------------------------------------------------------------------------------


class Rejection(pydantic.BaseModel):
    """Why an order was refused; ``reason`` is the same for all that were refused for the same cause."""

    reason: str
    detail: str


class ImportedLine(cqrs.Response):
    """What became of one line: a confirmation or a rejection."""

    number: int
    confirmation: OrderConfirmation | None = None
    rejection: Rejection | None = None


class ImportOrders(cqrs.Request[ImportedLine]):
    """Places the orders of a JSON Lines file; streams one answer per line."""

    path: Path


# --- queries -----------------------------------------------------------------------------------------------------


class CustomerOrder(cqrs.Response):
    order_id: str
    product: str
    quantity: int
    total: int


class GetCustomerOrders(cqrs.Request[list[CustomerOrder]]):
    """Asks for a customer's latest orders, the newest first."""

    customer: str
    limit: int = 5


class BestSeller(cqrs.Response):
    product: str
    quantity: int
    revenue: int


class GetBestSellers(cqrs.Request[list[BestSeller]]):
    limit: int = 5


class TopCustomer(cqrs.Response):
    customer: str
    name: str
    orders: int
    spent: int


class GetTopCustomers(cqrs.Request[list[TopCustomer]]):
    limit: int = 1


class PaymentTotal(cqrs.Response):
    paid_by: str
    orders: int
    amount: int


class GetPaymentTotals(cqrs.Request[list[PaymentTotal]]):
    pass


class Audit(cqrs.Response):
    """How many orders there are, and where the read model differs from them."""

    orders: int
    differences: list[str]


class AuditReadModel(cqrs.Request[Audit]):
    pass


class OutboxState(cqrs.Response):
    """How many events wait in the outbox, and the ids of those that are noted as published."""

    waiting: int
    published: set[uuid.UUID]


class GetOutboxState(cqrs.Request[OutboxState]):
    pass


class FindUnknownOrders(cqrs.Request[list[str]]):
    """Asks which of these are no orders."""

    order_ids: set[str]
