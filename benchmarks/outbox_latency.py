"""From a commit to the broker: how long an event waits for an idle relay."""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks import servers
from benchmarks.outbox_rows import order_placed, outbox_of
from benchmarks.progress import say
from benchmarks.report import Row, Section, duration
from benchmarks.timing import Effort
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import Base

ROOT = Path(__file__).resolve().parent.parent
WAKE_UP = "wake-up in the process that commits"
LISTEN = "NOTIFY from another process, listen=True"
POLL = "another process, poll_interval=0.1"

POLL_INTERVAL = 0.1
NEVER = 3600.0
PAUSE = 0.01
"""Seconds between a delivery and the next commit at least, so that the relay is idle again."""

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
BARS = " ▁▂▃▄▅▆▇█"


class RecordingBroker(MessageBroker):
    """Notes when each event came in."""

    def __init__(self) -> None:
        self.arrivals: dict[str, float] = {}
        self.arrived = threading.Event()

    def send_message(self, message: Message) -> None:
        self.arrivals[str(message.message_id)] = time.monotonic()
        self.arrived.set()


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    title = "outbox: from the call of commit() to the broker's send, one event at a time"
    many, few = effort.samples
    try:
        with servers.database() as engine:
            Base.metadata.create_all(engine)
            found = {
                WAKE_UP: _timed(engine, _commit_here, many, poll_interval=NEVER),
                LISTEN: _timed(engine, _commit_elsewhere(notify=True), many, poll_interval=NEVER, listen=True),
                POLL: _timed(engine, _commit_elsewhere(notify=False), few, poll_interval=POLL_INTERVAL),
            }
            bounds = {WAKE_UP: 20.0}
            rows = [row for name, waits in found.items() for row in _rows(name, waits, bounds.get(name))]
            legend = " ".join(f"{edge * 1000:g}" for edge in BUCKETS)
            yield Section(title, rows, f"{servers.settings(engine)}. Bars: how many within {legend} ms, and above.")
    except LookupError as error:
        yield servers.absent(title, error)


def _rows(name: str, waits: Sequence[float], at_most: float | None) -> Iterator[Row]:
    p50, p99 = statistics.median(waits), sorted(waits)[-(-99 * len(waits) // 100) - 1]
    yield Row(name=f"{name}: p50", seconds=p50, figure=p50 * 1000, unit=" ms", at_most=at_most, note=_bars(waits))
    yield Row(name=f"{name}: p99", seconds=p99, note=f"of {len(waits)}; longest {duration(max(waits))}")


def _bars(waits: Sequence[float]) -> str:
    edges = (0.0, *BUCKETS, float("inf"))
    counts = [sum(low < wait <= high for wait in waits) for low, high in itertools.pairwise(edges)]
    return "|" + "".join(BARS[-(-count * (len(BARS) - 1) // max(counts))] for count in counts) + "|"


Commit = Callable[[Engine, RecordingBroker, int], dict[str, float]]
"""Commits so many events, one after the other, and returns when each commit was called."""


def _timed(engine: Engine, commit: Commit, samples: int, *, poll_interval: float, listen: bool = False) -> list[float]:
    say(f"outbox-latency: {samples} commits, {'listening' if listen else f'polling every {poll_interval:g} s'}")
    broker = RecordingBroker()
    relay = OutboxRelay(sessionmaker(engine), broker, poll_interval=poll_interval, listen=listen)
    with relay:
        time.sleep(0.5)  # its first look at the empty outbox, and its LISTEN, are behind it then
        committed = commit(engine, broker, samples)
        deadline = time.monotonic() + 10
        while committed.keys() - broker.arrivals.keys() and time.monotonic() < deadline:
            time.sleep(0.01)
    return [broker.arrivals[event] - at for event, at in committed.items()]


def _commit_here(engine: Engine, broker: RecordingBroker, samples: int) -> dict[str, float]:
    return _commit(engine, samples, lambda: broker.arrived.wait(10), before=broker.arrived.clear)


def _commit_elsewhere(*, notify: bool) -> Commit:
    def commit(engine: Engine, _: RecordingBroker, samples: int) -> dict[str, float]:
        url = engine.url.render_as_string(hide_password=False)
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.outbox_latency", url, str(samples), str(int(notify))],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        return {event: float(at) for event, at in map(str.split, process.stdout.splitlines())}

    return commit


def _commit(
    engine: Engine,
    samples: int,
    wait: Callable[[], object],
    *,
    before: Callable[[], object] = lambda: None,
    notify: bool = False,
) -> dict[str, float]:
    pauses, called = random.Random(1), {}
    for _ in range(samples):
        before()
        with Session(engine) as session:
            event = order_placed()
            outbox_of(session, notify=notify).add(event)
            session.flush()
            called[str(event.event_id)] = time.monotonic()  # one clock for all processes of the machine
            session.commit()
        wait()
        time.sleep(PAUSE + pauses.random() * PAUSE)
    return called


def main() -> None:
    """Commit events from a process of its own, and print the id of each and when its commit was called."""
    url, samples, notify = sys.argv[1:]
    engine = create_engine(url)
    pauses = random.Random(2)
    for event, at in _commit(
        engine,
        int(samples),
        # Anywhere between two polls, or when the relay has had time to deliver what it was notified of.
        lambda: time.sleep(POLL_INTERVAL * (0.1 if notify == "1" else 1 + pauses.random())),
        notify=notify == "1",
    ).items():
        sys.stdout.write(f"{event} {at}\n")
    engine.dispose()


if __name__ == "__main__":
    main()
