"""Where sagas are kept between their steps."""

from typing import TYPE_CHECKING

from cqrs_sync.lazy import lazy_names as _lazy_names
from cqrs_sync.saga.storage.enums import SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.memory import MemorySagaStorage
from cqrs_sync.saga.storage.models import NewSaga, SagaBacklog, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import ISagaStorage, SagaStorage, SagaStore

if TYPE_CHECKING:
    from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage as SqlAlchemySagaStorage
else:  # SQLAlchemy is loaded when it is used
    __getattr__, __dir__ = _lazy_names(__name__, {"SqlAlchemySagaStorage": "cqrs_sync.saga.storage.sqlalchemy"})

__all__ = (
    # the port
    "ISagaStorage",
    "SagaStorage",
    "SagaStore",
    # what goes in and comes out
    "NewSaga",
    "SagaBacklog",
    "SagaLogEntry",
    "SagaState",
    "SagaStatus",
    "SagaStepStatus",
    "SagaWrite",
    # storages
    "MemorySagaStorage",
    "SqlAlchemySagaStorage",
)
