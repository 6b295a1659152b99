"""Finds the handler of a message and calls it."""

from cqrs_sync.dispatcher.event import EventDispatcher
from cqrs_sync.dispatcher.exceptions import (
    RequestHandlerDoesNotExist,
    RequestHandlerTypeError,
    SagaConcurrencyError,
    SagaDoesNotExist,
)
from cqrs_sync.dispatcher.models import RequestDispatchResult
from cqrs_sync.dispatcher.request import RequestDispatcher
from cqrs_sync.dispatcher.streaming import StreamingRequestDispatcher

__all__ = (
    "EventDispatcher",
    "RequestDispatchResult",
    "RequestDispatcher",
    "RequestHandlerDoesNotExist",
    "RequestHandlerTypeError",
    "SagaConcurrencyError",
    "SagaDoesNotExist",
    "StreamingRequestDispatcher",
)
