"""A step again and again, in a thread of its own."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cqrs_sync import background
from cqrs_sync.background import BackgroundLoop
from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, CQRSError, StopTimeout
from tests.unit.outboxes import WAIT, until

ROOT = Path(__file__).parents[2]

FOREVER = 3600.0
"""Seconds that no test lasts."""

NOW = Backoff(initial=0.001, jitter=0)
"""As good as no back-off."""


class Counting(BackgroundLoop):
    """Counts its steps; each is what ``does`` says, and idles as long as ``idles`` says."""

    def __init__(self, does: Callable[[int], object] = lambda _: None, idles: float = FOREVER, **options: Any) -> None:
        super().__init__("cqrs-counting", options.pop("backoff", NOW))
        self.steps = 0
        self.does = does
        self.idles = idles

    def step(self) -> float:
        self.steps += 1
        self.does(self.steps)
        return self.idles


def fails_at(*numbers: int, error: type[Exception] = ValueError) -> Callable[[int], None]:
    """A step that raises in these rounds."""

    def step(number: int) -> None:
        if number in numbers:
            raise error(f"step {number}")

    return step


def test_steps_are_taken_in_a_named_thread_until_the_stop() -> None:
    """And not before the start."""
    threads: list[threading.Thread] = []
    loop = Counting(lambda _: threads.append(threading.current_thread()), idles=0)
    assert not loop.running
    assert loop.steps == 0
    loop.start()
    until(lambda: loop.steps > 3)
    assert loop.running
    loop.stop()
    assert not loop.running
    assert {(thread.name, thread.daemon) for thread in threads} == {("cqrs-counting", True)}


def test_a_wake_up_ends_the_idling() -> None:
    """Once for each."""
    with Counting() as loop:
        for number in (1, 2, 3):
            until(lambda number=number: loop.steps == number)
            loop.wake()
        until(lambda: loop.steps == 4)


def test_a_wake_up_during_a_step_is_not_slept_through() -> None:
    """What was committed while a relay looked elsewhere is seen."""
    inside, go = threading.Event(), threading.Event()

    def does(number: int) -> None:
        if number == 1:
            inside.set()
            go.wait(WAIT)

    with Counting(does) as loop:
        inside.wait(WAIT)
        loop.wake()
        go.set()
        until(lambda: loop.steps == 2)


def test_a_step_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The error can be asked for until a step succeeds."""
    caplog.set_level(logging.INFO, "cqrs_sync.background")
    go = threading.Event()

    def does(number: int) -> None:
        if number == 3:
            go.wait(WAIT)
        fails_at(1, 2)(number)

    with Counting(does) as loop:
        until(lambda: loop.steps == 3)
        assert str(loop.last_error) == "step 2"
        go.set()
        until(lambda: loop.last_error is None)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "cqrs-counting: attempt 1 failed: ValueError: step 1",
        "cqrs-counting: attempt 2 failed: ValueError: step 2",
        "cqrs-counting works again after 2 failed attempts",
    ]


def test_a_row_of_failures_has_one_traceback_for_each_type_and_one_line_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An outage of hours does not fill the log, and what a driver says of statements is in the traceback only."""

    def does(number: int) -> None:
        if number != 4:
            raise (OSError if number == 3 else ValueError)(f"step {number}\n[parameters: secret]")

    with Counting(does, idles=0) as loop:
        until(lambda: loop.steps > 5)
    records = [record for record in caplog.records if record.levelno == logging.ERROR][:5]
    assert [record.getMessage() for record in records] == [
        "cqrs-counting: attempt 1 failed: ValueError: step 1",
        "cqrs-counting: attempt 2 failed: ValueError: step 2",
        "cqrs-counting: attempt 3 failed: OSError: step 3",
        "cqrs-counting: attempt 1 failed: ValueError: step 5",
        "cqrs-counting: attempt 2 failed: ValueError: step 6",
    ]
    assert [bool(record.exc_info) for record in records] == [True, False, True, True, False]


def test_an_error_without_a_text_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Not even to say what happened may raise."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    with Counting(fails_at(1, error=Mute)) as loop:
        until(lambda: loop.steps == 2)
    assert "attempt 1 failed" in caplog.text


@pytest.mark.parametrize("pause", [None, "soon"])
def test_a_step_that_returns_no_seconds_has_failed(pause: Any) -> None:
    """It does not end the loop either."""
    with Counting(idles=pause) as loop:
        until(lambda: loop.steps > 2)
        assert isinstance(loop.last_error, TypeError)


def test_a_loop_may_idle_for_ever() -> None:
    """As long as a thread can."""
    with Counting(idles=math.inf) as loop:
        until(lambda: loop.steps == 1)
        loop.wake()
        until(lambda: loop.steps == 2)


def test_a_back_off_that_raises_does_not_end_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default one stands in."""

    class Broken(Backoff):
        def delay(self, attempt: int) -> float:
            raise ZeroDivisionError("bug")

    monkeypatch.setattr("cqrs_sync.backoff.Backoff", lambda: NOW)
    with Counting(fails_at(1, 2), backoff=Broken()) as loop:
        until(lambda: loop.steps == 3)
    assert "Broken has no delay for attempt 2" in caplog.text


