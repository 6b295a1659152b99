"""Finds the handler of a message and calls it."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "EventDispatcher": "cqrs_sync.dispatcher.event",
        "RequestDispatchResult": "cqrs_sync.dispatcher.models",
        "RequestDispatcher": "cqrs_sync.dispatcher.request",
        "RequestHandlerDoesNotExist": "cqrs_sync.dispatcher.exceptions",
        "RequestHandlerTypeError": "cqrs_sync.dispatcher.exceptions",
        "SagaConcurrencyError": "cqrs_sync.dispatcher.exceptions",
        "SagaDoesNotExist": "cqrs_sync.dispatcher.exceptions",
        "StreamingRequestDispatcher": "cqrs_sync.dispatcher.streaming",
    },
)
