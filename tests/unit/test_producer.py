"""The loop of the async library: batches from a generator, sent by hand."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from cqrs_sync.backoff import Backoff
from cqrs_sync.errors import ClaimEnded, ConfigurationError, MessageRejected
from cqrs_sync.outbox.mock import MockOutboxedEventRepository
from cqrs_sync.outbox.models import EventStatus, OutboxedEvent
from cqrs_sync.producer import EventProducer
from cqrs_sync.testing.outbox import EVENTS, Numbered
from tests.unit.outboxes import (
    WAIT,
    Broker,
    Repository,
    away,
    engine_in,
    make_due,
    statements_of,
    statuses,
    store,
    table,
    until,
)

FOREVER = 3600.0
"""Seconds that no test lasts."""

NOW = Backoff(initial=0.001, maximum=0.002)
"""As good as no back-off."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = engine_in(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> sessionmaker[Session]:
    return sessionmaker(engine)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def producer(sessions: sessionmaker[Session], broker: Broker) -> Iterator[EventProducer]:
    repository = Repository(sessions())
    yield EventProducer(broker, repository, backoff=NOW, poll_interval=0.001)
    repository.close()


Sessions = sessionmaker[Session]


def keyed(number: int) -> Numbered:
    return Numbered(payload=number, partition_key="k")


def batches(producer: EventProducer, number: int, **options: Any) -> list[list[EventStatus]]:
    """Run the article's loop for some batches, over the errors of commits; what became of each event of each."""
    found: list[list[EventStatus]] = []
    overdue = threading.Timer(WAIT, producer.stop)
    overdue.start()
    for events in producer.event_batch_generator(**options):
        found.append([producer.send_message(event) for event in events])
        with suppress(OperationalError):
            producer.repository.commit()
        if len(found) == number:
            producer.stop()
    overdue.cancel()
    return found


