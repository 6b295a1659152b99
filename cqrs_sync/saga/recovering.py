"""Takes on sagas that nobody runs, and settles what becomes of each."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from cqrs_sync.backoff import Backoff, wait_after
from cqrs_sync.errors import MediatorClosed, SagaConcurrencyError, SagaDefinitionChanged, SagaStorageUnavailable
from cqrs_sync.reasons import joined, reason_of
from cqrs_sync.saga.leases import clock, new_owner
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.models import SagaOutcome
from cqrs_sync.saga.saga import definition_of
from cqrs_sync.saga.storage.enums import LEAVE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaBacklog, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore

logger = logging.getLogger(__name__)

LEFT_ALONE = Backoff(initial=30.0, maximum=3600.0)
"""How long a saga that does not fit the steps of today is left to processes that have the old ones."""

UNCLAIMED = 60.0
"""Seconds after which a saga that is due and unknown here is reported: others may know it, and be at work."""

STALE = 600.0
"""Seconds after which a saga that did not fit, and has not come back when it was due, is forgotten."""


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A saga that was claimed.

    Attributes:
        state: what the storage has returned.
        asked_at: when it was asked, by the clock of leases; its lease ends that much later.
    """

    state: SagaState
    asked_at: float


@dataclasses.dataclass(frozen=True)
class _Misfit:
    difference: str
    times: int
    due_at: float


