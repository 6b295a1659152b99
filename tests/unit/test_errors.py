"""Every error names its culprit as an attribute, says what to do, and has the builtin base that fits."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import cqrs_sync as cqrs
from cqrs_sync import errors
from cqrs_sync.message_brokers.protocol import Message
from cqrs_sync.serializers import EventNotReadable, EventNotSerializable


class PlaceOrder(cqrs.Request):
    """A request to blame."""


class OrderPlaced(cqrs.DomainEvent):
    """An event to blame."""


class PlaceOrderHandler(cqrs.RequestHandler[PlaceOrder, None]):
    def handle(self, request: PlaceOrder) -> None:
        """Do nothing."""


EVENT_ID = uuid.uuid4()

MESSAGE = Message("order_placed", "orders", {"id": 1})


class Payload(cqrs.Response):
    """The parameter of a generic class."""


@dataclasses.dataclass
class Case:
    """One error: how it is made, what it is besides a CQRSError, what it carries and what it says."""

    error: Callable[[], Exception]
    builtin: type[Exception] | None
    attributes: dict[str, Any]
    says: tuple[str, ...]


CASES = {
    "ConfigurationError": Case(lambda: errors.ConfigurationError("set it"), ValueError, {}, ("set it",)),
    "DuplicateHandler": Case(
        lambda: errors.DuplicateHandler(PlaceOrder, PlaceOrderHandler, "a request has one handler"),
        KeyError,
        {"message_type": PlaceOrder, "handler_type": PlaceOrderHandler},
        ("PlaceOrder already exists in registry", "a request has one handler"),
    ),
    "HandlerTypeError": Case(
        lambda: errors.HandlerTypeError("derive it", int), TypeError, {"handler_type": int}, ("derive it",)
    ),
    "RequestHandlerTypeError": Case(
        lambda: errors.RequestHandlerTypeError("derive it", int), TypeError, {"handler_type": int}, ("derive it",)
    ),
    "EventHandlerTypeError": Case(
        lambda: errors.EventHandlerTypeError("derive it", int), TypeError, {"handler_type": int}, ("derive it",)
    ),
    "SharedHandlerError": Case(
        lambda: errors.SharedHandlerError("register it as transient", int),
        TypeError,
        {"handler_type": int},
        ("register it as transient",),
    ),
    "UnresolvableDependency": Case(
        lambda: errors.UnresolvableDependency(PlaceOrderHandler, "clock", int, "int is not registered; register it"),
        LookupError,
        {"owner": PlaceOrderHandler, "parameter": "clock", "dependency": int},
        ("PlaceOrderHandler.__init__ parameter 'clock'", "register it"),
    ),
    "UnresolvableDependency of a service": Case(
        lambda: errors.UnresolvableDependency(int, None, int, "is not registered"),
        LookupError,
        {"owner": int, "parameter": None, "dependency": int},
        ("int: is not registered",),
    ),
    "NotInstalled": Case(
        lambda: errors.NotInstalled("cqrs_sync.saga", "comes later"),
        ImportError,
        {"feature": "cqrs_sync.saga", "name": "cqrs_sync.saga"},
        ("cqrs_sync.saga is not installed: comes later",),
    ),
    "NotInstalled extra": Case(
        lambda: errors.NotInstalled.extra("cqrs_sync.adapters.kafka", "kafka"),
        ImportError,
        {"feature": "cqrs_sync.adapters.kafka"},
        ("pip install 'cqrs-sync[kafka]'",),
    ),
    "NoActiveUnitOfWork": Case(
        lambda: errors.NoActiveUnitOfWork(PlaceOrder),
        ValueError,
        {"service": PlaceOrder},
        ("PlaceOrder", "inside a handler", "unit_of_work=..."),
    ),
    "ClaimEnded": Case(
        lambda: errors.ClaimEnded(EVENT_ID),
        RuntimeError,
        {"event_id": EVENT_ID},
        (str(EVENT_ID), "Commit after the batch", "batch_size=1"),
    ),
    "HandlerNotFound": Case(
        lambda: errors.HandlerNotFound(PlaceOrder, "bind one"),
        LookupError,
        {"message_type": PlaceOrder},
        ("no handler for PlaceOrder: bind one",),
    ),
    "RequestHandlerDoesNotExist": Case(
        lambda: errors.RequestHandlerDoesNotExist(PlaceOrder),
        LookupError,
        {"message_type": PlaceOrder},
        ("no handler for PlaceOrder", "commands_mapper", "exact type"),
    ),
    "EventHandlerDoesNotExist": Case(
        lambda: errors.EventHandlerDoesNotExist(OrderPlaced),
        LookupError,
        {"message_type": OrderPlaced},
        ("no handler for OrderPlaced", "events mapper", "DomainEvent"),
    ),
    "SagaDoesNotExist": Case(
        lambda: errors.SagaDoesNotExist(PlaceOrder), LookupError, {"message_type": PlaceOrder}, ("sagas_mapper",)
    ),
    "SagaConcurrencyError": Case(lambda: errors.SagaConcurrencyError("taken"), RuntimeError, {}, ("taken",)),
    "SagaTypeError": Case(
        lambda: errors.SagaTypeError("no step class", PlaceOrder), TypeError, {"handler_type": PlaceOrder}, ("no step",)
    ),
    "ContextNotSerializable": Case(
        lambda: errors.ContextNotSerializable(PlaceOrder, "note", "it is an object"),
        TypeError,
        {"context_type": PlaceOrder, "field": "note"},
        ("PlaceOrder.note cannot be stored", "it is an object"),
    ),
    "SagaNotFound": Case(
        lambda: errors.SagaNotFound(EVENT_ID), LookupError, {"saga_id": EVENT_ID}, (f"there is no saga {EVENT_ID}",)
    ),
    "SagaRolledBack": Case(
        lambda: errors.SagaRolledBack(EVENT_ID, "failed", "ValueError: no truck"),
        RuntimeError,
        {"saga_id": EVENT_ID, "status": "failed", "reason": "ValueError: no truck"},
        ("is failed", "ValueError: no truck"),
    ),
    "SagaActionRefused": Case(
        lambda: errors.SagaActionRefused(EVENT_ID, "completed", "nothing is left to do"),
        ValueError,
        {"saga_id": EVENT_ID, "status": "completed"},
        ("is completed", "nothing is left to do"),
    ),
    "SagaDefinitionChanged": Case(
        lambda: errors.SagaDefinitionChanged(EVENT_ID, "it has 'A', and now 'B'"),
        RuntimeError,
        {"saga_id": EVENT_ID, "difference": "it has 'A', and now 'B'"},
        ("it has 'A', and now 'B'", "step_name", "renamed_steps", "retired_steps"),
    ),
    "SagaStorageUnavailable": Case(lambda: errors.SagaStorageUnavailable("away"), ConnectionError, {}, ("away",)),
    "OutcomeUnknown": Case(lambda: errors.OutcomeUnknown("late"), None, {}, ("late",)),
    "MessageBrokerNotConfigured": Case(
        lambda: errors.MessageBrokerNotConfigured(OrderPlaced),
        ValueError,
        {"message_type": OrderPlaced},
        ("OrderPlaced must be published", "message_broker=..."),
    ),
    "FollowUpLoop": Case(
        lambda: errors.FollowUpLoop([OrderPlaced, OrderPlaced], "depth 1"),
        RecursionError,
        {"path": (OrderPlaced, OrderPlaced)},
        ("cut at depth 1", "OrderPlaced -> OrderPlaced", "max_event_depth"),
    ),
    "EventHandlingError": Case(
        lambda: errors.EventHandlingError("two handlers failed", [ValueError(1), KeyError(2)]),
        ExceptionGroup,
        {"response": None, "message": "two handlers failed"},
        ("two handlers failed",),
    ),
    "MediatorClosed": Case(lambda: errors.MediatorClosed("build a new one"), RuntimeError, {}, ("build a new one",)),
    "CloseTimeout": Case(
        lambda: errors.CloseTimeout(1.5, 2), TimeoutError, {"running": 2}, ("2 send(s)", "1.5 s", "close()")
    ),
    "BrokerError": Case(lambda: errors.BrokerError("lost", MESSAGE), None, {"message": MESSAGE}, ("lost",)),
    "BrokerUnavailable": Case(
        lambda: errors.BrokerUnavailable("down", MESSAGE), ConnectionError, {"message": MESSAGE}, ("down",)
    ),
    "MessageRejected": Case(lambda: errors.MessageRejected("too large", MESSAGE), None, {"message": MESSAGE}, ()),
    "MessageHeldBack": Case(
        lambda: errors.MessageHeldBack(Message("n", "t", None, key="k1")),
        errors.BrokerError,
        {},
        ("held back", "its key 'k1' was rejected"),
    ),
    "StopTimeout": Case(
        lambda: errors.StopTimeout("cqrs-outbox-relay", 1.5),
        TimeoutError,
        {"thread_name": "cqrs-outbox-relay"},
        ("cqrs-outbox-relay was still at work after 1.5 s", "stop()"),
    ),
    "DuplicateEventName": Case(
        lambda: errors.DuplicateEventName("order_placed", OrderPlaced, PlaceOrder),
        KeyError,
        {"event_name": "order_placed", "event_type": PlaceOrder},
        ("'order_placed' is registered for OrderPlaced", "PlaceOrder", "a name of its own"),
    ),
    "EventNotRegistered": Case(
        lambda: errors.EventNotRegistered("not registered", OrderPlaced, "order_placed"),
        TypeError,
        {"event_type": OrderPlaced, "event_name": "order_placed"},
        ("not registered",),
    ),
    "EventNotStorable": Case(
        lambda: errors.EventNotStorable(OrderPlaced, "topic", "is empty"),
        ValueError,
        {"event_type": OrderPlaced, "field": "topic"},
        ("OrderPlaced.topic is empty",),
    ),
    "EventNotSerializable": Case(
        lambda: EventNotSerializable(OrderPlaced, "it is a lock", "payload.lock"),
        TypeError,
        {"event_type": OrderPlaced, "field": "payload.lock"},
        ("OrderPlaced field 'payload.lock' cannot be serialized: it is a lock",),
    ),
    "EventNotReadable": Case(
        lambda: EventNotReadable(OrderPlaced, "no JSON"),
        ValueError,
        {"event_type": OrderPlaced},
        ("not readable as OrderPlaced: no JSON",),
    ),
}

each_error = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_error_class_is_tested() -> None:
    """A new class needs a case here."""
    defined = {error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, cqrs.CQRSError)}
    assert defined - {errors.CQRSError} <= {type(case.error()) for case in CASES.values()}


@each_error
def test_error_is_in_the_tree_and_has_its_builtin_base(case: Case) -> None:
    """``except CQRSError`` catches it, and so does what a caller would write who has never heard of it."""
    error = case.error()
    assert isinstance(error, cqrs.CQRSError)
    assert case.builtin is None or isinstance(error, case.builtin)


@each_error
def test_error_carries_its_culprit_and_says_what_to_do(case: Case) -> None:
    """No program has to read the text, and the text is for people."""
    error = case.error()
    assert {name: getattr(error, name) for name in case.attributes} == case.attributes
    assert [part for part in case.says if part not in str(error)] == []
    assert not str(error).startswith(("'", '"'))


@each_error
def test_error_survives_a_process_boundary(case: Case) -> None:
    """What a worker process raises arrives as what it is, culprit and text included."""
    error = case.error()
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert {name: getattr(arrived, name) for name in case.attributes} == case.attributes


@pytest.mark.parametrize(
    ("error", "branch"),
    [
        (errors.DuplicateHandler, errors.ConfigurationError),
        (errors.HandlerTypeError, errors.ConfigurationError),
        (errors.RequestHandlerTypeError, errors.HandlerTypeError),
        (errors.EventHandlerTypeError, errors.HandlerTypeError),
        (errors.SharedHandlerError, errors.HandlerTypeError),
        (errors.SagaTypeError, errors.HandlerTypeError),
        (errors.UnresolvableDependency, errors.ConfigurationError),
        (errors.NoActiveUnitOfWork, errors.ConfigurationError),
        (errors.MessageBrokerNotConfigured, errors.ConfigurationError),
        (errors.RequestHandlerDoesNotExist, errors.HandlerNotFound),
        (errors.EventHandlerDoesNotExist, errors.HandlerNotFound),
        (errors.SagaDoesNotExist, errors.HandlerNotFound),
        (errors.BrokerUnavailable, errors.BrokerError),
        (errors.MessageRejected, errors.BrokerError),
    ],
)
def test_branches_of_the_tree_say_who_must_act(error: type[Exception], branch: type[Exception]) -> None:
    """Whoever wires the application, whoever calls ``send``, whoever runs the broker."""
    assert issubclass(error, branch)


def test_broker_errors_are_no_configuration_errors() -> None:
    """A broker that is down is nobody's wiring."""
    assert not issubclass(errors.BrokerError, errors.ConfigurationError)
    assert not issubclass(errors.MessageRejected, ConnectionError)


