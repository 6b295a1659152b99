"""A command leaves an event behind; its handlers run beside each other on a pool of four threads."""

import logging
import sys
import threading

import punq

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap

logger = logging.getLogger("orders")
both_are_here = threading.Barrier(2, timeout=10)  # nobody gets past it alone: the two handlers do run at once


class OrderPlaced(cqrs.DomainEvent):
    order_id: str


class PlaceOrder(cqrs.Request[None]):
    order_id: str


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder]):
    def __init__(self) -> None:
        self.events: list[cqrs.DomainEvent] = []

    def handle(self, request: PlaceOrder) -> None:
        self.events.append(OrderPlaced(order_id=request.order_id))


class SendMail(cqrs.EventHandler[OrderPlaced]):
    def handle(self, event: OrderPlaced) -> None:
        both_are_here.wait()
        logger.info("mail about %s", event.order_id)


class PackGoods(cqrs.EventHandler[OrderPlaced]):
    def handle(self, event: OrderPlaced) -> None:
        both_are_here.wait()
        logger.info("packing %s", event.order_id)


def bind_events(events: cqrs.EventMap) -> None:
    events.bind(OrderPlaced, SendMail)
    events.bind(OrderPlaced, PackGoods)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(threadName)s: %(message)s")
    with bootstrap(
        di_container=punq.Container(),
        commands_mapper=lambda commands: commands.bind(PlaceOrder, PlaceOrderHandler),
        domain_events_mapper=bind_events,
        max_concurrent_event_handlers=4,
    ) as mediator:
        mediator.send(PlaceOrder(order_id="o-1"))
        logger.info("done")
