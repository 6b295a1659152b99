"""The outbox's tables in real databases: made by hand or by Alembic, and checked for drift."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

import cqrs_sync as cqrs
from cqrs_sync import schema
from cqrs_sync.errors import ConfigurationError, NotInstalled
from cqrs_sync.message_brokers.memory import InMemoryMessageBroker
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.relay import OutboxRelay
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.tables import Base, OutboxMixin, OutboxModel, partitions_of
from cqrs_sync.schema import check_schema
from cqrs_sync.sql import UtcDateTime, utc_now
from tests.integration.alembic_project import ROOT, SHOP, Project

SERVERS = ("postgresql", "mariadb")


class Happened(cqrs.NotificationEvent[int], frozen=True):
    event_name: str = "happened"
    topic: str = "shop"
    payload: int = 0


EVENTS = OutboxedEventMap()
EVENTS.register("happened", Happened)


on = lambda *names: pytest.mark.parametrize("url", names, indirect=True)  # noqa: E731


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Where the library's own tables are as they should be, until the test has changed them."""
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection


def relays(engine: sa.Engine, model: Any = OutboxModel) -> int:
    """How many events a relay publishes after one was stored."""

    def repository(session: Any) -> SqlAlchemyOutboxedEventRepository:
        return SqlAlchemyOutboxedEventRepository(session, event_map=EVENTS, model=model)

    with orm.Session(engine) as session:
        repository(session).add(Happened(payload=1, partition_key="k"))
        session.commit()
    return OutboxRelay(orm.sessionmaker(engine), InMemoryMessageBroker(), repository=repository).run_once()


# --- tables ---------------------------------------------------------------------------------------------------


def test_created_tables_work_and_do_not_drift(engine: sa.Engine) -> None:
    """On each database, without a schema."""
    Base.metadata.create_all(engine)
    assert relays(engine) == 1
    assert check_schema(engine) == []


@on("postgresql")
def test_tables_in_a_schema_work_and_do_not_drift(engine: sa.Engine) -> None:
    """Two outboxes of one name, in two schemas, on one metadata, with a foreign key to a table of the user's."""

    class Own(orm.DeclarativeBase):
        pass

    class Tenant(Own):
        __tablename__ = "tenants"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    models: list[Any] = []
    for name in ("sales", "billing"):
        body = {
            "__tablename__": "outbox",
            "__table_args__": {"schema": name},
            "tenant_id": orm.mapped_column(sa.ForeignKey("tenants.id")),
        }
        models.append(type(f"Outbox_{name}", (OutboxMixin, Own), body))
    with engine.begin() as connection:
        for name in ("sales", "billing"):
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    Own.metadata.create_all(engine)
    assert [relays(engine, model) for model in models] == [1, 1]
    assert check_schema(engine, Own) == []
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX billing.ix_outbox_waiting")
        connection.exec_driver_sql("DROP TABLE sales.outbox_partitions")
    found = {(drift.table, drift.part) for drift in check_schema(engine, models[0])}
    assert found == {("billing.outbox", "index ix_outbox_waiting"), ("sales.outbox_partitions", "table")}


@on("postgresql")
def test_the_connections_own_schema_may_be_named(engine: sa.Engine) -> None:
    """Alembic knows tables there as tables without a schema."""

    class Public(orm.DeclarativeBase):
        metadata = sa.MetaData(schema="public")

    model: Any = type("Outbox", (OutboxMixin, Public), {"__tablename__": "outbox"})
    Public.metadata.create_all(engine)
    assert relays(engine, model) == 1
    assert check_schema(engine, Public) == []


