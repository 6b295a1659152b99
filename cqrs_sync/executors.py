"""Where the jobs of one caller run: in the caller's thread, or in a bounded pool that the caller helps.

A *job* is an item and the step that is taken with it, which returns further items; those go to the end of the caller's
queue. Steps handle their own errors; an exception that leaves one stops the rest and reaches the caller.
"""

from __future__ import annotations

import contextvars
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

from cqrs_sync.errors import CloseTimeout, ConfigurationError, MediatorClosed

Step: TypeAlias = Callable[[Any], Iterable[Any]]
"""Does the job of one item and returns further items."""

WorkerContext: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes the context manager that is entered around each job on a pool thread, to free what is bound to the thread."""


class Executor(Protocol):
    """Runs the jobs of one caller to their end."""

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Take the step with the items and those it returns, started in order; return when all have finished."""
        ...

    def close(self, timeout: float) -> None:
        """Take no more jobs, wait up to ``timeout`` seconds for those at work, and end the threads."""
        ...


class InCallerThread:
    """Runs jobs one after another in the caller's thread; callers do not wait for each other."""

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Run the jobs in order; see :class:`Executor`."""
        queue = deque(items)
        while queue:
            further = step(queue.popleft())
            if further:
                queue.extend(further)

    def close(self, timeout: float) -> None:
        """Nothing to end."""


_NOTHING = object()
"""What there is to take from an empty queue."""


class _Place(threading.local):
    """Whether this thread runs a job now; a job that runs jobs lends them its place."""

    held = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        outer, self.held = self.held, True
        try:
            yield
        finally:
            self.held = outer


_place = _Place()


def inside_a_job() -> bool:
    """Whether this thread is running a job of any pool."""
    return _place.held


class InPool:
    """Runs jobs of all callers on at most ``size`` threads, callers that help included.

    There are ``size`` places. A thread takes one to run jobs: pool threads as they are invited, the caller if one is
    free. A job that calls :meth:`run` itself (a nested ``send``) keeps its place and runs the nested jobs in it while
    it waits, so nesting needs no further place and cannot deadlock, at any depth and size; the place is not given to
    strangers, who might wait for a row that the waiting job has locked. Where the nested call is to another pool, its
    jobs may run in the lent place too: over all pools, places are lent and never created.

    One ``ThreadPoolExecutor``, made on first use and forgotten in a forked child. Each job runs in a copy of the
    caller's context variables. Thread-safe.

    Args:
        size: how many jobs may run at once, at least 1.
        worker_context: entered around each job on a pool thread (not around those that the caller runs).
        name: the prefix of the threads' names.
    """

    _executor: ThreadPoolExecutor | None = None

    def __init__(self, size: int, worker_context: WorkerContext | None = None, name: str = "cqrs-events") -> None:
        if size < 1:
            raise ConfigurationError(f"a pool needs at least 1 thread, not {size}")
        self._size = size
        self._worker_context = worker_context
        self._name = name
        self._closed = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._state = threading.Condition()  # guards _executor, _callers and _closed; notified when a caller leaves
        self._executor = None
        self._callers = 0
        self._places = threading.Semaphore(self._size)

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Run the jobs; see :class:`Executor`.

        Raises:
            MediatorClosed: the pool was closed, and this is no job of one that was at work then.
        """
        work = _Work(step, items)
        if not work.queue:
            return
        with self._state:
            if self._closed and not _place.held:
                raise MediatorClosed("this mediator was closed; build a new one")
            self._callers += 1
        try:
            self._finish(work)
        except BaseException:
            work.drop()
            raise
        finally:
            with self._state:
                self._callers -= 1
                self._state.notify_all()

    def close(self, timeout: float) -> None:
        """Stop; see :class:`Executor`. Calling it again waits again.

        Raises:
            CloseTimeout: jobs were still at work after ``timeout`` seconds.
            ConfigurationError: it was called by a job, which would wait for itself.
        """
        if _place.held:
            raise ConfigurationError("close() was called inside an event handler, which it would wait for")
        with self._state:
            self._closed = True
            if not self._state.wait_for(lambda: self._callers == 0, timeout):
                raise CloseTimeout(timeout, self._callers)
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _finish(self, work: _Work) -> None:
        """Run the work together with pool threads until nothing is queued or running."""
        places = self._places
        own = _place.held
        taken = not own and places.acquire(blocking=False)
        helpers = self._invite(work, len(work.queue) - (own or taken))
        if not own and not taken and not helpers:
            taken = places.acquire()
        while True:
            if own:
                self._take_part(work)
            elif taken or places.acquire(blocking=False):
                taken = False
                try:
                    with _place.taken():
                        self._take_part(work)
                finally:
                    places.release()
            else:
                work.wait_for_end()
            if work.wait_for_more():
                break
        if work.failure is not None:
            raise work.failure

    def _take_part(self, work: _Work, around: WorkerContext | None = None) -> None:
        item = work.next()
        while item is not _NOTHING:
            further: list[Any] = []
            failure: BaseException | None = None
            try:
                further = work.run(item, around)
            except BaseException as error:
                failure = error
            item = work.next_after(further, failure)
            if len(further) > 1:
                self._invite(work, len(further) - 1)

    def _invite(self, work: _Work, wanted: int) -> int:
        """Ask pool threads to take part; returns how many were asked, 0 when the interpreter is shutting down."""
        invited = work.admit(wanted, self._size)
        try:
            for _ in range(invited):
                self._threads().submit(self._help, self._places, work)
        except RuntimeError:  # "cannot schedule new futures": the caller does it all
            return 0
        return invited

    def _threads(self) -> ThreadPoolExecutor:
        with self._state:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._size, thread_name_prefix=self._name)
            return self._executor

    def _help(self, places: threading.Semaphore, work: _Work) -> None:
        while not work.leave():  # at once where the others were faster
            with places, _place.taken():
                self._take_part(work, self._worker_context)

    def __del__(self) -> None:
        if self._executor is not None:
            warnings.warn(
                f"{self._name}: a pool of threads was never closed", ResourceWarning, stacklevel=2, source=self
            )
            self._executor.shutdown(wait=False)


