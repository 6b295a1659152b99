"""SQL in a scenario: every engine of the process under observation."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, event

from cqrs_sync.testing.crash.ledger import Kind
from cqrs_sync.testing.crash.recorder import Recorder

# The events of SQLAlchemy come before a COMMIT only. These methods of a dialect are where every driver is called, and
# they return when it has answered, so both sides of each effect can be had. Savepoints are statements here. A plain
# ROLLBACK is left out: it is what a kill leads to anyway, so there is nothing to tell apart before and after it.
_CALLS: dict[str, tuple[Kind, str]] = {
    "do_execute": ("statement", ""),
    "do_execute_no_params": ("statement", ""),
    "do_executemany": ("statement", ""),
    "do_commit": ("commit", "COMMIT"),
    "do_prepare_twophase": ("prepare", "PREPARE TRANSACTION"),
    "do_commit_twophase": ("commit", "COMMIT PREPARED"),
    "do_rollback_twophase": ("rollback", "ROLLBACK PREPARED"),
}


def observe_engines(recorder: Recorder) -> None:
    """Count the statements and commits of every engine, whenever it is or was created."""

    def on_connect(connection: Connection) -> None:
        dialect = connection.engine.dialect
        if not hasattr(dialect, "__crash_observed__"):
            setattr(dialect, "__crash_observed__", True)  # noqa: B010 (an attribute that no checker knows)
            for name, (kind, label) in _CALLS.items():
                _observe(dialect, name, recorder, (kind, label))

    event.listen(Engine, "engine_connect", on_connect)


def _observe(dialect: Dialect, name: str, recorder: Recorder, shown: tuple[Kind, str]) -> None:
    call: Callable[..., Any] = getattr(dialect, name)
    kind, label = shown

    def observed(*arguments: Any, **options: Any) -> Any:
        with recorder.crossing(kind, label or statement_label(arguments[1])):
            return call(*arguments, **options)

    setattr(dialect, name, observed)


_NOISE = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/", re.DOTALL)
_NAME = r"\s+(?:ONLY\s+)?([\w.\"`\[\]]+)"
_WRITES = re.compile(
    r"(?<!FOR )(?<!KEY )\b(INSERT(?:\s+OR\s+\w+)?\s+INTO|REPLACE\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO)" + _NAME,
    re.IGNORECASE,
)
_READS = re.compile(r"\bFROM" + _NAME, re.IGNORECASE)
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z_]\w*(?:\s+[A-Za-z_]\w*)?")


def statement_label(sql: str) -> str:
    """What a statement does to which table, without any value of it.

    >>> statement_label("INSERT INTO orders (id, name) VALUES (1, 'Ada')")
    'INSERT INTO orders'
    >>> statement_label("SELECT id FROM outbox ORDER BY id FOR UPDATE SKIP LOCKED")
    'SELECT FROM outbox FOR UPDATE'
    """
    text = _NOISE.sub(" ", sql).strip()
    first = text[:6].upper()
    writes = None if first == "SELECT" else _WRITES.search(text)
    if writes is not None and (first.startswith("WITH") or not writes.start()):
        return f"{' '.join(writes[1].upper().split())} {writes[2]}"
    if first == "SELECT" or first.startswith("WITH"):
        reads = _READS.search(text)
        return "SELECT" + (f" FROM {reads[1]}" if reads else "") + (" FOR UPDATE" if _LOCKS.search(text) else "")
    words = _WORDS.match(text)
    return words[0] if words else "?"
