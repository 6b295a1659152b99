"""What the results of a broker mean for the events of a batch."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import ConfigurationError, MessageHeldBack, MessageRejected
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox.models import Claim, Failure, OutboxedEvent
from cqrs_sync.outbox.publishing import Published, Publisher
from cqrs_sync.outbox.relay import OutboxRelay
from tests.unit.outboxes import Broker, Pipelined, Repository, away, engine_in, row, store, table, until

SECOND = Backoff(initial=1, jitter=0)


def claimed(*keys: str | None, **more: Any) -> list[OutboxedEvent]:
    """Events with numbers from 1 and these keys, of one claim."""
    claim = Claim()
    return [row(number, partition_key=key, claim=claim, **more) for number, key in enumerate(keys, 1)]


def publish(broker: MessageBroker, events: list[OutboxedEvent], **options: Any) -> Published:
    return Publisher(broker, **{"backoff": SECOND, **options}).publish(events)


def test_what_the_broker_has_is_produced() -> None:
    """In one call, in order."""
    broker = Broker()
    assert publish(broker, claimed(None, "a", "a")) == ([1, 2, 3], [], None)
    assert broker.sent == [1, 2, 3]


def test_nothing_is_sent_for_nothing() -> None:
    """An empty batch does not reach the broker."""
    assert publish(Pipelined(), []) == ([], [], None)


def test_a_rejected_event_fails_and_its_key_stays_behind_it() -> None:
    """The others go."""
    broker = Broker()
    broker.errors[2] = MessageRejected("too large")
    produced, failures, outage = publish(broker, claimed("a", "b", "b", "a", None))
    assert produced == [1, 4, 5]
    assert failures == [Failure(2, "too large", 1.0)]
    assert outage is None
    assert broker.tried == [1, 2, 4, 5]


def test_rejected_events_without_a_key_hold_nothing_back() -> None:
    """They have no order."""
    broker = Broker()
    broker.errors = {1: MessageRejected("no"), 2: MessageRejected("never")}
    produced, failures, _ = publish(broker, claimed(None, None, None))
    assert produced == [3]
    assert [failure.reason for failure in failures] == ["no", "never"]


@pytest.mark.parametrize(("attempts", "wait"), [(0, 1.0), (1, 2.0), (2, 4.0), (8, 256.0)])
def test_each_rejection_waits_longer(attempts: int, wait: float) -> None:
    """As the back-off says."""
    broker = Broker()
    broker.errors[1] = MessageRejected("no")
    assert publish(broker, claimed(None, attempts=attempts)).failures == [Failure(1, "no", wait)]


@pytest.mark.parametrize(("policy", "holds"), [("continue", False), ("wait", True)])
def test_the_last_rejection_makes_a_dead_letter(policy: Any, holds: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Logged as an error with all that is needed to find it, and no payload."""
    broker = Broker()
    broker.errors[1] = MessageRejected("no")
    [event] = claimed("a", attempts=2, payload=b'{"payload": 1, "secret": 2}')
    failures = publish(broker, [event], max_attempts=3, dead_letters=policy).failures
    assert failures == [Failure(1, "no", None, holds)]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == ("outbox event 1 (numbered) for topic contract is a dead letter after 3 attempts: no")
    assert vars(record).items() >= {("event_id", str(event.event_id)), ("topic", "contract")}


def test_an_outage_costs_no_event_an_attempt() -> None:
    """What the broker had taken before is produced."""
    broker = Broker()
    broker.errors[2] = outage = away()
    assert publish(broker, claimed("a", "b", "b", None)) == ([1], [], outage)
    assert broker.tried == [1, 2]


def test_an_outage_of_the_whole_batch_costs_nothing_either() -> None:
    """A broker that pipelines may raise it."""
    broker = Pipelined()
    broker.results = outage = away()
    assert publish(broker, claimed(None, "a")) == ([], [], outage)


def test_a_broken_broker_counts_as_an_outage_and_costs_its_event_an_attempt() -> None:
    """Otherwise an event that breaks it would be tried for ever, and an outage would use the others up."""
    broker = Broker()
    broker.errors[2] = ZeroDivisionError("bug")
    produced, failures, outage = publish(broker, claimed(None, "b", "b", None))
    assert produced == [1]
    assert failures == [Failure(2, "ZeroDivisionError: bug", 1.0)]
    assert isinstance(outage, ZeroDivisionError)
    assert broker.tried == [1, 2]


