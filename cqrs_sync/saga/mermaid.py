"""Draws sagas as Mermaid diagrams: what one can do, for documentation, and what one has done, for its operators."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from cqrs_sync.mermaid import INDENT, Names, box, escaped, fields, indented, uses
from cqrs_sync.saga.definition import Choice, NamedStep, Stage
from cqrs_sync.saga.history import History, participants
from cqrs_sync.saga.saga import Saga, definition_of
from cqrs_sync.saga.step import SagaStepHandler, StepType, TransactionalSagaStep
from cqrs_sync.saga.storage.models import SagaState


class SagaMermaid:
    """A saga as text for a Mermaid renderer.

    Args:
        saga: the saga's class, or an instance.

    Raises:
        SagaTypeError: it is no saga, or has no steps.

    Example:
        >>> import dataclasses
        >>> from cqrs_sync.saga.models import SagaContext
        >>> @dataclasses.dataclass
        ... class OrderContext(SagaContext):
        ...     order_id: str
        >>> class Reserve(SagaStepHandler[OrderContext, None]):
        ...     def act(self, context): ...
        ...     def compensate(self, context): ...
        >>> class Ship(Reserve): ...
        >>> class OrderSaga(Saga[OrderContext]):
        ...     steps = [Reserve, Ship]
        >>> print(SagaMermaid(OrderSaga).sequence())
        sequenceDiagram
            participant S as OrderSaga
            participant S1 as Reserve
            participant S2 as Ship
            S->>S1: act
            S1-->>S: done
            S->>S2: act
            S2-->>S: done
            Note over S: completed
            Note over S: or back, when a step fails
            S->>S2: compensate, if its outcome is unknown
            S2-->>S: undone
            S->>S1: compensate
            S1-->>S: undone
            Note over S: failed, and everything is undone
    """

    def __init__(self, saga: type[Saga[Any]] | Saga[Any]) -> None:
        self._definition = definition_of(saga)
        self._saga_type = saga if isinstance(saga, type) else type(saga)
        self._ids = {step.name: f"S{number}" for number, step in enumerate(self._definition.steps, start=1)}

    def sequence(self) -> str:
        """Return a sequence diagram of the way forward and of the way back."""
        lines = participants(self._definition.saga_name, self._ids)
        if self._definition.stages:
            lines += [*self._forward(), *self._back()]
        else:
            lines.append("Note over S: the saga has no steps")
        return "\n".join(["sequenceDiagram", *indented(lines)])

    def class_diagram(self) -> str:
        """Return a class diagram of the saga, its steps, its context, and what the steps answer with."""
        steps = list(dict.fromkeys(step.step_type for step in self._definition.steps))
        bases = list(dict.fromkeys(_base(step) for step in steps))
        used = {step: uses(step, _base(step), ("works on", "answers")) for step in steps}
        context = self._definition.context_type
        own = [] if context is None else [context]
        messages = list(dict.fromkeys([*own, *(message for pairs in used.values() for message, _ in pairs)]))
        names = Names([self._saga_type, *bases, *steps, *messages])
        lines = box(names, self._saga_type, ["<<saga>>"])
        for base in bases:
            lines += box(names, base, ["<<abstract>>", *_methods(base), "+events"])
        for step in steps:
            lines += box(names, step, [f"<<{step.kind}>>", *_methods(step)] if step.kind else _methods(step))
        for message in messages:
            lines += box(names, message, fields(message))
        lines += self._relations(names)
        lines += [f"{names.id(self._saga_type)} ..> {names.id(each)} : context" for each in own]
        for step, pairs in used.items():
            lines += [f"{names.id(step)} ..> {names.id(message)} : {verb}" for message, verb in pairs]
        return "\n".join(["classDiagram", *indented(lines)])

    @staticmethod
    def run(state: SagaState) -> str:
        """Return a sequence diagram of what one saga has done: when, for how long, at which attempt, and what failed.

        The saga's class is not needed. What ran at the same time is drawn so, as far as the times in the log tell.

        Args:
            state: the saga with its log, from ``storage.load_saga_state(saga_id)``; ``find()`` leaves logs out.
        """
        return "\n".join(["sequenceDiagram", *indented(History(state).lines())])

    # --- the way forward, and the way back ---------------------------------------------------------------------------

    def _forward(self) -> Iterator[str]:
        is_decided = False
        for stage in self._definition.stages:
            calls = [list(self._call(choice, is_decided=is_decided)) for choice in stage.choices]
            yield from calls[0] if len(calls) == 1 else _at_the_same_time(stage, calls)
            if _is_pivot(stage):
                is_decided = True
                yield "Note over S: the pivot is done: nothing is undone any more"
        yield "Note over S: completed"

    def _call(self, choice: Choice, *, is_decided: bool) -> Iterator[str]:
        first = self._ids[choice.step.name]
        yield f"S->>{first}: {_act(choice.step, is_decided=is_decided)}"
        if choice.fallback is None:
            yield f"{first}-->>S: done"
            return
        second = self._ids[choice.fallback.name]
        errors = " or ".join(escaped(error.__name__) for error in choice.failure_exceptions)
        yield f"alt {escaped(choice.step.name)} succeeds"
        yield f"{INDENT}{first}-->>S: done"
        yield f"else it fails{f' with {errors}' if errors else ''}"
        yield f"{INDENT}{first}--xS: error"
        yield f"{INDENT}S->>{second}: {_act(choice.fallback, is_decided=is_decided)}"
        yield f"{INDENT}{second}-->>S: done"
        yield "end"

    def _back(self) -> Iterator[str]:
        stages = list(self._definition.stages)
        pivot = next((number for number, stage in enumerate(stages) if _is_pivot(stage)), None)
        if pivot is None:
            yield "Note over S: or back, when a step fails"
        else:
            stages = stages[: pivot + 1]
            yield f"Note over S: or back, when a step up to {escaped(stages[-1].choices[0].name)} fails"
        for stage in reversed(stages):
            if len(stage.choices) > 1:
                yield "Note over S: of the next ones, what was done last is undone first"
            for choice in reversed(stage.choices):
                if stage is not stages[-1]:
                    yield from self._undo(choice)
                else:
                    yield from self._undo_last(choice, is_alone=len(stage.choices) == 1)
        yield "Note over S: failed, and everything is undone"

    def _undo(self, choice: Choice) -> Iterator[str]:
        if choice.fallback is None:
            yield from self._compensate(choice.step)
            return
        for keyword, step in zip(("alt", "else"), choice.steps, strict=True):
            yield f"{keyword} {escaped(step.name)} was done"
            yield from indented(self._compensate(step))
        yield "end"

    def _undo_last(self, choice: Choice, *, is_alone: bool) -> Iterator[str]:
        """Undo steps of which one has failed, and the others may be done."""
        for step in choice.steps:
            if not is_alone:
                yield from self._compensate(step, ", if it was done")
            elif not step.is_transactional:
                yield from self._compensate(step, ", if its outcome is unknown")

    def _compensate(self, step: NamedStep, condition: str = "") -> Iterator[str]:
        retry = step.step_type.compensate_retry
        often = "" if retry is None else _often(retry.attempts)
        yield f"S->>{self._ids[step.name]}: compensate{often}{condition}"
        yield f"{self._ids[step.name]}-->>S: undone"

    def _relations(self, names: Names) -> Iterator[str]:
        for step_type in dict.fromkeys(step.step_type for step in self._definition.steps):
            yield f"{names.id(_base(step_type))} <|-- {names.id(step_type)}"
        saga = names.id(self._saga_type)
        for number, stage in enumerate(self._definition.stages, start=1):
            place = f"step {number}" if len(stage.choices) == 1 else f"step {number}, at the same time"
            for choice in stage.choices:
                first = names.id(choice.step.step_type)
                yield f"{saga} *-- {first} : {place}"
                if choice.fallback is not None:
                    yield f"{first} --> {names.id(choice.fallback.step_type)} : fallback"


def _at_the_same_time(stage: Stage, calls: Sequence[list[str]]) -> Iterator[str]:
    keywords = itertools.chain(["par"], itertools.repeat("and"))
    for keyword, choice, call in zip(keywords, stage.choices, calls, strict=False):
        yield f"{keyword} {escaped(choice.name)}"
        yield from indented(call)
    yield "end"


def _is_pivot(stage: Stage) -> bool:
    return any(step.step_type.kind == "pivot" for step in stage.steps)


def _act(step: NamedStep, *, is_decided: bool) -> str:
    often = ", until it succeeds" if is_decided else _often(step.step_type.retry.attempts)
    return f"act{', in the transaction that records it' if step.is_transactional else ''}{often}"


def _often(attempts: int) -> str:
    return f", up to {attempts} times" if attempts > 1 else ""


def _base(step: StepType) -> type[Any]:
    return TransactionalSagaStep if issubclass(step, TransactionalSagaStep) else SagaStepHandler


def _methods(step: type[Any]) -> list[str]:
    arguments = "context, session" if issubclass(step, TransactionalSagaStep) else "context"
    return [f"+act({arguments})", f"+compensate({arguments})"]
