"""``self.events = [...]``, which the documentation shows, type-checks without an annotation."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import cqrs_sync as cqrs


class Renamed(cqrs.DomainEvent):
    name: str


class Rename(cqrs.Request[str]):
    name: str


class Assigns(cqrs.RequestHandler[Rename]):
    def handle(self, request: Rename) -> str:
        self.events = [Renamed(name=request.name)]
        return request.name


def test_assigned_events_are_there() -> None:
    """The class says ``events`` may be assigned."""
    handler = Assigns()
    handler.handle(Rename(name="Ada"))
    assert list(handler.events) == [Renamed(name="Ada")]
