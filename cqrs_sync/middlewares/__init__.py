"""What runs around every call of a mediator."""

from cqrs_sync.middlewares.base import HandleType, Middleware, MiddlewareChain
from cqrs_sync.middlewares.logging import LoggingMiddleware

__all__ = ("HandleType", "LoggingMiddleware", "Middleware", "MiddlewareChain")
