# ruff: noqa: ARG001, ARG002, RUF012  (steps that do nothing need no arguments; a saga's steps are a list)
"""The other libraries' sagas of three steps, written as their users write them."""

# Without `from __future__ import annotations`: di reads the annotations as they stand.
import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

from benchmarks import servers
from benchmarks.outbox import freshly
from benchmarks.timing import Effort, Run, awaited

Peer: TypeAlias = Callable[[], AbstractContextManager[Run]]

PYTHON_CQRS = "python-cqrs, logger at WARNING"
PYTHON_CQRS_AS_IMPORTED = "python-cqrs, logger at DEBUG, as importing it leaves it"
DBOS = "DBOS, logger at ERROR"


def gather(stack: ExitStack, peers: Mapping[str, Peer], effort: Effort) -> tuple[dict[str, Run], dict[str, str]]:
    """Set up the peers that are wanted and installed, until the stack is closed; and why others are missing."""
    if not effort.peers:
        return {}, dict.fromkeys(peers, "left out")
    runs: dict[str, Run] = {}
    reasons: dict[str, str] = {}
    for name, peer in peers.items():
        try:
            runs[name] = stack.enter_context(peer())
        except ImportError as error:
            reasons[name] = f"not installed: {error.name}"
    return runs, reasons


def stored(pool: ThreadPoolExecutor, threads: int, sagas: int) -> dict[str, Peer]:
    """Those that keep sagas in PostgreSQL: so many on each thread, or what a library has in place of threads."""
    name = PYTHON_CQRS if threads == 1 else f"{PYTHON_CQRS}, {threads} tasks in one loop"
    return {name: partial(_python_cqrs, threads, sagas), DBOS: partial(_dbos, pool, threads, sagas)}


@contextmanager
def _python_cqrs_in_memory(level: int) -> Iterator[Run]:
    """A run of its sagas in memory: seconds per saga."""
    import cqrs  # noqa: F401
    from cqrs.saga.storage.memory import MemorySagaStorage

    logger = logging.getLogger("cqrs")
    with _quiet_loop() as loop:
        saga, order = _python_cqrs_saga(MemorySagaStorage())
        run = awaited(loop, lambda _: saga(order()), None)

        def timed(number: int) -> float:
            logger.setLevel(level)
            return run(number)

        yield timed


MEMORY: dict[str, Peer] = {
    PYTHON_CQRS: partial(_python_cqrs_in_memory, logging.WARNING),
    PYTHON_CQRS_AS_IMPORTED: partial(_python_cqrs_in_memory, logging.DEBUG),
}


@contextmanager
def _python_cqrs(tasks: int, sagas: int) -> Iterator[Run]:
    """A run of its sagas in PostgreSQL, on asyncpg: seconds per saga.

    Several tasks share a loop, as in its users' web applications. A thread and a loop for each is no faster.
    """
    import asyncpg  # noqa: F401 (the driver)
    import cqrs  # noqa: F401
    import greenlet  # noqa: F401 (SQLAlchemy's async sessions run on it)
    from cqrs.saga.storage.sqlalchemy import Base, SqlAlchemySagaStorage
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    with servers.database() as given, _quiet_loop() as loop:
        engine = create_async_engine(given.url.set(drivername="postgresql+asyncpg"), pool_size=tasks)
        saga, order = _python_cqrs_saga(SqlAlchemySagaStorage(async_sessionmaker(engine)))

        async def create() -> None:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)

        async def several() -> int:
            for _ in range(sagas):
                await saga(order())
            return sagas

        async def together() -> int:
            return sum(await asyncio.gather(*(several() for _ in range(tasks))))

        loop.run_until_complete(create())
        try:
            yield freshly(lambda: None, lambda: loop.run_until_complete(together()))
        finally:
            loop.run_until_complete(engine.dispose())


@contextmanager
def _quiet_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop; the library's logger is at WARNING, because at DEBUG, where importing it leaves it, it is slower."""
    loop = asyncio.new_event_loop()
    logger = logging.getLogger("cqrs")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield loop
    finally:
        logger.setLevel(level)
        loop.close()


def _python_cqrs_saga(storage: Any) -> tuple[Callable[[Any], Awaitable[None]], Callable[[], Any]]:
    """What runs a saga of three steps to its end, and what makes its context."""
    import di
    from cqrs.bootstrap.saga import bootstrap
    from cqrs.handlers.saga import SagaStepHandler, SagaStepResult
    from cqrs.saga.models import SagaContext
    from cqrs.saga.saga import Saga

    @dataclasses.dataclass
    class Order(SagaContext):
        order_id: str = "order-1"
        sku: str = "lamp"
        cents: int = 4200
        shelf: str | None = None
        charge: str | None = None
        parcel: str | None = None

    class Reserve(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> SagaStepResult[Order, None]:
            context.shelf = "shelf-1"
            return self._generate_step_result(None)

        async def compensate(self, context: Order) -> None:
            return None

    class Charge(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> SagaStepResult[Order, None]:
            context.charge = "charge-1"
            return self._generate_step_result(None)

        async def compensate(self, context: Order) -> None:
            return None

    class Ship(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> SagaStepResult[Order, None]:
            context.parcel = "parcel-1"
            return self._generate_step_result(None)

        async def compensate(self, context: Order) -> None:
            return None

    class OrderSaga(Saga[Order]):
        steps = [Reserve, Charge, Ship]

    mediator = bootstrap(
        di_container=di.Container(), sagas_mapper=lambda m: m.bind(Order, OrderSaga), saga_storage=storage
    )

    async def saga(order: Any) -> None:
        results: AsyncIterator[Any] = mediator.execute(order)
        async for _ in results:
            pass
        if order.parcel is None:
            raise RuntimeError("python-cqrs has not run the saga to its end")

    return saga, Order


@contextmanager
def _dbos(pool: ThreadPoolExecutor, threads: int, sagas: int) -> Iterator[Run]:
    """A run of its workflows of three steps, called by threads: seconds per workflow.

    Its background threads, which look for queued workflows from time to time, live as long.
    """
    import dbos

    with servers.database() as engine:
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        dbos.DBOS(
            config={
                "name": "benchmarks",
                "system_database_url": url,
                "log_level": "ERROR",
                "sys_db_pool_size": max(20, threads),
            }
        )

        @dbos.DBOS.step()
        def reserve(order_id: str, sku: str) -> str:
            return "shelf-1"

        @dbos.DBOS.step()
        def charge(order_id: str, cents: int) -> str:
            return "charge-1"

        @dbos.DBOS.step()
        def ship(order_id: str, shelf: str) -> str:
            return "parcel-1"

        @dbos.DBOS.workflow()
        def order_saga(order_id: str, sku: str, cents: int) -> str:
            shelf = reserve(order_id, sku)
            charge(order_id, cents)
            return ship(order_id, shelf)

        def several(_: int) -> int:
            for _ in range(sagas):
                if order_saga("order-1", "lamp", 4200) != "parcel-1":
                    raise RuntimeError("DBOS has not run the workflow to its end")
            return sagas

        dbos.DBOS.launch()
        try:
            yield freshly(lambda: None, lambda: sum(pool.map(several, range(threads))))
        finally:
            dbos.DBOS.destroy(destroy_registry=True)
