"""Publishes an outbox by hand, batch by batch; :class:`~cqrs_sync.outbox.relay.OutboxRelay` does it in the
background.
"""

from __future__ import annotations

import datetime
import logging
import threading
from collections.abc import Iterator

from cqrs_sync.backoff import LONGEST, Backoff, wait_after
from cqrs_sync.checks import in_seconds, require_count, require_instance
from cqrs_sync.errors import ClaimEnded
from cqrs_sync.message_brokers.protocol import MessageBroker
from cqrs_sync.outbox.models import Claim, EventStatus, OutboxedEvent
from cqrs_sync.outbox.publishing import DeadLetters, Publisher
from cqrs_sync.outbox.repository import OutboxedEventRepository

logger = logging.getLogger(__name__)


class EventProducer:
    """Takes events out of an outbox and sends them, in a loop of your own.

    It is as safe as the relay: any number of processes may run it, events of a key stay in order, an unreachable
    broker costs no attempt. Used by one thread, that of the repository's session; only :meth:`stop` may be called
    from another.

    .. code-block:: python

        for events in producer.event_batch_generator():
            for event in events:
                producer.send_message(event)
            producer.repository.commit()

    Args:
        message_broker: where events go.
        repository: the outbox, over a session that nothing else uses.
        max_attempts: after how many rejections an event is a dead letter.
        backoff: how long a rejected event waits, and how long the generator does after an outage.
        dead_letters: whether later events of a dead letter's key ``"continue"`` or ``"wait"``.
        poll_interval: seconds, or a ``timedelta``, between looks at an empty outbox.
    """

    def __init__(
        self,
        message_broker: MessageBroker,
        repository: OutboxedEventRepository,
        *,
        max_attempts: int = 10,
        backoff: Backoff | None = None,
        dead_letters: DeadLetters = "continue",
        poll_interval: float | datetime.timedelta = 1.0,
    ) -> None:
        remedy = "pass SqlAlchemyOutboxedEventRepository(session)"
        require_instance(repository, OutboxedEventRepository, "repository", remedy)
        self.message_broker = message_broker
        self.repository = repository
        self._backoff = backoff if backoff is not None else Backoff()
        self._publisher = Publisher(message_broker, max_attempts, self._backoff, dead_letters)
        self._poll_interval = min(in_seconds(poll_interval, "poll_interval"), LONGEST)
        self._claim = Claim()
        self._settled: dict[int, int] = {}  # of that claim, the events whose results were noted, with their attempts
        self._stopping = threading.Event()

    def event_batch_generator(self, batch_size: int = 100, topic: str | None = None) -> Iterator[list[OutboxedEvent]]:
        """Yield batches of claimed events, none of them empty, until :meth:`stop`.

        It waits while there are none, with no transaction open, and after an outage of the broker or the database; the
        first batch after an outage is one event. Results that the loop did not commit are committed before the next
        batch, and when the loop is left. A loop that catches the error of a commit goes on: the events are sent again.

        Args:
            batch_size: how many events at most.
            topic: only events for this topic.
        """
        require_count(batch_size, "batch_size")
        try:
            yield from self._batches(batch_size, topic)
        finally:
            self._stopping.clear()  # at the end: a stop that comes before the first batch counts

    def _batches(self, batch_size: int, topic: str | None) -> Iterator[list[OutboxedEvent]]:
        failures = 0
        while not self._stopping.is_set():
            events = self._claimed(1 if failures else batch_size, topic)
            if events is None:
                failures += 1
                self._give_back(wait_after(self._backoff, failures))
                continue
            if not events:
                self._give_back(self._poll_interval)
                continue
            claim = events[0].claim or Claim()
            for event in events:
                event.claim = claim
            try:
                yield events
            finally:
                committed = self._commit()
            failures = 0 if committed and claim.outage is None else failures + 1
            if failures:
                self._settled = {}
                self._stopping.wait(wait_after(self._backoff, failures))

    def _claimed(self, batch_size: int, topic: str | None) -> list[OutboxedEvent] | None:
        """Claim events; None where that fails, or finds what the last batch has settled: its commit has failed."""
        try:
            events = self.repository.get_many(batch_size, topic)
        except Exception:
            logger.exception("the outbox could not be read; trying again")
            return None
        settled, self._settled = self._settled, {}
        if any(settled.get(event.id) == event.attempts for event in events):
            logger.warning("results of the last batch were not committed; its events will be sent again")
            return None
        return events

    def send_message(self, event: OutboxedEvent) -> EventStatus:
        """Send one event and note the result, which ``repository.commit()`` writes.

        After an outage, or behind an event of its key that failed, it is not tried in this batch and stays as it was.

        Returns:
            ``PRODUCED``, ``NOT_PRODUCED`` (it will be tried again), ``DEAD``, or ``NEW`` (not tried).

        Raises:
            ClaimEnded: the batch has been committed or rolled back, or its generator is gone.
        """
        claim = event.claim = event.claim or Claim()
        if claim.ended:
            raise ClaimEnded(event.event_id)
        if claim is not self._claim:
            self._claim, self._settled = claim, {}
        before = claim.outage
        produced, failures, outage = self._publisher.publish([event])
        if outage is not None and before is None:
            logger.warning("the broker cannot be reached: %s: %s", type(outage).__name__, outage)
        if produced or failures:
            self._settled[event.id] = event.attempts
        if produced:
            self.repository.mark_produced(produced)
            return EventStatus.PRODUCED
        if failures:
            self.repository.mark_failed(failures)
            return EventStatus.DEAD if failures[0].retry_after is None else EventStatus.NOT_PRODUCED
        return event.status

    def stop(self) -> None:
        """End the generator after the batch in hand, or the next one before its first; from any thread."""
        self._stopping.set()

    def _commit(self) -> bool:
        try:
            self.repository.commit()
        except Exception:
            logger.exception("the results could not be committed; these events will be sent again")
            self._roll_back()
            return False
        return True

    def _give_back(self, seconds: float) -> None:
        self._roll_back()
        self._stopping.wait(seconds)

    def _roll_back(self) -> None:
        try:
            self.repository.rollback()
        except Exception:
            logger.exception("the outbox's session could not be rolled back")
