"""What a scenario's process does: import, observe, prepare, run, and say how it ended."""

from __future__ import annotations

import faulthandler
import gc
import io
import json
import os
import sys
import threading
import traceback
from typing import TextIO

from cqrs_sync.testing.crash.broker import observe_brokers
from cqrs_sync.testing.crash.orders import ENDED, RAISED, Order
from cqrs_sync.testing.crash.recorder import Recorder, install
from cqrs_sync.testing.crash.sql import observe_engines


def serve() -> None:
    """Fork a process for each order that comes in on stdin, and answer on stdout how it ended; until stdin closes.

    The modules of the scenario are imported once, before the first fork, which spares every case the half second that
    this takes.
    """
    orders, answers = _channel()
    for line in orders:
        order = Order.from_json(line)
        problem = _import(order)
        answers.write(json.dumps(problem if problem else _fork(order, orders, answers)) + "\n")
        answers.flush()


def once() -> None:
    """Run the one order on stdin in this very process, where there is no fork."""
    orders, answers = _channel()
    order = Order.from_json(orders.readline())
    problem = _import(order)
    if problem:
        answers.write(json.dumps(problem))
        answers.flush()
    else:
        _run_and_exit(order)


def _channel() -> tuple[TextIO, TextIO]:
    """Keep stdin and stdout for orders and answers: what a module reads or prints while it is imported is neither."""
    orders, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    _redirect(0, os.devnull)
    os.dup2(2, 1)
    return orders, answers


def _import(order: Order) -> str | None:
    """Import the scenario's functions; return the traceback where that cannot be done."""
    faulthandler.dump_traceback_later(order.timeout, exit=True)
    try:
        for reference in (order.flow, order.prepare):
            if reference is not None:
                reference.load()
    except Exception:
        return traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    if threading.active_count() > 1:
        names = sorted(thread.name for thread in threading.enumerate())
        return f"importing {order.flow.module} starts threads, which a forked process would not have: {names}"
    return None


def _fork(order: Order, *channel: TextIO) -> int:
    gc.freeze()  # or the first collection in the child copies every page of what was imported
    pid = os.fork()
    if not pid:
        try:
            for end in channel:
                os.close(end.fileno())
        finally:
            _run_and_exit(order)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run_and_exit(order: Order) -> None:
    """Never return: what would run at an ordinary exit belongs to whoever started this process."""
    code = RAISED
    try:
        _redirect(1, str(order.case.output_file(order.start)))
        os.dup2(1, 2)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # so that what was printed before a kill can be read
        faulthandler.dump_traceback_later(order.timeout, exit=True, file=2)
        code = _run(order)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _run(order: Order) -> int:
    recorder = Recorder(order.case.ledger_file, order.start, order.kill)
    install(recorder)
    observe_engines(recorder)
    observe_brokers(recorder)
    recorder.write("start", function=str(order.flow))
    try:
        if order.prepare is not None:
            order.prepare.load()(order.case)
        recorder.arm()
        order.flow.load()(order.case)
    except BaseException:  # a KeyboardInterrupt or SystemExit ends the process as well
        recorder.finish("raised", traceback=traceback.format_exc())
        return RAISED
    recorder.finish("ended")
    return ENDED


def _redirect(descriptor: int, path: str) -> None:
    flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    opened = os.open(path, flags, 0o644)
    os.dup2(opened, descriptor)
    os.close(opened)
