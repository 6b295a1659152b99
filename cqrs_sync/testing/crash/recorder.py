"""Inside a scenario's process: counts its boundaries, writes its ledger, and kills it where it is told to."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cqrs_sync.testing.crash.case import KillPoint, When
from cqrs_sync.testing.crash.ledger import Kind

_SQL = frozenset({"statement", "commit", "rollback", "prepare"})

# A kind is not counted inside of these on the same thread: it is the way in which the outer call does its work. A
# single message inside a batch counts, so that a broker that sends them one by one is killed between two of them.
_PART_OF: dict[str, frozenset[str]] = {
    **dict.fromkeys(_SQL, _SQL),
    "send": frozenset({"send"}),
    "batch": frozenset({"send", "batch"}),
    "own": frozenset(),
}


class Recorder:
    """Writes the ledger of one process. Thread-safe.

    Args:
        file: the ledger.
        start: which start of the scenario this process is.
        kill: where to die; None to live.
    """

    def __init__(self, file: Path, start: int, kill: KillPoint | None) -> None:
        # What was written stays in the system's cache when the process is killed, so nothing is synced.
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        self._start = start
        self._kill = kill
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards _count and _armed; kept while dying, so that nobody writes after that
        self._count = 0
        self._armed = False
        self._local = threading.local()

    def arm(self) -> None:
        """Count from here on."""
        self._armed = True

    def finish(self, entry: str, **values: Any) -> None:
        """Write the last entry; what background threads still do is not counted."""
        with self._lock:
            self._armed = False
            self.write(entry, **values)

    def write(self, entry: str, **values: Any) -> None:
        """Append an entry: one write to a file opened for appending, so entries of threads do not mix."""
        line = json.dumps({"entry": entry, "start": self._start, **values}, default=str)
        with self._lock:
            os.write(self._file, f"{line}\n".encode())

    @contextmanager
    def crossing(self, kind: Kind, label: str) -> Iterator[None]:
        """Count a boundary, with its effect as the body."""
        around: list[str] = self._local.__dict__.setdefault("around", [])
        # A process that the scenario forks has a life of its own.
        if not self._armed or not _PART_OF[kind].isdisjoint(around) or os.getpid() != self._pid:
            yield
            return
        number = self._reach(kind, label)
        around.append(kind)
        error = None
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            around.pop()
            self._pass(number, error)

    def _reach(self, kind: Kind, label: str) -> int:
        with self._lock:
            self._count += 1
            number = self._count
            thread = threading.current_thread().name
            self.write("reached", number=number, kind=kind, label=label, thread=thread)
            self._die_at(number, "before")
        return number

    def _pass(self, number: int, error: str | None) -> None:
        with self._lock:
            self._die_at(number, "after")
            self.write("passed", number=number, error=error)

    def _die_at(self, number: int, when: When) -> None:
        if self._armed and self._kill == KillPoint(number, when):
            self.write("killed", number=number, when=when)
            # Where there is no SIGKILL, SIGTERM ends a process just as abruptly.
            os.kill(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            threading.Event().wait()  # on a system that takes its time


_current: Recorder | None = None


def current() -> Recorder | None:
    """The recorder of this process; None outside of a scenario."""
    return _current


def install(recorder: Recorder) -> None:
    """Make this the recorder of the process."""
    global _current
    _current = recorder


@contextmanager
def boundary(label: str) -> Iterator[None]:
    """Count an effect of your own, a call to a payment provider say; use it in ``with`` or as a decorator.

    The process is killed before the body, and after it. Outside of a scenario it does nothing. Put it around the
    stand-ins of your scenario and leave the product's code alone.
    """
    if _current is None:
        yield
        return
    with _current.crossing("own", label):
        yield


def note(name: str, **values: Any) -> None:
    """Write down an effect; checks find it with ``ledger.notes(name)``. Outside of a scenario it does nothing."""
    if _current is not None:
        _current.write("note", name=name, values=values)
