# ruff: noqa: B007
import dataclasses
import uuid

import punq

import cqrs_sync as cqrs
from cqrs_sync.response import Response
from cqrs_sync.saga import bootstrap
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult
from cqrs_sync.saga.storage.memory import MemorySagaStorage


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    items: list[str]
    total_amount: float
    reservation_id: str | None = None  # shared mutable context between steps


class ReserveInventoryStep(SagaStepHandler[OrderContext, Response]):
    def __init__(self, inventory) -> None:  # inject a port (interface) via DI
        self._inventory = inventory

    def act(self, context: OrderContext) -> SagaStepResult:
        context.reservation_id = self._inventory.reserve(
            context.order_id,
            context.items,
        )
        return self._generate_step_result(Response())

    def compensate(self, context: OrderContext) -> None:
        if context.reservation_id:
            self._inventory.release(context.reservation_id)  # undo act()


class OrderSaga(Saga[OrderContext]):
    steps = [ReserveInventoryStep]


def saga_mapper(m: cqrs.SagaMap) -> None:
    m.bind(OrderContext, OrderSaga)


mediator = bootstrap.bootstrap(
    di_container=punq.Container(),  # register `inventory` for ReserveInventoryStep
    sagas_mapper=saga_mapper,
    saga_storage=MemorySagaStorage(),  # or SQLAlchemy storage in prod
)


def run_saga() -> None:
    ctx = OrderContext(order_id="o1", items=["a", "b"], total_amount=10.0)
    # mediator.stream returns an iterator of step results
    for step in mediator.stream(context=ctx, saga_id=uuid.uuid4()):
        pass  # forward to logs, metrics, or SSE