def test_what_raises_for_a_whole_batch_is_found_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """The event that raises pays for it; those before it are not sent for ever, and those behind it are not tried."""
    broker = Pipelined()
    broker.results = broker.errors[3] = ZeroDivisionError("bug")
    produced, failures, outage = publish(broker, claimed(None, "a", None, None))
    assert produced == [1, 2]
    assert failures == [Failure(3, "ZeroDivisionError: bug", 1.0)]
    assert outage is broker.errors[3]
    assert "Pipelined could not send 4 messages at once" in caplog.text
    assert broker.tried == [1, 2, 3, 4, 1, 2, 3]


def test_what_raises_for_a_batch_of_one_is_that_events_fault() -> None:
    """It is not tried twice."""
    broker = Pipelined()
    broker.results = ZeroDivisionError("bug")
    produced, failures, outage = publish(broker, claimed("a"))
    assert (produced, failures) == ([], [Failure(1, "ZeroDivisionError: bug", 1.0)])
    assert outage is broker.results
    assert broker.tried == [1]


def test_what_raises_only_for_a_whole_batch_is_sent_one_by_one() -> None:
    """Nobody has failed then."""
    broker = Pipelined()
    broker.results = ZeroDivisionError("bug")
    assert publish(broker, claimed(None, "a")) == ([1, 2], [], None)


@pytest.mark.parametrize("kind", [Broker, Pipelined])
@pytest.mark.parametrize("keys", [["a"], ["a", "a", None]])
def test_a_broker_that_is_set_up_wrongly_costs_no_event_an_attempt(kind: type[Broker], keys: list[Any]) -> None:
    """It may have found out when it connected; the error is what is told, and nothing is sent one by one."""
    broker = kind()
    error = broker.outage = ConfigurationError("linger_ms is too long")
    if isinstance(broker, Pipelined):
        broker.results = error
    assert publish(broker, claimed(*keys)) == ([], [], error)
    assert len(broker.tried) == (len(keys) if kind is Pipelined else 1)


def test_a_broker_that_is_set_up_wrongly_shows_in_the_relays_health(tmp_path: Path) -> None:
    """Its events wait, with all their attempts, until somebody has mended it."""
    engine = engine_in(tmp_path)
    sessions = sessionmaker(engine)
    store(sessions, 1, 2)
    broker = Pipelined(True, True)  # type: ignore[arg-type]
    options: dict[str, Any] = {"max_attempts": 1, "outage_backoff": Backoff(initial=0.001, maximum=0.001)}
    with OutboxRelay(sessions, broker, repository=Repository, **options) as relay:
        until(lambda: len(broker.tried) > 4)
        error = relay.health().last_error
    assert isinstance(error, ConfigurationError)
    assert "Pipelined.send_messages must return" in str(error)
    assert [(row.status, row.attempts) for row in table(engine)] == [("new", 0)] * 2
    assert broker.tried[:4] == [1, 2, 1, 1]  # one event at a time, after the first attempt
    engine.dispose()


def test_what_a_pipelining_broker_has_behind_an_outage_of_its_key_is_sent_again() -> None:
    """Behind the event that did not get there; of other keys it is produced."""
    outage = away()
    broker = Pipelined(outage, None, None, None)
    produced, failures, found = publish(broker, claimed("a", "a", "b", None))
    assert (produced, failures, found) == ([3, 4], [], outage)


def test_what_a_pipelining_broker_has_behind_a_rejection_of_its_key_is_produced() -> None:
    """It is there, and sending it twice would mend nothing."""
    broker = Pipelined(MessageRejected("no"), None, MessageHeldBack(), None)
    produced, failures, outage = publish(broker, claimed("a", "a", "a", None))
    assert (produced, [failure.id for failure in failures], outage) == ([2, 4], [1], None)


def test_the_first_outage_is_the_one_that_is_told() -> None:
    """The others follow from it."""
    outages = [away(), away()]
    assert publish(Pipelined(*outages), claimed(None, None)).outage is outages[0]


