"""Jobs run in order, at most n at once, and end whatever happens."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pytest

from cqrs_sync.errors import CloseTimeout, ConfigurationError
from cqrs_sync.executors import InCallerThread, InPool

WAIT = 10.0
"""Seconds after which a test that hangs fails; never reached by one that passes."""


Job: TypeAlias = Callable[[], "Iterable[Any]"]


def call(function: Job) -> Iterable[Job]:
    """The step of these tests: an item is a function that returns further ones."""
    return function()


def job(function: Callable[[], object], *further: Job) -> Job:
    """A job that calls a function and returns further jobs."""

    def run() -> tuple[Job, ...]:
        function()
        return further

    return run


@pytest.fixture
def pool() -> Iterator[InPool]:
    pool = InPool(3)
    yield pool
    pool.close(WAIT)


class Gauge:
    """Counts how many threads are inside at once, and can hold them there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.highest = 0
        self.total = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.total += 1
            self.highest = max(self.highest, self.inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1


@pytest.mark.parametrize("executor", [InCallerThread(), InPool(1), InPool(3)])
def test_every_job_and_every_further_job_runs_once(executor: InCallerThread | InPool) -> None:
    """What jobs return is run too, to any depth."""
    seen: list[str] = []
    leaf = job(lambda: seen.append("leaf"))
    branch = job(lambda: seen.append("branch"), leaf, leaf)
    executor.run(call, [branch, leaf, branch])
    assert sorted(seen) == ["branch"] * 2 + ["leaf"] * 5
    executor.close(WAIT)


def test_further_jobs_go_to_the_end_of_the_queue() -> None:
    """In the caller's thread the order is that of one queue."""
    seen: list[int] = []
    InCallerThread().run(call, [job(lambda: seen.append(1), job(lambda: seen.append(3))), job(lambda: seen.append(2))])
    assert seen == [1, 2, 3]


def test_a_pool_of_one_place_keeps_the_order() -> None:
    """Jobs start in the order of the queue."""
    pool = InPool(1)
    seen: list[int] = []
    pool.run(call, [job(lambda n=n: seen.append(n), job(lambda n=n: seen.append(n + 10))) for n in range(10)])
    assert seen == list(range(20))
    pool.close(WAIT)


def test_nothing_to_do_needs_no_thread(pool: InPool) -> None:
    """An empty run returns at once."""
    before = set(threading.enumerate())
    pool.run(call, [])
    assert set(threading.enumerate()) <= before


def test_jobs_run_beside_each_other_up_to_the_size(pool: InPool) -> None:
    """Three jobs that wait for each other need three places."""
    barrier = threading.Barrier(3)
    pool.run(call, [job(lambda: barrier.wait(WAIT)) for _ in range(6)])
    assert barrier.broken is False


def test_the_caller_takes_part(pool: InPool) -> None:
    """One job alone is run by the caller itself."""
    threads: list[str] = []
    pool.run(call, [job(lambda: threads.append(threading.current_thread().name))])
    assert threads == [threading.current_thread().name]


def test_at_most_size_jobs_run_at_once_over_all_callers(pool: InPool) -> None:
    """Callers that help are counted too."""
    gauge = Gauge()

    def work() -> None:
        with gauge:
            turn.wait(0.001)

    turn = threading.Event()
    callers = [threading.Thread(target=pool.run, args=(call, [job(work) for _ in range(10)])) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
    assert gauge.total == 120
    assert gauge.highest <= 3


def test_a_caller_without_a_place_waits_for_pool_threads_to_do_its_jobs() -> None:
    """With the only place taken, the second caller's job runs when the first has finished."""
    pool = InPool(1)
    entered, leave = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        entered.set()
        leave.wait(WAIT)
        order.append("first")

    one = threading.Thread(
        target=pool.run,
        args=(
            call,
            [job(first)],
        ),
    )
    one.start()
    assert entered.wait(WAIT)
    two = threading.Thread(
        target=pool.run,
        args=(
            call,
            [job(lambda: order.append("second"))],
        ),
    )
    two.start()
    leave.set()
    one.join(WAIT)
    two.join(WAIT)
    assert order == ["first", "second"]
    pool.close(WAIT)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_nested_runs_finish_at_any_depth(size: int) -> None:
    """A job that waits for its own jobs lends them its place."""
    pool = InPool(size)
    gauge = Gauge()

    def descend(depth: int) -> None:
        with gauge:
            pass
        if depth:
            pool.run(call, [job(lambda: descend(depth - 1)) for _ in range(2)])

    pool.run(call, [job(lambda: descend(6)) for _ in range(4)])
    assert gauge.total == 4 * (2**7 - 1)
    pool.close(WAIT)


def test_two_pools_that_call_each_other_do_not_deadlock() -> None:
    """Jobs that hold all places of one pool run their nested jobs in the places they hold."""
    left, right = InPool(2), InPool(2)
    all_in = threading.Barrier(4)
    done: list[str] = []

    def crossing(other: InPool) -> Callable[[], None]:
        def run() -> None:
            all_in.wait(WAIT)  # all places of both pools are taken
            other.run(call, [job(lambda: done.append("nested"))])

        return run

    callers = [
        threading.Thread(
            target=pool.run,
            args=(
                call,
                [job(crossing(other)), job(crossing(other))],
            ),
        )
        for pool, other in ((left, right), (right, left))
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
    assert done == ["nested"] * 4
    left.close(WAIT)
    right.close(WAIT)


def test_follow_ups_of_one_job_spread_over_the_pool(pool: InPool) -> None:
    """Further jobs invite further threads."""
    barrier = threading.Barrier(3)
    wait = job(lambda: barrier.wait(WAIT))
    pool.run(call, [job(lambda: None, wait, wait, wait)])


def test_an_exception_stops_what_is_queued_and_reaches_the_caller(pool: InPool) -> None:
    """What leaves a job is not lost, and the pool goes on serving others."""
    seen: list[int] = []

    def fail() -> None:
        raise KeyboardInterrupt("stop")

    one_place = InPool(1)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        one_place.run(call, [job(fail), job(lambda: seen.append(1))])
    assert seen == []
    one_place.run(call, [job(lambda: seen.append(2))])
    assert seen == [2]
    one_place.close(WAIT)


def test_an_exception_on_a_pool_thread_reaches_the_caller(pool: InPool) -> None:
    """Also where the caller was busy with another job meanwhile."""
    both = threading.Barrier(2)
    caller = threading.get_ident()

    def run() -> None:
        both.wait(WAIT)
        if threading.get_ident() != caller:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        pool.run(call, [job(run), job(run)])


def test_a_caller_that_is_interrupted_drops_what_is_queued() -> None:
    """An interrupt in the caller's own job leaves nothing behind for pool threads."""
    pool = InPool(2)
    blocked, leave = threading.Event(), threading.Event()
    caller = threading.get_ident()
    later: list[int] = []

    def run() -> None:
        if threading.get_ident() == caller:
            assert blocked.wait(WAIT)
            leave.set()
            raise KeyboardInterrupt
        blocked.set()
        leave.wait(WAIT)

    with pytest.raises(KeyboardInterrupt):
        pool.run(call, [job(run), job(run), *[job(lambda: later.append(1)) for _ in range(50)]])
    pool.close(WAIT)
    assert len(later) < 50


def test_context_variables_reach_every_job_and_do_not_come_back(pool: InPool) -> None:
    """Each job has a copy of the caller's context."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("caller's")
    seen: list[str] = []
    barrier = threading.Barrier(3)

    def run() -> None:
        barrier.wait(WAIT)
        seen.append(variable.get())
        variable.set("job's")

    pool.run(call, [job(run) for _ in range(3)])
    assert seen == ["caller's"] * 3
    assert variable.get() == "caller's"


def test_worker_context_surrounds_jobs_on_pool_threads_only() -> None:
    """The caller's own thread-locals are its own business."""
    entered: list[int] = []
    left: list[int] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        entered.append(threading.get_ident())
        yield
        left.append(threading.get_ident())

    pool = InPool(2, around)
    barrier = threading.Barrier(2)
    ran: list[int] = []

    def run() -> None:
        barrier.wait(WAIT)
        ran.append(threading.get_ident())

    pool.run(call, [job(run), job(run)])
    assert entered == left == [ident for ident in ran if ident != threading.get_ident()]
    assert len(entered) == 1
    pool.close(WAIT)


@pytest.mark.parametrize("when", ["enter", "leave"])
def test_a_worker_context_that_fails_is_logged_and_no_job_is_lost(when: str, caplog: pytest.LogCaptureFixture) -> None:
    """Closing a connection that is gone is when it fails, and the job has been done."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        if when == "enter":
            raise LookupError("no connection")
        yield
        raise LookupError("no connection")

    pool = InPool(2, around)
    barrier = threading.Barrier(2)
    done: list[int] = []
    pool.run(call, [job(lambda: barrier.wait(WAIT), job(lambda: done.append(1))) for _ in range(2)])
    assert done == [1, 1]
    assert "worker_context could not be" in caplog.text
    assert "no connection" in caplog.text
    pool.close(WAIT)


def test_close_leaves_no_thread_and_later_jobs_run_in_their_callers_thread() -> None:
    """A send that was admitted before must not lose its events. Closing twice is harmless."""
    pool = InPool(2, name="cqrs-mine")
    barrier = threading.Barrier(2)
    pool.run(call, [job(lambda: barrier.wait(WAIT)) for _ in range(2)])
    assert any(thread.name.startswith("cqrs-mine") for thread in threading.enumerate())
    pool.close(WAIT)
    pool.close(WAIT)
    assert not any(thread.name.startswith("cqrs-mine") for thread in threading.enumerate())
    threads: list[int] = []
    pool.run(call, [job(lambda: threads.append(threading.get_ident())) for _ in range(5)])
    assert threads == [threading.get_ident()] * 5


def test_a_pool_may_be_closed_by_another_pools_job() -> None:
    """Only its own jobs would make it wait for itself."""
    outer = InPool(2)

    def run() -> None:
        inner = InPool(2)
        inner.run(call, [job(lambda: None), job(lambda: None)])
        inner.close(WAIT)

    outer.run(call, [job(run)])
    outer.close(WAIT)


def test_a_job_of_another_pool_takes_a_free_place_before_it_uses_its_own() -> None:
    """So that the bound of the inner pool holds while it has places."""
    outer, inner = InPool(4), InPool(1)
    all_in = threading.Barrier(4)
    gauge = Gauge()

    def nested() -> None:
        with gauge:
            pass

    def run() -> None:
        all_in.wait(WAIT)
        inner.run(call, [job(nested)])

    outer.run(call, [job(run) for _ in range(4)])
    assert gauge.total == 4
    outer.close(WAIT)
    inner.close(WAIT)


def test_an_interrupt_while_threads_are_started_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the pool would have one place less for ever."""
    pool = InPool(1)
    with monkeypatch.context() as patched:

        def interrupted(*_: object) -> int:
            raise KeyboardInterrupt

        patched.setattr(pool, "_invite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.run(call, [job(lambda: None)])
    seen: list[int] = []
    pool.run(call, [job(lambda: seen.append(1))])
    assert seen == [1]
    pool.close(WAIT)


def test_close_waits_for_jobs_at_work_and_lets_them_nest() -> None:
    """A job that is at work when the pool is closed may still run jobs of its own."""
    pool = InPool(2)
    entered, leave = threading.Event(), threading.Event()
    nested: list[int] = []

    def run() -> None:
        entered.set()
        leave.wait(WAIT)
        pool.run(call, [job(lambda: nested.append(1))])

    caller = threading.Thread(
        target=pool.run,
        args=(
            call,
            [job(run)],
        ),
    )
    caller.start()
    assert entered.wait(WAIT)
    with pytest.raises(CloseTimeout) as caught:
        pool.close(0)
    assert caught.value.running == 1
    leave.set()
    pool.close(WAIT)
    caller.join(WAIT)
    assert nested == [1]


def test_close_inside_a_job_is_refused(pool: InPool) -> None:
    """It would wait for itself."""
    errors: list[Exception] = []

    def run() -> None:
        assert pool.runs_here()
        try:
            pool.close(WAIT)
        except ConfigurationError as error:
            errors.append(error)

    pool.run(call, [job(run)])
    assert "inside an event handler" in str(errors[0])
    assert not pool.runs_here()


def test_a_pool_that_is_forgotten_warns_and_ends_its_threads() -> None:
    """Forgetting close() is a ResourceWarning."""
    pool = InPool(2, name="cqrs-forgotten")
    barrier = threading.Barrier(2)
    pool.run(call, [job(lambda: barrier.wait(WAIT)) for _ in range(2)])
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("cqrs-forgotten")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_the_caller_does_it_all_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the interpreter has begun to shut down."""
    pool = InPool(2)
    threads: set[int] = set()
    monkeypatch.setattr("cqrs_sync.executors.ThreadPoolExecutor", _shutting_down)
    note = job(lambda: threads.add(threading.get_ident()), job(lambda: None), job(lambda: None))
    pool.run(call, [note] * 5)
    assert threads == {threading.get_ident()}
    with pool._state.places, pool._state.places:  # both places are taken: the caller waits for one
        caller = threading.Thread(
            target=pool.run,
            args=(
                call,
                [job(lambda: threads.add(threading.get_ident()))],
            ),
        )
        caller.start()
    caller.join(WAIT)
    assert len(threads) == 2
    pool.close(WAIT)


def _shutting_down(*_: object, **__: object) -> None:
    raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def test_a_pool_needs_a_thread() -> None:
    """A size below 1 is refused, by name."""
    with pytest.raises(ConfigurationError, match="at least 1 thread, not 0"):
        InPool(0)


def test_a_caller_that_waits_comes_back_for_further_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one helper admitted in all, two jobs that wait for each other need the caller's thread."""
    admitted = iter([1])
    monkeypatch.setattr("cqrs_sync.executors._Work.admit", lambda work, wanted, most: next(admitted, 0))
    pool = InPool(2)
    caller = threading.get_ident()
    both, callers_is_done = threading.Barrier(2), threading.Event()
    meet = job(lambda: both.wait(WAIT))

    def run() -> tuple[Job, ...]:
        if threading.get_ident() == caller:
            callers_is_done.set()
            return ()
        assert callers_is_done.wait(WAIT)
        return meet, meet

    pool.run(call, [run, run])
    pool.close(WAIT)


def test_a_thread_that_cannot_be_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller does it all, and close() counts no helper that never came."""

    class Full(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("cqrs_sync.executors.ThreadPoolExecutor", Full)
    pool = InPool(2)
    threads: list[int] = []
    pool.run(call, [job(lambda: threads.append(threading.get_ident())) for _ in range(4)])
    pool.close(0)
    assert threads == [threading.get_ident()] * 4
