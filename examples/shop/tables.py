"""The tables: what the shop sells and to whom, orders, the read model, the outbox, sagas, and what partners keep."""

import datetime

from sqlalchemy import CheckConstraint, DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cqrs_sync.outbox import OutboxMixin
from cqrs_sync.saga.storage.sqlalchemy import SagaExecutionMixin, SagaLogMixin


class Base(DeclarativeBase):
    """The base of all tables."""


class Product(Base):
    __tablename__ = "products"
    __table_args__ = (CheckConstraint("stock >= 0"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[int]
    stock: Mapped[int]


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    credit_limit: Mapped[int]


class Voucher(Base):
    __tablename__ = "vouchers"

    code: Mapped[str] = mapped_column(primary_key=True)
    worth: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    placed_at: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))
    customer: Mapped[str] = mapped_column(ForeignKey(Customer.id), index=True)
    product: Mapped[str] = mapped_column(ForeignKey(Product.id))
    quantity: Mapped[int]
    total: Mapped[int]
    voucher: Mapped[str | None]
    paid_by: Mapped[str | None]


# --- the read model ----------------------------------------------------------------------------------------------


class ProductSales(Base):
    __tablename__ = "product_sales"

    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]
    revenue: Mapped[int]


class CustomerSales(Base):
    __tablename__ = "customer_sales"

    customer: Mapped[str] = mapped_column(primary_key=True)
    orders: Mapped[int]
    spent: Mapped[int]


class PaymentSales(Base):
    __tablename__ = "payment_sales"

    paid_by: Mapped[str] = mapped_column(primary_key=True)
    orders: Mapped[int]
    amount: Mapped[int]


# --- events on their way out -------------------------------------------------------------------------------------


class Outbox(OutboxMixin, Base):
    """Beside the orders, so that both are written by one transaction."""

    __tablename__ = "outbox"


# --- orders on their way to the customer -------------------------------------------------------------------------


class Sagas(SagaExecutionMixin, Base):
    """How far each order is on its way."""

    __tablename__ = "sagas"


class SagaLog(SagaLogMixin, Base):
    """What was done for that, and by whom."""

    __tablename__ = "saga_log"


# --- what the shop's partners keep, each in a database of their own were they not played here ----------------------


class PartnerStock(Base):
    """What can be had from a partner: goods of a product, money of a customer."""

    __tablename__ = "partner_stock"
    __table_args__ = (CheckConstraint("left_over >= 0"),)

    item: Mapped[str] = mapped_column(primary_key=True)
    left_over: Mapped[int]


class PartnerEffect(Base):
    """What a partner has done for the shop, once for each key."""

    __tablename__ = "partner_effects"

    key: Mapped[str] = mapped_column(primary_key=True)
    action: Mapped[str]
    order_id: Mapped[str] = mapped_column(index=True)
    item: Mapped[str | None]
    amount: Mapped[int]
    asked: Mapped[int] = mapped_column(default=1)
