"""The contract of :class:`~cqrs_sync.saga.storage.protocol.SagaStore`."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cqrs_sync.errors import ConfigurationError, SagaConcurrencyError, SagaNotFound
from cqrs_sync.saga.storage.enums import ACT, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import NewSaga, SagaLogEntry, SagaState, SagaWrite
from cqrs_sync.saga.storage.protocol import SagaStore

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds after which what should come true soon has not."""

AN_HOUR = 3600.0
"""A lease that no test outlives."""

A_MOMENT = 0.001
"""A lease that has ended when it is looked at."""

EVERYTHING = -60.0
"""A retention that is over for every saga, however much clocks differ."""


class SagaStorageContract(abc.ABC):
    """What every saga storage does. Derive a test class from it and return a storage from :meth:`make`."""

    @abc.abstractmethod
    def make(self, lease: float = AN_HOUR) -> SagaStore:
        """Return a storage with leases of so many seconds.

        Called several times in a test: all storages are over the same sagas, none when the test begins.
        """

    # --- creating --------------------------------------------------------------------------------------------------

    def test_a_new_saga_is_stored_as_running_and_owned(self) -> None:
        """As it was given, with nothing in its log."""
        storage = self.make()
        saga = self.new(name="OrderSaga", context='{"näme": "Zoë 🦊"}', definition="A > B", current_step="A")
        assert storage.create_saga(saga, "o1")
        state = storage.load_saga_state(saga.saga_id)
        assert (state.saga_id, state.name, state.context) == (saga.saga_id, "OrderSaga", '{"näme": "Zoë 🦊"}')
        assert (state.definition, state.current_step) == ("A > B", "A")
        assert (state.status, state.version, state.attempts) == (SagaStatus.RUNNING, 1, 0)
        assert (state.locked_by, state.error, state.finished_at, state.history) == ("o1", None, None, ())
        assert state.created_at.tzinfo is not None
        assert state.available_at is not None
        assert state.available_at > state.created_at
        assert not state.in_doubt

    def test_an_id_is_taken_once(self) -> None:
        """The second creation changes nothing."""
        storage = self.make()
        saga = self.new()
        assert storage.create_saga(saga, "o1")
        assert not storage.create_saga(dataclasses.replace(saga, context='{"other": 1}'), "o2")
        state = storage.load_saga_state(saga.saga_id)
        assert (state.locked_by, state.context) == ("o1", saga.context)

    def test_of_many_creations_at_once_one_succeeds(self) -> None:
        """Whoever loses is told."""
        saga = self.new()
        storage = self.make()
        results = self.at_once([lambda n=n: storage.create_saga(saga, f"o{n}") for n in range(4)])  # type: ignore[misc]
        assert sorted(results) == [False, False, False, True]

    def test_an_unknown_saga_is_not_found(self) -> None:
        """Neither by reading nor by claiming it."""
        storage = self.make()
        unknown = uuid.uuid4()
        functions = (storage.load_saga_state, storage.get_step_history, lambda saga_id: storage.claim(saga_id, "o"))
        for function in functions:
            error = self.error_of(lambda function=function: function(unknown))  # type: ignore[misc]
            assert isinstance(error, SagaNotFound)
            assert error.saga_id == unknown

    # --- writing ---------------------------------------------------------------------------------------------------

    def test_a_write_changes_the_saga_and_adds_to_its_log(self) -> None:
        """All of it at once; the version counts up."""
        storage = self.make()
        saga = self.created(storage, "o1")
        entries = (
            self.entry("A", details="ünïcode", attempts=3, duration=0.25, actor="o1"),
            SagaLogEntry("B", ACT, SagaStepStatus.FAILED),
        )
        self.write(storage, saga, "o1", context='{"n": 2}', current_step="C", error="boom", attempts=2, entries=entries)
        state = storage.load_saga_state(saga.saga_id)
        assert (state.version, state.context, state.current_step) == (2, '{"n": 2}', "C")
        assert (state.error, state.attempts, state.locked_by) == ("boom", 2, "o1")
        assert [dataclasses.replace(entry, created_at=None) for entry in state.history] == list(entries)
        assert all(entry.created_at is not None and entry.created_at.tzinfo is not None for entry in state.history)
        assert storage.get_step_history(saga.saga_id) == list(state.history)

    def test_what_a_write_does_not_say_stays(self) -> None:
        """The context, the error and the attempts."""
        storage = self.make()
        saga = self.created(storage, "o1")
        self.write(storage, saga, "o1", context='{"n": 2}', error="boom", attempts=2)
        self.write(storage, saga, "o1", version=2)
        state = storage.load_saga_state(saga.saga_id)
        assert (state.version, state.context, state.error, state.attempts) == (3, '{"n": 2}', "boom", 2)

    def test_the_log_keeps_its_order(self) -> None:
        """Over several writes, and where they are of one moment."""
        storage = self.make()
        saga = self.created(storage, "o1")
        for number in range(3):
            names = [f"{number}{letter}" for letter in "abc"]
            self.write(storage, saga, "o1", version=number + 1, entries=tuple(map(self.entry, names)))
        found = [entry.step_name for entry in storage.get_step_history(saga.saga_id)]
        assert found == ["0a", "0b", "0c", "1a", "1b", "1c", "2a", "2b", "2c"]

    def test_a_write_of_another_owner_or_version_is_refused(self) -> None:
        """It changes nothing: neither the saga nor its log."""
        storage = self.make()
        saga = self.created(storage, "o1")
        self.write(storage, saga, "o1", entries=(self.entry("A"),))
        before = storage.load_saga_state(saga.saga_id)
        for owner, version in (("o2", 2), ("o1", 1), ("o1", 3)):
            for entries in ((), (self.entry("B"),), (self.entry("B"), self.entry("C"))):
                refused = lambda: self.write(storage, saga, owner, version=version, entries=entries)  # noqa: B023, E731
                assert isinstance(self.error_of(refused), SagaConcurrencyError)
        assert storage.load_saga_state(saga.saga_id) == before

    def test_a_write_for_an_unknown_saga_is_refused(self) -> None:
        """It may have been purged."""
        storage = self.make()
        assert isinstance(
            self.error_of(lambda: self.write(storage, self.new(), "o1", entries=(self.entry("A"),))),
            SagaConcurrencyError,
        )

    def test_of_many_writes_at_once_one_succeeds(self) -> None:
        """The log has its entry alone."""
        storage = self.make()
        saga = self.created(storage, "o1")

        def write(number: int) -> bool:
            return self.error_of(lambda: self.write(storage, saga, "o1", entries=(self.entry(f"{number}"),))) is None

        results = self.at_once([lambda n=n: write(n) for n in range(4)])  # type: ignore[misc]
        assert sorted(results) == [False, False, False, True]
        [entry] = storage.get_step_history(saga.saga_id)
        assert results[int(entry.step_name)]

    def test_an_ended_saga_says_when(self) -> None:
        """It has no owner, and is never available again."""
        storage = self.make()
        for status in (SagaStatus.COMPLETED, SagaStatus.FAILED, SagaStatus.ABANDONED):
            saga = self.created(storage, "o1")
            self.write(storage, saga, "o1", status=status, holds=False)
            state = storage.load_saga_state(saga.saga_id)
            assert (state.status, state.locked_by, state.available_at) == (status, None, None)
            assert state.finished_at is not None
            assert state.finished_at >= state.created_at

    def test_what_was_read_is_not_changed_by_later_writes(self) -> None:
        """A storage in memory hands out no state of its own."""
        storage = self.make()
        saga = self.created(storage, "o1")
        before = storage.load_saga_state(saga.saga_id)
        self.write(storage, saga, "o1", entries=(self.entry("A"),))
        assert (before.version, before.history) == (1, ())

    def test_long_contexts_and_errors_are_kept(self) -> None:
        """A megabyte, say."""
        storage = self.make()
        saga = self.created(storage, "o1")
        text = "x" * 1_000_000
        self.write(storage, saga, "o1", context=text, error=text, entries=(self.entry("A", details=text),))
        state = storage.load_saga_state(saga.saga_id)
        assert (state.context, state.error, state.history[0].details) == (text, text, text)

    # --- transactions ----------------------------------------------------------------------------------------------

    def test_a_write_in_a_transaction_is_there_after_its_commit(self) -> None:
        """The storage joins the transactions that it opens."""
        storage = self.make()
        saga = self.created(storage, "o1")
        transaction = storage.begin()
        assert storage.joins(transaction)
        storage.write(self.written(saga, "o1", entries=(self.entry("A"),)), transaction)
        transaction.commit()
        transaction.close()
        state = storage.load_saga_state(saga.saga_id)
        assert (state.version, [entry.step_name for entry in state.history]) == (2, ["A"])

    def test_a_write_in_a_transaction_is_refused_as_any_other(self) -> None:
        """Before the commit, so that the step can be undone."""
        storage = self.make()
        saga = self.created(storage, "o1")
        transaction = storage.begin()
        write = self.written(saga, "o2", entries=(self.entry("A"),))
        assert isinstance(self.error_of(lambda: storage.write(write, transaction)), SagaConcurrencyError)
        transaction.rollback()
        transaction.close()
        assert storage.load_saga_state(saga.saga_id).version == 1

    # --- leases ----------------------------------------------------------------------------------------------------

    def test_a_saga_with_a_lease_cannot_be_claimed(self) -> None:
        """Not even by its owner: each claim has an owner of its own."""
        storage = self.make()
        saga = self.created(storage, "o1")
        for owner in ("o1", "o2"):
            error = self.error_of(lambda owner=owner: storage.claim(saga.saga_id, owner))  # type: ignore[misc]
            assert isinstance(error, SagaConcurrencyError)
            assert "o1" in str(error)
        assert storage.load_saga_state(saga.saga_id).version == 1

    def test_a_saga_whose_lease_has_ended_is_claimed_in_doubt(self) -> None:
        """The old owner can write no more; he may have been about to."""
        storage = self.make()
        saga = self.created(self.make(A_MOMENT), "o1")
        claimed = self.soon(lambda: storage.claim(saga.saga_id, "o2"))
        assert (claimed.locked_by, claimed.version, claimed.in_doubt, claimed.attempts) == ("o2", 2, True, 0)
        for version in (1, 2):
            late = lambda: self.write(storage, saga, "o1", version=version)  # noqa: B023, E731
            assert isinstance(self.error_of(late), SagaConcurrencyError)
        self.write(storage, saga, "o2", version=2)

    def test_a_claim_comes_with_the_log(self) -> None:
        """All that is needed to go on is read under the claim."""
        storage = self.make()
        saga = self.created(storage, "o1")
        self.write(storage, saga, "o1", context='{"n": 7}', entries=(self.entry("A"),), holds=False, available_in=0.0)
        claimed = storage.claim(saga.saga_id, "o2")
        assert (claimed.context, [entry.step_name for entry in claimed.history]) == ('{"n": 7}', ["A"])
        assert storage.load_saga_state(saga.saga_id) == dataclasses.replace(claimed, in_doubt=False)

    def test_a_saga_that_was_handed_over_is_claimed_without_doubt(self) -> None:
        """At once, unless the owner has left a doubt."""
        storage = self.make()
        for in_doubt in (False, True):
            saga = self.created(storage, "o1")
            self.write(storage, saga, "o1", holds=False, available_in=0.0, in_doubt=in_doubt)
            assert storage.claim(saga.saga_id, "o2").in_doubt is in_doubt

    def test_a_saga_that_waits_or_is_stuck_can_be_claimed_by_its_id(self) -> None:
        """Whoever names it knows why."""
        storage = self.make()
        for status, wait in ((SagaStatus.RUNNING, AN_HOUR), (SagaStatus.COMPENSATION_FAILED, None)):
            saga = self.created(storage, "o1")
            self.write(storage, saga, "o1", status=status, holds=False, available_in=wait)
            claimed = storage.claim(saga.saga_id, "o2")
            assert (claimed.status, claimed.locked_by) == (status, "o2")

    def test_an_ended_saga_is_not_claimed(self) -> None:
        """It is returned as it is."""
        storage = self.make()
        saga = self.created(storage, "o1")
        self.write(storage, saga, "o1", status=SagaStatus.COMPLETED, holds=False)
        before = storage.load_saga_state(saga.saga_id)
        assert storage.claim(saga.saga_id, "o2") == before

    def test_of_many_claims_at_once_one_succeeds(self) -> None:
        """The others are told."""
        storage = self.make()
        saga = self.created(storage, "o1")
        self.write(storage, saga, "o1", holds=False, available_in=0.0)

        def claim(owner: str) -> bool:
            return self.error_of(lambda: storage.claim(saga.saga_id, owner)) is None

        results = self.at_once([lambda n=n: claim(f"c{n}") for n in range(4)])  # type: ignore[misc]
        assert sorted(results) == [False, False, False, True]

    def test_a_renewed_lease_lasts_longer(self) -> None:
        """As long as it is held; the version stays, so the owner's next write is no surprise."""
        short, long = self.make(A_MOMENT), self.make()
        saga, other = self.created(short, "o1"), self.created(short, "o2")
        leases = [(saga.saga_id, "o1"), (other.saga_id, "o3"), (uuid.uuid4(), "o1"), (saga.saga_id, "o2")]
        assert long.renew(leases) == {(saga.saga_id, "o1")}
        assert isinstance(self.error_of(lambda: long.claim(saga.saga_id, "o4")), SagaConcurrencyError)
        self.soon(lambda: long.claim(other.saga_id, "o4"))
        self.write(long, saga, "o1")

    def test_a_lease_that_was_lost_is_not_renewed(self) -> None:
        """Nor is that of an ended saga."""
        storage = self.make()
        lost, ended = self.created(self.make(A_MOMENT), "o1"), self.created(storage, "o2")
        self.soon(lambda: storage.claim(lost.saga_id, "o3"))
        self.write(storage, ended, "o2", status=SagaStatus.FAILED, holds=False)
        assert storage.renew([(lost.saga_id, "o1"), (ended.saga_id, "o2")]) == set()
        assert storage.load_saga_state(ended.saga_id).available_at is None

    def test_a_write_renews_the_lease(self) -> None:
        """A saga with quick steps needs no heartbeat."""
        saga = self.created(self.make(A_MOMENT), "o1")
        storage = self.make()
        self.write(storage, saga, "o1")
        assert isinstance(self.error_of(lambda: storage.claim(saga.saga_id, "o2")), SagaConcurrencyError)

    # --- recovery --------------------------------------------------------------------------------------------------

    def test_recovery_takes_what_nobody_runs_and_is_due(self) -> None:
        """The oldest first; what is owned, waits, is stuck or has ended stays."""
        storage = self.make()
        vanished = self.created(self.make(A_MOMENT), "o1")
        time.sleep(20 * A_MOMENT)  # for the order
        compensating = self.left(storage, status=SagaStatus.COMPENSATING, entries=(self.entry("A"),))
        pending = self.left(storage, status=SagaStatus.PENDING)
        self.created(storage, "o1")
        self.left(storage, available_in=AN_HOUR)
        self.left(storage, status=SagaStatus.COMPENSATION_FAILED, available_in=None)
        self.left(storage, status=SagaStatus.FAILED, available_in=None)
        found = self.soon(lambda: storage.get_sagas_for_recovery("r1"))
        assert [state.saga_id for state in found] == [saga.saga_id for saga in (vanished, compensating, pending)]
        assert [state.in_doubt for state in found] == [True, False, False]
        assert [state.attempts for state in found] == [1, 1, 1]
        assert {state.locked_by for state in found} == {"r1"}
        assert [len(state.history) for state in found] == [0, 1, 0]
        assert storage.get_sagas_for_recovery("r2") == []
        self.write(storage, vanished, "r1", version=found[0].version)

    def test_recovery_takes_no_more_than_it_asks_for(self) -> None:
        """The rest is for others."""
        storage = self.make()
        sagas = {self.left(storage).saga_id for _ in range(3)}
        first, second = (storage.get_sagas_for_recovery(owner, limit=2) for owner in ("r1", "r2"))
        assert (len(first), len(second)) == (2, 1)
        assert {state.saga_id for state in (*first, *second)} == sagas

    def test_recovery_takes_sagas_of_its_names(self) -> None:
        """A worker that does not have a saga's class leaves it to others."""
        storage = self.make()
        mine, _ = self.left(storage, name="Mine"), self.left(storage, name="Other")
        [found] = storage.get_sagas_for_recovery("r1", names=["Mine", "Third"])
        assert found.saga_id == mine.saga_id

    def test_recovery_leaves_what_was_tried_too_often(self) -> None:
        """It counts the times; a write with progress begins anew."""
        storage = self.make()
        saga = self.left(storage)
        for attempt in (1, 2):
            [found] = storage.get_sagas_for_recovery(f"r{attempt}", max_attempts=2)
            assert found.attempts == attempt
            self.write(storage, saga, f"r{attempt}", version=found.version, holds=False, available_in=0.0)
        assert storage.get_sagas_for_recovery("r3", max_attempts=2) == []
        [found] = storage.get_sagas_for_recovery("r3", max_attempts=3)
        self.write(storage, saga, "r3", version=found.version, attempts=0, holds=False, available_in=0.0)
        assert len(storage.get_sagas_for_recovery("r4", max_attempts=1)) == 1

    def test_recoveries_at_once_share_the_sagas(self) -> None:
        """No saga is taken by two, and none is left."""
        storage = self.make()
        sagas = [self.left(storage).saga_id for _ in range(12)]

        def take(owner: str) -> list[uuid.UUID]:
            taken: list[uuid.UUID] = []
            until = time.monotonic() + PATIENCE
            while len(storage.find(limit=100)) > 0 and time.monotonic() < until:
                states = storage.get_sagas_for_recovery(owner, limit=2)
                for state in states:
                    taken.append(state.saga_id)
                    storage.write(
                        SagaWrite(
                            saga_id=state.saga_id,
                            owner=owner,
                            version=state.version,
                            status=SagaStatus.COMPLETED,
                            holds=False,
                        )
                    )
            return taken

        taken = self.at_once([lambda n=n: take(f"r{n}") for n in range(4)])  # type: ignore[misc]
        assert sorted(itertools.chain.from_iterable(taken)) == sorted(sagas)

    # --- operators -------------------------------------------------------------------------------------------------

    def test_sagas_are_found_by_status_and_name(self) -> None:
        """By default those that have not ended; the oldest first, without their logs."""
        storage = self.make()
        running = self.left(storage, name="A", entries=(self.entry("A"),))
        stuck = self.left(storage, name="B", status=SagaStatus.COMPENSATION_FAILED, available_in=None)
        ended = self.left(storage, name="A", status=SagaStatus.COMPLETED, available_in=None)
        assert self.ids(storage.find()) == self.ids([running, stuck])
        assert self.ids(storage.find(limit=1)) == self.ids([running])
        assert self.ids(storage.find(names=["A"])) == self.ids([running])
        assert self.ids(storage.find([SagaStatus.COMPENSATION_FAILED])) == self.ids([stuck])
        assert self.ids(storage.find([SagaStatus.RUNNING, SagaStatus.COMPLETED], ["A"])) == self.ids([running, ended])
        assert self.ids(storage.find(["compensation_failed", "completed"])) == self.ids([stuck, ended])
        assert storage.find()[0].history == ()
        assert storage.find()[0].status is SagaStatus.RUNNING

    def test_all_sagas_can_be_read_a_page_at_a_time(self) -> None:
        """Each once, however many; those of the same moment too."""
        storage = self.make()
        ids = uuid.uuid4().int
        sagas = {uuid.UUID(int=(ids + number * 7919) % 2**128) for number in range(25)}

        def store(mine: Sequence[uuid.UUID]) -> None:
            for saga_id in mine:
                assert storage.create_saga(dataclasses.replace(self.new(), saga_id=saga_id), "o1")

        self.at_once([lambda n=n: store(sorted(sagas)[n::4]) for n in range(4)])  # type: ignore[misc]
        for size in (1, 4, 25):
            found: list[SagaState] = []
            while page := storage.find(limit=size, after=found[-1] if found else None):
                assert len(page) <= size
                found += page
            assert self.ids(found) == self.ids(storage.find())
            assert sorted(self.ids(found)) == sorted(sagas)
        assert storage.find(names=["Other"], after=found[0]) == []

    def test_a_status_that_does_not_exist_is_refused(self) -> None:
        """And the error names those that do."""
        storage = self.make()
        for statuses in (["gone"], "failed"):
            error = self.error_of(lambda statuses=statuses: storage.find(statuses))  # type: ignore[misc]
            assert isinstance(error, ConfigurationError)
            assert "compensation_failed, abandoned" in str(error)

    def test_sagas_are_found_by_attempts(self) -> None:
        """Those that were taken on so often or more."""
        storage = self.make()
        sagas = [self.left(storage, attempts=attempts) for attempts in (0, 2, 3)]
        assert self.ids(storage.find(min_attempts=2)) == self.ids(sagas[1:])
        assert self.ids(storage.find([SagaStatus.RUNNING], ["Saga"], min_attempts=3)) == self.ids(sagas[2:])

    def test_a_saga_that_does_not_fit_is_found(self) -> None:
        """By anybody, due or not, with the reason, until it is claimed; and whether it leaves a doubt is kept."""
        storage = self.make()
        self.left(storage, name="Fits", available_in=AN_HOUR)
        sagas = [
            self.left(storage, available_in=wait, unfit=True, in_doubt=in_doubt, error="other steps")
            for wait, in_doubt in ((AN_HOUR, False), (0.0, True))
        ]
        found = storage.find(unfit=True)
        assert self.ids(found) == self.ids(sagas)
        assert [(state.is_unfit, state.leaves_doubt, state.error) for state in found] == [
            (True, False, "other steps"),
            (True, True, "other steps"),
        ]
        assert self.ids(storage.find([SagaStatus.COMPENSATING], unfit=True)) == []
        assert [(waiting.name, waiting.recoverable, waiting.unfit) for waiting in storage.backlog()] == [("Saga", 1, 2)]
        [claimed] = storage.get_sagas_for_recovery("r1")
        assert (claimed.saga_id, claimed.in_doubt, claimed.is_unfit) == (sagas[1].saga_id, True, False)
        assert self.ids(storage.find(unfit=True)) == self.ids(sagas[:1])
        claimed = storage.claim(sagas[0].saga_id, "r2")
        assert (claimed.in_doubt, claimed.is_unfit) == (False, False)

    def test_a_backlog_counts_what_is_due_and_what_is_stuck(self) -> None:
        """By name; neither what waits, nor what has ended."""
        storage = self.make()
        self.left(storage, available_in=AN_HOUR)
        self.left(storage, status=SagaStatus.COMPLETED, available_in=None)
        self.left(storage, name="Other", available_in=AN_HOUR)
        assert storage.backlog() == []
        stuck: dict[str, Any] = {"status": SagaStatus.COMPENSATION_FAILED, "available_in": None}
        self.left(storage, **stuck)
        self.left(storage, name="Stuck", **stuck)
        self.left(storage, attempts=5, available_in=-60.0)
        self.left(storage, status=SagaStatus.COMPENSATING, attempts=4, available_in=-30.0)
        self.left(storage, attempts=5, available_in=AN_HOUR)
        for max_attempts, counts, age in ((None, (2, 1), 60.0), (5, (1, 2), 30.0)):
            saga, other = storage.backlog(max_attempts)
            assert (saga.name, saga.recoverable, saga.stuck) == ("Saga", *counts)
            assert saga.oldest_age is not None
            assert age - 1 < saga.oldest_age < age + PATIENCE
            assert (other.name, other.recoverable, other.stuck, other.oldest_age) == ("Stuck", 0, 1, None)

    def test_a_backlog_says_how_long_ago_what_is_run_was_written(self) -> None:
        """A lease that is renewed does not hide a step that hangs; nobody runs what was let go of."""
        storage = self.make()
        hangs = self.created(storage, "o1")
        for changes in ({}, {"in_doubt": True}, {"unfit": True}):
            self.left(storage, name="Left", available_in=AN_HOUR, **changes)
        stuck = self.left(storage, name="Stuck", status=SagaStatus.COMPENSATION_FAILED, available_in=None)
        storage.claim(stuck.saga_id, "operator")
        time.sleep(20 * A_MOMENT)
        quick = self.created(storage, "o2")
        assert storage.renew([(hangs.saga_id, "o1")])
        by_name = {waiting.name: waiting for waiting in storage.backlog()}
        assert sorted(by_name) == ["Left", "Saga", "Stuck"]
        found = by_name["Saga"]
        assert (found.recoverable, found.stuck, found.oldest_age, found.unfit) == (0, 0, None, 0)
        assert found.oldest_running is not None
        assert 19 * A_MOMENT < found.oldest_running < PATIENCE
        assert [by_name[name].oldest_running for name in ("Left", "Stuck")] == [None, None]
        before = storage.load_saga_state(quick.saga_id).updated_at
        assert storage.renew([(quick.saga_id, "o2")])
        assert storage.load_saga_state(quick.saga_id).updated_at == before
        self.write(storage, hangs, "o1", status=SagaStatus.COMPLETED, holds=False)
        self.write(storage, quick, "o2", holds=False, available_in=AN_HOUR)
        assert "Saga" not in [waiting.name for waiting in storage.backlog()]

    def test_a_saga_that_was_let_go_of_in_doubt_can_be_claimed(self) -> None:
        """Also while it waits for its next attempt: nobody runs it. The doubt stays."""
        storage = self.make()
        saga = self.left(storage, available_in=AN_HOUR, in_doubt=True)
        assert storage.renew([(saga.saga_id, "somebody")]) == set()
        claimed = storage.claim(saga.saga_id, "o2")
        assert (claimed.locked_by, claimed.in_doubt) == ("o2", True)

    def test_purge_deletes_what_has_ended_long_enough_ago(self) -> None:
        """With its log; some at a time, and never what has not ended."""
        storage = self.make()
        open_ = self.left(storage)
        ended = [self.left(storage, status=status, available_in=None) for status in SagaStatus if status.is_final]
        assert storage.purge(AN_HOUR) == 0
        assert [storage.purge(EVERYTHING, limit=2) for _ in range(3)] == [2, 1, 0]
        for saga in ended:
            assert isinstance(self.error_of(lambda saga=saga: storage.load_saga_state(saga.saga_id)), SagaNotFound)  # type: ignore[misc]
        assert storage.load_saga_state(open_.saga_id).status is SagaStatus.RUNNING

    # --- help ------------------------------------------------------------------------------------------------------

    def new(self, **fields: Any) -> NewSaga:
        """A saga that is not stored."""
        given = {"name": "Saga", "context": "{}", "definition": "A", "current_step": "A"} | fields
        return NewSaga(saga_id=uuid.uuid4(), **given)

    def created(self, storage: SagaStore, owner: str, **fields: Any) -> NewSaga:
        """A saga that was stored."""
        saga = self.new(**fields)
        assert storage.create_saga(saga, owner)
        return saga

    def left(self, storage: SagaStore, *, name: str = "Saga", **changes: Any) -> NewSaga:
        """A saga that was stored and let go."""
        saga = self.created(storage, "somebody", name=name)
        self.write(storage, saga, "somebody", **{"holds": False, "available_in": 0.0, **changes})
        return saga

    def written(self, saga: NewSaga, owner: str, **changes: Any) -> SagaWrite:
        """A write, of the first version as it was stored by default."""
        given: dict[str, Any] = {"version": 1, "status": SagaStatus.RUNNING, **changes}
        return SagaWrite(saga_id=saga.saga_id, owner=owner, **given)

    def write(self, storage: SagaStore, saga: NewSaga, owner: str, **changes: Any) -> None:
        """Write it."""
        storage.write(self.written(saga, owner, **changes))

    def entry(self, step_name: str, **fields: Any) -> SagaLogEntry:
        """An entry that says that a step is done."""
        return SagaLogEntry(step_name, ACT, SagaStepStatus.COMPLETED, **fields)

    def ids(self, sagas: Any) -> list[uuid.UUID]:
        """Their ids."""
        return [saga.saga_id for saga in sagas]

    def error_of(self, function: Callable[[], Any]) -> Exception | None:
        """What a function raises."""
        try:
            function()
        except Exception as error:
            return error
        return None

    def soon(self, function: Callable[[], _T]) -> _T:
        """What a function returns once a lease has ended, which others may see a little later."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                found = function()
            except SagaConcurrencyError:
                found = None
            if found or time.monotonic() > until:
                assert found
                return found
            time.sleep(0.005)

    def at_once(self, functions: list[Callable[[], _T]]) -> list[_T]:
        """What functions return that are called in threads of their own at the same time."""
        barrier = threading.Barrier(len(functions))
        results: list[Any] = [None] * len(functions)

        def run(number: int) -> None:
            barrier.wait(PATIENCE)
            results[number] = functions[number]()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results
