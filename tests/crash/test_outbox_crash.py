"""An order and its events, killed at every boundary between the command and the broker."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from cqrs_sync.testing.crash import CrashKit, Ledger, NotSurvived, Report, Scenario
from tests import kafka as servers
from tests.crash import flows_outbox as flows

FIRST_SENDS = {"customer-0": [2, -2], "customer-1": [1, -1, 3, -3]}
"""What the undisturbed run sends, by key."""


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashKit]:
    """Two cases at a time: each has a file, a schema or a topic of its own."""
    with CrashKit(tmp_path_factory.mktemp("outbox"), workers=2) as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the orders are."""
    return {} if request.param == "sqlite" else {"url": request.getfixturevalue("postgres_url")}


def orders(ledger: Ledger) -> set[int]:
    with flows.engine_of(ledger.case) as engine, engine.connect() as connection:
        return set(connection.scalars(sa.select(flows.Order.id)))


def no_event_is_lost_invented_or_out_of_order(ledger: Ledger) -> None:
    check_sent(ledger, [(str(message.key), message.payload["payload"]) for message in ledger.messages])


def check_sent(ledger: Ledger, sent: list[tuple[str, int]]) -> None:
    """By order: both events or none. By key: the first deliveries in order. Twice: what was in hand."""
    placed = orders(ledger)
    assert {payload for _, payload in sent} == {sign * number for number in placed for sign in (1, -1)}
    with flows.engine_of(ledger.case) as engine, engine.connect() as connection:
        left = connection.scalar(sa.select(sa.func.count()).where(flows.Outbox.status != "produced"))
        assert left == 0
    by_key: defaultdict[str, list[int]] = defaultdict(list)
    for key, payload in dict.fromkeys(sent):
        by_key[key].append(payload)
    for key, payloads in by_key.items():
        assert payloads == [each for each in FIRST_SENDS[key] if abs(each) in placed]
    in_hand = unmarked(ledger)
    again = {payload for number, (_, payload) in enumerate(sent) if (_, payload) in sent[:number]}
    assert again <= in_hand, f"sent again: {again}, in hand when it was killed: {in_hand}"


def unmarked(ledger: Ledger) -> set[int]:
    """What the killed processes had sent, or were about to send, since their last COMMIT."""
    found: dict[int, set[int]] = defaultdict(set)
    kinds: dict[tuple[int, int], str] = {}
    for entry in ledger.entries:
        if entry["entry"] == "reached":
            kinds[entry["start"], entry["number"]] = entry["kind"]
        elif entry["entry"] == "passed" and kinds[entry["start"], entry["number"]] == "commit":
            found[entry["start"]].clear()
        elif entry["entry"] == "message":
            found[entry["start"]].add(entry["message"]["payload"]["payload"])
        elif entry["entry"] == "note":
            found[entry["start"]].update(entry["values"]["payloads"])
    return set().union(*(found[start] for start in range(len(ledger.kills))))


def kill_everywhere(kit: CrashKit, run: Any, recover: Any, settings: dict[str, Any], **options: Any) -> Report:
    scenario = Scenario(prepare=flows.prepare, run=run, recover=recover, settings=settings)
    return kit.run(scenario, no_event_is_lost_invented_or_out_of_order, **options)


def duplicated(report: Report) -> int:
    return sum(len(ledger.messages) > 2 * len(orders(ledger)) for ledger in report.ledgers)


def test_a_relay_that_is_killed_anywhere_loses_and_invents_nothing(kit: CrashKit, settings: dict[str, Any]) -> None:
    """What was sent and not yet marked is sent again, and nothing else."""
    report = kill_everywhere(kit, flows.place_and_relay, flows.recover, settings)
    assert len(report.ledgers) == 1 + 2 * len(report.boundaries)
    assert duplicated(report) > 0


def test_a_relay_that_deletes_what_it_has_published_loses_nothing_either(kit: CrashKit) -> None:
    """With a retention of 0."""
    report = kill_everywhere(kit, flows.place_and_relay, flows.recover, {"deletes": True, "orders": 1})
    assert any(boundary.label == "DELETE FROM outbox" for boundary in report.boundaries)
    assert duplicated(report) > 0


