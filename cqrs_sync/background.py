"""Runs a step again and again in a thread of its own until it is stopped."""

from __future__ import annotations

import abc
import logging
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import format_exception_only
from types import FrameType, TracebackType
from typing import Any, Self
from weakref import WeakSet

from cqrs_sync.backoff import LONGEST, Backoff, wait_after
from cqrs_sync.checks import require_instance
from cqrs_sync.errors import ConfigurationError, CQRSError, StopTimeout

logger = logging.getLogger(__name__)


class BackgroundLoop(abc.ABC):
    """Takes one step after another in a named thread. Thread-safe; can be started again after it was stopped.

    A step that raises is logged and the loop lives on: it waits for ``backoff``, and a wake-up does not shorten that,
    so an outage costs one attempt per wait. In a row of failures each costs one line in the log, and each type of
    exception that is not the library's own one traceback. The thread is a daemon; forgetting a loop that runs ends it,
    with a ``ResourceWarning``. A forked child has the object but no thread: there it is not running and may be
    started; the first fork after a start is logged, as a warning.

    Args:
        name: the thread's name.
        backoff: how long to wait after a step that raised; counted in steps that raised one after another.
    """

    def __init__(self, name: str, backoff: Backoff | None = None) -> None:
        self.name = name
        self._backoff = backoff if backoff is not None else Backoff()
        require_instance(self._backoff, Backoff, "backoff", "pass Backoff(initial=1.0, maximum=60.0)")
        self._run = _Run()
        self._lock = threading.Lock()  # guards the replacement of _run
        _loops.add(self)

    @abc.abstractmethod
    def step(self) -> float:
        """Do one piece of work and return the seconds to idle before the next; 0 where there is more to do."""

    @property
    def running(self) -> bool:
        """Whether its thread is alive here."""
        return self._run.alive

    @property
    def last_error(self) -> Exception | None:
        """What the latest step raised; None after one that succeeded."""
        return self._run.last_error

    def start(self) -> None:
        """Start the thread.

        Raises:
            ConfigurationError: it runs already.
        """
        with self._lock:
            if self._run.alive:
                raise ConfigurationError(f"{self.name} is running already")
            run = self._run = _Run()
            # The thread must not keep the loop alive: it could not be forgotten then.
            arguments = (weakref.ref(self), self.name, self._backoff)
            run.thread = threading.Thread(target=run.loop, args=arguments, name=self.name, daemon=True)
            run.thread.start()

    def wake(self) -> None:
        """End the idling, if it is idling; not the wait after an error."""
        self._run.woken.set()

    @property
    def waker(self) -> Callable[[], None]:
        """What :meth:`wake` does for the thread that runs now, without keeping the loop alive."""
        return self._run.woken.set

    def stop(self, timeout: float = 30.0) -> None:
        """Let the step that runs finish and end the thread. Harmless when it is not running.

        Args:
            timeout: seconds to wait at most.

        Raises:
            StopTimeout: the step still runs; the thread ends after it.
        """
        run = self._run
        run.request_stop()
        if run.thread is None or run.thread is threading.current_thread():
            return
        run.thread.join(timeout)
        if run.thread.is_alive():
            raise StopTimeout(self.name, timeout)

    def run_forever(self, stop_timeout: float = 30.0) -> None:
        """Start the thread and return when it has ended: after :meth:`stop`, SIGTERM or SIGINT (Ctrl-C).

        The signals are caught only where Python allows it, in the main thread, and given back afterwards.

        Args:
            stop_timeout: seconds that a step may take to end after a signal.

        Raises:
            StopTimeout: it took longer.
        """
        with _signals() as caught:
            self.start()
            thread = self._run.thread
            assert thread is not None  # start() has just made it
            # In slices: a handler may not touch locks, so all it does is to set a flag that is looked at here.
            while thread.is_alive() and not caught:
                thread.join(0.2)
            self.stop(stop_timeout)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.alive and not run.stopping.is_set():
            run.request_stop()
            warnings.warn(f"{self.name} was forgotten while it ran: call stop()", ResourceWarning, stacklevel=2)

    def forget_thread(self) -> None:
        """Be as before the first start: a forked child has none of its parent's threads, and locks may be held."""
        self._lock = threading.Lock()
        self._run = _Run()


class _Run:
    """One life of the thread: from a start to a stop."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.woken = threading.Event()
        self.stopping = threading.Event()
        self.last_error: Exception | None = None
        self.fork_announced = False
        self._failures = 0
        self._traced: set[type[Exception]] = set()

    @property
    def alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def request_stop(self) -> None:
        self.stopping.set()
        self.woken.set()

    def loop(self, owner: weakref.ref[BackgroundLoop], name: str, backoff: Backoff) -> None:
        while not self.stopping.is_set():
            self.woken.clear()  # before the step: what happens during it must not be slept through
            loop = owner()
            if loop is None or self.stopping.is_set():
                return
            pause: float | None = None
            try:
                pause = min(loop.step(), LONGEST)
            except Exception as error:
                self._failed(name, error)
            del loop
            if pause is None:
                self.stopping.wait(wait_after(backoff, self._failures))
                continue
            self._succeeded(name)
            if pause > 0:
                self.woken.wait(pause)

    def _succeeded(self, name: str) -> None:
        if self._failures:
            logger.info("%s works again after %s failed attempts", name, self._failures)
            self._failures, self.last_error = 0, None
            self._traced.clear()

    def _failed(self, name: str, error: Exception) -> None:
        self._failures += 1
        if isinstance(error, CQRSError):
            logger.error("%s: attempt %s failed: %s", name, self._failures, error)
        else:
            # A driver's text goes on with statements and parameters; and an outage of hours has one traceback.
            text = format_exception_only(error)[0].partition("\n")[0]
            trace = None if type(error) in self._traced else error
            self._traced.add(type(error))
            logger.error("%s: attempt %s failed: %s", name, self._failures, text, exc_info=trace)
        # Its traceback holds the frame of step(), and with it the loop: it could not be forgotten then.
        self.last_error = error.with_traceback(None)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask a program to end, while the block runs."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a handler)
        caught.append(number)

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


_loops: WeakSet[BackgroundLoop] = WeakSet()


def _announce_fork() -> None:
    """Say, once for each start, which threads a child will not have.

    In the parent, because the child might wait for ever for a lock of a log handler that another thread held at the
    fork (that of a queue, say).
    """
    loops = [loop for loop in list(_loops) if loop.running and not loop._run.fork_announced]
    for loop in loops:
        loop._run.fork_announced = True
    if loops:
        names = ", ".join(sorted(loop.name for loop in loops))
        logger.warning("a fork: %s runs in process %s only; a child that needs it must start it", names, os.getpid())


def _forget_threads() -> None:  # pragma: no cover (runs in forked children only: tests/integration)
    for loop in list(_loops):
        loop.forget_thread()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(before=_announce_fork, after_in_child=_forget_threads)