def test_a_back_off_that_is_none_is_refused() -> None:
    """A number of seconds, say."""
    with pytest.raises(ConfigurationError, match="backoff must be a Backoff, not 5"):
        Counting(backoff=5)


def test_an_error_of_the_library_is_logged_with_its_text_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is no bug."""
    with Counting(fails_at(1, error=BrokerUnavailable)) as loop:
        until(lambda: loop.steps == 2)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "cqrs-counting: attempt 1 failed: step 1"
    assert not record.exc_info


def test_waits_after_failures_grow_and_begin_anew_after_a_success() -> None:
    """The back-off is asked with the number of failures one after another."""
    asked: list[int] = []

    class Noting(Backoff):
        def delay(self, attempt: int) -> float:
            asked.append(attempt)
            return 0.0

    with Counting(fails_at(1, 2, 4), idles=0.001, backoff=Noting()) as loop:
        until(lambda: loop.steps > 5)
    assert asked == [1, 2, 1]


def test_a_wake_up_does_not_shorten_the_wait_after_a_failure() -> None:
    """Else every commit of a busy program would try a broker that is down."""
    waits = Backoff(initial=FOREVER, maximum=FOREVER, jitter=0)
    loop = Counting(fails_at(1), backoff=waits)
    loop.start()
    until(lambda: loop.last_error is not None)
    waited = threading.Event()
    for _ in range(20):
        loop.wake()
        waited.wait(0.005)  # gives a loop that listens every chance to be heard
    assert loop.steps == 1
    loop.stop()
    assert not loop.running


def test_a_loop_that_runs_cannot_be_started_again() -> None:
    """One that was stopped can, as often as you like."""
    loop = Counting()
    for number in (1, 2):
        loop.start()
        with pytest.raises(ConfigurationError, match="cqrs-counting is running already"):
            loop.start()
        until(lambda number=number: loop.steps == number)
        loop.stop()
        loop.stop()
    assert loop.steps == 2


def test_stopping_what_was_never_started_is_harmless() -> None:
    """Owners need not keep count."""
    loop = Counting()
    loop.stop()
    loop.wake()
    loop.start()
    until(lambda: loop.steps == 1)
    loop.stop()


def test_a_stop_that_takes_too_long_says_so_and_can_be_repeated() -> None:
    """The thread ends after its step, and meanwhile there is no second one."""
    go = threading.Event()
    loop = Counting(lambda _: go.wait(WAIT), idles=0)
    loop.start()
    until(lambda: loop.steps == 1)
    with pytest.raises(StopTimeout, match=r"cqrs-counting was still at work after 0\.01 s") as caught:
        loop.stop(0.01)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, CQRSError)
    assert caught.value.thread_name == "cqrs-counting"
    with pytest.raises(ConfigurationError):
        loop.start()
    go.set()
    loop.stop()
    assert loop.steps == 1


def test_a_step_may_stop_its_own_loop() -> None:
    """It cannot wait for itself."""
    loop = Counting(lambda _: loop.stop(), idles=0)
    loop.start()
    until(lambda: not loop.running)
    assert loop.steps == 1


def forget(loops: list[Counting]) -> None:
    """Drop the only reference to a loop and wait for its thread, which may be in a step and drop it last."""
    thread = loops[0]._run.thread
    assert thread is not None
    loops.clear()
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_forgetting_a_loop_that_runs_ends_it_with_a_warning() -> None:
    """The thread does not keep it alive."""
    loops = [Counting()]
    loops[0].start()
    until(lambda: loops[0].steps == 1)
    with pytest.warns(ResourceWarning, match="cqrs-counting was forgotten while it ran"):
        forget(loops)


def test_a_loop_that_failed_can_be_forgotten_too() -> None:
    """Its last error does not keep it alive, in an outage that lasts."""
    loops = [Counting(fails_at(1, error=BrokerUnavailable), backoff=Backoff(initial=FOREVER, maximum=FOREVER))]
    loops[0].start()
    until(lambda: loops[0].last_error is not None)
    with pytest.warns(ResourceWarning, match="was forgotten"):
        forget(loops)


def test_a_loop_that_is_forgotten_between_two_steps_takes_no_further_one() -> None:
    """The thread sees that its owner is gone."""
    loop = Counting(idles=0)
    run = loop._run
    steps: list[int] = []
    loop.does = steps.append
    gone: Any = lambda: None  # noqa: E731 (a weak reference whose object is gone)
    run.loop(gone, "cqrs-counting", NOW)
    assert steps == []


def test_a_loop_without_a_thread_is_collected() -> None:
    """Nothing keeps it."""
    reference = weakref.ref(Counting())
    gc.collect()
    assert reference() is None


def test_a_loop_that_could_not_be_made_raises_nothing_at_its_end() -> None:
    """Its constructor failed before there was anything to end."""

    class Broken(Counting):
        def __init__(self) -> None:
            raise ValueError

    with pytest.raises(ValueError):
        Broken()
    gc.collect()


def test_a_loop_whose_thread_is_forgotten_is_as_before_the_first_start() -> None:
    """What a forked child does with the loops of its parent."""
    loop = Counting()
    loop.start()
    until(lambda: loop.steps == 1)
    left_behind = loop._run
    loop.forget_thread()
    assert not loop.running
    loop.start()
    until(lambda: loop.steps == 2)
    loop.stop()
    left_behind.request_stop()
    assert left_behind.thread is not None
    left_behind.thread.join(WAIT)


def test_the_first_fork_after_a_start_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    """Once, for all that run, before it: in the child a lock of a handler might be held for ever."""
    one, two, idle = Counting(), Counting(), Counting()
    two.name, idle.name = "cqrs-two", "cqrs-idle"
    background._announce_fork()
    with one, two:
        for _ in range(2):
            background._announce_fork()
    background._announce_fork()
    with one:
        background._announce_fork()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert first == (
        f"a fork: cqrs-counting, cqrs-two runs in process {os.getpid()} only; a child that needs it must start it"
    )
    assert "cqrs-counting runs in" in second


def is_in(thread: threading.Thread, function: str) -> bool:
    """Whether a thread is in a function of this name just now."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame is not None


