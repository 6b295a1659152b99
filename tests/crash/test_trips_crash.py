"""Sagas with pivots, fallbacks, groups and retries, killed at every boundary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import sessionmaker

from cqrs_sync.saga.definition import NamedStep
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaState
from cqrs_sync.saga.storage.sqlalchemy import SqlAlchemySagaStorage
from cqrs_sync.testing.crash import CrashKit, Ledger, Report, Scenario
from tests.crash import flows_trips as flows
from tests.crash.flows_saga import engine_of, services_of
from tests.crash.flows_trips import DOES, FAILS, TIMES_OUT

LONG = pytest.mark.soak
"""For what takes hundreds of processes more, and adds a second opinion."""

ON_SQLITE = pytest.mark.parametrize("settings", ["sqlite", pytest.param("postgresql", marks=LONG)], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("settings", ["postgresql", pytest.param("sqlite", marks=LONG)], indirect=True)
COMPLETED, FAILED = SagaStatus.COMPLETED, SagaStatus.FAILED


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashKit]:
    """Two cases at a time: each has files, or a schema, of its own."""
    with CrashKit(tmp_path_factory.mktemp("trips"), workers=2) as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the sagas are."""
    return {} if request.param == "sqlite" else {"url": request.getfixturevalue("postgres_url")}


# --- what must hold ----------------------------------------------------------------------------------------------


def check(ledger: Ledger) -> SagaStatus | None:
    """The trip has ended, with one of each choice or none at all; returns how, or None where it was never stored."""
    states, calls = _read(ledger)
    if not states:
        assert calls == [], "something was done for a saga that nobody knows"
        return None
    [state] = states
    assert state.status in (COMPLETED, FAILED), "left unfinished"
    assert (state.locked_by, state.available_at) == (None, None), "somebody has it, or will have it"
    acted, undone = _effects(ledger, calls)
    left = _left(state)
    definition = flows.SAGAS[ledger.case.settings["saga"]].definition
    choices = [choice for stage in definition.stages for choice in stage.choices]
    if state.status is COMPLETED:
        assert not any(call.action == COMPENSATE for call in calls), "refunded and shipped"
        assert sorted(left) == sorted(acted), "something was done that is not known to be"
        for choice in choices:
            assert len(_names(choice.steps).intersection(acted)) == 1, f"{choice}: neither, or both"
        assert {name for name, is_booked in json.loads(state.context).items() if is_booked} == set(acted)
        return state.status
    assert left == []
    assert set(acted) <= set(undone), "not undone"
    assert not any(step.step_type.kind == "pivot" and step.name in acted for step in definition.steps), "decided"
    for choice in choices:
        asked = {call.step for call in calls if call.action == COMPENSATE}
        assert len(_names(choice.steps) & asked) <= 1, f"{choice}: both may have been done"
    return state.status


def _names(steps: Sequence[NamedStep]) -> set[str]:
    return {step.name for step in steps}


def _read(ledger: Ledger) -> tuple[list[SagaState], list[Any]]:
    with engine_of(ledger.case) as engine, services_of(ledger.case) as services:
        storage = SqlAlchemySagaStorage(sessionmaker(engine))
        states = [storage.load_saga_state(state.saga_id) for state in storage.find(list(SagaStatus))]
        with services.connect() as connection:
            return states, list(connection.execute(sa.select(flows.calls).order_by(flows.calls.c.id)))


