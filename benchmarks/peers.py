# ruff: noqa: ARG001, ARG002  (handlers that do nothing need no arguments)
"""The other libraries, each with the same command that does nothing, written as its users write it.

Every request is a bare class of the library's own kind, so that none pays for another's validation, and is built
beforehand.
"""

# Without `from __future__ import annotations`: mediatr, buz, pymediate and di read the annotations as they stand.
import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.timing import Run, awaited, statement

Loop: TypeAlias = asyncio.AbstractEventLoop
Build: TypeAlias = Callable[[Loop], dict[str, Run]]

IN_LOOP = "python-cqrs in its running loop"
PER_CALL = "python-cqrs, loop.run_until_complete per call"
RUN = "python-cqrs, asyncio.run per call"
AT_WARNING = ", logger at WARNING"
MEDIATR = "mediatr"
BUZ = "buz, query bus"
PYMEDIATE = "pymediate.sync"


@dataclass
class Peers:
    """Those that take part, and those that do not.

    Attributes:
        runs: what is timed, by name.
        missing: why a peer is not among them, by name.
    """

    runs: dict[str, Run] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@contextmanager
def gather(builders: Mapping[str, Build], *, wanted: bool) -> Iterator[Peers]:
    """Set up the peers that are wanted and installed; the loop they run in ends with the block."""
    peers = Peers()
    loop = asyncio.new_event_loop()
    try:
        for name, build in builders.items():
            try:
                peers.runs |= build(loop) if wanted else {}
            except ImportError:
                peers.missing[name] = "not installed"
            else:
                peers.missing |= {} if wanted else {name: "left out"}
        yield peers
    finally:
        loop.close()


def _pymediate(_: Loop) -> dict[str, Run]:
    from pymediate.sync import Mediator, Request, RequestHandler, Services

    class Ping(Request[None]):
        pass

    class PingHandler(RequestHandler[Ping]):
        def __call__(self, request: Ping) -> None:
            return None

    mediator = Mediator(services=Services(PingHandler()))
    return {PYMEDIATE: statement("mediator.send(request)", mediator=mediator, request=Ping())}


def _buz(_: Loop) -> dict[str, Run]:
    from buz.locator.sync import InstanceLocator
    from buz.query import Query, QueryResponse
    from buz.query.synchronous import BaseQueryHandler
    from buz.query.synchronous.self_process import SelfProcessQueryBus

    class Ping(Query):
        pass

    class PingHandler(BaseQueryHandler[Ping, QueryResponse]):
        def handle(self, query: Ping) -> QueryResponse:
            return answer

    answer = QueryResponse(None)
    locator: InstanceLocator[Any, Any] = InstanceLocator()
    locator.register(PingHandler())
    return {BUZ: statement("bus.handle(request)", bus=SelfProcessQueryBus(locator), request=Ping())}


def _mediatr(_: Loop) -> dict[str, Run]:
    from mediatr import Mediator

    class Ping:
        pass

    @Mediator.handler
    class PingHandler:
        def handle(self, request: Ping) -> None:
            return None

    return {MEDIATR: statement("mediator.send(request)", mediator=Mediator(), request=Ping())}


def _python_cqrs(loop: Loop) -> dict[str, Run]:
    import cqrs
    import di
    from cqrs.bootstrap.requests import bootstrap

    class Ping(cqrs.IRequest[None]):
        def to_dict(self) -> dict[str, Any]:
            return {}

        @classmethod
        def from_dict(cls, **kwargs: Any) -> "Ping":
            return cls(**kwargs)

    class PingHandler(cqrs.RequestHandler[Ping, None]):
        async def handle(self, request: Ping) -> None:
            return None

    mediator = bootstrap(di_container=di.Container(), commands_mapper=lambda m: m.bind(Ping, PingHandler))
    send, request = mediator.send, Ping()
    return _at_both_levels(
        {
            IN_LOOP: awaited(loop, send, request),
            PER_CALL: statement("run(send(request))", run=loop.run_until_complete, send=send, request=request),
            RUN: statement("run(send(request))", run=asyncio.run, send=send, request=request),
        }
    )


async def _do_nothing(event: Any) -> None:
    return None


async def _sleep(event: Any) -> None:
    await asyncio.sleep(0.01)


def _python_cqrs_events(loop: Loop) -> dict[str, Run]:
    return _at_both_levels(
        {
            "python-cqrs, one by one": awaited(loop, *_python_cqrs_emitting(10, _do_nothing)),
            "python-cqrs, 4 at a time": awaited(loop, *_python_cqrs_emitting(10, _do_nothing, at_once=4)),
        }
    )


def _python_cqrs_sleeping(loop: Loop) -> dict[str, Run]:
    return {"python-cqrs, asyncio.sleep": awaited(loop, *_python_cqrs_emitting(100, _sleep, at_once=16))}


def _python_cqrs_emitting(
    count: int, react: Callable[[Any], Awaitable[None]], at_once: int = 1
) -> tuple[Callable[[Any], Awaitable[Any]], Any]:
    """``send`` and a command whose handler emits so many events."""
    import cqrs
    import di
    from cqrs.bootstrap.requests import bootstrap

    class Happened(cqrs.DomainEvent):
        pass

    class Do(cqrs.IRequest[None]):
        def to_dict(self) -> dict[str, Any]:
            return {}

        @classmethod
        def from_dict(cls, **kwargs: Any) -> "Do":
            return cls(**kwargs)

    happened = [Happened() for _ in range(count)]

    class DoHandler(cqrs.RequestHandler[Do, None]):
        events = happened

        async def handle(self, request: Do) -> None:
            return None

    class HappenedHandler(cqrs.EventHandler[Happened]):
        async def handle(self, event: Happened) -> None:
            await react(event)

    mediator = bootstrap(
        di_container=di.Container(),
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=lambda m: m.bind(Happened, HappenedHandler),
        max_concurrent_event_handlers=at_once,
        concurrent_event_handle_enable=at_once > 1,
    )
    return mediator.send, Do()


def _at_both_levels(runs: dict[str, Run]) -> dict[str, Run]:
    """Each run with the library's logger as importing it leaves it (at DEBUG), and at WARNING."""
    logger = logging.getLogger("cqrs")

    def quiet(run: Run) -> Run:
        def timed(number: int) -> float:
            level = logger.level
            logger.setLevel(logging.WARNING)
            try:
                return run(number)
            finally:
                logger.setLevel(level)

        return timed

    return {
        label: timed for name, run in runs.items() for label, timed in ((name, run), (name + AT_WARNING, quiet(run)))
    }


SENDING: dict[str, Build] = {PYMEDIATE: _pymediate, BUZ: _buz, MEDIATR: _mediatr, "python-cqrs": _python_cqrs}
EMITTING: dict[str, Build] = {"python-cqrs": _python_cqrs_events}
SLEEPING: dict[str, Build] = {"python-cqrs": _python_cqrs_sleeping}
