"""Dispatches requests to handlers, chains and fallbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.dispatcher.models import RequestDispatchResult
from cqrs_sync.errors import RequestHandlerDoesNotExist, RequestHandlerTypeError, type_name
from cqrs_sync.invocation import (
    Invoke,
    Stage,
    invoke_chain,
    invoke_handler_through,
    invoke_with_fallback,
    through_middlewares,
)
from cqrs_sync.middlewares.base import MiddlewareChain
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.requests.request import IRequest
from cqrs_sync.requests.request_handler import StreamingRequestHandler
from cqrs_sync.scoping import Scoping
from cqrs_sync.unit_of_work.protocol import UnitOfWork


class _Invokes(dict[type, Invoke]):
    """Makes each entry once; afterwards looking it up is a plain dictionary access."""

    def __init__(self, find: Callable[[type], Invoke]) -> None:
        self._find = find

    def __missing__(self, request_type: type) -> Invoke:
        invoke = self[request_type] = self._find(request_type)
        return invoke


class RequestDispatcher:
    """Calls the handler bound for a request, with the middlewares around it. Thread-safe.

    Args:
        request_map: the bindings.
        container: what builds the handlers.
        middleware_chain: what runs around each call.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        unit_of_work: what handlers write in.
        stage: takes a handler's events inside its unit of work and returns those left to emit.
    """

    def __init__(
        self,
        request_map: RequestMap,
        container: Any,
        middleware_chain: MiddlewareChain | None = None,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        unit_of_work: UnitOfWork | None = None,
        stage: Stage = tuple,
    ) -> None:
        self._request_map = request_map
        self.scoping = Scoping(container, scope_strategy, unit_of_work)
        self._layers = (middleware_chain or MiddlewareChain()).compile()
        self._stage = stage
        self.invokes: dict[type, Invoke] = _Invokes(self._find)
        """What handles each request class, found on first use; a mediator may call it without :meth:`dispatch`."""

    def compile(self) -> None:
        """Make all bound handlers ready; refuses those that cannot be built or cannot be served here.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        for request_type in self._request_map:
            self.invokes[request_type]

    def dispatch(self, request: IRequest[Any]) -> RequestDispatchResult:
        """Handle a request and return the response with the events that are left to emit.

        Raises:
            RequestHandlerDoesNotExist: nothing is bound for exactly this class.
        """
        return RequestDispatchResult(*self.invokes[type(request)](request))

    def _find(self, request_type: type[IRequest[Any]]) -> Invoke:
        try:
            binding = self._request_map[request_type]
        except KeyError:
            raise RequestHandlerDoesNotExist(request_type) from None
        return self._compile(binding)

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
