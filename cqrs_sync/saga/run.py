"""One saga while one owner runs it: forward step by step, or back."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Generic

from cqrs_sync.backoff import wait_after
from cqrs_sync.circuit_breaker import ICircuitBreaker, should_use_fallback
from cqrs_sync.errors import ContextNotSerializable, MediatorClosed, SagaRolledBack, type_name
from cqrs_sync.reasons import joined, reason_of
from cqrs_sync.saga.attempts import RunSettings, StepAttempts, StepFailed
from cqrs_sync.saga.definition import Choice, Definition, NamedStep, Progress
from cqrs_sync.saga.leases import Lease
from cqrs_sync.saga.models import ContextT, checked_text, encode
from cqrs_sync.saga.record import SagaRecord
from cqrs_sync.saga.step import SagaStepResult
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaLogEntry
from cqrs_sync.unit_of_work.protocol import Transaction

logger = logging.getLogger(__name__)


class SagaRun(Generic[ContextT]):
    """One saga while one owner runs it. Used by one thread at a time; groups of steps use others inside.

    Args:
        read: makes a context of a stored one.

    Attributes:
        saga_id: the saga's id.
        definition: its steps.
        context: what they work on.
        error: what it has failed with in this run.
        results: of the steps that this run has completed.
    """

    def __init__(
        self,
        settings: RunSettings,
        definition: Definition,
        lease: Lease,
        context: ContextT,
        read: Callable[[str], ContextT],
        progress: Progress,
        *,
        status: SagaStatus = SagaStatus.RUNNING,
        version: int = 1,
        stored: str,
        attempts: int = 0,
        reason: str | None = None,
        in_doubt: bool = False,
    ) -> None:
        self.saga_id: uuid.UUID = lease.saga_id
        self.definition = definition
        self.context = context
        self._read = read
        self.error: Exception | None = None
        self.results: list[SagaStepResult[Any, Any]] = []
        self._settings = settings
        self._lease = lease
        self._record = SagaRecord(
            lease, settings.pause, status=status, version=version, stored=stored, attempts=attempts, reason=reason
        )
        self._progress = progress
        self._attempts = StepAttempts(settings, self._record, definition.saga_name)
        if in_doubt:
            self._attempts.in_doubt.update(choice.name for choice in progress.left)
        # One write of a run at a time, because each has the next version: only steps of one group ever wait for it.
        self._turn = threading.RLock()
        self._guard = threading.Lock()  # guards these two
        self._working = 0  # how many steps of a group are at work
        self._is_interrupted = False

    @property
    def status(self) -> SagaStatus:
        """As the storage knows it."""
        return self._record.status

    @property
    def is_settled(self) -> bool:
        """Whether this run has nothing left to do."""
        return self._record.is_settled

    def stream(self) -> Generator[SagaStepResult[Any, Any], None, None]:
        """Run the saga; see :meth:`~cqrs_sync.saga.mediator.SagaMediator.stream`."""
        if self.status is SagaStatus.COMPLETED:
            return
        if self.is_settled:
            raise SagaRolledBack(self.saga_id, self.status, self._record.reason)
        with self._lease.kept():
            if self.status is SagaStatus.COMPENSATING:
                self._interruptible(self.roll_back)
                raise SagaRolledBack(self.saga_id, self.status, self._record.reason)
            while not self.status.is_final:
                results = self._interruptible(self._advance)
                self.results += results
                for result in results:
                    try:
                        yield result
                    except BaseException:
                        self._hand_over()
                        raise

    def abort(self, error: Exception) -> None:
        """Roll the saga back because of an error outside of its steps, unless it has come to an end already.

        Past its pivot it is handed over instead: recovery goes on with it.
        """
        if not self._record.may_write or self.error is not None:
            return
        self.error = error
        if self._is_past_pivot():
            logger.warning(
                "saga %s is past its pivot: it is not rolled back, and recovery goes on with it", self.saga_id
            )
            self._hand_over()
            return
        entry = SagaLogEntry("", "abort", SagaStepStatus.FAILED, reason_of(error), actor=self._record.owner)
        self._turn_back([entry], error)

    # --- forward -------------------------------------------------------------------------------------------------

    def _advance(self) -> list[SagaStepResult[Any, Any]]:
        """Take the next stage; returns the results in the order in which they were completed."""
        choices = self._progress.left
        if not choices:  # no steps, or fewer than it was begun with
            self._record.write(SagaStatus.COMPLETED, None, attempts=0)
            return []
        results: list[SagaStepResult[Any, Any]] = []
        failures: list[StepFailed] = []
        if len(choices) == 1:
            try:
                results.append(self._choose(choices[0], self.context, self.context))
            except StepFailed as failure:
                failures.append(failure)
        else:
            self._advance_together(choices, results, failures)
        if failures:
            self._fail(failures)
            raise failures[0].error
        return results

    def _advance_together(
        self, choices: tuple[Choice, ...], results: list[SagaStepResult[Any, Any]], failures: list[StepFailed]
    ) -> None:
        others: list[BaseException] = []

        def take(job: tuple[Choice, ContextT]) -> tuple[()]:
            choice, context = job
            with self._at_work() as may_begin:
                if not may_begin:
                    return ()
                try:
                    results.append(self._choose(choice, context, before))
                except StepFailed as failure:
                    failures.append(failure)
                except BaseException as error:
                    if not isinstance(error, Exception):
                        self._attempts.in_doubt.add(choice.name)
                    others.append(error)
            return ()

        before = copy.deepcopy(self.context)
        self._settings.executor().run(take, [(choice, copy.deepcopy(before)) for choice in choices])
        if others:
            raise others[0]

    @contextmanager
    def _at_work(self) -> Iterator[bool]:
        """Around a step of a group, which may still be at work when the run has been interrupted.

        Then it keeps the lease, and the last one hands the saga over. Tells whether the step may begin at all.
        """
        with self._guard:
            may_begin = not self._is_interrupted
            self._working += may_begin
        try:
            if may_begin:
                with self._lease.kept():
                    yield True
            else:
                yield False
        finally:
            with self._guard:
                self._working -= may_begin
                is_last = self._is_interrupted and self._working == 0 and may_begin
            if is_last:
                self._hand_over(in_doubt=True)

    def _choose(self, choice: Choice, context: ContextT, before: ContextT) -> SagaStepResult[Any, Any]:
        """Run a step or, where it fails, its fallback.

        Args:
            context: what it works on: the saga's own, or a copy in a group.
            before: what the copy was made from; the saga's own where there is no group.
        """
        if choice.fallback is None:
            return self._act(choice, choice.step, context, before)
        if choice.name not in self._progress.fallen_back:
            breaker = choice.circuit_breaker
            try:
                return self._act(choice, choice.step, context, before, breaker)
            except StepFailed as failure:
                # What may have had its effect must be undone, or done, and not be done a second time by another step.
                if failure.is_unknown or not should_use_fallback(failure.error, breaker, choice.failure_exceptions):
                    raise
                self._fall_back(choice, failure)
        return self._act(choice, choice.fallback, context, before)

    def _fall_back(self, choice: Choice, failure: StepFailed) -> None:
        """Store that the fallback is next: whoever takes the saga on must not begin with the first step again."""
        assert choice.fallback is not None
        logger.warning(
            "saga %s: %s has failed (%s); its fallback %s takes over",
            self.saga_id,
            choice.name,
            type_name(type(failure.error)),
            choice.fallback.name,
            exc_info=failure.error,
        )
        with self._turn:
            label = choice.fallback.name if len(self._progress.left) == 1 else self._label
            started = SagaLogEntry(choice.fallback.name, ACT, SagaStepStatus.STARTED, actor=self._record.owner)
            entries = [failure.entry(self._record.owner), started]
            self._record.write(SagaStatus.RUNNING, label, entries, attempts=self._record.attempts)
            self._attempts.in_doubt.discard(choice.name)  # of a transactional step, which was undone with its doubt

    def _act(
        self,
        choice: Choice,
        step: NamedStep,
        context: ContextT,
        before: ContextT,
        breaker: ICircuitBreaker | None = None,
    ) -> SagaStepResult[Any, Any]:
        """Call ``act`` until it succeeds or its attempts are used up."""

        def complete(entry: SagaLogEntry, transaction: Transaction | None, commit: Callable[[], None]) -> None:
            with self._turn:
                self._complete(choice, step, entry, context, before, transaction, commit)

        def restore() -> None:
            _restore(context, self._stored_context() if context is before else copy.deepcopy(before))

        # On SQLite a transaction that has written keeps all others waiting, so none may wait for its turn meanwhile.
        with self._turn if step.is_transactional else nullcontext():
            result: SagaStepResult[Any, Any] = self._attempts.of(
                step, ACT, context, step.step_type.retry, complete, restore, breaker, choice.name
            )
        return result

    def _stored_context(self) -> ContextT:
        return self._read(self._record.stored)

    def _complete(
        self,
        choice: Choice,
        step: NamedStep,
        entry: SagaLogEntry,
        context: ContextT,
        before: ContextT,
        transaction: Transaction | None,
        commit: Callable[[], None],
    ) -> None:
        """Write that a step is done and what is next, in the one commit of the step."""
        merged = _merged(self.context, before, context)
        progress = self._progress
        left = tuple(other for other in progress.left if other is not choice)
        position = progress.position if left else progress.position + 1
        following = None if left else self.definition.label(position)
        status = SagaStatus.RUNNING if left or following is not None else SagaStatus.COMPLETED
        label = self._label if left else following
        text = self._text_of(merged)
        self._record.write(status, label, [entry], attempts=0, context=text, transaction=transaction, commit=commit)
        if merged is not self.context:
            _restore(self.context, merged)
        progress.done.append(step)
        self._attempts.in_doubt.discard(choice.name)
        progress.position = position
        progress.left = left or (
            self.definition.stages[position].choices if position < len(self.definition.stages) else ()
        )

    def _fail(self, failures: list[StepFailed]) -> None:
        """Write what has failed, and roll back; past the pivot only put off the next attempt."""
        self.error = failures[0].error
        entries = [failure.entry(self._record.owner) for failure in failures]
        if self._is_past_pivot(failures):
            wait = wait_after(self._settings.recovery_backoff, self._record.attempts + 1)
            self._record.write(
                SagaStatus.RUNNING,
                self._label,
                entries,
                error=self.error,
                attempts=self._record.attempts,
                available_in=wait,
                in_doubt=any(failure.is_unknown for failure in failures),
            )
            logger.warning("saga %s is past its pivot and cannot go on; tried again in %.1f s", self.saga_id, wait)
            return
        self._progress.done += [failure.step for failure in failures if failure.is_unknown]
        self._turn_back(entries, self.error)

    def _is_past_pivot(self, failures: Iterable[StepFailed] = ()) -> bool:
        """Whether the saga can only go on: the pivot is done, or may be."""
        unknown = (failure.step for failure in failures if failure.is_unknown)
        return any(step.step_type.kind == "pivot" for step in itertools.chain(self._progress.done, unknown))

    # --- back ----------------------------------------------------------------------------------------------------

    def _turn_back(self, entries: list[SagaLogEntry], error: Exception) -> None:
        """Pass the point of no return, durably, and undo what was done."""
        done = self._progress.done
        status = SagaStatus.COMPENSATING if done else SagaStatus.FAILED
        label = done[-1].name if done else None
        self._record.write(status, label, entries, attempts=0, context=self._text(), error=error)
        self.roll_back()

    def roll_back(self) -> None:
        """Undo what was done, in reverse; stops at the first step that cannot be undone, which is put off, or stuck.

        To go on would refund what is still shipped.
        """
        if self.status is SagaStatus.COMPENSATING and not self._progress.done:
            self._record.write(SagaStatus.FAILED, None, attempts=0)
        while self.status is SagaStatus.COMPENSATING:
            step = self._progress.done[-1]
            try:
                self._undo(step)
            except StepFailed as failure:
                self._stop_undoing(failure)
                return
            if self.status is SagaStatus.COMPENSATING:
                self._attempts.pause(0)  # who is asked to stop does not begin with another step

    def _undo(self, step: NamedStep) -> None:
        def complete(entry: SagaLogEntry, transaction: Transaction | None, commit: Callable[[], None]) -> None:
            before = self._progress.done[:-1]
            status = SagaStatus.COMPENSATING if before else SagaStatus.FAILED
            following = before[-1].name if before else None
            text = self._text()
            self._record.write(
                status, following, [entry], attempts=0, context=text, transaction=transaction, commit=commit
            )
            self._progress.done.pop()

        def restore() -> None:
            _restore(self.context, self._stored_context())

        retry = step.step_type.compensate_retry or self._settings.compensation_retry
        self._attempts.of(step, COMPENSATE, self.context, retry, complete, restore)

    def _stop_undoing(self, failure: StepFailed) -> None:
        """Put the rollback off: whoever is away may be back later. Where it was often enough, it is stuck."""
        name = failure.step.name
        reason = f"compensate of {name} failed: {reason_of(failure.error)}"
        self._record.reason = joined(self._record.reason, reason)
        entry = failure.entry(self._record.owner)
        most, text = self._settings.max_attempts, self._text()
        extra = {"saga_id": str(self.saga_id), "step": name}
        if isinstance(failure.error, failure.retry.exceptions) and (most is None or self._record.attempts < most):
            wait = wait_after(self._settings.recovery_backoff, self._record.attempts + 1)
            note = f"could not be rolled back yet: {reason}; recovery tries again in {wait:.1f} s"
            # The stored error stays: what compensate has raised, each time anew, is in the log.
            self._record.write(
                self.status, name, [entry], context=text, attempts=self._record.attempts, available_in=wait
            )
            logger.warning("saga %s %s", self.saga_id, note, exc_info=failure.error, extra=extra)
        else:
            note = f"could not be rolled back: {reason}; it is stuck, and waits for an operator"
            stuck = SagaStatus.COMPENSATION_FAILED
            self._record.write(stuck, name, [entry], attempts=0, reason=self._record.reason, context=text)
            logger.error("saga %s %s", self.saga_id, note, exc_info=failure.error, extra=extra)
        if self.error is not None:
            self.error.add_note(f"saga {self.saga_id} {note}")

    # --- handing over -------------------------------------------------------------------------------------------------

    def _hand_over(self, *, in_doubt: bool = False) -> None:
        """Give the saga back as it is, so that anybody can take it on at once; errors are logged, the lease ends."""
        with self._guard:
            self._is_interrupted = True
            if self._working:
                return
        with self._turn:
            if not self._record.may_write:
                return
            in_doubt = in_doubt or bool(self._attempts.in_doubt)
            try:
                self._record.write(
                    self.status, self._label, attempts=self._record.attempts, available_in=0.0, in_doubt=in_doubt
                )
            except Exception:
                logger.warning("saga %s could not be handed over; its lease ends", self.saga_id, exc_info=True)

    def _interruptible(self, function: Callable[[], Any]) -> Any:
        """Hand the saga over where the program, or the mediator, ends in the middle of a step."""
        try:
            return function()
        except MediatorClosed:  # between two attempts, of which the one before has left a doubt or not
            self._hand_over()
            raise
        except Exception:
            raise
        except BaseException:
            self._hand_over(in_doubt=True)
            raise

    @property
    def _label(self) -> str | None:
        if self.status is SagaStatus.COMPENSATING:
            done = self._progress.done
            return done[-1].name if done else None  # an operator may have skipped the last compensation
        return self.definition.label(self._progress.position)

    def _text(self) -> str | None:
        """The context as JSON, or None where it has become something that cannot be stored: what is stored stays."""
        try:
            return self._text_of(self.context)
        except ContextNotSerializable as error:
            logger.warning("saga %s is rolled back with the context that was stored last: %s", self.saga_id, error)
            return None

    def _text_of(self, context: ContextT) -> str:
        """A context as JSON; one that has changed must come back as it is, or nobody could take the saga on."""
        text = encode(context)
        return text if text == self._record.stored else checked_text(context)


def _restore(context: Any, snapshot: Any) -> None:
    """Give a context the values of another one."""
    for field in dataclasses.fields(context):
        setattr(context, field.name, getattr(snapshot, field.name))


def _merged(context: ContextT, before: ContextT, after: ContextT) -> ContextT:
    """A context with what a step has changed in its copy; the context itself, if the step has worked on it."""
    if context is after:
        return context
    merged = copy.copy(context)
    for field in dataclasses.fields(after):
        value = getattr(after, field.name)
        if value != getattr(before, field.name):
            setattr(merged, field.name, value)
    return merged
