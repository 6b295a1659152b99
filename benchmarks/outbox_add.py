"""What it costs to store events with the row they tell of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks import servers
from benchmarks.outbox_rows import order_placed, outbox_of
from benchmarks.report import Row, Section, compared
from benchmarks.timing import Effort, race, statement
from cqrs_sync.outbox.sqlalchemy import Base

DRIVER = "psycopg2: INSERT, COMMIT"
BARE = "bare Session: add, commit"
ONE = "with 1 event"
ONE_NOTIFYING = "with 1 event, notify=True"
TEN = "with 10 events"


class Business(DeclarativeBase):
    """The application's own metadata."""


class Order(Business):
    """The business row."""

    __tablename__ = "bench_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    title = "outbox: one business row inserted and committed, without and with events"
    try:
        with servers.database() as engine:
            yield _added(title, engine, effort)
    except LookupError as error:
        yield servers.absent(title, error)


def _added(title: str, engine: Engine, effort: Effort) -> Section:
    for base in (Base, Business):
        base.metadata.create_all(engine)

    def insert() -> None:
        cursor.execute("INSERT INTO bench_orders (customer) VALUES (%s) RETURNING id", ("customer-0",))
        cursor.fetchone()
        driver.commit()

    def add(events: int = 0, notify: bool = False) -> None:
        with Session(engine) as session:
            session.add(Order(customer="customer-0"))
            if events:
                outbox = outbox_of(session, notify=notify)
                for _ in range(events):
                    outbox.add(order_placed())
            session.commit()

    with closing(engine.raw_connection()) as driver, closing(driver.cursor()) as cursor:
        times = race(
            {
                DRIVER: statement("insert()", insert=insert),
                BARE: statement("add()", add=add),
                ONE: statement("add(1)", add=add),
                ONE_NOTIFYING: statement("add(1, notify=True)", add=add),
                TEN: statement("add(10)", add=add),
            },
            rounds=effort.rounds,
            slice=effort.slice * 5,
            said="outbox-add",
        )
    more = {name: times.added(name, BARE) for name in (ONE, ONE_NOTIFYING, TEN)}
    notes = {name: f"{seconds * 1e6:+,.0f} µs" for name, seconds in more.items()}
    notes[TEN] += f", {more[TEN] / 10 * 1e6:,.0f} µs for each event"
    rows = [
        compared(times, DRIVER, BARE, "x bare"),
        Row(name=BARE, seconds=times.median(BARE)),
        *(dataclasses.replace(compared(times, name, BARE, "x bare"), note=notes[name]) for name in more),
    ]
    return Section(title, rows, f"{servers.settings(engine)}. One thread.")
