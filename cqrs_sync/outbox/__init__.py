"""The transactional outbox: events are stored with the data they tell of, and published from there."""

from typing import TYPE_CHECKING

from cqrs_sync.lazy import lazy_names as _lazy_names
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import Backlog, EventStatus, Failure, OutboxedEvent
from cqrs_sync.outbox.repository import OutboxedEventRepository, OutboxStore

if TYPE_CHECKING:
    from cqrs_sync.outbox.mock import MemoryOutbox as MemoryOutbox
    from cqrs_sync.outbox.mock import MockOutboxedEventRepository as MockOutboxedEventRepository
    from cqrs_sync.outbox.relay import OutboxRelay as OutboxRelay
    from cqrs_sync.outbox.relay import RelayHealth as RelayHealth
    from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository as SqlAlchemyOutboxedEventRepository
    from cqrs_sync.outbox.tables import OutboxMixin as OutboxMixin
    from cqrs_sync.outbox.tables import OutboxModel as OutboxModel
    from cqrs_sync.outbox.tables import rebind_outbox_model as rebind_outbox_model
else:  # SQLAlchemy is loaded when it is used
    __getattr__, __dir__ = _lazy_names(
        __name__,
        {
            **dict.fromkeys(("MemoryOutbox", "MockOutboxedEventRepository"), "cqrs_sync.outbox.mock"),
            **dict.fromkeys(("OutboxRelay", "RelayHealth"), "cqrs_sync.outbox.relay"),
            "SqlAlchemyOutboxedEventRepository": "cqrs_sync.outbox.sqlalchemy",
            **dict.fromkeys(("OutboxMixin", "OutboxModel", "rebind_outbox_model"), "cqrs_sync.outbox.tables"),
        },
    )

__all__ = (
    # what handlers use
    "OutboxedEventMap",
    "OutboxedEventRepository",
    "SqlAlchemyOutboxedEventRepository",
    # tables
    "OutboxMixin",
    "OutboxModel",
    "rebind_outbox_model",
    # publishing
    "Backlog",
    "EventStatus",
    "Failure",
    "OutboxRelay",
    "OutboxStore",
    "OutboxedEvent",
    "RelayHealth",
    # without a database
    "MemoryOutbox",
    "MockOutboxedEventRepository",
)
