"""Decides where an event goes: to the handlers bound for it, to the message broker, or both."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

from cqrs_sync.checks import refuse_async, require_instance
from cqrs_sync.container.scope import ScopeStrategy
from cqrs_sync.errors import (
    EventHandlerDoesNotExist,
    EventHandlerTypeError,
    EventHandlingError,
    MessageBrokerNotConfigured,
    type_name,
)
from cqrs_sync.events.event import IDomainEvent, IEvent, INotificationEvent
from cqrs_sync.events.fallback import EventHandlerFallback
from cqrs_sync.events.map import EventMap, HandlerItem
from cqrs_sync.invocation import Events, Invoke, Outcome, invoke_handler, invoke_with_fallback
from cqrs_sync.message_brokers.protocol import Message, MessageBroker
from cqrs_sync.outbox.repository import OutboxedEventRepository
from cqrs_sync.scoping import Scoping
from cqrs_sync.serializers.json import JsonEventSerializer
from cqrs_sync.serializers.protocol import EventSerializer
from cqrs_sync.tracing import with_trace_context
from cqrs_sync.unit_of_work.protocol import UnitOfWork

logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """One place an event goes to.

    Attributes:
        name: the handler's or the broker's class, for logs.
        invoke: takes the event there and returns follow-up events.
        publishes: whether that is the broker.
    """

    name: str
    invoke: Invoke
    publishes: bool = False


OutboxOfHandler: TypeAlias = Callable[[], OutboxedEventRepository]
"""Returns the outbox in the transaction of the handler that runs in this context."""

Find: TypeAlias = Callable[[type[IEvent]], tuple[Target, ...]]


class _Targets(dict[type[IEvent], tuple[Target, ...]]):
    """Finds the targets of an event class once; afterwards looking them up is a plain dictionary access."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def __missing__(self, event_type: type[IEvent]) -> tuple[Target, ...]:
        targets = self[event_type] = self._find(event_type)
        return targets


