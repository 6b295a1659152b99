# ruff: noqa: ARG002  (handlers that do nothing need no arguments)
"""The domain events of one command: in the caller's thread and through the pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import Any

import cqrs_sync as cqrs
from benchmarks import peers
from benchmarks.messages import Happened, HappenedHandler, Ping, container, emitting_mediator
from benchmarks.report import Row, Section, compared, duration, missing
from benchmarks.timing import Effort, Run, Times, race, statement

TEN = 10

SLEEPERS, AT_ONCE, NAP = 100, 16, 0.01
"""How many handlers block, how many of them at once, and for how many seconds each."""

BARE = "ten calls of one handler's method"
INLINE = "send with 10 events"
EMISSION = "the emission alone"
WITHOUT = "send without events"

BARE_POOL = "bare ThreadPoolExecutor(4): submit all, result of all"
POOL = "send with 10 events"


class SleepingHandler(cqrs.EventHandler[Happened]):
    """A handler that blocks."""

    def handle(self, event: Happened) -> None:
        sleep(NAP)


def measure(effort: Effort) -> Iterator[Section]:
    """The sections about events in the caller's thread."""
    happened = [Happened() for _ in range(TEN)]
    events = cqrs.EventMap()
    events.bind(Happened, HappenedHandler)
    emitter = cqrs.EventProcessor(events, cqrs.EventEmitter(events, container()))
    own: dict[str, Run] = {
        BARE: statement("for event in events: handler.handle(event)", handler=HappenedHandler(), events=happened),
        WITHOUT: _sending(emitting_mediator(0)),
        INLINE: _sending(emitting_mediator(TEN)),
        EMISSION: statement("emit(events)", emit=emitter.emit_events, events=happened),
    }
    with peers.gather(peers.EMITTING, wanted=effort.peers) as others:
        times = race(own | others.runs, rounds=effort.rounds, slice=effort.slice)
        rows = [
            Row(name=BARE, seconds=times.median(BARE)),
            Row(name=WITHOUT, seconds=times.median(WITHOUT)),
            compared(times, INLINE, BARE, "x bare", at_most=25),
            compared(times, EMISSION, BARE, "x bare"),
            *(compared(times, name, INLINE, "x ours") for name in others.runs),
            *missing(others.missing),
        ]
    yield Section("10 trivial domain events, in the caller's thread", rows)


def measure_pool(effort: Effort) -> Iterator[Section]:
    """The sections about events in the pool."""
    yield _trivial(effort)
    yield _sleeping(effort)


def _trivial(effort: Effort) -> Section:
    happened = [Happened() for _ in range(TEN)]
    with emitting_mediator(TEN, at_once=4) as mediator, ThreadPoolExecutor(4) as pool:
        times = race(
            {BARE_POOL: _submitting(pool, HappenedHandler().handle, happened), POOL: _sending(mediator)},
            rounds=effort.rounds,
            slice=effort.slice * 4,
        )
    return Section(
        "10 trivial domain events, through the pool of 4",
        [Row(name=BARE_POOL, seconds=times.median(BARE_POOL)), compared(times, POOL, BARE_POOL, "x bare", at_most=1.5)],
    )


def _sleeping(effort: Effort) -> Section:
    happened = [Happened() for _ in range(SLEEPERS)]
    turns = math.ceil(SLEEPERS / AT_ONCE)
    naps, bare = f"{turns} naps of {duration(NAP)} one after the other", f"bare ThreadPoolExecutor({AT_ONCE})"
    ours = f"send with {SLEEPERS} events"
    with (
        emitting_mediator(SLEEPERS, SleepingHandler, AT_ONCE) as mediator,
        ThreadPoolExecutor(AT_ONCE) as pool,
        peers.gather(peers.SLEEPING, wanted=effort.peers) as others,
    ):
        own: dict[str, Run] = {
            naps: statement("for _ in range(turns): sleep(nap)", turns=turns, sleep=sleep, nap=NAP),
            bare: _submitting(pool, SleepingHandler().handle, happened),
            ours: _sending(mediator),
        }
        times = race(own | others.runs, rounds=effort.slow_rounds, slice=0)
        names = [naps, bare, ours, *others.runs]
        rows = [_against_ideal(times, name, turns * NAP, at_most=1.05 if name is ours else None) for name in names]
    return Section(
        f"{SLEEPERS} blocking handlers of {duration(NAP)}, {AT_ONCE} at once: ideally {duration(turns * NAP)}",
        [*rows, *missing(others.missing)],
    )


def _against_ideal(times: Times, name: str, ideal: float, at_most: float | None) -> Row:
    seconds = times.median(name)
    return Row(name=name, seconds=seconds, figure=seconds / ideal, unit="x ideal", at_most=at_most)


def _sending(mediator: cqrs.RequestMediator) -> Run:
    return statement("mediator.send(request)", mediator=mediator, request=Ping())


def _submitting(pool: ThreadPoolExecutor, handle: Callable[[Any], None], events: Sequence[Any]) -> Run:
    return statement(
        "for future in [submit(handle, event) for event in events]: future.result()",
        submit=pool.submit,
        handle=handle,
        events=events,
    )
