"""One command through the mediator that does nothing: what ``send`` costs."""

from __future__ import annotations

import timeit
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

import cqrs_sync as cqrs
from benchmarks import peers
from benchmarks.messages import InjectedPingHandler, Pass, Ping, PingHandler, container, ping_mediator
from benchmarks.report import Row, Section, compared, duration, missing
from benchmarks.timing import Effort, Run, Times, race, statement
from cqrs_sync.requests.bootstrap import bootstrap

DIRECT = "direct call of a handler's method"
FLOOR = "floor: look up the class, construct, call"
FLOOR_CALLED = "the floor as a function"
OURS = "send, 0 dependencies"
OURS_3 = "send, 3 dependencies"
FURTHER_MIDDLEWARES = (1, 2, 3)


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    yield _sending(effort)
    yield _many_handlers(effort)


def _sending(effort: Effort) -> Section:
    with peers.gather(peers.SENDING, wanted=effort.peers) as others:
        times = race(_own_runs() | others.runs, rounds=effort.rounds, slice=effort.slice)
        rows = [*_own_rows(times), *_peer_rows(times, others.runs), *missing(others.missing)]
    return Section(
        "send: a command that does nothing",
        rows,
        "Ours as bootstrap() returns it: logging middleware in place, its level off, handlers built by punq. "
        "x floor: times the floor. x ours: times our send with 0 dependencies.",
    )


def _own_runs() -> dict[str, Run]:
    handlers = {Ping: PingHandler}

    def floor(request: Ping) -> None:
        return handlers[type(request)]().handle(request)

    runs = {
        DIRECT: statement("handler.handle(request)", handler=PingHandler(), request=Ping()),
        FLOOR: statement("handlers[type(request)]().handle(request)", handlers=handlers, request=Ping()),
        FLOOR_CALLED: statement("floor(request)", floor=floor, request=Ping()),
        OURS: _send(ping_mediator()),
        OURS_3: _send(ping_mediator(InjectedPingHandler)),
    }
    return runs | {
        _with_middlewares(number): _send(ping_mediator(middlewares=[Pass() for _ in range(number)]))
        for number in FURTHER_MIDDLEWARES
    }


def _send(mediator: cqrs.RequestMediator, request: Any = None) -> Run:
    return statement("mediator.send(request)", mediator=mediator, request=request or Ping())


def _own_rows(times: Times) -> Iterator[Row]:
    for name, at_most in ((DIRECT, None), (FLOOR, None), (FLOOR_CALLED, None), (OURS, 6), (OURS_3, 10)):
        yield compared(times, name, FLOOR, "x floor", at_most=at_most)
    fewer = OURS
    for number in FURTHER_MIDDLEWARES:
        name = _with_middlewares(number)
        yield Row(
            name=f"a further middleware, number {number}",
            seconds=times.added(name, fewer),
            figure=times.added_ratio(name, fewer, FLOOR),
            unit="x floor",
            at_most=1.5,
        )
        fewer = name


def _with_middlewares(number: int) -> str:
    return f"{OURS}, {number} further middlewares"


def _peer_rows(times: Times, names: Iterable[str]) -> Iterator[Row]:
    at_least = {peers.IN_LOOP: 20, peers.MEDIATR: 1}
    for name in names:
        yield compared(times, name, OURS, "x ours", at_least=at_least.get(name))


def _many_handlers(effort: Effort) -> Section:
    """Whether ``send`` stays flat, and what binding costs."""
    few, many = _bindings(10), _bindings(effort.many)
    mediator_of_few, mediator_of_many = _bound(few), _bound(many)
    one_of_few, one_of_many = f"send, one of {len(few):,} handlers", f"send, one of {len(many):,} handlers"
    each, floor = f"send, each of {len(many):,} in turn", f"floor, each of {len(many):,} in turn"
    times = race(
        {
            one_of_few: _send(mediator_of_few, next(iter(few))()),
            one_of_many: _send(mediator_of_many, next(iter(many))()),
            each: statement("send(next(requests))", send=mediator_of_many.send, requests=_in_turn(many)),
            floor: statement(
                "request = next(requests); handlers[type(request)]().handle(request)",
                handlers=many,
                requests=_in_turn(many),
            ),
        },
        rounds=effort.rounds,
        slice=effort.slice * 4,
    )
    binding = race({"bootstrap": timeit.Timer(lambda: _bound(many)).timeit}, rounds=min(effort.rounds, 5), slice=0)
    return Section(
        "many handlers",
        [
            Row(name=one_of_few, seconds=times.median(one_of_few)),
            compared(times, one_of_many, one_of_few, "x few", at_most=1.25),
            Row(name=floor, seconds=times.median(floor)),
            compared(times, each, floor, "x that floor"),
            Row(
                name=f"bootstrap of {len(many):,} handlers",
                seconds=binding.median("bootstrap"),
                note=f"{duration(binding.median('bootstrap') / len(many))} per handler",
            ),
        ],
    )


def _bindings(count: int) -> dict[type[Ping], type[PingHandler]]:
    return {
        type(f"Ping{number}", (Ping,), {}): type(f"Ping{number}Handler", (PingHandler,), {}) for number in range(count)
    }


def _bound(bindings: Mapping[type[Ping], type[PingHandler]]) -> cqrs.RequestMediator:
    def bind(request_map: cqrs.RequestMap) -> None:
        for request, handler in bindings.items():
            request_map.bind(request, handler)

    return bootstrap(di_container=container(), commands_mapper=bind)


def _in_turn(requests: Iterable[type[Ping]]) -> Iterator[Ping]:
    return cycle([request() for request in requests])