class EventEmitter:
    """Takes events to their handlers and to the message broker. Thread-safe.

    * Every event goes to the handlers bound for its class and its bases.
    * A notification event goes to the broker too; where the unit of work has an outbox, it is stored there instead, in
      the transaction of the handler that lists it.
    * A domain event that nobody handles is dropped; the first of its class is logged as a WARNING.
    * Any other event that has nowhere to go is an error.

    Args:
        event_map: which handlers react to which event; complete before the first event.
        container: what builds the handlers.
        message_broker: where notification events go; without one they are an error.
        scope_strategy: see :class:`~cqrs_sync.container.scope.ScopeStrategy`.
        serializer: makes ``Message.payload_bytes``; JSON by default.
        unit_of_work: what handlers write in; None for handlers that open their own transactions.
    """

    def __init__(
        self,
        event_map: EventMap,
        container: Any,
        message_broker: MessageBroker | None = None,
        scope_strategy: ScopeStrategy = ScopeStrategy.NONE,
        *,
        serializer: EventSerializer | None = None,
        unit_of_work: UnitOfWork | None = None,
    ) -> None:
        self.event_map = event_map
        self.scoping = Scoping(container, scope_strategy, unit_of_work)
        if message_broker is not None:
            require_instance(message_broker, MessageBroker, "message_broker", "pass an object of such a class")
            refuse_async(message_broker.send_message, "message_broker")
        self._message_broker = message_broker
        self._serializer = serializer if serializer is not None else JsonEventSerializer()
        self._handlers: dict[HandlerItem, Target] = {}
        self._targets = _Targets(functools.partial(self._find, publishes=True))
        self._received = _Targets(functools.partial(self._find, publishes=False))
        self.targets: Find = self._targets.__getitem__
        """Where events of a class go; raises EventHandlerDoesNotExist or MessageBrokerNotConfigured."""
        self.received: Find = self._received.__getitem__
        """Where events of a class go that came from outside: to handlers, not back to the broker."""
        self._outbox = self.scoping.services.get(OutboxedEventRepository)
        self.staged: Find = self.targets if self._outbox is None else self._received.__getitem__
        """Where events of a class go that :meth:`stage` has returned."""

    def compile(self) -> None:
        """Make all bound handlers ready; refuses those that cannot be built.

        Raises:
            ConfigurationError: naming the class and the parameter.
        """
        for handlers in self.event_map.values():
            for handler in handlers:
                self._target(handler)

    def stage(self, events: Events) -> Events:
        """Check, inside the handler's unit of work, that each event has somewhere to go; return those left to emit.

        Notification events are stored in the outbox, if there is one; they are left to emit where they have handlers.

        Raises:
            EventHandlerDoesNotExist: there is an event with nowhere to go.
            EventNotRegistered: the outbox does not know a notification event.
        """
        listed = tuple(events)  # first: it may be a generator
        if self._outbox is not None:
            return self._store(listed, self._outbox)
        targets = self._targets
        for event in listed:
            targets[type(event)]
        return listed

    def _store(self, events: Events, outbox: OutboxOfHandler) -> Events:
        left: list[IEvent] = []
        for event in events:
            if isinstance(event, INotificationEvent):
                outbox().add(event)
                if not self.event_map.handlers_for(type(event)):
                    continue
            self._received[type(event)]
            left.append(event)
        return left

    def emit(self, event: IEvent) -> Sequence[IEvent]:
        """Take one event everywhere it goes, in this thread, and return the follow-up events.

        Raises:
            EventHandlingError: handlers or the broker failed; the others have run.
        """
        follow_ups: list[IEvent] = []
        errors: list[Exception] = []
        for target in self.targets(type(event)):
            try:
                follow_ups.extend(target.invoke(event)[1])
            except Exception as error:
                errors.append(error)
        if errors:
            raise EventHandlingError(f"{type_name(type(event))} was not handled everywhere", errors)
        return follow_ups

    def _find(self, event_type: type[IEvent], *, publishes: bool) -> tuple[Target, ...]:
        if not issubclass(event_type, IEvent):
            raise EventHandlerTypeError(
                f"a handler's events must be a list of events, and it holds a {type_name(event_type)} "
                "(one event alone, or a class where an instance belongs, are the usual mistakes)",
                event_type,
            )
        targets = [self._target(handler) for handler in self.event_map.handlers_for(event_type)]
        if publishes and issubclass(event_type, INotificationEvent):
            targets.append(self._way_out(event_type))
        if not targets and not issubclass(event_type, IDomainEvent):
            raise EventHandlerDoesNotExist(event_type)
        if not targets:
            logger.warning("no handler for domain event %s: events of this class are dropped", type_name(event_type))
        return tuple(targets)

    def _way_out(self, event_type: type[IEvent]) -> Target:
        """Where a notification event goes that no handler has listed: to the outbox or, without one, to the broker."""
        if self._outbox is not None:
            return Target("outbox", functools.partial(self._store_alone, self._outbox))
        if self._message_broker is None:
            raise MessageBrokerNotConfigured(event_type)
        return Target(type_name(type(self._message_broker)), self._publish, publishes=True)

    def _store_alone(self, outbox: OutboxOfHandler, event: INotificationEvent[Any]) -> Outcome:
        """Store an event in the send that is open here, else in a unit of work of its own."""
        with nullcontext() if self.scoping.open_send() is not None else self.scoping.open().entered():
            outbox().add(event)
        return None, ()

    def _target(self, handler: HandlerItem) -> Target:
        """The target for a binding; made once, as several event classes may share a handler."""
        if handler not in self._handlers:
            self._handlers[handler] = self._compile(handler)
        return self._handlers[handler]

    def _compile(self, handler: HandlerItem) -> Target:
        if not isinstance(handler, EventHandlerFallback):
            return Target(type_name(handler), invoke_handler(self.scoping, handler, self.stage))
        invoke = invoke_with_fallback(
            self.scoping,
            handler,
            invoke_handler(self.scoping, handler.primary, self.stage),
            invoke_handler(self.scoping, handler.fallback, self.stage),
        )
        return Target(type_name(handler.primary), invoke)

    def _publish(self, event: INotificationEvent[Any]) -> Outcome:
        broker = self._message_broker
        assert broker is not None  # _find() refuses the event otherwise
        logger.debug("publishing event %s", event.event_id, extra={"topic": event.topic})
        broker.send_message(self._message(event))
        return None, ()

    def _message(self, event: INotificationEvent[Any]) -> Message:
        return Message(
            message_name=event.event_name,
            message_id=event.event_id,
            topic=event.topic,
            payload=event.to_dict(),
            payload_bytes=self._serializer.serialize(event),
            content_type=self._serializer.content_type_for(event),
            headers=with_trace_context(event.headers),
            key=event.partition_key,
        )
