"""What the tests of a working outbox share: events, brokers that write down what they get, and processes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import BrokerUnavailable
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxedEventMap, OutboxModel, OutboxRelay, SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.sqlalchemy import Base
from tests import journal

_T = TypeVar("_T")

WAIT = 60.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""

QUICK = Backoff(initial=0.001, maximum=0.001, jitter=0)
"""For what would wait for a second otherwise."""


class Counted(cqrs.NotificationEvent[int]):
    """An event with a number, which counts up within its key."""

    event_name: str = "counted"
    topic: str = "counted"
    payload: int = 0
    padding: str = ""


EVENTS = OutboxedEventMap()
EVENTS.register("counted", Counted)

Repository = functools.partial(SqlAlchemyOutboxedEventRepository, event_map=EVENTS)
"""The repository that knows the events of these tests."""


# --- databases ---------------------------------------------------------------------------------------------------


@contextmanager
def database(server: str) -> Iterator[str]:
    """A PostgreSQL database of a test's own, with the tables."""
    name = f"outbox_{uuid.uuid4().hex}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    try:
        with engine_of(url) as own:
            Base.metadata.create_all(own)
        yield url
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def sqlite_file(directory: Path) -> str:
    """A SQLite database of a test's own, with the tables."""
    url = f"sqlite:///{directory / 'outbox.sqlite3'}"
    with engine_of(url) as engine:
        Base.metadata.create_all(engine)
    return url


@contextmanager
def engine_of(url: str, **options: Any) -> Iterator[sa.Engine]:
    """An engine that is disposed of."""
    if url.startswith("sqlite"):
        options.setdefault("connect_args", {"timeout": WAIT})
    engine = sa.create_engine(url, **options)
    if url.startswith("sqlite"):  # nothing here ends a machine
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        yield engine
    finally:
        engine.dispose()


# --- events ------------------------------------------------------------------------------------------------------


def store(sessions: Callable[[], Session], events: Iterable[Any], **options: Any) -> None:
    """Store events in one transaction."""
    with closing(Repository(sessions(), **options)) as repository:
        for event in events:
            repository.add(event)
        repository.commit()


