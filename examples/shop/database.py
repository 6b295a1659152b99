"""The database: one SQLite file unless a URL says otherwise, made and filled on first use."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, exists, select
from sqlalchemy.orm import Session

from examples.shop.partners import PARTNERS
from examples.shop.tables import Base, Customer, PartnerStock, Product, Voucher

CATALOGUE = Path(__file__).with_name("catalogue.json")


def open_database(database: Path | str) -> Engine:
    """Return an engine for a file or a URL, such as ``postgresql://shop@localhost/shop``; the tables are made."""
    engine = connect(database)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        if not session.scalar(select(exists(select(Product)))):
            _fill(session)
        if not session.scalar(select(exists(select(PartnerStock)))):
            _fill_partners(session)
    return engine


def connect(database: Path | str) -> Engine:
    """Return an engine for a database that has its tables."""
    if "://" in str(database):
        return create_engine(str(database))
    # SQLite has one writer at a time: the others wait this many seconds for their turn.
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 60})
    event.listen(engine, "connect", _set_up_connection)
    return engine


def _set_up_connection(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # With a write-ahead log readers and the writer do not wait for each other.
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _fill(session: Session) -> None:
    catalogue = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    session.add_all(Product(**product) for product in catalogue["products"])
    session.add_all(Customer(**customer) for customer in catalogue["customers"])
    session.add_all(Voucher(**voucher) for voucher in catalogue["vouchers"])


def _fill_partners(session: Session) -> None:
    for stock in (PARTNERS["warehouse"], PARTNERS["bank"]):
        session.add_all(PartnerStock(item=item, left_over=left_over) for item, left_over in stock.items())
