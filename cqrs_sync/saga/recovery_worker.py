"""Finishes sagas that were left unfinished, in the background."""

from __future__ import annotations

import contextvars
import datetime
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from typing import NamedTuple

from cqrs_sync.background import BackgroundLoop
from cqrs_sync.backoff import LONGEST, Backoff
from cqrs_sync.checks import in_seconds, require_count, require_instance
from cqrs_sync.errors import ConfigurationError, SagaStorageUnavailable, StopTimeout, type_name
from cqrs_sync.executors import WorkerContext, logged
from cqrs_sync.saga.mediator import SagaMediator
from cqrs_sync.saga.recovering import Claimed, Recoverer
from cqrs_sync.saga.storage.protocol import SagaStore

logger = logging.getLogger(__name__)

MONTH = 30 * 24 * 3600.0
"""Seconds that sagas which have ended are kept by default."""

HOUSEKEEPING_INTERVAL = 60.0
"""Seconds between looks for sagas to purge, and for those that nobody knows."""

PURGE_SIZE = 1000
"""How many sagas one transaction purges, with their logs."""


class RecoveryHealth(NamedTuple):
    """How a recovery worker is, and what waits for it.

    Attributes:
        running: whether one of its threads is alive.
        last_error: what kept it from work at the latest attempt: no saga's own error, but that of the storage, say.
        finished: how many sagas this worker has brought to an end, forward or back, since it was made.
        recoverable: how many sagas are due, for any worker that knows them; None where the storage could not be asked.
        stuck: how many wait for an operator: their rollback has failed, or their attempts are used up. Or None.
        oldest_age: seconds since the first of those that are due became so, or None.
        unknown: for each name that is not bound here how many sagas are due or stuck. Where services share the tables
            it is another one's business.
        changed: ids of sagas that this worker has found not to fit the steps that it has, with the difference.
        unfit: how many sagas did not fit the steps of the worker that has looked at them last, whichever that was;
            :meth:`~cqrs_sync.saga.administration.SagaAdministration.find` has them with the others that are stuck. Or
            None.
        oldest_running: of the sagas that are run, by whomever, seconds since the last step of one was recorded, where
            that is the longest ago; None where none is run. Longer than any step takes with its retries: it hangs,
            and its lease is renewed for ever; or somebody keeps a generator without going on with it.
    """

    running: bool
    last_error: Exception | None
    finished: int
    recoverable: int | None
    stuck: int | None
    oldest_age: float | None
    unknown: dict[str, int]
    changed: dict[uuid.UUID, str]
    unfit: int | None
    oldest_running: float | None


