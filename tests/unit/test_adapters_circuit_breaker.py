"""The pybreaker adapter: it opens, refuses, tries once and closes, and never runs a call under a lock."""

import datetime
import importlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pybreaker
import pytest

from cqrs_sync.adapters.circuit_breaker import AioBreakerAdapter, PyBreakerAdapter
from cqrs_sync.circuit_breaker import ICircuitBreaker, should_use_fallback
from cqrs_sync.errors import ConfigurationError, NotInstalled

WAIT = 10


class Handler:
    """Stands for the class whose circuit it is."""


class Unavailable(Exception):
    pass


class Declined(Exception):
    """A business error."""


class Storages(dict[str, pybreaker.CircuitMemoryStorage]):
    """Keeps the storages it makes, so that a test can look into them and turn the clock."""

    def __call__(self, name: str) -> pybreaker.CircuitMemoryStorage:
        self[name] = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        return self[name]

    @property
    def only(self) -> pybreaker.CircuitMemoryStorage:
        (storage,) = self.values()
        return storage

    def let_time_pass(self) -> None:
        assert self.only.opened_at is not None
        self.only.opened_at -= datetime.timedelta(hours=1)


@pytest.fixture
def storages() -> Storages:
    return Storages()


@pytest.fixture
def breaker(storages: Storages) -> PyBreakerAdapter:
    return PyBreakerAdapter(fail_max=2, timeout_duration=60, exclude=[Declined], storage_factory=storages)


def fail(error: Exception | None = None) -> None:
    raise error or Unavailable


def succeed() -> str:
    return "done"


def trip(breaker: PyBreakerAdapter) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)


class Held:
    """A call in another thread that has begun and ends when told."""

    def __init__(self, breaker: PyBreakerAdapter, ending: Callable[[], Any] = succeed) -> None:
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._ending = ending
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(breaker.call, Handler, self._run)
        assert self._begun.wait(WAIT)

    def _run(self) -> Any:
        self._begun.set()
        assert self._go_on.wait(WAIT)
        return self._ending()

    def end(self) -> Any:
        self._go_on.set()
        with self._pool:
            return self._future.exception(WAIT) or self._future.result()


class TestCalls:
    def test_it_is_a_circuit_breaker(self) -> None:
        port: ICircuitBreaker = PyBreakerAdapter()
        assert port.call("x", succeed) == "done"
        assert AioBreakerAdapter is PyBreakerAdapter

    def test_arguments_and_result_pass_through(self, breaker: PyBreakerAdapter) -> None:
        assert breaker.call(Handler, lambda *args, **kwargs: (args, kwargs), 1, key=2) == ((1,), {"key": 2})

    def test_concurrent_calls_of_one_identifier_run_beside_each_other(self, breaker: PyBreakerAdapter) -> None:
        together = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            waits = [pool.submit(breaker.call, Handler, together.wait, WAIT) for _ in range(4)]
            assert sorted(wait.result(WAIT) for wait in waits) == [0, 1, 2, 3]

    def test_a_call_may_make_another_call(self, breaker: PyBreakerAdapter) -> None:
        assert breaker.call(Handler, breaker.call, Handler, succeed) == "done"

    def test_no_failure_is_lost_between_threads(self, storages: Storages) -> None:
        breaker = PyBreakerAdapter(fail_max=1000, storage_factory=storages)
        together = threading.Barrier(8)

        def fail_often() -> None:
            together.wait(WAIT)
            for _ in range(50):
                with pytest.raises(Unavailable):
                    breaker.call(Handler, fail)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(fail_often) for _ in range(8)]:
                done.result(WAIT)
        assert storages.only.counter == 400

    def test_error_keeps_its_own_traceback(self, breaker: PyBreakerAdapter) -> None:
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                breaker.call(Handler, fail)
            assert "pybreaker" not in "".join(
                frame.filename for frame in traceback.extract_tb(caught.value.__traceback__) if frame.name != "call"
            )
            assert caught.value.__context__ is None


class TestIdentifiers:
    def test_each_identifier_has_its_own_circuit(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        trip(breaker)
        assert breaker.call("other", succeed) == "done"
        assert set(storages) == {f"{__name__}.Handler", "other"}

    def test_a_class_and_its_full_name_share_a_circuit(self, breaker: PyBreakerAdapter) -> None:
        trip(breaker)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(f"{__name__}.Handler", succeed)

    def test_circuit_is_made_once_however_many_threads_ask_first(self) -> None:
        made: list[str] = []
        asked, answer = threading.Event(), threading.Event()

        def slow_storage(name: str) -> pybreaker.CircuitMemoryStorage:
            made.append(name)
            asked.set()
            assert answer.wait(WAIT)
            return pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)

        breaker = PyBreakerAdapter(storage_factory=slow_storage)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(breaker.call, Handler, succeed) for _ in range(4)]
            assert asked.wait(WAIT)
            answer.set()
            assert [call.result(WAIT) for call in calls] == ["done"] * 4
        assert made == [f"{__name__}.Handler"]


