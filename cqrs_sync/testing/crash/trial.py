"""One scenario under trial: plays its cases and judges what came of them."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.testing.crash.case import Case, ScenarioError, case_name
from cqrs_sync.testing.crash.ledger import Ledger
from cqrs_sync.testing.crash.orders import ENDED, RAISED, Order
from cqrs_sync.testing.crash.references import Reference
from cqrs_sync.testing.crash.report import Finding, NotSurvived, Report, points, where
from cqrs_sync.testing.crash.runners import Runner
from cqrs_sync.testing.crash.scenario import Check, Scenario
from cqrs_sync.testing.crash.search import Kills, Search


@dataclasses.dataclass
class Played:
    """A case that was played: what it left, and which of its processes failed by itself, with which exit code."""

    case: Case
    failed: tuple[int, int] | None = None

    @property
    def ledger(self) -> Ledger:
        """The record as it is now."""
        return Ledger.of(self.case)


class Trial:
    """Plays the cases of one scenario.

    Args:
        scenario: what is killed.
        check: the user's judgement.
        runners: where processes run; one case for each at a time.
        home: the directory of all cases.
        timeout: seconds for one process.
    """

    def __init__(
        self, scenario: Scenario, check: Check, runners: Sequence[Runner], *, home: Path, timeout: float
    ) -> None:
        self._scenario = scenario
        self._check = check
        self._runners = runners
        self._home = home
        self._timeout = timeout
        self._run = Reference.to(scenario.run)
        self._prepare = Reference.to(scenario.prepare) if scenario.prepare else None
        self._recover = Reference.to(scenario.recover) if scenario.recover else None
        self._ledgers: list[Ledger] = []
        self._findings: list[Finding] = []

    def play_one(self, kills: Kills) -> Report:
        """Play a single case."""
        self._allow(len(kills))
        (played,) = self._play([kills])
        ledger = played.ledger
        if played.failed is None and len(ledger.kills) < len(kills):
            raise ScenarioError(f"the scenario ended without reaching {points(kills)}:\n{ledger}")
        self._judge(played, ledger)
        return self._report()

    def play_all(self, crashes: int) -> Report:
        """Play the undisturbed case and all that follow from it; a process that hangs is the end of it."""
        self._allow(crashes)
        search = Search(crashes)
        hung = False
        while not hung and (batch := search.take(len(self._runners))):
            for played in self._play(batch):
                ledger = played.ledger
                hung |= played.failed is not None and played.failed[1] != RAISED
                reached = len(ledger.kills) == len(ledger.case.kills)
                new = search.learn(ledger) if reached or played.failed is None else True
                if new:
                    self._judge(played, ledger)
        return self._report(search.missed)

    def _allow(self, crashes: int) -> None:
        if crashes < 1:
            raise ConfigurationError(f"crashes={crashes}: a process has to be killed for there to be a crash")
        if crashes > 1 and self._recover is None:
            raise ConfigurationError("a second crash needs a recover that can be killed")

    def _play(self, batch: Sequence[Kills]) -> list[Played]:
        """Play some cases at a time, process by process."""
        all_played = [Played(self._fresh(kills)) for kills in batch]
        live = list(zip(all_played, self._runners, strict=False))
        start = 0
        while live:
            for played, runner in live:
                runner.begin(self._order(played.case, start))
            live = [(played, runner) for played, runner in live if self._goes_on(played, runner.finish(), start)]
            start += 1
        return all_played

    def _fresh(self, kills: Kills) -> Case:
        case = Case(home=self._home / case_name(kills), kills=kills, settings=dict(self._scenario.settings))
        shutil.rmtree(case.home, ignore_errors=True)  # what an earlier try left
        case.directory.mkdir(parents=True)
        return case

    def _order(self, case: Case, start: int) -> Order:
        flow = self._recover if start and self._recover else self._run
        prepare = None if start else self._prepare
        return Order(case=case, start=start, flow=flow, prepare=prepare, timeout=self._timeout)

    def _goes_on(self, played: Played, code: int, start: int) -> bool:
        """Whether there is another process after this one, which ended as it should."""
        killed = len(played.ledger.kills) > start
        if killed or code == ENDED:
            as_planned = killed == (start < len(played.case.kills))
            return as_planned and self._recover is not None and start < max(1, len(played.case.kills))
        played.failed = (start, code)
        return False

    def _judge(self, played: Played, ledger: Ledger) -> None:
        self._ledgers.append(ledger)
        failure = self._failure(played, ledger)
        if failure is not None:
            if not ledger.case.kills and failure.start == 0:
                raise failure  # it does not even work when nobody kills it
            self._findings.append(Finding(ledger, failure))
            return
        try:
            self._check(ledger)
        except Exception as error:
            self._findings.append(Finding(ledger, error))
        except BaseException as error:  # pytest.fail() among others
            error.add_note(where(ledger))
            raise

    def _failure(self, played: Played, ledger: Ledger) -> ScenarioError | None:
        """What a process did that was not killed and did not end."""
        if played.failed is None:
            return None
        start, code = played.failed
        output = ledger.output(start)
        if code == RAISED:
            what = f"raised:\n{ledger.traceback(start)}"
        elif "Timeout (" in output:
            what = f"was still at work after {self._timeout} s"
        else:
            what = f"ended by itself with exit code {code}"
        function = self._order(ledger.case, start).flow
        return ScenarioError(f"{function} {what}\n{output}".rstrip(), start)

    def _report(self, missed: Sequence[Kills] = ()) -> Report:
        if self._findings:
            raise NotSurvived(self._findings, len(self._ledgers)) from self._findings[0].error
        if missed and self._scenario.steady:
            raise ScenarioError(
                f"not reached in {Search.TRIES} tries: {'; '.join(map(points, missed))}. The scenario does not do the "
                "same each time: make it, or pass steady=False if it has threads of its own"
            )
        return Report(tuple(self._ledgers), tuple(map(points, missed)))
