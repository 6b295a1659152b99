"""A saga of four steps, killed at every boundary between its creation and its end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaState
from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from cqrs_sync.testing.crash import CrashKit, Ledger, NotSurvived, Report, Scenario
from tests.crash import flows_saga as flows

STEPS = ["Reserve", "Invoice", "Charge", "Ship"]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashKit]:
    """Two cases at a time: each has files, or a schema, of its own."""
    with CrashKit(tmp_path_factory.mktemp("saga"), workers=2) as found:
        yield found


LONG = pytest.mark.soak
"""For what takes hundreds of processes more, and adds a second opinion."""

ON_SQLITE = pytest.mark.parametrize("settings", ["sqlite", pytest.param("postgresql", marks=LONG)], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("settings", ["postgresql", pytest.param("sqlite", marks=LONG)], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the sagas are."""
    return {} if request.param == "sqlite" else {"url": request.getfixturevalue("postgres_url")}


# --- what must hold ----------------------------------------------------------------------------------------------


def check(ledger: Ledger) -> SagaStatus | None:
    """The saga has ended, completed or undone; returns which, or None where it was never stored."""
    states, calls, invoices = _read(ledger)
    if not states:
        assert (calls, invoices) == ([], []), "something was done for a saga that nobody knows"
        return None
    [state] = states
    assert state.status in (SagaStatus.COMPLETED, SagaStatus.FAILED), "left unfinished"
    assert (state.locked_by, state.available_at) == (None, None), "somebody has it, or will have it"
    acted, undone = _effects(calls, len(ledger.kills))
    _check_log(state)
    if state.status is SagaStatus.COMPLETED:
        assert (acted, undone, invoices) == (["Reserve", "Charge", "Ship"], [], ["invoice"])
        assert json.loads(state.context) == {"done": STEPS}
        return state.status
    assert acted == ["Reserve", "Charge", "Ship"][: len(acted)]
    assert [step for step in undone if step in acted] == acted[::-1], "not undone, or not in reverse"
    assert undone[: len(undone) - len(acted)] in ([], ["Ship"]), "only the step in doubt may have had no effect"
    assert invoices in ([], ["invoice", "credit note"])
    return state.status


def _read(ledger: Ledger) -> tuple[list[SagaState], list[Any], list[str]]:
    with flows.engine_of(ledger.case) as engine, flows.services_of(ledger.case) as services:
        storage = SqlAlchemySagaStorage(sessionmaker(engine))
        states = [storage.load_saga_state(state.saga_id) for state in storage.find(list(SagaStatus))]
        with services.connect() as connection:
            calls = list(connection.execute(sa.select(flows.calls).order_by(flows.calls.c.id)))
        with engine.connect() as connection:
            kinds = connection.scalars(sa.select(flows.invoices.c.kind).order_by(flows.invoices.c.id))
            return states, calls, list(kinds)


def _effects(calls: Sequence[Any], kills: int) -> tuple[list[str], list[str]]:
    """The steps that had their effect, in order, and those that were undone; a service does nothing twice for a key."""
    asked = Counter((call.step, call.action) for call in calls)
    keys = {(call.step, call.action, call.key) for call in calls}
    assert len(keys) == len(asked), "an effect was had twice, under two keys"
    assert not asked or max(asked.values()) <= 1 + kills, "asked for again although nobody was killed"
    actions = [call.action for call in calls]
    assert actions == sorted(actions), "it went forward again behind its first compensation"
    return [step for step, action in asked if action == ACT], [step for step, action in asked if action == COMPENSATE]


def _check_log(state: SagaState) -> None:
    """Each step is recorded once, and what was done, or may have been, is undone in reverse."""
    done: list[str] = []
    recorded = Counter((entry.step_name, entry.action) for entry in state.history)
    assert max(recorded.values()) == 1
    for entry in state.history:
        if entry.action == ACT and entry.status in (SagaStepStatus.COMPLETED, SagaStepStatus.UNKNOWN):
            done.append(entry.step_name)
        elif entry.action == COMPENSATE:
            assert entry.step_name == done.pop()
    assert done == (STEPS if state.status is SagaStatus.COMPLETED else [])


def kill_everywhere(
    kit: CrashKit,
    ending: str,
    settings: dict[str, Any],
    *,
    prepare: Any = flows.prepare,
    recover: Any = flows.recover,
    crashes: int = 1,
) -> tuple[Report, Counter[SagaStatus | None]]:
    """Kill a saga wherever it can be; returns how often it ended in which way, beside the report."""
    ends: Counter[SagaStatus | None] = Counter()
    scenario = Scenario(prepare=prepare, run=flows.run, recover=recover, settings={"ending": ending, **settings})
    report = kit.run(scenario, lambda ledger: ends.update([check(ledger)]), crashes=crashes)
    return report, ends


