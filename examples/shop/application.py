"""The composition root: the one place that knows how the shop is put together."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import punq
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from cqrs_sync.saga import SagaAdministration
from cqrs_sync.saga.bootstrap import bootstrap as bootstrap_sagas
from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork
from examples.shop.card_providers import Cardia, Nordpay
from examples.shop.database import open_database
from examples.shop.fulfilment import LEASE, bind_sagas
from examples.shop.handlers.imports import ImportOrdersHandler
from examples.shop.handlers.orders import PlaceOrderHandler
from examples.shop.handlers.queries import (
    FindOrdersToShipHandler,
    FindUnknownOrdersHandler,
    GetBestSellersHandler,
    GetCustomerOrdersHandler,
    GetOutboxStateHandler,
    GetPaymentTotalsHandler,
    GetTopCustomersHandler,
)
from examples.shop.ledger import Ledger
from examples.shop.messages import (
    AuditReadModel,
    FindOrdersToShip,
    FindUnknownOrders,
    GetBestSellers,
    GetCustomerOrders,
    GetOutboxState,
    GetPaymentTotals,
    GetTopCustomers,
    ImportOrders,
    PlaceOrder,
)
from examples.shop.outbox import open_outbox
from examples.shop.partners import Bank, Carrier, Warehouse
from examples.shop.payments import bind_payments
from examples.shop.read_model import AuditReadModelHandler, bind_read_model
from examples.shop.tables import SagaLog, Sagas


@dataclasses.dataclass(frozen=True)
class Shop:
    """What the outside talks to.

    Attributes:
        requests: takes commands and queries.
        streams: takes imports.
        sagas: bring orders to their customers.
        administration: looks after sagas.
        ledger: what the partners have done.
    """

    requests: cqrs.RequestMediator
    streams: cqrs.StreamingRequestMediator
    sagas: cqrs.SagaMediator
    administration: SagaAdministration
    ledger: Ledger


@contextmanager
def build(database: Path | str, make_bank: Callable[[Ledger], Bank] = Bank) -> Iterator[Shop]:
    """Open the shop over a database (a file or a URL), and close everything that it opened."""
    engine = open_database(database)
    sessions, ledger = sessionmaker(engine), Ledger(engine)
    unit_of_work = SqlAlchemyUnitOfWork(sessions, outbox=open_outbox)
    container = punq.Container()
    container.register(Nordpay)
    container.register(Cardia)
    container.register(Ledger, instance=ledger)
    container.register(Warehouse)
    container.register(Carrier)
    container.register(Bank, instance=make_bank(ledger))
    # Handlers send requests too. The mediator exists only after bootstrap has checked them, hence a factory.
    container.register(cqrs.RequestMediator, factory=lambda: requests)
    requests: cqrs.RequestMediator = bootstrap(
        di_container=container,
        commands_mapper=bind_commands,
        queries_mapper=bind_queries,
        domain_events_mapper=bind_read_model,
        max_concurrent_event_handlers=4,
        unit_of_work=unit_of_work,
    )
    streams = bootstrap_streaming(di_container=container, commands_mapper=bind_streams)
    storage = SqlAlchemySagaStorage(sessions, LEASE, execution_model=Sagas, log_model=SagaLog)
    # The same unit of work: what a step announces is stored with the record that it is done.
    sagas = bootstrap_sagas(container, sagas_mapper=bind_sagas, saga_storage=storage, unit_of_work=unit_of_work)
    try:
        with requests, streams, sagas:
            yield Shop(requests, streams, sagas, SagaAdministration(storage), ledger)
    finally:
        engine.dispose()


def bind_commands(commands: cqrs.RequestMap) -> None:
    """Bind what changes something."""
    commands.bind(PlaceOrder, PlaceOrderHandler)
    bind_payments(commands)


def bind_queries(queries: cqrs.RequestMap) -> None:
    """Bind what only reads."""
    queries.bind(GetCustomerOrders, GetCustomerOrdersHandler)
    queries.bind(GetBestSellers, GetBestSellersHandler)
    queries.bind(GetTopCustomers, GetTopCustomersHandler)
    queries.bind(GetPaymentTotals, GetPaymentTotalsHandler)
    queries.bind(AuditReadModel, AuditReadModelHandler)
    queries.bind(GetOutboxState, GetOutboxStateHandler)
    queries.bind(FindOrdersToShip, FindOrdersToShipHandler)
    queries.bind(FindUnknownOrders, FindUnknownOrdersHandler)


def bind_streams(commands: cqrs.RequestMap) -> None:
    """Bind what answers piece by piece."""
    commands.bind(ImportOrders, ImportOrdersHandler)
