"""One step, called until it succeeds or its attempts are used up."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from cqrs_sync.backoff import Backoff
from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import MediatorClosed, OutcomeUnknown, SagaStorageUnavailable
from cqrs_sync.executors import Executor
from cqrs_sync.reasons import reason_of
from cqrs_sync.saga.calls import Attempt, StepCaller
from cqrs_sync.saga.definition import NamedStep
from cqrs_sync.saga.record import SagaRecord
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import StepExecution
from cqrs_sync.saga.storage.enums import ACT, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaLogEntry
from cqrs_sync.unit_of_work.protocol import Transaction

logger = logging.getLogger(__name__)

Complete: TypeAlias = Callable[[SagaLogEntry, "Transaction | None", Callable[[], None]], None]
"""Writes that a step is done: with this entry, in this transaction, which it commits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all runs of an engine have in common.

    Attributes:
        callers: what calls each step, by class.
        executor: where the steps of a group run.
        pause: waits so many seconds; returns True at once where the engine is being closed.
        compensation_retry: for steps that have none of their own.
        recovery_backoff: when a saga is tried again that cannot go on past its pivot, or cannot be undone now.
        max_attempts: after how many recoveries without progress a rollback is stuck; None: it is put off each time.
    """

    callers: Callable[[NamedStep], StepCaller]
    executor: Callable[[], Executor]
    pause: Callable[[float], bool]
    compensation_retry: Retry
    recovery_backoff: Backoff
    max_attempts: int | None = None


class StepFailed(Exception):
    """A step has failed, and its attempts are used up. Never leaves the engine.

    Attributes:
        step: which.
        error: with what.
        retry: how often it was to be tried.
        is_unknown: whether it may have had its effect all the same.
    """

    def __init__(
        self,
        step: NamedStep,
        action: str,
        error: Exception,
        retry: Retry,
        attempts: int,
        duration: float,
        *,
        is_unknown: bool,
    ) -> None:
        super().__init__(step, error)
        self.step = step
        self.error = error
        self.retry = retry
        self.is_unknown = is_unknown
        self._action = action
        self._attempts = attempts
        self._duration = duration

    def entry(self, owner: str) -> SagaLogEntry:
        """Return what the log says of it."""
        status = SagaStepStatus.UNKNOWN if self.is_unknown else SagaStepStatus.FAILED
        reason, seconds = reason_of(self.error), round(self._duration, 6)
        return SagaLogEntry(self.step.name, self._action, status, reason, self._attempts, seconds, owner)


class StepAttempts:
    """Calls the steps of one run. Thread-safe as far as the steps of one group need it.

    Args:
        settings: of the run.
        record: where what is done is written.
        saga_name: the saga's name.

    Attributes:
        in_doubt: the choices whose step may have had its effect, though nothing says so.
    """

    def __init__(self, settings: RunSettings, record: SagaRecord, saga_name: str) -> None:
        self.in_doubt: set[str] = set()
        self._settings = settings
        self._record = record
        self._saga_name = saga_name

    def of(
        self,
        step: NamedStep,
        action: str,
        context: Any,
        retry: Retry,
        complete: Complete,
        restore: Callable[[], None],
        breaker: ICircuitBreaker | None = None,
        place: str = "",
    ) -> Any:
        """Call a step until it succeeds; returns what it returned.

        Args:
            complete: writes that it is done.
            restore: makes the context what it was before an attempt that has left nothing behind.
            breaker: what calls it, where there is one.
            place: by what it is in doubt, where its outcome is unknown: the name of the choice.

        Raises:
            StepFailed: its attempts are used up.
            SagaConcurrencyError: the saga is somebody else's by now.
            SagaStorageUnavailable: the storage is away.
            MediatorClosed: between two attempts.
        """
        owner, saga_id, began = self._record.owner, self._record.saga_id, time.monotonic()
        is_unknown = place in self.in_doubt and not step.is_transactional
        number = 0
        while True:
            number += 1
            self._record.ensure_lease()
            execution = StepExecution(saga_id, self._saga_name, step.name, action, number, owner, step.key_name)
            attempt = Attempt(execution, context, is_joined=step.is_transactional)

            def record(
                _: Any, joined: Transaction | None, commit: Callable[[], None], attempt: Attempt = attempt
            ) -> None:
                seconds, number = round(time.monotonic() - began, 6), attempt.execution.attempt
                attempt.is_joined = joined is not None
                done = SagaLogEntry(step.name, action, SagaStepStatus.COMPLETED, None, number, seconds, owner)
                complete(done, joined, commit)

            try:
                caller = self._settings.callers(step)
                if breaker is None:
                    return caller.call(attempt, record)
                return breaker.call(step.step_type, caller.call, attempt, record)
            except Exception as error:
                self._reraise_if_stopped()
                if attempt.is_recorded:  # the breaker's own trouble
                    logger.warning(
                        "saga %s: %s is done, and its circuit breaker failed", saga_id, step.name, exc_info=True
                    )
                    return attempt.result
                if action == ACT and not step.is_transactional and _leaves_doubt(step, attempt, error):
                    is_unknown = True
                    self.in_doubt.add(place)
                refused = breaker is not None and breaker.is_circuit_breaker_error(error)
                # What has returned and could not be recorded is not called again, but what was undone with it is.
                is_over = refused or (attempt.has_returned and not step.is_transactional)
                if is_over or not retry.calls_for_another(error, number):
                    self._raise_outage(attempt, error)
                    if not is_unknown:
                        restore()
                    duration = time.monotonic() - began
                    raise StepFailed(step, action, error, retry, number, duration, is_unknown=is_unknown) from error
                wait = retry.wait_after(number)
                logger.info("saga %s: attempt %s of %s failed, next in %.1f s", saga_id, number, step.name, wait)
            restore()
            self.pause(wait)

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            MediatorClosed: the run is to be handed over.
        """
        if self._settings.pause(seconds):
            raise MediatorClosed(
                f"the mediator was closed while saga {self._record.saga_id} waited; recovery goes on with it"
            )

    def _reraise_if_stopped(self) -> None:
        """Raise what is no failure of the step: the saga is another's by now, or its storage is away."""
        if self._record.stopped is not None:
            raise self._record.stopped

    def _raise_outage(self, attempt: Attempt, error: Exception) -> None:
        """A step that writes in the transaction of its record has not failed where the database is away."""
        record, execution = self._record, attempt.execution
        if attempt.is_joined and record.is_outage(error):
            record.stopped = SagaStorageUnavailable(
                f"the database did not take {execution.step_name} of saga {record.saga_id}, which is undone with it; "
                f"recovery calls it again: {reason_of(error)}"
            )
            raise record.stopped from error


def _leaves_doubt(step: NamedStep, attempt: Attempt, error: Exception) -> bool:
    """Whether a step that raised may have had its effect."""
    return attempt.has_returned or isinstance(error, (OutcomeUnknown, *step.step_type.unknown_outcomes))
