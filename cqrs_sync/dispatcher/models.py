"""What dispatchers return."""

from __future__ import annotations

from typing import Any, NamedTuple

from cqrs_sync.invocation import Events


class RequestDispatchResult(NamedTuple):
    """A response (or one piece of a stream) and the events that go with it.

    Attributes:
        response: what the handler answered.
        events: what it left to emit.
        has_response: False for the events that a stream left behind its last piece.
    """

    response: Any = None
    events: Events = ()
    has_response: bool = True
