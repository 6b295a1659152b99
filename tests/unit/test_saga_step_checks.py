"""Steps, names and contexts that could not work are refused before any saga begins."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import punq
import pytest

from cqrs_sync.errors import ConfigurationError, SagaDoesNotExist, SagaTypeError
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus
from tests.unit.sagas import Order, Storage, mediator_of, saga, step

EFFECTS: list[str] = []
A, B = step("A", EFFECTS), step("B", EFFECTS)
PLAIN = step("Plain", EFFECTS, base=SagaStepHandler[Order, None])
WRITES = step("Writes", EFFECTS, base=TransactionalSagaStep[Order, None])


@dataclasses.dataclass
class Other(SagaContext):
    """A context of another saga."""


@pytest.fixture
def storage() -> Storage:
    """Sagas in memory."""
    return Storage()


def yields(self: Any, context: Any) -> Any:
    """Be a generator."""
    yield


async def waits(self: Any, context: Any) -> None:
    """Be a coroutine."""


async def waits_and_yields(self: Any, context: Any) -> Any:
    """Be an asynchronous generator."""
    yield


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"retry": 3}, "Charge.retry must be a Retry, not 3: write retry = Retry(attempts=3, delay=1.0)"),
        ({"retry": None}, "Charge.retry must be a Retry, not None"),
        ({"compensate_retry": 3}, "Charge.compensate_retry must be a Retry, not 3"),
        ({"act": yields}, "Charge.act is a generator, which nobody would run: take out yield"),
        ({"compensate": yields}, "Charge.compensate is a generator"),
        ({"act": waits}, "Charge.act is async: take out async and await"),
        ({"compensate": waits_and_yields}, "Charge.compensate is async"),
    ],
)
@pytest.mark.parametrize("place", [lambda each: each, lambda each: Fallback(B, each), lambda each: Parallel(each, B)])
def test_steps_that_could_not_work_are_refused(attributes: Any, says: str, place: Any) -> None:
    """When the saga's class is made, wherever they are in it."""
    wrong = type("Charge", (A,), attributes)
    with pytest.raises(SagaTypeError) as caught:
        saga(place(wrong))
    assert says in str(caught.value)
    assert caught.value.handler_type is wrong
    with pytest.raises(SagaTypeError):
        saga(B, retired_steps=[wrong])


def wrapped(function: Any) -> Any:
    """Decorate a method so that it gets a session from elsewhere."""

    @functools.wraps(function)
    def call(self: Any, context: Any) -> Any:
        return function(self, context, "session")

    return call


def needs_session(self: Any, context: Any, session: Any) -> None:
    """Be the method of a transactional step."""


@pytest.mark.parametrize(
    ("base", "name", "method", "says"),
    [
        (
            WRITES,
            "act",
            lambda self, context: None,
            "Charge.act(self, context) is called with (self, context, session)",
        ),
        (WRITES, "compensate", lambda self, context: None, "derive it from SagaStepHandler if it needs no session"),
        (WRITES, "act", lambda self, context, *, session: None, "Charge.act(self, context, session) is called with"),
        (PLAIN, "act", lambda self: None, "Charge.act(self) is called with (self, context)"),
        (PLAIN, "compensate", needs_session, "derive it from TransactionalSagaStep if it needs a session"),
        (PLAIN, "act", staticmethod(lambda context, more: None), "Charge.act(context, more) is called with (context)"),
        (PLAIN, "act", classmethod(lambda cls: None), "Charge.act(cls) is called with (self, context)"),
    ],
)
def test_methods_that_do_not_take_what_they_are_called_with_are_refused(
    base: Any, name: str, method: Any, says: str
) -> None:
    """The session most of all, which makes a step transactional."""
    wrong = type("Charge", (base,), {name: method})
    with pytest.raises(SagaTypeError) as caught:
        saga(wrong)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("base", "method"),
    [
        (WRITES, needs_session),
        (WRITES, lambda self, context, *more: None),
        (PLAIN, lambda self, context, session=None: None),
        (PLAIN, lambda *anything, **more: None),
        (PLAIN, wrapped(needs_session)),
        (PLAIN, staticmethod(lambda context: None)),
        (PLAIN, classmethod(lambda cls, context: None)),
        (PLAIN, functools.partialmethod(needs_session, session="session")),
    ],
)
def test_methods_that_can_be_called_are_not_refused(base: Any, method: Any, storage: Storage) -> None:
    """By how they are called, not by how they are written."""
    fine = type("Charge", (base,), {"act": method, "compensate": method})
    with mediator_of(saga(fine), storage) as mediator:
        assert mediator.run(Order()).completed


