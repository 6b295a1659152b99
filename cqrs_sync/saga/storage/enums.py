"""How far a saga and its steps have come."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from cqrs_sync.errors import ConfigurationError


class SagaStatus(enum.StrEnum):
    """How far a saga has come.

    Attributes:
        PENDING: stored, and nobody has begun.
        RUNNING: going forward; also while nobody runs it and its recovery is due.
        COMPENSATING: past the point of no return: it is only rolled back from here; also while a ``compensate`` that
            has failed waits for its next attempt.
        COMPLETED: every step is done.
        FAILED: a step has failed, and everything that was done is compensated.
        COMPENSATION_FAILED: the rollback is stuck, and waits for an operator: a ``compensate`` has failed until the
            attempts of recovery were used up, or with an error that its retry does not name.
        ABANDONED: an operator has given it up; what was not compensated stays as it is.
    """

    PENDING = "pending"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATION_FAILED = "compensation_failed"
    ABANDONED = "abandoned"

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to do."""
        return self._value_ in _FINAL


_FINAL = ("completed", "failed", "abandoned")  # the texts, which are compared faster than members are


def statuses_of(given: Iterable[SagaStatus | str]) -> list[SagaStatus]:
    """Return statuses, which may be given by their names.

    Raises:
        ConfigurationError: there is none of that name.
    """
    try:
        return [SagaStatus(status) for status in given]
    except ValueError as error:
        names = ", ".join(SagaStatus)
        raise ConfigurationError(f"{given!r}: {error}; statuses are given in a list, of {names}") from None


RECOVERABLE = (SagaStatus.PENDING, SagaStatus.RUNNING, SagaStatus.COMPENSATING)
"""What a recovery worker takes on; what is stuck waits for an operator."""


class SagaStepStatus(enum.StrEnum):
    """What an entry of the log says about a step.

    Attributes:
        STARTED: a fallback takes over. Of others the step in flight is the one behind those that have entries.
        COMPLETED: ``act`` or ``compensate`` has returned, and it is recorded.
        FAILED: it has raised, at the last of its attempts.
        UNKNOWN: it has failed, or was given up, and may have had its effect all the same; it is compensated too.
        COMPENSATED: unused: a compensation that succeeded is ``COMPLETED``, with the action ``compensate``.
        SKIPPED: an operator has declared it done.
    """

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    COMPENSATED = "compensated"
    SKIPPED = "skipped"


ACT = "act"
"""The action of entries about :meth:`~cqrs_sync.saga.step.SagaStepHandler.act`."""

COMPENSATE = "compensate"
"""The action of entries about :meth:`~cqrs_sync.saga.step.SagaStepHandler.compensate`."""

LEAVE = "leave"
"""The action of entries of recovery workers whose code the saga does not fit."""
