"""A user's project with Alembic, for what autogenerate makes of the library's tables."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHOP = """
    from sqlalchemy import MetaData
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    from cqrs_sync.outbox import OutboxMixin, OutboxModel, rebind_outbox_model
    from cqrs_sync.saga.storage.sqlalchemy import SagaExecutionMixin, SagaLogMixin, rebind_saga_models

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s"})

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
"""


class Project:
    """A user's project with an Alembic environment as ``alembic init`` makes it."""

    def __init__(self, directory: Path, url: str, models: str, target: str) -> None:
        self._directory = directory
        self.run("init", "migrations")
        (directory / "shop.py").write_text(textwrap.dedent(SHOP) + textwrap.dedent(models))
        self._replace("alembic.ini", "sqlalchemy.url = driver://user:pass@localhost/dbname", f"sqlalchemy.url = {url}")
        self._replace("migrations/env.py", "target_metadata = None", target)

    def _replace(self, name: str, old: str, new: str) -> None:
        path = self._directory / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def run(self, *arguments: str) -> None:
        """Run Alembic; warnings are errors."""
        result = subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *arguments],
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def migration(self) -> str:
        (path,) = (self._directory / "migrations/versions").glob("*.py")
        return path.read_text()