def test_run_forever_returns_when_somebody_stops_the_loop() -> None:
    """In any thread; signals are left alone outside the main one."""
    before = signal.getsignal(signal.SIGTERM)
    loop = Counting()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()
    until(lambda: loop.steps == 1)
    until(lambda: is_in(runner, "join"))
    assert signal.getsignal(signal.SIGTERM) is before
    loop.stop()
    runner.join(WAIT)
    assert not runner.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_forever_ends_with_a_signal_and_gives_the_handlers_back(number: signal.Signals) -> None:
    """In the main thread."""
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    loop = Counting(lambda _: signal.raise_signal(number))
    loop.run_forever()
    assert loop.steps == 1
    assert not loop.running
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def test_run_forever_restores_a_handler_that_python_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding program may have installed one: then the default has to do."""
    installed: dict[int, Any] = {}

    def install(number: int, handler: Any) -> None:
        installed[number] = handler

    monkeypatch.setattr("cqrs_sync.background.signal.signal", install)
    loop = Counting(lambda _: loop.stop())
    loop.run_forever()
    assert set(installed.values()) == {signal.SIG_DFL}


PRELUDE = r"""
import os, signal, sys, threading
from cqrs_sync.background import BackgroundLoop

class Loop(BackgroundLoop):
    steps = 0
    def step(self):
        self.steps += 1
        os.write(1, b"step\n")  # print() holds a lock, and a daemon thread may hold it when the interpreter ends
        return 3600.0

loop = Loop("cqrs-loop")
"""


def test_a_process_ends_its_loop_on_a_real_sigterm() -> None:
    """With status 0, after what stands behind run_forever()."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + "loop.run_forever(); print('ended', loop.running)"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("ended False\n", 0)


def test_a_forked_child_may_start_the_loop_anew() -> None:
    """The parent's runs on."""
    program = PRELUDE + textwrap.dedent("""
        loop.start()
        while not loop.steps:
            pass
        child = os.fork()
        if not child:
            assert not loop.running and loop.last_error is None
            loop.start()
            assert loop.running
            loop.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert loop.running
        loop.stop()
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_fork_is_announced_in_the_parent() -> None:
    """It says which loops the child does not have."""
    program = PRELUDE + textwrap.dedent("""
        import logging
        logging.basicConfig(format="%(process)d %(levelname)s %(message)s")
        with loop:
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(os.getpid())
    """)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        check=True,
        timeout=60,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    pid = result.stdout.split()[-1]
    assert result.stderr == (
        f"{pid} WARNING a fork: cqrs-loop runs in process {pid} only; a child that needs it must start it\n"
    )


def test_a_program_may_end_without_stopping_its_loop() -> None:
    """The thread is a daemon; the warning is for those who asked for warnings."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + "loop.start()"],
        check=False,
        timeout=60,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