def test_a_loop_by_hand_that_is_killed_anywhere_loses_and_invents_nothing(kit: CrashKit, postgres_url: str) -> None:
    """The article's; it sends one by one, marks them together, and is recovered by another such loop."""
    report = kill_everywhere(kit, flows.place_and_produce, flows.produce, {"url": postgres_url})
    assert duplicated(report) > 0


def check_topic(ledger: Ledger) -> int:
    """Check what is read back from Kafka, over TCP; returns how many messages are there more than once."""
    found = servers.read(ledger.case.settings["kafka"], flows.topic_of(ledger.case))
    check_sent(ledger, [(each.key().decode(), json.loads(each.value())["payload"]) for each in found])
    return len(found) - 2 * len(orders(ledger))


def test_kafka_has_every_event_of_an_order_that_was_killed_anywhere(
    kit: CrashKit, kafka: servers.Kafka, postgres_url: str
) -> None:
    """From the command to the topic: a real Kafka, a real PostgreSQL."""
    again: list[int] = []
    settings = {"kafka": kafka.address, "client": "kafka-python", "url": postgres_url, "test": uuid.uuid4().hex}
    scenario = Scenario(
        prepare=flows.prepare_topic, run=flows.place_and_relay, recover=flows.recover, settings=settings
    )
    report = kit.run(scenario, lambda ledger: again.append(check_topic(ledger)))
    assert sum(boundary.kind == "batch" for boundary in report.boundaries) == 2
    assert sum(boundary.kind == "commit" for boundary in report.boundaries) >= 4
    assert max(again) == flows.BATCH


def test_a_kafka_has_every_event_of_a_relay_over_sqlite_that_was_killed_anywhere(
    kit: CrashKit, mock_kafka: servers.MockKafka
) -> None:
    """The mock cluster will do for that."""
    again: list[int] = []
    settings = {"kafka": mock_kafka.address, "client": "without-idempotence", "orders": 1}
    scenario = Scenario(prepare=flows.prepare_placed, run=flows.drain, recover=flows.recover, settings=settings)
    report = kit.run(scenario, lambda ledger: again.append(check_topic(ledger)))
    assert any(boundary.kind == "batch" for boundary in report.boundaries)
    assert max(again) == 2


def test_marking_before_sending_would_be_found(kit: CrashKit) -> None:
    """The check can fail."""
    scenario = Scenario(prepare=flows.prepare_placed, run=flows.mark_first, recover=flows.recover)
    with pytest.raises(NotSurvived, match="AssertionError"):
        kit.run(scenario, no_event_is_lost_invented_or_out_of_order)


def test_publishing_what_is_not_committed_would_be_found(kit: CrashKit) -> None:
    """This one, too."""
    with pytest.raises(NotSurvived, match="AssertionError"):
        kill_everywhere(kit, flows.publish_and_place, flows.recover, {})


@pytest.mark.soak
@pytest.mark.parametrize("recover", [flows.recover, flows.produce])
def test_two_crashes_in_a_row_lose_nothing_either(kit: CrashKit, settings: dict[str, Any], recover: Any) -> None:
    """The recovery is killed at every boundary, after every kill."""
    settings = settings | {"orders": 1}  # which makes hundreds of cases
    scenario = Scenario(prepare=flows.prepare_warm, run=flows.place_and_relay, recover=recover, settings=settings)
    report = kit.run(scenario, no_event_is_lost_invented_or_out_of_order, crashes=2)
    assert max(len(ledger.kills) for ledger in report.ledgers) == 2


@pytest.mark.soak
@pytest.mark.parametrize(("client", "orders", "crashes"), [("confluent", 3, 1), ("kafka-python", 1, 2)])
def test_kafka_has_every_event_whoever_brings_it_and_is_killed_again(
    kit: CrashKit, kafka: servers.Kafka, postgres_url: str, client: str, orders: int, crashes: int
) -> None:
    """From the command to the topic."""
    again: list[int] = []
    settings = {"kafka": kafka.address, "client": client, "orders": orders, "url": postgres_url}
    scenario = Scenario(
        prepare=flows.prepare_topic,
        run=flows.place_and_relay,
        recover=flows.recover,
        settings=settings | {"test": uuid.uuid4().hex},
    )
    report = kit.run(scenario, lambda ledger: again.append(check_topic(ledger)), crashes=crashes)
    assert max(len(ledger.kills) for ledger in report.ledgers) == crashes
    assert max(again) == crashes * min(flows.BATCH, 2 * orders)
