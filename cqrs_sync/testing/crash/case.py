"""What one life of a scenario is given: where it is killed, and a place of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from cqrs_sync.errors import ConfigurationError, CQRSError

When = Literal["before", "after"]


@dataclasses.dataclass(frozen=True, order=True)
class KillPoint:
    """Where a process is killed.

    Attributes:
        boundary: the number of the boundary, from 1, in the order in which the process reaches them.
        when: ``before`` the effect, or ``after`` it, when the answer has not returned yet.
    """

    boundary: int
    when: When

    def __str__(self) -> str:
        return f"{self.boundary} {self.when}"

    @classmethod
    def parse(cls, text: str) -> tuple[Self, ...]:
        """Read what a report prints: ``"17 after"``, or ``"17 after, 3 before"`` for two crashes in a row."""
        points = []
        for part in text.split(","):
            match = re.fullmatch(r"\s*([1-9]\d*) (before|after)\s*", part)
            if match is None:
                raise ConfigurationError(f"{text!r} names no kill points; they look like '17 after', one per crash")
            points.append(cls(int(match[1]), "before" if match[2] == "before" else "after"))
        return tuple(points)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What ``prepare``, ``run`` and ``recover`` are called with, and what a check finds as ``ledger.case``.

    Attributes:
        home: where the kit keeps the ledger and the output of this case.
        kills: where it is killed: one point for each crash, none in the undisturbed case.
        settings: what the scenario was given, as JSON values.
    """

    home: Path
    kills: tuple[KillPoint, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """An empty directory of this case, for its database file, say."""
        return self.home / "files"

    @property
    def name(self) -> str:
        """A name that no other case of the scenario has, fit for a schema, a database or a topic."""
        return case_name(self.kills)

    @property
    def ledger_file(self) -> Path:
        """Where the entries are written."""
        return self.home / "ledger.jsonl"

    def output_file(self, start: int) -> Path:
        """What the process of the given start wrote to stdout and stderr; the first has number 0."""
        return self.home / f"start-{start}.log"


def case_name(kills: tuple[KillPoint, ...]) -> str:
    """The name of the case with these kills."""
    return "_".join(["killed", *(f"{kill.when}_{kill.boundary}" for kill in kills)]) if kills else "not_killed"


class ScenarioError(CQRSError, RuntimeError):
    """The scenario failed by itself: it raised, hung, or did not get where it should have been killed.

    Attributes:
        start: which of the case's processes failed, from 0; None where it was none of them.
    """

    def __init__(self, text: str, start: int | None = None) -> None:
        self.start = start
        super().__init__(text)
