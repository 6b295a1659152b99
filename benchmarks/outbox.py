# ruff: noqa: ARG002  (a broker that does nothing needs no message)
"""Draining an outbox on PostgreSQL, beside the least that the same work can cost and beside the async library."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from benchmarks import outbox_peer, servers
from benchmarks.outbox_rows import copy, fill, outbox_of
from benchmarks.progress import say
from benchmarks.report import Row, Section, compared, missing
from benchmarks.timing import Effort, Run, Times, race, statement
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxMixin, OutboxRelay
from cqrs_sync.outbox.sqlalchemy import Base
from cqrs_sync.producer import EventProducer

BATCH = 500
CLAIM = 100
"""Few enough for the smallest backlog to fill it: a claim takes 8 of 32 partitions."""

BARE = "bare psycopg2 loop: SKIP LOCKED, UPDATE any(ids), COMMIT"
OURS = "OutboxRelay"
BY_HAND = "EventProducer, event by event"
PEER = "python-cqrs EventProducer, logger at WARNING"

BARE_TABLE = """
CREATE TABLE bare (LIKE outbox INCLUDING DEFAULTS);
ALTER TABLE bare ADD PRIMARY KEY (id);
CREATE INDEX ON bare (id) WHERE status = 'new'
"""

SELECT = """
SELECT id, event_id, event_name, topic, partition_key, payload, content_type, compression, headers, attempts, last_error
FROM bare WHERE status = 'new' ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
"""
UPDATE = "UPDATE bare SET status = 'produced', produced_at = now() WHERE id = ANY(%s)"


class NullBroker(MessageBroker):
    """Takes everything."""

    def send_message(self, message: Message) -> None:
        return None

    def send_messages(self, messages: Sequence[Any]) -> list[Exception | None]:
        return [None] * len(messages)


def measure(effort: Effort) -> Iterator[Section]:
    """The sections about draining."""
    title = f"outbox: {effort.events:,} events to a null broker, {BATCH} at a time, seconds per event"
    try:
        with servers.database() as engine:
            yield _drained(title, engine, effort)
    except LookupError as error:
        yield servers.absent(title, error)


def measure_backlog(effort: Effort) -> Iterator[Section]:
    """The section about claiming from backlogs of several sizes."""
    title = f"outbox: claiming {CLAIM} events, by how many are pending"
    try:
        with servers.database() as engine:
            yield _claimed(title, engine, effort.backlogs, effort)
    except LookupError as error:
        yield servers.absent(title, error)


def _drained(title: str, engine: Engine, effort: Effort) -> Section:
    create(engine)
    own: dict[str, Run] = {
        BARE: freshly(
            lambda: refill_bare(engine, effort.events), lambda: drain_bare(engine, NullBroker().send_messages)
        ),
        OURS: freshly(lambda: fill(engine, effort.events), OutboxRelay(sessionmaker(engine), NullBroker()).drain),
        BY_HAND: freshly(lambda: fill(engine, effort.events), lambda: _drain_by_hand(engine)),
    }
    with ExitStack() as stack:
        others, reasons = _peers(stack, effort)
        times = race(own | others, rounds=effort.drains, slice=0, said="outbox")
    rows = [
        Row(name=BARE, seconds=times.median(BARE), note=_rate(times, BARE)),
        _with_rate(compared(times, OURS, BARE, "x bare", at_most=2), times),
        _with_rate(compared(times, BY_HAND, BARE, "x bare"), times),
        *(_with_rate(compared(times, name, OURS, "x ours", at_least=12), times) for name in others),
        *missing(reasons),
    ]
    return Section(
        title, rows, f"{servers.settings(engine)}; 500 keys; the bare loop's table has the one index it needs."
    )


def _peers(stack: ExitStack, effort: Effort) -> tuple[dict[str, Run], dict[str, str]]:
    if not effort.peers:
        return {}, {PEER: "left out"}
    try:
        # A tenth of the rows: it takes as long for one as we do for ten and more.
        return {PEER: stack.enter_context(outbox_peer.drain(max(1, effort.events // 10), BATCH))}, {}
    except ImportError as error:
        return {}, {PEER: f"not installed: {error.name}"}


def freshly(refill: Callable[[], object], drain: Callable[[], int]) -> Run:
    """A run over fresh rows: seconds per event. Garbage is collected meanwhile, as it is in a relay."""

    def run(number: int) -> float:
        seconds = 0.0
        for _ in range(number):
            refill()
            gc.enable()
            started = perf_counter()
            drained = drain()
            seconds += (perf_counter() - started) / drained
            gc.disable()
        return seconds

    return run


def create(engine: Engine) -> None:
    """Create the library's tables, and that of the bare loop."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text(BARE_TABLE))


def refill_bare(engine: Engine, events: int) -> None:
    """Leave so many events for :func:`drain_bare`."""
    fill(engine, events)
    copy(engine, "outbox", "bare")


def drain_bare(engine: Engine, publish: Callable[[list[Any]], object]) -> int:
    """The least that draining can be: no order within a key, no failures, no sessions."""
    drained = 0
    with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
        while True:
            cursor.execute(SELECT, (BATCH,))
            rows = cursor.fetchall()
            if not rows:
                return drained
            publish(rows)
            cursor.execute(UPDATE, ([row[0] for row in rows],))
            connection.commit()
            drained += len(rows)


def _drain_by_hand(engine: Engine) -> int:
    drained = 0
    with Session(engine) as session:
        producer = EventProducer(NullBroker(), outbox_of(session), poll_interval=0.01)
        while events := producer.repository.get_many(BATCH):
            for event in events:
                producer.send_message(event)
            producer.repository.commit()
            drained += len(events)
    return drained


def _rate(times: Times, name: str) -> str:
    return f"{1 / times.median(name):,.0f}/s"


def _with_rate(row: Row, times: Times) -> Row:
    return dataclasses.replace(row, note=_rate(times, row.name))


def _claimed(title: str, engine: Engine, backlogs: Sequence[int], effort: Effort) -> Section:
    """Tables of all sizes exist at once, and claims from them take turns."""
    sizes = {f"{pending:,} pending": (pending, 0) for pending in backlogs}
    sizes[f"{backlogs[0]:,} pending, {backlogs[1]:,} produced"] = (backlogs[0], backlogs[1])
    with ExitStack() as stack:
        runs = {}
        for number, (name, (pending, produced)) in enumerate(sizes.items()):
            say(f"outbox-backlog: storing {name}")
            model = _model(f"outbox_{number}")
            model.metadata.create_all(engine)
            fill(engine, pending, produced=produced, model=model)
            session = stack.enter_context(Session(engine))
            outbox = outbox_of(session, model=model)
            runs[name] = statement(
                "claim(size); rollback()", size=CLAIM, claim=outbox.get_many, rollback=outbox.rollback
            )
        times = race(runs, rounds=effort.rounds, slice=0, said="outbox-backlog")
    first, *others = sizes
    rows = [
        Row(name=first, seconds=times.median(first)),
        *(compared(times, name, first, f"x {first}", at_most=3) for name in others),
    ]
    return Section(title, rows, f"{servers.settings(engine)}. The claim and its roll-back.")


def _model(name: str) -> type[Any]:
    class Models(DeclarativeBase):
        pass

    return type("Outbox", (OutboxMixin, Models), {"__tablename__": name})