class _Work:
    """The jobs of one call of :meth:`InPool.run`, taken from by several threads."""

    def __init__(self, step: Step, items: Iterable[Any]) -> None:
        self.queue = deque(items)
        self._step = step
        self.failure: BaseException | None = None
        self._context = contextvars.copy_context()
        self._running = 0
        self._helpers = 0
        self._changed = threading.Condition(threading.Lock())  # guards all of these

    def run(self, item: Any, around: WorkerContext | None) -> list[Any]:
        # A copy for each job: one context cannot be entered by two threads.
        context = self._context.copy()
        if around is None:
            return list(context.run(self._step, item))
        with around():
            return list(context.run(self._step, item))

    def admit(self, wanted: int, most: int) -> int:
        """Count further helpers and return how many may come, so that those invited never outnumber the places."""
        with self._changed:
            admitted = max(min(wanted, most - self._helpers), 0)
            self._helpers += admitted
            return admitted

    def leave(self) -> bool:
        """Count a helper out, unless something is queued."""
        with self._changed:
            if self.queue:
                return False
            self._helpers -= 1
            return True

    def next(self) -> Any:
        with self._changed:
            return self._pop()

    def next_after(self, further: list[Any], failure: BaseException | None) -> Any:
        """Put a job's further items in the queue and take the next; the first failure drops what is queued."""
        with self._changed:
            self._running -= 1
            if failure is not None:
                self.failure = self.failure or failure
            if self.failure is not None:
                self.queue.clear()
            else:
                self.queue.extend(further)
            item = self._pop()
            if self.queue or not self._running:
                self._changed.notify_all()
            return item

    def drop(self) -> None:
        """Forget what is queued: the caller has left."""
        with self._changed:
            self.queue.clear()

    def _pop(self) -> Any:
        if not self.queue:
            return _NOTHING
        self._running += 1
        return self.queue.popleft()

    def wait_for_more(self) -> bool:
        """Wait until there is something to take or all is finished; returns whether all is finished."""
        with self._changed:
            self._changed.wait_for(lambda: self.queue or not self._running)
            return not self.queue

    def wait_for_end(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.queue and not self._running)


_pools: WeakSet[InPool] = WeakSet()


def _forget_threads() -> None:  # pragma: no cover (runs in forked children only: tests/integration)
    """A forked child has none of its parent's threads, and their locks may be held for ever."""
    for pool in list(_pools):
        _left_behind.append(pool._executor)
        pool._reset()


_left_behind: list[ThreadPoolExecutor | None] = []
"""Executors of a parent process: never touched, because their queues' locks may be held."""

if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_forget_threads)
