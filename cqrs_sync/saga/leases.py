"""Who runs a saga, and for how long he is left alone: owners, leases, and the heartbeat that renews them."""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cqrs_sync.background import BackgroundLoop
from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import SagaConcurrencyError, StopTimeout
from cqrs_sync.saga.storage.protocol import SagaStorage

logger = logging.getLogger(__name__)

LINGER = 10.0
"""Seconds from one look of a heartbeat to the next, at most: one that finds nothing to renew ends its thread."""

SHORTEST = 0.01
"""Seconds from one look to the next, at least."""

MAX_IDLE = 8
"""How many heartbeats may wait for their next look without a lease; beyond that, they end before it."""


_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux has it

clock: Callable[[], float] = time.monotonic if _BOOTTIME is None else functools.partial(time.clock_gettime, _BOOTTIME)
"""The clock that leases end by, in seconds. It never goes back, and does not stop while the machine is suspended.

The storage's clock goes on then; by the monotonic clock, which stops on Linux, a lease would seem to last.
"""


class Lease:
    """The right of this process to run one saga; a forked child does not inherit it. Times are those of :data:`clock`.

    Attributes:
        storage: where the saga is.
        saga_id: the saga.
        owner: what the storage knows the runner by; used for this lease alone.
        ends: until when nobody else can have the saga.
        lost: whether the storage has said that somebody else has it.
    """

    def __init__(self, storage: SagaStorage, saga_id: uuid.UUID, owner: str, asked_at: float) -> None:
        self.storage = storage
        self.saga_id = saga_id
        self.owner = owner
        self.ends = asked_at + storage.lease
        self.lost = False
        self._process = os.getpid()

    @property
    def is_foreign(self) -> bool:
        """Whether it is the lease of the process that this one was forked from, which still runs the saga."""
        return self._process != os.getpid()

    @property
    def key(self) -> tuple[uuid.UUID, str]:
        """What the storage renews it by."""
        return self.saga_id, self.owner

    def renewed(self, asked_at: float) -> None:
        """Note that the storage has renewed it, having been asked at this time.

        Raises:
            SagaConcurrencyError: it is another process's.
        """
        self._check_process()
        self.ends = max(self.ends, asked_at + self.storage.lease)

    @property
    def due_at(self) -> float:
        """When a third of it has passed, and it should be renewed."""
        return self.ends - self.storage.lease * 2 / 3

    def is_short(self, share: float) -> bool:
        """Whether less than this share of it is left."""
        return self.ends - clock() < share * self.storage.lease

    def ensure(self) -> None:
        """Renew it if it ends soon, or if this process was stopped meanwhile.

        Raises:
            SagaConcurrencyError: somebody else has the saga.
            SagaStorageUnavailable: that cannot be known now.
        """
        self._check_process()
        if not self.lost and self.is_short(1 / 3):
            asked_at = clock()
            self.lost = self.key not in self.storage.renew([self.key])
            self.renewed(asked_at)
        if self.lost:
            raise SagaConcurrencyError(f"the lease of saga {self.saga_id} has ended, and somebody else runs it")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have the heartbeat renew it while the block runs.

        Several threads may do so at once: it is renewed until the last of them has left.

        Raises:
            SagaConcurrencyError: it is another process's; the block does not run.
        """
        self._check_process()
        _leases.add(self)
        try:
            yield
        finally:
            _leases.remove(self)

    def _check_process(self) -> None:
        if self.is_foreign:
            raise SagaConcurrencyError(f"saga {self.saga_id} is run by the process that this one was forked from")


class Heartbeat(BackgroundLoop):
    """Renews the leases that this process has in one storage, all with one call; ends when there are none.

    No lease gets older than a third of it, plus the time of one renewal. Each storage has its own, so that one that
    hangs or is away loses no leases but its own.
    """

    def __init__(self, storage: SagaStorage) -> None:
        sixth = max(storage.lease / 6, SHORTEST)  # there must be time for several attempts before the lease ends
        super().__init__("cqrs-saga-heartbeat", Backoff(initial=min(0.5, sixth), maximum=min(5.0, sixth)))
        self.storage = storage
        self.held: Counter[Lease] = Counter()  # how often each is kept; guarded by the lock of _Leases
        self.looks_at = 0.0  # when it looks next, or earlier while it is at work; guarded by the same

    def step(self) -> float:
        """Renew the leases if one of them needs it; returns the seconds to the next look."""
        if _leases.end_if_idle(self):
            self.stop()
            return 0
        leases = [lease for lease in _leases.held(self) if not lease.lost]
        if any(lease.is_short(2 / 3) for lease in leases):
            # Others that are due soon go along: any number of sagas costs no more than six calls in each lease.
            self._renew([lease for lease in leases if lease.is_short(5 / 6)])
        return _leases.time_left(self)

    def _renew(self, leases: list[Lease]) -> None:
        asked_at = clock()
        renewed = self.storage.renew([lease.key for lease in leases])
        for lease in leases:
            if lease.key in renewed:
                lease.renewed(asked_at)
            else:
                lease.lost = True  # or it has just been given back


class _Leases:
    """The leases that this process keeps, and a heartbeat for each storage that has some, or had until just now."""

    def __init__(self) -> None:
        # Guards these, and what the heartbeats hold. Reentrant, and what is iterated over is copied: the garbage
        # collector may close a forgotten stream at any line of these, which gives up its lease.
        self._lock = threading.RLock()
        self._heartbeats: dict[int, Heartbeat] = {}  # by the id of the storage, which need not be hashable

    def add(self, lease: Lease) -> None:
        with self._lock:
            heartbeat = self._heartbeats.get(id(lease.storage))
            if heartbeat is None:
                self._end_idle()
                heartbeat = Heartbeat(lease.storage)
            if not heartbeat.running:
                heartbeat.start()
                atexit.unregister(rest)
                atexit.register(rest)
            self._heartbeats[id(lease.storage)] = heartbeat
            heartbeat.held[lease] += 1
            if lease.due_at < heartbeat.looks_at:  # never so for a new lease, so not once for each saga
                heartbeat.wake()

    def _end_idle(self) -> None:
        """Have the idle heartbeats end, where they are many: somebody makes a storage for each saga."""
        idle = [key for key, heartbeat in list(self._heartbeats.items()) if not heartbeat.held]
        for key in idle[:-MAX_IDLE]:
            with suppress(StopTimeout):  # it is not waited for
                self._heartbeats.pop(key).stop(0)

    def remove(self, lease: Lease) -> None:
        with self._lock:
            heartbeat = self._heartbeats.get(id(lease.storage))
            if heartbeat is not None and lease in heartbeat.held:
                heartbeat.held[lease] -= 1
                if not heartbeat.held[lease]:
                    del heartbeat.held[lease]

    def held(self, heartbeat: Heartbeat | None = None) -> list[Lease]:
        """The leases that one heartbeat renews, or all."""
        with self._lock:
            some = list(self._heartbeats.values()) if heartbeat is None else [heartbeat]
            return [lease for each in some for lease in list(each.held)]

    def time_left(self, heartbeat: Heartbeat) -> float:
        """The seconds until a heartbeat is to look at its leases again."""
        with self._lock:
            at = clock()
            due = [lease.due_at for lease in list(heartbeat.held) if not lease.lost]
            heartbeat.looks_at = min([at + heartbeat.storage.lease / 3, at + LINGER, *due])
            return max(heartbeat.looks_at - at, SHORTEST)

    def end_if_idle(self, heartbeat: Heartbeat) -> bool:
        """Forget a heartbeat that has no leases, so that the next one starts another; returns whether it has none."""
        with self._lock:
            if heartbeat.held:
                return False
            if self._heartbeats.get(id(heartbeat.storage)) is heartbeat:
                del self._heartbeats[id(heartbeat.storage)]
            return True

    def end(self) -> list[Heartbeat]:
        """Forget all heartbeats; returns those that are to be stopped."""
        with self._lock:
            found = list(self._heartbeats.values())
            self._heartbeats.clear()
            return found


def rest(timeout: float = 5.0) -> None:
    """End the heartbeats' threads, which would end by themselves soon after the last saga. For tests, and at exit."""
    deadline = clock() + timeout
    for heartbeat in _leases.end():
        try:
            heartbeat.stop(max(0.1, deadline - clock()))
        except StopTimeout as error:  # its storage hangs, and is not to keep the process from ending
            logger.warning("%s", error)


class _Owner:
    """Names the runners of this process."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)  # next() on it is atomic
        self._process = f"{socket.gethostname()[:64]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def next(self) -> str:
        return f"{self._process}/{next(self._numbers)}"


_owner: _Owner | None = None
_leases = _Leases()


def new_owner() -> str:
    """Return a name that no other claim has: host, process, a random part, and a number."""
    global _owner
    if _owner is None:
        _owner = _Owner()
    return _owner.next()


def _forget() -> None:  # pragma: no cover (runs in forked children only: tests/integration)
    """A forked child owns none of its parent's sagas, and needs a name of its own."""
    global _leases, _owner
    _owner, _leases = None, _Leases()


if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_forget)
