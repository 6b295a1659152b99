"""Middlewares: what runs around every call of a mediator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from cqrs_sync.checks import refuse_async
from cqrs_sync.errors import ConfigurationError, type_name

HandleType: TypeAlias = Callable[[Any], Any]
"""What a middleware calls to go on: takes the request, returns the response."""

Layer: TypeAlias = Callable[[Any, HandleType], Any]
"""A middleware's call, or several of them as one: takes the request and what to call to go on."""

Layers: TypeAlias = Sequence[Layer]
"""The calls of a chain's middlewares, outermost first."""


class Middleware(Protocol):
    """Runs around each ``send`` (once per stream, and once per event of an ``EventMediator``).

    One instance serves all threads. It calls ``handle(request)`` to go on and returns a response: once, or not at
    all to answer by itself, or again to repeat the call: on a new handler, in a new unit of work (under
    ``ScopeStrategy.SEND``, and in a stream, in the same one), and the events of every call that succeeds count. For a
    stream ``handle`` returns the iterator of the pieces. An error that it raises after ``handle`` returned comes too
    late to undo the work (but under ``SEND``), and no event is emitted.
    """

    def __call__(self, request: Any, handle: HandleType, /) -> Any:
        """Return the response to ``request``."""
        ...


class MiddlewareChain:
    """The middlewares of a mediator, the first one outermost.

    Compiled once, when the mediator is built: add middlewares before that.
    """

    def __init__(self, middlewares: Iterable[Middleware] = ()) -> None:
        self._middlewares = [_checked(middleware) for middleware in middlewares]
        self._compiled = False

    def set(self, chain: list[Middleware]) -> None:
        """Replace all middlewares."""
        self._check_open()
        self._middlewares = [_checked(middleware) for middleware in chain]

    def add(self, middleware: Middleware) -> None:
        """Add a middleware inside of those that are there."""
        self._check_open()
        self._middlewares.append(_checked(middleware))

    def wrap(self, handle: HandleType) -> HandleType:
        """Return ``handle`` with all middlewares around it."""
        chain = compose([middleware.__call__ for middleware in self._middlewares])
        return (lambda request: chain(request, handle)) if chain else handle

    def compile(self) -> Layers:
        """Return the middlewares' calls, outermost first. Later changes of the chain are refused."""
        self._compiled = True
        return [middleware.__call__ for middleware in self._middlewares]

    def _check_open(self) -> None:
        if self._compiled:
            raise ConfigurationError(
                "this MiddlewareChain serves a mediator already; add middlewares before building it"
            )


def _checked(middleware: Any) -> Middleware:
    if not callable(middleware) or isinstance(middleware, type):
        raise ConfigurationError(
            f"{type_name(middleware)} is no middleware; pass a function or an object that is called with (request, "
            "handle), and not its class"
        )
    refuse_async(middleware, "middleware")
    checked: Middleware = middleware
    return checked


def compose(layers: Layers) -> Layer | None:
    """Return middlewares nested into one, or None where there is none."""
    if not layers:
        return None
    first, rest = layers[0], compose(layers[1:])
    if rest is None:
        return first
    inner = rest
    return lambda request, handle: first(request, lambda request: inner(request, handle))
