"""Sagas in a dictionary: for tests, examples, and programs whose sagas need not outlive them."""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Sequence

from cqrs_sync.checks import in_seconds, require_count
from cqrs_sync.errors import SagaConcurrencyError, SagaNotFound
from cqrs_sync.models import changed
from cqrs_sync.saga.storage.enums import RECOVERABLE, SagaStatus, statuses_of
from cqrs_sync.saga.storage.models import NOBODY, NewSaga, SagaBacklog, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork
from cqrs_sync.unit_of_work.protocol import Transaction


class MemorySagaStorage(SagaStore):
    """Keeps sagas of this process; what it hands out is never changed afterwards. Thread-safe.

    Transactional steps get a :class:`~cqrs_sync.unit_of_work.memory.MemoryTransaction`.

    Args:
        lease: seconds, or a ``timedelta``; see :class:`~cqrs_sync.saga.storage.protocol.SagaStorage`.
        keep: how many sagas that have ended are kept; the oldest are forgotten first.

    Attributes:
        unit_of_work: what transactional steps have written is in its ``store``.
        commits: how many writes there were, creations included.
    """

    def __init__(self, lease: float | datetime.timedelta = 30.0, *, keep: int = 10_000) -> None:
        self.lease = in_seconds(lease, "lease")
        require_count(keep, "keep")
        self._keep = keep
        self.unit_of_work = MemoryUnitOfWork()
        self.commits = 0
        self._sagas: dict[uuid.UUID, SagaState] = {}
        self._ended: dict[uuid.UUID, None] = {}  # as an ordered set
        self._lock = threading.Lock()  # guards _sagas, _ended and commits

    def create_saga(self, saga: NewSaga, owner: str) -> bool:
        """Store a new saga; see :meth:`SagaStorage.create_saga`."""
        now = _now()
        with self._lock:
            if saga.saga_id in self._sagas:
                return False
            self.commits += 1
            self._sagas[saga.saga_id] = SagaState(
                **vars(saga),
                status=SagaStatus.RUNNING,
                version=1,
                attempts=0,
                locked_by=owner,
                available_at=_later(now, self.lease),
                error=None,
                created_at=now,
                updated_at=now,
                finished_at=None,
            )
            return True

    def claim(self, saga_id: uuid.UUID, owner: str) -> SagaState:
        """Take a saga on; see :meth:`SagaStorage.claim`."""
        with self._lock:
            state = self._get(saga_id)
            if state.finished_at is not None:
                return state
            if _is_live(state, _now()):
                raise SagaConcurrencyError(f"saga {saga_id} is run by {state.locked_by}")
            return self._claimed(state, owner, attempts=state.attempts)

    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        """Write a commit's changes, at once; the transaction of a step is committed right after."""
        del transaction
        now = _now()
        with self._lock:
            state = self._sagas.get(write.saga_id)
            if state is None or (state.version, state.locked_by) != (write.version, write.owner):
                raise SagaConcurrencyError(f"saga {write.saga_id} is no longer run by {write.owner}")
            self.commits += 1
            self._sagas[write.saga_id] = changed(
                state,
                status=write.status,
                version=state.version + 1,
                current_step=write.current_step,
                context=state.context if write.context is None else write.context,
                error=state.error if write.error is None else write.error,
                attempts=state.attempts if write.attempts is None else write.attempts,
                locked_by=write.new_owner,
                available_at=_later(now, write.new_availability(self.lease)),
                updated_at=now,
                finished_at=now if write.status.is_final else None,
                history=(*state.history, *[changed(entry, created_at=now) for entry in write.entries]),
            )
            if write.status.is_final:
                self._end(write.saga_id)

    def renew(self, leases: Sequence[tuple[uuid.UUID, str]]) -> set[tuple[uuid.UUID, str]]:
        """Lengthen leases; see :meth:`SagaStorage.renew`."""
        until = _later(_now(), self.lease)
        renewed = set()
        with self._lock:
            for saga_id, owner in leases:
                state = self._sagas.get(saga_id)
                if state is not None and state.locked_by == owner:
                    self._sagas[saga_id] = changed(state, available_at=until)
                    renewed.add((saga_id, owner))
        return renewed

    def load_saga_state(self, saga_id: uuid.UUID) -> SagaState:
        """Return a saga with its log; see :meth:`SagaStorage.load_saga_state`."""
        with self._lock:
            return self._get(saga_id)

    def begin(self) -> MemoryTransaction:
        """Open a transaction of :attr:`unit_of_work`."""
        return self.unit_of_work.begin()

    def joins(self, transaction: Transaction) -> bool:
        """Return whether it is a transaction in memory."""
        return isinstance(transaction, MemoryTransaction)

    def get_sagas_for_recovery(
        self, owner: str, limit: int = 10, *, names: Collection[str] = (), max_attempts: int | None = None
    ) -> list[SagaState]:
        """Claim sagas that are due; see :meth:`SagaStore.get_sagas_for_recovery`."""
        now = _now()
        with self._lock:
            due = [
                state
                for state in self._sagas.values()
                if state.status in RECOVERABLE
                and state.available_at is not None
                and state.available_at <= now
                and (not names or state.name in names)
                and (max_attempts is None or state.attempts < max_attempts)
            ]
            due.sort(key=lambda state: state.created_at)
            return [self._claimed(state, owner, attempts=state.attempts + 1) for state in due[:limit]]

    def find(
        self,
        statuses: Collection[SagaStatus | str] = (),
        names: Collection[str] = (),
        limit: int = 100,
        *,
        min_attempts: int = 0,
        unfit: bool = False,
        after: SagaState | None = None,
    ) -> list[SagaState]:
        """Return sagas; see :meth:`SagaStore.find`."""
        wanted = statuses_of(statuses) or [status for status in SagaStatus if not status.is_final]
        with self._lock:
            found = [
                changed(state, history=())
                for state in self._sagas.values()
                if state.status in wanted
                and (not names or state.name in names)
                and state.attempts >= min_attempts
                and (state.is_unfit or not unfit)
                and (after is None or _place(state) > _place(after))
            ]
        return sorted(found, key=_place)[:limit]

    def backlog(self, max_attempts: int | None = None) -> list[SagaBacklog]:
        """Count sagas that wait; see :meth:`SagaStore.backlog`."""
        now = _now()
        by_name: defaultdict[str, list[SagaState]] = defaultdict(list)
        with self._lock:
            for state in self._sagas.values():
                if state.finished_at is None:
                    by_name[state.name].append(state)
        found = (_backlog_of(name, by_name[name], now, max_attempts) for name in sorted(by_name))
        return [backlog for backlog in found if backlog is not None]

    def purge(self, retention: float, limit: int = 1000) -> int:
        """Forget sagas that have ended; see :meth:`SagaStore.purge`."""
        before = _later(_now(), -retention)
        assert before is not None
        with self._lock:
            old = [
                saga_id
                for saga_id in self._ended
                if (ended := self._sagas[saga_id].finished_at) is not None and ended < before
            ][:limit]
            for saga_id in old:
                self._forget(saga_id)
        return len(old)

    def _get(self, saga_id: uuid.UUID) -> SagaState:
        try:
            return self._sagas[saga_id]
        except KeyError:
            raise SagaNotFound(saga_id) from None

    def _claimed(self, state: SagaState, owner: str, attempts: int) -> SagaState:
        now = _now()
        claimed = self._sagas[state.saga_id] = changed(
            state,
            version=state.version + 1,
            attempts=attempts,
            locked_by=owner,
            available_at=_later(now, self.lease),
            updated_at=now,
        )
        return changed(claimed, in_doubt=state.leaves_doubt)

    def _end(self, saga_id: uuid.UUID) -> None:
        self._ended[saga_id] = None
        if len(self._ended) > self._keep:
            self._forget(next(iter(self._ended)))

    def _forget(self, saga_id: uuid.UUID) -> None:
        del self._sagas[saga_id], self._ended[saga_id]


