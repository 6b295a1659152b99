"""What a saga declares: checked when the class is made, and compared with what is stored."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from typing import Any

import punq
import pytest

from cqrs_sync.errors import ConfigurationError, DuplicateHandler, SagaDefinitionChanged, SagaTypeError
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.map import SagaMap
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga, context_type_of, definition_of
from cqrs_sync.saga.step import SagaStepHandler, StepExecution, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import SagaLogEntry, SagaState
from tests.unit.sagas import Order, Storage, mediator_of, saga, step

EFFECTS: list[str] = []


@dataclasses.dataclass
class Other(SagaContext):
    """A context of another saga."""


@dataclasses.dataclass
class Special(Order):
    """A context that is an Order."""


def named(*names: str) -> list[Any]:
    """Step classes of these names."""
    return [step(name, EFFECTS) for name in names]


A, B, C, D = named("A", "B", "C", "D")

foreign = step("foreign", EFFECTS, base=SagaStepHandler[Other, None])


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((A, B), "steps must be a list"),
        ([A, "B"], "each step of OrderSaga must be a subclass of SagaStepHandler, and B is none"),
        ([A()], "must be a subclass of SagaStepHandler"),
        ([foreign], "foreign works on Other, and OrderSaga on Order"),
        ([A, step("B", EFFECTS, step_name="A")], "both have the name 'A'"),
        ([*named("A"), A], "both have the name 'A'"),
        ([A, A, step("B", EFFECTS, step_name="A#2")], "both have the name 'A#2'"),
        ([step("B", EFFECTS, step_name="")], "is no step_name"),
        ([step("B", EFFECTS, step_name=7)], "is no step_name"),
        ([step("B", EFFECTS, step_name="a & b")], "is no step_name"),
        ([step("B", EFFECTS, step_name="b" * 250)], "is no step_name"),
        ([step("B", EFFECTS, kind="final")], "B.kind must be one of compensatable, pivot, retriable, not 'final'"),
        ([step("P", EFFECTS, kind="pivot"), A], "A comes after the pivot P"),
        ([step("P", EFFECTS, kind="pivot"), step("Q", EFFECTS, kind="pivot")], "Q comes after the pivot P"),
        ([Parallel(A, step("P", EFFECTS, kind="pivot"))], "the pivot P must be alone"),
        ([Fallback(step("P", EFFECTS, kind="pivot"), A)], "P and its fallback A must be of the same kind"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: Any, says: str) -> None:
    """When the class is made."""
    with pytest.raises(SagaTypeError) as caught:
        type("OrderSaga", (Saga,), {"steps": steps}) if isinstance(steps, tuple) else saga(*steps)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Fallback("A", B), "a Fallback's step must be a subclass of SagaStepHandler, and A is none"),
        (lambda: Fallback(A, Fallback(A, B)), "a Fallback's fallback must be a subclass"),
        (lambda: Fallback(int, B), "a Fallback's step must be a subclass of SagaStepHandler, and int is none"),
        (lambda: Fallback(A, foreign), "foreign works on Other and A on Order"),
        (lambda: Fallback(A, A), "A is its own fallback: to try it again give it retry"),
        (lambda: Parallel(A), "at least two"),
        (lambda: Parallel(A, Parallel(A, B)), "a step of Parallel must be"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any, says: str) -> None:
    """When they are made."""
    with pytest.raises(SagaTypeError) as caught:
        make()
    assert says in str(caught.value)


class NoBreaker:
    """Lacks a method."""

    def call(self, identifier: Any, func: Any, *args: Any) -> Any: ...


class AsyncBreaker(NoBreaker):
    """Would call nothing."""

    async def call(self, identifier: Any, func: Any, *args: Any) -> Any: ...

    def is_circuit_breaker_error(self, exc: Exception) -> bool:
        return False


class FineBreaker(AsyncBreaker):
    """Has both methods."""

    def call(self, identifier: Any, func: Any, *args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("breaker", "says"),
    [
        (5, "circuit_breaker must be an ICircuitBreaker, and 5 is none"),
        (FineBreaker, "FineBreaker'> is none: pass PyBreakerAdapter()"),
        (NoBreaker(), "circuit_breaker must be an ICircuitBreaker"),
        (AsyncBreaker(), "circuit_breaker AsyncBreaker.call is async"),
    ],
)
def test_breakers_that_would_not_work_are_refused(breaker: Any, says: str) -> None:
    """Long before the first step fails."""
    with pytest.raises(ConfigurationError) as caught:
        Fallback(A, B, circuit_breaker=breaker)
    assert says in str(caught.value)
    assert Fallback(A, B, circuit_breaker=FineBreaker()).step is A


def test_what_is_declared_is_checked_once_it_is_there() -> None:
    """A base without steps is none yet; a derived class may inherit them."""

    class Base(Saga[Order]):
        """No steps."""

    class Derived(Base):
        steps = [A]

    class Again(Derived):
        saga_name = "again"

    with pytest.raises(SagaTypeError, match="Base declares no steps"):
        definition_of(Base)
    with pytest.raises(SagaTypeError, match="must be a subclass of Saga"):
        definition_of(A)
    assert (definition_of(Derived).saga_name, definition_of(Again()).saga_name) == ("Derived", "again")
    assert Derived().steps_count == 1


def test_steps_of_a_base_of_the_context_fit() -> None:
    """And those that name no context; a saga that names none takes any."""

    class Untyped(SagaStepHandler):  # type: ignore[type-arg]
        def act(self, context: Any) -> Any: ...

        def compensate(self, context: Any) -> None: ...

    class Free(Saga):  # type: ignore[type-arg]
        steps = [A, Untyped, Fallback(A, Untyped)]

    assert saga(A, Untyped, context=Special).definition.text == "A > Untyped"
    assert Free.definition.text == "A > Untyped > A#2|Untyped#2"
    with pytest.raises(ConfigurationError, match="must name its context"):
        context_type_of(Free)
    assert context_type_of(saga(A)) is Order


def test_the_text_of_a_definition_shows_its_shape() -> None:
    """So that a difference can be read."""
    group = Parallel(B, Fallback(C, D))
    assert repr(group).startswith("Parallel(B, Fallback(")
    assert saga(A, group, A).definition.text == "A > (B & C|D) > A#2"
    transactional = step("T", EFFECTS, base=TransactionalSagaStep[Order, None])
    assert [each.is_transactional for each in saga(A, transactional).definition.steps] == [False, True]


# --- maps ------------------------------------------------------------------------------------------------------


def test_a_context_has_one_saga() -> None:
    """Of its own kind, and with a name of its own."""
    sagas = SagaMap()
    order_saga = saga(A)
    sagas.bind(Order, order_saga)
    assert sagas.named("OrderSaga") == (Order, order_saga)
    assert sagas.named("Another") is None
    for context, other, error, says in (
        (Order, saga(B), DuplicateHandler, "bound to OrderSaga"),
        (Other, saga(B), SagaTypeError, "is for Order and cannot be bound to Other"),
        (Special, saga(B), DuplicateHandler, "has this name; give one another saga_name"),
        (dict, saga(B), SagaTypeError, "must be a subclass of SagaContext"),
        (Other, A, SagaTypeError, "must be a subclass of Saga"),
    ):
        with pytest.raises(error, match=says):
            sagas.bind(context, other)
    sagas.bind(Special, saga(B, saga_name="another"))


def test_steps_that_cannot_be_built_are_refused_at_bootstrap() -> None:
    """With the parameter's name; coroutines too."""

    class Needs(SagaStepHandler[Order, None]):
        def __init__(self, bank: int) -> None: ...

        def act(self, context: Order) -> Any: ...

        def compensate(self, context: Order) -> None: ...

    class Async(SagaStepHandler[Order, None]):
        async def act(self, context: Order) -> Any: ...  # type: ignore[override]

        def compensate(self, context: Order) -> None: ...

    class AsyncBack(SagaStepHandler[Order, None]):
        def act(self, context: Order) -> Any: ...

        async def compensate(self, context: Order) -> None: ...  # type: ignore[override]

    for wrong, says in ((Needs, "'bank'"), (Async, "Async.act is async"), (AsyncBack, "AsyncBack.compensate is async")):
        with pytest.raises(ConfigurationError, match=says), mediator_of(saga(wrong), Storage()):
            pass


