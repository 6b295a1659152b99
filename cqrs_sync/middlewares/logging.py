"""Logs each call at DEBUG."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from cqrs_sync.middlewares.base import HandleType

logger = logging.getLogger(__name__)


class LoggingMiddleware:
    """Logs a request before and after it is handled, at DEBUG, with both as dictionaries in ``extra``.

    ``bootstrap`` puts it innermost unless one is given. While the level is off it costs one check. An error is not
    logged here: it reaches the caller.
    """

    def __call__(self, request: Any, handle: HandleType) -> Any:
        """Log around ``handle``."""
        if not logger.isEnabledFor(logging.DEBUG):
            return handle(request)
        name = type(request).__name__
        logger.debug("handling %s", name, extra={"cqrs_request": _fields(request)})
        response = handle(request)
        if isinstance(response, Iterator):
            logger.debug("streaming %s", name)
        else:
            logger.debug("handled %s", name, extra={"cqrs_response": _fields(response)})
        return response


def _fields(message: Any) -> Any:
    """The message as a dictionary; what cannot be made one must not fail the call that is logged."""
    try:
        return message.to_dict()
    except Exception:
        return message
