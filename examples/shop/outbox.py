"""The outbox: which events may go in, and what handlers and relays use it through."""

import functools

from cqrs_sync.outbox import OutboxedEventMap, SqlAlchemyOutboxedEventRepository
from examples.shop.messages import OrderAnnounced, OrderShipped
from examples.shop.tables import Outbox

EVENTS = OutboxedEventMap()
EVENTS.register("order_placed", OrderAnnounced)
EVENTS.register("order_shipped", OrderShipped)

open_outbox = functools.partial(SqlAlchemyOutboxedEventRepository, event_map=EVENTS, model=Outbox)
"""Opens the outbox of a session."""
