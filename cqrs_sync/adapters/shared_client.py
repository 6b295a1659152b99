"""A network client that all threads of a process use at once."""

from __future__ import annotations

import abc
import contextlib
import ctypes
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from cqrs_sync.errors import BrokerUnavailable

Client = TypeVar("Client")


class Tenancy(Generic[Client]):
    """The use of a client by any number of threads.

    Attributes:
        client: the client.
        retired: set it, and the client gets no new users and is given up by the last one.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.retired = False
        self.users = 0


class ClientOwner(abc.ABC, Generic[Client]):
    """Builds a client on first use, once per process, and another one when the last was retired.

    A forked child builds its own and never touches its parent's. Forgetting to close an owner that has a client is a
    ``ResourceWarning``.
    """

    def __init__(self) -> None:
        self._slot: _Slot[Client] = _Slot()
        self._closed = False
        _owners.add(self)

    @abc.abstractmethod
    def _connect(self, timeout: float) -> Client:
        """Build a client within so many seconds."""

    @abc.abstractmethod
    def _give_up(self, client: Client, orderly: bool) -> None:
        """Stop a client, whatever it has not sent yet; with a farewell if ``orderly``."""

    @contextlib.contextmanager
    def _client(self, deadline: float) -> Iterator[Tenancy[Client]]:
        """Use the client for a block. An exception retires it: nobody knows what is under way then.

        Raises:
            BrokerUnavailable: it is closed, or another thread was still building it at the deadline.
        """
        slot = self._slot
        tenancy = self._enter(slot, deadline)
        try:
            yield tenancy
        except BaseException:
            tenancy.retired = True
            raise
        finally:
            self._leave(slot, tenancy)

    def close(self) -> None:
        """Give back connections; a send under way in another thread ends as it would, and takes the last with it."""
        self._closed = True
        slot = self._slot
        with slot.lock:
            current = slot.current
            slot.current = None
            idle = current is not None and current.users == 0
            if current is not None:
                current.retired = True
        if current is not None and idle:
            self._give_up(current.client, True)

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)  # absent where a constructor has raised
        if slot is not None and slot.current is not None:
            warnings.warn(f"{self!r} was not closed: call close(), or use it in a with block", ResourceWarning, 2)
            self._give_up(slot.current.client, False)

    def _enter(self, slot: _Slot[Client], deadline: float) -> Tenancy[Client]:
        tenancy = self._join(slot)
        if tenancy is not None:
            return tenancy
        if not slot.building.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise BrokerUnavailable("another thread was still connecting to the broker")
        try:
            tenancy = self._join(slot)
            if tenancy is not None:
                return tenancy
            tenancy = Tenancy(self._connect(max(0.0, deadline - time.monotonic())))
            tenancy.users = 1
            with slot.lock:
                slot.current = tenancy
                tenancy.retired = self._closed  # meanwhile
            return tenancy
        finally:
            slot.building.release()

    def _join(self, slot: _Slot[Client]) -> Tenancy[Client] | None:
        if self._closed:
            raise BrokerUnavailable("this producer is closed: make a new one")
        with slot.lock:
            current = slot.current
            if current is None or current.retired:
                return None
            current.users += 1
            return current

    def _leave(self, slot: _Slot[Client], tenancy: Tenancy[Client]) -> None:
        with slot.lock:
            tenancy.users -= 1
            last = tenancy.retired and tenancy.users == 0
            if last and slot.current is tenancy:
                slot.current = None
        if last:
            self._give_up(tenancy.client, False)


class _Slot(Generic[Client]):
    """A process's client."""

    def __init__(self) -> None:
        self.building = threading.Lock()  # held while a client is built, so that there is one; waits have a deadline
        self.lock = threading.Lock()  # guards current, and its users
        self.current: Tenancy[Client] | None = None


_owners: weakref.WeakSet[ClientOwner[Any]] = weakref.WeakSet()


def _forget_clients() -> None:
    """In a forked child: leave the parent's clients, and locks that may be held for ever, where they are.

    They must outlive even the interpreter: destroying one waits for threads that only the parent has, for a second
    or, with librdkafka 2.6, for ever.
    """
    for owner in list(_owners):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner._slot))
        owner._slot = _Slot()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_forget_clients)
