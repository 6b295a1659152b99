"""The outbox on declarative bases of every kind: its tables are complete wherever they are put."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.outbox import tables
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.tables import OutboxMixin, OutboxModel, partitions_of, rebind_outbox_model

INDEXES = {"ix_shop_held", "ix_shop_pending", "ix_shop_produced", "ix_shop_waiting"}


def declarative_base() -> Any:
    class Base(orm.DeclarativeBase):
        pass

    return Base


def without_metaclass() -> Any:
    class Base(orm.DeclarativeBaseNoMeta):
        pass

    return Base


def of_dataclasses() -> Any:
    class Base(orm.MappedAsDataclass, orm.DeclarativeBase):
        pass

    return Base


@pytest.fixture(autouse=True)
def _default_model() -> Iterator[None]:
    """What rebinding changes is put back."""
    before = tables._default_model
    yield
    tables._default_model = before


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "event_id": uuid.UUID(int=number),
        "event_name": "happened",
        "topic": "shop",
        "partition": 0,
        "payload": b"{}",
        **columns,
    }


def claimed(model: Any, engine: sa.Engine) -> list[uuid.UUID]:
    with orm.Session(engine) as session:
        session.add(model(**row(1)))
        session.commit()
        repository = SqlAlchemyOutboxedEventRepository(session, model=model)
        return [event.event_id for event in repository.get_many()]


def memory() -> sa.Engine:
    return sa.create_engine("sqlite://", poolclass=StaticPool)


@pytest.mark.parametrize("make_base", [declarative_base, without_metaclass, orm.declarative_base])
def test_the_mixin_works_on_bases_of_every_kind(make_base: Any) -> None:
    """With the table of partitions and all indexes."""
    base = make_base()
    model = type("Outbox", (OutboxMixin, base), {"__tablename__": "shop"})
    assert set(base.metadata.tables) == {"shop", "shop_partitions"}
    assert {index.name for index in model.__table__.indexes} == INDEXES
    engine = memory()
    base.metadata.create_all(engine)
    assert claimed(model, engine) == [uuid.UUID(int=1)]


@pytest.mark.parametrize("make_base", [declarative_base, without_metaclass, orm.declarative_base, of_dataclasses])
def test_rebinding_works_on_bases_of_every_kind(make_base: Any) -> None:
    """Of dataclasses too, since only the metadata is used of them."""
    base = make_base()
    model = rebind_outbox_model(OutboxModel, base, "shop")
    assert set(base.metadata.tables) == {"shop", "shop_partitions"}
    assert tables.default_model() is model
    engine = memory()
    base.metadata.create_all(engine)
    assert claimed(model, engine) == [uuid.UUID(int=1)]


def test_a_model_that_is_a_dataclass_is_refused_with_a_way_out() -> None:
    """SQLAlchemy's own error would name every column and no remedy."""
    base = of_dataclasses()
    with pytest.raises(ConfigurationError, match="OutboxBase"):
        type("Outbox", (OutboxMixin, base), {"__tablename__": "shop"})

    class OutboxBase(orm.DeclarativeBase):  # the remedy
        metadata = base.metadata

    class Outbox(OutboxMixin, OutboxBase):
        __tablename__ = "shop"

    assert set(base.metadata.tables) == {"shop", "shop_partitions"}


def test_two_outboxes_share_a_metadata() -> None:
    """Each with partitions of its own, so that their relays do not wait for one another."""
    base = declarative_base()
    first, second = (rebind_outbox_model(OutboxModel, base, name) for name in ("shop", "billing"))
    engine = memory()
    base.metadata.create_all(engine)
    assert len(base.metadata.tables) == 4
    assert claimed(first, engine) == claimed(second, engine) == [uuid.UUID(int=1)]


def test_only_the_models_of_an_outbox_are_rebound() -> None:
    with pytest.raises(ConfigurationError, match="OutboxModel"):
        rebind_outbox_model(tables.Base, declarative_base())


def test_table_arguments_of_a_model_add_to_the_indexes() -> None:
    """A schema or a constraint of one's own must not cost the indexes."""
    base = declarative_base()

    class Outbox(OutboxMixin, base):  # type: ignore[misc]
        __tablename__ = "shop"
        __table_args__ = (sa.CheckConstraint("attempts >= 0"), {"schema": "sales"})

    assert set(base.metadata.tables) == {"sales.shop", "sales.shop_partitions"}
    assert {index.name for index in Outbox.__table__.indexes} == INDEXES
    assert partitions_of(Outbox.__table__) is base.metadata.tables["sales.shop_partitions"]


def test_a_model_inherits_from_another_without_tables_of_its_own() -> None:
    """Single-table inheritance: the indexes and partitions are there once."""
    base = declarative_base()

    class Outbox(OutboxMixin, base):  # type: ignore[misc]
        __tablename__ = "shop"

    class Subclass(Outbox):
        pass

    assert set(base.metadata.tables) == {"shop", "shop_partitions"}
    assert len(Outbox.__table__.indexes) == 4


def test_a_naming_convention_of_the_metadata_is_followed_for_the_primary_keys() -> None:
    class Base(orm.DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "idx_%(column_0_label)s"})

    model = rebind_outbox_model(OutboxModel, Base, "shop")
    assert model.__table__.primary_key.name == "pk_shop"
    assert {index.name for index in model.__table__.indexes} == INDEXES


def test_sqlite_gives_no_number_twice() -> None:
    """A purged row's number would put a new event before older ones."""
    base = declarative_base()
    model = rebind_outbox_model(OutboxModel, base, "shop")
    engine = memory()
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        for number in (1, 2):
            given = connection.execute(sa.insert(model).values(row(number))).inserted_primary_key
            assert given is not None
            assert given[0] == number
            connection.execute(sa.delete(model))


@pytest.mark.parametrize("url", ["mysql+pymysql://", "mariadb+pymysql://"])
def test_mysql_gets_a_table_that_fits(url: str) -> None:
    """Transactions, any text, case that matters, long payloads, microseconds; no partial indexes, which it lacks."""
    pytest.importorskip("pymysql")
    dialect = sa.create_engine(url).dialect
    table: Any = OutboxModel.__table__
    for one in (table, partitions_of(table)):
        statement = str(CreateTable(one).compile(dialect=dialect))
        assert all(part in statement for part in ("ENGINE=InnoDB", "utf8mb4", "utf8mb4_bin"))
    statement = str(CreateTable(table).compile(dialect=dialect))
    assert all(
        part in statement
        for part in (
            "id BIGINT NOT NULL AUTO_INCREMENT",
            "payload LONGBLOB",
            "created_at DATETIME(6)",
            "event_id CHAR(32)",
        )
    )
    assert all("WHERE" not in str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