def repeated(report: Report) -> set[tuple[str, str]]:
    """What a service was asked for twice."""
    return {call for ledger in report.ledgers for call, times in _asked(ledger).items() if times > 1}


def _asked(ledger: Ledger) -> Counter[tuple[str, str]]:
    """How often the services were asked for what."""
    return Counter((call.step, call.action) for call in _read(ledger)[1])


# --- killed everywhere -------------------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_a_saga_that_is_killed_anywhere_is_completed(kit: CrashKit, settings: dict[str, Any]) -> None:
    """Each effect once, however often it was asked for; the one that is written next to the saga is asked for once."""
    report, ends = kill_everywhere(kit, "completes", settings)
    assert ends.keys() == {SagaStatus.COMPLETED, None}
    assert ends[None] <= 2 * (1 if "url" in settings else 2)  # killed before it was stored
    assert repeated(report) == {("Reserve", ACT), ("Charge", ACT), ("Ship", ACT)}


@ON_SQLITE
def test_a_saga_whose_last_step_fails_is_undone_wherever_it_is_killed(kit: CrashKit, settings: dict[str, Any]) -> None:
    """In reverse, each compensation once for its key."""
    report, ends = kill_everywhere(kit, "fails", settings, recover=flows.recover_by_id)
    assert ends.keys() == {SagaStatus.FAILED, None}
    undone = {(step, COMPENSATE) for step in ("Reserve", "Charge")}
    assert repeated(report) == {("Reserve", ACT), ("Charge", ACT), *undone}


@ON_POSTGRESQL
def test_a_saga_that_could_ship_after_the_restart_is_never_refunded_and_shipped(
    kit: CrashKit, settings: dict[str, Any]
) -> None:
    """Killed before it has turned back it is completed; behind that it is undone, truck or no truck."""
    _, ends = kill_everywhere(kit, "fails first", settings, prepare=flows.prepare_charged)
    assert ends.keys() == {SagaStatus.COMPLETED, SagaStatus.FAILED}


def test_a_step_that_may_have_been_done_and_fails_after_the_restart_is_undone(kit: CrashKit) -> None:
    """The truck that has perhaps left is called back, and before the refund."""
    report, ends = kill_everywhere(kit, "fails later", {}, prepare=flows.prepare_charged)
    assert ends.keys() == {SagaStatus.COMPLETED, SagaStatus.FAILED}
    assert any(("Ship", COMPENSATE) in _asked(ledger) for ledger in report.ledgers)


@LONG
def test_a_step_whose_outcome_is_unknown_is_undone_wherever_it_is_killed(
    kit: CrashKit, settings: dict[str, Any]
) -> None:
    """Each time."""
    report, ends = kill_everywhere(kit, "times out", settings, prepare=flows.prepare_charged)
    assert ends.keys() == {SagaStatus.FAILED}
    assert ("Ship", COMPENSATE) in repeated(report)


# --- the check can fail ------------------------------------------------------------------------------------------


def test_a_turn_that_is_not_stored_before_the_first_compensation_would_be_found(kit: CrashKit) -> None:
    """What is refunded would be shipped."""
    with pytest.raises(NotSurvived, match="forward again behind its first compensation"):
        kill_everywhere(kit, "fails first", {"wrong": "turn"}, prepare=flows.prepare_charged)


@LONG
def test_services_that_are_given_another_key_each_time_would_be_found(kit: CrashKit) -> None:
    """They would do it twice."""
    with pytest.raises(NotSurvived, match="an effect was had twice"):
        kill_everywhere(kit, "completes", {"wrong": "keys"}, prepare=flows.prepare_charged)


@LONG
@pytest.mark.parametrize("ending", ["completes", "fails", "fails first", "fails later", "times out"])
def test_two_crashes_in_a_row_change_nothing(kit: CrashKit, settings: dict[str, Any], ending: str) -> None:
    """The recovery is killed at every boundary, after every kill."""
    report, ends = kill_everywhere(kit, ending, settings, prepare=flows.prepare_charged, crashes=2)
    assert max(len(ledger.kills) for ledger in report.ledgers) == 2
    assert ends[SagaStatus.COMPLETED if ending == "completes" else SagaStatus.FAILED] > 50
