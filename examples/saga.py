"""Orders in three steps: one is shipped, one is rolled back, and one outlives the process that has begun it."""

import dataclasses
import multiprocessing
import os
import tempfile
import time

import punq
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import sessionmaker

import cqrs_sync as cqrs
from cqrs_sync.saga.bootstrap import bootstrap
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage


@dataclasses.dataclass
class Order(SagaContext):
    order_id: str


class Reserve(cqrs.SagaStepHandler[Order, None]):  # a real one calls a service, and gives it self.idempotency_key
    def act(self, context: Order) -> cqrs.SagaStepResult[Order, None]:
        print(f"{context.order_id}: {type(self).__name__}", flush=True)
        return self._generate_step_result(None)

    def compensate(self, context: Order) -> None:
        print(f"{context.order_id}: undo {type(self).__name__}")


class Charge(Reserve): ...


class Ship(Reserve):
    def act(self, context: Order) -> cqrs.SagaStepResult[Order, None]:
        if context.order_id == "o-2":
            raise ValueError("no such address")
        if multiprocessing.parent_process():
            os._exit(1)  # as if killed: no warning, and nothing is cleaned up
        return super().act(context)


class OrderSaga(cqrs.Saga[Order]):
    steps = [Reserve, Charge, Ship]


def open_mediator(directory: str) -> cqrs.SagaMediator:
    engine = create_engine(f"sqlite:///{directory}/sagas.sqlite3", poolclass=NullPool)
    Base.metadata.create_all(engine)
    storage = SqlAlchemySagaStorage(sessionmaker(engine), lease=1.0)  # seconds until a dead process counts as dead
    return bootstrap(punq.Container(), sagas_mapper=lambda m: m.bind(Order, OrderSaga), saga_storage=storage)


def place_in_vain(directory: str) -> None:
    open_mediator(directory).run(Order("o-3"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, open_mediator(directory) as mediator:
        for order_id in ("o-1", "o-2"):
            print(f"{order_id} is {mediator.run(Order(order_id)).status}")
        child = multiprocessing.get_context("spawn").Process(target=place_in_vain, args=(directory,))
        child.start()
        child.join()
        print("the process of o-3 was killed, and this one goes on")
        while not cqrs.SagaRecoveryWorker(mediator).run_once():  # mostly a thread: with SagaRecoveryWorker(mediator):
            time.sleep(0.1)
