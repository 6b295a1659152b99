"""Drains the outbox in the background (Richardson, *Polling publisher*)."""

from __future__ import annotations

import datetime
import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cqrs_sync.background import BackgroundLoop
from cqrs_sync.backoff import Backoff
from cqrs_sync.checks import in_seconds, require_count, require_factory, require_instance
from cqrs_sync.errors import type_name
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.outbox.listening import Listener
from cqrs_sync.outbox.publishing import DeadLetters, Publisher
from cqrs_sync.outbox.repository import OutboxStore
from cqrs_sync.outbox.sqlalchemy import SqlAlchemyOutboxedEventRepository
from cqrs_sync.outbox.tables import OutboxMixin, OutboxModel, default_model
from cqrs_sync.outbox.wakeup import add_waker, remove_waker
from cqrs_sync.sql import require_session_factory

logger = logging.getLogger(__name__)

WEEK = 7 * 24 * 3600.0
"""Seconds that produced events are kept by default."""

PURGE_INTERVAL = 60.0
"""Seconds between looks for events to purge, once there are none."""

PURGE_SIZE = 1000
"""How many events one transaction purges: few enough to be gone in milliseconds."""


class RelayHealth(NamedTuple):
    """How a relay is.

    Attributes:
        running: whether its thread is alive.
        last_error: what the latest attempt failed with; None after one that succeeded. Where there is none, why
            notifications cannot be listened for.
        published: how many events this relay has published since it was made.
        pending: how many events wait in the outbox, for any relay; None where the database could not be asked.
        dead: how many dead letters there are, or None.
        oldest_age: seconds since the oldest pending event was stored, or None.
    """

    running: bool
    last_error: Exception | None
    published: int
    pending: int | None
    dead: int | None
    oldest_age: float | None


