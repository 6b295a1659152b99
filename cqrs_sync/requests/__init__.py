"""Requests, their handlers and the mediators that bring them together."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "CORRequestHandler": "cqrs_sync.requests.cor_request_handler",
        "CoRMermaid": "cqrs_sync.requests.mermaid",
        "DCRequest": "cqrs_sync.requests.request",
        "IRequest": "cqrs_sync.requests.request",
        "PydanticRequest": "cqrs_sync.requests.request",
        "Request": "cqrs_sync.requests.request",
        "RequestHandler": "cqrs_sync.requests.request_handler",
        "RequestHandlerFallback": "cqrs_sync.requests.fallback",
        "RequestMap": "cqrs_sync.requests.map",
        "SagaMap": "cqrs_sync.requests.map",
        "StreamingRequestHandler": "cqrs_sync.requests.request_handler",
    },
)
