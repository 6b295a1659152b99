"""Dispatches requests to handlers, chains and fallbacks."""

from __future__ import annotations

import inspect
from typing import Any

from cqrs_sync.dispatcher.base import MapDispatcher
from cqrs_sync.dispatcher.models import RequestDispatchResult
from cqrs_sync.errors import RequestHandlerTypeError, type_name
from cqrs_sync.invocation import (
    Invoke,
    invoke_chain,
    invoke_handler_through,
    invoke_with_fallback,
    through_middlewares,
)
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.request import IRequest
from cqrs_sync.requests.request_handler import StreamingRequestHandler


class RequestDispatcher(MapDispatcher[Invoke]):
    """Calls the handler bound for a request, with the middlewares around it. Thread-safe.

    The arguments are those of :class:`~cqrs_sync.dispatcher.base.MapDispatcher`. A mediator calls past
    :meth:`dispatch` unless a derived class overrides it.
    """

    def dispatch(self, request: IRequest[Any]) -> RequestDispatchResult:
        """Handle a request and return the response with the events that are left to emit.

        Raises:
            RequestHandlerDoesNotExist: nothing is bound for exactly this class.
        """
        return RequestDispatchResult(*self.calls[type(request)](request))

    def _compile(self, binding: Any) -> Invoke:
        if isinstance(binding, RequestHandlerFallback):
            return invoke_with_fallback(
                self.scoping, binding, self._compile(binding.primary), self._compile(binding.fallback)
            )
        if isinstance(binding, type):
            _refuse_generator(binding)
            return invoke_handler_through(self._layers, self.scoping, binding, self._stage)
        return through_middlewares(self._layers, invoke_chain(self.scoping, binding, self._stage))


def _refuse_generator(handler: type[Any]) -> None:
    if issubclass(handler, StreamingRequestHandler) or inspect.isgeneratorfunction(handler.handle):
        raise RequestHandlerTypeError(
            f"{type_name(handler)} streams its answer: bind it with bootstrap_streaming and call mediator.stream()",
            handler,
        )
