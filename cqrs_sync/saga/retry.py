"""How often a step is tried."""

from __future__ import annotations

import dataclasses

from cqrs_sync.backoff import LONGEST, Backoff
from cqrs_sync.checks import require_count
from cqrs_sync.errors import ConfigurationError
from cqrs_sync.fallback import exception_classes


@dataclasses.dataclass(frozen=True)
class Retry:
    """How often ``act`` or ``compensate`` of a step is called in a row, on a new handler each time.

    The waits are in the runner's thread, which keeps the saga's lease meanwhile. Attempts are not stored: whoever takes
    a saga on begins to count anew.

    Attributes:
        attempts: in all, the first one included.
        delay: seconds before the second attempt.
        backoff: how many times as long each further wait is.
        jitter: by which share a wait is shortened or lengthened at most, 0 to 1.
        exceptions: which errors call for another attempt; every ``Exception`` by default.

    Raises:
        ConfigurationError: one of them cannot work.

    >>> Retry(attempts=3, delay=1.0, backoff=2.0).wait_after(2)
    2.0
    """

    attempts: int = 3
    delay: float = 1.0
    backoff: float = 2.0
    jitter: float = 0.0
    exceptions: tuple[type[Exception], ...] = (Exception,)

    def __post_init__(self) -> None:
        require_count(self.attempts, "attempts")
        object.__setattr__(self, "exceptions", exception_classes(self.exceptions, "exceptions"))
        for name in ("delay", "backoff", "jitter"):
            given = getattr(self, name)
            if not isinstance(given, int | float) or isinstance(given, bool):
                raise ConfigurationError(f"{name} must be a number, not {given!r}")
        if not 0 <= self.delay <= LONGEST:
            raise ConfigurationError(f"delay must be 0 to {LONGEST:.0f} seconds, not {self.delay!r}")
        self.wait_after(1)

    def wait_after(self, attempt: int) -> float:
        """Return the seconds to wait after the given attempt, counted from 1."""
        if self.delay == 0:
            return 0.0
        return Backoff(initial=self.delay, factor=self.backoff, maximum=LONGEST, jitter=self.jitter).delay(attempt)

    def calls_for_another(self, error: Exception, attempt: int) -> bool:
        """Return whether there is another attempt after this one has failed."""
        return attempt < self.attempts and isinstance(error, self.exceptions)


ONCE = Retry(attempts=1, delay=0.0)
"""No second attempt."""
