"""The contract of :class:`~cqrs_sync.outbox.repository.OutboxStore`."""

from __future__ import annotations

import abc
import threading
import time
import unittest
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from cqrs_sync.compressors import Compressor, ZlibCompressor
from cqrs_sync.errors import EventNotRegistered, EventNotStorable
from cqrs_sync.events.event import NotificationEvent
from cqrs_sync.outbox.map import OutboxedEventMap
from cqrs_sync.outbox.models import EventStatus, Failure, OutboxedEvent
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.serializers.exceptions import EventNotSerializable

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds after which what should come true soon has not."""

AN_HOUR = 3600.0
"""Seconds that no test lasts: what waits so long is not seen again."""

EVERYTHING = -60.0
"""A retention that is over for every row, however much the clocks differ."""

ALL = 32
"""As many partitions as there are."""


class Numbered(NotificationEvent[int]):
    """An event with a number in it."""

    event_name: str = "numbered"
    topic: str = "contract"
    payload: int = 0


class Text(NotificationEvent[str]):
    """An event with a text in it."""

    event_name: str = "text"
    topic: str = "contract"
    payload: str = ""


EVENTS = OutboxedEventMap()
"""What the stores under test must know: give it to them as ``event_map``."""

EVENTS.register("numbered", Numbered)
EVENTS.register("text", Text)
EVENTS.register("anything", NotificationEvent[Any])
EVENTS.register("n" * 255, NotificationEvent[int])


class UnknownCompressor:
    """Compresses under a name that other stores do not know."""

    name = "unknown"

    def compress(self, value: bytes) -> bytes:
        return zlib.compress(value)

    def decompress(self, value: bytes) -> bytes:
        return zlib.decompress(value)


class OutboxContract(abc.ABC):
    """What every outbox does. Derive a test class from it and return a store from :meth:`open`.

    Attributes:
        one_at_a_time: whether a store that writes or claims keeps all others waiting, as SQLite does; tests of two
            that are at work at once are then skipped.
    """

    one_at_a_time = False

    @abc.abstractmethod
    def open(self, compressor: Compressor | None = None) -> OutboxStore:
        """Return a store with a connection of its own, the event map :data:`EVENTS` and this compressor.

        Called several times in a test, by several threads: all stores are over one outbox, empty when the test begins.
        """

    # --- storing ---------------------------------------------------------------------------------------------------

    def test_an_event_is_seen_after_the_commit_and_never_before(self) -> None:
        """It belongs to the caller's transaction."""
        with closing(self.open()) as writer:
            writer.add(Numbered(payload=1))
            if not self.one_at_a_time:
                assert self.claimed() == []
            writer.commit()
        assert self.numbers(self.claimed()) == [1]

    def test_a_rollback_or_a_close_undoes_what_was_added(self) -> None:
        """And the store can be used again."""
        with closing(self.open()) as store:
            store.add(Numbered(payload=1))
            store.rollback()
            store.add(Numbered(payload=2))
            store.commit()
            store.add(Numbered(payload=3))
        assert self.numbers(self.drained()) == [2]

    def test_an_event_comes_back_as_it_was_stored(self) -> None:
        """Its bytes, its headers and the event itself, with any text that UTF-8 has."""
        event = Text(payload="Zoë 🦊 \0", partition_key="ключ 🦊", topic="töpic", headers={"hé": "🦊\0"})
        self.stored(event)
        [found] = self.claimed()
        assert (found.event_id, found.event_name, found.topic) == (event.event_id, "text", "töpic")
        assert found.partition_key == "ключ 🦊"
        assert {**found.headers, **event.headers} == dict(found.headers)
        assert found.event == event
        assert (found.attempts, found.status, found.last_error, found.defect) == (0, EventStatus.NEW, None, None)
        assert found.to_message().payload_bytes == found.payload

    def test_an_event_keeps_its_time_zone(self) -> None:
        """It happened at one moment, wherever it is read."""
        event = Numbered(payload=1)
        self.stored(event)
        [found] = self.claimed()
        assert found.event.event_timestamp == event.event_timestamp
        assert found.event.event_timestamp.tzinfo is not None

    def test_a_big_payload_is_stored_whole(self) -> None:
        """Beyond the 64 KiB at which MySQL's BLOB ends."""
        event = Text(payload="0123456789" * 20_000)
        self.stored(event)
        [found] = self.claimed()
        assert found.event == event

    def test_an_event_added_twice_in_one_transaction_is_stored_once(self) -> None:
        """By a handler that lists what it has added, say."""
        event = Numbered(payload=1)
        self.stored(event, event)
        assert self.numbers(self.drained()) == [1]

    def test_an_unregistered_name_is_refused_and_nothing_is_staged(self) -> None:
        """As a TypeError, like in the async library."""
        self.refuses(NotificationEvent[int](event_name="nobody", payload=1), EventNotRegistered)

    def test_a_payload_of_another_type_is_refused_and_nothing_is_staged(self) -> None:
        """The name is right, the type is not."""
        self.refuses(NotificationEvent[str](event_name="numbered", payload="one"), EventNotRegistered)

    def test_an_event_that_is_no_json_is_refused_and_nothing_is_staged(self) -> None:
        """Where it is added, and not when it is to be published."""
        self.refuses(NotificationEvent[Any](event_name="anything", payload=object()), EventNotSerializable)

    def test_what_the_table_cannot_hold_is_refused_and_nothing_is_staged(self) -> None:
        """In the handler that made it: the database's own error would come at the commit and name nothing."""
        self.refuses(Numbered(topic="t" * 250), EventNotStorable)
        self.refuses(Numbered(topic=""), EventNotStorable)
        self.refuses(Numbered(partition_key="k" * 256), EventNotStorable)
        self.refuses(Numbered(partition_key="a\0b"), EventNotStorable)
        self.refuses(Numbered(topic="a\0b"), EventNotStorable)

    def test_what_is_just_short_enough_is_stored(self) -> None:
        """Lengths are counted in characters."""
        self.stored(NotificationEvent(event_name="n" * 255, payload=1, topic="t" * 249, partition_key="🦊" * 255))
        [found] = self.claimed()
        assert found.partition_key == "🦊" * 255

    def test_each_row_says_how_it_is_compressed(self) -> None:
        """So that the compressor may change while rows are waiting; what is sent is never compressed."""
        self.stored(Numbered(payload=1, partition_key="k"))
        self.stored(Numbered(payload=2, partition_key="k"), compressor=ZlibCompressor())
        self.stored(Numbered(payload=3, partition_key="k"), compressor=UnknownCompressor())
        with closing(self.open(UnknownCompressor())) as store:
            events = store.get_many(partitions=ALL)
            assert self.numbers(events) == [1, 2, 3]
            assert all(event.payload.startswith(b"{") for event in events)

    def test_a_row_that_cannot_be_read_spoils_no_other(self) -> None:
        """It is claimed with its defect, so that it becomes a dead letter with a reason."""
        self.stored(Numbered(payload=1))
        self.stored(Numbered(payload=2), compressor=UnknownCompressor())
        self.stored(Numbered(payload=3))
        defects = [event.defect for event in self.claimed()]
        assert [defect is None for defect in defects] == [True, False, True]
        assert "unknown" in str(defects[1])

    # --- claiming --------------------------------------------------------------------------------------------------

    def test_events_of_a_key_come_in_the_order_in_which_they_were_stored(self) -> None:
        """Whatever the size of the batches."""
        self.stored(*(Numbered(payload=number, partition_key=f"key {number % 3}") for number in range(30)))
        drained = self.drained(batch_size=4)
        assert sorted(self.numbers(drained)) == list(range(30))
        for key in range(3):
            of_key = [event for event in drained if event.partition_key == f"key {key}"]
            assert self.numbers(of_key) == list(range(key, 30, 3))

    def test_a_claim_returns_the_size_of_a_batch_at_most(self) -> None:
        """And the rest with the next one."""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(5)))
        with closing(self.open()) as store:
            assert self.numbers(store.get_many(3)) == [0, 1, 2]

    def test_a_topic_is_asked_for_by_its_exact_name(self) -> None:
        """Upper and lower case are two topics."""
        self.stored(Numbered(payload=1, topic="a"), Numbered(payload=2, topic="b"), Numbered(payload=3, topic="A"))
        with closing(self.open()) as store:
            assert self.numbers(store.get_many(topic="a", partitions=ALL)) == [1]
            store.rollback()
            assert store.get_many(topic="c", partitions=ALL) == []

    def test_a_claim_leaves_other_partitions_to_others(self) -> None:
        """Two that claim one after the other get different events, and there is something for both."""
        self.needs_two_at_once()
        self.stored(*(Numbered(payload=number) for number in range(200)))
        with closing(self.open()) as one, closing(self.open()) as two:
            first = self.numbers(one.get_many(1000, partitions=4))
            second = self.numbers(two.get_many(1000, partitions=ALL))
            assert first
            assert second
            assert sorted(first + second) == list(range(200))
            assert self.claimed() == []

    def test_a_key_belongs_to_one_claim_at_a_time(self) -> None:
        """Even where the claim took some of its events only."""
        self.needs_two_at_once()
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(4)))
        with closing(self.open()) as one:
            assert self.numbers(one.get_many(2, partitions=ALL)) == [0, 1]
            assert self.claimed() == []
        assert self.numbers(self.claimed()) == [0, 1, 2, 3]

    def test_a_rollback_and_a_close_give_back_what_was_claimed(self) -> None:
        """As a process that dies does; what was noted and not committed is forgotten."""
        self.stored(Numbered(payload=1))
        with closing(self.open()) as store:
            [event] = store.get_many()
            store.mark_produced([event.id])
            store.rollback()
            assert self.numbers(self.claimed()) == [1]
            [event] = store.get_many()
            store.mark_failed([Failure(event.id, "no", None)])
        [event] = self.claimed()
        assert (event.event.payload, event.attempts) == (1, 0)

    def test_claimers_at_once_never_get_the_same_event(self) -> None:
        """Each event is claimed exactly once, those of a key in order."""
        self.stored(*(Numbered(payload=number, partition_key=f"key {number % 20}") for number in range(200)))
        seen: list[OutboxedEvent] = []

        def work() -> None:
            with closing(self.open()) as store:
                while self.pending():
                    events = store.get_many(7)
                    seen.extend(events)
                    store.mark_produced([event.id for event in events])
                    store.commit()

        in_threads(work, 3)
        assert sorted(self.numbers(seen)) == list(range(200))
        for key in range(20):
            of_key = self.numbers(event for event in seen if event.partition_key == f"key {key}")
            assert of_key == sorted(of_key)

    def test_a_claim_is_over_with_its_transaction(self) -> None:
        """And its events know it: whoever sends them later would not be alone with them."""
        self.stored(Numbered(payload=1))
        for end in (OutboxStore.commit, OutboxStore.rollback, OutboxStore.close):
            with closing(self.open()) as store:
                [event] = store.get_many(partitions=ALL)
                assert event.claim is not None
                assert not event.claim.ended
                getattr(store, end.__name__)()
                assert event.claim.ended

    # --- results ---------------------------------------------------------------------------------------------------

    def test_produced_events_are_not_claimed_again(self) -> None:
        """And the others are, where a batch was published in part."""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(4)))
        with closing(self.open()) as store:
            events = store.get_many()
            store.mark_produced([event.id for event in events[:2]])
            store.commit()
        assert self.numbers(self.claimed()) == [2, 3]

    def test_a_failed_event_waits_for_its_time_and_its_key_behind_it(self) -> None:
        """Others are not kept waiting."""
        self.stored(*(Numbered(payload=number, partition_key=key) for number, key in enumerate(["a", "b", "a", "A"])))
        self.stored(Numbered(payload=4))
        self.failed(0, "not now", AN_HOUR)
        assert self.numbers(self.claimed()) == [1, 3, 4]
        assert self.pending() == 5

    def test_a_failed_event_comes_back_first_when_its_time_has_come(self) -> None:
        """Alone, with its attempt counted and its reason: who knows whether it is taken now?"""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(3)))
        self.failed(0, "not now", 0.0)
        [event] = eventually(self.claimed)
        assert (event.event.payload, event.attempts, event.last_error) == (0, 1, "not now")
        assert event.status is EventStatus.NOT_PRODUCED
        assert self.numbers(self.drained(batch_size=10)) == [0, 1, 2]

    def test_of_two_failed_events_of_a_key_the_first_goes_first(self) -> None:
        """Even if the other's time comes before."""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(3)))
        with closing(self.open()) as store:
            events = store.get_many()
            store.mark_failed([Failure(events[0].id, "not now", 0.5), Failure(events[1].id, "not now", 0.0)])
            store.commit()
        assert eventually(lambda: self.numbers(self.claimed())) == [0]
        assert self.numbers(eventually(self.drained)) == [0, 1, 2]

    def test_a_dead_letter_is_kept_with_its_reason_and_its_key_goes_on(self) -> None:
        """Nobody claims it."""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(2)))
        self.failed(0, "never", None)
        assert self.numbers(self.claimed()) == [1]
        [letter] = self.dead()
        assert (letter.event.payload, letter.status, letter.last_error) == (0, EventStatus.DEAD, "never")
        assert letter.attempts == 1

    def test_a_dead_letter_may_hold_its_key_until_it_is_replayed(self) -> None:
        """And others go on."""
        self.stored(*(Numbered(payload=number, partition_key=key) for number, key in enumerate("abab")))
        self.failed(0, "never", None, holds_key=True)
        assert self.numbers(self.claimed()) == [1, 3]
        with closing(self.open()) as store:
            assert store.replay() == 1
            store.commit()
        assert self.numbers(self.claimed()) == [0, 1, 2, 3]

    def test_discarding_a_dead_letter_frees_its_key(self) -> None:
        """It is gone for good."""
        self.stored(*(Numbered(payload=number, partition_key="a") for number in range(2)))
        self.failed(0, "never", None, holds_key=True)
        assert self.claimed() == []
        [letter] = self.dead()
        with closing(self.open()) as store:
            assert store.discard([letter.id, letter.id + 1]) == 1
            store.commit()
        assert self.dead() == []
        assert self.numbers(self.claimed()) == [1]

    def test_a_replayed_dead_letter_has_all_its_attempts_again(self) -> None:
        """These, or all of them; what is not dead is left alone."""
        self.stored(*(Numbered(payload=number) for number in range(3)))
        for number in range(3):
            self.failed(number, "never", None)
        letters = self.dead()
        with closing(self.open()) as store:
            assert store.replay([letters[1].id]) == 1
            store.commit()
        [event] = self.claimed()
        assert (event.event.payload, event.attempts, event.status) == (1, 0, EventStatus.NEW)
        with closing(self.open()) as store:
            assert store.replay() == 2
            store.rollback()
            assert store.replay([event.id]) == 0
        assert len(self.dead()) == 2

    def test_dead_letters_are_shown_oldest_first_and_not_all_at_once(self) -> None:
        """There may be many."""
        self.stored(*(Numbered(payload=number) for number in range(3)))
        for number in (2, 0, 1):
            self.failed(number, "never", None)
        with closing(self.open()) as store:
            assert self.numbers(store.dead_letters(limit=2)) == [0, 1]

    def test_results_of_all_kinds_are_written_together(self) -> None:
        """Each failure with its own reason and time."""
        self.stored(*(Numbered(payload=number) for number in range(6)))
        with closing(self.open()) as store:
            ids = {event.event.payload: event.id for event in store.get_many(partitions=ALL)}
            store.mark_produced([ids[0], ids[1]])
            store.mark_failed([Failure(ids[2], "late", AN_HOUR), Failure(ids[3], "never", None)])
            store.mark_failed([Failure(ids[4], "later", 0.0)])
            store.commit()
        found = eventually(lambda: events if len(events := self.claimed()) == 2 else None)
        assert [(event.event.payload, event.last_error) for event in found] == [(4, "later"), (5, None)]
        assert [letter.last_error for letter in self.dead()] == ["never"]

    def test_any_text_may_be_a_reason(self) -> None:
        """Also what a database refuses in a text; a long one is cut."""
        self.stored(Numbered())
        self.failed(0, "no: \0 🦊 \ud800" + "x" * 100_000, None)
        [letter] = self.dead()
        assert str(letter.last_error).startswith("no: ")

    def test_marking_a_row_that_is_gone_is_harmless(self) -> None:
        """Somebody may have deleted it."""
        self.stored(Numbered(payload=1))
        with closing(self.open()) as store:
            [event] = store.get_many()
            store.mark_produced([event.id, event.id + 1000])
            store.mark_failed([Failure(event.id + 1000, "gone", 1.0)])
            store.commit()
        assert self.claimed() == []

    def test_what_was_noted_is_not_claimed_again_before_the_commit(self) -> None:
        """The next claim of the same transaction goes on behind it."""
        self.stored(*(Numbered(payload=number, partition_key="k") for number in range(4)))
        with closing(self.open()) as store:
            store.mark_produced([event.id for event in store.get_many(2)])
            store.mark_failed([Failure(store.get_many(1)[0].id, "late", AN_HOUR)])
            assert store.get_many(2) == []
            store.rollback()
        assert self.numbers(self.claimed()) == [0, 1, 2, 3]

    def test_update_status_says_it_as_the_async_library_does(self) -> None:
        """A new status changes nothing."""
        self.stored(*(Numbered(payload=number) for number in range(4)))
        with closing(self.open()) as store:
            ids = {event.event.payload: event.id for event in store.get_many(partitions=ALL)}
            store.update_status(ids[0], EventStatus.PRODUCED)
            store.update_status(ids[1], EventStatus.NOT_PRODUCED)
            store.update_status(ids[2], EventStatus.DEAD)
            store.update_status(ids[3], EventStatus.NEW)
            store.commit()
        with closing(self.open()) as store:
            assert store.backlog()[:2] == (2, 1)
            assert self.numbers(store.dead_letters()) == [2]

    # --- figures and retention -------------------------------------------------------------------------------------

    def test_the_backlog_counts_what_is_pending_and_what_is_dead(self) -> None:
        """What waits for its next attempt is pending, what is produced is neither."""
        with closing(self.open()) as store:
            assert store.backlog() == (0, 0, None)
        self.stored(*(Numbered(payload=number) for number in range(4)))
        self.failed(0, "late", AN_HOUR)
        self.failed(1, "never", None)
        self.produced(2)
        with closing(self.open()) as store:
            pending, dead, age = store.backlog()
        assert (pending, dead) == (2, 1)
        assert age is not None
        assert 0 <= age < AN_HOUR

    def test_a_purge_deletes_old_produced_events_and_nothing_else(self) -> None:
        """So many at a time."""
        self.stored(*(Numbered(payload=number) for number in range(5)))
        self.failed(4, "never", None)
        for number in range(3):
            self.produced(number)
        with closing(self.open()) as store:
            assert store.purge(AN_HOUR) == 0
            assert store.purge(EVERYTHING, limit=2) == 2
            store.commit()
            assert store.purge(EVERYTHING, limit=2) == 1
            store.commit()
            assert store.purge(EVERYTHING) == 0
        assert self.numbers(self.claimed()) == [3]
        assert self.numbers(self.dead()) == [4]

    def test_produced_events_may_be_deleted_at_once(self) -> None:
        """Then there is nothing left to purge."""
        self.stored(Numbered(payload=1))
        with closing(self.open()) as store:
            store.delete_produced()
            store.mark_produced([event.id for event in store.get_many()])
            store.commit()
            assert store.purge(EVERYTHING) == 0
        assert self.claimed() == []

    def test_numbers_are_not_given_a_second_time(self) -> None:
        """The number of a deleted event would let a later one overtake."""
        self.stored(Numbered(payload=1))
        with closing(self.open()) as store:
            store.delete_produced()
            [first] = store.get_many()
            store.mark_produced([first.id])
            store.commit()
        self.stored(Numbered(payload=2))
        [second] = self.claimed()
        assert second.id > first.id

    # --- helpers ---------------------------------------------------------------------------------------------------

    def needs_two_at_once(self) -> None:
        """Skip the test where two stores cannot be at work at once."""
        if self.one_at_a_time:
            raise unittest.SkipTest("one store at a time")

    def stored(self, *events: Any, compressor: Compressor | None = None) -> None:
        """Store events in one transaction."""
        with closing(self.open(compressor)) as store:
            for event in events:
                store.add(event)
            store.commit()

    def claimed(self) -> list[OutboxedEvent]:
        """Return what can be claimed now, and give it back."""
        with closing(self.open()) as store:
            return store.get_many(1000, partitions=ALL)

    def drained(self, batch_size: int = 100) -> list[OutboxedEvent]:
        """Take out batch after batch until there is nothing left, and return all."""
        drained: list[OutboxedEvent] = []
        with closing(self.open()) as store:
            while events := store.get_many(batch_size):
                drained.extend(events)
                store.mark_produced([event.id for event in events])
                store.commit()
        return drained

    def dead(self) -> list[OutboxedEvent]:
        """Return the dead letters."""
        with closing(self.open()) as store:
            return store.dead_letters()

    def pending(self) -> int:
        """Return how many events are still to be published."""
        with closing(self.open()) as store:
            return store.backlog().pending

    def produced(self, number: int) -> None:
        """Note that the event with this number was published."""
        with self.picked(number) as (store, event):
            store.mark_produced([event.id])

    def failed(self, number: int, reason: str, retry_after: float | None, *, holds_key: bool = False) -> None:
        """Note that the event with this number was rejected."""
        with self.picked(number) as (store, event):
            store.mark_failed([Failure(event.id, reason, retry_after, holds_key)])

    @contextmanager
    def picked(self, number: int) -> Iterator[tuple[OutboxStore, OutboxedEvent]]:
        """Claim the event with this number, and commit what the block says of it."""
        with closing(self.open()) as store:
            [event] = [event for event in store.get_many(1000, partitions=ALL) if event.event.payload == number]
            yield store, event
            store.commit()

    def refuses(self, event: Any, error: type[Exception]) -> None:
        """Check that an event is refused and what was added before stands alone."""
        with closing(self.open()) as store:
            store.add(Numbered(payload=1))
            try:
                store.add(event)
            except error:
                store.commit()
            else:
                raise AssertionError(f"{event!r} was not refused")
        assert self.numbers(self.drained()) == [1]

    @staticmethod
    def numbers(events: Any) -> list[int]:
        """The numbers of events."""
        return [event.event.payload for event in events]


def eventually(look: Callable[[], _T | None]) -> _T:
    """Return what a function returns once that is neither empty nor None."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come true"
    return found


def in_threads(work: Callable[[], None], number: int) -> None:
    """Run a function in several threads that begin together; raises what they raise."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(number)

    def run() -> None:
        try:
            barrier.wait(PATIENCE)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