def numbered(count: int, keys: int = 1, first: int = 0) -> list[Counted]:
    """Events whose numbers count up within each key, keys taking turns."""
    return [Counted(payload=first + number // keys, partition_key=f"key-{number % keys}") for number in range(count)]


def expected(events: int, keys: int) -> dict[str, list[int]]:
    """The numbers of each key of :func:`numbered` events."""
    return {f"key-{key}": list(range(len(range(key, events, keys)))) for key in range(keys)}


def rows(engine: sa.Engine, model: Any = OutboxModel) -> list[Any]:
    """All rows, by number."""
    with engine.connect() as connection:
        return list(connection.execute(sa.select(model.__table__).order_by(model.id)))


def statuses(engine: sa.Engine, model: Any = OutboxModel) -> dict[str, int]:
    """How many rows have which status."""
    with engine.connect() as connection:
        found = connection.execute(sa.select(model.status, sa.func.count()).group_by(model.status))
        return {row[0]: row[1] for row in found}


def listener(engine: sa.Engine) -> Any:
    """The server's process of the connection that listens."""
    with engine.connect() as connection:
        text = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        return connection.scalar(sa.text(text))


def eventually(look: Callable[[], _T], wait: float = WAIT) -> _T:
    """Return what a function returns once that is not empty."""
    until = time.monotonic() + wait
    while not (found := look()):
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.01)
    return found


def errors(caplog: Any) -> list[str]:
    """What went wrong in a background thread, which goes on."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# --- brokers -----------------------------------------------------------------------------------------------------


class Broker(MessageBroker):
    """Keeps messages, and is away for as long as it is told.

    Attributes:
        away: whether it can be reached.
        calls: how many messages each ``send_messages`` had.
        changed: notified of each call.
    """

    def __init__(self) -> None:
        self.away = False
        self.calls: list[int] = []
        self.messages: list[Message] = []
        self.changed = threading.Condition()

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        with self.changed:
            self.calls.append(len(messages))
            self.changed.notify_all()
            return super().send_messages(messages)

    def send_message(self, message: Message) -> None:
        if self.away:
            raise BrokerUnavailable("nobody answers")
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT), "it did not come true"

    def by_key(self) -> dict[str | None, list[int]]:
        """The numbers it was sent, in order."""
        found: defaultdict[str | None, list[int]] = defaultdict(list)
        for message in self.messages:
            found[message.key].append(json.loads(message.payload_bytes or b"")["payload"])
        return dict(found)


class JournalBroker(MessageBroker):
    """Appends what it gets to a file that all processes share, and hands it on.

    Args:
        path: the file; its lines are in the order in which they were written, whoever wrote them.
        worker: whose messages these are.
        inner: what has them, in the end.
        stuck_after: after so many messages it never answers again, and says so in the file: to be killed there.
    """

    def __init__(
        self, path: Path, worker: str, inner: MessageBroker | None = None, stuck_after: int | None = None
    ) -> None:
        self._file = journal.append_to(path)
        self._worker = worker
        self._inner = inner
        self._left = stuck_after

    def send_messages(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        self._note(claimed=[str(message.message_id) for message in messages])
        if self._inner is None:
            return super().send_messages(messages)
        results = self._inner.send_messages(messages)
        for message, result in zip(messages, results, strict=True):
            if result is None:
                self._sent(message)
        return results

    def send_message(self, message: Message) -> None:
        self._sent(message)

    def close(self) -> None:
        os.close(self._file)

    def _sent(self, message: Message) -> None:
        number = json.loads(message.payload_bytes or b"")["payload"]
        self._note(sent=[str(message.message_id), message.key, number])
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self._note(stuck=True)
                threading.Event().wait()

    def _note(self, **values: Any) -> None:
        journal.note(self._file, worker=self._worker, **values)


@dataclasses.dataclass(frozen=True)
class Sent:
    """One line of a journal."""

    worker: str
    event: str
    key: str
    number: int


class Journal:
    """What several processes sent, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def entries(self) -> list[dict[str, Any]]:
        return journal.entries(self.path)

    def is_stuck(self, worker: str) -> bool:
        return any(entry["worker"] == worker and "stuck" in entry for entry in self.entries())

    def who(self, what: str, since: int) -> set[str]:
        """Who has claimed, or sent, anything since there were so many entries."""
        return {entry["worker"] for entry in self.entries()[since:] if what in entry}

    def interrupted(self, killed: Iterable[str]) -> list[str]:
        """Who was killed before it knew what had become of its last batch."""
        known, in_hand = {(each.worker, each.event) for each in self.sent()}, self.in_hand()
        return [worker for worker in killed if any((worker, event) not in known for event in in_hand.get(worker, ()))]

    def sent(self) -> list[Sent]:
        return [Sent(entry["worker"], *entry["sent"]) for entry in self.entries() if "sent" in entry]

    def check(self, expected: dict[str, list[int]], killed: Iterable[str] = ()) -> int:
        """Everything arrived, first deliveries in order, and what came twice was in the hand of a killed process.

        Returns:
            How many deliveries were one too many.
        """
        deliveries: defaultdict[str, list[Sent]] = defaultdict(list)
        firsts: defaultdict[str, list[int]] = defaultdict(list)
        for each in self.sent():
            if not deliveries[each.event]:
                firsts[each.key].append(each.number)
            deliveries[each.event].append(each)
        assert {key: sorted(found) for key, found in firsts.items()} == expected, "lost, or invented"
        assert dict(firsts) == expected, "out of order"
        self._check_repeated({event: [each.worker for each in found] for event, found in deliveries.items()}, killed)
        return sum(map(len, deliveries.values())) - len(deliveries)

    def check_read(self, messages: Sequence[Any], expected: dict[str, list[int]], killed: Iterable[str]) -> int:
        """The same of what was read from Kafka, where an event may be as often as it was claimed.

        Returns:
            How many messages were one too many.
        """
        assert first_deliveries(messages) == expected, "lost, invented or out of order"
        claims: defaultdict[str, list[str]] = defaultdict(list)
        for entry in self.entries():
            for event in entry.get("claimed", ()):
                claims[event].append(entry["worker"])
        self._check_repeated(claims, killed)
        read = Counter(dict(message.headers())["message-id"].decode() for message in messages)
        assert not {event: count for event, count in read.items() if count > len(claims[event])}, "sent twice at once"
        return len(messages) - len(read)

    def in_hand(self) -> dict[str, list[str]]:
        """What each worker claimed last."""
        return {entry["worker"]: entry["claimed"] for entry in self.entries() if "claimed" in entry}

    def _check_repeated(self, workers: dict[str, list[str]], killed: Iterable[str]) -> None:
        in_hand = self.in_hand()
        for event, (*earlier, _) in workers.items():
            for worker in earlier:
                assert worker in killed, f"{event} was sent again although {worker} lived"
                assert event in in_hand[worker], f"{event} was sent again although {worker} did not have it in hand"


def firsts_of(sent: Iterable[Sent]) -> dict[str, list[int]]:
    """The numbers of each key in the order of their first deliveries."""
    found: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for each in sent:
        found[each.key][each.number] = None
    return {key: list(numbers) for key, numbers in found.items()}


def first_deliveries(messages: Iterable[Any]) -> dict[str, list[int]]:
    """The same, of what was read from Kafka."""
    return firsts_of(
        Sent("", "", message.key().decode(), json.loads(message.value())["payload"]) for message in messages
    )


# --- processes ---------------------------------------------------------------------------------------------------

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__, "cqrs_sync.adapters.confluent"])


