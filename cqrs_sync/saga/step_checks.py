"""Refuses steps that could not be called, or whose settings would only be looked at when something has failed."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from cqrs_sync.checks import is_async
from cqrs_sync.errors import SagaTypeError, type_name
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.step import StepKind, StepType, TransactionalSagaStep


def check_step(step: StepType) -> None:
    """Refuse a step that cannot work, before any saga has begun.

    Raises:
        SagaTypeError: naming the attribute, and the remedy.
    """
    if step.kind not in (None, *get_args(StepKind)):
        kinds = ", ".join(get_args(StepKind))
        raise SagaTypeError(f"{type_name(step)}.kind must be one of {kinds}, not {step.kind!r}", step)
    _check_retry(step, "retry", step.retry)
    if step.compensate_retry is not None:
        _check_retry(step, "compensate_retry", step.compensate_retry)
    for name in ("act", "compensate"):
        _check_runs(step, name)
        _check_parameters(step, name)


def _check_retry(step: StepType, name: str, given: Any) -> None:
    if not isinstance(given, Retry):
        raise SagaTypeError(
            f"{type_name(step)}.{name} must be a Retry, not {given!r}: write {name} = Retry(attempts=3, delay=1.0)",
            step,
        )


def _check_runs(step: StepType, name: str) -> None:
    """Refuse what would return at once, with nothing done."""
    method = getattr(step, name)
    if is_async(method):
        raise SagaTypeError(f"{type_name(step)}.{name} is async: take out async and await", step)
    if inspect.isgeneratorfunction(method):
        raise SagaTypeError(f"{type_name(step)}.{name} is a generator, which nobody would run: take out yield", step)


def _check_parameters(step: StepType, name: str) -> None:
    """Refuse a method that does not take what it is called with."""
    method: Any = inspect.getattr_static(step, name)
    given = ["context", "session"] if issubclass(step, TransactionalSagaStep) else ["context"]
    if not isinstance(method, staticmethod):
        given.insert(0, "self")
    function = getattr(method, "__func__", method)
    if not inspect.isfunction(function):
        return  # an object that is called knows by itself what it takes
    # Not those of a function that is wrapped: what adds a session, or takes one away, is a decorator's business.
    signature = inspect.signature(function, follow_wrapped=False)
    try:
        signature.bind(*given)
    except TypeError:
        remedy = "derive it from TransactionalSagaStep if it needs a session"
        if "session" in given:
            remedy = "derive it from SagaStepHandler if it needs no session"
        taken = ", ".join(signature.parameters)
        raise SagaTypeError(
            f"{type_name(step)}.{name}({taken}) is called with ({', '.join(given)}): {remedy}",
            step,
        ) from None
