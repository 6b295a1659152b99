import punq

import cqrs_sync as cqrs
from cqrs_sync.requests import bootstrap


class CreateOrder(cqrs.Request):
    order_id: str


class OrderLineAdded(cqrs.DomainEvent):
    order_id: str
    sku: str


class OrderCreated(cqrs.Response):
    pass


class CreateOrderHandler(cqrs.RequestHandler[CreateOrder, OrderCreated]):
    def __init__(self) -> None:
        self._events: list[cqrs.Event] = []

    @property
    def events(self) -> list[cqrs.Event]:
        return self._events

    def handle(self, request: CreateOrder) -> OrderCreated:
        self._events.append(
            OrderLineAdded(order_id=request.order_id, sku="sku-1"),
        )
        return OrderCreated()


class OnOrderLineAdded(cqrs.EventHandler[OrderLineAdded]):
    def handle(self, event: OrderLineAdded) -> None:
        return  # e.g. update projection; if process dies, effect may be lost (at-most-once)


def events_mapper(m: cqrs.EventMap) -> None:
    m.bind(OrderLineAdded, OnOrderLineAdded)


mediator = bootstrap.bootstrap(
    di_container=punq.Container(),
    commands_mapper=lambda m: m.bind(CreateOrder, CreateOrderHandler),
    domain_events_mapper=events_mapper,
    max_concurrent_event_handlers=4,  # cap parallel domain handlers
)
