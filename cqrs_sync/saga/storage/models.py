"""What goes into a saga storage and what comes out of it; the same for every database."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from typing import Self

from cqrs_sync.saga.storage.enums import SagaStatus, SagaStepStatus

NAME_LENGTH = 255
"""Characters that the name of a saga or of a step may have."""

IN_DOUBT = "(in doubt)"
"""Who is in ``locked_by`` after a hand-over in the middle of a step: nobody, and the step may have run."""

UNFIT = "(unfit)"
"""Who is in ``locked_by`` where a worker has let go of a saga that its code cannot go on with: nobody."""

UNFIT_IN_DOUBT = "(unfit, in doubt)"
"""Both."""

UNFITS = (UNFIT, UNFIT_IN_DOUBT)

NOBODY = (IN_DOUBT, *UNFITS)
"""What is in ``locked_by``, beside None, where nobody runs the saga."""


@dataclasses.dataclass(frozen=True)
class SagaLogEntry:
    """One line of a saga's log, which only grows.

    Attributes:
        step_name: the step's stable name; empty where an operator acted on the saga as a whole.
        action: ``act``, ``compensate``, or what an operator did.
        status: what became of it.
        details: the error, or an operator's reason.
        attempts: at which attempt it ended.
        duration: seconds from its first attempt to its end, by the clock of the process that ran it.
        actor: who did it: the owner of the saga at that time, or an operator.
        created_at: when it was stored, by the storage's clock; None before.
    """

    step_name: str
    action: str
    status: SagaStepStatus
    details: str | None = None
    attempts: int = 1
    duration: float | None = None
    actor: str | None = None
    created_at: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewSaga:
    """A saga that is to be stored.

    Attributes:
        saga_id: its id.
        name: the saga's name.
        context: as JSON.
        definition: the steps, as :attr:`~cqrs_sync.saga.definition.Definition.text` writes them.
        current_step: the name of the first step; None where there is none.
    """

    saga_id: uuid.UUID
    name: str
    context: str
    definition: str
    current_step: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SagaState:
    """A saga as it is stored.

    Attributes:
        saga_id: its id.
        name: the saga's name.
        status: how far it has come.
        context: as JSON.
        definition: the steps that it was begun with.
        version: how often it was written; part of every write's condition.
        current_step: the step that runs, or is next; None where all is done.
        attempts: how often it was taken on for recovery since it has last made progress.
        locked_by: the owner who runs it, or who was running it when its lease ended; None after a clean hand-over, one
            of :data:`NOBODY` after another.
        available_at: when others may take it on: the end of the lease, or the next attempt. None: never by itself.
        error: what it failed with, or why it was left alone, as text.
        created_at: when it was stored.
        updated_at: when it was last written, claims included; not when a lease was renewed.
        finished_at: when nothing was left to do.
        history: its log in the order in which it was written; empty where it was not asked for.
        in_doubt: set by a claim: the last owner has vanished, and the next step may have run already.
    """

    saga_id: uuid.UUID
    name: str
    status: SagaStatus
    context: str
    definition: str
    version: int
    current_step: str | None
    attempts: int
    locked_by: str | None
    available_at: datetime.datetime | None
    error: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    history: tuple[SagaLogEntry, ...] = ()
    in_doubt: bool = False

    @property
    def leaves_doubt(self) -> bool:
        """Whether the next step may have run already: what a claim puts into ``in_doubt``."""
        return self.locked_by not in (None, UNFIT)

    @property
    def is_unfit(self) -> bool:
        """Whether the worker that has looked at it last could not go on with it: its code is another."""
        return self.locked_by in UNFITS


@dataclasses.dataclass(frozen=True)
class SagaBacklog:
    """What of the sagas of one name waits to be taken on, what for an operator, and whether those that run come on.

    Attributes:
        name: the sagas' name.
        recoverable: how many are due.
        stuck: how many are not taken on any more, by themselves.
        oldest_age: seconds since the first of those that are due became so; None where none is.
        unfit: how many did not fit the code of the worker that has looked at them last, due or not.
        oldest_running: of those that somebody runs, seconds since the last write of the one that was written the
            longest ago; None where none is run.
    """

    name: str
    recoverable: int
    stuck: int
    oldest_age: float | None
    unfit: int
    oldest_running: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SagaWrite:
    """What one commit of a saga changes; refused unless owner and version are those in the storage.

    Attributes:
        saga_id: the saga's id.
        owner: who holds its lease.
        version: what was read or written last; the write makes it one more.
        status: the new status.
        current_step: the step that is next; None where there is none.
        context: as JSON; None leaves it as it is.
        error: what it failed with; None leaves it as it is.
        attempts: None leaves the count as it is.
        entries: what the log gets, in order.
        holds: whether the owner keeps the lease, which is then as long as a new one.
        available_in: seconds until others may take it on, where the owner lets go; None: never by itself.
        in_doubt: whether, letting go, the owner leaves a step whose outcome is not known.
        unfit: whether he lets go because his code cannot go on with it; holds until the next claim.
    """

    saga_id: uuid.UUID
    owner: str
    version: int
    status: SagaStatus
    current_step: str | None = None
    context: str | None = None
    error: str | None = None
    attempts: int | None = None
    entries: tuple[SagaLogEntry, ...] = ()
    holds: bool = True
    available_in: float | None = None
    in_doubt: bool = False
    unfit: bool = False

    @classmethod
    def release(cls, state: SagaState, available_in: float | None = 0.0, *, attempts: int | None = None) -> Self:
        """Return the write that lets go of a saga that was claimed, and leaves it as it is.

        Args:
            state: what the claim has returned.
            available_in: seconds until others may take it on; a saga that is stuck is never taken on by itself.
            attempts: how many there were, where the claim is not to count.
        """
        assert state.locked_by is not None  # it was claimed
        is_stuck = state.status is SagaStatus.COMPENSATION_FAILED
        return cls(
            saga_id=state.saga_id,
            owner=state.locked_by,
            version=state.version,
            status=state.status,
            current_step=state.current_step,
            attempts=attempts,
            holds=False,
            available_in=None if is_stuck else available_in,
            in_doubt=state.in_doubt,
        )

    @property
    def new_owner(self) -> str | None:
        """Who is in ``locked_by`` afterwards."""
        if self.holds:
            return self.owner
        if self.unfit:
            return UNFIT_IN_DOUBT if self.in_doubt else UNFIT
        return IN_DOUBT if self.in_doubt else None

    def new_availability(self, lease: float) -> float | None:
        """Seconds from now to what is in ``available_at`` afterwards."""
        return lease if self.holds else self.available_in