def test_times_are_kept_to_the_microsecond_in_utc(connection: sa.Connection) -> None:
    """Whatever the zone of the value, the server or the session; the database's own clock agrees."""
    table: Any = OutboxModel.__table__
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    moment = datetime.datetime(2031, 2, 3, 4, 5, 6, 789012, tzinfo=zone)
    columns = {"event_name": "x", "topic": "t", "partition": 0, "payload": b"x" * 70_000}
    columns |= {
        "event_id": uuid.uuid4(),
        "available_at": sa.bindparam(None, moment, type_=UtcDateTime()),
        "created_at": utc_now(),
    }
    connection.execute(sa.insert(table).values(columns))
    stored = [sa.type_coerce(column, UtcDateTime()) for column in (table.c.available_at, table.c.created_at)]
    available_at, created_at, length = connection.execute(sa.select(*stored, sa.func.length(table.c.payload))).one()
    assert available_at == moment
    assert abs(created_at - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
    assert length == 70_000


@on("mariadb")
def test_keys_that_differ_in_case_do_not_wait_for_one_another(connection: sa.Connection) -> None:
    """The collation of a MySQL server is case-insensitive by default."""
    table: Any = OutboxModel.__table__
    same = sa.select(sa.func.count()).select_from(table).where(table.c.partition_key == "KEY")
    columns = {"event_name": "x", "topic": "t", "partition": 0, "payload": b"", "partition_key": "key \N{PARTY POPPER}"}
    connection.execute(sa.insert(table).values(event_id=uuid.uuid4(), **columns))
    columns["partition_key"] = "key"
    connection.execute(sa.insert(table).values(event_id=uuid.uuid4(), **columns))
    assert connection.scalar(same) == 0


# --- migrations -----------------------------------------------------------------------------------------------

BY_MIXIN = """
    class Outbox(OutboxMixin, Base):
        __tablename__ = "shop_outbox"
"""
BY_REBINDING = """
    Outbox = rebind_outbox_model(OutboxModel, Base, "shop_outbox")
"""


def test_alembic_writes_a_migration_that_runs_as_it_is(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """On your metadata; there is nothing left to do after it, and it can be undone."""
    project = Project(tmp_path, url, BY_MIXIN, "from shop import Base\ntarget_metadata = Base.metadata")
    project.run("revision", "--autogenerate", "-m", "outbox")
    assert "cqrs_sync" not in project.migration()
    project.run("upgrade", "head")

    class Own(orm.DeclarativeBase):
        pass

    model: Any = type("Outbox", (OutboxMixin, Own), {"__tablename__": "shop_outbox"})
    assert relays(engine, model) == 1
    assert check_schema(engine, Own) == []
    project.run("check")
    project.run("downgrade", "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


@on("sqlite")
def test_alembic_finds_a_rebound_model(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """As the async library puts the outbox on your metadata."""
    project = Project(tmp_path, url, BY_REBINDING, "from shop import Base\ntarget_metadata = Base.metadata")
    project.run("revision", "--autogenerate", "-m", "outbox")
    project.run("upgrade", "head")
    assert {"shop_outbox", "shop_outbox_partitions"} <= set(sa.inspect(engine).get_table_names())


@on("sqlite")
def test_alembic_takes_the_librarys_metadata_beside_yours(tmp_path: Path, engine: sa.Engine, url: str) -> None:
    """For those who would rather not have the model on their own base."""
    target = """\
from shop import Base
from cqrs_sync.outbox.sqlalchemy import Base as OutboxBase
target_metadata = [Base.metadata, OutboxBase.metadata]"""
    project = Project(tmp_path, url, "", target)
    project.run("revision", "--autogenerate", "-m", "outbox")
    project.run("upgrade", "head")
    assert relays(engine) == 1
    assert check_schema(engine) == []
    project.run("check")


# --- drift ----------------------------------------------------------------------------------------------------


def drift(connection: sa.Connection, *statements: str) -> schema.Drift:
    """The only drift after some statements."""
    for statement in statements:
        connection.exec_driver_sql(statement)
    found = check_schema(connection)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("table", ["outbox", "outbox_partitions"])
def test_a_missing_table_is_drift(connection: sa.Connection, table: str) -> None:
    """Once, and not again for each of its indexes."""
    found = drift(connection, f"DROP TABLE {table}")
    assert found[:4] == (table, "table", "none", "a table")
    assert "alembic revision --autogenerate" in found.remedy


@on(*SERVERS)
@pytest.mark.parametrize(
    ("column", "type_", "mistaken"),
    [
        ("payload", {"postgresql": "text USING ''", "mariadb": "BLOB NOT NULL"}, {"TEXT", "BLOB"}),
        (
            "created_at",
            {"postgresql": "timestamp without time zone", "mariadb": "DATETIME NOT NULL"},
            {"TIMESTAMP WITHOUT TIME ZONE", "DATETIME"},
        ),
        ("id", {"postgresql": "integer", "mariadb": "INT AUTO_INCREMENT"}, {"INTEGER", "INTEGER(11)"}),
        ("event_name", {"postgresql": "varchar(20)", "mariadb": "VARCHAR(20) NOT NULL"}, {"VARCHAR(20)"}),
        (
            "event_id",
            {"postgresql": "varchar(36)", "mariadb": "UUID NOT NULL"},
            {"VARCHAR(36)", "UUID"},
        ),
    ],
)
def test_a_wrong_type_is_drift(
    connection: sa.Connection, column: str, type_: dict[str, str], mistaken: set[str]
) -> None:
    """Also where Alembic takes the types for the same."""
    alter = {"postgresql": f"ALTER {column} TYPE", "mariadb": f"MODIFY {column}"}
    name = "postgresql" if connection.dialect.name == "postgresql" else "mariadb"
    found = drift(connection, f"ALTER TABLE outbox {alter[name]} {type_[name]}")
    assert (found.table, found.part) == ("outbox", f"column {column}")
    assert found.found.split(" COLLATE")[0].split(" CHARACTER")[0] in mistaken
    assert found.expected
    assert f"op.alter_column('outbox', '{column}', type_=...) that makes it {found.expected}" in found.remedy


@on("sqlite")
def test_a_wrong_type_is_drift_in_sqlite(connection: sa.Connection) -> None:
    """The id that does not count up, as it was in the async library."""
    create = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'outbox'").scalar_one()
    connection.exec_driver_sql("DROP TABLE outbox")
    create = create.replace("id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "id BIGINT NOT NULL PRIMARY KEY")
    connection.exec_driver_sql(create)
    for index in OutboxModel.__table__.indexes:  # type: ignore[attr-defined]
        index.create(connection)
    found = drift(connection)
    assert found[:4] == ("outbox", "column id", "BIGINT", "INTEGER")


@on("postgresql")
def test_an_id_that_does_not_count_up_is_drift(connection: sa.Connection) -> None:
    found = drift(connection, "ALTER TABLE outbox ALTER id DROP DEFAULT")
    assert found[:3] == ("outbox", "column id", "no numbering")
    connection.exec_driver_sql("DROP SEQUENCE outbox_id_seq")
    connection.exec_driver_sql("ALTER TABLE outbox ALTER id ADD GENERATED BY DEFAULT AS IDENTITY")  # the remedy
    assert check_schema(connection) == []


@on("mariadb")
def test_an_id_that_does_not_count_up_is_drift_in_mysql(connection: sa.Connection) -> None:
    found = drift(connection, "ALTER TABLE outbox MODIFY id BIGINT NOT NULL")
    assert found[:3] == ("outbox", "column id", "no numbering")


@on("postgresql")
def test_a_missing_primary_key_is_drift(connection: sa.Connection) -> None:
    """Without one, a second set of partitions could be inserted, and two relays would lock one each."""
    found = drift(connection, "ALTER TABLE outbox_partitions DROP CONSTRAINT outbox_partitions_pkey")
    assert found[:4] == ("outbox_partitions", "primary key", "none", "partition")


@on(*SERVERS)
def test_a_column_that_allows_null_or_not_is_drift(connection: sa.Connection) -> None:
    change = {"postgresql": "ALTER topic DROP NOT NULL", "mysql": "MODIFY topic VARCHAR(249)"}
    found = drift(connection, f"ALTER TABLE outbox {change[connection.dialect.name]}")
    assert found[:4] == ("outbox", "column topic", "NULL allowed", "NOT NULL")


@on(*SERVERS)
def test_a_missing_column_is_drift(connection: sa.Connection) -> None:
    found = drift(connection, "ALTER TABLE outbox DROP COLUMN compression")
    assert found[:4] == ("outbox", "column compression", "none", "VARCHAR(16)")


def test_columns_and_indexes_of_your_own_are_no_drift(connection: sa.Connection) -> None:
    """Nor tables."""
    connection.exec_driver_sql("ALTER TABLE outbox ADD COLUMN note VARCHAR(20)")
    connection.exec_driver_sql("ALTER TABLE outbox ADD COLUMN tenant INTEGER DEFAULT 1 NOT NULL")
    connection.exec_driver_sql("CREATE INDEX ix_note ON outbox (note)")
    connection.exec_driver_sql("CREATE TABLE notes (note VARCHAR(20))")
    assert check_schema(connection) == []


@on(*SERVERS)
def test_a_column_that_refuses_new_rows_is_drift(connection: sa.Connection) -> None:
    """Nobody fills it in: it is not in the model."""
    found = drift(connection, "ALTER TABLE outbox ADD COLUMN tenant INTEGER NOT NULL")
    assert found.part == "column tenant"
    assert "NOT NULL without a default" in found.found


def follow(found: schema.Drift, connection: sa.Connection) -> None:
    """Run the SQL of a remedy, which is on lines of its own."""
    statements = [line for line in found.remedy.splitlines() if line.endswith(";")]
    assert statements
    for statement in statements:
        connection.exec_driver_sql(statement)


def drop(connection: sa.Connection, index: str) -> str:
    return f"DROP INDEX {index}" + (" ON outbox" if connection.dialect.name == "mysql" else "")


@pytest.mark.parametrize("index", ["ix_outbox_pending", "ix_outbox_waiting", "ix_outbox_held", "ix_outbox_produced"])
def test_a_missing_index_is_drift(connection: sa.Connection, index: str) -> None:
    """The remedy is the statement that makes it."""
    found = drift(connection, drop(connection, index))
    assert found[:3] == ("outbox", f"index {index}", "none")
    follow(found, connection)
    assert check_schema(connection) == []


def test_an_index_over_other_columns_is_drift(connection: sa.Connection) -> None:
    create = "CREATE INDEX ix_outbox_waiting ON outbox (attempts)"
    found = drift(connection, drop(connection, "ix_outbox_waiting"), create)
    assert found[:4] == ("outbox", "index ix_outbox_waiting", "over attempts", "over partition, available_at")
    follow(found, connection)
    assert check_schema(connection) == []


@on("sqlite", "postgresql")
@pytest.mark.parametrize("where", ["", " WHERE status <> 'new'"])
def test_an_index_over_other_rows_is_drift(connection: sa.Connection, where: str) -> None:
    """Alembic does not compare them. The remedy is what to run."""
    create = f'CREATE INDEX ix_outbox_pending ON outbox (status, "partition", id){where}'
    found = drift(connection, "DROP INDEX ix_outbox_pending", create)
    assert found[:2] == ("outbox", "index ix_outbox_pending")
    assert found.found == "over all rows" if not where else "'new'" in found.found
    assert found.expected == "over rows where status <> 'produced'"
    follow(found, connection)
    assert check_schema(connection) == []


@on("postgresql")
def test_an_index_that_was_never_finished_is_drift(connection: sa.Connection) -> None:
    """It is what CREATE INDEX CONCURRENTLY leaves when it is interrupted; no statement uses it."""
    invalid = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST('ix_outbox_pending' AS regclass)"
    found = drift(connection, invalid)
    assert found[:3] == ("outbox", "index ix_outbox_pending", "an invalid index, which no statement uses")
    follow(found, connection)
    assert check_schema(connection) == []


@on("mariadb")
@pytest.mark.parametrize(
    ("change", "part"),
    [("ENGINE = MyISAM", "engine"), ("CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", "collate")],
)
def test_a_table_without_transactions_or_that_mixes_up_keys_is_drift(
    connection: sa.Connection, change: str, part: str
) -> None:
    """The remedy is what to run."""
    found = drift(connection, f"ALTER TABLE outbox_partitions {change}")
    assert found[:2] == ("outbox_partitions", part)
    follow(found, connection)
    assert check_schema(connection) == []


@on("sqlite")
def test_the_partitions_rows_are_no_drift(connection: sa.Connection, engine: sa.Engine) -> None:
    """The first claim inserts them."""
    connection.exec_driver_sql("DELETE FROM outbox_partitions")
    connection.commit()
    assert check_schema(engine) == []
    assert relays(engine) == 1
    assert (
        connection.scalar(sa.select(sa.func.count()).select_from(partitions_of(Base.metadata.tables["outbox"]))) == 32
    )


@on("sqlite")
def test_metadata_without_an_outbox_is_refused(engine: sa.Engine) -> None:
    """A check that checks nothing would always pass."""
    for target in (sa.MetaData(), object()):
        with pytest.raises(ConfigurationError, match="no tables of cqrs_sync"):
            check_schema(engine, target)


@on("sqlite")
def test_a_missing_alembic_is_named_with_its_remedy(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alembic.autogenerate", "alembic.migration"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalled, match=r"cqrs-sync\[migrations\]"):
        check_schema(engine)


# --- the command ----------------------------------------------------------------------------------------------


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "cqrs_sync.schema", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_by_its_exit_code(url: str, connection: sa.Connection) -> None:
    """With what to do about each drift."""
    result = command(url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "no drift\n", "")
    connection.exec_driver_sql(drop(connection, "ix_outbox_pending"))
    connection.commit()
    result = command(url)
    assert result.returncode == 1
    assert result.stdout.startswith("outbox: index ix_outbox_pending: found none, expected over status, partition, id.")
    assert re.search(r"^CREATE INDEX ix_outbox_pending ON outbox .*;$", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("1 difference\n")


@on("sqlite")
def test_the_command_checks_the_tables_of_a_model(url: str, connection: sa.Connection, tmp_path: Path) -> None:
    """Named like an entry point; what it is imported from may be in the current directory. The URL may be in the
    environment."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(SHOP) + textwrap.dedent(BY_MIXIN))
    for name in ("shop:Outbox", "shop:Base", "shop:Base.metadata"):
        result = command("--model", name, cwd=tmp_path, DATABASE_URL=url)
        assert (result.returncode, result.stderr) == (1, "")
        assert "shop_outbox_partitions: table" in result.stdout
        assert "\noutbox:" not in result.stdout


@on("sqlite")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sqlite:////nowhere/at/all"], "there is no SQLite file /nowhere/at/all"),
        (["sqlite:////"], "unable to open database file"),
        (["nonsense"], "postgresql://user:password@host"),
        (["postgresql://u:secret@h:port/db"], "postgresql://user:password@host"),
        (["postgres://u:secret@h/db"], "write postgresql://"),
        (["postgresql+asyncpg://u:secret@h/db"], "asyncpg is an asynchronous driver and the check is not"),
        (["sqlite+aiosqlite:///shop.db"], "write sqlite://"),
        (["frobnicate://"], "frobnicate"),
        ([], "DATABASE_URL"),
        (["{url}", "--model", "shop"], "package.module:Name"),
        (["{url}", "--model", "no_such_module.models:Base"], "no_such_module: run this in the project's directory"),
        (["{url}", "--model", "json.nothing:Base"], "no module json.nothing: run"),
        (["{url}", "--model", "json:Base"], "Base"),
        (["{url}", "--model", "json:loads"], "no tables of cqrs_sync"),
    ],
)
def test_the_command_says_what_it_cannot_check(url: str, arguments: list[str], message: str) -> None:
    """With an exit code of its own, so that an outage is not taken for drift."""
    sa.create_engine(url).connect().close()  # makes the file
    result = command(*(argument.format(url=url) for argument in arguments), DATABASE_URL="")
    assert result.returncode == 2
    assert message in result.stderr
    assert not {"Traceback", "secret"} & set(re.findall(r"\w+", result.stderr))


@on("sqlite")
def test_the_command_says_what_a_model_lacks(url: str, engine: sa.Engine, tmp_path: Path) -> None:
    """The module is there, and something that it imports is not."""
    engine.connect().close()
    (tmp_path / "shop.py").write_text("import no_such_module")
    result = command(url, "--model", "shop:Base", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "cannot check: No module named 'no_such_module'\n")


@on("sqlite")
def test_the_command_makes_no_database(url: str, tmp_path: Path) -> None:
    """A missing file is not a database without tables."""
    assert command(url).returncode == 2
    assert list(tmp_path.iterdir()) == []


@on("postgresql")
def test_the_command_finds_the_driver_that_is_installed(url: str) -> None:
    """``postgresql://`` means another one from version to version of SQLAlchemy."""
    result = command(url.replace("+psycopg2", ""))
    assert (result.returncode, result.stderr) == (1, "")


def test_help_suffices() -> None:
    result = command("--help")
    assert result.returncode == 0
    assert all(word in result.stdout for word in ("postgresql://", "--model", "$DATABASE_URL", "Exit code"))
