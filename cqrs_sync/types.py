"""The type variables that requests, responses and handlers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from cqrs_sync.events.event import IEvent
    from cqrs_sync.requests.request import IRequest

ReqT = TypeVar("ReqT", bound="IRequest[Any]", contravariant=True)
"""The request a handler takes."""

ResT = TypeVar("ResT", covariant=True, default=Any)
"""What a request is answered with; ``Any`` where a request does not say (``class Ping(Request)``)."""

EventT = TypeVar("EventT", bound="IEvent", contravariant=True)
"""The event a handler takes."""

__all__ = ("EventT", "ReqT", "ResT")
