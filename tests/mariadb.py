"""A real MariaDB server for tests: ``CQRS_TEST_MARIADB``, else system binaries."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SYSTEM = ("/usr/sbin", "/usr/libexec", "/opt/homebrew/opt/mariadb/bin")


def binary(*names: str) -> str | None:
    """The path of the first program that is there; servers are often not on PATH."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a server, yield its SQLAlchemy URL, and remove it; a given URL is used as it is.

    Raises:
        LookupError: there is none to be had.
    """
    given = os.environ.get("CQRS_TEST_MARIADB")
    if given:
        yield given
        return
    daemon, install = binary("mariadbd"), binary("mariadb-install-db")
    if daemon is None or install is None:
        raise LookupError("no MariaDB: install mariadb-server, or set CQRS_TEST_MARIADB to mysql+pymysql://...")
    # In the open, because the server runs as another user under root.
    directory = Path(tempfile.mkdtemp(prefix="cqrs-maria-"))
    try:
        yield from _run(daemon, install, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(daemon: str, install: str, directory: Path) -> Iterator[str]:
    port, user = _free_port(), _unprivileged_user(directory)
    data = directory / "data"
    subprocess.run(
        # Its root has no password: the server listens to this machine alone and lives for one test session.
        [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *user],
        check=True,
        capture_output=True,
        cwd=directory,
    )
    settings = {
        "datadir": data,
        "port": port,
        "bind-address": "127.0.0.1",
        "socket": directory / "socket",
        "pid-file": directory / "pid",
        "innodb-flush-log-at-trx-commit": 0,  # safe against killed processes, and all a test needs
        "innodb-flush-method": "nosync",
        "innodb-buffer-pool-size": "32M",
        "innodb-log-file-size": "16M",
        "skip-name-resolve": "ON",
        # Not what the outbox needs, so that it has to ask for it.
        "character-set-server": "latin1",
        "default-time-zone": "+05:00",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([daemon, "--no-defaults", *options, *user], stdout=log, stderr=log, cwd=directory)
        try:
            _wait_until_it_answers(process, port, directory / "log")
            yield f"mysql+pymysql://root@127.0.0.1:{port}/test"
        finally:
            process.kill()
            process.wait()


def _unprivileged_user(directory: Path) -> list[str]:
    """MariaDB refuses to run as root, and changes to another user by itself."""
    if os.geteuid() != 0:
        return []
    for name in ("mysql", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            return [f"--user={name}"]
    return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import pymysql

    for _ in range(600):
        if process.poll() is not None:
            break
        with contextlib.suppress(pymysql.OperationalError):
            connection = pymysql.connect(host="127.0.0.1", port=port, user="root")
            connection.query("CREATE DATABASE IF NOT EXISTS test")
            connection.close()
            return
        time.sleep(0.05)
    raise LookupError(f"MariaDB did not start: {log.read_text(errors='replace')[-2000:]}")
