"""The test's side of the processes: forked from one that has everything imported, or each started anew."""

from __future__ import annotations

import abc
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

from cqrs_sync.testing.crash.case import ScenarioError
from cqrs_sync.testing.crash.orders import Order


class Runner(abc.ABC):
    """Runs one process at a time: :meth:`begin`, then :meth:`finish`. For one thread."""

    @abc.abstractmethod
    def begin(self, order: Order) -> None:
        """Start the order's process."""

    @abc.abstractmethod
    def finish(self) -> int:
        """Wait for the process and return its exit code: negative for a signal, as subprocess has it.

        Raises:
            ScenarioError: the scenario could not be imported.
        """

    def close(self) -> None:
        """End what is still there."""
        return


class ForkingRunner(Runner):
    """Forks from a process that has imported the scenario: a few milliseconds per start. For POSIX.

    Args:
        log: where that process writes what the modules print while they are imported.
    """

    def __init__(self, log: Path) -> None:
        with log.open("wb") as output:
            self._process = _python("serve", output)
        self._log = log

    def begin(self, order: Order) -> None:
        """Hand the order over."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died, which finish() reports
            self._process.stdin.write(order.to_json() + "\n")
            self._process.stdin.flush()

    def finish(self) -> int:
        """Wait for the answer."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise ScenarioError(f"the process that forks scenarios has died:\n{self._log.read_text(errors='replace')}")
        return _exit_code(answer)

    def close(self) -> None:
        """Let the process end: it does when nothing more can come; at once if it is at work."""
        with self._process:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                self._process.kill()


class SpawningRunner(Runner):
    """Starts Python anew each time: half a second and more per start. For systems without fork."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def begin(self, order: Order) -> None:
        """Start the process."""
        with self._log.open("ab") as output:
            self._process = _python("once", output)
        assert self._process.stdin is not None
        self._process.stdin.write(order.to_json() + "\n")
        self._process.stdin.close()

    def finish(self) -> int:
        """Wait for the process."""
        assert self._process is not None
        with self._process as process:
            assert process.stdout is not None
            said = process.stdout.read()
        self._process = None
        return _exit_code(said) if said else process.returncode

    def close(self) -> None:
        """End a process that is still there."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None


def _python(entry: str, log: IO[bytes]) -> subprocess.Popen[str]:
    """Start Python with the very ``sys.path`` of this process, so that it finds the modules that this one finds."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from cqrs_sync.testing.crash.process import {entry}; {entry}()"
    command = [sys.executable, "-u", "-c", program]  # unbuffered: what was printed before a death is in the log
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, encoding="utf-8")


def _exit_code(answer: str) -> int:
    said = json.loads(answer)
    if isinstance(said, int):
        return said
    raise ScenarioError(f"the scenario cannot be started:\n{said}")
