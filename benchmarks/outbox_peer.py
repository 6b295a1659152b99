# ruff: noqa: ARG002  (a broker that does nothing needs no message)
"""The async library's outbox, drained as its documentation says, on asyncpg."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from sqlalchemy import Engine, text

from benchmarks import servers
from benchmarks.timing import Run

FILL = """
WITH template AS (DELETE FROM outbox RETURNING *)
INSERT INTO outbox (event_id, event_id_bin, event_status, flush_counter, event_name, topic, created_at, payload)
SELECT fresh, uuid_send(fresh), event_status, flush_counter, event_name, topic, created_at, payload
FROM template, (SELECT gen_random_uuid() AS fresh FROM generate_series(1, :events)) AS events
"""


@contextmanager
def drain(events: int, batch: int) -> Iterator[Run]:
    """A run of its ``EventProducer``, over so many fresh rows each time: seconds per event.

    Raises:
        ImportError: it is not installed, or what its async sessions need is not.
    """
    import asyncpg  # noqa: F401 (the driver)
    import cqrs  # noqa: F401
    import greenlet  # noqa: F401 (SQLAlchemy's async sessions run on it)

    loop = asyncio.new_event_loop()
    logger = logging.getLogger("cqrs")
    level = logger.level
    logger.setLevel(logging.WARNING)  # at DEBUG, where importing it leaves it, it is slower still
    try:
        with servers.database() as engine:
            outbox = _Outbox(engine, batch)
            loop.run_until_complete(outbox.create())

            def run(number: int) -> float:
                seconds = 0.0
                for _ in range(number):
                    loop.run_until_complete(outbox.fill(events))
                    seconds += loop.run_until_complete(outbox.drain(events)) / events
                return seconds

            try:
                yield run
            finally:
                loop.run_until_complete(outbox.close())
    finally:
        logger.setLevel(level)
        loop.close()


class _Outbox:
    def __init__(self, engine: Engine, batch: int) -> None:
        import cqrs
        from cqrs.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        self._engine = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
        self._sessions = async_sessionmaker(self._engine)
        self._map = cqrs.OutboxedEventMap()
        self._map.register("order_placed", cqrs.NotificationEvent[dict])
        self._repository = lambda session: SqlAlchemyOutboxedEventRepository(session, event_map=self._map)
        self._broker = _null_broker()
        self._batch = batch

    async def create(self) -> None:
        from cqrs.outbox.sqlalchemy import Base

        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def fill(self, events: int) -> None:
        async with self._sessions() as session:
            await session.execute(text("TRUNCATE outbox RESTART IDENTITY"))
            self._repository(session).add(_order_placed())
            await session.commit()
            await session.execute(text(FILL), {"events": events})
            await session.commit()
        vacuuming = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        async with vacuuming.connect() as connection:
            await connection.execute(text("VACUUM ANALYZE outbox"))

    async def drain(self, events: int) -> float:
        import cqrs

        left = events
        started = perf_counter()
        async with self._sessions() as session:
            producer = cqrs.EventProducer(self._broker, self._repository(session))
            async for batch in producer.event_batch_generator(self._batch):
                for event in batch:
                    await producer.send_message(event)
                await producer.repository.commit()
                left -= len(batch)
                if left <= 0 or not batch:
                    break
        taken = perf_counter() - started
        if left:
            raise RuntimeError(f"python-cqrs left {left} of {events} events")
        return taken

    async def close(self) -> None:
        await self._engine.dispose()


def _order_placed() -> Any:
    import cqrs

    payload = {
        "order_id": str(uuid.uuid4()),
        "customer": "customer-0",
        "lines": ["tea", "biscuits", "marmalade"],
        "total": 1295,
    }
    return cqrs.NotificationEvent[dict](event_name="order_placed", topic="orders", payload=payload)


def _null_broker() -> Any:
    from cqrs.message_brokers.protocol import Message, MessageBroker

    class NullBroker(MessageBroker):
        async def send_message(self, message: Message) -> None:
            return None

    return NullBroker()
