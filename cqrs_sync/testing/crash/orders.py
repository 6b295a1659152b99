"""What the test's process and the scenario's processes say to each other: one line of JSON each way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

from cqrs_sync.testing.crash.case import Case, KillPoint
from cqrs_sync.testing.crash.references import Reference

ENDED = 0
RAISED = 70
"""Exit codes; a process that hangs ends with another one, a killed one with the signal's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """One process to run.

    Attributes:
        case: the case that it is part of.
        start: which of the case's processes it is, from 0.
        flow: what it runs.
        prepare: what it does before, uncounted.
        timeout: seconds after which it has failed.
    """

    case: Case
    start: int
    flow: Reference
    prepare: Reference | None
    timeout: float

    @property
    def kill(self) -> KillPoint | None:
        """Where it dies."""
        return self.case.kills[self.start] if self.start < len(self.case.kills) else None

    def to_json(self) -> str:
        """Return it as one line."""
        fields: dict[str, Any] = {
            "home": str(self.case.home),
            "kills": ", ".join(map(str, self.case.kills)),
            "settings": dict(self.case.settings),
            "start": self.start,
            "flow": dataclasses.astuple(self.flow),
            "prepare": dataclasses.astuple(self.prepare) if self.prepare else None,
            "timeout": self.timeout,
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        fields = json.loads(line)
        kills = KillPoint.parse(fields["kills"]) if fields["kills"] else ()
        return cls(
            case=Case(home=Path(fields["home"]), kills=kills, settings=fields["settings"]),
            start=fields["start"],
            flow=Reference(*fields["flow"]),
            prepare=Reference(*fields["prepare"]) if fields["prepare"] else None,
            timeout=fields["timeout"],
        )
