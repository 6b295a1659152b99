"""The read model: sales per product, customer and way of paying, counted from events as orders come in.

The handlers run on the pool, beside each other and after the order's commit, each in a unit of work of its own. So they
never read a number to write it back: one statement adds to it. A process that dies between an order and its events
leaves the read model behind, and the audit tells.
"""

from sqlalchemy import Executable, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

import cqrs_sync as cqrs
from examples.shop.messages import Audit, AuditReadModel, OrderPlaced
from examples.shop.tables import Base, CustomerSales, Order, PaymentSales, ProductSales


class CountProductSales(cqrs.EventHandler[OrderPlaced]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, event: OrderPlaced) -> None:
        add(self._session, ProductSales, {"product": event.product}, quantity=event.quantity, revenue=event.total)


class CountCustomerSales(cqrs.EventHandler[OrderPlaced]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, event: OrderPlaced) -> None:
        add(self._session, CustomerSales, {"customer": event.customer}, orders=1, spent=event.total)


class CountPaymentSales(cqrs.EventHandler[OrderPlaced]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, event: OrderPlaced) -> None:
        add(self._session, PaymentSales, {"paid_by": event.paid_by}, orders=1, amount=event.total)


def add(session: Session, table: type[Base], key: dict[str, str], **amounts: int) -> None:
    """Add amounts to the row of this key, or make the row."""
    sums = {column: getattr(table, column) + amount for column, amount in amounts.items()}
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    session.execute(insert(table).values(**key, **amounts).on_conflict_do_update(index_elements=list(key), set_=sums))


class AuditReadModelHandler(cqrs.RequestHandler[AuditReadModel]):
    """Counts the orders anew and compares."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def handle(self, request: AuditReadModel) -> Audit:
        orders, total, quantity = func.count(), func.sum(Order.total), func.sum(Order.quantity)
        differences = [
            *self._differences(
                select(ProductSales.product, ProductSales.quantity, ProductSales.revenue),
                select(Order.product, quantity, total).group_by(Order.product),
            ),
            *self._differences(
                select(CustomerSales.customer, CustomerSales.orders, CustomerSales.spent),
                select(Order.customer, orders, total).group_by(Order.customer),
            ),
            *self._differences(
                select(PaymentSales.paid_by, PaymentSales.orders, PaymentSales.amount),
                select(Order.paid_by, orders, total).group_by(Order.paid_by),
            ),
        ]
        return Audit(orders=self._session.scalar(select(orders).select_from(Order)) or 0, differences=differences)

    def _differences(self, kept: Executable, counted: Executable) -> list[str]:
        is_kept = set(map(tuple, self._session.execute(kept)))
        is_right = set(map(tuple, self._session.execute(counted)))
        return [f"kept but wrong: {row}" for row in sorted(is_kept - is_right)] + [
            f"right but not kept: {row}" for row in sorted(is_right - is_kept)
        ]


def bind_read_model(events: cqrs.EventMap) -> None:
    """Bind what keeps the read model."""
    events.bind(OrderPlaced, CountProductSales)
    events.bind(OrderPlaced, CountCustomerSales)
    events.bind(OrderPlaced, CountPaymentSales)
