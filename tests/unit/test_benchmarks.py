"""The benchmarks run and report; what they measure is for `make bench`, not for a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("rich")

from benchmarks import __main__ as command
from benchmarks import peers, report, saga_peers, servers
from benchmarks.report import Row, Section
from benchmarks.timing import Effort, Times, race, statement


def names(results: dict[str, Any], suite: str) -> list[str]:
    return [row["name"] for section in results[suite] for row in section["rows"]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every suite has found in the least of runs."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    assert command.main(["--rounds", "1", "--quick", "--no-peers", "--json", str(file)]) == 0
    return json.loads(file.read_text(encoding="utf-8"))["results"]


def test_every_suite_produces_its_rows(results: dict[str, Any]) -> None:
    assert list(results) == list(command.SUITES)
    assert {"send, 0 dependencies", "send, 3 dependencies", "a further middleware, number 3"} <= {
        *names(results, "send")
    }
    assert {"send with 10 events", "the emission alone"} <= {*names(results, "events")}
    assert {"send with 10 events", "send with 100 events"} <= {*names(results, "pool")}
    assert names(results, "import").count("import cqrs_sync") == 2
    assert {"SagaMediator.run", "python-cqrs, logger at WARNING"} <= {*names(results, "saga-memory")}
    assert names(results, "unit-of-work") == ["bare Session: add, commit, close", "send, the handler adds"]


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("outbox", {"OutboxRelay", "EventProducer, event by event"}),
        ("outbox-backlog", {"10 pending", "30 pending", "10 pending, 20 produced"}),
        ("outbox-add", {"bare Session: add, commit", "with 1 event", "with 10 events"}),
        ("outbox-latency", {"wake-up in the process that commits: p50", "another process, poll_interval=0.1: p99"}),
        ("outbox-kafka", {"the client alone, flushed every 500", "OutboxRelay to Kafka", "1 relay process"}),
        ("sagas", {"bare psycopg2: INSERT, 3 times UPDATE and log", "SagaMediator.run", "DBOS, logger at ERROR"}),
        ("saga-recovery", {"1 worker with 1 thread", "4 workers with 1 thread each, in processes"}),
    ],
)
def test_suite_that_needs_a_server_produces_its_rows_where_there_is_one(
    suite: str, expected: set[str], results: dict[str, Any]
) -> None:
    found = {*names(results, suite)}
    assert found >= expected or "left out" in found


@pytest.mark.parametrize(
    "suite",
    ["outbox", "outbox-backlog", "outbox-add", "outbox-latency", "outbox-kafka", "sagas", "saga-recovery"],
)
def test_suite_without_its_server_says_why(
    suite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object) -> Any:
        raise LookupError("nobody has one")

    monkeypatch.setattr(servers.postgres_servers, "server", start)
    monkeypatch.setattr(servers.kafka_servers, "mock", start)
    assert command.main([suite, "--quick"]) == 0
    assert "nobody has one" in capsys.readouterr().out


def test_peer_that_is_not_installed_is_named() -> None:
    def build(loop: object) -> Any:
        raise ModuleNotFoundError("No module named 'peer'")

    with peers.gather({"peer": build}, wanted=True) as found:
        assert report.missing(found.missing) == [Row(name="peer", note="not installed")]


def test_peer_that_is_not_wanted_is_not_set_up() -> None:
    with peers.gather({"peer": lambda loop: pytest.fail("was set up")}, wanted=False) as found:
        assert found.runs == {}
        assert found.missing == {"peer": "left out"}


@pytest.mark.parametrize(("wanted", "reason"), [(True, "not installed: peer"), (False, "left out")])
def test_saga_peer_that_is_not_measured_is_named(wanted: bool, reason: str) -> None:
    def peer() -> Any:
        raise ModuleNotFoundError("No module named 'peer'", name="peer")

    with ExitStack() as stack:
        found = saga_peers.gather(stack, {"peer": peer}, Effort(peers=wanted))
    assert found == ({}, {"peer": reason})


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Row(name="within", figure=6.0, at_most=6), True),
        (Row(name="above", figure=6.1, at_most=6), False),
        (Row(name="fast enough", figure=20.0, at_least=20), True),
        (Row(name="too slow", figure=19.9, at_least=20), False),
        (Row(name="without a bound", figure=1.0), None),
        (Row(name="not measured", at_most=6), None),
    ],
)
def test_bound_is_kept_or_broken(row: Row, holds: bool | None) -> None:
    assert row.holds is holds


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--check"], 1)])
def test_broken_bound_fails_the_check_alone(
    arguments: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(effort: object) -> Iterator[Section]:
        yield Section("a subject", [Row(name="a measure", seconds=2e-6, figure=7.0, unit="x floor", at_most=6)])

    monkeypatch.setattr(command, "SUITES", {"subject": measure})
    assert command.main(arguments) == status
    assert "broken bounds: a measure" in capsys.readouterr().out


def test_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["saga"])
    assert "no such suite: saga" in capsys.readouterr().err


def test_ratio_is_taken_within_each_round() -> None:
    times = Times({"ours": [2.0, 20.0, 6.0], "floor": [1.0, 10.0, 2.0]})
    assert times.median("ours") == 6.0
    assert times.ratio("ours", "floor") == 2.0
    assert times.added("ours", "floor") == 4.0
    assert times.added_ratio("ours", "floor", "floor") == 1.0


def test_every_contestant_runs_in_every_round() -> None:
    times = race({name: statement("sum(numbers)", numbers=[1, 2]) for name in "ab"}, rounds=3, slice=0)
    assert {name: len(seconds) for name, seconds in times.rounds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (1.02e-6, "1.02 µs"), (93e-6, "93.0 µs"), (0.0731, "73.1 ms"), (1.44, "1.44 s")]
)
def test_duration_is_given_in_the_unit_that_suits(seconds: float | None, text: str) -> None:
    assert report.duration(seconds) == text
