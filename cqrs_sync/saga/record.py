"""What the storage knows of a saga that somebody runs, and each change of it: fenced, patient, and never in doubt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import SagaConcurrencyError, SagaStorageUnavailable
from cqrs_sync.reasons import reason_of
from cqrs_sync.saga.leases import Lease, clock
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.models import SagaLogEntry, SagaWrite
from cqrs_sync.unit_of_work.protocol import Transaction

_T = TypeVar("_T")

PATIENCE = Backoff(initial=0.1, maximum=2.0)
"""How long to wait for a storage that is away; until the lease ends."""


class SagaRecord:
    """The stored side of a run. Not thread-safe: the run takes care that one thread writes at a time.

    Args:
        lease: of the run.
        pause: waits so many seconds; returns True at once where the run is to be handed over.

    Attributes:
        status: as the storage knows it.
        attempts: how often the saga was taken on without progress.
        reason: the error that is stored.
        stored: the context as JSON.
        is_held: whether this run may still write: it has not been given back, and has not come to its end.
        stopped: why it can write no more, where that is no decision of its own.
    """

    def __init__(
        self,
        lease: Lease,
        pause: Callable[[float], bool],
        *,
        status: SagaStatus,
        version: int,
        stored: str,
        attempts: int,
        reason: str | None,
    ) -> None:
        self.saga_id: uuid.UUID = lease.saga_id
        self.owner = lease.owner
        self.status = status
        self.attempts = attempts
        self.reason = reason
        self.is_held = not self.is_settled
        self.stopped: Exception | None = None
        self.stored = stored
        self._lease = lease
        self._pause = pause
        self._version = version

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to do, or not without an operator."""
        return self.status.is_final or self.status is SagaStatus.COMPENSATION_FAILED

    @property
    def may_write(self) -> bool:
        """Whether the saga is this run's still, as far as this process knows: a forked child has none."""
        return self.is_held and self.stopped is None and not self._lease.is_foreign

    def ensure_lease(self) -> None:
        """Renew the lease where it is about to end.

        Raises:
            SagaConcurrencyError: somebody else has the saga.
            SagaStorageUnavailable: nobody answered before the lease ended.
        """
        self._or_stop(self._lease.ensure)

    def is_outage(self, error: Exception) -> bool:
        """Whether an error of a transaction of the storage says that its database is away."""
        return self._lease.storage.is_outage(error)

    def write(
        self,
        status: SagaStatus,
        current_step: str | None,
        entries: Sequence[SagaLogEntry] = (),
        *,
        attempts: int,
        context: str | None = None,
        error: Exception | None = None,
        reason: str | None = None,
        available_in: float | None = None,
        in_doubt: bool = False,
        transaction: Transaction | None = None,
        commit: Callable[[], None] | None = None,
    ) -> None:
        """Write one commit of the saga, and know then what the storage knows.

        Args:
            attempts: how often it was taken on without progress from now on; 0 where this is some.
            context: as JSON; None: what is stored stays.
            error: what it is rolled back, or put off, for; becomes the reason.
            available_in: seconds after which others may take it on; None: this run goes on with it.
            in_doubt: whether the current step may have had its effect.
            transaction: of the step, where the write is to be part of it.
            commit: ends the step's transaction.

        Raises:
            SagaConcurrencyError: the saga is not this run's any more.
            SagaStorageUnavailable: nobody answered before the lease ended.
        """
        if self._lease.is_foreign:  # a step has forked, and this is the child
            self.stopped = SagaConcurrencyError(
                f"saga {self.saga_id} is run by the process that this one was forked from"
            )
            raise self.stopped
        if error is not None:
            reason = self.reason = reason_of(error)
        write = SagaWrite(
            saga_id=self.saga_id,
            owner=self.owner,
            version=self._version,
            status=status,
            current_step=current_step,
            context=None if context == self.stored else context,
            error=reason,
            attempts=attempts,
            entries=tuple(entries),
            holds=available_in is None and not status.is_final and status is not SagaStatus.COMPENSATION_FAILED,
            available_in=available_in,
            in_doubt=in_doubt,
        )
        if transaction is not None:
            assert commit is not None
            self._write_joined(write, transaction, commit)
        else:
            if commit is not None:
                commit()  # of a database of its own: what is in it may be there twice, but is not lost
            self._write_alone(write)
        self._version += 1
        self.is_held = write.holds
        self.status = status
        self.attempts = attempts
        self.stored = context if context is not None else self.stored

    def _write_alone(self, write: SagaWrite) -> None:
        storage = self._lease.storage
        tries = 0

        def attempt() -> None:
            nonlocal tries
            tries += 1
            asked_at = clock()
            try:
                storage.write(write)
            except SagaConcurrencyError:
                # The answer to an earlier try may have been lost.
                if tries == 1 or not self._has_landed(write):
                    raise
            self._lease.renewed(asked_at)

        self._or_stop(attempt)

    def _write_joined(self, write: SagaWrite, transaction: Transaction, commit: Callable[[], None]) -> None:
        storage = self._lease.storage
        asked_at = clock()
        try:
            storage.write(write, transaction)
        except SagaConcurrencyError as error:
            self.stopped = error
            raise
        try:
            commit()
        except Exception as error:
            # Whether it was committed, a connection that was lost does not say any more.
            if not (storage.is_outage(error) and self._or_stop(lambda: self._has_landed(write))):
                raise
        self._lease.renewed(asked_at)

    def _has_landed(self, write: SagaWrite) -> bool:
        state = self._lease.storage.load_saga_state(self.saga_id)
        return (state.version, state.locked_by, state.status) == (write.version + 1, write.new_owner, write.status)

    def _or_stop(self, function: Callable[[], _T]) -> _T:
        """Call a function patiently; that it could not be done ends the run."""
        try:
            return self._patiently(function)
        except (SagaConcurrencyError, SagaStorageUnavailable) as error:
            self.stopped = error
            raise

    def _patiently(self, function: Callable[[], _T]) -> _T:
        """Call a function, again and again while the storage is away, as long as the lease lasts."""
        failures = 0
        while True:
            try:
                return function()
            except SagaStorageUnavailable:
                failures += 1
                wait = PATIENCE.delay(failures)
                if self._lease.ends - clock() < wait or self._pause(wait):
                    raise
