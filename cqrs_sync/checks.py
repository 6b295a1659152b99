"""Refuses at start-up what would do nothing, silently, later: coroutines that nobody awaits, classes for instances."""

from __future__ import annotations

import datetime
import functools
import inspect
from typing import Any

from cqrs_sync.errors import ConfigurationError, type_name

CENTURY = 100 * 365 * 24 * 3600.0
"""Seconds: no thread can wait for, and no date be, much longer."""


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


def require_factory(candidate: Any, kind: type, name: str, remedy: str) -> None:
    """Refuse what makes no instances of a class: one of them itself, another class, what cannot be called.

    Raises:
        ConfigurationError: with ``name``, what it was given as, and the remedy.
    """
    maker = candidate.func if isinstance(candidate, functools.partial) else candidate
    if isinstance(maker, type):
        fits, given = issubclass(maker, kind), f"the class {type_name(maker)}"
    else:
        refuse_async(maker, name)
        fits, given = callable(maker) and not isinstance(maker, kind), repr(maker)
    if not fits:
        raise ConfigurationError(f"{name} must make an instance of {kind.__name__}, and {given} does not: {remedy}")


def require_count(candidate: Any, name: str) -> None:
    """Refuse what is no whole number from 1 up.

    Raises:
        ConfigurationError: with ``name``, what it was given as.
    """
    if not isinstance(candidate, int) or isinstance(candidate, bool):
        raise ConfigurationError(f"{name} must be a whole number, not {candidate!r}")
    if candidate < 1:
        raise ConfigurationError(f"{name} must be at least 1, not {candidate}")


def in_seconds(candidate: Any, name: str, *, zero: bool = False) -> float:
    """Return a time that was given in seconds or as a ``timedelta``; 0 only where it means something.

    Raises:
        ConfigurationError: with ``name``, what it was given as.
    """
    seconds = candidate.total_seconds() if isinstance(candidate, datetime.timedelta) else candidate
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise ConfigurationError(f"{name} must be a number of seconds or a timedelta, not {candidate!r}")
    if not (zero or seconds) or not 0 <= seconds <= CENTURY:
        least = "0 or more" if zero else "more than 0"
        raise ConfigurationError(f"{name} must be {least} seconds, and a century at most, not {candidate!r}")
    return float(seconds)
