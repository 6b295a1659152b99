"""How long to wait before the next attempt."""

from __future__ import annotations

import dataclasses
import logging
import math
import random

from cqrs_sync.errors import ConfigurationError

logger = logging.getLogger(__name__)

LONGEST = 30 * 24 * 3600.0
"""Seconds that anything waits at most: 30 days, which threads and databases of every kind can count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backoff:
    """Exponential back-off with jitter: doubles (by default) from ``initial`` to ``maximum`` seconds.

    Jitter keeps many processes that failed together from trying again together (Brooker, *Exponential Backoff and
    Jitter*).

    Attributes:
        initial: seconds before the second attempt.
        factor: how many times as long each further wait is.
        maximum: seconds, jitter included; 30 days at most.
        jitter: by which share a wait is shortened or lengthened at most, 0 to 1.

    >>> waits = Backoff(initial=1, factor=2, maximum=5, jitter=0)
    >>> [waits.delay(attempt) for attempt in (1, 2, 3, 4, 5000)]
    [1.0, 2.0, 4.0, 5.0, 5.0]
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.initial <= self.maximum <= LONGEST and 1 <= self.factor < math.inf and 0 <= self.jitter <= 1):
            raise ConfigurationError(
                f"{self}: a back-off needs 0 < initial <= maximum <= {LONGEST:.0f} (30 days), factor >= 1 and jitter "
                "between 0 and 1"
            )

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after the given attempt, counted from 1."""
        try:
            # As floats, which overflow; integers would grow until they can no longer be made one.
            wait = min(float(self.initial) * float(self.factor) ** (max(attempt, 1) - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        spread = 1 + self.jitter * (2 * random.random() - 1)
        return float(min(wait * spread, self.maximum))


def wait_after(backoff: Backoff, attempt: int) -> float:
    """Return a back-off's delay, between 0 seconds and :data:`LONGEST`, whatever a class of the user's own does.

    Where it raises or has no number, that is logged, and the default back-off stands in.
    """
    try:
        wait = backoff.delay(attempt)
        if not wait >= 0:  # NaN is not, either
            raise ValueError(f"{wait!r} is no number of seconds")
        return float(min(wait, LONGEST))
    except Exception as error:
        name = type(backoff).__name__
        logger.error("%s has no delay for attempt %s, the default back-off stands in: %r", name, attempt, error)
        return Backoff().delay(attempt)