class Recoverer:
    """Claims sagas that are due and finishes them, with the steps that are bound in a mediator. Thread-safe.

    Sagas of names that are not bound are never claimed. One that does not fit the steps of today is given back as it
    was, without counting the attempt, and left alone for :data:`LEFT_ALONE`; that and why is stored with it, for those
    who look on from other processes. Both are logged once.

    Args:
        mediator: knows the sagas and runs them.
        store: where they are.
        name: who it is, in the log.
        max_attempts: how often a saga is taken on without progress; None: without end.
        backoff: when a saga is tried again that could not be run at all.
    """

    def __init__(
        self, mediator: SagaMediator, store: SagaStore, name: str, max_attempts: int | None, backoff: Backoff
    ) -> None:
        self._mediator = mediator
        self._store = store
        self._name = name
        self._max_attempts = max_attempts
        self._backoff = backoff
        # Each entry of these is written by one thread at a time: whoever has claimed the saga, or the worker's own.
        self._misfits: dict[uuid.UUID, _Misfit] = {}
        self._reported: set[str] = set()

    @property
    def names(self) -> set[str]:
        """The names of the sagas that are bound."""
        return {definition_of(saga_type).saga_name for saga_type in self._mediator.saga_map.values()}

    @property
    def changed(self) -> dict[uuid.UUID, str]:
        """What was found not to fit the steps of today, and how it differs."""
        now = time.monotonic()
        for saga_id, misfit in list(self._misfits.items()):
            if now > misfit.due_at + STALE:  # somebody else has finished it, or an operator has
                self._misfits.pop(saga_id, None)
        return {saga_id: misfit.difference for saga_id, misfit in list(self._misfits.items())}

    def claim(self, limit: int) -> list[Claimed]:
        """Claim sagas that are due, the oldest first."""
        names = self.names
        if not names:  # no names would be all
            return []
        asked_at = clock()
        states = self._store.get_sagas_for_recovery(new_owner(), limit, names=names, max_attempts=self._max_attempts)
        return [Claimed(state, asked_at) for state in states]

    def backlog(self) -> tuple[list[SagaBacklog], dict[str, int]]:
        """Count what waits: of the names that are bound, and how many of each other name."""
        names, known, unknown = self.names, [], {}
        for waiting in self._store.backlog(self._max_attempts):
            if waiting.name in names:
                known.append(waiting)
                continue
            if waiting.recoverable or waiting.stuck:
                unknown[waiting.name] = waiting.recoverable + waiting.stuck
            if waiting.name not in self._reported and (waiting.oldest_age or 0.0) >= UNCLAIMED:
                self._reported.add(waiting.name)
                logger.warning(
                    "%s leaves %s sagas named %r alone, which nobody takes on: bind the saga, or run a worker where "
                    "it is bound",
                    self._name,
                    waiting.recoverable,
                    waiting.name,
                )
        return known, unknown

    def finish(self, claimed: Claimed, stopping: threading.Event) -> bool:
        """Go on with a saga until it ends, is stuck, has to wait, or ``stopping`` is set; returns whether it has ended.

        What a saga raises is logged and settled here.

        Raises:
            MediatorClosed: nothing can be run any more; it was given back.
        """
        state = claimed.state
        try:
            return self._finish(claimed, stopping)
        except SagaStorageUnavailable as error:  # for this saga; the next claim says whether it is so for all of them
            logger.warning(
                "%s leaves saga %s (%s) until its lease has ended: %s",
                self._name,
                state.saga_id,
                state.name,
                error,
                extra={"saga_id": str(state.saga_id)},
            )
            return False

    def _finish(self, claimed: Claimed, stopping: threading.Event) -> bool:
        state = claimed.state
        try:
            outcome = self._mediator.take_on(state, claimed.asked_at, stopping, self._max_attempts)
        except SagaConcurrencyError as error:
            logger.warning("%s: %s", self._name, error)
        except SagaDefinitionChanged as error:
            self._leave(state, error)
        except MediatorClosed:
            self.give_back(state)
            if not stopping.is_set():
                raise
        except SagaStorageUnavailable:
            raise
        except Exception as error:
            self._put_off(state, error)
        else:
            self._misfits.pop(state.saga_id, None)
            return self._ended(state, outcome)
        return False

    def give_back(self, state: SagaState, available_in: float = 0.0) -> None:
        """Let go of a saga as if it had not been claimed; one that was run, and given back there, stays as it is."""
        with suppress(SagaConcurrencyError):
            self._mediator.engine.give_back(state, available_in, attempts=state.attempts - 1)

    def _leave(self, state: SagaState, error: SagaDefinitionChanged) -> None:
        before = self._misfits.get(state.saga_id)
        times = 1 if before is None else before.times + 1
        if before is None:
            logger.error("%s leaves it alone: %s", self._name, error, extra={"saga_id": str(state.saga_id)})
        wait = wait_after(LEFT_ALONE, times)
        self._misfits[state.saga_id] = _Misfit(error.difference, times, time.monotonic() + wait)
        with suppress(SagaConcurrencyError):
            self._store.write(_left(state, reason_of(error), wait))

    def _put_off(self, state: SagaState, error: Exception) -> None:
        """Settle an error that is no step's: of a middleware, or in how the saga is run."""
        wait = wait_after(self._backoff, state.attempts)
        logger.error(
            "%s could not go on with saga %s (%s), attempt %s; next in %.1f s",
            self._name,
            state.saga_id,
            state.name,
            state.attempts,
            wait,
            exc_info=error,
            extra={"saga_id": str(state.saga_id)},
        )
        with suppress(SagaConcurrencyError):
            # Nobody knows how far it came.
            self._mediator.engine.give_back(dataclasses.replace(state, in_doubt=True), wait)

    def _ended(self, state: SagaState, outcome: SagaOutcome[Any]) -> bool:
        extra = {"saga_id": str(state.saga_id)}
        if outcome.status.is_final:
            logger.info("%s: saga %s (%s) is %s", self._name, state.saga_id, state.name, outcome.status, extra=extra)
        elif outcome.status is not SagaStatus.RUNNING or outcome.error is None:
            return False  # the run has logged that its rollback is put off, or stuck; or it was handed over
        elif self._max_attempts is not None and state.attempts >= self._max_attempts:
            logger.error(
                "%s leaves saga %s (%s) to an operator after %s attempts without progress",
                self._name,
                state.saga_id,
                state.name,
                state.attempts,
                extra=extra,
            )
        return outcome.status.is_final


def _left(state: SagaState, reason: str, available_in: float) -> SagaWrite:
    """Let go of a saga that does not fit; each reason is noted once, however often it is looked at again."""
    is_logged = any(entry.action == LEAVE and entry.details == reason for entry in state.history)
    entry = SagaLogEntry("", LEAVE, SagaStepStatus.FAILED, reason, actor=state.locked_by)
    # Behind what it is rolled back for, if anything: whoever waits for the saga is told of that.
    error = joined(state.error, reason)
    return dataclasses.replace(
        SagaWrite.release(state, available_in, attempts=state.attempts - 1),
        error=None if reason in (state.error or "") else error,
        entries=() if is_logged else (entry,),
        unfit=True,
    )
