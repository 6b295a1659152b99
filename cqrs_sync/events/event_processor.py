"""Works through the events of one send: one queue, follow-ups behind, in the caller's thread or in the pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from cqrs_sync.checks import refuse_async, require_instance
from cqrs_sync.errors import (
    ConfigurationError,
    CQRSError,
    EventHandlerDoesNotExist,
    EventHandlingError,
    FollowUpLoop,
    MessageBrokerNotConfigured,
    type_name,
)
from cqrs_sync.events.event import IEvent
from cqrs_sync.events.event_emitter import EventEmitter, Find, Target
from cqrs_sync.events.map import EventMap
from cqrs_sync.executors import Executor, InCallerThread, InPool, WorkerContext

logger = logging.getLogger(__name__)

EventErrors: TypeAlias = Literal["isolate", "raise"]

MAX_EVENT_DEPTH = 32
"""How many follow-ups may come out of each other by default, the handler's own event being the first."""

MAX_FOLLOW_UPS = 100_000
"""How many follow-ups one send may cause in all: a loop that also branches would fill the memory before its depth."""

_WIRING_ERRORS = (FollowUpLoop, EventHandlerDoesNotExist, MessageBrokerNotConfigured)


class Trail(NamedTuple):
    """Which events led to a follow-up: the chain of their classes, the nearest first."""

    event_type: type
    depth: int
    before: Trail | None

    def path(self) -> list[type]:
        """The classes in the order in which they happened."""
        found: list[type] = []
        trail: Trail | None = self
        while trail is not None:
            found.append(trail.event_type)
            trail = trail.before
        return found[::-1]


Job: TypeAlias = tuple[Target, IEvent, Trail | None]
"""Where one event goes, and what led to it."""


class EventProcessor:
    """Emits events and the follow-ups of their handlers; returns when all is done. Thread-safe.

    The order is that of one queue: the events as the handler listed them, follow-ups behind all that were there. In
    the pool they *start* in that order.

    All siblings run whatever fails. Then errors are *isolated* (logged with traceback as each happens) or *raised*
    together as :class:`~cqrs_sync.errors.EventHandlingError`. Inside the unit of work of a send they are always
    raised, so that it is rolled back; and so are events that have nowhere to go and loops of follow-ups.

    Args:
        event_map: the emitter's own, or None; another one would never be used.
        event_emitter: takes each event where it goes.
        max_concurrent_event_handlers: how many handlers run at once, over all concurrent sends, callers that help
            included; those that handlers of another mediator send for may run in the places of the waiting ones. 1
            runs them in order in each caller's thread.
        concurrent_event_handle_enable: False is another way to say 1; None and True leave it to the number.
        event_errors: ``"isolate"`` or ``"raise"``; None isolates.
        worker_context: entered around each handler that runs on a pool thread.
        max_event_depth: how many follow-ups may come out of each other before the loop is cut.
    """

    def __init__(
        self,
        event_map: EventMap | None = None,
        event_emitter: EventEmitter | None = None,
        max_concurrent_event_handlers: int = 1,
        concurrent_event_handle_enable: bool | None = None,
        *,
        event_errors: EventErrors | None = None,
        worker_context: WorkerContext | None = None,
        max_event_depth: int = MAX_EVENT_DEPTH,
    ) -> None:
        if event_emitter is None:
            raise ConfigurationError("EventProcessor needs an event_emitter: without one every event would be lost")
        if event_map is not None and event_map is not event_emitter.event_map:
            raise ConfigurationError("event_map differs from that of the event_emitter, which is the one that is used")
        if event_errors not in (None, "isolate", "raise"):
            raise ConfigurationError(f"event_errors must be 'isolate' or 'raise', not {event_errors!r}")
        if max_event_depth < 1:
            raise ConfigurationError(f"max_event_depth must be at least 1, not {max_event_depth}")
        self.emitter = event_emitter
        self.max_event_depth = max_event_depth
        self.isolates = event_errors != "raise"
        self._check_shared(event_errors, max_concurrent_event_handlers, concurrent_event_handle_enable)
        self._executor = _executor(max_concurrent_event_handlers, concurrent_event_handle_enable, worker_context)

    def emit_events(self, events: Sequence[IEvent], response: Any = None) -> None:
        """Emit events and their follow-ups; inside a send's unit of work, put off what is published until its commit.

        Args:
            events: in the order in which they are to be handled.
            response: what the caller's handler answered; an error carries it.

        Raises:
            EventHandlingError: see the class.
        """
        self._process(events, self.emitter.targets, response)

    def emit_staged(self, events: Sequence[IEvent], response: Any = None) -> None:
        """Emit what :meth:`EventEmitter.stage` has left of a handler's events; see :meth:`emit_events`."""
        if events:
            self._process(events, self.emitter.staged, response)

    def receive(self, event: IEvent) -> None:
        """Take an event that came from outside to its handlers, and emit their follow-ups.

        Raises:
            EventHandlerDoesNotExist: nobody handles it, and it is not a domain event.
            EventHandlingError: see the class.
        """
        self._process((event,), self.emitter.received, None)

    def publish_deferred(self, deferred: list[tuple[Target, IEvent]], response: Any = None) -> None:
        """Publish what was put off until a commit that has now happened.

        Raises:
            EventHandlingError: the broker failed and errors are raised.
        """
        batch = _Batch(self, shared=None)
        jobs: list[Job] = [(target, event, None) for target, event in deferred]
        deferred.clear()
        self._run(batch, jobs, response)

    def runs_here(self) -> bool:
        """Whether this thread is running one of its event handlers."""
        return self._executor.runs_here()

    def close(self, timeout: float) -> None:
        """End the threads; see :meth:`cqrs_sync.executors.Executor.close`."""
        self._executor.close(timeout)

    def _process(self, events: Sequence[IEvent], find: Find, response: Any) -> None:
        scope = self.emitter.scoping.open_send() if self.emitter.scoping.shared else None
        batch = _Batch(self, shared=None if scope is None else scope.deferred)
        self._run(batch, batch.jobs(events, find, None), response)

    def _run(self, batch: _Batch, jobs: Sequence[Job], response: Any) -> None:
        self._executor.run(batch.take, jobs)
        errors = batch.errors
        if errors and (not batch.isolates or any(isinstance(error, _WIRING_ERRORS) for error in errors)):
            shown = "; ".join(batch.failures[:5])
            group = EventHandlingError(f"event handlers failed: {shown}", errors)
            group.response = response
            raise group

    def _check_shared(self, event_errors: EventErrors | None, handlers: int, enable: bool | None) -> None:
        if not self.emitter.scoping.shared:
            return
        if enable or handlers > 1:
            raise ConfigurationError(
                "ScopeStrategy.SEND runs event handlers in one transaction, one after another: "
                "leave max_concurrent_event_handlers at 1, or use ScopeStrategy.HANDLER"
            )
        if event_errors == "isolate":
            raise ConfigurationError(
                "ScopeStrategy.SEND cannot isolate errors of event handlers: a failure rolls the whole send back; "
                'use event_errors="raise", or ScopeStrategy.HANDLER'
            )