def test_one_error_of_an_unknown_outcome_needs_no_tuple(storage: Storage) -> None:
    """As with the other lists of errors; it may also come from a mixin."""

    class Doubtful:
        unknown_outcomes = TimeoutError

    charge = step("Charge", EFFECTS, TimeoutError("no answer"))
    assert type("One", (charge,), {"unknown_outcomes": TimeoutError}).unknown_outcomes == (TimeoutError,)
    assert type("List", (charge,), {"unknown_outcomes": [TimeoutError]}).unknown_outcomes == (TimeoutError,)
    mixed = type("Mixed", (Doubtful, charge), {})
    EFFECTS.clear()
    with mediator_of(saga(mixed), storage) as mediator:
        assert mediator.run(Order()).status is SagaStatus.FAILED
    assert EFFECTS == ["Charge", "-Charge"]


@pytest.mark.parametrize("given", [3, "TimeoutError", ["TimeoutError"], (KeyboardInterrupt,), None])
def test_unknown_outcomes_that_are_no_errors_are_refused(given: Any) -> None:
    """When the step's class is made; else they would be noticed, and hide the error, when the step fails."""
    with pytest.raises(
        ConfigurationError, match=r"^Charge\.unknown_outcomes must be exception classes, and .* is none"
    ):
        type("Charge", (A,), {"unknown_outcomes": given})


@pytest.mark.parametrize("hidden", [yields, waits])
@pytest.mark.parametrize("name", ["act", "compensate"])
def test_a_call_that_has_not_run_is_no_call(hidden: Any, name: str, storage: Storage) -> None:
    """Where a decorator hides from the class what it returns."""
    wrong = type("Charge", (PLAIN,), {name: lambda *args: hidden(*args)})
    with mediator_of(saga(wrong, step("Ship", EFFECTS, LookupError("no stock"))), storage) as mediator:
        outcome = mediator.run(Order())
    [refused] = [
        entry.details or ""
        for entry in storage.get_step_history(outcome.saga_id)
        if (entry.step_name, entry.action) == ("Charge", name)
    ]
    assert f"Charge.{name} has returned a " in refused
    assert outcome.status is (SagaStatus.FAILED if name == "act" else SagaStatus.COMPENSATING)


@pytest.mark.parametrize("given", [5, "", "x" * 256, b"name"])
def test_names_of_sagas_are_checked(given: Any) -> None:
    """They must fit the table; a class whose own name does not needs a ``saga_name``."""
    with pytest.raises(SagaTypeError, match=r"OrderSaga: .* is no saga_name: it has 1 to 255 characters"):
        saga(A, saga_name=given)
    assert saga(A, saga_name="x" * 255).definition.saga_name == "x" * 255
    with pytest.raises(SagaTypeError, match="is no saga_name"):
        type("x" * 256, (Saga,), {"steps": [A]})


@pytest.mark.parametrize(
    ("context", "given"),
    [
        (Other(), "an instance of Other"),
        (None, "an instance of NoneType"),
        ({"order_id": "o1"}, "an instance of dict"),
        (Order, "the class Order"),
    ],
)
def test_a_context_that_is_not_the_saga_s_is_refused(context: Any, given: str, storage: Storage) -> None:
    """Before anything is stored."""
    is_context = isinstance(context, Other)
    with pytest.raises(SagaTypeError, match=f"^OrderSaga works on Order, and was given {given}$"):
        saga(A).transaction(context, punq.Container(), storage)
    untyped: Any = type("Untyped", (Saga,), {"steps": [A]})
    if not is_context:
        with pytest.raises(SagaTypeError, match=f"^Untyped works on SagaContext, and was given {given}$"):
            untyped.transaction(context, punq.Container(), storage)
    error = SagaDoesNotExist if is_context else SagaTypeError
    with mediator_of(saga(A), storage) as mediator, pytest.raises(error):
        mediator.stream(context)
    assert storage.commits == 0
