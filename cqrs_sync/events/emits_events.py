"""What request handlers and event handlers have in common: they leave events behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cqrs_sync.events.event import IEvent


class EmitsEvents:
    """Has ``events``: what the handler wants handled or published once it has succeeded.

    Override it as a property, or assign a list to ``self.events``; it is read once, after ``handle``.
    """

    if TYPE_CHECKING:

        @property
        def events(self) -> Sequence[IEvent]:
            """The events of this call, in the order in which they are to be handled."""
    else:
        # A plain attribute, so that a handler may also say self.events = [...] and reading it costs no call.
        events: Sequence[IEvent] = ()