class OutboxRelay(BackgroundLoop):
    """Publishes the events of an outbox, from a thread of its own. Any number may run, in any processes.

    Each event is published at least once, and events of a key in the order in which they were stored; what was in hand
    when a process was killed is published again. It survives outages of the broker and of the database: see
    :class:`~cqrs_sync.outbox.publishing.Publisher` and :class:`~cqrs_sync.background.BackgroundLoop`. Thread-safe,
    except that :meth:`run_once` and :meth:`drain` are for one thread at a time.

    Args:
        session_factory: opens the session of each attempt, a ``sessionmaker`` as a rule.
        message_broker: where events go; not closed by the relay.
        batch_size: how many events are claimed, sent and marked at once, at most; all are in memory meanwhile.
        poll_interval: seconds, or a ``timedelta``, between looks at an empty outbox. A commit with events in this
            process is seen at once.
        max_attempts: after how many rejections an event is a dead letter.
        backoff: how long a rejected event waits for its next attempt.
        retention: seconds, or a ``timedelta``, that produced events are kept; 0 deletes them at once, None keeps them.
        dead_letters: whether later events of a dead letter's key ``"continue"`` or ``"wait"`` until it is replayed or
            discarded.
        outage_backoff: how long the relay waits after an outage of the broker or the database; then it tries with one
            event.
        repository: makes the outbox of a session; ``functools.partial`` sets its options.
        listen: whether to wait for PostgreSQL NOTIFY, sent by repositories with ``notify=True``, in a second thread.
            It keeps one more connection of the pool busy, and needs psycopg2.
        name: the thread's name.

    Raises:
        ConfigurationError: one of them cannot work.

    Example:
        >>> from sqlalchemy import create_engine
        >>> from sqlalchemy.orm import sessionmaker
        >>> from sqlalchemy.pool import StaticPool
        >>> from cqrs_sync.message_brokers import InMemoryMessageBroker
        >>> from cqrs_sync.outbox.sqlalchemy import Base
        >>> engine = create_engine("sqlite://", poolclass=StaticPool)
        >>> Base.metadata.create_all(engine)
        >>> relay = OutboxRelay(sessionmaker(engine), InMemoryMessageBroker())
        >>> relay.run_once()
        0
    """

    def __init__(
        self,
        session_factory: Callable[[], Any],
        message_broker: MessageBroker,
        batch_size: int = 500,
        poll_interval: float | datetime.timedelta = 1.0,
        max_attempts: int = 10,
        backoff: Backoff | None = None,
        retention: float | datetime.timedelta | None = WEEK,
        *,
        dead_letters: DeadLetters = "continue",
        outage_backoff: Backoff | None = None,
        repository: Callable[[Any], OutboxStore] = SqlAlchemyOutboxedEventRepository,
        listen: bool = False,
        name: str = "cqrs-outbox-relay",
    ) -> None:
        require_session_factory(session_factory, "session_factory")
        remedy = "pass SqlAlchemyOutboxedEventRepository, or a functools.partial of it that sets its options"
        require_factory(repository, OutboxStore, "repository", remedy)
        require_count(batch_size, "batch_size")
        outage_backoff = outage_backoff if outage_backoff is not None else Backoff(maximum=30.0)
        require_instance(outage_backoff, Backoff, "outage_backoff", "pass Backoff(initial=1.0, maximum=30.0)")
        self._session_factory = session_factory
        self._repository = repository
        self._publisher = Publisher(message_broker, max_attempts, backoff, dead_letters)
        self._batch_size = batch_size
        self._poll_interval = in_seconds(poll_interval, "poll_interval")
        self._retention = None if retention is None else in_seconds(retention, "retention", zero=True)
        super().__init__(name, outage_backoff)
        self._published = 0
        self._probes = False
        self._purge_at = 0.0
        self._listener: Listener | None = None
        if listen:
            self._listener = Listener(session_factory, f"{name}-listen", outage_backoff, repository)
        _warn_of_other_outboxes(name, repository)

    def start(self) -> None:
        """Start the thread; needs neither the database nor the broker to be there.

        Raises:
            ConfigurationError: it runs already.
        """
        super().start()
        add_waker(self.waker)
        if self._listener is not None:
            self._listener.listen_for(self.waker)
        broker = type_name(type(self._publisher.message_broker))
        logger.info("%s publishes from %s to %s", self.name, _source(self._repository), broker)

    def stop(self, timeout: float = 30.0) -> None:
        """Finish the batch in hand and end the thread. Harmless when it is not running.

        Args:
            timeout: seconds to wait at most.

        Raises:
            StopTimeout: the broker or the database has not answered yet; the thread ends when it does.
        """
        deadline = time.monotonic() + timeout
        remove_waker(self.waker)
        try:
            super().stop(timeout)
        finally:
            if self._listener is not None:
                self._listener.stop(max(1.0, deadline - time.monotonic()))

    def step(self) -> float:
        """Publish a batch and, from time to time, purge; called by the thread."""
        more = self._publish()
        if time.monotonic() >= self._purge_at:
            more = self._purge_in_passing() or more
        return 0.0 if more else self._poll_interval

    def run_once(self) -> int:
        """Publish one batch in the caller's thread and return how many events the broker has taken.

        For cron jobs, scripts and tests; a relay that runs elsewhere does no harm. Only the thread purges: call
        :meth:`purge` yourself.

        Raises:
            BrokerUnavailable: the broker could not be reached; what it had taken before is marked.
        """
        before = self._published
        self._publish()
        return self._published - before

    def drain(self) -> int:
        """Publish batch after batch until there is nothing that can be published now; returns how many that were.

        Raises:
            BrokerUnavailable: the broker could not be reached.
        """
        before = self._published
        while self._publish():
            pass
        return self._published - before

    def purge(self) -> int:
        """Delete some events whose retention has passed, 1,000 at most; returns how many."""
        if self._retention is None:
            return 0
        with self._opened() as outbox:
            purged = outbox.purge(self._retention, PURGE_SIZE)
            outbox.commit()
        return purged

    def health(self) -> RelayHealth:
        """Say how the relay and its outbox are; asks the database, with one statement."""
        backlog, error = None, self.last_error
        if error is None and self._listener is not None:
            error = self._listener.last_error
        try:
            with self._opened() as outbox:
                backlog = outbox.backlog()
        except Exception as raised:
            error = error or raised
        pending, dead, oldest_age = backlog or (None, None, None)
        return RelayHealth(self.running, error, self._published, pending, dead, oldest_age)

    def _purge_in_passing(self) -> bool:
        """Purge and return whether there is more to purge; an error must not keep events waiting."""
        self._purge_at = time.monotonic() + PURGE_INTERVAL
        try:
            more = self.purge() == PURGE_SIZE
        except Exception:
            logger.exception("%s could not purge published events; trying again in %s s", self.name, PURGE_INTERVAL)
            return False
        if more:
            self._purge_at = 0.0
        return more

    def _publish(self) -> bool:
        """Publish one batch, or one event to try after an outage; returns whether anything became of it."""
        with self._opened() as outbox:
            events = outbox.get_many(1 if self._probes else self._batch_size)
            if not events:
                return False
            self._probes = True  # until all of it is in the table: what cannot be marked is sent again
            produced, failures, outage = self._publisher.publish(events)
            outbox.mark_produced(produced)
            outbox.mark_failed(failures)
            outbox.commit()
            self._probes = outage is not None
            self._published += len(produced)
        if outage is not None:
            raise outage
        return bool(produced or failures)

    @contextmanager
    def _opened(self) -> Iterator[OutboxStore]:
        outbox = self._repository(self._session_factory())
        try:
            if self._retention == 0:
                outbox.delete_produced()
            yield outbox
        finally:
            outbox.close()


def _source(repository: Callable[[Any], OutboxStore]) -> str:
    """The table, or what makes the repository where that cannot be seen."""
    options = _options(repository)
    if options is None:
        return type_name(getattr(repository, "func", repository))
    return str((options.get("model") or default_model()).__table__.fullname)


def _options(repository: Callable[[Any], OutboxStore]) -> dict[str, Any] | None:
    """What is set of the library's own repository; None for any other one."""
    if isinstance(repository, functools.partial):
        return repository.keywords if repository.func is SqlAlchemyOutboxedEventRepository else None
    return {} if repository is SqlAlchemyOutboxedEventRepository else None


def _warn_of_other_outboxes(name: str, repository: Callable[[Any], OutboxStore]) -> None:
    """Events may go into a table of the program's own while the relay, which was told of none, looks at another."""
    options = _options(repository)
    if options is None or options.get("model") is not None:
        return
    models: dict[str, type] = {model.__table__.fullname: model for model in _mapped(OutboxMixin)}
    own = _source(repository)
    models.pop(own, None)
    for table in sorted(models):
        logger.warning(
            "%s publishes the table %r, and the program has %r too: say which one is meant, as with "
            "repository=functools.partial(SqlAlchemyOutboxedEventRepository, model=%s)",
            name,
            own,
            table,
            type_name(models[table]),
        )


def _mapped(model: type) -> Iterator[Any]:
    derived: Any
    for derived in model.__subclasses__():
        if hasattr(derived, "__table__") and derived is not OutboxModel:  # that may have been bound to another base
            yield derived
        yield from _mapped(derived)
