"""How long to wait before the next attempt."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from cqrs_sync.backoff import LONGEST, Backoff, wait_after
from cqrs_sync.errors import ConfigurationError


def test_waits_double_up_to_the_maximum() -> None:
    """However many attempts there were."""
    waits = Backoff(initial=0.5, maximum=3, jitter=0)
    assert [waits.delay(attempt) for attempt in (0, 1, 2, 3, 4, 100, 10_000)] == [0.5, 0.5, 1, 2, 3, 3, 3]


def test_whole_numbers_wait_as_long_as_fractions() -> None:
    """An integer to the power of thousands has no fraction."""
    waits = Backoff(initial=1, factor=2, maximum=3, jitter=0)
    assert [waits.delay(attempt) for attempt in (1, 2, 5000)] == [1.0, 2.0, 3.0]


def test_jitter_spreads_the_longest_waits_too() -> None:
    """Processes that failed together long ago do not try again together."""
    waits = Backoff(initial=1, maximum=10, jitter=0.2)
    found = {waits.delay(30) for _ in range(200)}
    assert len(found) > 20
    assert min(found) >= 8
    assert max(found) <= 10


def test_jitter_spreads_waits_and_stays_within_its_share() -> None:
    """Never above the maximum."""
    waits = Backoff(initial=10, maximum=11, jitter=0.2)
    found = {waits.delay(1) for _ in range(200)}
    assert len(found) > 20
    assert min(found) >= 8
    assert max(found) <= 11


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": 0},
        {"initial": -1},
        {"initial": 400},
        {"initial": math.nan},
        {"factor": 0.5},
        {"factor": math.inf},
        {"maximum": math.inf},
        {"maximum": LONGEST + 1},
        {"maximum": 10**400},
        {"jitter": -0.1},
        {"jitter": 1.1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """With all that there is to know."""
    with pytest.raises(ConfigurationError, match="a back-off needs"):
        Backoff(**wrong)


class Own(Backoff):
    """A back-off of somebody's own."""

    answer: Any = None

    def delay(self, attempt: int) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def answering(answer: Any) -> Own:
    own = Own()
    object.__setattr__(own, "answer", answer)
    return own


@pytest.mark.parametrize(("answer", "wait"), [(0, 0.0), (2.5, 2.5), (math.inf, LONGEST), (10**400, LONGEST)])
def test_a_wait_can_always_be_waited_for(answer: Any, wait: float, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a class of one's own answers."""
    found = wait_after(answering(answer), 1)
    assert (found, type(found)) == (wait, float)
    assert not caplog.records


@pytest.mark.parametrize("answer", [ZeroDivisionError("bug"), math.nan, -1, None, "soon"])
def test_a_back_off_without_an_answer_is_logged_and_replaced(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for ever, or not at all."""
    assert 0.8 <= wait_after(answering(answer), 1) <= 1.2
    assert 200 <= wait_after(answering(answer), 50) <= 300
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "Own has no delay for attempt 1, the default back-off stands in: " in caplog.text
