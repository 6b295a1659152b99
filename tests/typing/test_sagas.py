"""What type checkers make of sagas; run by mypy and pyright, and by pytest for what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, assert_type

import punq

import cqrs_sync as cqrs
from cqrs_sync.saga import bootstrap
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.models import SagaContext, SagaOutcome
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.recovery import recover_saga
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga, SagaTransaction
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult, TransactionalSagaStep
from cqrs_sync.saga.storage.memory import MemorySagaStorage


@dataclasses.dataclass
class OrderContext(SagaContext):
    """A context."""

    order_id: str


class Reserve(SagaStepHandler[OrderContext, str]):
    """A step with a retry of its own."""

    retry = Retry(attempts=2, delay=0)
    step_name = "reserve"
    kind = "compensatable"

    def act(self, context: OrderContext) -> SagaStepResult[OrderContext, str]:
        assert_type(self.idempotency_key, str)
        result = self._generate_step_result(context.order_id)
        assert_type(result, SagaStepResult[OrderContext, str])
        assert_type(result.response, str)
        return result

    def compensate(self, context: OrderContext) -> None:
        """Undo it."""


class Bare(SagaStepHandler[OrderContext, Any]):
    """As the article annotates it."""

    def act(self, context: OrderContext) -> SagaStepResult:
        return self._generate_step_result(None)

    def compensate(self, context: OrderContext) -> None:
        """Undo it."""


class Charge(TransactionalSagaStep[OrderContext, None]):
    """A transactional step."""

    def act(self, context: OrderContext, session: Any) -> SagaStepResult[OrderContext, None]:
        return self._generate_step_result(None)

    def compensate(self, context: OrderContext, session: Any) -> None:
        """Undo it."""


class OrderSaga(Saga[OrderContext]):
    """Steps of all kinds."""

    steps = [Reserve, Fallback(Bare, Reserve), Parallel(Bare, Charge)]


def test_sagas_keep_the_type_of_their_context() -> None:
    """From the context that is given to the outcome."""

    def mapper(m: cqrs.SagaMap) -> None:
        m.bind(OrderContext, OrderSaga)

    storage = MemorySagaStorage()
    with bootstrap.bootstrap(punq.Container(), sagas_mapper=mapper, saga_storage=storage) as mediator:
        assert_type(mediator, cqrs.SagaMediator)
        stream = mediator.stream(OrderContext("o1"))
        assert_type(stream, Generator[SagaStepResult[Any, Any], None, None])
        assert len(list(stream)) == 4
        outcome = mediator.run(OrderContext("o1"))
        assert_type(outcome, SagaOutcome[OrderContext])
        assert_type(outcome.context.order_id, str)
    transaction = OrderSaga.transaction(OrderContext("o1"), punq.Container(), storage)
    assert_type(transaction, SagaTransaction[OrderContext])
    recovered = recover_saga(OrderSaga, outcome.saga_id, container=punq.Container(), storage=storage)
    assert recovered.completed
