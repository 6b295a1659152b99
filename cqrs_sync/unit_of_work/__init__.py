"""One transaction for one handler or one send (Fowler, *Unit of Work*)."""

from cqrs_sync.lazy import lazy_names

__getattr__ = lazy_names(
    __name__,
    {
        "MemoryUnitOfWork": "cqrs_sync.unit_of_work.memory",
        "SqlAlchemyUnitOfWork": "cqrs_sync.unit_of_work.sqlalchemy",
        "Transaction": "cqrs_sync.unit_of_work.protocol",
        "UnitOfWork": "cqrs_sync.unit_of_work.protocol",
    },
)
