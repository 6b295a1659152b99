"""Times contestants against each other on a machine where other loads come and go.

Each round gives every contestant one short slice, in a new order, so a load that comes and goes hits all of them. The
figures are medians over the rounds, and a ratio is the median of the ratios *within* each round: the digits move with
the machine, the ratios much less.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import timeit
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks.progress import say

Run: TypeAlias = Callable[[int], float]
"""Does one thing so many times and returns how many seconds that took."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: how many slices each contestant gets.
        slice: seconds per slice; a contestant whose one call takes longer runs it once, and every one where it is 0.
        slow_rounds: the rounds of what takes milliseconds.
        many: how many handlers "many handlers" are.
        processes: how many interpreters are started per import that is measured.
        drains: the rounds of what empties a table or a topic.
        events: how many events are in it.
        backlogs: how many events are pending, from few to many.
        samples: how many events are timed one by one, and how many of those where each waits for a poll.
        relays: how many relay processes share a backlog, from one on.
        sagas: how many sagas each thread runs per turn.
        stale: how many sagas were left by a process that died.
        servers: whether servers that take long to start are started, where there is an imitation.
        peers: whether the other libraries take part.
    """

    rounds: int = 200
    slice: float = 0.002
    slow_rounds: int = 31
    many: int = 10_000
    processes: int = 15
    drains: int = 11
    events: int = 10_000
    backlogs: tuple[int, int, int] = (1_000, 100_000, 1_000_000)
    samples: tuple[int, int] = (300, 60)
    relays: tuple[int, ...] = (1, 2, 4)
    sagas: int = 20
    stale: int = 10_000
    servers: bool = True
    peers: bool = True

    @classmethod
    def quick(cls) -> Effort:
        """Just enough to see that everything runs; the figures mean nothing."""
        return cls(
            rounds=1,
            slice=0.00001,
            slow_rounds=1,
            many=20,
            processes=1,
            drains=1,
            events=100,
            backlogs=(10, 20, 30),
            samples=(3, 3),
            relays=(1,),
            sagas=2,
            stale=10,
            servers=False,
        )


@dataclass(frozen=True)
class Times:
    """What a race found: for each contestant the seconds per call, one figure per round."""

    rounds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Seconds per call."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as long as another one it takes."""
        return statistics.median(a / b for a, b in zip(self.rounds[name], self.rounds[to], strict=True))

    def added(self, name: str, over: str) -> float:
        """How many seconds per call it takes longer than another one."""
        return statistics.median(a - b for a, b in zip(self.rounds[name], self.rounds[over], strict=True))

    def added_ratio(self, name: str, over: str, to: str) -> float:
        """What it takes longer than another one, in times a third one."""
        triples = zip(self.rounds[name], self.rounds[over], self.rounds[to], strict=True)
        return statistics.median((a - b) / c for a, b, c in triples)


def race(contestants: Mapping[str, Run], *, rounds: int, slice: float, said: str = "") -> Times:  # noqa: A002
    """Time the contestants in turns, without garbage collections inside a slice; where ``said``, say how far it is."""
    order = random.Random(1)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with _no_collections():
        calls = {name: _calls_per_slice(run, slice) for name, run in contestants.items()}
        for number in range(rounds):
            if said:
                say(f"{said}: round {number + 1} of {rounds}")
            for name in order.sample(list(contestants), len(contestants)):
                times[name].append(contestants[name](calls[name]) / calls[name])
            gc.collect()
    return Times(times)


def statement(code: str, **names: Any) -> Run:
    """A run of a line of code, written out in the loop as ``timeit`` does: there is no call to pay but its own."""
    return timeit.Timer(code, globals=names).timeit


def awaited(loop: asyncio.AbstractEventLoop, call: Callable[[Any], Awaitable[Any]], argument: Any) -> Run:
    """A run of a coroutine function inside a running loop; starting the loop is not counted."""

    async def time_inside(number: int) -> float:
        started = perf_counter()
        for _ in range(number):
            await call(argument)
        return perf_counter() - started

    return lambda number: loop.run_until_complete(time_inside(number))


def _calls_per_slice(run: Run, seconds: float) -> int:
    """Warm up, and find how many calls fill a slice."""
    run(1)
    if not seconds:
        return 1
    calls = 1
    # The best of three: a slow first call would leave too few calls in each slice, and each slice would start cold.
    while (taken := min(run(calls) for _ in range(3))) < seconds / 4:
        calls *= 4
    return max(1, round(calls * seconds / taken))


@contextmanager
def _no_collections() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # what exists already need not be looked at between the rounds
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
