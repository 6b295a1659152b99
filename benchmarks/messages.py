# ruff: noqa: ARG002  (handlers that do nothing need no arguments)
"""The messages and handlers of the measurements: they do nothing, so that what is left is what the library does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import punq

import cqrs_sync as cqrs
from cqrs_sync.middlewares.base import HandleType
from cqrs_sync.requests.bootstrap import bootstrap


class Ping(cqrs.IRequest[None]):
    """A bare request."""

    def to_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_dict(cls, **kwargs: Any) -> Self:
        return cls(**kwargs)


class PingHandler(cqrs.RequestHandler[Ping]):
    """A handler without dependencies."""

    def handle(self, request: Ping) -> None:
        return None


class Orders:
    """A dependency."""


class Customers:
    """Another one."""


class Prices:
    """A third one."""


class InjectedPingHandler(cqrs.RequestHandler[Ping]):
    """A handler with three dependencies."""

    def __init__(self, orders: Orders, customers: Customers, prices: Prices) -> None:
        self._orders = orders
        self._customers = customers
        self._prices = prices

    def handle(self, request: Ping) -> None:
        return None


class Pass:
    """A middleware that only calls on."""

    def __call__(self, request: Any, handle: HandleType) -> Any:
        return handle(request)


class Happened(cqrs.DomainEvent):
    """A trivial domain event."""


class HappenedHandler(cqrs.EventHandler[Happened]):
    """A handler that does nothing."""

    def handle(self, event: Happened) -> None:
        return None


def ping_mediator(
    handler: type[cqrs.RequestHandler[Ping, Any]] = PingHandler, middlewares: Iterable[cqrs.Middleware] = ()
) -> cqrs.RequestMediator:
    """A mediator as ``bootstrap`` returns it by default, over punq; the handler is not registered there."""
    return bootstrap(
        di_container=container(),
        middlewares=middlewares,
        commands_mapper=lambda m: m.bind(Ping, handler),
    )


def container() -> punq.Container:
    """A container in which the three dependencies are registered, as transients."""
    registered = punq.Container()
    for dependency in (Orders, Customers, Prices):
        registered.register(dependency)
    return registered


def emitting_mediator(
    count: int, react: type[cqrs.EventHandler[Happened]] = HappenedHandler, at_once: int = 1
) -> cqrs.RequestMediator:
    """A mediator for a ``Ping`` whose handler emits so many events."""
    happened = [Happened() for _ in range(count)]

    class EmittingHandler(cqrs.RequestHandler[Ping]):
        events = tuple(happened)

        def handle(self, request: Ping) -> None:
            return None

    return bootstrap(
        di_container=container(),
        commands_mapper=lambda m: m.bind(Ping, EmittingHandler),
        domain_events_mapper=lambda m: m.bind(Happened, react),
        max_concurrent_event_handlers=at_once,
    )
