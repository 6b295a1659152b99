"""What operators see of sagas, and do with those that are stuck."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import uuid
from collections.abc import Collection, Iterator
from typing import Any

from cqrs_sync.checks import require_count, require_instance
from cqrs_sync.errors import (
    ConfigurationError,
    SagaActionRefused,
    SagaConcurrencyError,
    SagaDefinitionChanged,
    SagaNotFound,
)
from cqrs_sync.saga.engine import context_of
from cqrs_sync.saga.leases import new_owner
from cqrs_sync.saga.map import SagaMap
from cqrs_sync.saga.saga import definition_of
from cqrs_sync.saga.storage.enums import COMPENSATE, RECOVERABLE, SagaStatus, SagaStepStatus, statuses_of
from cqrs_sync.saga.storage.models import NAME_LENGTH, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore

logger = logging.getLogger(__name__)

UNFINISHED = (*RECOVERABLE, SagaStatus.COMPENSATION_FAILED)
"""What something can still be done about."""

PAGE = 500
"""How many sagas are read at once, where all are looked at."""


class SagaAdministration:
    """Lists sagas, and lets operators decide about those that are stuck. Thread-safe; needs no code of the sagas.

    Each action is recorded in the saga's log, with who did it and why, in the same write as what it does. It claims the
    saga first, so a saga that is run at the moment is refused; what was not changed goes on as it was.

    Args:
        storage: where sagas are.
        max_attempts: that of the recovery workers: after how many a saga counts as stuck.

    Raises:
        ConfigurationError: one of them cannot work.

    Example:
        >>> from cqrs_sync.saga.storage import MemorySagaStorage
        >>> SagaAdministration(MemorySagaStorage()).find(stuck=True)
        []
    """

    def __init__(self, storage: SagaStore, max_attempts: int | None = 10) -> None:
        require_instance(storage, SagaStore, "storage", "pass the one that the mediator has")
        if max_attempts is not None:
            require_count(max_attempts, "max_attempts")
        self._storage = storage
        self._max_attempts = max_attempts

    def find(
        self,
        statuses: Collection[SagaStatus | str] = (),
        names: Collection[str] = (),
        *,
        stuck: bool = False,
        limit: int = 100,
    ) -> list[SagaState]:
        """Return sagas without their logs, the oldest first.

        Args:
            statuses: by default those that have not ended; or their names.
            names: of sagas; any by default.
            stuck: only those that somebody should look at. Their rollback has failed, or their attempts are used up
                (the one that has its last attempt just now included), or they do not fit the code of the worker that
                has looked at them last; ``error`` says how they differ.
            limit: how many at most.

        Raises:
            ConfigurationError: there is no such status.
        """
        if not stuck:
            return self._storage.find(statuses, names, limit)
        found: list[SagaState] = []
        wanted = statuses_of(statuses) or UNFINISHED
        if SagaStatus.COMPENSATION_FAILED in wanted:
            found += self._storage.find([SagaStatus.COMPENSATION_FAILED], names, limit)
        others = [status for status in RECOVERABLE if status in wanted]
        if others:
            found += self._storage.find(others, names, limit, unfit=True)
        if others and self._max_attempts is not None:
            found += self._storage.find(others, names, limit, min_attempts=self._max_attempts)
        once = {state.saga_id: state for state in found}
        return sorted(once.values(), key=lambda state: state.created_at)[:limit]

    def show(self, saga_id: uuid.UUID) -> SagaState:
        """Return a saga with its log.

        Raises:
            SagaNotFound: there is none with this id.
        """
        return self._storage.load_saga_state(saga_id)

    def retry(self, saga_id: uuid.UUID, *, actor: str, reason: str) -> None:
        """Make a saga due at once, with all its attempts before it: a recovery worker, or ``recover()``, goes on.

        One whose rollback has failed begins with the compensation that was stuck.

        Args:
            saga_id: its id.
            actor: who wants it; recorded.
            reason: why; recorded.

        Raises:
            SagaNotFound: there is none with this id.
            SagaActionRefused: it has ended.
            SagaConcurrencyError: somebody runs it.
        """
        entry = _entry("retry", actor, reason)
        state = self._find(saga_id, UNFINISHED)
        stuck = state.status is SagaStatus.COMPENSATION_FAILED
        status = SagaStatus.COMPENSATING if stuck else state.status
        self._write(state, entry, status, state.current_step, available_in=0.0)

    def skip_compensation(self, saga_id: uuid.UUID, step: str, *, actor: str, reason: str) -> None:
        """Declare that a step is undone, without calling its ``compensate``; the rollback goes on behind it.

        Args:
            saga_id: its id.
            step: the name of the step whose turn it is, ``current_step`` of the saga.
            actor: who wants it; recorded.
            reason: why; recorded.

        Raises:
            SagaNotFound: there is none with this id.
            SagaActionRefused: it is not being rolled back, or it is another step's turn.
            SagaConcurrencyError: somebody runs it.
        """
        entry = dataclasses.replace(_entry(COMPENSATE, actor, reason), step_name=step, status=SagaStepStatus.SKIPPED)
        state = self._find(saga_id, (SagaStatus.COMPENSATING, SagaStatus.COMPENSATION_FAILED))
        if step != state.current_step:
            reason = f"the step that is to be compensated is {state.current_step}, and not {step}"
            raise SagaActionRefused(saga_id, state.status, reason)
        self._write(state, entry, SagaStatus.COMPENSATING, None, available_in=0.0)

    def abandon(self, saga_id: uuid.UUID, *, actor: str, reason: str) -> None:
        """Give a saga up: nothing is run or compensated any more, and it counts as ended.

        Args:
            saga_id: its id.
            actor: who wants it; recorded.
            reason: why; recorded.

        Raises:
            SagaNotFound: there is none with this id.
            SagaActionRefused: it has ended.
            SagaConcurrencyError: somebody runs it.
        """
        entry = _entry("abandon", actor, reason)
        state = self._find(saga_id, UNFINISHED)
        self._write(state, entry, SagaStatus.ABANDONED, state.current_step, available_in=None)

    def _find(self, saga_id: uuid.UUID, statuses: Collection[SagaStatus]) -> SagaState:
        state = self._storage.load_saga_state(saga_id)
        if state.status not in statuses:
            raise SagaActionRefused(saga_id, state.status, f"this is for sagas that are {' or '.join(statuses)}")
        return state

    def _write(
        self,
        seen: SagaState,
        entry: SagaLogEntry,
        status: SagaStatus,
        current_step: str | None,
        *,
        available_in: float | None,
    ) -> None:
        """Claim a saga and change it, if it is as it was seen."""
        owner = new_owner()
        state = self._storage.claim(seen.saga_id, owner)
        if state.version != seen.version + 1:
            if state.locked_by == owner:  # else it has ended
                self._storage.write(SagaWrite.release(state))
            raise SagaConcurrencyError(f"saga {seen.saga_id} was run by somebody else meanwhile: look at it again")
        changed = dataclasses.replace(
            SagaWrite.release(state, attempts=0),
            status=status,
            current_step=current_step,
            entries=(entry,),
            available_in=available_in,
            in_doubt=state.in_doubt and not status.is_final,
        )
        self._storage.write(changed)
        logger.warning(
            "%s: %s of saga %s (%s), which was %s: %s",
            entry.actor,
            entry.action if not entry.step_name else f"skipped compensation of {entry.step_name}",
            seen.saga_id,
            seen.name,
            seen.status,
            entry.details,
            extra={"saga_id": str(seen.saga_id), "actor": entry.actor},
        )


@dataclasses.dataclass(frozen=True)
class UnfinishableSaga:
    """A saga that today's code cannot finish.

    Attributes:
        state: as it is stored.
        difference: what is stored and what is declared.
    """

    state: SagaState
    difference: str


def unfinishable_sagas(
    storage: SagaStore, saga_map: SagaMap, names: Collection[str] = (), limit: int | None = None
) -> list[UnfinishableSaga]:
    """Look for sagas that have not ended and that today's code cannot finish; none is claimed or changed.

    For a check before a deployment, and for operators. Where services share the tables, give the names of one's own
    sagas. Reads the log of each saga that has not ended: what was done counts, and not the steps that it was begun
    with. A saga that is run at the moment is looked at as if its process died now.

    Args:
        storage: where sagas are.
        saga_map: the sagas of today.
        names: of sagas; any by default.
        limit: how many sagas are looked at, at most, the oldest first; all by default.
    """
    found: list[UnfinishableSaga] = []
    for state in itertools.islice(_unfinished(storage, names), limit):
        difference = _difference(storage, saga_map, state)
        if difference is not None:
            found.append(UnfinishableSaga(state, difference))
    return found


def _unfinished(storage: SagaStore, names: Collection[str]) -> Iterator[SagaState]:
    last: SagaState | None = None
    while page := storage.find(names=names, limit=PAGE, after=last):
        yield from page
        last = page[-1]


def _difference(storage: SagaStore, saga_map: SagaMap, state: SagaState) -> str | None:
    bound = saga_map.named(state.name)
    if bound is None:
        return f"no saga named {state.name!r} is bound"
    context_type, saga_type = bound
    definition = definition_of(saga_type)
    try:
        context_of(context_type, state)
        # Also where it was begun with these very steps: other code may have been deployed, and taken back, meanwhile.
        state = storage.load_saga_state(state.saga_id)
        state = dataclasses.replace(state, in_doubt=state.leaves_doubt)
        if not state.status.is_final:
            definition.progress(state, forward=state.status in (SagaStatus.PENDING, SagaStatus.RUNNING))
    except SagaDefinitionChanged as error:
        return error.difference
    except SagaNotFound:  # it has ended meanwhile, and is purged
        pass
    return None


def _entry(action: str, actor: Any, reason: Any) -> SagaLogEntry:
    for name, text in (("actor", actor), ("reason", reason)):
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise ConfigurationError(f"{name} must say something, not {text!r}: it is recorded with the saga")
    if len(actor) > NAME_LENGTH:
        raise ConfigurationError(f"actor has {NAME_LENGTH} characters at most, not {len(actor)}")
    return SagaLogEntry("", action, SagaStepStatus.COMPLETED, reason, actor=actor)
