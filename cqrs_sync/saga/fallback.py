"""A second step for when the first fails."""

from __future__ import annotations

import dataclasses
from typing import Any

from cqrs_sync.checks import refuse_async
from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import ConfigurationError, SagaTypeError, type_name
from cqrs_sync.fallback import exception_classes
from cqrs_sync.generics import concrete_argument
from cqrs_sync.saga.step import SagaStepHandler, StepType, TransactionalSagaStep


@dataclasses.dataclass(frozen=True)
class Fallback:
    """A step that is tried first, and the one that runs in its place when it fails or its circuit is open.

    The fallback finds the context as it was before the first. Which of the two is done is what is compensated; the
    first one too, where its outcome is unknown. That the fallback takes over is stored before it runs, so it is what is
    run again after a crash. Where it fails behind a pivot as well, the saga is put off, and the next attempt, perhaps
    hours later, begins with the first step; where the fallback's outcome is unknown, with the fallback.

    Attributes:
        step: the step class that is tried first, with its :attr:`~cqrs_sync.saga.step.SagaStepHandler.retry`, each
            attempt behind the circuit breaker.
        fallback: the step class that runs instead; not behind the breaker.
        failure_exceptions: which errors of the first call for the fallback; empty means every ``Exception``.
        circuit_breaker: stops calling a step that keeps failing; None calls it each time.

    Raises:
        ConfigurationError: ``failure_exceptions`` holds something else, or ``circuit_breaker`` is none.
        SagaTypeError: one is no step class, the two are one, or they differ in their context.
    """

    step: StepType
    fallback: StepType
    failure_exceptions: tuple[type[Exception], ...] = ()
    circuit_breaker: ICircuitBreaker | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failure_exceptions", exception_classes(self.failure_exceptions))
        _check_breaker(self.circuit_breaker)
        contexts = []
        for role, step in (("step", self.step), ("fallback", self.fallback)):
            contexts.append(context_named_by(step, f"a Fallback's {role}"))
        if self.step is self.fallback:
            raise SagaTypeError(
                f"{type_name(self.step)} is its own fallback: to try it again give it retry = Retry(attempts=3)",
                self.step,
            )
        if None not in contexts and contexts[0] is not contexts[1]:
            names = [type_name(context) for context in contexts]
            raise SagaTypeError(
                f"{type_name(self.fallback)} works on {names[1]} and {type_name(self.step)} on {names[0]}: a fallback "
                "needs the same context",
                self.fallback,
            )


def _check_breaker(breaker: Any) -> None:
    if breaker is None:
        return
    methods = [getattr(breaker, name, None) for name in ("call", "is_circuit_breaker_error")]
    if isinstance(breaker, type) or not all(map(callable, methods)):
        raise ConfigurationError(
            f"circuit_breaker must be an ICircuitBreaker, and {breaker!r} is none: pass PyBreakerAdapter(), for example"
        )
    for method in methods:
        refuse_async(method, "circuit_breaker")


def context_named_by(step: object, role: str) -> type | None:
    """Return the context class that a step names; None where it names none.

    Raises:
        SagaTypeError: it is no step class.
    """
    if isinstance(step, type):
        for kind in (SagaStepHandler, TransactionalSagaStep):
            if issubclass(step, kind):
                return concrete_argument(step, kind)
    raise SagaTypeError(f"{role} must be a subclass of SagaStepHandler, and {type_name(step)} is none", step)