def test_a_parameter_without_annotation_is_found_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """It may be registered after bootstrap, which warns of it; until then the step fails before it does anything."""

    class Needs(SagaStepHandler[Order, str]):
        def __init__(self, bank) -> None:  # type: ignore[no-untyped-def]
            self._bank = bank

        def act(self, context: Order) -> Any:
            return self._bank

        def compensate(self, context: Order) -> None: ...

    container = punq.Container()
    with mediator_of(saga(Needs), Storage(), di_container=container) as mediator:
        assert "OrderSaga cannot run yet: " in caplog.text
        assert "register 'bank' by name" in caplog.text
        assert mediator.run(Order()).status is SagaStatus.FAILED
        container.register("bank", instance="a bank")
        assert mediator.run(Order()).results[0].response == "a bank"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Retry(attempts=0), "attempts must be at least 1"),
        (lambda: Retry(delay=-1), "delay must be 0 to"),
        (lambda: Retry(backoff=0.5), "factor >= 1"),
        (lambda: Retry(jitter=2), "jitter"),
        (lambda: Retry(exceptions=(int,)), "^exceptions must be exception classes, and int is none"),  # type: ignore[arg-type]
        (lambda: Retry(exceptions=5), "^exceptions must be exception classes, and 5 is none"),  # type: ignore[arg-type]
        (lambda: Retry(delay="1"), "delay must be a number, not '1'"),  # type: ignore[arg-type]
        (lambda: Retry(delay=0, backoff=None), "backoff must be a number, not None"),  # type: ignore[arg-type]
    ],
)
def test_retries_that_cannot_work_are_refused(make: Any, says: str) -> None:
    """When they are declared."""
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_retries_wait_longer_each_time() -> None:
    """From ``delay`` on."""
    retry = Retry(attempts=4, delay=2, backoff=3)
    assert [retry.wait_after(attempt) for attempt in (1, 2, 3)] == [2, 6, 18]
    assert Retry(attempts=2, delay=0).wait_after(1) == 0


