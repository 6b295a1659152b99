"""What the dispatchers of requests have in common: how each request class is handled is decided once."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import RequestHandlerDoesNotExist
from cqrs_sync.invocation import Stage
from cqrs_sync.middlewares.base import MiddlewareChain
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.requests.request import IRequest
from cqrs_sync.scoping import Scoping
from cqrs_sync.unit_of_work.protocol import UnitOfWork

CallT = TypeVar("CallT")


class MapDispatcher(abc.ABC, Generic[CallT]):
    """Finds what handles a request by its exact class. Thread-safe.

    Args:
        request_map: the bindings; complete before the first request.
        container: what builds the handlers.
        middleware_chain: what runs around each call.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        unit_of_work: what handlers write in.
        stage: takes a handler's events inside its unit of work and returns those left to emit.

    Attributes:
        calls: what handles each request class, made on first use.
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
        self.scoping = Scoping(container, scope_strategy, unit_of_work)
        self.calls: dict[type, CallT] = _Calls(self._find)
        self._request_map = request_map
        self._layers = (middleware_chain or MiddlewareChain()).compile()
        self._stage = stage

    def compile(self) -> None:
        """Make all bound handlers ready; refuses those that cannot be built or cannot be served here.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        for request_type in self._request_map:
            self.calls[request_type]

    def _find(self, request_type: type[IRequest[Any]]) -> CallT:
        try:
            binding = self._request_map[request_type]
        except KeyError:
            raise RequestHandlerDoesNotExist(request_type) from None
        return self._compile(binding)

    @abc.abstractmethod
    def _compile(self, binding: Any) -> CallT:
        """Return what handles a binding: a handler class, a chain, or a fallback."""


class _Calls(dict[type, CallT]):
    """Makes each entry once; afterwards looking it up is a plain dictionary access."""

    def __init__(self, find: Callable[[type], CallT]) -> None:
        self._find = find

    def __missing__(self, request_type: type) -> CallT:
        call = self[request_type] = self._find(request_type)
        return call
