"""Steps that run at the same time."""

from __future__ import annotations

from typing import TypeAlias

from cqrs_sync.errors import SagaTypeError
from cqrs_sync.saga.fallback import Fallback, context_named_by
from cqrs_sync.saga.step import StepType

Member: TypeAlias = StepType | Fallback


class Parallel:
    """Steps that run at the same time, in the mediator's pool; the next step waits for all of them.

    Each works on a copy of the context, and what it has changed is put into the saga's when it is done: two of them
    should not write the same field (the later one wins). Where one fails the others finish, and then the saga is
    rolled back, in reverse of the order in which they were done.

    Args:
        steps: step classes and fallbacks, at least two.

    Raises:
        SagaTypeError: there are fewer, or one is something else (another group, say).
    """

    def __init__(self, *steps: Member) -> None:
        if len(steps) < 2:
            raise SagaTypeError("Parallel needs at least two steps", steps)
        for step in steps:
            if not isinstance(step, Fallback):
                context_named_by(step, "a step of Parallel")
        self.steps = steps

    def __repr__(self) -> str:
        return f"Parallel({', '.join(getattr(step, '__name__', repr(step)) for step in self.steps)})"
