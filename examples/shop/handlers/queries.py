"""Answering questions: from the orders, or from the read model where that is quicker."""

from sqlalchemy import select
from sqlalchemy.orm import Session

import cqrs_sync as cqrs
from cqrs_sync.outbox import EventStatus
from examples.shop.fulfilment import saga_id_of
from examples.shop.messages import (
    BestSeller,
    CustomerOrder,
    FindOrdersToShip,
    FindUnknownOrders,
    GetBestSellers,
    GetCustomerOrders,
    GetOutboxState,
    GetPaymentTotals,
    GetTopCustomers,
    OrderToShip,
    OutboxState,
    PaymentTotal,
    TopCustomer,
)
from examples.shop.tables import Customer, CustomerSales, Order, Outbox, PaymentSales, Product, ProductSales, Sagas


class GetCustomerOrdersHandler(cqrs.RequestHandler[GetCustomerOrders]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: GetCustomerOrders) -> list[CustomerOrder]:
        rows = self._session.execute(
            select(Order.id.label("order_id"), Product.name.label("product"), Order.quantity, Order.total)
            .join(Product, Product.id == Order.product)
            .where(Order.customer == request.customer)
            .order_by(Order.placed_at.desc(), Order.id)
            .limit(request.limit)
        )
        return [CustomerOrder(**row) for row in rows.mappings()]


class GetBestSellersHandler(cqrs.RequestHandler[GetBestSellers]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: GetBestSellers) -> list[BestSeller]:
        rows = self._session.execute(
            select(Product.name.label("product"), ProductSales.quantity, ProductSales.revenue)
            .join(Product, Product.id == ProductSales.product)
            .order_by(ProductSales.revenue.desc(), ProductSales.product)
            .limit(request.limit)
        )
        return [BestSeller(**row) for row in rows.mappings()]


class GetTopCustomersHandler(cqrs.RequestHandler[GetTopCustomers]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: GetTopCustomers) -> list[TopCustomer]:
        rows = self._session.execute(
            select(CustomerSales.customer, Customer.name, CustomerSales.orders, CustomerSales.spent)
            .join(Customer, Customer.id == CustomerSales.customer)
            .order_by(CustomerSales.spent.desc(), CustomerSales.customer)
            .limit(request.limit)
        )
        return [TopCustomer(**row) for row in rows.mappings()]


class GetPaymentTotalsHandler(cqrs.RequestHandler[GetPaymentTotals]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: GetPaymentTotals) -> list[PaymentTotal]:
        sales = self._session.scalars(select(PaymentSales).order_by(PaymentSales.amount.desc()))
        return [PaymentTotal(paid_by=way.paid_by, orders=way.orders, amount=way.amount) for way in sales]


class GetOutboxStateHandler(cqrs.RequestHandler[GetOutboxState]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: GetOutboxState) -> OutboxState:
        rows = self._session.execute(select(Outbox.event_id, Outbox.status)).all()
        published = {row.event_id for row in rows if row.status == EventStatus.PRODUCED}
        return OutboxState(waiting=len(rows) - len(published), published=published)


class FindUnknownOrdersHandler(cqrs.RequestHandler[FindUnknownOrders]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: FindUnknownOrders) -> list[str]:
        return sorted(request.order_ids.difference(self._session.scalars(select(Order.id))))


class FindOrdersToShipHandler(cqrs.RequestHandler[FindOrdersToShip]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: FindOrdersToShip) -> list[OrderToShip]:
        begun = set(self._session.scalars(select(Sagas.id)))
        orders = self._session.scalars(select(Order).order_by(Order.placed_at, Order.id))
        waiting = [
            OrderToShip(order_id=one.id, customer=one.customer, product=one.product, quantity=one.quantity)
            for one in orders
            if saga_id_of(one.id) not in begun
        ]
        return waiting[: request.limit]