def _place(state: SagaState) -> tuple[datetime.datetime, uuid.UUID]:
    return state.created_at, state.saga_id


def _backlog_of(
    name: str, states: Sequence[SagaState], now: datetime.datetime, max_attempts: int | None
) -> SagaBacklog | None:
    ages: list[float] = []
    running: list[float] = []
    stuck = 0
    for state in states:
        age = None if state.available_at is None else (now - state.available_at).total_seconds()
        is_due = state.status in RECOVERABLE and age is not None and age >= 0
        is_exhausted = max_attempts is not None and state.attempts >= max_attempts
        if state.status is SagaStatus.COMPENSATION_FAILED or (is_due and is_exhausted):
            stuck += 1
        elif is_due:
            assert age is not None
            ages.append(age)
        elif _is_live(state, now):
            running.append((now - state.updated_at).total_seconds())
    unfit = sum(state.is_unfit for state in states)
    if not (ages or running or stuck or unfit):
        return None
    return SagaBacklog(name, len(ages), stuck, max(ages, default=None), unfit, max(running, default=None))


def _now() -> datetime.datetime:
    # Counted from one reading of the wall clock, so that it never goes back: leases end by it.
    return _EPOCH + datetime.timedelta(seconds=time.monotonic() - _STARTED)


_STARTED = time.monotonic()
_EPOCH = datetime.datetime.now(datetime.UTC)


def _later(now: datetime.datetime, seconds: float | None) -> datetime.datetime | None:
    return None if seconds is None else now + datetime.timedelta(seconds=seconds)


def _is_live(state: SagaState, now: datetime.datetime) -> bool:
    return state.locked_by not in (None, *NOBODY) and state.available_at is not None and state.available_at > now
