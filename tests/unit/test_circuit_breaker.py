"""When a failed primary is followed by its fallback."""

import pytest

from cqrs_sync.circuit_breaker import ICircuitBreaker, should_use_fallback


class Refused(Exception):
    pass


class Breaker:
    def call(self, identifier, func, *args, **kwargs):  # type: ignore[no-untyped-def]
        return func(*args, **kwargs)

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return isinstance(exc, Refused)


BREAKER: ICircuitBreaker = Breaker()


@pytest.mark.parametrize(
    ("error", "breaker", "failures", "expected"),
    [
        (ValueError(), None, (), True),
        (ValueError(), BREAKER, (), True),
        (ValueError(), None, (LookupError,), False),
        (KeyError(), None, (LookupError,), True),
        (ValueError(), BREAKER, (LookupError,), False),
        (Refused(), BREAKER, (LookupError,), True),
        (Refused(), None, (LookupError,), False),
    ],
)
def test_fallback_follows_named_errors_refusals_and_any_error_if_none_is_named(
    error: Exception, breaker: ICircuitBreaker | None, failures: tuple[type[Exception], ...], expected: bool
) -> None:
    assert should_use_fallback(error, breaker, failures) is expected
