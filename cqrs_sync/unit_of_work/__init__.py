"""One transaction for one handler or one send (Fowler, *Unit of Work*)."""

from typing import TYPE_CHECKING

from cqrs_sync.lazy import lazy_names as _lazy_names
from cqrs_sync.unit_of_work.memory import MemoryUnitOfWork
from cqrs_sync.unit_of_work.protocol import Transaction, UnitOfWork

if TYPE_CHECKING:
    from cqrs_sync.unit_of_work.sqlalchemy import SqlAlchemyUnitOfWork as SqlAlchemyUnitOfWork
else:
    __getattr__, __dir__ = _lazy_names(__name__, {"SqlAlchemyUnitOfWork": "cqrs_sync.unit_of_work.sqlalchemy"})

__all__ = (
    "MemoryUnitOfWork",
    "Transaction",
    "UnitOfWork",
)
