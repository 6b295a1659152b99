"""A file to which several processes append, and which is read while they do, and are killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def append_to(path: Path) -> int:
    """Open the file for :func:`note`; ``os.close`` what is returned."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(file: int, **values: Any) -> None:
    """Append an entry by one write, so that those of several processes do not mix.

    One write may still be seen in parts, and a process may be killed between them. An entry begins a line of its own,
    so that half of one does not spoil the next.
    """
    os.write(file, f"\n{json.dumps(values)}\n".encode())


def entries(path: Path) -> list[dict[str, Any]]:
    """All whole entries so far, oldest first; none if there is no file yet."""
    return [entry for line in path.read_bytes().splitlines() if (entry := _entry(line))] if path.exists() else []


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] | None = json.loads(line) if line else None
    except ValueError:  # half of one
        return None
    return entry
