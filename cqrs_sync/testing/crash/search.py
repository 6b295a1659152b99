"""Which points to try next: every boundary, before and after, for as long as there are more."""

from __future__ import annotations

from collections import Counter, deque

from cqrs_sync.testing.crash.case import KillPoint
from cqrs_sync.testing.crash.ledger import Ledger

Kills = tuple[KillPoint, ...]


class Search:
    """Starts with the undisturbed case, whose boundaries are then tried one by one.

    One more than were counted is always tried too: the search is over when a process has come to its end unharmed, and
    not when a number is reached that came from another run.

    Args:
        depth: how many processes of a case are killed, one after the other.
    """

    TRIES = 3
    """How often a point is tried that a scenario with threads of its own does not always reach."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._pending: deque[Kills] = deque([()])
        self._counted: dict[Kills, int] = {}
        self._tries: Counter[Kills] = Counter()
        self.missed: list[Kills] = []

    def take(self, limit: int) -> list[Kills]:
        """Return the next ones; nothing is left when it is empty."""
        return [self._pending.popleft() for _ in range(min(limit, len(self._pending)))]

    def learn(self, ledger: Ledger) -> bool:
        """Take in what came of it; False if a point was not reached, so that the case says nothing new."""
        kills = ledger.case.kills
        if len(ledger.kills) < len(kills):
            self._retry(kills)
            return False
        if kills:
            self._lengthen(kills[:-1], kills[-1])
        if len(kills) < self._depth:
            self._counted[kills] = ledger.reached(len(kills))
            for number in range(1, self._counted[kills] + 1):
                self._add(kills, number, "before", "after")
            self._add(kills, self._counted[kills] + 1, "before")
        return True

    def _retry(self, kills: Kills) -> None:
        if kills[-1].boundary > self._counted[kills[:-1]]:
            return  # there was none, as expected
        self._tries[kills] += 1
        if self._tries[kills] < self.TRIES:
            self._pending.append(kills)
        else:
            self.missed.append(kills)

    def _lengthen(self, before: Kills, kill: KillPoint) -> None:
        """This run had more boundaries than the one that was counted."""
        if kill.boundary > self._counted[before]:
            self._counted[before] = kill.boundary
            self._add(before, kill.boundary, "after")
            self._add(before, kill.boundary + 1, "before")

    def _add(self, before: Kills, number: int, *sides: str) -> None:
        for side in sides:
            self._pending.append((*before, KillPoint(number, "before" if side == "before" else "after")))
