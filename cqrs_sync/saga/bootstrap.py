"""Puts an application's sagas together: the composition root for :class:`SagaMediator`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from typing_extensions import Unpack

from cqrs_sync.backoff import Backoff
from cqrs_sync.composition import EventsMapper, Startup, filled, setup_event_emitter, start, with_logging
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.events.event_emitter import EventEmitter
from cqrs_sync.mediator import EventSettings
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.middlewares.base import Middleware, MiddlewareChain
from cqrs_sync.saga.map import SagaMap
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.protocol import SagaStorage
from cqrs_sync.serializers.protocol import EventSerializer

SagasMapper: TypeAlias = Callable[[SagaMap], None]


class SagaSettings(EventSettings, total=False):
    """How sagas are run; all optional. See :class:`~cqrs_sync.saga.mediator.SagaMediator`."""

    compensation_retry_count: int
    compensation_retry_delay: float
    compensation_retry_backoff: float
    recovery_backoff: Backoff | None
    max_parallel_steps: int


def bootstrap(
    di_container: Any,
    message_broker: MessageBroker | None = None,
    middlewares: Iterable[Middleware] | None = None,
    sagas_mapper: SagasMapper | None = None,
    domain_events_mapper: EventsMapper | None = None,
    on_startup: Startup | None = None,
    saga_storage: SagaStorage | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    *,
    serializer: EventSerializer | None = None,
    **settings: Unpack[SagaSettings],
) -> SagaMediator:
    """Return a mediator for sagas, with everything that is bound checked and ready.

    Args:
        di_container: what builds the steps; see :func:`cqrs_sync.requests.bootstrap.bootstrap`.
        message_broker: where notification events of steps go that no outbox takes.
        middlewares: what runs around each stream, the first one outermost.
        sagas_mapper: binds contexts to sagas.
        domain_events_mapper: binds events to handlers.
        on_startup: functions that are called first.
        saga_storage: where sagas are kept; in memory by default, where they end with the process.
        max_concurrent_event_handlers: how many event handlers run at once, over all sagas.
        concurrent_event_handle_enable: False is another way to say 1.
        scope_strategy: what a step shares with its event handlers.
        serializer: makes the bytes of notification events; JSON by default.
        settings: see :class:`SagaSettings` and :class:`~cqrs_sync.mediator.EventSettings`. With a ``unit_of_work`` over
            the storage's database, what a step writes in it, its notification events and the record that it is done
            are one transaction.

    Raises:
        ConfigurationError: something cannot work; the error names the class and the parameter.

    Example:
        >>> import dataclasses, punq
        >>> from cqrs_sync.saga.models import SagaContext
        >>> from cqrs_sync.saga.saga import Saga
        >>> from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult
        >>> @dataclasses.dataclass
        ... class OrderContext(SagaContext):
        ...     order_id: str
        >>> class Reserve(SagaStepHandler[OrderContext, str]):
        ...     def act(self, context: OrderContext) -> SagaStepResult[OrderContext, str]:
        ...         return self._generate_step_result(f"reserved for {context.order_id}")
        ...     def compensate(self, context: OrderContext) -> None: ...
        >>> class OrderSaga(Saga[OrderContext]):
        ...     steps = [Reserve]
        >>> mediator = bootstrap(punq.Container(), sagas_mapper=lambda m: m.bind(OrderContext, OrderSaga))
        >>> [result.response for result in mediator.stream(OrderContext(order_id="o1"))]
        ['reserved for o1']
        >>> mediator.close()
    """
    container = start(di_container, on_startup)
    emitter = setup_event_emitter(
        container,
        domain_events_mapper,
        message_broker,
        scope_strategy,
        serializer=serializer,
        unit_of_work=settings.get("unit_of_work"),
    )
    mediator = SagaMediator(
        filled(SagaMap(), sagas_mapper),
        container,
        saga_storage if saga_storage is not None else MemorySagaStorage(),
        emitter,
        with_logging(middlewares),
        None,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy=scope_strategy,
        **settings,
    )
    mediator.compile()
    return mediator


def setup_saga_mediator(
    event_emitter: EventEmitter,
    container: Any,
    middlewares: Iterable[Middleware],
    sagas_mapper: SagasMapper | None = None,
    saga_storage: SagaStorage | None = None,
    max_concurrent_event_handlers: int = 1,
    concurrent_event_handle_enable: bool | None = None,
    scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
    **settings: Unpack[SagaSettings],
) -> SagaMediator:
    """Return a mediator around an emitter that was set up before; adds no middleware and checks nothing yet."""
    return SagaMediator(
        filled(SagaMap(), sagas_mapper),
        container,
        saga_storage if saga_storage is not None else MemorySagaStorage(),
        event_emitter,
        MiddlewareChain(middlewares),
        None,
        max_concurrent_event_handlers,
        concurrent_event_handle_enable,
        scope_strategy=scope_strategy,
        **settings,
    )


__all__ = ("SagaSettings", "bootstrap", "setup_event_emitter", "setup_saga_mediator")