# --- stored sagas ----------------------------------------------------------------------------------------------


def state_of(
    definition: str, *log: str, status: SagaStatus = SagaStatus.RUNNING, in_doubt: bool = False, current: str = ""
) -> SagaState:
    """A stored saga; ``A`` in its log is done, ``-A`` compensated, ``!A`` failed, ``?A`` unknown, ``~A`` skipped;
    with ``+A`` it takes over from a step that has failed."""
    kinds = {
        "-": ("compensate", SagaStepStatus.COMPLETED),
        "!": ("act", SagaStepStatus.FAILED),
        "?": ("act", SagaStepStatus.UNKNOWN),
        "~": ("compensate", SagaStepStatus.SKIPPED),
        "x": ("compensate", SagaStepStatus.FAILED),
        "+": ("act", SagaStepStatus.STARTED),
    }
    history = []
    for name in log:
        action, entry_status = kinds.get(name[0], ("act", SagaStepStatus.COMPLETED))
        history.append(SagaLogEntry(name.lstrip("-!?~x+"), action, entry_status))
    now = datetime.datetime.now(datetime.UTC)
    return SagaState(
        saga_id=uuid.uuid4(),
        name="OrderSaga",
        status=status,
        context="{}",
        definition=definition,
        version=1,
        current_step=current or None,
        attempts=0,
        locked_by=None,
        available_at=now,
        error=None,
        created_at=now,
        updated_at=now,
        finished_at=None,
        history=tuple(history),
        in_doubt=in_doubt,
    )


def test_progress_is_read_from_the_log() -> None:
    """What is done, what is next, and what of a group is left."""
    definition = saga(A, Parallel(B, Fallback(C, D)), A).definition
    for log, position, left in (
        ((), 0, ["A"]),
        (("A",), 1, ["B", "C"]),
        (("A", "B"), 1, ["C"]),
        (("A", "!C", "D"), 1, ["B"]),
        (("A", "!C", "D", "B"), 2, ["A#2"]),
        (("A", "D", "B", "A#2"), 3, []),
    ):
        progress = definition.progress(state_of("", *log), forward=True)
        assert (progress.position, [choice.name for choice in progress.left]) == (position, left)
        assert [each.name for each in progress.done] == [name for name in log if name[0] != "!"]


