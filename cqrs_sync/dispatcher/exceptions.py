"""The async library's place for the errors of dispatching; they live in :mod:`cqrs_sync.errors`."""

from __future__ import annotations

from cqrs_sync.errors import (
    RequestHandlerDoesNotExist,
    RequestHandlerTypeError,
    SagaConcurrencyError,
    SagaDoesNotExist,
)

__all__ = ("RequestHandlerDoesNotExist", "RequestHandlerTypeError", "SagaConcurrencyError", "SagaDoesNotExist")