def test_names_of_the_async_library_are_the_same_classes() -> None:
    """``except`` clauses that moved over keep working."""
    from cqrs_sync.dispatcher import exceptions

    for name in ("RequestHandlerDoesNotExist", "RequestHandlerTypeError", "SagaConcurrencyError", "SagaDoesNotExist"):
        assert getattr(exceptions, name) is getattr(errors, name)


def test_long_path_of_a_loop_is_shown_by_its_ends() -> None:
    """The attribute keeps all of it; the text stays readable."""
    path = [type(f"Event{number}", (), {}) for number in range(9)]
    error = errors.FollowUpLoop(path, "depth 7")
    assert error.path == tuple(path)
    assert "Event0 -> Event1 -> Event2 -> Event3 -> … -> Event5 -> Event6 -> Event7 -> Event8" in str(error)
    assert "…" not in str(errors.FollowUpLoop(path[:8], "depth 6"))


# --- the group of errors of event handlers -------------------------------------------------------------------


def group() -> errors.EventHandlingError:
    error = errors.EventHandlingError("failed", [ValueError("a"), KeyError("b"), ValueError("c")])
    error.response = "charged"
    return error


def take_value_errors(taken: list[BaseExceptionGroup[ValueError]]) -> None:
    try:
        raise group()
    except* ValueError as part:
        taken.append(part)


