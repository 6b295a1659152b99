"""A second handler for a request, for when the first fails."""

from __future__ import annotations

import dataclasses
from typing import Any

from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.errors import RequestHandlerTypeError
from cqrs_sync.fallback import check_fallback, exception_classes
from cqrs_sync.requests.request_handler import RequestHandler, StreamingRequestHandler


@dataclasses.dataclass(frozen=True)
class RequestHandlerFallback:
    """Binds a primary handler and the one that answers when it fails or its circuit is open.

    Only the events of the handler that answered count. With a unit of work, what the primary wrote is rolled back
    before the fallback runs. A stream that fails after some pieces goes on with the fallback's from *its* start.

    Attributes:
        primary: the handler class that is tried first, behind the circuit breaker.
        fallback: the handler class that answers instead; not behind the breaker.
        failure_exceptions: which errors of the primary call for the fallback; empty means every ``Exception``.
        circuit_breaker: stops calling a primary that keeps failing; None calls it each time.

    Raises:
        ConfigurationError: ``failure_exceptions`` holds something else.
        RequestHandlerTypeError: the two are not both request handlers or both streaming ones, or differ in what
            they handle.
    """

    primary: type[RequestHandler[Any, Any]] | type[StreamingRequestHandler[Any, Any]]
    fallback: type[RequestHandler[Any, Any]] | type[StreamingRequestHandler[Any, Any]]
    failure_exceptions: tuple[type[Exception], ...] = ()
    circuit_breaker: ICircuitBreaker | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failure_exceptions", exception_classes(self.failure_exceptions))
        check_fallback(
            "RequestHandlerFallback",
            self.primary,
            self.fallback,
            (RequestHandler, StreamingRequestHandler),
            RequestHandlerTypeError,
            arguments=2,
        )