class SagaRecoveryWorker(BackgroundLoop):
    """Finishes sagas that nobody runs. Any number may run, in any processes: no saga is run by two at once.

    It takes on sagas whose process has died (when their lease has ended), that were handed over, or whose next attempt
    is due, and goes on with each as :class:`~cqrs_sync.saga.mediator.SagaMediator` would: forward, or back once that
    has begun. The step that was running at a crash runs a second time. A thread claims as many sagas as there are free
    ones to run them, so none waits while its lease runs; their leases are renewed as those of all sagas are. Stop it
    before its mediator is closed. Thread-safe, except that :meth:`run_once` is for one thread at a time.

    A saga that raises is put off and stops no other; nor does one for which the storage was away. One of a name that is
    not bound, or that does not fit the steps of today, is left alone: reported once in the log, and in :meth:`health`.

    Args:
        mediator: runs the sagas that are bound in it; not closed by the worker.
        max_workers: how many sagas are run at once, each on a thread of its own.
        poll_interval: seconds, or a ``timedelta``, between looks at the storage, beside those when a saga has ended.
        max_attempts: how often a saga is taken on without progress (crashes of the process, errors behind the pivot or
            of a ``compensate``); then it waits for an operator: see
            :class:`~cqrs_sync.saga.administration.SagaAdministration`. A rollback is ``COMPENSATION_FAILED`` then, and
            by no other count. None: without end.
        backoff: how long a saga waits that could not be run at all, because a middleware has raised, say. For steps
            see their ``retry``, ``compensate_retry``, and the mediator's ``recovery_backoff``.
        retention: seconds, or a ``timedelta``, that sagas which have ended are kept, with their logs; None keeps them.
            Whoever comes with the id of a saga that is gone begins a new one.
        outage_backoff: how long the worker waits after an outage of the storage.
        name: the prefix of the threads' names.

    Raises:
        ConfigurationError: one of them cannot work.

    Example:
        >>> import punq
        >>> from cqrs_sync.saga.bootstrap import bootstrap
        >>> with bootstrap(punq.Container()) as mediator, SagaRecoveryWorker(mediator) as worker:
        ...     worker.health().running
        True
    """

    def __init__(
        self,
        mediator: SagaMediator,
        max_workers: int = 4,
        poll_interval: float | datetime.timedelta = 1.0,
        max_attempts: int | None = 10,
        backoff: Backoff | None = None,
        retention: float | datetime.timedelta | None = MONTH,
        *,
        outage_backoff: Backoff | None = None,
        name: str = "cqrs-saga-recovery",
    ) -> None:
        require_instance(mediator, SagaMediator, "mediator", "pass what bootstrap() returns")
        store = mediator.engine.storage
        if not isinstance(store, SagaStore):
            name = type_name(type(store))
            raise ConfigurationError(f"{name} is no SagaStore, so a worker could not look for sagas: derive from that")
        require_count(max_workers, "max_workers")
        if max_attempts is not None:
            require_count(max_attempts, "max_attempts")
        backoff = backoff if backoff is not None else Backoff()
        require_instance(backoff, Backoff, "backoff", "pass Backoff(initial=1.0, maximum=300.0)")
        super().__init__(name, outage_backoff if outage_backoff is not None else Backoff(maximum=30.0))
        self._store: SagaStore = store
        self._recoverer = Recoverer(mediator, store, name, max_attempts, backoff)
        self._max_workers = max_workers
        self._worker_context = mediator.engine.worker_context
        self._poll_interval = in_seconds(poll_interval, "poll_interval")
        self._retention = None if retention is None else in_seconds(retention, "retention", zero=True)
        self._runners: list[_Runner] = []
        self._stopping = threading.Event()
        self._finished = 0
        self._housekeeping_at = 0.0

    @property
    def running(self) -> bool:
        """Whether one of its threads is alive here."""
        return super().running or any(runner.running for runner in self._runners)

    def start(self) -> None:
        """Start the threads; does not need the storage to be there.

        Raises:
            ConfigurationError: it runs already, or still.
        """
        if self.running:
            raise ConfigurationError(f"{self.name} is running already")
        super().start()
        self._stopping = threading.Event()
        parts = (self._recoverer, self._stopping, self._worker_context, self.waker)
        runners = [_Runner(f"{self.name}_{number}", *parts) for number in range(self._max_workers)]
        for runner in runners:
            runner.start()
        self._runners = runners  # only now: a saga is given to none that does not run
        self.wake()
        logger.info("%s looks for %s", self.name, ", ".join(sorted(self._recoverer.names)) or "nothing: none is bound")

    def stop(self, timeout: float = 30.0) -> None:
        """Finish the steps that are at work, hand their sagas over, and end the threads. Harmless when none runs.

        Args:
            timeout: seconds to wait at most.

        Raises:
            StopTimeout: a step is still at work; its saga is handed over, and the thread ends, after it.
        """
        deadline = time.monotonic() + timeout
        self._stopping.set()
        late: StopTimeout | None = None
        for stop in (super().stop, *(runner.stop for runner in self._runners)):
            try:
                stop(max(0.0, deadline - time.monotonic()))
            except StopTimeout as error:
                late = late or error
        if late is not None:
            raise late
        self._finished, self._runners = self._total, []

    def forget_thread(self) -> None:
        """Be as before the first start, in a forked child."""
        super().forget_thread()
        self._runners = []

    def step(self) -> float:
        """Claim sagas for the threads that are free and, from time to time, purge; called by the thread.

        Raises:
            SagaStorageUnavailable: it is away.
            MediatorClosed: the mediator was closed.
        """
        errors = [error for runner in self._runners if (error := runner.take_error()) is not None]
        if errors:
            raise errors[0]
        free = [runner for runner in self._runners if runner.is_free]
        if free:
            for runner, claimed in zip(free, self._recoverer.claim(len(free)), strict=False):
                runner.take(claimed)
        more = time.monotonic() >= self._housekeeping_at and self._keep_house()
        return 0.0 if more else self._poll_interval

    def run_once(self) -> int:
        """Finish what is due now, in the caller's thread, one saga after another; returns how many have ended.

        For cron jobs, scripts and tests; a worker that runs elsewhere does no harm. Each saga is taken on once. Only
        the thread purges: call :meth:`purge` yourself.

        Raises:
            SagaStorageUnavailable: the storage is away. Where it was so for one saga alone, that is logged.
            MediatorClosed: the mediator was closed.
        """
        before, seen = self._finished, set[uuid.UUID]()
        again: list[Claimed] = []
        stopping = threading.Event()
        try:
            while claims := self._recoverer.claim(1):
                [claimed] = claims
                if claimed.state.saga_id in seen:  # it has been put off by nothing, and is kept out of the way
                    again.append(claimed)
                else:
                    seen.add(claimed.state.saga_id)
                    self._finished += self._recoverer.finish(claimed, stopping)
        finally:
            for claimed in again:
                self._recoverer.give_back(claimed.state)
        return self._finished - before

    def purge(self) -> int:
        """Delete some sagas whose retention has passed, 1,000 at most, with their logs; returns how many."""
        return 0 if self._retention is None else self._store.purge(self._retention, PURGE_SIZE)

    def health(self) -> RecoveryHealth:
        """Say how the worker is and what waits for it; asks the storage, with one statement."""
        error = self.last_error
        changed = self._recoverer.changed
        try:
            known, unknown = self._recoverer.backlog()
        except Exception as raised:
            return RecoveryHealth(self.running, error or raised, self._total, None, None, None, {}, changed, None, None)
        return RecoveryHealth(
            running=self.running,
            last_error=error,
            finished=self._total,
            recoverable=sum(waiting.recoverable for waiting in known),
            stuck=sum(waiting.stuck for waiting in known),
            oldest_age=_oldest(waiting.oldest_age for waiting in known),
            unknown=unknown,
            changed=changed,
            unfit=sum(waiting.unfit for waiting in known),
            oldest_running=_oldest(waiting.oldest_running for waiting in known),
        )

    @property
    def _total(self) -> int:
        return self._finished + sum(runner.finished for runner in self._runners)

    def _keep_house(self) -> bool:
        """Purge, and report sagas that nobody knows; returns whether there is more to purge. An error stops no saga."""
        self._housekeeping_at = time.monotonic() + HOUSEKEEPING_INTERVAL
        try:
            self._recoverer.backlog()
            more = self.purge() == PURGE_SIZE
        except Exception:
            logger.exception("%s could not purge sagas; trying again in %s s", self.name, HOUSEKEEPING_INTERVAL)
            return False
        if more:
            self._housekeeping_at = 0.0
        return more


