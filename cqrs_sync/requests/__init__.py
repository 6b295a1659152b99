"""Requests, their handlers and the mediators that bring them together."""

from typing import TYPE_CHECKING

from cqrs_sync.lazy import lazy_names as _lazy_names
from cqrs_sync.requests.cor_request_handler import CORRequestHandler
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.requests.mermaid import CoRMermaid
from cqrs_sync.requests.request import DCRequest, IRequest
from cqrs_sync.requests.request_handler import RequestHandler, StreamingRequestHandler

if TYPE_CHECKING:
    from cqrs_sync.requests.pydantic_request import PydanticRequest as PydanticRequest
    from cqrs_sync.requests.pydantic_request import Request as Request
    from cqrs_sync.saga.map import SagaMap as SagaMap
else:  # the first model makes pydantic load most of itself
    __getattr__, __dir__ = _lazy_names(
        __name__,
        {
            **dict.fromkeys(("PydanticRequest", "Request"), "cqrs_sync.requests.pydantic_request"),
            "SagaMap": "cqrs_sync.saga.map",
        },
    )

__all__ = (
    "CORRequestHandler",
    "CoRMermaid",
    "DCRequest",
    "IRequest",
    "PydanticRequest",
    "Request",
    "RequestHandler",
    "RequestHandlerFallback",
    "RequestMap",
    "SagaMap",
    "StreamingRequestHandler",
)
