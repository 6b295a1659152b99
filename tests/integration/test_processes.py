"""Forks, exits and forgotten mediators, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, sys, threading, warnings
import punq
import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap
from tests.unit.shop import Do, Happened, event_handler, mediator_for

barrier = threading.Barrier(3)
threads = []

def react(event):
    barrier.wait(20)  # three handlers at once: the pool's threads are really there
    threads.append(threading.current_thread().name)

def send(mediator):
    threads.clear()
    assert mediator.send(Do(emits=[Happened() for _ in range(6)])) == "done"
    assert len(threads) == 6 and len(set(threads)) == 3, threads

mediator = mediator_for(event_handler(react), max_concurrent_event_handlers=3, event_errors="raise")
"""


def run(body: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a mediator in a process of its own; one that hangs fails."""
    return subprocess.run(
        [sys.executable, *flags, "-c", PRELUDE + textwrap.dedent(body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_mediator_used_before_a_fork_works_in_the_child_and_in_the_parent() -> None:
    """As gunicorn --preload, uWSGI and Celery prefork do it: the child starts threads of its own."""
    result = run("""
        send(mediator)
        child = os.fork()
        if not child:
            try:
                assert not [t for t in threading.enumerate() if t.name.startswith("cqrs-")]
                send(mediator)
                mediator.close()
                assert threading.active_count() == 1
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "child failed"
        send(mediator)
        mediator.close()
        assert threading.active_count() == 1
        print("ok")
    """)
    assert result.stdout == "ok\n", result.stderr


def test_a_fork_while_handlers_hold_all_places_leaves_the_child_free_ones() -> None:
    """Locks and places that other threads hold at the fork do not exist in the child."""
    result = run("""
        held, leave = threading.Barrier(4), threading.Event()
        def hold(event):
            held.wait(20)
            leave.wait(20)
        busy = mediator_for(event_handler(hold), max_concurrent_event_handlers=3)
        sender = threading.Thread(target=busy.send, args=(Do(emits=[Happened() for _ in range(3)]),))
        sender.start()
        held.wait(20)
        child = os.fork()
        if not child:
            held = threading.Barrier(3)
            leave.set()
            busy.send(Do(emits=[Happened() for _ in range(3)]))
            busy.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        leave.set()
        sender.join()
        busy.close()
        mediator.close()
        print("ok")
    """)
    assert result.stdout == "ok\n", result.stderr


def test_a_child_that_ends_normally_does_not_hang() -> None:
    """Its interpreter shuts down beside the threads that only its parent has."""
    result = run("""
        send(mediator)
        child = os.fork()
        if not child:
            send(mediator)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        mediator.close()
        print("ok")
    """)
    assert result.stdout == "ok\n", result.stderr


def test_a_forgotten_mediator_neither_hangs_the_interpreter_nor_fails_it() -> None:
    """The pool's threads end with the program."""
    result = run("""
        send(mediator)
        print("ok")
    """)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr


def test_forgetting_close_is_a_resource_warning() -> None:
    """With the pool's name."""
    result = run(
        """
        send(mediator)
        del mediator
        import gc; gc.collect()
        print("ok")
        """,
        "-W",
        "always",
    )
    assert "ResourceWarning: cqrs-events: a pool of threads was never closed" in result.stderr
    assert result.stdout == "ok\n"


def test_a_mediator_without_a_pool_needs_no_close() -> None:
    """The default opens nothing, so forgetting it is no warning."""
    result = run(
        """
        plain = mediator_for(event_handler(lambda event: None))
        plain.send(Do(emits=[Happened()]))
        del plain
        mediator.close()
        print(threading.active_count())
        """,
        "-W",
        "error",
    )
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_sending_while_the_interpreter_shuts_down_still_handles_all_events() -> None:
    """At that time no thread can be started: the caller does it all."""
    result = run("""
        import atexit
        done = []
        late = mediator_for(event_handler(lambda event: done.append(1)), max_concurrent_event_handlers=3)
        def at_exit():
            late.send(Do(emits=[Happened() for _ in range(6)]))
            print("handled", len(done), flush=True)
        threading._register_atexit(at_exit)
        mediator.close()
    """)
    assert (result.returncode, result.stdout) == (0, "handled 6\n"), result.stderr


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_close_keeps_its_budget(timeout: float) -> None:
    """A handler that does not end is reported, and the program can decide to leave."""
    result = run(f"""
        from cqrs_sync.errors import CloseTimeout
        entered = threading.Event()
        def forever(event):
            entered.set()
            threading.Event().wait()
        stuck = mediator_for(event_handler(forever), max_concurrent_event_handlers=2)
        threading.Thread(target=stuck.send, args=(Do(emits=[Happened()]),), daemon=True).start()
        entered.wait(20)
        try:
            stuck.close(timeout={timeout})
        except CloseTimeout as error:
            print(error.running, error, flush=True)
        os._exit(0)
    """)
    assert result.stdout.startswith("1 1 send(s) still had event handlers at work after"), result.stderr