def test_an_event_with_a_defect_fails_without_being_sent() -> None:
    """And holds its key like any other."""
    claim = Claim()
    events = [
        row(1, partition_key="a", claim=claim, defect="unreadable"),
        row(2, partition_key="a", claim=claim),
        row(3, claim=claim),
    ]
    broker = Broker()
    assert publish(broker, events) == ([3], [Failure(1, "unreadable", 1.0)], None)
    assert broker.tried == [3]


def test_a_batch_of_defects_does_not_reach_the_broker() -> None:
    """There is nothing to send."""
    broker = Pipelined()
    assert publish(broker, claimed(None, defect="unreadable")).failures == [Failure(1, "unreadable", 1.0)]


def test_events_of_one_claim_remember_what_failed() -> None:
    """Also where they are sent one by one: the key waits, and after an outage nothing is tried."""
    broker = Broker()
    broker.errors = {1: MessageRejected("no"), 4: away()}
    publisher = Publisher(broker, backoff=SECOND)
    results = [publisher.publish([event]) for event in claimed("a", "a", "b", "c", "d")]
    assert [result.produced for result in results] == [[], [], [3], [], []]
    assert [len(result.failures) for result in results] == [1, 0, 0, 0, 0]
    assert [result.outage is not None for result in results] == [False, False, False, True, True]
    assert broker.tried == [1, 3, 4]


def test_events_without_a_claim_are_published_too() -> None:
    """Somebody may have made them by hand."""
    assert publish(Broker(), [row(1)]).produced == [1]


@pytest.mark.parametrize("results", [[], [None], [None] * 3, None, iter([None, None])])
def test_a_broker_must_return_one_result_for_each_message(results: Any) -> None:
    """Guessing would lose events."""
    broker = Pipelined()
    broker.results = results
    produced, failures, outage = publish(broker, claimed(None, None))
    assert (produced, failures) == ([], [])
    assert isinstance(outage, ConfigurationError)
    assert "Pipelined.send_messages must return one result for each of the 2 messages" in str(outage)


@pytest.mark.parametrize("wrong", [True, "sent", ValueError, 7])
def test_a_result_is_none_or_an_exception(wrong: Any) -> None:
    """What else it may mean nobody knows."""
    produced, failures, outage = publish(Pipelined(None, wrong, None), claimed(None, None, None))
    assert (produced, failures) == ([], [])
    assert isinstance(outage, ConfigurationError)
    assert str(outage) == (
        f"Pipelined.send_messages must return None or an exception for each message, and it returned {wrong!r}"
    )


def test_a_back_off_that_raises_costs_no_batch() -> None:
    """The default one stands in."""

    class Broken(Backoff):
        def delay(self, attempt: int) -> float:
            raise ZeroDivisionError

    class Endless(Backoff):
        def delay(self, attempt: int) -> float:
            return math.inf

    broker = Broker()
    broker.errors[1] = MessageRejected("no")
    waits = [publish(broker, claimed(None), backoff=own).failures[0].retry_after or 0 for own in (Broken(), Endless())]
    assert 0.8 <= waits[0] <= 1.2
    assert datetime.timedelta(seconds=waits[1]) == datetime.timedelta(days=30)


def test_what_cannot_work_is_refused_at_start_up() -> None:
    """By name."""

    class Async(MessageBroker):
        async def send_message(self, message: Message) -> None:  # type: ignore[override]
            pass

    class AsyncBatches(Broker):
        async def send_messages(self, messages: Sequence[Message]) -> list[None]:  # type: ignore[override]
            return []

    not_a_broker: Any = object()
    unknown: Any = "drop"
    with pytest.raises(ConfigurationError, match="message_broker"):
        Publisher(not_a_broker)
    with pytest.raises(ConfigurationError, match=r"Async\.send_message is async"):
        Publisher(Async())
    with pytest.raises(ConfigurationError, match=r"AsyncBatches\.send_messages is async"):
        Publisher(AsyncBatches())
    with pytest.raises(ConfigurationError, match="backoff must be a Backoff, not 5"):
        Publisher(Broker(), backoff=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_attempts must be at least 1, not 0"):
        Publisher(Broker(), max_attempts=0)
    with pytest.raises(ConfigurationError, match="'continue' or 'wait', not 'drop'"):
        Publisher(Broker(), dead_letters=unknown)
