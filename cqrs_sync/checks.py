"""Refuses at start-up what would do nothing, silently, later: coroutines that nobody awaits, classes for instances."""

from __future__ import annotations

import inspect
from typing import Any

from cqrs_sync.errors import ConfigurationError, type_name


def is_async(function: Any) -> bool:
    """Whether calling a function makes a coroutine or an asynchronous generator."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def refuse_async(function: Any, name: str) -> None:
    """Refuse an ``async`` function, or an object with an ``async`` call.

    Raises:
        ConfigurationError: with ``name``, what it was given as.
    """
    for candidate in (function, getattr(function, "__call__", None), getattr(function, "__wrapped__", None)):  # noqa: B004
        if is_async(candidate):
            raise ConfigurationError(f"{name} {type_name(function)} is async and nobody would await it: take out async")


def require_instance(candidate: Any, kind: type, name: str, remedy: str) -> None:
    """Refuse what is no instance of a class.

    Raises:
        ConfigurationError: with ``name``, what it was given as, and the remedy.
    """
    if not isinstance(candidate, kind):
        given = f"the class {type_name(candidate)}" if isinstance(candidate, type) else repr(candidate)
        raise ConfigurationError(f"{name} must be a {kind.__name__}, not {given}: {remedy}")
