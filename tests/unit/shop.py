"""A small vocabulary of messages and handlers that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import punq

import cqrs_sync as cqrs
from cqrs_sync.mediator import RequestMediator
from cqrs_sync.requests.bootstrap import bootstrap


class Do(cqrs.Request[str]):
    """A command whose handler emits the events it is given."""

    emits: list[Any] = []
    answer: str = "done"


class Happened(cqrs.DomainEvent):
    """A domain event with a number and the follow-ups its handlers emit."""

    number: int = 0
    then: list[Any] = []


class Told(cqrs.NotificationEvent[int]):
    """A notification event."""

    event_name: str = "told"
    payload: int = 0


class DoHandler(cqrs.RequestHandler[Do]):
    """Answers with ``answer`` and emits ``emits``."""

    def __init__(self) -> None:
        self._events: list[cqrs.IEvent] = []

    @property
    def events(self) -> list[cqrs.IEvent]:
        return self._events

    def handle(self, request: Do) -> str:
        self._events.extend(request.emits)
        return request.answer


def event_handler(function: Callable[[Any], object], event_type: type[Any] = Happened, name: str = "Reacts") -> Any:
    """A new event-handler class that calls a function and emits the event's follow-ups."""

    def handle(self: Any, event: Any) -> None:
        function(event)
        self.events = list(getattr(event, "then", ()))

    return type(name, (cqrs.EventHandler,), {"handle": handle})


def mediator_for(*handlers: Any, event_type: type[Any] = Happened, **options: Any) -> RequestMediator:
    """A mediator that answers ``Do`` and has these handlers for one event class."""

    def events(event_map: cqrs.EventMap) -> None:
        for handler in handlers:
            event_map.bind(event_type, handler)

    return bootstrap(
        options.pop("di_container", None) or punq.Container(),
        commands_mapper=lambda m: m.bind(Do, DoHandler),
        domain_events_mapper=events,
        **options,
    )