class TestOpening:
    def test_circuit_opens_after_the_maximum_of_failures_in_a_row(self, breaker: PyBreakerAdapter) -> None:
        ran: list[int] = []
        trip(breaker)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(Handler, ran.append, 1)
        assert ran == []

    def test_success_starts_the_count_anew(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        breaker.call(Handler, succeed)
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        assert storages.only.state == "closed"

    def test_refusal_is_told_from_a_failure_and_leads_to_the_fallback(self, breaker: PyBreakerAdapter) -> None:
        trip(breaker)
        with pytest.raises(pybreaker.CircuitBreakerError) as refusal:
            breaker.call(Handler, succeed)
        assert breaker.is_circuit_breaker_error(refusal.value)
        assert not breaker.is_circuit_breaker_error(Unavailable())
        assert should_use_fallback(refusal.value, breaker, (LookupError,))

    def test_excluded_error_counts_as_success(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        for _ in range(3):
            with pytest.raises(Declined):
                breaker.call(Handler, fail, Declined())
        assert storages.only.counter == 0

    def test_exclusion_may_be_a_predicate(self, storages: Storages) -> None:
        breaker = PyBreakerAdapter(exclude=[lambda error: "declined" in str(error)], storage_factory=storages)
        with pytest.raises(ValueError, match="declined"):
            breaker.call(Handler, fail, ValueError("declined"))
        assert storages.only.counter == 0

    def test_stop_iteration_is_a_failure_like_any_other(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(StopIteration):
            breaker.call(Handler, fail, StopIteration())
        assert storages.only.counter == 1

    def test_interrupt_counts_as_nothing(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        with pytest.raises(KeyboardInterrupt):
            breaker.call(Handler, fail, KeyboardInterrupt())  # type: ignore[arg-type]
        assert storages.only.counter == 1

    def test_late_failure_of_a_call_from_before_does_not_prolong_the_opening(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        straggler = Held(breaker, fail)
        trip(breaker)
        opened_at = storages.only.opened_at
        assert isinstance(straggler.end(), Unavailable)
        assert storages.only.opened_at is opened_at
        assert storages.only.counter == 2

    def test_late_success_of_a_call_from_before_does_not_close(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        straggler = Held(breaker)
        trip(breaker)
        assert straggler.end() == "done"
        assert storages.only.state == "open"

    def test_state_changes_are_logged_with_the_name(
        self, breaker: PyBreakerAdapter, storages: Storages, caplog: pytest.LogCaptureFixture
    ) -> None:
        trip(breaker)
        storages.let_time_pass()
        breaker.call(Handler, succeed)
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.WARNING, f"Circuit breaker {__name__}.Handler: {change}")
            for change in ("closed -> open", "open -> half-open", "half-open -> closed")
        ]


class TestHalfOpen:
    @pytest.fixture(autouse=True)
    def _waited(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        trip(breaker)
        storages.let_time_pass()

    def test_success_of_the_trial_closes(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        assert breaker.call(Handler, succeed) == "done"
        assert storages.only.state == "closed"
        assert storages.only.counter == 0

    def test_failure_of_the_trial_opens_again(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        assert storages.only.state == "open"
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(Handler, succeed)

    def test_others_are_refused_while_the_trial_runs(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        trial = Held(breaker)
        with pytest.raises(pybreaker.CircuitBreakerError, match="trial"):
            breaker.call(Handler, succeed)
        assert trial.end() == "done"
        assert breaker.call(Handler, succeed) == "done"

    def test_exactly_one_of_many_threads_makes_the_trial(self, breaker: PyBreakerAdapter) -> None:
        together, others_refused = threading.Barrier(6), threading.Event()
        refused: list[Exception] = []

        def attempt() -> bool:
            together.wait(WAIT)
            try:
                return breaker.call(Handler, others_refused.wait, WAIT)
            except pybreaker.CircuitBreakerError as error:
                refused.append(error)
                if len(refused) == 5:
                    others_refused.set()
                return False

        with ThreadPoolExecutor(6) as pool:
            results = [attempted.result(WAIT) for attempted in [pool.submit(attempt) for _ in range(6)]]
        assert sorted(results) == [False] * 5 + [True]

    def test_interrupted_trial_leaves_the_trial_to_the_next(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            breaker.call(Handler, fail, KeyboardInterrupt())  # type: ignore[arg-type]
        assert storages.only.state == "half-open"
        assert breaker.call(Handler, succeed) == "done"
        assert storages.only.state == "closed"

    def test_trial_that_hangs_gives_its_place_after_the_timeout(
        self, breaker: PyBreakerAdapter, storages: Storages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trial = Held(breaker, fail)
        in_an_hour = time.monotonic() + 3600
        monkeypatch.setattr("cqrs_sync.adapters.circuit_breaker.time", SimpleNamespace(monotonic=lambda: in_an_hour))
        assert breaker.call(Handler, succeed) == "done"
        assert storages.only.state == "closed"
        assert isinstance(trial.end(), Unavailable)
        assert storages.only.counter == 0


class TestGenerators:
    @staticmethod
    def items(count: int, error: Exception | None = None) -> Generator[int, str | None, str]:
        yield from range(count)
        if error is not None:
            raise error
        return "end"

    def test_items_and_return_value_pass_through(self, breaker: PyBreakerAdapter) -> None:
        def consume() -> Generator[int, str | None, str]:
            return (yield from breaker.call(Handler, self.items, 2))

        stream = consume()
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(StopIteration) as end:
            next(stream)
        assert end.value.value == "end"

    def test_generator_succeeds_or_fails_at_its_end(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        stream = breaker.call(Handler, self.items, 1, Unavailable())
        assert next(stream) == 0
        assert storages.only.counter == 0
        with pytest.raises(Unavailable):
            next(stream)
        assert storages.only.counter == 1
        assert list(breaker.call(Handler, self.items, 1)) == [0]
        assert storages.only.counter == 0

    def test_open_circuit_refuses_at_the_first_item(self, breaker: PyBreakerAdapter) -> None:
        trip(breaker)
        stream = breaker.call(Handler, self.items, 1)
        with pytest.raises(pybreaker.CircuitBreakerError):
            next(stream)

    def test_consumer_that_stops_early_is_neither(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        with pytest.raises(Unavailable):
            breaker.call(Handler, fail)
        stream = breaker.call(Handler, self.items, 2)
        next(stream)
        stream.close()
        assert storages.only.counter == 1

    def test_close_reaches_the_generator(self, breaker: PyBreakerAdapter) -> None:
        closed: list[bool] = []

        def items() -> Iterator[int]:
            try:
                yield 1
            finally:
                closed.append(True)

        stream = breaker.call(Handler, items)
        next(stream)
        del stream
        assert closed == [True]

    def test_trial_that_the_consumer_leaves_is_made_by_the_next(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        trip(breaker)
        storages.let_time_pass()
        stream = breaker.call(Handler, self.items, 2)
        next(stream)
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(Handler, succeed)
        del stream
        assert storages.only.state == "half-open"
        assert list(breaker.call(Handler, self.items, 2)) == [0, 1]
        assert storages.only.state == "closed"

    def test_stream_that_the_garbage_collector_closes_under_the_lock_does_not_block(
        self, breaker: PyBreakerAdapter
    ) -> None:
        stream = breaker.call(Handler, self.items, 2)
        next(stream)
        with breaker._circuits[Handler]._lock:
            stream.close()

    def test_stream_that_is_never_started_occupies_nothing(self, breaker: PyBreakerAdapter, storages: Storages) -> None:
        trip(breaker)
        storages.let_time_pass()
        unstarted = [breaker.call(Handler, self.items, 2), breaker.call(Handler, lambda: self.items(2))]
        assert breaker.call(Handler, succeed) == "done"
        assert len(unstarted) == 2

    def test_function_that_returns_a_generator_is_treated_like_one(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        stream = breaker.call(Handler, lambda: self.items(1, Unavailable()))
        assert next(stream) == 0
        with pytest.raises(Unavailable):
            next(stream)
        assert storages.only.counter == 1

    def test_two_streams_of_one_identifier_advance_in_turn(self, breaker: PyBreakerAdapter) -> None:
        first, second = breaker.call(Handler, self.items, 2), breaker.call(Handler, self.items, 2)
        assert [next(first), next(second), next(first), next(second)] == [0, 0, 1, 1]


class TestStorage:
    def test_state_another_process_set_is_noticed(
        self, breaker: PyBreakerAdapter, storages: Storages, caplog: pytest.LogCaptureFixture
    ) -> None:
        breaker.call(Handler, succeed)
        storages.only.opened_at = datetime.datetime.now(datetime.UTC)
        storages.only.state = "open"
        with pytest.raises(pybreaker.CircuitBreakerError):
            breaker.call(Handler, succeed)
        assert "closed -> open" in caplog.text

    def test_outcome_is_dropped_if_another_process_opened_meanwhile(
        self, breaker: PyBreakerAdapter, storages: Storages
    ) -> None:
        running = Held(breaker)
        storages.only.opened_at = datetime.datetime.now(datetime.UTC)
        storages.only.state = "open"
        assert running.end() == "done"
        assert storages.only.state == "open"

    def test_storage_that_cannot_count_does_not_cost_the_result(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(pybreaker.CircuitMemoryStorage):
            def reset_counter(self) -> None:
                raise OSError("storage is away")

        breaker = PyBreakerAdapter(storage_factory=lambda name: Broken(pybreaker.STATE_CLOSED))
        assert breaker.call("x", succeed) == "done"
        assert "storage is away" in caplog.text


@pytest.mark.parametrize("settings", [{"fail_max": 0}, {"timeout_duration": -1}])
def test_senseless_settings_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigurationError):
        PyBreakerAdapter(**settings)


def test_import_without_pybreaker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybreaker", None)
    monkeypatch.delitem(sys.modules, "cqrs_sync.adapters.circuit_breaker")
    with pytest.raises(NotInstalled, match=r"cqrs-sync\[circuit-breaker\]") as caught:
        importlib.import_module("cqrs_sync.adapters.circuit_breaker")
    assert caught.value.feature == "cqrs_sync.adapters.circuit_breaker"
