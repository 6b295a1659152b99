"""Which handler answers which request."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from cqrs_sync.bindings import Bindings, check_handles, check_message_type
from cqrs_sync.errors import DuplicateHandler, RequestHandlerTypeError, type_name
from cqrs_sync.lazy import lazy_names
from cqrs_sync.requests.cor_request_handler import CORRequestHandler
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.request import IRequest
from cqrs_sync.requests.request_handler import RequestHandler, StreamingRequestHandler
from cqrs_sync.types import ReqT

HandlerType: TypeAlias = (
    type[RequestHandler[Any, Any]]
    | type[StreamingRequestHandler[Any, Any]]
    | Sequence[type[CORRequestHandler[Any, Any]]]
    | RequestHandlerFallback
)


class RequestMap(Bindings[type[IRequest[Any]], HandlerType]):
    """Binds each request class to its one handler, a chain of handlers, or a handler with a fallback.

    Lookup is by exact class: a derived request needs a binding of its own.
    """

    def bind(
        self,
        request_type: type[ReqT],
        handler_type: type[RequestHandler[ReqT, Any]]
        | type[StreamingRequestHandler[ReqT, Any]]
        | Sequence[type[CORRequestHandler[ReqT, Any]]]
        | RequestHandlerFallback,
    ) -> None:
        """Bind a request class.

        Raises:
            DuplicateHandler: the request has a handler already.
            RequestHandlerTypeError: the handler is of a wrong kind or for another request.
        """
        self[request_type] = handler_type

    def __setitem__(self, request_type: type[IRequest[Any]], handler_type: HandlerType) -> None:
        check_message_type(request_type, IRequest, RequestHandlerTypeError)
        if request_type in self:
            raise DuplicateHandler(
                request_type,
                handler_type,
                f"it is bound to {_names(self[request_type])}; a request has one handler "
                "(a list makes a chain of responsibility)",
            )
        for handler, kind in _members(handler_type):
            check_handles(handler, kind, request_type, RequestHandlerTypeError)
        super().__setitem__(request_type, handler_type)


def _members(handler_type: Any) -> list[tuple[type, type]]:
    """The handler classes of a binding, each with the kind that names its request; refuses all other objects."""
    if isinstance(handler_type, RequestHandlerFallback):
        return [*_members(handler_type.primary), *_members(handler_type.fallback)]
    if isinstance(handler_type, Sequence) and not isinstance(handler_type, str):
        return _chain_members(handler_type)
    if inspect.isclass(handler_type):
        for kind in (RequestHandler, StreamingRequestHandler):
            if issubclass(handler_type, kind):
                return [(handler_type, kind)]
        if issubclass(handler_type, CORRequestHandler):
            raise RequestHandlerTypeError(
                f"{type_name(handler_type)} is part of a chain: bind the chain as a list, [{type_name(handler_type)}]",
                handler_type,
            )
    raise RequestHandlerTypeError(
        f"{type_name(handler_type)} must be a RequestHandler or StreamingRequestHandler class, "
        "a list of CORRequestHandler classes or a RequestHandlerFallback",
        handler_type,
    )


def _chain_members(chain: Sequence[Any]) -> list[tuple[type, type]]:
    if not chain:
        raise RequestHandlerTypeError("a chain of responsibility needs at least one handler", chain)
    for handler in chain:
        if not (inspect.isclass(handler) and issubclass(handler, CORRequestHandler)):
            raise RequestHandlerTypeError(
                f"COR handler must be type CORRequestHandler, and {type_name(handler)} is not", handler
            )
    if len(set(chain)) != len(chain):
        raise RequestHandlerTypeError("a chain of responsibility holds each handler class once", chain)
    return [(handler, CORRequestHandler) for handler in chain]


def _names(handler_type: HandlerType) -> str:
    return ", ".join(type_name(handler) for handler, _ in _members(handler_type))


if TYPE_CHECKING:
    from cqrs_sync.saga.map import SagaMap as SagaMap
else:  # the async library has it here
    __getattr__, __dir__ = lazy_names(__name__, {"SagaMap": "cqrs_sync.saga.map"})
