"""What the steps of a saga come to: their stable names, their order, and whether a stored saga still fits them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import SagaDefinitionChanged, SagaTypeError, type_name
from cqrs_sync.saga.fallback import Fallback, context_named_by
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.step import COMPENSATABLE, StepType, TransactionalSagaStep
from cqrs_sync.saga.step_checks import check_step
from cqrs_sync.saga.step_names import StepNames
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStepStatus
from cqrs_sync.saga.storage.models import NAME_LENGTH, SagaLogEntry, SagaState

Element: TypeAlias = StepType | Fallback | Parallel
"""What the list of steps holds."""


@dataclasses.dataclass(frozen=True)
class NamedStep:
    """A step class at its place in a saga.

    Attributes:
        name: its stable name: that of the class, or ``step_name``; with ``#2`` where the class comes the second time.
        step_type: the class.
        key_name: the name that its idempotency keys have: the first of its old names that is declared as renamed,
            because a call that is in doubt may have been made under it; else its name.
    """

    name: str
    step_type: StepType
    key_name: str

    @property
    def is_transactional(self) -> bool:
        """Whether it is recorded in its own transaction, so that its outcome is never in doubt."""
        return issubclass(self.step_type, TransactionalSagaStep)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A step, and the one that runs in its place when it fails.

    Attributes:
        step: the step.
        fallback: the other one, or None.
        failure_exceptions: which errors call for it; empty means every ``Exception``.
        circuit_breaker: around the first one.
    """

    step: NamedStep
    fallback: NamedStep | None = None
    failure_exceptions: tuple[type[Exception], ...] = ()
    circuit_breaker: ICircuitBreaker | None = None

    @property
    def name(self) -> str:
        """The name of the first one."""
        return self.step.name

    @property
    def steps(self) -> tuple[NamedStep, ...]:
        """Both, or the one."""
        return (self.step,) if self.fallback is None else (self.step, self.fallback)

    def __str__(self) -> str:
        return "|".join(step.name for step in self.steps)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What runs before the saga goes on: one step, or a group of them at the same time."""

    choices: tuple[Choice, ...]

    @functools.cached_property
    def label(self) -> str:
        """What ``current_step`` says while it runs."""
        return " & ".join(choice.name for choice in self.choices)[:NAME_LENGTH]

    @property
    def steps(self) -> Iterator[NamedStep]:
        """All steps in it, fallbacks included."""
        return itertools.chain.from_iterable(choice.steps for choice in self.choices)

    def __str__(self) -> str:
        choices = " & ".join(map(str, self.choices))
        return choices if len(self.choices) == 1 else f"({choices})"


@dataclasses.dataclass
class Progress:
    """How far a saga has come.

    Attributes:
        done: what is done, or may be, and not compensated; in the order in which it was done.
        position: the number of the stage that is next.
        left: what of that stage is not done.
        fallen_back: names of steps of that stage whose fallback has taken over, so that it is next.
    """

    done: list[NamedStep]
    position: int
    left: tuple[Choice, ...]
    fallen_back: frozenset[str] = frozenset()


class Definition:
    """The steps of a saga class, checked.

    Args:
        saga_name: what stored sagas are found by.
        context_type: what all steps work on; None where the saga does not say.
        elements: the list of steps.
        renamed: for old names of steps those that they have now.
        retired: step classes that are no longer run and may have been, by sagas that still are.

    Raises:
        SagaTypeError: they do not fit.
    """

    def __init__(
        self,
        saga_name: str,
        context_type: type | None,
        elements: Any,
        renamed: Mapping[str, str] | None = None,
        retired: Any = (),
    ) -> None:
        self.saga_name = saga_name
        self.context_type = context_type
        if not isinstance(elements, list):
            raise SagaTypeError(f"{saga_name}.steps must be a list of step classes, not {elements!r}", elements)
        names = StepNames(saga_name, renamed)
        self.stages = tuple(self._stage(element, names) for element in elements)
        if not isinstance(retired, Sequence) or isinstance(retired, str):
            raise SagaTypeError(f"{saga_name}.retired_steps must be a list of step classes, not {retired!r}", retired)
        self.retired = tuple(self._named(step, names) for step in retired)
        self._by_name = {step.name: step for step in (*self.steps, *self.retired)}
        self._renamed = names.checked_renamed()
        self._check_pivot()

    @property
    def steps(self) -> Iterator[NamedStep]:
        """All steps in order, fallbacks included."""
        return itertools.chain.from_iterable(stage.steps for stage in self.stages)

    @functools.cached_property
    def text(self) -> str:
        """The steps as they are stored with a saga, so that a difference can be shown."""
        return " > ".join(map(str, self.stages))

    def check_context(self, context: object) -> None:
        """Refuse what the steps cannot work on.

        Raises:
            SagaTypeError: naming both classes.
        """
        wanted = self.context_type or SagaContext
        if not isinstance(context, wanted):
            what = "the class" if isinstance(context, type) else "an instance of"
            cls = context if isinstance(context, type) else type(context)
            raise SagaTypeError(
                f"{self.saga_name} works on {type_name(wanted)}, and was given {what} {type_name(cls)}", context
            )

    def label(self, position: int) -> str | None:
        """What ``current_step`` says at a position; None behind the last stage."""
        return self.stages[position].label if position < len(self.stages) else None

    def beginning(self) -> Progress:
        """The progress of a saga of which nothing was run."""
        return Progress([], 0, self.stages[0].choices if self.stages else ())

    def progress(self, state: SagaState, *, forward: bool) -> Progress:
        """Return how far a stored saga has come.

        Args:
            forward: whether it will go on; else it is rolled back, and only needs the steps that it has done.

        Raises:
            SagaDefinitionChanged: the steps of today do not fit what was done.
        """
        log = _Log(state.history, self._renamed)
        missing = [name for name in log.done if name not in self._by_name]
        if missing:
            raise self._changed(state, f"{', '.join(missing)} was done and is no step of it now")
        done = [self._by_name[name] for name in log.done]
        if not forward:
            return Progress(done, len(self.stages), ())
        position, left = self._next(log)
        self._check_order(state, log, position)
        self._check_doubt(state, log, position)
        fallen_back = (choice.name for choice in left if choice.fallback and choice.fallback.name in log.started)
        return Progress(done, position, left, frozenset(fallen_back))

    def _next(self, log: _Log) -> tuple[int, tuple[Choice, ...]]:
        for position, stage in enumerate(self.stages):
            left = tuple(
                choice for choice in stage.choices if not any(step.name in log.completed for step in choice.steps)
            )
            if left:
                return position, left
        return len(self.stages), ()

    def _check_order(self, state: SagaState, log: _Log, position: int) -> None:
        reached = {step.name for stage in self.stages[: position + 1] for step in stage.steps}
        ahead = log.completed - reached - {step.name for step in self.retired}
        if ahead:
            raise self._changed(
                state,
                f"{', '.join(sorted(ahead))} was done, and {self.label(position)}, which comes before, was not",
            )

    def _check_doubt(self, state: SagaState, log: _Log, position: int) -> None:
        """The step that may have run must be the one that is run again.

        Where the log has it as done there is no doubt: its runner was interrupted before it knew.
        """
        if not state.in_doubt or state.current_step is None:
            return
        old = {self._renamed.get(name, name) for name in state.current_step.split(" & ")} - log.completed
        now = {step.name for stage in self.stages[position : position + 1] for step in stage.steps}
        if old and not old & now:
            raise self._changed(
                state, f"{state.current_step} may have run, and {self.label(position) or 'nothing'} is next now"
            )

    def _changed(self, state: SagaState, what: str) -> SagaDefinitionChanged:
        return SagaDefinitionChanged(state.saga_id, f"it has {state.definition!r}, and now {self.text!r}; {what}")

    def _stage(self, element: Any, names: StepNames) -> Stage:
        members = element.steps if isinstance(element, Parallel) else (element,)
        return Stage(tuple(self._choice(member, names) for member in members))

    def _choice(self, member: Any, names: StepNames) -> Choice:
        if not isinstance(member, Fallback):
            return Choice(self._named(member, names))
        step, fallback = (self._named(each, names) for each in (member.step, member.fallback))
        if (step.step_type.kind or COMPENSATABLE) != (fallback.step_type.kind or COMPENSATABLE):
            raise SagaTypeError(
                f"{self.saga_name}: {step.name} and its fallback {fallback.name} must be of the same kind", fallback
            )
        return Choice(step, fallback, member.failure_exceptions, member.circuit_breaker)

    def _named(self, step: Any, names: StepNames) -> NamedStep:
        context = context_named_by(step, f"each step of {self.saga_name}")
        if context is not None and self.context_type is not None and not issubclass(self.context_type, context):
            raise SagaTypeError(
                f"{type_name(step)} works on {type_name(context)}, and {self.saga_name} on "
                f"{type_name(self.context_type)}: steps need the saga's context, or a base of it",
                step,
            )
        check_step(step)
        name = names.name(step)
        return NamedStep(name, step, names.oldest(name))

    def _check_pivot(self) -> None:
        pivot: NamedStep | None = None
        for stage in self.stages:
            for step in stage.steps:
                if pivot is not None and step.step_type.kind != "retriable":
                    raise SagaTypeError(
                        f"{self.saga_name}: {step.name} comes after the pivot {pivot.name}, when nothing is rolled "
                        'back any more: declare kind = "retriable", or move it before the pivot',
                        step.step_type,
                    )
            pivots = [step for step in stage.steps if step.step_type.kind == "pivot"]
            if pivots and len(stage.choices) > 1:
                raise SagaTypeError(
                    f"{self.saga_name}: the pivot {pivots[0].name} must be alone, not in a Parallel group", pivots[0]
                )
            pivot = pivots[0] if pivots else pivot


class _Log:
    """What a saga's log comes to.

    Attributes:
        done: names of steps that are done, or may be, and not compensated; in order.
        completed: names of steps that are done for certain.
        started: names of fallbacks that have taken over, and not failed for certain since: what may have had an effect
            is run again, and otherwise the choice is made anew.
    """

    def __init__(self, history: Sequence[SagaLogEntry], renamed: Mapping[str, str]) -> None:
        self.completed: set[str] = set()
        self.started: set[str] = set()
        done: dict[str, None] = {}  # as an ordered set
        for entry in history:
            name = renamed.get(entry.step_name, entry.step_name)
            if entry.action == ACT:
                if entry.status is SagaStepStatus.STARTED:
                    self.started.add(name)
                elif entry.status is SagaStepStatus.FAILED:
                    self.started.discard(name)
                else:
                    done.pop(name, None)
                    done[name] = None
                if entry.status is SagaStepStatus.COMPLETED:
                    self.completed.add(name)
            elif entry.action == COMPENSATE and entry.status in (SagaStepStatus.COMPLETED, SagaStepStatus.SKIPPED):
                done.pop(name, None)
        self.done = list(done)
