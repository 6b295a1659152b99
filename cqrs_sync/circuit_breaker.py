"""The port of circuit breakers, and when a failed primary is followed by its fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class ICircuitBreaker(Protocol):
    """Refuses calls to what has been failing, so that nobody waits for it and it gets time to recover.

    Called from many threads at once, for one identifier too: the calls run beside each other, no lock is held
    while ``func`` runs. Fallbacks of requests, events and saga steps take the same breaker; give each kind its
    own instance if the same class serves two of them.
    """

    def call(self, identifier: type | str, func: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Run ``func`` unless the circuit of ``identifier`` is open, and count how it ended.

        ``func`` may be a generator function: then an iterator is returned, and the call succeeds or fails when
        that iterator ends. A consumer that stops early makes it neither.

        Raises what ``func`` raises, or the breaker's own error (see :meth:`is_circuit_breaker_error`) when the
        call was refused.
        """
        ...

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        """Return whether ``exc`` says that a call was refused, rather than that it was made and failed."""
        ...


def should_use_fallback(
    primary_error: Exception,
    circuit_breaker: ICircuitBreaker | None,
    failure_exceptions: tuple[type[Exception], ...],
) -> bool:
    """Return whether the fallback runs after ``primary_error``.

    It runs when the breaker refused the call, when the error is one of ``failure_exceptions``, and on every error
    if none are named.
    """
    if not failure_exceptions or isinstance(primary_error, failure_exceptions):
        return True
    return circuit_breaker is not None and circuit_breaker.is_circuit_breaker_error(primary_error)
