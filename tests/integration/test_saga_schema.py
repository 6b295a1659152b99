"""The tables of sagas in real databases: made by hand or by Alembic, and checked for drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from cqrs_sync.outbox.tables import Base as OutboxBase
from cqrs_sync.saga.storage.sqlalchemy import Base, SagaExecutionMixin, SagaLogMixin, SqlAlchemySagaStorage
from cqrs_sync.schema import check_schema
from tests.integration.alembic_project import Project
from tests.unit.sagas import Order, mediator_of, saga, step

BY_MIXIN = """
    class Sagas(SagaExecutionMixin, Base):
        __tablename__ = "shop_sagas"

    class SagaLog(SagaLogMixin, Base):
        __tablename__ = "shop_saga_logs"
"""
BY_REBINDING = """
    rebind_saga_models(Base, "shop_sagas", "shop_saga_logs")
"""
OURS_TOO = """\
from shop import Base
from cqrs_sync.saga.storage.sqlalchemy import Base as SagaBase
target_metadata = [Base.metadata, SagaBase.metadata]"""


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def runs(engine: sa.Engine, **models: Any) -> bool:
    """Whether a saga is completed."""
    storage = SqlAlchemySagaStorage(orm.sessionmaker(engine), **models)
    with mediator_of(saga(step("a", []), step("b", [])), storage) as mediator:
        return mediator.run(Order()).completed


# --- migrations -----------------------------------------------------------------------------------------------


def test_alembic_writes_a_migration_that_runs_as_it_is(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """On your metadata; there is nothing left to do after it, and it can be undone."""
    project = Project(tmp_path, url, BY_MIXIN, "from shop import Base\ntarget_metadata = Base.metadata")
    project.run("revision", "--autogenerate", "-m", "sagas")
    assert "cqrs_sync" not in project.migration()
    project.run("upgrade", "head")

    class Own(orm.DeclarativeBase):
        pass

    execution = type("Sagas", (SagaExecutionMixin, Own), {"__tablename__": "shop_sagas"})
    log = type("SagaLog", (SagaLogMixin, Own), {"__tablename__": "shop_saga_logs"})
    assert runs(engine, execution_model=execution, log_model=log)
    assert check_schema(engine, Own) == []
    project.run("check")
    project.run("downgrade", "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_alembic_finds_rebound_models(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """As on your metadata."""
    project = Project(tmp_path, url, BY_REBINDING, "from shop import Base\ntarget_metadata = Base.metadata")
    project.run("revision", "--autogenerate", "-m", "sagas")
    project.run("upgrade", "head")
    assert {"shop_sagas", "shop_saga_logs"} <= set(sa.inspect(engine).get_table_names())


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_alembic_takes_the_librarys_metadata_beside_yours(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """For those who would rather not have the models on their own base."""
    project = Project(tmp_path, url, "", OURS_TOO)
    project.run("revision", "--autogenerate", "-m", "sagas")
    project.run("upgrade", "head")
    assert runs(engine)
    assert check_schema(engine) == []
    project.run("check")


# --- drift ----------------------------------------------------------------------------------------------------


def test_created_tables_do_not_drift(engine: sa.Engine) -> None:
    """On each database."""
    Base.metadata.create_all(engine)
    assert check_schema(engine, Base) == []


@pytest.mark.parametrize(
    ("table", "index"),
    [
        ("saga_executions", "ix_saga_executions_unfinished"),
        ("saga_executions", "ix_saga_executions_finished"),
        ("saga_logs", "ix_saga_logs_saga"),
    ],
)
def test_a_missing_index_is_drift(engine: sa.Engine, table: str, index: str) -> None:
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        on = f" ON {table}" if engine.dialect.name == "mysql" else ""
        connection.exec_driver_sql(f"DROP INDEX {index}{on}")
    [drift] = check_schema(engine, Base)
    assert (drift.table, drift.part) == (table, f"index {index}")


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_an_index_over_other_rows_is_drift(engine: sa.Engine) -> None:
    """Over all of them, it would grow with what has ended."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_saga_executions_unfinished")
        connection.exec_driver_sql(
            "CREATE INDEX ix_saga_executions_unfinished ON saga_executions (finished_at, created_at)"
        )
    [drift] = check_schema(engine, Base)
    assert drift.part == "index ix_saga_executions_unfinished"
    with engine.begin() as connection:
        for statement in drift.remedy.splitlines():
            if statement.endswith(";"):
                connection.exec_driver_sql(statement)
    assert check_schema(engine, Base) == []


@pytest.mark.parametrize("url", ["postgresql", "mariadb"], indirect=True)
def test_a_wrong_type_is_drift(engine: sa.Engine) -> None:
    """A context that is cut off at 255 characters, for one."""
    Base.metadata.create_all(engine)
    change = {"postgresql": "ALTER context TYPE VARCHAR(255)", "mysql": "MODIFY context VARCHAR(255) NOT NULL"}
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE saga_executions {change[engine.dialect.name]}")
    [drift] = check_schema(engine, Base)
    assert (drift.table, drift.part) == ("saga_executions", "column context")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_check_takes_what_is_in_use_by_default(engine: sa.Engine) -> None:
    """Who has no sagas does not miss their tables; who has nothing yet is told of the outbox."""
    assert {drift.table for drift in check_schema(engine)} == {"outbox", "outbox_partitions"}
    Base.metadata.tables["saga_logs"].create(engine)
    assert [(drift.table, drift.part) for drift in check_schema(engine)] == [("saga_executions", "table")]
    Base.metadata.create_all(engine)
    assert check_schema(engine) == []
    OutboxBase.metadata.tables["outbox"].create(engine)
    assert [(drift.table, drift.part) for drift in check_schema(engine)] == [("outbox_partitions", "table")]
