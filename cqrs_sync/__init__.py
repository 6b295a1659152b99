"""cqrs_sync: CQRS, events and sagas for blocking Python services.

The names below are the whole surface for most applications; ``import cqrs_sync as cqrs`` gives the async library's
names. Importing has no side effect: no thread, no file, no log level, and no optional dependency is loaded.
"""

import logging as _logging
from typing import TYPE_CHECKING

from cqrs_sync.circuit_breaker import ICircuitBreaker
from cqrs_sync.compressors import Compressor, ZlibCompressor
from cqrs_sync.container.protocol import Container, SupportsScope
from cqrs_sync.container.scope import (
    ScopeAwareContainer,
    ScopeStrategy,
    bind_scope,
    current_container,
    enter_scope,
)
from cqrs_sync.deserializers import (
    DeserializeJsonError,
    DeserializeProtobufError,
    JsonDeserializer,
    ProtobufDeserializer,
)
from cqrs_sync.errors import CQRSError
from cqrs_sync.events.event import (
    DCDomainEvent,
    DCEvent,
    DCNotificationEvent,
    IDomainEvent,
    IEvent,
    INotificationEvent,
)
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.events.event_handler import EventHandler
from cqrs_sync.events.event_processor import EventProcessor
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.events.map import EventMap
from cqrs_sync.lazy import lazy_names as _lazy_names
from cqrs_sync.mediator import EventMediator, RequestMediator, StreamingRequestMediator
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.middlewares import LoggingMiddleware, Middleware, MiddlewareChain
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import EventStatus, OutboxedEvent
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.producer import EventProducer
from cqrs_sync.requests.cor_request_handler import CORRequestHandler
from cqrs_sync.requests.fallback import RequestHandlerFallback
from cqrs_sync.requests.map import RequestMap
from cqrs_sync.requests.mermaid import CoRMermaid
from cqrs_sync.requests.request import DCRequest, IRequest
from cqrs_sync.requests.request_handler import RequestHandler, StreamingRequestHandler
from cqrs_sync.response import DCResponse, IResponse
from cqrs_sync.serializers import EventCodec, EventSerializer, JsonEventSerializer, ProtobufEventSerializer

_logging.getLogger("cqrs_sync").addHandler(_logging.NullHandler())

if TYPE_CHECKING:
    from cqrs_sync.container.di import DIContainer as DIContainer
    from cqrs_sync.container.punq import PunqContainer as PunqContainer
    from cqrs_sync.events.pydantic_event import DomainEvent as DomainEvent
    from cqrs_sync.events.pydantic_event import Event as Event
    from cqrs_sync.events.pydantic_event import NotificationEvent as NotificationEvent
    from cqrs_sync.events.pydantic_event import PydanticDomainEvent as PydanticDomainEvent
    from cqrs_sync.events.pydantic_event import PydanticEvent as PydanticEvent
    from cqrs_sync.events.pydantic_event import PydanticNotificationEvent as PydanticNotificationEvent
    from cqrs_sync.outbox.relay import OutboxRelay as OutboxRelay
    from cqrs_sync.outbox.relay import RelayHealth as RelayHealth
    from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository as SqlAlchemyOutboxedEventRepository
    from cqrs_sync.outbox.tables import rebind_outbox_model as rebind_outbox_model
    from cqrs_sync.pydantic_response import PydanticResponse as PydanticResponse
    from cqrs_sync.pydantic_response import Response as Response
    from cqrs_sync.requests.pydantic_request import PydanticRequest as PydanticRequest
    from cqrs_sync.requests.pydantic_request import Request as Request
    from cqrs_sync.saga.map import SagaMap as SagaMap
    from cqrs_sync.saga.mediator import SagaMediator as SagaMediator
    from cqrs_sync.saga.mermaid import SagaMermaid as SagaMermaid
    from cqrs_sync.saga.models import ContextT as ContextT
    from cqrs_sync.saga.recovery_worker import RecoveryHealth as RecoveryHealth
    from cqrs_sync.saga.recovery_worker import SagaRecoveryWorker as SagaRecoveryWorker
    from cqrs_sync.saga.saga import Saga as Saga
    from cqrs_sync.saga.step import Resp as Resp
    from cqrs_sync.saga.step import SagaStepHandler as SagaStepHandler
    from cqrs_sync.saga.step import SagaStepResult as SagaStepResult
    from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork as SqlAlchemyUnitOfWork
