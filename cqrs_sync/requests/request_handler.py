"""What users subclass to answer a request: once, or as a stream."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Generic

from cqrs_sync.events.emits_events import EmitsEvents, events_of
from cqrs_sync.types import ReqT, ResT


class RequestHandler(EmitsEvents, abc.ABC, Generic[ReqT, ResT]):
    """Answers one request: a command's handler changes state, a query's handler reads it.

    The mediator builds a new handler for each call (from the container, with its dependencies), so its attributes
    belong to one call and one thread. ``RequestHandler[GetUser]`` may name the request alone where the request
    names its result (``class GetUser(Request[User])``).

    Example:
        >>> import cqrs_sync as cqrs
        >>> class Rename(cqrs.Request[str]):
        ...     name: str
        >>> class Renamed(cqrs.DomainEvent):
        ...     name: str
        >>> class RenameHandler(RequestHandler[Rename]):
        ...     def __init__(self) -> None:
        ...         self._events: list[cqrs.Event] = []
        ...     @property
        ...     def events(self) -> list[cqrs.Event]:
        ...         return self._events
        ...     def handle(self, request: Rename) -> str:
        ...         self._events.append(Renamed(name=request.name))
        ...         return request.name.title()
    """

    @abc.abstractmethod
    def handle(self, request: ReqT, /) -> ResT:
        """Answer the request.

        Runs once per ``send``; again, on a new handler, where a middleware repeats the call. With a unit of work
        its session is committed after ``handle`` returned and rolled back when it raises.
        """


class StreamingRequestHandler(EmitsEvents, abc.ABC, Generic[ReqT, ResT]):
    """Answers one request piece by piece: ``handle`` is a generator.

    What was put into ``events`` before a ``yield`` is handled before the consumer gets that piece; what was put
    there after the last ``yield`` is handled when the generator ends. With a unit of work each piece is committed
    before its events are handled. A consumer that stops early closes the generator: ``finally`` blocks run at once.
    """

    @abc.abstractmethod
    def handle(self, request: ReqT, /) -> Iterator[ResT]:
        """Yield the pieces of the answer."""

    def clear_events(self) -> None:
        """Forget the events that were taken over; called after each piece.

        Empties ``events`` where that is a list. A handler that hands out copies need not override this: events that
        are still listed are not taken again.
        """
        events = events_of(self)
        if isinstance(events, list):
            events.clear()
