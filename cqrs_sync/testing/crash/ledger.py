"""The record of what happened, which outlives the processes that wrote it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.testing.crash.case import Case, KillPoint

Kind = Literal["statement", "commit", "rollback", "prepare", "send", "batch", "own"]


@dataclasses.dataclass(frozen=True)
class Boundary:
    """One boundary that a process reached.

    Attributes:
        start: 0 for the first process, 1 for the one that recovers, and so on.
        number: its place in that process, from 1.
        kind: ``statement``, ``commit``, ``send``, ``batch`` or ``own``; ``prepare`` and ``rollback`` in two phases.
        label: what it was about, without any value: ``INSERT INTO orders``.
        thread: the thread's name.
    """

    start: int
    number: int
    kind: Kind
    label: str
    thread: str

    def __str__(self) -> str:
        return f"{self.kind} {self.label}"


class Ledger:
    """What happened in one case, over all its processes; ``str()`` tells it line by line.

    Attributes:
        case: the case, with its directory and settings.
        entries: everything, oldest first, as it stands in the file.
    """

    def __init__(self, case: Case, entries: Sequence[Mapping[str, Any]]) -> None:
        self.case = case
        self.entries = tuple(entries)

    @classmethod
    def of(cls, case: Case) -> Self:
        """Read what has been written so far; a scenario may do this too, as the memory of the world outside."""
        try:
            lines = case.ledger_file.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        return cls(case, [entry for entry in map(_entry, lines) if entry is not None])

    @functools.cached_property
    def boundaries(self) -> tuple[Boundary, ...]:
        """Every boundary that was reached, oldest first."""
        names = [field.name for field in dataclasses.fields(Boundary)]
        return tuple(Boundary(**{name: entry[name] for name in names}) for entry in self._of("reached"))

    @property
    def kills(self) -> tuple[KillPoint, ...]:
        """Where processes were really killed, oldest first; nothing in the undisturbed case."""
        return tuple(KillPoint(entry["number"], entry["when"]) for entry in self._of("killed"))

    @property
    def killed_at(self) -> Boundary | None:
        """The boundary of the last kill; ``kills[-1].when`` says on which side of the effect."""
        killed = [(entry["start"], entry["number"]) for entry in self._of("killed")]
        found = [boundary for boundary in self.boundaries if killed and (boundary.start, boundary.number) == killed[-1]]
        return found[-1] if found else None

    @property
    def messages(self) -> list[Message]:
        """What a :class:`LedgerBroker` was sent, oldest first. Values that JSON does not know have become text."""
        return [_message(entry["message"]) for entry in self._of("message")]

    def notes(self, name: str) -> list[dict[str, Any]]:
        """The values of the notes of this name, oldest first, over all processes."""
        return [dict(entry["values"]) for entry in self._of("note") if entry["name"] == name]

    def reached(self, start: int) -> int:
        """How many boundaries the process of this start reached."""
        return sum(boundary.start == start for boundary in self.boundaries)

    def traceback(self, start: int) -> str | None:
        """What the process of this start raised."""
        raised = [entry["traceback"] for entry in self._of("raised") if entry["start"] == start]
        return str(raised[-1]) if raised else None

    def output(self, start: int) -> str:
        """What the process of this start wrote to stdout and stderr; the end of it."""
        try:
            written = self.case.output_file(start).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return written[-8000:]

    def __str__(self) -> str:
        return "\n".join(line for line in map(_line, self.entries) if line)

    def __repr__(self) -> str:
        return f"<Ledger of {self.case.name}, {len(self.entries)} entries>"

    def _of(self, kind: str) -> list[Mapping[str, Any]]:
        return [entry for entry in self.entries if entry["entry"] == kind]


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line as an entry; None for one that another thread was just writing when the process was killed."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry


def _message(fields: Mapping[str, Any]) -> Message:
    content = fields.get("payloadBytes")
    return Message(
        message_name=fields["messageName"],
        topic=fields["topic"],
        payload=fields["payload"],
        message_id=uuid.UUID(fields["messageId"]),
        payload_bytes=None if content is None else base64.b64decode(content),
        content_type=fields.get("contentType"),
        headers=fields.get("headers"),
        key=fields.get("key"),
    )


def _line(entry: Mapping[str, Any]) -> str:
    """The entry for people; empty for one that says nothing new to them."""
    match entry["entry"]:
        case "start":
            return f"start {entry['start']}: {entry['function']}"
        case "reached":
            return f"{entry['number']:>5} {entry['kind']:<9} {entry['label']}"
        case "killed":
            return f"      KILLED {entry['when']} {entry['number']}"
        case "note":
            return f"      note {entry['name']} {json.dumps(entry['values'])}"
        case "message":
            return f"      message {entry['message']['messageName']} to {entry['message']['topic']}"
        case "raised":
            return f"      raised {entry['traceback'].strip().rpartition(chr(10))[2]}"
        case "passed":
            return f"      {entry['number']} raised {entry['error']}" if entry["error"] else ""
        case _:
            return "      ended"
