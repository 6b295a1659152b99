"""What the fallbacks of requests and of events have in common: two handler classes that fit in each other's place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cqrs_sync.errors import ConfigurationError, HandlerTypeError, type_name
from cqrs_sync.generics import concrete_argument


def exception_classes(given: Any, name: str = "failure_exceptions") -> tuple[type[Exception], ...]:
    """Return exception classes as a tuple, whether given as one class, a list or a tuple.

    Raises:
        ConfigurationError: it holds something else, which would only be noticed when something fails; with ``name``,
            what it was given as.
    """
    classes: tuple[Any, ...] = (
        tuple(given) if isinstance(given, Iterable) and not isinstance(given, type | str) else (given,)
    )
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise ConfigurationError(f"{name} must be exception classes, and {type_name(each)} is none")
    return classes


def check_fallback(
    owner: str, primary: Any, fallback: Any, kinds: tuple[type, ...], error: type[HandlerTypeError], *, arguments: int
) -> None:
    """Check that two classes are of the same kind and name the same concrete types.

    Args:
        owner: the fallback's own class name, for messages.
        kinds: the generic handler classes allowed.
        arguments: how many type arguments both must name; a second one that neither names is not asked for.

    Raises:
        HandlerTypeError: of the class ``error``, naming the class that does not fit.
    """
    for role, handler in (("primary", primary), ("fallback", fallback)):
        if not (isinstance(handler, type) and issubclass(handler, kinds)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise error(f"{owner} {role} {type_name(handler)} must be a subclass of {expected}", handler)
    kind = next(kind for kind in kinds if issubclass(primary, kind))
    if not issubclass(fallback, kind):
        raise error(f"{owner} fallback {type_name(fallback)} must be a {kind.__name__} as its primary is", fallback)
    for position in range(arguments):
        wanted, offered = (concrete_argument(handler, kind, position) for handler in (primary, fallback))
        if position == 0 and (wanted is None or offered is None):
            culprit = primary if wanted is None else fallback
            raise error(
                f"{owner}: {type_name(culprit)} must name what it handles, as in {kind.__name__}[MyMessage]", culprit
            )
        if wanted is not None and offered is not None and wanted is not offered:
            raise error(
                f"{owner}: {type_name(fallback)} is for {type_name(offered)} "
                f"but its primary {type_name(primary)} is for {type_name(wanted)}",
                fallback,
            )
