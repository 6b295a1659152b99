"""Every error the library raises, as one tree under :class:`CQRSError`.

The branches say who must act: :class:`ConfigurationError` is for whoever wires the application and is raised at
start-up where it can be; :class:`HandlerNotFound`, :class:`EventHandlingError` and :class:`FollowUpLoop` reach
the caller of ``send``; the broker branch is for whoever runs the broker. Each error keeps its culprit as an
attribute, so no program has to read the text, and the text says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import GenericAlias


def type_name(subject: object) -> str:
    """The short name of a class, generic alias or instance's class, for messages."""
    is_alias = hasattr(subject, "__origin__")  # list[int] passes for a class and has its name
    return str(subject) if is_alias else getattr(subject, "__qualname__", None) or str(subject)


class CQRSError(Exception):
    """The root: ``except CQRSError`` catches whatever the library itself reports.

    All errors can be pickled, attributes included, so they cross processes (a task queue's workers, say).
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(error_type: type[CQRSError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CQRSError:
    """Make an error from its text and attributes, past constructors that compose the text themselves."""
    error = error_type.__new__(error_type, *args)
    error.args = args
    error.__dict__.update(attributes)
    if isinstance(error, NotInstalled):
        error.name = error.feature  # an ImportError keeps it outside of its attributes
    return error


# --- who wires the application -------------------------------------------------------------------------------


class ConfigurationError(CQRSError, ValueError):
    """Settings that contradict each other or lack a part; raised by ``bootstrap`` and by constructors."""


class DuplicateHandler(ConfigurationError, KeyError):
    """A second handler for a request, or the same handler twice for an event.

    Attributes:
        message_type: the request, event or context class that was bound twice.
        handler_type: what the second ``bind`` wanted to put there.
    """

    def __init__(self, message_type: Any, handler_type: Any, remedy: str) -> None:
        self.message_type = message_type
        self.handler_type = handler_type
        super().__init__(f"{type_name(message_type)} already exists in registry: {remedy}")

    # KeyError would print the quoted repr of the text.
    __str__ = Exception.__str__


class HandlerTypeError(ConfigurationError, TypeError):
    """A handler of a kind that does not fit where it was bound.

    Attributes:
        handler_type: the class (or other object) that was bound.
    """

    def __init__(self, message: str, handler_type: Any) -> None:
        self.handler_type = handler_type
        super().__init__(message)


class RequestHandlerTypeError(HandlerTypeError):
    """A request handler of the wrong kind: not a handler class, a non-COR class in a chain, a foreign fallback."""


class EventHandlerTypeError(HandlerTypeError):
    """An event handler of the wrong kind."""


class SharedHandlerError(HandlerTypeError):
    """A handler with state of its own (events, a place in a chain) that is registered as a singleton.

    Its events would leak from one send into the next and from one thread into another.
    """


class UnresolvableDependency(ConfigurationError, LookupError):
    """A constructor's parameter that the container cannot fill.

    Attributes:
        owner: the class whose constructor was inspected.
        parameter: the parameter's name, or None where the service itself is unknown.
        dependency: the annotation (or name) that was looked up.
    """

    def __init__(self, owner: Any, parameter: str | None, dependency: Any, reason: str) -> None:
        self.owner = owner
        self.parameter = parameter
        self.dependency = dependency
        where = f"{type_name(owner)}.__init__ parameter {parameter!r}" if parameter else type_name(owner)
        super().__init__(f"{where}: {reason}")


class DuplicateEventName(ConfigurationError, KeyError):
    """A second event type, or a second serializer, for a name on the wire.

    Attributes:
        event_name: the name.
        event_type: what the second ``register`` wanted to put there.
    """

    def __init__(self, event_name: str, registered: Any, event_type: Any) -> None:
        self.event_name = event_name
        self.event_type = event_type
        before, now = self._located(registered), self._located(event_type)
        clash = f"and cannot be for {now} too: give each event type a name of its own"
        if registered == event_type:
            clash = "with another serializer: register it once"
        elif before == now:
            clash = "and cannot be for another class of that name: import its module once, under one name"
        super().__init__(f"event name {event_name!r} is registered for {before} {clash}")

    __str__ = Exception.__str__

    @staticmethod
    def _located(event_type: Any) -> str:
        """The name of a class, and the modules of all its parts: two may be told apart by nothing else."""
        parameters = getattr(event_type, "__pydantic_generic_metadata__", {}).get("args", ())
        modules = dict.fromkeys(str(getattr(each, "__module__", "")) for each in (event_type, *parameters))
        return f"{type_name(event_type)} ({', '.join(filter(None, modules))})"


class EventNotRegistered(CQRSError, TypeError):
    """An event that may not go into the outbox, or come out of it: its name or its type is not in the map.

    Attributes:
        event_type: the class of the event; None where only its bytes are at hand.
        event_name: its name on the wire, or None.
    """

    def __init__(self, text: str, event_type: Any, event_name: str | None = None) -> None:
        self.event_type = event_type
        self.event_name = event_name
        super().__init__(text)


class EventNotStorable(CQRSError, ValueError):
    """An event with a name, topic or key that the outbox cannot hold.

    Attributes:
        event_type: the class of the event.
        field: which one.
    """

    def __init__(self, event_type: Any, field: str, reason: str) -> None:
        self.event_type = event_type
        self.field = field
        super().__init__(f"{type_name(event_type)}.{field} {reason}")


class NotInstalled(CQRSError, ImportError):
    """A part of the library that this installation does not have.

    Attributes:
        feature: what was asked for.
    """

    def __init__(self, feature: str, remedy: str) -> None:
        self.feature = feature
        super().__init__(f"{feature} is not installed: {remedy}", name=feature)

    @classmethod
    def extra(cls, feature: str, extra: str) -> Self:
        """The error for a missing optional dependency: which extra brings it."""
        return cls(feature, f"run pip install 'cqrs-sync[{extra}]'")


class NoActiveUnitOfWork(ConfigurationError):
    """A transaction's service (a Session, say) was resolved outside of any ``send``.

    Attributes:
        service: the type that was asked for.
    """

    def __init__(self, service: Any) -> None:
        self.service = service
        super().__init__(
            f"{type_name(service)} belongs to a unit of work and none is open here: "
            "resolve it inside a handler, or pass unit_of_work=... to bootstrap"
        )


class ClaimEnded(CQRSError, RuntimeError):
    """An event of the outbox was to be sent after its transaction had ended: other processes may have it by now.

    Attributes:
        event_id: the event's.
    """

    def __init__(self, event_id: Any) -> None:
        self.event_id = event_id
        super().__init__(
            f"outbox event {event_id} was not sent: a commit, a rollback or the end of the generator has given its "
            "batch back, and others may send it. Commit after the batch; for a commit after each event use batch_size=1"
        )


# --- whoever calls send --------------------------------------------------------------------------------------


class HandlerNotFound(CQRSError, LookupError):
    """Nothing is bound for a message.

    Attributes:
        message_type: the class of the message.
    """

    def __init__(self, message_type: type | GenericAlias, remedy: str) -> None:
        self.message_type = message_type
        super().__init__(f"no handler for {type_name(message_type)}: {remedy}")


class RequestHandlerDoesNotExist(HandlerNotFound):
    """No handler is bound for this request."""

    def __init__(self, message_type: type) -> None:
        remedy = "bind one in commands_mapper or queries_mapper (lookup is by exact type)"
        if issubclass(message_type, type):
            remedy = "send an instance of the request, not its class"
        super().__init__(message_type, remedy)


class EventHandlerDoesNotExist(HandlerNotFound):
    """An event with nowhere to go: no handler takes it and it is neither a domain nor a notification event."""

    def __init__(self, message_type: type) -> None:
        super().__init__(
            message_type,
            "bind one in the events mapper, or derive the event from DomainEvent (handlers optional) "
            "or NotificationEvent (goes to the broker)",
        )


class MessageBrokerNotConfigured(ConfigurationError):
    """A notification event has to be published and there is no broker.

    Attributes:
        message_type: the class of the event.
    """

    def __init__(self, message_type: type) -> None:
        self.message_type = message_type
        super().__init__(f"{type_name(message_type)} must be published: pass message_broker=... to the emitter")


class FollowUpLoop(CQRSError, RecursionError):
    """Event handlers kept answering events with events; the loop was cut.

    Attributes:
        path: the event classes from the handler's own event to the one that was cut, in order.
    """

    def __init__(self, path: Sequence[type], limit: str) -> None:
        self.path = tuple(path)
        shown = [type_name(event_type) for event_type in self.path]
        if len(shown) > 8:
            shown = [*shown[:4], "…", *shown[-4:]]
        super().__init__(
            f"follow-up events were cut at {limit}: {' -> '.join(shown)}; "
            "let one of these handlers stop emitting, or raise max_event_depth"
        )


class EventHandlingError(CQRSError, ExceptionGroup[Exception]):
    """Event handlers (or the broker) failed; every sibling has run. Its text names which, and on which event.

    Attributes:
        response: what the request's handler returned. Outside a shared unit of work its effects are committed,
            so do not repeat the request on this error.
    """

    response: Any = None

    def derive(self, excs: Sequence[Exception]) -> EventHandlingError:  # type: ignore[override]
        """Keep the class and the response when the group is split by ``except*``."""
        group = EventHandlingError(self.message, excs)
        group.response = self.response
        return group


class StopTimeout(CQRSError, TimeoutError):
    """``stop(timeout)`` ran out of time: the thread is still in its step, and ends after it.

    Attributes:
        thread_name: the thread's name.
    """

    def __init__(self, thread_name: str, timeout: float) -> None:
        self.thread_name = thread_name
        super().__init__(
            f"{thread_name} was still at work after {timeout} s; it ends after its step, "
            "and calling stop() again waits for it again"
        )


class MediatorClosed(CQRSError, RuntimeError):
    """``send`` or ``stream`` was called after ``close()``."""


class CloseTimeout(CQRSError, TimeoutError):
    """``close(timeout)`` ran out of time while handlers were still at work.

    Attributes:
        running: how many sends had handlers at work.
    """

    def __init__(self, timeout: float, running: int) -> None:
        self.running = running
        super().__init__(
            f"{running} send(s) still had event handlers at work after {timeout} s; "
            "they go on, and calling close() again waits for them again"
        )


# --- whoever runs the broker ---------------------------------------------------------------------------------


class BrokerError(CQRSError):
    """A message did not get to the broker.

    Attributes:
        message: the :class:`~cqrs_sync.message_brokers.protocol.Message` concerned, or None.
    """

    def __init__(self, text: str, message: Any = None) -> None:
        self.message = message
        super().__init__(text)


class BrokerUnavailable(BrokerError, ConnectionError):
    """The broker cannot be reached now; the same message may well go later."""


class MessageRejected(BrokerError):
    """The broker will never take this message (too large, forbidden topic, ...)."""


class MessageHeldBack(BrokerError):
    """This message was not tried, because the broker rejected an earlier one of its key and order is kept."""

    def __init__(self, message: Any = None) -> None:
        key = getattr(message, "key", None)
        super().__init__(f"held back: an earlier message of its key {key!r} was rejected", message)


# --- sagas ---------------------------------------------------------------------------------------------------


class SagaDoesNotExist(HandlerNotFound):
    """No saga is bound for this context, or none has the name of a stored one; ``message_type`` is that then."""

    def __init__(self, message_type: Any) -> None:
        super().__init__(message_type, "bind one in sagas_mapper")


class SagaTypeError(HandlerTypeError):
    """A saga whose steps do not fit: no step class, another context, a name that two steps have, a misplaced pivot."""


class ContextNotSerializable(CQRSError, TypeError):
    """A saga's context that cannot be stored, or would come back as something else.

    Attributes:
        context_type: its class.
        field: the field that is to blame.
    """

    def __init__(self, context_type: Any, field: str, reason: str) -> None:
        self.context_type = context_type
        self.field = field
        super().__init__(f"{type_name(context_type)}.{field} cannot be stored with the saga: {reason}")


class SagaConcurrencyError(CQRSError, RuntimeError):
    """Somebody else runs this saga now, or has run it meanwhile; whoever gets this has changed nothing and stops."""


class SagaNotFound(CQRSError, LookupError):
    """The storage has no saga with this id.

    Attributes:
        saga_id: the id.
    """

    def __init__(self, saga_id: Any) -> None:
        self.saga_id = saga_id
        super().__init__(f"there is no saga {saga_id} in the storage")


class SagaRolledBack(CQRSError, RuntimeError):
    """A saga that was given by its id cannot go forward: it is rolled back, or its rollback is put off, or stuck.

    Attributes:
        saga_id: the id.
        status: how it ended; ``compensating`` where recovery tries again later.
        reason: the error that it failed with, as it was stored.
    """

    def __init__(self, saga_id: Any, status: str, reason: str | None) -> None:
        self.saga_id = saga_id
        self.status = status
        self.reason = reason
        super().__init__(f"saga {saga_id} is {status}: {reason or 'no reason was stored'}")


class SagaDefinitionChanged(CQRSError, RuntimeError):
    """A stored saga does not fit the steps that its class has today; nothing was run.

    Attributes:
        saga_id: the id.
        difference: what is stored and what is declared.
    """

    def __init__(self, saga_id: Any, difference: str) -> None:
        self.saga_id = saga_id
        self.difference = difference
        super().__init__(
            f"saga {saga_id} was begun with other steps: {difference}. Give steps their old step_name, declare "
            "renamed_steps or retired_steps on the saga, or deploy the old code until it has finished"
        )


class SagaActionRefused(CQRSError, ValueError):
    """What an operator wants of a saga does not fit how far it has come; nothing was changed.

    Attributes:
        saga_id: the id.
        status: how far it has come.
    """

    def __init__(self, saga_id: Any, status: str, reason: str) -> None:
        self.saga_id = saga_id
        self.status = status
        super().__init__(f"saga {saga_id} is {status}: {reason}")


class SagaStorageUnavailable(CQRSError, ConnectionError):
    """The saga storage cannot be reached now; the saga is as it was stored last, and can be recovered."""


class OutcomeUnknown(CQRSError):
    """For steps to raise: ``act`` has failed and may have had its effect all the same (a timeout, say).

    The step is then compensated with those that were completed.
    """