@contextmanager
def children() -> Iterator[Children]:
    """Starts processes, and kills those that are left at the end."""
    found = Children()
    try:
        yield found
    finally:
        found.kill()


class Children:
    """Processes of a test's own; each is forked from one that has imported everything and has no threads."""

    def __init__(self) -> None:
        self._all: list[Any] = []

    def start(self, function: Callable[..., object], /, *arguments: Any, **options: Any) -> Any:
        """Run a function, which stands at the top of a module, in a process."""
        process = _processes.Process(target=function, args=arguments, kwargs=options, daemon=True)
        process.start()
        self._all.append(process)
        return process

    def kill(self, *processes: Any) -> None:
        """End processes, all by default, by SIGKILL."""
        for process in processes or self._all:
            process.kill()
            process.join(WAIT)

    def end(self, *processes: Any) -> list[int]:
        """Ask processes to end by SIGTERM, and return their exit codes."""
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(WAIT)
        return [process.exitcode for process in processes]


class Relays:
    """Relay processes, of which one at a time is killed and replaced."""

    def __init__(self, children: Children, url: str, journal: Journal, count: int, **options: Any) -> None:
        self._numbers = itertools.count()
        self._children = children
        self._start = functools.partial(children.start, relay_process, url, journal.path, **options)
        self.running: dict[str, Any] = {}
        self.killed: list[str] = []
        for _ in range(count):
            self._add()

    def kill(self, worker: str | None = None) -> None:
        """Kill one, any by default, and start another."""
        worker = worker or random.choice(list(self.running))
        self._children.kill(self.running.pop(worker))
        self.killed.append(worker)
        self._add()

    def end(self) -> None:
        """Ask those that are left to end; one that has not come so far as to hear it is ended by the signal itself."""
        assert set(self._children.end(*self.running.values())) <= {0, -signal.SIGTERM}

    def _add(self) -> None:
        worker = f"relay-{next(self._numbers)}"
        self.running[worker] = self._start(worker=worker)


def relay_process(
    url: str, journal: Path, worker: str, *, stuck_after: int | None = None, kafka: str | None = None, **options: Any
) -> None:
    """Run a relay until SIGTERM; its messages go to the journal, and to Kafka if there is one."""
    with engine_of(url) as engine, kafka_broker(kafka) as inner:
        broker = JournalBroker(journal, worker, inner, stuck_after)
        options = {"batch_size": 20, "poll_interval": 0.05, "outage_backoff": QUICK, "repository": Repository} | options
        OutboxRelay(sessionmaker(engine), broker, **options).run_forever()


@contextmanager
def kafka_broker(address: str | None) -> Iterator[MessageBroker | None]:
    """A Kafka where one is given."""
    if address is None:
        yield None
        return
    from cqrs_sync.adapters.confluent import ConfluentProducerAdapter
    from cqrs_sync.message_brokers.kafka import KafkaMessageBroker

    with KafkaMessageBroker(ConfluentProducerAdapter(address)) as broker:
        yield broker