def _effects(ledger: Ledger, calls: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The steps that had their effect, in order, and those that were undone; a service does nothing twice for a key."""
    keys = {(call.step, call.action, call.key) for call in calls}
    assert len(keys) == len({key[:2] for key in keys}), "an effect was had twice, under two keys"
    actions = [call.action for call in calls]
    assert actions == sorted(actions), "it went forward again behind its first compensation"
    had = [
        (call.step, call.action)
        for call in calls
        if flows.answer_of(ledger.case, call.step, call.action, call.number) != FAILS
    ]
    effects: dict[str, list[str]] = {ACT: [], COMPENSATE: []}
    for step, action in dict.fromkeys(had):
        effects[action].append(step)
    return effects[ACT], effects[COMPENSATE]


def _left(state: SagaState) -> list[str]:
    """What is done, or may be, and is not undone, by the log; what is undone must be the last of these."""
    done: list[str] = []
    for entry in state.history:
        if entry.action == ACT and entry.status in (SagaStepStatus.COMPLETED, SagaStepStatus.UNKNOWN):
            done = [*(step for step in done if step != entry.step_name), entry.step_name]
        elif entry.action == COMPENSATE:
            assert entry.step_name == done[-1], "not in reverse"
            if entry.status is SagaStepStatus.COMPLETED:
                done.pop()
    return done


def kill_everywhere(
    kit: CrashKit,
    saga: type[Any],
    world: dict[str, list[str]],
    settings: dict[str, Any],
    *,
    prepare: Any = flows.prepare_begun,
    crashes: int = 1,
) -> tuple[Report, Counter[SagaStatus | None]]:
    """Kill a trip wherever it can be; returns how often it ended in which way, beside the report."""
    ends: Counter[SagaStatus | None] = Counter()
    scenario = Scenario(
        prepare=prepare,
        run=flows.run,
        recover=flows.recover,
        settings={"saga": saga.__name__, "world": world, **settings},
    )
    report = kit.run(scenario, lambda ledger: ends.update([check(ledger)]), crashes=crashes)
    return report, ends


def asked(report: Report) -> set[tuple[str, str]]:
    """What the services were asked for, in any of the cases."""
    return {(call.step, call.action) for ledger in report.ledgers for call in _read(ledger)[1]}


# --- killed everywhere -------------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_pivot_that_times_out_is_never_undone(kit: CrashKit, settings: dict[str, Any]) -> None:
    """It is put off, and asked for again with its key, even where it says then that there is nothing to be had."""
    report, ends = kill_everywhere(kit, flows.Ticketed, {"Ticket": [TIMES_OUT, FAILS, DOES]}, settings)
    assert ends.keys() == {COMPLETED}
    assert asked(report) == {("Hotel", ACT), ("Ticket", ACT), ("Mail", ACT)}


@LONG
def test_a_pivot_that_fails_is_undone_unless_a_crash_has_left_it_in_doubt(
    kit: CrashKit, settings: dict[str, Any]
) -> None:
    """In doubt it is asked for until it is done."""
    report, ends = kill_everywhere(kit, flows.Ticketed, {"Ticket": [FAILS, DOES]}, settings)
    assert ends.keys() == {COMPLETED, FAILED}
    assert ("Ticket", COMPENSATE) not in asked(report)


@LONG
def test_what_fails_behind_the_pivot_is_done_at_last(kit: CrashKit, settings: dict[str, Any]) -> None:
    """By the step or by its fallback, whichever is the first to work, and not by both."""
    world = {"Mail": [FAILS, FAILS, DOES], "Message": [FAILS, TIMES_OUT, FAILS, DOES]}
    report, ends = kill_everywhere(kit, flows.Ticketed, world, settings)
    assert ends.keys() == {COMPLETED}
    assert {("Mail", ACT), ("Message", ACT)} <= asked(report)


@ON_SQLITE
def test_a_fallback_takes_over_from_what_has_failed_for_certain_alone(kit: CrashKit, settings: dict[str, Any]) -> None:
    """Whoever was killed while he paid may have paid: that is paid back, and no invoice is sent."""
    report, ends = kill_everywhere(kit, flows.Paid, {"Pay": [FAILS]}, settings)
    assert ends.keys() == {COMPLETED, FAILED}
    assert {("Invoice", ACT), ("Pay", COMPENSATE)} <= asked(report)


@LONG
def test_what_was_paid_before_a_crash_and_cannot_be_paid_behind_it_is_paid_back(
    kit: CrashKit, settings: dict[str, Any]
) -> None:
    """The fallback would have the customer pay twice."""
    report, ends = kill_everywhere(kit, flows.Paid, {"Pay": [DOES, FAILS]}, settings)
    assert ends.keys() == {COMPLETED, FAILED}
    assert ("Invoice", ACT) not in asked(report)


@LONG
@pytest.mark.parametrize("invoice", [[DOES], [DOES, FAILS], [TIMES_OUT]])
def test_a_fallback_that_was_begun_is_undone_and_not_what_it_stands_for(
    kit: CrashKit, settings: dict[str, Any], invoice: list[str]
) -> None:
    """Where there is no car at last."""
    report, ends = kill_everywhere(kit, flows.Paid, {"Pay": [FAILS], "Invoice": invoice, "Car": [FAILS]}, settings)
    assert ends.keys() == {FAILED}
    assert ("Invoice", COMPENSATE) in asked(report)


@ON_POSTGRESQL
def test_a_step_that_is_tried_again_behind_a_timeout_is_done_once(kit: CrashKit, settings: dict[str, Any]) -> None:
    """And undone once, where the last attempt fails: the first may have had its effect."""
    world = {"Flight": [TIMES_OUT, FAILS, DOES], "Car": [FAILS]}
    report, ends = kill_everywhere(kit, flows.Retried, world, settings, prepare=flows.prepare)
    assert ends.keys() == {FAILED, None}
    assert ("Flight", COMPENSATE) in asked(report)


@LONG
def test_a_group_of_which_one_fails_is_undone(kit: CrashKit, settings: dict[str, Any]) -> None:
    """In reverse of the order in which its steps were done, with the fallback that has taken over."""
    world = {"Flight": [FAILS], "Guide": [FAILS]}
    report, ends = kill_everywhere(kit, flows.Grouped, world, settings, prepare=flows.prepare)
    assert ends.keys() == {FAILED, None}
    assert ("Train", COMPENSATE) in asked(report)


@LONG
@pytest.mark.parametrize(
    "world",
    [
        {},
        {"Flight": [FAILS]},
        {"Flight": [DOES, FAILS], "Hotel": [TIMES_OUT]},
        {"Guide": [FAILS], "-Hotel": [FAILS, DOES]},
    ],
)
def test_a_group_is_done_or_undone_as_a_whole(
    kit: CrashKit, settings: dict[str, Any], world: dict[str, list[str]]
) -> None:
    """Whichever of its steps is killed."""
    kill_everywhere(kit, flows.Grouped, world, settings, prepare=flows.prepare)


@LONG
@pytest.mark.parametrize(
    ("saga", "world"),
    [
        (flows.Ticketed, {"Ticket": [TIMES_OUT, DOES]}),
        (flows.Paid, {"Pay": [DOES, FAILS]}),
        (flows.Retried, {"Flight": [TIMES_OUT, DOES], "Car": [FAILS]}),
    ],
)
def test_two_crashes_in_a_row_change_nothing(kit: CrashKit, saga: Any, world: dict[str, list[str]]) -> None:
    """The recovery is killed at every boundary, after every kill."""
    report, _ = kill_everywhere(kit, saga, world, {}, crashes=2)
    assert max(len(ledger.kills) for ledger in report.ledgers) == 2
