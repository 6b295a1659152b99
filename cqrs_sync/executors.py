"""Where the jobs of one caller run: in the caller's thread, or in a bounded pool that the caller helps.

A *job* is an item and the step that is taken with it, which returns further items; those go to the end of the caller's
queue. Steps handle their own errors; an exception that leaves one stops the rest and reaches the caller.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

from cqrs_sync.errors import CloseTimeout, ConfigurationError

logger = logging.getLogger(__name__)

Step: TypeAlias = Callable[[Any], Iterable[Any]]
"""Does the job of one item and returns further items."""

WorkerContext: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Makes the context manager that is entered around each job on a pool thread, to free what is bound to the thread."""


class Executor(Protocol):
    """Runs the jobs of one caller to their end."""

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Take the step with the items and those it returns, started in order; return when all have finished."""
        ...

    def runs_here(self) -> bool:
        """Whether this thread is running one of its jobs."""
        ...

    def close(self, timeout: float) -> None:
        """Start no more threads, wait up to ``timeout`` seconds for those at work, and end the threads."""
        ...


class InCallerThread:
    """Runs jobs one after another in the caller's thread; callers do not wait for each other."""

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Run the jobs in order; see :class:`Executor`."""
        queue = deque(items)
        before, _here.executors = _here.executors, (*_here.executors, self)
        try:
            while queue:
                further = step(queue.popleft())
                if further:
                    queue.extend(further)
        finally:
            _here.executors = before

    def runs_here(self) -> bool:
        """Whether this thread is running one of its jobs."""
        return self in _here.executors

    def close(self, timeout: float) -> None:
        """Nothing to end: jobs at work finish in their callers' threads."""


_NOTHING = object()
"""What there is to take from an empty queue."""


class _Here(threading.local):
    """What this thread is doing: which executors' jobs it runs, the innermost last, and whether it holds a place."""

    executors: tuple[object, ...] = ()
    holds_place = False

    @contextmanager
    def running(self, executor: object, *, in_place: bool) -> Iterator[None]:
        before = self.executors, self.holds_place
        self.executors, self.holds_place = (*self.executors, executor), in_place or self.holds_place
        try:
            yield
        finally:
            self.executors, self.holds_place = before


_here = _Here()


class InPool:
    """Runs jobs of all callers on at most ``size`` threads, callers that help included.

    There are ``size`` places. A thread takes one to run jobs: pool threads as they are invited, the caller if one is
    free. A job that calls :meth:`run` itself (a nested ``send``) keeps its place and runs the nested jobs in it while
    it waits, so nesting needs no further place and cannot deadlock, at any depth and size; the place is not given to
    strangers, who might wait for a row that the waiting job has locked. Where the nested call is to another pool that
    has no place free, its jobs run in the lent one: over all pools, places are lent and never created.

    One ``ThreadPoolExecutor``, made on first use and forgotten in a forked child. Each job runs in a copy of the
    caller's context variables. Thread-safe.

    Args:
        size: how many jobs may run at once, at least 1.
        worker_context: entered around each job on a pool thread (not around those that the caller runs).
        name: the prefix of the threads' names.
    """

    def __init__(self, size: int, worker_context: WorkerContext | None = None, name: str = "cqrs-events") -> None:
        if size < 1:
            raise ConfigurationError(f"a pool needs at least 1 thread, not {size}")
        self._size = size
        self._worker_context = worker_context
        self._name = name
        self._state = _State(size)
        _pools.add(self)

    def forget_threads(self) -> _State:  # pragma: no cover (runs in forked children only: tests/integration)
        """Start anew in a forked child; returns what the parent's threads shared."""
        before, self._state = self._state, _State(self._size)
        self._state.closed = before.closed
        return before

    def run(self, step: Step, items: Iterable[Any]) -> None:
        """Run the jobs; see :class:`Executor`. After :meth:`close` the caller runs them alone: none is refused."""
        work = _Work(step, items)
        if not work.queue:
            return
        state = self._state  # a forked child gets another one
        with state.changed:
            state.callers += 1
        try:
            self._finish(work, state)
        except BaseException:
            work.drop()
            raise
        finally:
            state.leave()

    def runs_here(self) -> bool:
        """Whether this thread is running one of its jobs."""
        return self in _here.executors

    def close(self, timeout: float) -> None:
        """Stop; see :class:`Executor`. Calling it again waits again.

        Raises:
            CloseTimeout: jobs were still at work after ``timeout`` seconds.
            ConfigurationError: it was called by one of its jobs, which would wait for itself.
        """
        if self.runs_here():
            raise ConfigurationError("close() was called inside an event handler, which it would wait for")
        state = self._state
        with state.changed:
            state.closed = True
            if not state.changed.wait_for(lambda: not state.callers and not state.helpers, timeout):
                raise CloseTimeout(timeout, max(state.callers, 1))
            executor = state.executor
        if executor is not None:
            executor.shutdown()  # at once: no thread is at work
        state.executor = None

    def _finish(self, work: _Work, state: _State) -> None:
        """Run the work together with pool threads until nothing is queued or running."""
        places = state.places
        own = self.runs_here()
        taken = not own and places.acquire(blocking=False)
        try:
            helpers = self._invite(work, len(work.queue) - (own or taken), state)
            if not (own or taken or helpers or _here.holds_place):
                taken = places.acquire()
            while True:
                if taken or own or _here.holds_place:
                    with _here.running(self, in_place=True):
                        self._take_part(work, state)
                else:
                    work.wait_for_end()
                if taken:
                    places.release()
                    taken = False
                if work.wait_for_more():
                    break
                taken = not own and places.acquire(blocking=False)
        finally:
            if taken:
                places.release()
        if work.failure is not None:
            raise work.failure

    def _take_part(self, work: _Work, state: _State, around: WorkerContext | None = None) -> None:
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
                self._invite(work, len(further) - 1, state)

    def _invite(self, work: _Work, wanted: int, state: _State) -> int:
        """Ask pool threads to take part; returns how many were asked, 0 where no thread can be started any more."""
        invited = work.admit(wanted, self._size)
        for number in range(invited):
            try:
                with state.changed:
                    if state.closed and not state.executor:
                        return number
                    if state.executor is None:
                        state.executor = ThreadPoolExecutor(self._size, thread_name_prefix=self._name)
                    state.helpers += 1  # first: an interrupt must not leave a helper that nobody counted
                    try:
                        state.executor.submit(self._help, work, state)
                    except BaseException:
                        state.helpers -= 1
                        raise
            except RuntimeError:  # "cannot schedule new futures": the interpreter is shutting down
                return number
        return invited

    def _help(self, work: _Work, state: _State) -> None:
        try:
            while not work.leave():  # at once where the others were faster
                with state.places, _here.running(self, in_place=True):
                    self._take_part(work, state, self._worker_context)
        finally:
            with state.changed:
                state.helpers -= 1
                state.changed.notify_all()

    def __del__(self) -> None:
        state: _State | None = vars(self).get("_state")  # absent where __init__ has refused
        executor = state.executor if state is not None else None
        if executor is not None:
            warnings.warn(
                f"{self._name}: a pool of threads was never closed", ResourceWarning, stacklevel=2, source=self
            )
            executor.shutdown(wait=False)


