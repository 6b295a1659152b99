"""The tables: what the shop sells and to whom, the orders, the read model that is counted from them, and the outbox."""

import datetime

from sqlalchemy import CheckConstraint, DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cqrs_sync.outbox import OutboxMixin


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
