"""A second handler for an event, for when the first fails."""

from __future__ import annotations

import dataclasses
from typing import Any

from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import EventHandlerTypeError
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.fallback import check_fallback, exception_classes


@dataclasses.dataclass(frozen=True)
class EventHandlerFallback:
    """Binds a primary event handler and the one that runs when it fails or its circuit is open.

    Attributes:
        primary: the handler class that is tried first, behind the circuit breaker.
        fallback: the handler class that runs instead; not behind the breaker.
        failure_exceptions: which errors of the primary call for the fallback; empty means every ``Exception``.
        circuit_breaker: stops calling a primary that keeps failing; None calls it each time.

    Raises:
        ConfigurationError: ``failure_exceptions`` holds something else.
        EventHandlerTypeError: one is no event handler, or the two differ in the event they handle.
    """

    primary: type[EventHandler[Any]]
    fallback: type[EventHandler[Any]]
    failure_exceptions: tuple[type[Exception], ...] = ()
    circuit_breaker: ICircuitBreaker | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failure_exceptions", exception_classes(self.failure_exceptions))
        check_fallback(
            "EventHandlerFallback",
            self.primary,
            self.fallback,
            (EventHandler,),
            EventHandlerTypeError,
            arguments=1,
        )