def test_the_loop_publishes_batch_after_batch(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """As the article writes it."""
    store(sessions, *(keyed(number) for number in range(5)))
    done = EventStatus.PRODUCED
    assert batches(producer, 3, batch_size=2) == [[done] * 2, [done] * 2, [done]]
    assert broker.sent == list(range(5))
    assert statuses(engine) == ["produced"] * 5


def test_events_of_one_topic_can_be_asked_for(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """The others stay."""
    store(sessions, Numbered(payload=1, topic="a"), Numbered(payload=2, topic="b"))
    batches(producer, 1, topic="b")
    assert broker.sent == [2]
    assert statuses(engine) == ["new", "produced"]


def test_an_empty_outbox_is_waited_for_with_no_transaction_open(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It yields no empty batch and does not spin: between two looks it waits for the interval."""
    waits: list[tuple[float, bool]] = []

    class Stopping(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append((timeout, producer.repository.session.in_transaction()))  # type: ignore[attr-defined]
            if len(waits) == 3:
                store(sessions, 1)
            return False

    producer._stopping = Stopping()
    with statements_of(engine) as statements:
        events = next(producer.event_batch_generator())
    assert [event.event.payload for event in events] == [1]
    assert waits == [(0.001, False)] * 3
    assert len([statement for statement in statements if statement.startswith("SELECT")]) <= 10


def test_a_stop_from_another_thread_ends_the_wait(sessions: Sessions, broker: Broker) -> None:
    """At once, however long the interval is."""
    repository = Repository(sessions())
    producer = EventProducer(broker, repository, poll_interval=FOREVER)
    waiting = threading.Event()
    give_back = repository.rollback
    repository.rollback = lambda: (give_back(), waiting.set())  # type: ignore[method-assign,assignment,func-returns-value]
    seen: list[Any] = []

    def work() -> None:
        seen.extend(producer.event_batch_generator())
        repository.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert waiting.wait(WAIT)
    producer.stop()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert seen == []


def test_a_stop_before_the_first_batch_counts(sessions: Sessions, producer: EventProducer) -> None:
    """A signal may come early; afterwards the producer can be used again."""
    store(sessions, 1)
    producer.stop()
    assert list(producer.event_batch_generator()) == []
    assert len(next(producer.event_batch_generator())) == 1


def test_an_outage_costs_no_attempt_and_is_waited_out(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """The first batch after it is one event, then all follow in order."""
    store(sessions, *(keyed(number) for number in range(5)))
    broker.outage = away()
    sizes: list[int] = []
    for events in producer.event_batch_generator():
        sizes.append(len(events))
        assert {producer.send_message(event) for event in events} <= {EventStatus.NEW, EventStatus.PRODUCED}
        producer.repository.commit()
        if len(sizes) == 10:
            broker.outage = None
        if len(sizes) == 12:
            producer.stop()
    assert sizes == [5, *[1] * 10, 4]
    assert broker.sent == list(range(5))
    assert [row.attempts for row in table(engine)] == [0] * 5
    assert "the broker cannot be reached" in caplog.text


def test_after_an_outage_the_rest_of_the_batch_is_not_tried(
    sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """It would only cost time."""
    store(sessions, *range(5))
    broker.outage = away()
    generator = producer.event_batch_generator()
    events = next(generator)
    assert [producer.send_message(event) for event in events] == [EventStatus.NEW] * len(events)
    assert len(events) > 1
    assert len(broker.tried) == 1


def test_a_rejected_event_is_tried_again_in_order_and_is_a_dead_letter_in_the_end(
    engine: sa.Engine, sessions: Sessions, broker: Broker
) -> None:
    """Its key waits behind it, with the reason in the row."""
    store(sessions, keyed(1), keyed(2), Numbered(payload=3, partition_key="other"))
    broker.errors[1] = MessageRejected("too large")
    results: list[dict[int, EventStatus]] = []
    with closing(Repository(sessions())) as repository:
        producer = EventProducer(broker, repository, max_attempts=2)
        for events in producer.event_batch_generator():
            results.append({event.event.payload: producer.send_message(event) for event in events})
            repository.commit()
            make_due(engine)
            if len(results) == 3:
                producer.stop()
    assert results == [
        {1: EventStatus.NOT_PRODUCED, 2: EventStatus.NEW, 3: EventStatus.PRODUCED},
        {1: EventStatus.DEAD},
        {2: EventStatus.PRODUCED},
    ]
    [letter] = [row for row in table(engine) if row.status == "dead"]
    assert (letter.attempts, letter.last_error) == (2, "too large")


def test_leaving_the_loop_keeps_what_was_sent(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """A break without a commit sends nothing twice."""
    store(sessions, *(keyed(number) for number in range(3)))
    for events in producer.event_batch_generator():
        producer.send_message(events[0])
        break
    assert statuses(engine) == ["produced", "new", "new"]


def test_an_exception_in_the_loop_keeps_what_was_sent(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """And reaches the caller; the claimed rest is given back."""
    store(sessions, *(keyed(number) for number in range(3)))

    def loop() -> None:
        for events in producer.event_batch_generator():
            producer.send_message(events[0])
            raise LookupError("the loop's own")

    with pytest.raises(LookupError, match="the loop's own"):
        loop()
    gc.collect()
    assert statuses(engine) == ["produced", "new", "new"]
    assert [event.event.payload for event in next(producer.event_batch_generator())] == [1, 2]


def test_results_that_nobody_committed_are_committed_before_the_next_batch(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """The article's third line may be forgotten."""
    store(sessions, *(keyed(number) for number in range(4)))
    for events in producer.event_batch_generator(2):
        for event in events:
            producer.send_message(event)
        if len(broker.sent) == 4:
            producer.stop()
    assert broker.sent == [0, 1, 2, 3]
    assert statuses(engine) == ["produced"] * 4


class Refusing:
    """A database that is gone for some statements."""

    def __init__(self, engine: sa.Engine, start: str, times: int) -> None:
        self._start, self.left = start, times
        self._event = engine, "commit" if start == "COMMIT" else "before_cursor_execute", self._refuse
        sa.event.listen(*self._event)

    def _refuse(self, connection: Any, cursor: Any = None, statement: str = "COMMIT", *more: Any) -> None:
        if self.left and statement.startswith(self._start):
            self.left -= 1
            raise OperationalError(statement, {}, Exception("connection lost"))

    def over(self) -> None:
        sa.event.remove(*self._event)


def test_a_database_that_cannot_be_read_is_waited_out(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop lives on."""
    store(sessions, 1)
    refusing = Refusing(engine, "SELECT", 3)
    batches(producer, 1)
    refusing.over()
    assert broker.sent == [1]
    assert caplog.text.count("the outbox could not be read; trying again") == 3


def test_a_commit_that_fails_does_not_end_the_loop(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are sent again: at least once."""
    store(sessions, 1)
    refusing = Refusing(engine, "UPDATE", 2)
    for events in producer.event_batch_generator():
        producer.send_message(events[0])
        if len(broker.sent) == 3:
            producer.stop()
    refusing.over()
    assert broker.sent == [1, 1, 1]
    assert statuses(engine) == ["produced"]
    assert caplog.text.count("could not be committed; these events will be sent again") == 2


def test_a_commit_of_the_loop_that_fails_reaches_the_caller_alone(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """With no second error behind it, and the producer can be used again."""
    store(sessions, 1)
    refusing = Refusing(engine, "UPDATE", 1)

    def loop() -> None:
        for events in producer.event_batch_generator():
            producer.send_message(events[0])
            producer.repository.commit()

    with pytest.raises(OperationalError):
        loop()
    refusing.over()
    gc.collect()
    producer.repository.rollback()
    assert batches(producer, 1) == [[EventStatus.PRODUCED]]


@pytest.mark.parametrize("start", ["UPDATE", "COMMIT"])
def test_a_loop_that_catches_the_error_of_its_commit_does_not_spin(
    engine: sa.Engine,
    sessions: Sessions,
    broker: Broker,
    producer: EventProducer,
    start: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The failure is waited out as any outage is, and one event is sent to see."""
    producer.repository.get_many()
    producer.repository.commit()
    store(sessions, *(keyed(number) for number in range(5)))
    refusing = Refusing(engine, start, 3)
    assert [len(batch) for batch in batches(producer, 5)] == [5, 1, 1, 1, 4]
    refusing.over()
    assert broker.sent == [0, 1, 2, 3, 4, 0, 0, 0, 1, 2, 3, 4]
    assert statuses(engine) == ["produced"] * 5
    assert caplog.messages == []  # the loop has seen the errors


class Silent(MockOutboxedEventRepository):
    """Somebody's own repository: forgets results, and says nothing of it; claims without a claim.

    Attributes:
        forgets: how many commits with results come to nothing.
    """

    forgets = 0

    def get_many(
        self, batch_size: int = 100, topic: str | None = None, *, partitions: int | None = None
    ) -> list[OutboxedEvent]:
        events = super().get_many(batch_size, topic, partitions=partitions)
        for event in events:
            event.claim = None
        return events

    def commit(self) -> None:
        if self._noted and self.forgets:
            self.forgets -= 1
            self.rollback()
        super().commit()


@pytest.fixture
def silent() -> Silent:
    """With four events."""
    repository = Silent(event_map=EVENTS)
    for number in range(4):
        repository.add(keyed(number))
    repository.commit()
    return repository


def test_events_that_are_back_after_their_commit_are_waited_for(
    broker: Broker, silent: Silent, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the repository says: each wait costs one event that is sent again."""
    producer = EventProducer(broker, silent, backoff=NOW)
    silent.forgets = 3
    found = batches(producer, 5)
    assert [len(batch) for batch in found] == [4, 1, 1, 1, 3]
    assert broker.sent == [0, 1, 2, 3, 0, 0, 0, 1, 2, 3]
    assert caplog.text.count("results of the last batch were not committed") == 3


def test_a_loop_that_is_started_again_after_a_failing_commit_tries_one_event(broker: Broker, silent: Silent) -> None:
    """By whoever supervises it."""
    producer = EventProducer(broker, silent, backoff=NOW)
    silent.forgets = 1
    assert [len(batch) for batch in batches(producer, 1)] == [4]
    assert [len(batch) for batch in batches(producer, 2)] == [1, 3]


def test_rejected_events_come_back_without_a_further_wait(
    broker: Broker, silent: Silent, caplog: pytest.LogCaptureFixture
) -> None:
    """Their attempts say that the commit was none that failed."""
    broker.errors[0] = MessageRejected("not now")
    at_once = Backoff(initial=1e-9, maximum=1e-9)
    producer = EventProducer(broker, silent, backoff=at_once, max_attempts=3)
    done, failed, dead = EventStatus.PRODUCED, EventStatus.NOT_PRODUCED, EventStatus.DEAD
    new = EventStatus.NEW
    assert batches(producer, 4) == [[failed, new, new, new], [failed], [dead], [done] * 3]
    assert "not committed" not in caplog.text


def test_an_outage_is_waited_out_with_events_that_have_no_claim(broker: Broker, silent: Silent) -> None:
    """The producer gives them one."""
    producer = EventProducer(broker, silent, backoff=NOW)
    broker.outage = away()
    assert [len(batch) for batch in batches(producer, 3)] == [4, 1, 1]
    assert broker.tried == [0, 0, 0]
    [event] = silent.get_many(1)
    assert producer.send_message(event) is EventStatus.NEW


def test_a_commit_within_a_batch_ends_it(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """The rest is nobody's, so it is not sent; batches of one event are the way to commit after each."""
    store(sessions, *(keyed(number) for number in range(3)))

    def each(batch_size: int) -> None:
        for events in producer.event_batch_generator(batch_size):
            for event in events:
                producer.send_message(event)
                producer.repository.commit()
            if len(broker.sent) == 3:
                producer.stop()

    with pytest.raises(ClaimEnded, match="Commit after the batch; for a commit after each event use batch_size=1"):
        each(100)
    gc.collect()
    assert broker.sent == [0]
    assert statuses(engine) == ["produced", "new", "new"]
    each(1)
    assert broker.sent == [0, 1, 2]


def test_a_session_that_cannot_be_rolled_back_is_logged(
    sessions: Sessions, broker: Broker, producer: EventProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """And tried again with the next look."""
    rollback = producer.repository.rollback
    failures = [OperationalError("", {}, Exception("gone"))]

    def fail_once() -> None:
        if failures:
            raise failures.pop()
        rollback()
        store(sessions, 1)

    producer.repository.rollback = fail_once  # type: ignore[method-assign]
    generator = producer.event_batch_generator()
    assert len(next(generator)) == 1
    assert "the outbox's session could not be rolled back" in caplog.text
    generator.close()


def test_two_producers_send_no_event_twice(sessions: Sessions, broker: Broker) -> None:
    """Each has a session of its own."""
    store(sessions, *(Numbered(payload=number, partition_key=f"key {number % 5}") for number in range(50)))
    producers: list[EventProducer] = []
    errors: list[BaseException] = []

    def work(producer: EventProducer) -> None:
        try:
            for events in producer.event_batch_generator(4):
                for event in events:
                    producer.send_message(event)
                producer.repository.commit()
            producer.repository.close()  # type: ignore[attr-defined]
        except BaseException as error:
            errors.append(error)

    producers = [EventProducer(broker, Repository(sessions()), poll_interval=0.001) for _ in range(2)]
    threads = [threading.Thread(target=work, args=(producer,)) for producer in producers]
    for thread in threads:
        thread.start()
    until(lambda: errors or len(broker.sent) >= 50)
    for producer in producers:
        producer.stop()
    for thread in threads:
        thread.join(WAIT)
    assert not errors
    assert sorted(broker.sent) == list(range(50))
    for key in range(5):
        of_key = [number for number in broker.sent if number % 5 == key]
        assert of_key == sorted(of_key)


def test_an_event_that_was_claimed_by_hand_can_be_sent(
    engine: sa.Engine, sessions: Sessions, broker: Broker, producer: EventProducer
) -> None:
    """The generator is a comfort; without it nothing is kept of earlier batches."""
    for number in range(3):
        store(sessions, number)
        events: list[OutboxedEvent] = producer.repository.get_many()
        assert producer.send_message(events[0]) is EventStatus.PRODUCED
        producer.repository.commit()
    assert statuses(engine) == ["produced"] * 3
    assert len(producer._settled) == 1


def test_what_cannot_work_is_refused_at_start_up(sessions: Sessions) -> None:
    """By name."""
    wrong: Any = object()
    with closing(Repository(sessions())) as repository:
        with pytest.raises(ConfigurationError, match="message_broker"):
            EventProducer(wrong, repository)
        with pytest.raises(ConfigurationError, match="batch_size must be at least 1, not 0"):
            next(EventProducer(Broker(), repository).event_batch_generator(0))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"max_attempts": True}, "max_attempts must be a whole number, not True"),
        ({"backoff": 5}, "backoff must be a Backoff, not 5"),
        ({"poll_interval": 0}, "poll_interval must be more than 0 .*, not 0"),
        ({"poll_interval": "1"}, "poll_interval must be a number of seconds or a timedelta, not '1'"),
        ({"repository": Session()}, "repository must be a OutboxedEventRepository, not <.*Session"),
        ({"repository": MockOutboxedEventRepository}, "not the class MockOutboxedEventRepository: pass Sql"),
    ],
)
def test_a_wrong_parameter_is_named(wrong: dict[str, Any], text: str) -> None:
    """With what it was given as."""
    with pytest.raises(ConfigurationError, match=text):
        EventProducer(**{"message_broker": Broker(), "repository": MockOutboxedEventRepository(), **wrong})


def test_the_interval_may_be_a_timedelta(
    sessions: Sessions, broker: Broker, producer: EventProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a minute, say."""
    patient = EventProducer(broker, producer.repository, poll_interval=timedelta(minutes=1))
    waits: list[Any] = []
    monkeypatch.setattr(patient._stopping, "wait", lambda seconds: (waits.append(seconds), patient.stop()))
    assert list(patient.event_batch_generator()) == []
    assert waits == [60.0]


def test_an_outage_is_logged_as_a_warning(
    sessions: Sessions, broker: Broker, producer: EventProducer, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each batch that meets it, with no traceback: it is no bug."""
    store(sessions, keyed(1), keyed(2))
    broker.outage = away()
    for event in producer.repository.get_many():
        producer.send_message(event)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert record.getMessage() == "the broker cannot be reached: BrokerUnavailable: nobody answers"
