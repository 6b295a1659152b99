"""An order and its event: twice wrong, and once right, with an outbox written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.schema import CreateSchema, DropSchema

from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.testing.crash import Case, Ledger, LedgerBroker

metadata = sa.MetaData()
orders = sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True))
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("sent", sa.Boolean, default=False),
)


@contextmanager
def engine_of(case: Case) -> Iterator[Engine]:
    """A file of the case's own, or a schema of its own where a server is given."""
    url = case.settings.get("url")
    if url is None:
        engine = sa.create_engine(f"sqlite:///{case.directory / 'shop.sqlite3'}")
    else:
        engine = sa.create_engine(url, connect_args={"options": f"-csearch_path={case.name}"})
    try:
        yield engine
    finally:
        engine.dispose()


def tables(case: Case) -> None:
    with engine_of(case) as engine:
        if "url" in case.settings:
            with engine.begin() as connection:
                connection.execute(DropSchema(case.name, cascade=True, if_exists=True))
                connection.execute(CreateSchema(case.name))
        metadata.create_all(engine, checkfirst=False)


def event(number: int) -> Message:
    return Message(f"OrderPlaced{number}", "orders", {"number": number}, payload_bytes=b"\x00")


def commit_then_send(case: Case) -> None:
    with engine_of(case) as engine:
        with engine.begin() as connection:
            connection.execute(orders.insert().values(id=1))
        LedgerBroker().send_message(event(1))


def send_then_commit(case: Case) -> None:
    with engine_of(case) as engine, engine.begin() as connection:
        connection.execute(orders.insert().values(id=1))
        LedgerBroker().send_message(event(1))


def store(case: Case) -> None:
    """Write order and event in one transaction."""
    with engine_of(case) as engine, engine.begin() as connection:
        connection.execute(orders.insert().values(id=1))
        connection.execute(outbox.insert().values(id=1, name="OrderPlaced1"))


def stored(case: Case) -> None:
    tables(case)
    store(case)


def place(case: Case) -> None:
    """Write both, then drain."""
    store(case)
    drain(case)


def drain(case: Case) -> None:
    """Send what is pending, then mark it: at least once."""
    with engine_of(case) as engine, engine.begin() as connection:
        pending = outbox.select().where(outbox.c.sent.is_(False)).order_by(outbox.c.id).with_for_update()
        for row in connection.execute(pending).all():
            LedgerBroker().send_message(event(row.id))
            connection.execute(outbox.update().where(outbox.c.id == row.id).values(sent=True))


def drain_marking_first(case: Case) -> None:
    """Mark, commit, send: at most once, which is the mistake."""
    with engine_of(case) as engine:
        with engine.begin() as connection:
            rows = connection.execute(outbox.select().where(outbox.c.sent.is_(False))).all()
            connection.execute(outbox.update().values(sent=True))
        for row in rows:
            LedgerBroker().send_message(event(row.id))


def nothing_lost_nothing_invented(ledger: Ledger) -> None:
    """An order has its event, and an event its order."""
    with engine_of(ledger.case) as engine, engine.connect() as connection:
        placed = {f"OrderPlaced{number}" for number in connection.scalars(sa.select(orders.c.id))}
        pending = set(connection.scalars(sa.select(outbox.c.name).where(outbox.c.sent.is_(False))))
    sent = {message.message_name for message in ledger.messages}
    assert sent <= placed, "an event without an order"
    assert placed <= sent, "an order without an event"
    assert not pending