else:
    # The first model makes pydantic load most of itself, and SQLAlchemy and punq are no small things either: they are
    # loaded when they are used.
    __getattr__, __dir__ = _lazy_names(
        __name__,
        {
            "DIContainer": "cqrs_sync.container.di",
            "PunqContainer": "cqrs_sync.container.punq",
            **dict.fromkeys(("PydanticRequest", "Request"), "cqrs_sync.requests.pydantic_request"),
            **dict.fromkeys(("PydanticResponse", "Response"), "cqrs_sync.pydantic_response"),
            **dict.fromkeys(("PydanticEvent", "Event"), "cqrs_sync.events.pydantic_event"),
            **dict.fromkeys(("PydanticDomainEvent", "DomainEvent"), "cqrs_sync.events.pydantic_event"),
            **dict.fromkeys(("PydanticNotificationEvent", "NotificationEvent"), "cqrs_sync.events.pydantic_event"),
            **dict.fromkeys(("OutboxRelay", "RelayHealth"), "cqrs_sync.outbox.relay"),
            "SqlAlchemyOutboxedEventRepository": "cqrs_sync.outbox.sqlalchemy",
            "SqlAlchemyUnitOfWork": "cqrs_sync.unit_of_work.sqlalchemy",
            "rebind_outbox_model": "cqrs_sync.outbox.tables",
            "ContextT": "cqrs_sync.saga.models",
            **dict.fromkeys(("Resp", "SagaStepHandler", "SagaStepResult"), "cqrs_sync.saga.step"),
            "Saga": "cqrs_sync.saga.saga",
            **dict.fromkeys(("RecoveryHealth", "SagaRecoveryWorker"), "cqrs_sync.saga.recovery_worker"),
            "SagaMap": "cqrs_sync.saga.map",
            "SagaMediator": "cqrs_sync.saga.mediator",
            "SagaMermaid": "cqrs_sync.saga.mermaid",
        },
    )

__all__ = (
    # mediators
    "EventMediator",
    "RequestMediator",
    "StreamingRequestMediator",
    # requests and responses
    "DCRequest",
    "DCResponse",
    "IRequest",
    "IResponse",
    "PydanticRequest",
    "PydanticResponse",
    "Request",
    "Response",
    # events
    "DCDomainEvent",
    "DCEvent",
    "DCNotificationEvent",
    "DomainEvent",
    "Event",
    "IDomainEvent",
    "IEvent",
    "INotificationEvent",
    "NotificationEvent",
    "PydanticDomainEvent",
    "PydanticEvent",
    "PydanticNotificationEvent",
    # handlers and their bindings
    "CORRequestHandler",
    "CoRMermaid",
    "EventHandler",
    "EventHandlerFallback",
    "EventMap",
    "ICircuitBreaker",
    "RequestHandler",
    "RequestHandlerFallback",
    "RequestMap",
    "StreamingRequestHandler",
    # around a call
    "EventEmitter",
    "EventProcessor",
    "LoggingMiddleware",
    "Middleware",
    "MiddlewareChain",
    # the outbox
    "EventProducer",
    "EventStatus",
    "OutboxRelay",
    "OutboxedEvent",
    "OutboxedEventMap",
    "OutboxedEventRepository",
    "RelayHealth",
    "SqlAlchemyOutboxedEventRepository",
    "rebind_outbox_model",
    # sagas
    "ContextT",
    "RecoveryHealth",
    "Resp",
    "Saga",
    "SagaMap",
    "SagaMediator",
    "SagaMermaid",
    "SagaRecoveryWorker",
    "SagaStepHandler",
    "SagaStepResult",
    # containers, scopes and units of work
    "Container",
    "DIContainer",
    "PunqContainer",
    "ScopeAwareContainer",
    "ScopeStrategy",
    "SupportsScope",
    "bind_scope",
    "current_container",
    "enter_scope",
    # messages on the wire
    "Compressor",
    "DeserializeJsonError",
    "DeserializeProtobufError",
    "EventCodec",
    "EventSerializer",
    "JsonDeserializer",
    "JsonEventSerializer",
    "Message",
    "MessageBroker",
    "ProtobufDeserializer",
    "ProtobufEventSerializer",
    "ZlibCompressor",
    # errors; the tree is cqrs_sync.errors
    "CQRSError",
)
