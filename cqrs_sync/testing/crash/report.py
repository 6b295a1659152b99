"""What came of it: all the ledgers, or the crashes that were not survived."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cqrs_sync.errors import CQRSError
from cqrs_sync.testing.crash.case import KillPoint
from cqrs_sync.testing.crash.ledger import Boundary, Ledger


@dataclasses.dataclass(frozen=True)
class Report:
    """What was tried and survived.

    Attributes:
        ledgers: one for each case; the first is the undisturbed one, unless ``only`` was given.
        missed: points that were not reached in three tries, as ``only`` takes them.
    """

    ledgers: tuple[Ledger, ...]
    missed: tuple[str, ...] = ()

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        """The boundaries of ``run`` in the first case."""
        return tuple(boundary for boundary in self.ledgers[0].boundaries if boundary.start == 0)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A crash that was not survived.

    Attributes:
        ledger: what happened.
        error: what the check raised, or what the scenario did.
    """

    ledger: Ledger
    error: Exception

    def __str__(self) -> str:
        reason = str(self.error).strip().partition("\n")[0]
        return f"{where(self.ledger)}: {type(self.error).__name__}{reason and ': '}{reason}"


class NotSurvived(CQRSError, AssertionError):
    """The check or the recovery failed after some of the crashes; the text names each, and tells the first in full.

    Attributes:
        findings: the crashes, in the order in which they were tried.
    """

    def __init__(self, findings: Sequence[Finding], tried: int) -> None:
        self.findings = tuple(findings)
        first = self.findings[0]
        lines = [f"{len(self.findings)} of {tried} cases were not survived"]
        lines += [f"  {finding}" for finding in self.findings]
        if first.ledger.case.kills:
            lines.append(f'To repeat the first alone: only="{points(first.ledger.case.kills)}". What happened in it:')
        lines += ["", str(first.ledger), f"files: {first.ledger.case.home}"]
        super().__init__("\n".join(lines))


def points(kills: Sequence[KillPoint]) -> str:
    """The kill points as ``only`` takes them."""
    return ", ".join(map(str, kills))


def where(ledger: Ledger) -> str:
    """Where a case was killed, in words."""
    if not ledger.case.kills:
        return "without any crash"
    boundary = ledger.killed_at if ledger.kills == ledger.case.kills else None
    return f"killed at {points(ledger.case.kills)}" + (f" ({boundary})" if boundary else "")
