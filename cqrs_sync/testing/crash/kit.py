"""Runs a scenario once for each place where it can be killed."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cqrs_sync.testing.crash.case import KillPoint
from cqrs_sync.testing.crash.report import NotSurvived, Report
from cqrs_sync.testing.crash.runners import ForkingRunner, Runner, SpawningRunner
from cqrs_sync.testing.crash.scenario import Check, Scenario
from cqrs_sync.testing.crash.trial import Trial


class CrashKit:
    """Kills scenarios at every I/O boundary. A context manager, for one thread.

    Args:
        directory: where ledgers, output and the cases' own files go.
        timeout: seconds that one process may take; one that takes longer is ended, and its stacks are reported.
        workers: how many cases run at a time; more than one only if cases share nothing but what ``case.name`` tells
            apart.
        fork: fork the processes from one that has everything imported; None to do so where the system can.
    """

    def __init__(self, directory: Path, *, timeout: float = 30.0, workers: int = 1, fork: bool | None = None) -> None:
        self._directory = Path(directory).resolve()
        self._timeout = timeout
        self._workers = workers
        self._runner_type = ForkingRunner if (hasattr(os, "fork") if fork is None else fork) else SpawningRunner
        self._runners: list[Runner] = []
        self._runs = 0

    def run(self, scenario: Scenario, check: Check, *, only: str | None = None, crashes: int = 1) -> Report:
        """Run the scenario undisturbed, then once for each side of each boundary, and check the ledger each time.

        Args:
            scenario: what to kill.
            check: raises if the ledger, or the database, is not as it must be. It is called in this process.
            only: the kill points of a single case, as a report prints them: ``"17 after"``.
            crashes: with 2, ``recover`` is killed at every boundary too, after every kill of ``run``: the number of
                cases is about squared.

        Raises:
            NotSurvived: the check or ``recover`` failed after one crash or more.
            ScenarioError: the scenario fails without being killed, or does not reach the same boundaries each time.
            ConfigurationError: kill points that cannot be read, or a second crash of a scenario without ``recover``.
        """
        self._runs += 1
        home = self._directory / str(self._runs)
        trial = Trial(scenario, check, self._open(), home=home, timeout=self._timeout)
        try:
            return trial.play_all(crashes) if only is None else trial.play_one(KillPoint.parse(only))
        except NotSurvived:
            raise
        except BaseException:
            self.close()  # some process may still be at work, for nobody
            raise

    def close(self) -> None:
        """End the kit's processes. Calling it twice is harmless; a closed kit starts new ones when it is used."""
        while self._runners:
            self._runners.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> list[Runner]:
        self._directory.mkdir(parents=True, exist_ok=True)
        while len(self._runners) < self._workers:
            self._runners.append(self._runner_type(self._directory / f"runner-{len(self._runners)}.log"))
        return self._runners