class _State:
    """What a pool's threads share in one process."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()  # guards all but places; notified when a caller or a helper leaves
        self.executor: ThreadPoolExecutor | None = None
        self.callers = 0
        self.helpers = 0
        self.closed = False
        self.places = threading.Semaphore(size)

    def leave(self) -> None:
        """Count a caller out."""
        with self.changed:
            self.callers -= 1
            self.changed.notify_all()


class _Work:
    """The jobs of one call of :meth:`InPool.run`, taken from by several threads."""

    def __init__(self, step: Step, items: Iterable[Any]) -> None:
        self.queue = deque(items)
        self._step = step
        self.failure: BaseException | None = None
        self._context = contextvars.copy_context()
        self._running = 0
        self._dropped = False
        self._helpers = 0
        self._changed = threading.Condition(threading.Lock())  # guards all of these

    def run(self, item: Any, around: WorkerContext | None) -> list[Any]:
        # A copy for each job: one context cannot be entered by two threads.
        context = self._context.copy()
        with nullcontext() if around is None else logged(around):
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
            if self._dropped or self.failure is not None:
                self.queue.clear()
            else:
                self.queue.extend(further)
            item = self._pop()
            if self.queue or not self._running:
                self._changed.notify_all()
            return item

    def drop(self) -> None:
        """Forget what is queued and what running jobs will return: the caller has left."""
        with self._changed:
            self._dropped = True
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


@contextmanager
def logged(around: WorkerContext) -> Iterator[None]:
    """Enter a worker context; where that or leaving it fails, the job counts all the same."""
    with ExitStack() as stack:
        try:
            stack.enter_context(around())
        except Exception:
            logger.exception("worker_context could not be entered; the event handler runs without it")
        yield
        try:
            stack.close()
        except Exception:
            logger.exception("worker_context could not be left")


_pools: WeakSet[InPool] = WeakSet()


def _forget_threads() -> None:  # pragma: no cover (runs in forked children only: tests/integration)
    """A forked child has none of its parent's threads, and their locks may be held for ever."""
    _left_behind.extend([pool.forget_threads() for pool in _pools])


_left_behind: list[_State] = []
"""Executors of a parent process with their locks: never touched, because they may be held for ever."""

if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_forget_threads)
