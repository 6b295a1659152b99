"""Tables full of events for the measurements of the outbox: one real event, multiplied inside the database."""

from __future__ import annotations

import uuid
from typing import Any

import pydantic
from sqlalchemy import Engine, Table, text
from sqlalchemy.orm import Session

import cqrs_sync as cqrs
from cqrs_sync.outbox import OutboxedEventMap, OutboxModel, SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.encoding import partition_of

KEYS = [f"customer-{number}" for number in range(500)]


class OrderPlaced(pydantic.BaseModel):
    """A payload of an ordinary size: 330 bytes as JSON, with its envelope."""

    order_id: uuid.UUID
    customer: str
    lines: list[str]
    total: int


EVENTS = OutboxedEventMap()
EVENTS.register("order_placed", cqrs.NotificationEvent[OrderPlaced])


def order_placed(key: str = KEYS[0]) -> cqrs.NotificationEvent[OrderPlaced]:
    """An event as a handler makes it."""
    return cqrs.NotificationEvent(
        event_name="order_placed",
        topic="orders",
        partition_key=key,
        payload=OrderPlaced(order_id=uuid.uuid4(), customer=key, lines=["tea", "biscuits", "marmalade"], total=1295),
    )


def outbox_of(session: Session, **options: Any) -> SqlAlchemyOutboxedEventRepository:
    """The outbox of a session, over the events of the measurements."""
    return SqlAlchemyOutboxedEventRepository(session, event_map=EVENTS, **options)


def fill(engine: Engine, pending: int, *, produced: int = 0, model: type[Any] = OutboxModel) -> None:
    """Leave a table with so many events, those that are produced first, as its database would in good order."""
    table: Table = model.__table__
    with Session(engine) as session:
        session.execute(text(f"TRUNCATE {table.name} RESTART IDENTITY"))
        outbox_of(session, model=model).add(order_placed())
        session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text(_MULTIPLY.format(table=table.name)), _keys() | {"pending": pending, "produced": produced}
        )
        connection.execute(text(f"VACUUM ANALYZE {table.name}"))


def copy(engine: Engine, source: str, target: str) -> None:
    """Fill a table of the same columns with the same rows."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"TRUNCATE {target}"))
        connection.execute(text(f"INSERT INTO {target} SELECT * FROM {source}"))
        connection.execute(text(f"VACUUM ANALYZE {target}"))


def _keys() -> dict[str, Any]:
    return {"keys": KEYS, "partitions": [partition_of(key, uuid.uuid4()) for key in KEYS]}


_MULTIPLY = """
WITH template AS (DELETE FROM {table} RETURNING *)
INSERT INTO {table} (event_id, event_name, topic, partition_key, partition, payload, content_type, compression, headers,
                     status, attempts, created_at, produced_at)
SELECT gen_random_uuid(), event_name, topic, (:keys ::text[])[1 + n % cardinality(:keys ::text[])],
       (:partitions ::int[])[1 + n % cardinality(:keys ::text[])], payload, content_type, compression, headers,
       CASE WHEN n > :produced THEN 'new' ELSE 'produced' END, 0, now(),
       CASE WHEN n > :produced THEN NULL ELSE now() END
FROM template, generate_series(1, :produced + :pending) AS n
ORDER BY n
"""
