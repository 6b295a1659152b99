"""The saga storage port: what the engine runs sagas with, and what recovery and operators need beside it."""

from __future__ import annotations

import abc
import uuid
from collections.abc import Collection, Sequence

from cqrs_sync.errors import SagaStorageUnavailable
from cqrs_sync.saga.storage.enums import SagaStatus
from cqrs_sync.saga.storage.models import NewSaga, SagaBacklog, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.unit_of_work.protocol import Transaction


class SagaStorage(abc.ABC):
    """Keeps sagas, each owned by at most one runner at a time. Thread-safe; one for a whole application.

    Every method is one transaction. An owner is a text that is used for one claim only, so that it is a fencing token
    (Kleppmann, *How to do distributed locking*): whoever was owner before can write no more. All times are those of
    one clock, the storage's.

    Every method raises ``SagaStorageUnavailable`` where the storage cannot be reached.

    Attributes:
        lease: seconds for which an owner is left alone after each write, claim and renewal.
    """

    lease: float

    @abc.abstractmethod
    def create_saga(self, saga: NewSaga, owner: str) -> bool:
        """Store a new saga as RUNNING, version 1, with a lease for the owner; returns False where the id is taken."""

    @abc.abstractmethod
    def claim(self, saga_id: uuid.UUID, owner: str) -> SagaState:
        """Take a saga on: with a lease, the version raised by one, and its log in ``history``.

        One that has ended is returned as it is, and ``locked_by`` is not the owner then; one that waits for its next
        attempt, or is stuck, can be claimed.

        Raises:
            SagaNotFound: there is none with this id.
            SagaConcurrencyError: somebody holds its lease.
        """

    @abc.abstractmethod
    def write(self, write: SagaWrite, transaction: Transaction | None = None) -> None:
        """Write a commit's changes; in the transaction, without committing it, where one is given.

        Args:
            transaction: one that :meth:`joins`.

        Raises:
            SagaConcurrencyError: owner or version are others by now; nothing was changed.
        """

    @abc.abstractmethod
    def renew(self, leases: Sequence[tuple[uuid.UUID, str]]) -> set[tuple[uuid.UUID, str]]:
        """Lengthen leases, given as saga and owner, and return those that are still held."""

    @abc.abstractmethod
    def load_saga_state(self, saga_id: uuid.UUID) -> SagaState:
        """Read a saga and its log, without a claim.

        Raises:
            SagaNotFound: there is none with this id.
        """

    @abc.abstractmethod
    def begin(self) -> Transaction:
        """Open a transaction for a transactional step, which :meth:`write` can join."""

    @abc.abstractmethod
    def joins(self, transaction: Transaction) -> bool:
        """Return whether :meth:`write` can write in this transaction: whether it is of the storage's database."""

    def is_outage(self, error: Exception) -> bool:
        """Return whether an error of a transaction says that the storage's database went away.

        Then the step of the transaction has not failed, and is called again by recovery. What the database has refused
        to this transaction alone, a deadlock or a serialization failure, is an error as any other: a retry may help.
        """
        return isinstance(error, SagaStorageUnavailable)

    def get_step_history(self, saga_id: uuid.UUID) -> list[SagaLogEntry]:
        """Read a saga's log in the order in which it was written.

        Raises:
            SagaNotFound: there is no saga with this id.
        """
        return list(self.load_saga_state(saga_id).history)


class SagaStore(SagaStorage):
    """A saga storage as recovery workers and operators need it: with a look at all sagas, and retention."""

    @abc.abstractmethod
    def get_sagas_for_recovery(
        self, owner: str, limit: int = 10, *, names: Collection[str] = (), max_attempts: int | None = None
    ) -> list[SagaState]:
        """Claim sagas that nobody runs and that are due, the oldest first, each with its log in ``history``.

        Pending, running and compensating ones; ``attempts`` is raised by one. What another call is claiming at the
        moment is left to it.

        Args:
            owner: as for :meth:`claim`, for all of them.
            limit: how many at most.
            names: of sagas; any by default.
            max_attempts: leave those that were taken on so often without progress.
        """

    @abc.abstractmethod
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
        """Return sagas in any of the statuses, the oldest first, without their logs.

        Those of the same time are in the order of their ids, so that all can be read a page at a time.

        Args:
            statuses: by default those that have not ended, stuck ones included; or their names.
            names: of sagas; any by default.
            limit: how many at most.
            min_attempts: only those that were taken on so often without progress.
            unfit: only those of which :attr:`~SagaState.is_unfit` is true.
            after: only those behind this one, the last of the page before.

        Raises:
            ConfigurationError: there is no such status.
        """

    @abc.abstractmethod
    def backlog(self, max_attempts: int | None = None) -> list[SagaBacklog]:
        """Count, for each name, the sagas that are due, stuck, and unfit, and say how old the oldest of them are.

        And how old the oldest is that is run: a step that hangs keeps its lease. Names without any of these are left
        out.

        Args:
            max_attempts: those that are due and were taken on so often without progress are stuck, too.
        """

    @abc.abstractmethod
    def purge(self, retention: float, limit: int = 1000) -> int:
        """Delete sagas that ended more than ``retention`` seconds ago, ``limit`` at most; returns how many."""


ISagaStorage = SagaStorage
"""The async library's name of the port, whose methods are others there."""