def test_a_fallback_is_next_where_the_log_says_that_it_took_over() -> None:
    """Until it fails for certain; that the first step has failed does not call for it."""
    definition = saga(A, Fallback(C, D)).definition
    for log, fallen_back in (
        (["!C"], set()),
        (["!C", "+D"], {"C"}),
        (["?C", "+D"], {"C"}),
        (["!C", "+D", "!D"], set()),
        (["!C", "+D", "!D", "!C", "+D"], {"C"}),
        (["!C", "+D", "?D"], {"C"}),
    ):
        assert definition.progress(state_of("", "A", *log), forward=True).fallen_back == fallen_back


def test_what_is_to_be_undone_is_read_from_the_log() -> None:
    """In the order in which it was done; what was undone or skipped is not."""
    definition = saga(A, B, C, D).definition
    state = state_of("", "A", "B", "?C", "C", "?D", "-D", "xC", "~C", status=SagaStatus.COMPENSATING)
    assert [each.name for each in definition.progress(state, forward=False).done] == ["A", "B"]
    state = state_of("", "?B", "A", "B", status=SagaStatus.COMPENSATING)
    assert [each.name for each in definition.progress(state, forward=False).done] == ["A", "B"]


@pytest.mark.parametrize(
    ("steps", "log", "says"),
    [
        ([B, C], ["A"], "A was done and is no step of it now"),
        ([A, C, B], ["A", "B"], "B was done, and C, which comes before, was not"),
        ([A, D, B], ["A", "B"], "B was done, and D, which comes before, was not"),
    ],
)
def test_a_saga_that_does_not_fit_is_refused_with_the_difference(steps: Any, log: Any, says: str) -> None:
    """Steps that were taken out, moved, or put before what is done."""
    state = state_of("A > B > C", *log)
    with pytest.raises(SagaDefinitionChanged) as caught:
        saga(*steps).definition.progress(state, forward=True)
    assert says in str(caught.value)
    assert "'A > B > C'" in caught.value.difference
    assert caught.value.saga_id == state.saga_id


def test_steps_may_be_added_behind_what_is_done() -> None:
    """And taken out where they are not done."""
    for steps in ([A, D, B, C], [A, C], [A, B, C, D]):
        assert saga(*steps).definition.progress(state_of("A > B > C", "A"), forward=True).position == 1


def test_a_step_in_doubt_must_be_the_one_that_is_next() -> None:
    """Or its effect would be neither repeated nor undone."""
    state = state_of("A > B", "A", in_doubt=True, current="B")
    for steps, next_ in (([A, C, B], "C"), ([A], "nothing")):
        with pytest.raises(SagaDefinitionChanged, match=f"B may have run, and {next_} is next now"):
            saga(*steps).definition.progress(state, forward=True)
    assert saga(A, C, B).definition.progress(state_of("", "A", current="B"), forward=True).position == 1
    assert saga(A, Parallel(B, C)).definition.progress(state, forward=True).position == 1
    renamed = saga(A, C, renamed_steps={"B": "C"}).definition
    assert renamed.progress(state, forward=True).position == 1


