"""Chain of responsibility: handlers that answer a request or pass it on (Gamma et al., *Design Patterns*)."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from cqrs_sync.events.emits_events import EmitsEvents, events_of
from cqrs_sync.events.event import IEvent
from cqrs_sync.types import ReqT, ResT

_H = TypeVar("_H", bound="CORRequestHandler[Any, Any]")


class CORRequestHandler(EmitsEvents, abc.ABC, Generic[ReqT, ResT]):
    """Answers a request, or passes it on with ``return self.next(request)``.

    Bind the chain as a list: ``map.bind(Pay, [PayByCard, PayByInvoice, Refuse])``. The mediator builds new handlers
    and links them for each call; the events of every handler that ran are taken, in the order of the chain.
    """

    _next_handler: CORRequestHandler[ReqT, ResT] | None = None
    _passed_on = False

    def set_next(self, handler: _H) -> _H:
        """Link the next handler and return it; called by the mediator. The first link stays."""
        if self._next_handler is None:
            self._next_handler = handler
        return handler

    def next(self, request: ReqT) -> ResT | None:
        """Pass the request to the next handler and return its answer; None at the end of the chain."""
        if self._next_handler is None:
            return None
        response = self._next_handler.handle(request)
        self._passed_on = True  # only now: a handler that fails leaves no events, even where its error is caught
        return response

    def chain_events(self) -> list[IEvent]:
        """The events of this handler and of those behind it that succeeded, in the order of the chain."""
        collected: list[IEvent] = []
        handler: CORRequestHandler[Any, Any] | None = self
        while handler is not None:
            collected.extend(events_of(handler))
            handler = handler._next_handler if handler._passed_on else None
        return collected

    @abc.abstractmethod
    def handle(self, request: ReqT, /) -> ResT | None:
        """Answer the request, or ``return self.next(request)``."""


def build_chain(handlers: Sequence[_H]) -> _H:
    """Link handlers in the order of the list and return the first."""
    for handler, following in itertools.pairwise(handlers):
        handler.set_next(following)
    return handlers[0]
