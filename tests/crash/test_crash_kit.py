"""The crash kit finds the mistakes that it is there to find, and leaves what is right alone."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from cqrs_sync.errors import ConfigurationError
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.testing.crash import Case, CrashKit, Ledger, LedgerBroker, NotSurvived, Report, Scenario, ScenarioError
from cqrs_sync.testing.crash.sql import statement_label
from tests.crash import flows_edges, flows_orders
from tests.crash.flows_orders import nothing_lost_nothing_invented


def anything(ledger: Ledger) -> None:
    """A check that is content."""


def order(run: Any, recover: Any = flows_orders.drain, **settings: Any) -> Scenario:
    return Scenario(prepare=flows_orders.tables, run=run, recover=recover, settings=settings)


def kills(report: Report) -> list[str]:
    return [", ".join(map(str, ledger.kills)) for ledger in report.ledgers]


def labels(ledger: Ledger, start: int = 0) -> list[str]:
    return [str(boundary) for boundary in ledger.boundaries if boundary.start == start]


def found(error: pytest.ExceptionInfo[NotSurvived]) -> list[tuple[str, str]]:
    return [(str(finding.ledger.kills[-1]), str(finding.ledger.killed_at)) for finding in error.value.findings]


# --- what it is for ------------------------------------------------------------------------------------------


def test_every_boundary_is_killed_on_both_sides(crash_kit: CrashKit) -> None:
    """After an undisturbed run, and in the order in which they are reached."""
    report = crash_kit.run(order(flows_orders.commit_then_send, recover=None), anything)
    assert [str(boundary) for boundary in report.boundaries] == [
        "statement INSERT INTO orders",
        "commit COMMIT",
        "send OrderPlaced1 to orders",
    ]
    assert kills(report) == ["", "1 before", "1 after", "2 before", "2 after", "3 before", "3 after"]
    assert [len(ledger.messages) for ledger in report.ledgers] == [1, 0, 0, 0, 0, 0, 1]
    assert report.missed == ()


def test_sending_after_the_commit_loses_the_event(crash_kit: CrashKit) -> None:
    """Between the two."""
    with pytest.raises(NotSurvived, match='only="2 after"') as error:
        crash_kit.run(order(flows_orders.commit_then_send), nothing_lost_nothing_invented)
    assert found(error) == [("2 after", "commit COMMIT"), ("3 before", "send OrderPlaced1 to orders")]
    assert "killed at 2 after (commit COMMIT): AssertionError: an order without an event" in str(error.value)
    assert "KILLED after 2\nstart 1: tests.crash.flows_orders:drain" in str(error.value)
    assert isinstance(error.value.__cause__, AssertionError)


def test_sending_before_the_commit_announces_what_never_was(crash_kit: CrashKit) -> None:
    """Between the two."""
    with pytest.raises(NotSurvived, match="an event without an order") as error:
        crash_kit.run(order(flows_orders.send_then_commit), nothing_lost_nothing_invented)
    assert found(error) == [("2 after", "send OrderPlaced1 to orders"), ("3 before", "commit COMMIT")]


def test_an_outbox_survives_every_crash(crash_kit: CrashKit) -> None:
    """With duplicates, which is what at least once means."""
    report = crash_kit.run(order(flows_orders.place), nothing_lost_nothing_invented)
    assert len(report.ledgers) == 1 + 2 * 7
    twice = [ledger.kills[0].boundary for ledger in report.ledgers if len(ledger.messages) == 2]
    assert twice == [5, 6, 6, 7]


def test_a_server_is_crashed_into_as_well(tmp_path: Path, postgres_url: str) -> None:
    """Its COMMIT is done when the kill after it comes; two cases run at a time, each in a schema of its own."""
    with CrashKit(tmp_path, workers=2) as kit:
        report = kit.run(order(flows_orders.place, url=postgres_url), nothing_lost_nothing_invented)
        assert len(report.ledgers) == 1 + 2 * 7
        assert "statement SELECT FROM outbox FOR UPDATE" in labels(report.ledgers[0])
        with pytest.raises(NotSurvived) as error:
            kit.run(order(flows_orders.commit_then_send, url=postgres_url), nothing_lost_nothing_invented)
    assert found(error) == [("2 after", "commit COMMIT"), ("3 before", "send OrderPlaced1 to orders")]


def test_a_recovery_that_is_killed_too_shows_its_own_mistake(crash_kit: CrashKit) -> None:
    """One crash is survived here, two are not."""
    scenario = Scenario(
        prepare=flows_orders.stored, run=flows_edges.decorated, recover=flows_orders.drain_marking_first
    )
    crash_kit.run(scenario, nothing_lost_nothing_invented)
    with pytest.raises(NotSurvived) as error:
        crash_kit.run(scenario, nothing_lost_nothing_invented, crashes=2)
    finding = error.value.findings[0]
    assert str(finding).startswith("killed at 1 before, 3 after (commit COMMIT): AssertionError: an order without")
    with pytest.raises(NotSurvived, match="1 of 1 cases"):
        crash_kit.run(scenario, nothing_lost_nothing_invented, only="1 before, 3 after")


def test_a_single_case_can_be_repeated(crash_kit: CrashKit) -> None:
    """As the report names it."""
    scenario = order(flows_orders.commit_then_send)
    with pytest.raises(NotSurvived, match="1 of 1 cases"):
        crash_kit.run(scenario, nothing_lost_nothing_invented, only="2 after")
    assert kills(crash_kit.run(scenario, nothing_lost_nothing_invented, only="3 after")) == ["3 after"]
    with pytest.raises(ScenarioError, match="without reaching 4 before"):
        crash_kit.run(scenario, nothing_lost_nothing_invented, only="4 before")


# --- what counts ---------------------------------------------------------------------------------------------


def test_a_boundary_of_your_own_is_killed_too(crash_kit: CrashKit) -> None:
    """And what is noted outlives the process."""
    report = crash_kit.run(Scenario(run=flows_edges.charge, recover=flows_edges.charge), anything)
    assert kills(report) == ["", "1 before", "1 after"]
    assert [[note["order_id"] for note in ledger.notes("charged")] for ledger in report.ledgers] == [[7], [7], [7]]
    assert labels(report.ledgers[2]) == ["own charge card"]
    assert [labels(ledger, start=1) for ledger in report.ledgers] == [["own charge card"]] * 3
    decorated = crash_kit.run(Scenario(run=flows_edges.decorated), anything)
    assert [len(ledger.notes("called")) for ledger in decorated.ledgers] == [1, 0, 1]


def test_a_boundary_does_nothing_outside_of_a_scenario(tmp_path: Path) -> None:
    """The stand-ins of a scenario work in other tests too; a broker without a ledger cannot."""
    case: Any = None
    flows_edges.decorated(case)
    with pytest.raises(ConfigurationError, match="inside of a CrashKit's scenario"):
        LedgerBroker().send_message(Message("a", "b", {}))


def test_a_kill_is_a_kill(crash_kit: CrashKit) -> None:
    """No ``finally`` runs; what was printed can be read."""
    report = crash_kit.run(Scenario(run=flows_edges.clean_up), anything)
    assert [len(ledger.notes("finally")) for ledger in report.ledgers] == [1, 0, 0]
    assert [ledger.output(0) for ledger in report.ledgers] == ["in the middle of it\n", "", "in the middle of it\n"]


def test_an_engine_from_before_is_observed_and_no_value_is_shown(crash_kit: CrashKit) -> None:
    """Statements have short names."""
    report = crash_kit.run(Scenario(run=flows_edges.early_engine), anything)
    assert labels(report.ledgers[0]) == [
        "statement CREATE TABLE",
        "statement INSERT INTO secrets",
        "statement SELECT",
        "commit COMMIT",
    ]
    files = [path for path in report.ledgers[0].case.home.parent.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"xyzzy" in path.read_bytes() or b"plugh" in path.read_bytes()]


def test_savepoints_are_statements(crash_kit: CrashKit) -> None:
    """All three."""
    report = crash_kit.run(Scenario(run=flows_edges.savepoints), anything)
    assert [boundary.label for boundary in report.boundaries] == [
        "BEGIN",
        "SAVEPOINT sa_savepoint_1",
        "CREATE TABLE",
        "RELEASE SAVEPOINT",
        "SAVEPOINT sa_savepoint_2",
        "SELECT FROM kept",
        "ROLLBACK TO",
        "COMMIT",
    ]


def test_two_phases_are_boundaries(crash_kit: CrashKit) -> None:
    """Between prepare and commit is where it matters."""
    report = crash_kit.run(Scenario(run=flows_edges.two_phase), anything)
    assert labels(report.ledgers[0]) == [
        "prepare PREPARE TRANSACTION",
        "commit COMMIT PREPARED",
        "rollback ROLLBACK PREPARED",
    ]


def test_brokers_inside_brokers_count_once_and_each_message_of_a_loop_counts(crash_kit: CrashKit) -> None:
    """So that a loop is killed between two messages."""
    report = crash_kit.run(Scenario(run=flows_edges.brokers), anything)
    assert labels(report.ledgers[0]) == [
        "send one to t",
        "send two to t",
        "send three to t",
        "batch 1 messages",
        "send four to t",
        "send five to t",
    ]


def test_a_check_reads_messages_as_they_were_sent(crash_kit: CrashKit) -> None:
    """Bytes, headers and key included."""
    report = crash_kit.run(Scenario(run=flows_edges.everything_of_a_message), anything)
    expected = Message("named", "t", {"n": 1}, uuid.UUID(int=5), b"\xff", "text/x", {"h": "v"}, "k")
    assert report.ledgers[0].messages == [expected]


def test_an_effect_that_fails_has_two_sides_too(crash_kit: CrashKit) -> None:
    """The process may die before it sees the error."""
    report = crash_kit.run(Scenario(run=flows_edges.refused), anything)
    assert kills(report) == ["", "1 before", "1 after"]
    assert [len(ledger.notes("refused")) for ledger in report.ledgers] == [1, 0, 0]
    assert "1 raised LookupError" in str(report.ledgers[0])


def test_boundaries_of_threads_are_numbered_without_gaps(crash_kit: CrashKit) -> None:
    """One count for the whole process, and nothing is written after the kill."""
    scenario = Scenario(run=flows_edges.threads)
    (ledger,) = crash_kit.run(scenario, anything, only="60 after").ledgers
    assert sorted(boundary.number for boundary in ledger.boundaries) == list(range(1, ledger.reached(0) + 1))
    assert 60 <= ledger.reached(0) <= 100
    assert ledger.entries[-1]["entry"] == "killed"


def test_a_forked_child_is_not_counted(crash_kit: CrashKit) -> None:
    """It has a life of its own."""
    report = crash_kit.run(Scenario(run=flows_edges.fork), anything)
    assert labels(report.ledgers[0]) == ["own here"]
    assert [len(ledger.notes("child")) for ledger in report.ledgers] == [1, 1, 1]


def test_a_flow_without_boundaries_has_one_case(crash_kit: CrashKit) -> None:
    """The undisturbed one, and recovery after it."""
    report = crash_kit.run(Scenario(run=flows_edges.nothing, recover=flows_edges.nothing), anything)
    assert str(report.ledgers[0]).splitlines() == [
        "start 0: tests.crash.flows_edges:nothing",
        "      ended",
        "start 1: tests.crash.flows_edges:nothing",
        "      ended",
    ]


# --- runs that differ ----------------------------------------------------------------------------------------


def steps(tmp_path: Path, *plan: int, steady: bool = True) -> Scenario:
    settings = {"counter": str(tmp_path / "counter"), "steps": plan}
    return Scenario(run=flows_edges.steps, settings=settings, steady=steady)


def test_a_run_with_more_boundaries_than_were_counted_is_followed_to_its_end(
    crash_kit: CrashKit, tmp_path: Path
) -> None:
    """The count is a start, no limit."""
    report = crash_kit.run(steps(tmp_path, 1, 3), anything)
    assert kills(report) == ["", "1 before", "1 after", "2 before", "2 after", "3 before", "3 after"]


def test_a_point_that_is_never_reached_is_no_silence(crash_kit: CrashKit, tmp_path: Path) -> None:
    """A flow that is not the same each time is told so, or says so itself."""
    with pytest.raises(ScenarioError, match="not reached in 3 tries: 2 before; 2 after"):
        crash_kit.run(steps(tmp_path, 2, 1), anything)
    (tmp_path / "counter").unlink()
    report = crash_kit.run(steps(tmp_path, 2, 1, steady=False), anything)
    assert report.missed == ("2 before", "2 after")
    assert kills(report) == ["", "1 before", "1 after"]


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_a_flow_that_fails_by_itself_is_reported_with_its_traceback(crash_kit: CrashKit) -> None:
    """And with what it printed."""
    with pytest.raises(ScenarioError) as error:
        crash_kit.run(Scenario(run=flows_edges.fail), anything)
    assert "tests.crash.flows_edges:fail raised:\nTraceback" in str(error.value)
    assert "LookupError: the flow itself is wrong" in str(error.value)
    assert "about to fail" in str(error.value)
    with pytest.raises(ScenarioError, match="flows_edges:nothing raised"):
        crash_kit.run(Scenario(prepare=flows_edges.fail, run=flows_edges.nothing), anything)
    with pytest.raises(ScenarioError, match="ended by itself with exit code 3"):
        crash_kit.run(Scenario(run=flows_edges.leave), anything)


def test_a_recovery_that_fails_is_a_crash_not_survived(crash_kit: CrashKit) -> None:
    """The check is not asked."""
    with pytest.raises(NotSurvived) as error:
        crash_kit.run(Scenario(run=flows_edges.charge, recover=flows_edges.fail_after_a_crash), anything)
    assert found(error) == [("1 before", "own charge card"), ("1 after", "own charge card")]
    assert "fail_after_a_crash raised" in str(error.value)
    assert "the flow itself is wrong" in str(error.value.__cause__)


def test_a_recovery_that_does_harm_without_a_crash_is_found(crash_kit: CrashKit) -> None:
    """A restart is not always after a crash."""
    with pytest.raises(NotSurvived, match="3 of 3 cases were not survived\n  without any crash: ScenarioError"):
        crash_kit.run(Scenario(run=flows_edges.charge, recover=flows_edges.fail), anything)


def test_a_process_that_hangs_is_ended_and_shows_where(tmp_path: Path) -> None:
    """Stacks included; nothing more is tried then, as each case would take as long."""
    with CrashKit(tmp_path, timeout=1.5) as kit:
        with pytest.raises(ScenarioError, match=r"still at work after 1\.5 s") as error:
            kit.run(Scenario(run=flows_edges.hang), anything)
        assert "in hang" in str(error.value)
        with pytest.raises(NotSurvived, match="killed at 1 before") as unsurvived:
            kit.run(Scenario(run=flows_edges.charge, recover=flows_edges.hang_after_a_crash), anything)
    assert len(unsurvived.value.findings) == 1
    assert "in hang_after_a_crash" in str(unsurvived.value.__cause__)


def test_a_check_that_skips_or_fails_by_pytest_passes_through(crash_kit: CrashKit) -> None:
    """With the point as a note."""

    def check(ledger: Ledger) -> None:
        if ledger.kills:
            pytest.fail("not like this")

    with pytest.raises(pytest.fail.Exception) as error:
        crash_kit.run(Scenario(run=flows_edges.charge), check)
    assert error.value.__notes__ == ["killed at 1 before (own charge card)"]


# --- where functions come from -------------------------------------------------------------------------------


def test_functions_are_found_by_name_and_by_file(crash_kit: CrashKit, tmp_path: Path) -> None:
    """As objects, too, from wherever pytest got them."""
    module = "from cqrs_sync.testing.crash import boundary\ndef run(case):\n    with boundary('{}'):\n        pass\n"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "flow.py").write_text(module.format(folder))
    flows: list[tuple[Any, str]] = [
        ("tests.crash.flows_edges:charge", "charge card"),
        ("tests.crash.flows_edges:Holder.flow", "static"),
        (flows_edges.Holder.flow, "static"),
        (f"{tmp_path}/one/flow.py:run", "one"),
        (f"{tmp_path}/two/flow.py:run", "two"),
    ]
    for flow, label in flows:
        report = crash_kit.run(Scenario(run=flow), anything)
        assert [boundary.label for boundary in report.boundaries] == [label]


@pytest.mark.parametrize(
    "flow", ["nowhere", ":run", "module:", lambda case: None, flows_edges.inner(), flows_edges.Holder().method]
)
def test_what_another_process_cannot_find_is_refused(flow: Any) -> None:
    """When the scenario is written."""
    with pytest.raises(ConfigurationError):
        Scenario(run=flow)


def test_wrong_arguments_are_refused(crash_kit: CrashKit) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigurationError, match="must be JSON"):
        Scenario(run=flows_edges.charge, settings={"url": object()})
    with pytest.raises(ConfigurationError, match="'17 after'"):
        crash_kit.run(Scenario(run=flows_edges.charge), anything, only="17th")
    with pytest.raises(ConfigurationError, match="needs a recover"):
        crash_kit.run(Scenario(run=flows_edges.charge), anything, crashes=2)
    with pytest.raises(ConfigurationError, match="crashes=0"):
        crash_kit.run(Scenario(run=flows_edges.charge), anything, crashes=0)


def test_a_module_that_cannot_be_imported_is_reported(crash_kit: CrashKit, tmp_path: Path) -> None:
    """Or that starts threads, which a fork would lose."""
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ScenarioError, match="nowhere_to_be_found"):
        crash_kit.run(Scenario(run=f"{tmp_path}/broken.py:run"), anything)
    (tmp_path / "busy.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='busy').start()\n"
        "def run(case): ...\n"
    )
    with pytest.raises(ScenarioError, match=r"starts threads.*busy"):
        crash_kit.run(Scenario(run=f"{tmp_path}/busy.py:run"), anything)
    (tmp_path / "stuck.py").write_text("print('importing')\nimport threading\nthreading.Event().wait()\n")
    with (
        CrashKit(tmp_path / "kit", timeout=5) as kit,
        pytest.raises(ScenarioError, match=r"has died:\nimporting\nTimeout \(0:00:05"),
    ):
        kit.run(Scenario(run=f"{tmp_path}/stuck.py:run"), anything)


def test_a_forking_process_that_died_is_reported_and_replaced(tmp_path: Path) -> None:
    """By an operator or the system; the next run has a new one."""
    with CrashKit(tmp_path) as kit:
        kit.run(Scenario(run=flows_edges.nothing), anything)
        process: Any = vars(kit)["_runners"][0]._process
        process.kill()
        process.wait()
        with pytest.raises(ScenarioError, match="the process that forks scenarios has died"):
            kit.run(Scenario(run=flows_edges.nothing), anything)
        kit.run(Scenario(run=flows_edges.nothing), anything)


def test_a_line_that_was_cut_by_the_kill_is_left_out(tmp_path: Path) -> None:
    """Another thread may have been writing it: its effect has not answered."""
    case = Case(home=tmp_path)
    assert not Ledger.of(case).entries
    case.ledger_file.write_text('{"entry": "note", "start": 0, "name": "a", "values": {}}\n{"entry": "no')
    assert Ledger.of(case).notes("a") == [{}]
    assert len(Ledger.of(case).entries) == 1


def test_the_test_process_needs_no_sqlalchemy() -> None:
    """Only the processes of a scenario load it, and pytest comes with the plugin alone."""
    program = "import sys, cqrs_sync.testing.crash; sys.exit(bool({'sqlalchemy', 'pytest'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_it_works_without_fork(tmp_path: Path) -> None:
    """Each process is started anew."""
    with CrashKit(tmp_path, fork=False) as kit:
        report = kit.run(Scenario(run=flows_edges.charge, recover=flows_edges.charge), anything, only="1 after")
        assert len(report.ledgers[0].notes("charged")) == 1
        assert report.ledgers[0].reached(1) == 1
        with pytest.raises(ScenarioError, match="has no attribute 'nothing_like_it'"):
            kit.run(Scenario(run="tests.crash.flows_edges:nothing_like_it"), anything)


@pytest.mark.parametrize(
    ("sql", "label"),
    [
        ("insert or ignore  into t values ('FROM x')", "INSERT OR IGNORE INTO t"),
        ('UPDATE ONLY "my table" SET a = 1', 'UPDATE "my'),
        ("/* hint's */ DELETE FROM s.t WHERE a = 'x'", "DELETE FROM s.t"),
        ("WITH gone AS (SELECT id FROM t FOR NO KEY UPDATE) UPDATE outbox SET sent = true", "UPDATE outbox"),
        ("WITH a AS (SELECT 1) SELECT * FROM a FOR UPDATE SKIP LOCKED", "SELECT FROM a FOR UPDATE"),
        ("SELECT pg_advisory_lock(42)", "SELECT"),
        ("-- don't\nSELECT $q$it's$q$ FROM t", "SELECT FROM t"),
        ("BEGIN IMMEDIATE", "BEGIN IMMEDIATE"),
        ("PREPARE TRANSACTION 'secret'", "PREPARE TRANSACTION"),
        ("(SELECT 1)", "?"),
    ],
)
def test_statements_have_labels_without_values(sql: str, label: str) -> None:
    """What, and on which table."""
    assert statement_label(sql) == label
