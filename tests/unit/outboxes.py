"""What tests of the outbox share: a table, events and brokers that fail on demand."""

from __future__ import annotations

import datetime
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.outbox.models import OutboxedEvent
from cqrs_sync.outbox.sqlalchemy import Base, OutboxModel, SqlAlchemyOutboxedEventRepository
from cqrs_sync.testing.outbox import EVENTS, Numbered

WAIT = 20.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""

Repository = functools.partial(SqlAlchemyOutboxedEventRepository, event_map=EVENTS)
"""The repository that knows the events of these tests."""


class Broker(InMemoryMessageBroker):
    """Keeps messages; raises what is in ``errors`` for a payload, or ``outage`` for all.

    Attributes:
        outage: what every message meets, or None.
        errors: what the message with this number meets.
        tried: the numbers of all messages that it was given.
    """

    def __init__(self, **errors: Any) -> None:
        super().__init__()
        self.outage: Exception | None = None
        self.errors: dict[int, Exception] = {}
        self.tried: list[int] = []

    @property
    def sent(self) -> list[int]:
        """The numbers of the messages that it has taken."""
        return [message.payload["payload"] for message in self.messages]

    def send_message(self, message: Message) -> None:
        number = message.payload["payload"]
        self.tried.append(number)
        error = self.outage or self.errors.get(number)
        if error is not None:
            raise error
        super().send_message(message)


class Pipelined(Broker):
    """Has several messages under way: returns whatever results it was told."""

    def __init__(self, *results: Exception | None) -> None:
        super().__init__()
        self.results: Any = list(results)

    def send_messages(self, messages: Sequence[Message]) -> Any:
        self.tried.extend(message.payload["payload"] for message in messages)
        if isinstance(self.results, Exception):
            raise self.results
        return self.results


def away() -> BrokerUnavailable:
    """What an unreachable broker raises."""
    return BrokerUnavailable("nobody answers")


def engine_in(directory: Path, *tables: sa.MetaData) -> sa.Engine:
    """A SQLite file with the outbox's tables, and these."""
    engine = sa.create_engine(f"sqlite:///{directory / 'db'}", connect_args={"timeout": 60})
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    for metadata in (Base.metadata, *tables):
        metadata.create_all(engine)
    return engine


def store(sessions: sessionmaker[Session], *events: Any) -> None:
    """Store events, or numbered ones for plain numbers, in one transaction."""
    with closing(Repository(sessions())) as repository:
        for event in events:
            repository.add(Numbered(payload=event) if isinstance(event, int) else event)
        repository.commit()


def table(engine: sa.Engine) -> list[Any]:
    """The rows of the outbox, the oldest first."""
    with engine.connect() as connection:
        return list(connection.execute(sa.select(OutboxModel.__table__).order_by(OutboxModel.id)))


def statuses(engine: sa.Engine) -> list[str]:
    """The status of each row."""
    return [row.status for row in table(engine)]


def make_due(engine: sa.Engine) -> None:
    """Let the time pass for which rows wait."""
    with engine.begin() as connection:
        waiting = sa.update(OutboxModel).where(OutboxModel.status == "not_produced")
        connection.execute(waiting.values(available_at=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)))


@contextmanager
def statements_of(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the statements that the block executes."""
    collected: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
        collected.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield collected
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def until(holds: Callable[[], Any]) -> None:
    """Wait until something is so; a test that waits in vain fails."""
    deadline = time.monotonic() + WAIT
    pause = threading.Event()
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        pause.wait(0.002)


def row(number: int = 1, **more: Any) -> OutboxedEvent:
    """A claimed event."""
    event = Numbered(payload=number)
    parts: dict[str, Any] = {
        "id": number,
        "event_id": event.event_id,
        "event_name": "numbered",
        "topic": "contract",
        "partition_key": None,
        "payload": b'{"payload": %d}' % number,
        "content_type": "application/json",
        "headers": {},
    }
    return OutboxedEvent(**(parts | more))