def test_a_renamed_step_keeps_its_idempotency_key() -> None:
    """The oldest one that is declared: a call in doubt may have been made with it, and must not be a second one now."""
    renamed = {"Pay": "C", "Charge": "C", "Pay#2": "C#2", "Gone": "D"}
    definition = saga(A, C, Fallback(B, C), renamed_steps=renamed, retired_steps=[D]).definition
    steps = [*definition.steps, *definition.retired]
    keys = {each.name: each.key_name for each in steps}
    assert keys == {"A": "A", "C": "Pay", "B": "B", "C#2": "Pay#2", "D": "Gone"}
    saga_id = uuid.uuid4()
    execution = StepExecution(saga_id, "OrderSaga", "C", "act", 1, "me", key_name="Pay")
    assert execution.idempotency_key == f"{saga_id}/Pay/act"
    assert dataclasses.replace(execution, key_name="").idempotency_key == f"{saga_id}/C/act"


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (
            {"renamed_steps": {"Old": "Nope"}},
            "'Old' is said to be 'Nope' now, and there is no such step: its steps are A",
        ),
        (
            {"renamed_steps": {"A": "B"}},
            "'A' was renamed to 'B', and is the name of A too: give that another step_name",
        ),
        ({"renamed_steps": ["Old", "A"]}, "OrderSaga.renamed_steps must map old names to those of now"),
        ({"renamed_steps": {"Old": A}}, "OrderSaga.renamed_steps must map old names to those of now"),
        ({"retired_steps": C}, "OrderSaga.retired_steps must be a list of step classes"),
        ({"retired_steps": "C"}, "OrderSaga.retired_steps must be a list of step classes"),
        ({"retired_steps": ["C"]}, "each step of OrderSaga must be a subclass of SagaStepHandler"),
    ],
)
def test_names_of_the_past_must_fit_the_steps(declared: Any, says: str) -> None:
    """Or what the log says would be read as something else."""
    with pytest.raises(SagaTypeError) as caught:
        saga(A, B, **declared)
    assert says in str(caught.value)


def test_a_retired_step_is_undone_and_not_run() -> None:
    """As long as sagas are about that have done it."""
    definition = saga(A, C, retired_steps=[B]).definition
    progress = definition.progress(state_of("A > B > C", "A", "B"), forward=True)
    assert (progress.position, [each.name for each in progress.done]) == (1, ["A", "B"])
    assert definition.text == "A > C"


def test_a_saga_of_another_name_is_refused() -> None:
    """An id belongs to one saga."""
    storage = Storage()
    with mediator_of(saga(A), storage) as mediator:
        saga_id = mediator.run(Order()).saga_id
    with (
        mediator_of(saga(A, saga_name="another"), storage) as mediator,
        pytest.raises(ConfigurationError, match="is a OrderSaga and no another"),
    ):
        mediator.run(Order(), saga_id)


def test_a_saga_that_is_claimed_and_does_not_fit_stays_claimed() -> None:
    """Whoever claimed it decides how long it is left alone, and whether the attempt counts."""
    storage = Storage()
    order_saga = saga(A, B)
    with mediator_of(order_saga, storage) as mediator:
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        stream.close()
        assert saga_id is not None
        claimed = storage.claim(saga_id, "r1")
        engine = mediator.engine
        with pytest.raises(SagaDefinitionChanged):
            engine.take_on(saga(B).definition, Order, claimed, 0.0)
        ended = dataclasses.replace(claimed, status=SagaStatus.COMPLETED, name="another")
        with pytest.raises(ConfigurationError):
            engine.take_on(order_saga.definition, Order, ended, 0.0)
        assert storage.load_saga_state(saga_id).locked_by == "r1"
        engine.give_back(claimed)
        assert mediator.recover(saga_id).completed


def test_a_saga_that_no_longer_fits_when_it_is_claimed_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was run by newer code between the look and the claim; the attempt does not count."""
    storage = Storage()
    with mediator_of(saga(A, B), storage) as mediator:
        stream = mediator.stream(Order())
        saga_id = next(stream).saga_id
        stream.close()
        assert saga_id is not None
        claim = storage.claim

        def late(saga_id: uuid.UUID, owner: str) -> SagaState:
            return dataclasses.replace(claim(saga_id, owner), context="[]")

        monkeypatch.setattr(storage, "claim", late)
        with pytest.raises(SagaDefinitionChanged):
            mediator.recover(saga_id)
        state = storage.load_saga_state(saga_id)
        assert (state.locked_by, state.attempts) == (None, 0)
        ended = dataclasses.replace(state, status=SagaStatus.COMPLETED, locked_by=None)
        monkeypatch.setattr(storage, "claim", lambda *_: dataclasses.replace(ended, context="[]"))
        with pytest.raises(SagaDefinitionChanged):
            mediator.recover(saga_id)


def test_ids_must_be_uuids() -> None:
    """A text would be another saga for some databases."""
    with (
        mediator_of(saga(A), Storage(), di_container=punq.Container()) as mediator,
        pytest.raises(ConfigurationError, match="saga_id must be a UUID, not 'o1'"),
    ):
        mediator.stream(Order(), "o1")  # type: ignore[arg-type]
