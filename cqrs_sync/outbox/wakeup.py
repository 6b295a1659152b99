"""Tells the relays of this process that a transaction with events has ended, so that they need not wait to poll."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_AT_END = "cqrs_sync.outbox.at_end"

_lock = threading.Lock()  # guards the replacement of _wakers
_wakers: tuple[Callable[[], None], ...] = ()
_transactions = 0


def transactions_with_events() -> int:
    """Return how many transactions with events have ended in this process; threads may miscount by a few."""
    return _transactions


def add_waker(wake: Callable[[], None]) -> None:
    """Have ``wake`` called after each transaction with events; it must return at once."""
    global _wakers
    with _lock:
        _wakers = (*_wakers, wake)


def remove_waker(wake: Callable[[], None]) -> None:
    """Call ``wake`` no longer; harmless if it never was."""
    global _wakers
    with _lock:
        _wakers = tuple(known for known in _wakers if known != wake)


def wake_relays() -> None:
    """Wake every relay of this process."""
    for wake in _wakers:
        wake()


def _forget_wakers() -> None:  # pragma: no cover (runs in forked children only: tests/integration)
    """A forked child has none of its parent's relays, and the locks of their events may be held for ever."""
    global _wakers, _lock
    _lock, _wakers = threading.Lock(), ()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_forget_wakers)


def at_end_of_transaction(session: Session, function: Callable[[], None]) -> None:
    """Call a function, and wake the relays, when the session's outermost transaction has ended.

    After a rollback too: a poll for nothing is cheaper than to know.
    """
    session.info.setdefault(_AT_END, []).append(function)


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    global _transactions
    if transaction.parent is None and _AT_END in session.info:
        functions: list[Any] = session.info.pop(_AT_END)
        for function in functions:
            function()
        _transactions += 1
        wake_relays()