def _oldest(ages: Iterable[float | None]) -> float | None:
    return max((age for age in ages if age is not None), default=None)


class _Runner(BackgroundLoop):
    """One of the threads of a worker: runs one saga after another, each as it is given to it.

    Attributes:
        finished: how many have ended.
    """

    def __init__(
        self,
        name: str,
        recoverer: Recoverer,
        stopping: threading.Event,
        around: WorkerContext | None,
        done: Callable[[], None],
    ) -> None:
        super().__init__(name)
        self.finished = 0
        self._done = done
        self._recoverer = recoverer
        self._stopping = stopping
        self._around = around
        self._claimed: Claimed | None = None
        self._error: Exception | None = None

    @property
    def is_free(self) -> bool:
        return self._claimed is None

    def take(self, claimed: Claimed) -> None:
        self._claimed = claimed
        self.wake()

    def take_error(self) -> Exception | None:
        """Return, once, what kept it from running a saga: the worker's thread raises it, and backs off for all."""
        error, self._error = self._error, None
        return error

    def stop(self, timeout: float = 30.0) -> None:
        super().stop(timeout)
        if self.running:  # it is a step of its own that stops the worker
            return
        claimed, self._claimed = self._claimed, None
        if claimed is not None:  # it was given a saga when it was about to end
            with suppress(SagaStorageUnavailable):  # the lease ends by itself
                self._recoverer.give_back(claimed.state)

    def __del__(self) -> None:
        self._run.request_stop()  # the worker was forgotten, and warns of it

    def step(self) -> float:
        if self._claimed is not None:
            try:
                # A context of its own: what a step leaves in context variables is not for the next saga.
                self.finished += contextvars.Context().run(self._finish, self._claimed)
            except Exception as error:
                self._error = error
            except BaseException:  # a step has called sys.exit(), which is not for this thread
                logger.exception("%s: a saga has raised what ends programs", self.name)
            self._claimed = None
            self._done()
        return LONGEST

    def _finish(self, claimed: Claimed) -> bool:
        with nullcontext() if self._around is None else logged(self._around):
            return self._recoverer.finish(claimed, self._stopping)
