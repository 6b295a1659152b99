"""Placing an order."""

import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import cqrs_sync as cqrs
from examples.shop.errors import DuplicateOrder, InsufficientStock, UnknownCustomer, UnknownProduct
from examples.shop.messages import (
    OrderAnnounced,
    OrderConfirmation,
    OrderPlaced,
    PlacedOrder,
    PlaceOrder,
    TakePayment,
)
from examples.shop.payments import INVOICE, VOUCHER
from examples.shop.tables import Customer, Order, Product, Voucher


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder]):
    """Stores the order, takes the goods and takes the payment, in one unit of work: a refusal leaves no row.

    What it announces to other services is stored there too, in the outbox, because it is among its ``events``.

    Payment comes last: a card that was charged is not given back when the database rolls back.
    """

    def __init__(self, session: Session, mediator: cqrs.RequestMediator) -> None:
        self.events: list[cqrs.IEvent] = []
        self._session = session
        self._mediator = mediator

    def handle(self, request: PlaceOrder) -> OrderConfirmation:
        # Locked: orders of a customer are placed, and announced, one after another.
        customer = self._session.get(Customer, request.customer, with_for_update=True)
        if customer is None:
            raise UnknownCustomer(request.customer)
        product = self._session.get(Product, request.product)
        if product is None:
            raise UnknownProduct(request.product)

        total = product.price * request.quantity
        order = self._store(request, total)
        self._take_from_stock(product, request.quantity)
        order.paid_by = paid_by = self._take_payment(request, customer, total)
        self._announce(request, total, paid_by)
        return OrderConfirmation(order_id=request.order_id, customer=request.customer, total=total, paid_by=paid_by)

    def _store(self, request: PlaceOrder, total: int) -> Order:
        order = Order(
            id=request.order_id,
            placed_at=request.placed_at.astimezone(datetime.UTC),
            customer=request.customer,
            product=request.product,
            quantity=request.quantity,
            total=total,
            voucher=request.payment.voucher,
        )
        self._session.add(order)
        try:
            self._session.flush()
        except IntegrityError:
            raise DuplicateOrder(request.order_id) from None
        return order

    def _take_from_stock(self, product: Product, quantity: int) -> None:
        # One statement checks and takes, so that two orders at once never get the same goods.
        take = update(Product).where(Product.id == product.id, Product.stock >= quantity)
        left = self._session.scalar(take.values(stock=Product.stock - quantity).returning(Product.stock))
        if left is None:
            raise InsufficientStock(product.id, quantity, product.stock)

    def _take_payment(self, request: PlaceOrder, customer: Customer, total: int) -> str:
        payment = TakePayment(
            order_id=request.order_id,
            placed_at=request.placed_at,
            amount=total,
            payment=request.payment,
            voucher_left=self._voucher_left(request.payment.voucher),
            credit_left=customer.credit_limit - self._sum(Order.paid_by == INVOICE, Order.customer == customer.id),
        )
        return self._mediator.send(payment).paid_by

    def _voucher_left(self, code: str | None) -> int:
        voucher = self._session.get(Voucher, code, with_for_update=True) if code else None
        if voucher is None:
            return 0
        return voucher.worth - self._sum(Order.paid_by == VOUCHER, Order.voucher == code)

    def _sum(self, *which: ColumnElement[bool]) -> int:
        return self._session.scalar(select(func.sum(Order.total)).where(*which)) or 0

    def _announce(self, request: PlaceOrder, total: int, paid_by: str) -> None:
        order = PlacedOrder(
            order_id=request.order_id,
            customer=request.customer,
            product=request.product,
            quantity=request.quantity,
            total=total,
        )
        self.events += [
            OrderPlaced(**order.model_dump(), paid_by=paid_by),
            OrderAnnounced(payload=order, partition_key=order.customer),
        ]