def test_except_star_takes_a_part_that_keeps_the_response() -> None:
    """Each clause sees a group of the same class, and what nobody takes goes on as one too."""
    taken: list[Any] = []
    with pytest.raises(errors.EventHandlingError) as rest:
        take_value_errors(taken)
    (part,) = taken
    assert isinstance(part, errors.EventHandlingError)
    assert [str(error) for error in part.exceptions] == ["a", "c"]
    assert [type(error) for error in rest.value.exceptions] == [KeyError]
    assert part.response == rest.value.response == "charged"


def test_split_groups_keep_class_text_and_response() -> None:
    """``split`` and ``subgroup`` too, and the culprits stay themselves."""
    whole = group()
    matching, other = whole.split(KeyError)
    some = whole.subgroup(ValueError)
    for part in (matching, other, some):
        assert type(part) is errors.EventHandlingError
        assert part.message == "failed"
        assert part.response == "charged"
    assert matching is not None
    assert matching.exceptions[0] is whole.exceptions[1]


def test_response_of_a_group_is_none_until_it_is_known() -> None:
    """An event that came from outside has no response."""
    assert errors.EventHandlingError("failed", [ValueError()]).response is None


def test_group_takes_no_error_that_ends_the_program() -> None:
    """KeyboardInterrupt is never put into a group."""
    with pytest.raises(TypeError):
        errors.EventHandlingError("failed", [KeyboardInterrupt()])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        (PlaceOrder, "PlaceOrder"),
        (Case, "Case"),
        (list[int], "list[int]"),
        (int | None, "int | None"),
        (7, "7"),
    ],
)
def test_type_name_is_short_and_never_fails(subject: object, name: str) -> None:
    """Classes by their own name, everything else as it shows itself."""
    assert errors.type_name(subject) == name


def test_type_name_tells_parameters_apart() -> None:
    """``Repository[User]`` may be missing where ``Repository`` is registered."""
    assert "Payload" in errors.type_name(cqrs.NotificationEvent[Payload])
    assert "int" in errors.type_name(cqrs.DCNotificationEvent[int])