def _executor(handlers: int, enable: bool | None, worker_context: WorkerContext | None) -> Executor:
    require_instance(handlers, int, "max_concurrent_event_handlers", "pass a whole number")
    if handlers < 1:
        raise ConfigurationError(f"max_concurrent_event_handlers must be at least 1, not {handlers}")
    if worker_context is not None:
        refuse_async(worker_context, "worker_context")
    if handlers == 1 or enable is False:
        return InCallerThread()
    return InPool(handlers, worker_context)


class _Batch:
    """What the events of one send have in common while they are worked through."""

    __slots__ = ("_cut", "_deferred", "_follow_ups", "_processor", "errors", "failures", "isolates")

    def __init__(self, processor: EventProcessor, shared: list[Any] | None) -> None:
        self._processor = processor
        self._deferred = shared
        self._follow_ups = 0
        self._cut = False
        self.isolates = processor.isolates and shared is None
        self.errors: list[Exception] = []
        self.failures: list[str] = []

    def jobs(self, events: Sequence[IEvent], find: Find, trail: Trail | None) -> list[Job]:
        """One job for each place each event goes to; what is published inside a transaction is put off instead."""
        deferred = self._deferred
        if deferred is None:
            return [(target, event, trail) for event in events for target in find(type(event))]
        jobs: list[Job] = []
        for event in events:
            for target in find(type(event)):
                if target.publishes:
                    deferred.append((target, event))
                else:
                    jobs.append((target, event, trail))
        return jobs

    def take(self, job: Job) -> Sequence[Job]:
        """Take one event to one place and return the jobs of its follow-ups."""
        target, event, trail = job
        try:
            events = target.invoke(event)[1]
            return self.follow_ups(event, events, trail) if events else ()
        except Exception as error:
            self.failed(target, event, error)
            return ()

    def follow_ups(self, event: IEvent, events: Sequence[IEvent], before: Trail | None) -> list[Job]:
        """The jobs for a handler's own events.

        Raises:
            FollowUpLoop: they are too deep or too many; once, then the others are dropped.
        """
        trail = Trail(type(event), 1 if before is None else before.depth + 1, before)
        self._follow_ups += len(events)  # a count lost between threads does no harm
        deepest = self._processor.max_event_depth
        if trail.depth <= deepest and self._follow_ups <= MAX_FOLLOW_UPS:
            return self.jobs(events, self._processor.emitter.staged, trail)
        if self._cut:
            return []
        self._cut = True
        limit = f"depth {deepest}" if trail.depth > deepest else f"{MAX_FOLLOW_UPS} events"
        raise FollowUpLoop([*trail.path(), type(events[0])], limit)

    def failed(self, target: Target, event: IEvent, error: Exception) -> None:
        """Keep an error and, where errors are isolated, log it now."""
        self.errors.append(error)
        self.failures.append(f"{target.name} on {type_name(type(event))} ({type(error).__name__})")
        if self.isolates:
            logger.error(
                "%s failed on %s: %s",
                target.name,
                type_name(type(event)),
                error if isinstance(error, CQRSError) else type(error).__name__,
                exc_info=error,
                extra={"event_type": type_name(type(event)), "handler": target.name},
            )
