"""Sends claimed events to the broker and says what became of each: one mechanism for relay and producer."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from cqrs_sync.backoff import Backoff, wait_after
from cqrs_sync.checks import refuse_async, require_count, require_instance
from cqrs_sync.errors import BrokerUnavailable, ConfigurationError, MessageHeldBack, MessageRejected
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox.models import Claim, Failure, OutboxedEvent

logger = logging.getLogger(__name__)

DeadLetters: TypeAlias = Literal["continue", "wait"]
"""What happens to later events of a dead letter's key: they go on without it, or wait until somebody decides."""


class Published(NamedTuple):
    """What became of a batch; an event in neither list stays as it was.

    Attributes:
        produced: ids of the events that the broker has.
        failures: events that it rejected, or that cannot be sent.
        outage: why the broker could not be reached; None where it could.
    """

    produced: list[int]
    failures: list[Failure]
    outage: Exception | None


class Publisher:
    """Sends events and decides what a failure means. Thread-safe where the broker is.

    * What the broker has is produced.
    * What it rejects is tried again after ``backoff``, 30 days later at most, up to ``max_attempts``, then it is a dead
      letter. Later events of its key stay behind it.
    * An unreachable broker costs no event an attempt, and neither does one that is set up wrongly: a
      ``ConfigurationError``, also about results that mean nothing.
    * Any other exception of a broker's own counts as unreachable *and* costs the event that raised it an attempt. One
      that was raised for several events at once is nobody's: they are sent one by one, to see whose it is.
    """

    def __init__(
        self,
        message_broker: MessageBroker,
        max_attempts: int = 10,
        backoff: Backoff | None = None,
        dead_letters: DeadLetters = "continue",
    ) -> None:
        require_instance(message_broker, MessageBroker, "message_broker", "pass an object of such a class")
        for method in (message_broker.send_message, message_broker.send_messages):
            refuse_async(method, "message_broker")
        require_count(max_attempts, "max_attempts")
        if dead_letters not in ("continue", "wait"):
            raise ConfigurationError(f"dead_letters must be 'continue' or 'wait', not {dead_letters!r}")
        self.message_broker = message_broker
        self._max_attempts = max_attempts
        self._backoff = backoff if backoff is not None else Backoff()
        require_instance(self._backoff, Backoff, "backoff", "pass Backoff(initial=1.0, maximum=60.0)")
        self._holds_key = dead_letters == "wait"

    def publish(self, events: Sequence[OutboxedEvent]) -> Published:
        """Send events of one claim, in order for each key."""
        batch = _Batch(self, events[0].claim or Claim() if events else Claim())
        sound = [event for event in events if batch.admits(event)]
        if sound:
            batch.sent(sound)
        return Published(batch.produced, batch.failures, batch.claim.outage)

    def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Hand messages to the broker and return one result for each, whatever the broker does."""
        try:
            return self._checked(self.message_broker.send_messages(messages), len(messages))
        except (BrokerUnavailable, ConfigurationError) as error:
            return [error] * len(messages)
        except Exception as error:
            if len(messages) == 1:
                return [error]
            name = type(self.message_broker).__name__
            logger.exception("%s could not send %s messages at once, and gets them one by one", name, len(messages))
            return MessageBroker.send_messages(self.message_broker, messages)

    def _checked(self, results: Any, count: int) -> Sequence[Exception | None]:
        """Return the results if they are some: what users write need not be true to its type."""
        if not isinstance(results, Sequence) or len(results) != count:
            raise self._misreturned(f"one result for each of the {count} messages", results)
        for result in results:
            if result is not None and not isinstance(result, Exception):
                raise self._misreturned("None or an exception for each message", result)
        return results

    def _misreturned(self, wanted: str, found: Any) -> ConfigurationError:
        method = f"{type(self.message_broker).__name__}.send_messages"
        return ConfigurationError(f"{method} must return {wanted}, and it returned {reprlib.repr(found)}")

    def failure(self, event: OutboxedEvent, reason: str) -> Failure:
        """Decide what follows a failed attempt, and log a dead letter."""
        attempt = event.attempts + 1
        if attempt < self._max_attempts:
            return Failure(event.id, reason, wait_after(self._backoff, attempt))
        logger.error(
            "outbox event %s (%s) for topic %s is a dead letter after %s attempts: %s",
            event.id,
            event.event_name,
            event.topic,
            attempt,
            reason,
            extra={"event_id": str(event.event_id), "topic": event.topic},
        )
        return Failure(event.id, reason, None, self._holds_key)


class _Batch:
    """The events of one attempt, and what became of them."""

    def __init__(self, publisher: Publisher, claim: Claim) -> None:
        self._publisher = publisher
        self.claim = claim
        self.produced: list[int] = []
        self.failures: list[Failure] = []

    def admits(self, event: OutboxedEvent) -> bool:
        """Whether an event can be sent now; notes a defect."""
        if self.claim.outage is not None or event.partition_key in self.claim.held_keys:
            return False
        if event.defect is not None:
            self._fail(event, event.defect)
            return False
        return True

    def sent(self, events: Sequence[OutboxedEvent]) -> None:
        """Send events and note the results."""
        results = self._publisher.send([event.to_message() for event in events])
        if results.count(None) == len(events) == len(results):
            self.produced.extend(event.id for event in events)
            return
        for event, result in zip(events, results, strict=True):
            self._note(event, result)

    def _note(self, event: OutboxedEvent, result: Exception | None) -> None:
        held = event.partition_key in self.claim.held_keys
        if result is None and not (held and self.claim.outage is not None):
            self.produced.append(event.id)
        elif isinstance(result, MessageRejected):
            self._fail(event, str(result))
        elif result is not None and not isinstance(result, MessageHeldBack):
            self._unavailable(event, result)
        # What the broker has although an earlier event of its key did not get there is sent again, behind that one.

    def _unavailable(self, event: OutboxedEvent, error: Exception) -> None:
        self.claim.outage = self.claim.outage or error
        if isinstance(error, BrokerUnavailable | ConfigurationError):
            self._hold(event)
        else:
            self._fail(event, f"{type(error).__name__}: {error}")

    def _fail(self, event: OutboxedEvent, reason: str) -> None:
        self._hold(event)
        self.failures.append(self._publisher.failure(event, reason))

    def _hold(self, event: OutboxedEvent) -> None:
        if event.partition_key is not None:
            self.claim.held_keys.add(event.partition_key)
