"""The ways to leave events behind that the documentation shows type-check."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterator, Sequence

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap


class Renamed(cqrs.DomainEvent):
    name: str


class Rename(cqrs.Request[str]):
    name: str


class AsListProperty(cqrs.RequestHandler[Rename]):
    def __init__(self) -> None:
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, request: Rename) -> str:
        self._events.append(Renamed(name=request.name))
        return request.name


class AsSequenceProperty(cqrs.RequestHandler[Rename]):
    @property
    def events(self) -> Sequence[cqrs.IEvent]:
        return (Renamed(name="Ada"),)

    def handle(self, request: Rename) -> str:
        return request.name


class AsAnnotatedAttribute(cqrs.RequestHandler[Rename]):
    def __init__(self) -> None:
        self.events: list[cqrs.Event] = []

    def handle(self, request: Rename) -> str:
        self.events.append(Renamed(name=request.name))
        return request.name


class PropertyOfAChain(cqrs.CORRequestHandler[Rename, str]):
    @property
    def events(self) -> list[cqrs.Event]:
        return []

    def handle(self, request: Rename) -> str | None:
        return self.next(request)


class PropertyOfAStream(cqrs.StreamingRequestHandler[Rename, str]):
    @property
    def events(self) -> list[cqrs.DomainEvent]:
        return []

    def handle(self, request: Rename) -> Iterator[str]:
        yield request.name


class PropertyOfAnEventHandler(cqrs.EventHandler[Renamed]):
    @property
    def events(self) -> tuple[cqrs.NotificationEvent[str], ...]:
        return ()

    def handle(self, event: Renamed) -> None:
        return None


def test_each_way_to_leave_events_is_handled() -> None:
    """Properties and annotated attributes."""
    for handler in (AsListProperty, AsSequenceProperty, AsAnnotatedAttribute):
        seen: list[str] = []

        class OnRenamed(cqrs.EventHandler[Renamed]):
            def handle(self, event: Renamed) -> None:
                seen.append(event.name)  # noqa: B023 (sent below, in the same turn)

        def requests(m: cqrs.RequestMap) -> None:
            m.bind(Rename, handler)  # noqa: B023 (called at once)

        def events(m: cqrs.EventMap) -> None:
            m.bind(Renamed, OnRenamed)

        mediator = bootstrap(punq.Container(), commands_mapper=requests, domain_events_mapper=events)
        assert mediator.send(Rename(name="Ada")) == "Ada"
        assert seen == ["Ada"]
