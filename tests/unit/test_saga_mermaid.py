"""Sagas are drawn as Mermaid diagrams that a renderer accepts: what they can do, and what one of them has done."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from typing import Any

import pytest

from cqrs_sync.errors import SagaTypeError
from cqrs_sync.mermaid import escaped
from cqrs_sync.response import Response
from cqrs_sync.saga.fallback import Fallback
from cqrs_sync.saga.mermaid import SagaMermaid
from cqrs_sync.saga.models import SagaContext
from cqrs_sync.saga.parallel import Parallel
from cqrs_sync.saga.retry import Retry
from cqrs_sync.saga.saga import Saga
from cqrs_sync.saga.step import SagaStepHandler, SagaStepResult, TransactionalSagaStep
from cqrs_sync.saga.storage.enums import ACT, COMPENSATE, SagaStatus, SagaStepStatus
from cqrs_sync.saga.storage.models import IN_DOUBT, UNFIT, UNFIT_IN_DOUBT, SagaLogEntry, SagaState
from tests.unit.sagas import Storage, mediator_of, saga, step


@dataclasses.dataclass
class OrderContext(SagaContext):
    order_id: str
    lines: list[str] = dataclasses.field(default_factory=list)


class Reserved(Response):
    number: int


class Reserve(SagaStepHandler[OrderContext, Reserved]):
    def act(self, context: OrderContext) -> SagaStepResult[OrderContext, Reserved]:
        raise NotImplementedError

    def compensate(self, context: OrderContext) -> None:
        raise NotImplementedError


class ByCard(Reserve):
    retry = Retry(attempts=3)


class ByInvoice(Reserve):
    compensate_retry = Retry(attempts=5)


class Book(TransactionalSagaStep[OrderContext, Any]):
    kind = "pivot"

    def act(self, context: OrderContext, session: Any) -> SagaStepResult[OrderContext, Any]:
        raise NotImplementedError

    def compensate(self, context: OrderContext, session: Any) -> None:
        raise NotImplementedError


class Pack(Reserve):
    kind = "retriable"


class Label(Reserve):
    kind = "retriable"


class OrderSaga(Saga[OrderContext]):
    steps = [
        Reserve,
        Fallback(ByCard, ByInvoice, failure_exceptions=(ConnectionError, TimeoutError)),
        Book,
        Parallel(Pack, Label),
    ]


def plain(name: str) -> Any:
    return type(name, (Reserve,), {})


class TestSequence:
    def test_the_way_forward_and_the_way_back_are_drawn(self) -> None:
        """With fallbacks, groups, attempts, and the pivot behind which nothing is undone."""
        assert SagaMermaid(OrderSaga).sequence() == (
            "sequenceDiagram\n"
            "    participant S as OrderSaga\n"
            "    participant S1 as Reserve\n"
            "    participant S2 as ByCard\n"
            "    participant S3 as ByInvoice\n"
            "    participant S4 as Book\n"
            "    participant S5 as Pack\n"
            "    participant S6 as Label\n"
            "    S->>S1: act\n"
            "    S1-->>S: done\n"
            "    S->>S2: act, up to 3 times\n"
            "    alt ByCard succeeds\n"
            "        S2-->>S: done\n"
            "    else it fails with ConnectionError or TimeoutError\n"
            "        S2--xS: error\n"
            "        S->>S3: act\n"
            "        S3-->>S: done\n"
            "    end\n"
            "    S->>S4: act, in the transaction that records it\n"
            "    S4-->>S: done\n"
            "    Note over S: the pivot is done: nothing is undone any more\n"
            "    par Pack\n"
            "        S->>S5: act, until it succeeds\n"
            "        S5-->>S: done\n"
            "    and Label\n"
            "        S->>S6: act, until it succeeds\n"
            "        S6-->>S: done\n"
            "    end\n"
            "    Note over S: completed\n"
            "    Note over S: or back, when a step up to Book fails\n"
            "    alt ByCard was done\n"
            "        S->>S2: compensate\n"
            "        S2-->>S: undone\n"
            "    else ByInvoice was done\n"
            "        S->>S3: compensate, up to 5 times\n"
            "        S3-->>S: undone\n"
            "    end\n"
            "    S->>S1: compensate\n"
            "    S1-->>S: undone\n"
            "    Note over S: failed, and everything is undone"
        )

    def test_last_step_is_only_undone_where_nobody_knows_whether_it_was_done(self) -> None:
        diagram = SagaMermaid(saga(plain("A"), plain("B"), context=OrderContext)).sequence()
        assert "S->>S2: compensate, if its outcome is unknown\n" in diagram
        assert "S->>S1: compensate\n" in diagram

    def test_of_a_last_group_whatever_was_done_is_undone(self) -> None:
        diagram = SagaMermaid(saga(plain("A"), Parallel(plain("B"), plain("C")), context=OrderContext)).sequence()
        assert (
            "    Note over S: of the next ones, what was done last is undone first\n"
            "    S->>S3: compensate, if it was done\n"
            "    S3-->>S: undone\n"
            "    S->>S2: compensate, if it was done\n"
        ) in diagram

    def test_fallback_without_exceptions_is_for_any_error(self) -> None:
        diagram = SagaMermaid(saga(Fallback(plain("A"), plain("B")), context=OrderContext)).sequence()
        assert "    else it fails\n" in diagram
        assert "S->>S2: compensate, if its outcome is unknown\n" in diagram

    def test_steps_have_the_names_that_the_log_has(self) -> None:
        """The same class a second time, and a name of its own."""
        again = step("A", [])
        diagram = SagaMermaid(saga(again, step("B", [], step_name="old; name"), again)).sequence()
        assert "participant S2 as old#59; name\n" in diagram
        assert "participant S3 as A#35;2\n" in diagram

    def test_saga_without_steps_says_so(self) -> None:
        assert "Note over S: the saga has no steps" in SagaMermaid(saga()).sequence()

    def test_instance_is_as_good_as_its_class(self) -> None:
        assert SagaMermaid(OrderSaga()).sequence() == SagaMermaid(OrderSaga).sequence()


class TestClassDiagram:
    def test_saga_steps_and_messages_are_drawn_with_their_relations(self) -> None:
        diagram = SagaMermaid(OrderSaga).class_diagram()
        for lines in (
            "classDiagram\n    class OrderSaga {\n        <<saga>>\n    }\n",
            "    class SagaStepHandler {\n        <<abstract>>\n        +act(context)\n        +compensate(context)\n",
            "    class TransactionalSagaStep {\n        <<abstract>>\n        +act(context, session)\n",
            "    class Reserve {\n        +act(context)\n        +compensate(context)\n    }\n",
            "    class Book {\n        <<pivot>>\n        +act(context, session)\n",
            "    class Pack {\n        <<retriable>>\n",
            "    class OrderContext {\n        +order_id: str\n        +lines: list[str]\n    }\n",
            "    class Reserved {\n        +number: int\n    }\n",
            "    SagaStepHandler <|-- Reserve\n",
            "    TransactionalSagaStep <|-- Book\n",
            "    OrderSaga *-- Reserve : step 1\n    OrderSaga *-- ByCard : step 2\n",
            "    ByCard --> ByInvoice : fallback\n",
            "    OrderSaga *-- Book : step 3\n    OrderSaga *-- Pack : step 4, at the same time\n",
            "    OrderSaga ..> OrderContext : context\n",
            "    ByCard ..> OrderContext : works on\n    ByCard ..> Reserved : answers\n",
        ):
            assert lines in diagram
        assert "Any" not in diagram

    def test_saga_that_names_no_context_has_none(self) -> None:
        class Plain(Saga[Any]):
            steps = []

        assert SagaMermaid(Plain).class_diagram() == "classDiagram\n    class Plain {\n        <<saga>>\n    }"

    def test_names_that_mermaid_could_not_read_become_labels(self) -> None:
        odd: Any = type("end", (Reserve,), {})
        assert 'class C_end["end"] {' in SagaMermaid(saga(odd, context=OrderContext)).class_diagram()


@pytest.mark.parametrize("stranger", [str, Reserve, "OrderSaga", Saga])
def test_anything_but_a_saga_is_refused(stranger: Any) -> None:
    with pytest.raises(SagaTypeError):
        SagaMermaid(stranger)


BEGUN = datetime.datetime(2030, 5, 1, 12, 0, tzinfo=datetime.UTC)


def at(seconds: float) -> datetime.datetime:
    return BEGUN + datetime.timedelta(seconds=seconds)


def entry(
    name: str, action: str = ACT, status: SagaStepStatus = SagaStepStatus.COMPLETED, after: float = 1.0, **more: Any
) -> SagaLogEntry:
    return SagaLogEntry(name, action, status, **{"created_at": at(after), "duration": 0.1, "actor": "web/1", **more})


def state(status: SagaStatus, *history: SagaLogEntry, after: float = 9.0, **more: Any) -> SagaState:
    given: dict[str, Any] = {
        "current_step": None,
        "locked_by": None,
        "available_at": None,
        "finished_at": at(after) if status.is_final else None,
    }
    given |= more
    return SagaState(
        saga_id=uuid.uuid4(),
        name="OrderSaga",
        status=status,
        context="{}",
        definition="",
        version=1,
        attempts=0,
        error=None,
        created_at=BEGUN,
        updated_at=at(after),
        history=history,
        **given,
    )


class TestRun:
    def test_times_attempts_failures_and_compensations_are_drawn(self) -> None:
        failed = SagaStepStatus.FAILED
        diagram = SagaMermaid.run(
            state(
                SagaStatus.FAILED,
                entry("Reserve", after=0.25),
                entry("Charge", status=failed, after=4.0, duration=3.4, attempts=3, details="ConnectionError: no; way"),
                entry("Reserve", COMPENSATE, after=8.9, duration=75.0),
            )
        )
        assert diagram == (
            "sequenceDiagram\n"
            "    participant S as OrderSaga\n"
            "    participant S1 as Reserve\n"
            "    participant S2 as Charge\n"
            "    Note over S: begun at 2030-05-01 12:00:00 UTC\n"
            "    S->>S1: act\n"
            "    S1-->>S: done after 250 ms, in 100 ms\n"
            "    S->>S2: act\n"
            "    S2--xS: failed after 4.0 s, in 3.4 s, 3 attempts: ConnectionError: no#59; way\n"
            "    Note over S: back\n"
            "    S->>S1: compensate\n"
            "    S1-->>S: undone after 8.9 s, in 0:01:15\n"
            "    Note over S: failed after 9.0 s, and everything is undone"
        )

    def test_steps_that_ran_at_the_same_time_are_all_called_before_the_first_answers(self) -> None:
        """As their times tell: C ended first, and had begun after A and B, and D came later."""
        diagram = SagaMermaid.run(
            state(
                SagaStatus.COMPLETED,
                entry("C", after=2.0, duration=0.5),
                entry("A", after=3.0, duration=2.5),
                entry("B", after=4.0, duration=3.5),
                entry("D", after=5.0, duration=1.0),
            )
        )
        calls = [line.split(":")[0].strip() for line in diagram.splitlines() if line.startswith("    S")]
        assert calls == ["S->>S1", "S->>S2", "S->>S3", "S1-->>S", "S2-->>S", "S3-->>S", "S->>S4", "S4-->>S"]

    def test_steps_whose_times_are_not_known_follow_one_another(self) -> None:
        diagram = SagaMermaid.run(
            state(
                SagaStatus.COMPLETED,
                entry("A", created_at=None),
                entry("B", duration=None),
                entry("C", created_at=None),
            )
        )
        assert "S->>S1: act\n    S1-->>S: done in 100 ms\n    S->>S2: act\n    S2-->>S: done after 1.0 s\n" in diagram

    def test_recovery_shows_who_has_taken_the_saga_on(self) -> None:
        diagram = SagaMermaid.run(
            state(SagaStatus.COMPLETED, entry("A"), entry("B", actor="worker/1"), entry("C", actor=None))
        )
        assert "    Note over S: taken on by worker/1\n    S->>S2: act\n" in diagram
        assert "    Note over S: taken on by somebody\n" in diagram

    def test_what_operators_did_is_drawn_with_their_reasons(self) -> None:
        done, skipped = SagaStepStatus.COMPLETED, SagaStepStatus.SKIPPED
        diagram = SagaMermaid.run(
            state(
                SagaStatus.ABANDONED,
                entry("A"),
                entry("A", COMPENSATE, skipped, actor="ann@shop", details="refunded by hand"),
                entry("", "retry", done, after=2.0, actor="bob", details="the shop is back"),
                entry("A", "inspected", done, actor=None),
            )
        )
        assert "    Note over S,S1: compensate skipped after 1.0 s by ann@shop: refunded by hand\n" in diagram
        assert "    Note over S: retry after 2.0 s by bob: the shop is back\n" in diagram
        assert "    Note over S,S1: inspected after 1.0 s\n" in diagram
        assert diagram.endswith("Note over S: given up after 9.0 s")

    def test_unknown_outcome_says_so(self) -> None:
        diagram = SagaMermaid.run(state(SagaStatus.COMPENSATING, entry("A", status=SagaStepStatus.UNKNOWN)))
        assert "S1--xS: failed, perhaps with its effect, after 1.0 s, in 100 ms" in diagram

    def test_long_errors_are_cut(self) -> None:
        diagram = SagaMermaid.run(
            state(SagaStatus.RUNNING, entry("A", status=SagaStepStatus.FAILED, details="word " * 400))
        )
        assert "word #8230;" in diagram
        assert max(map(len, diagram.splitlines())) < 250

    @pytest.mark.parametrize(
        ("status", "more", "end"),
        [
            (SagaStatus.COMPLETED, {}, "completed after 9.0 s"),
            (SagaStatus.RUNNING, {}, "running: act of B and C is next"),
            (
                SagaStatus.RUNNING,
                {"available_at": at(60)},
                "running: act of B and C is next from 2030-05-01 12:01:00 UTC",
            ),
            (SagaStatus.RUNNING, {"locked_by": IN_DOUBT}, "running: act of B and C was interrupted, and is next"),
            (SagaStatus.RUNNING, {"locked_by": UNFIT}, "running: act of B and C is next, by other code"),
            (
                SagaStatus.RUNNING,
                {"locked_by": UNFIT_IN_DOUBT},
                "running: act of B and C was interrupted, and is next, by other code",
            ),
            (SagaStatus.RUNNING, {"locked_by": "web;1"}, "running: act of B and C is for web#59;1 to do"),
            (
                SagaStatus.RUNNING,
                {"locked_by": "web/1", "available_at": at(30)},
                "running: act of B and C is for web/1 to do until 2030-05-01 12:00:30 UTC",
            ),
            (SagaStatus.COMPENSATING, {"current_step": "A"}, "compensating: compensate of A is next"),
            (SagaStatus.COMPENSATING, {"current_step": None}, "compensating: compensate of what is left is next"),
            (
                SagaStatus.COMPENSATION_FAILED,
                {"current_step": "A"},
                "stuck since 2030-05-01 12:00:09 UTC: A could not be undone",
            ),
        ],
    )
    def test_the_end_says_how_far_it_has_come(self, status: SagaStatus, more: dict[str, Any], end: str) -> None:
        """Of a group only what is left is next."""
        diagram = SagaMermaid.run(state(status, entry("A"), **{"current_step": "A & B & C", **more}))
        assert diagram.endswith(f"Note over S: {end}")

    def test_log_of_a_real_saga_is_drawn(self) -> None:
        """One that runs a group, fails, and is rolled back."""
        group = Parallel(step("B", []), step("C", []))
        storage, failing = Storage(), saga(step("A", []), group, step("D", [], ValueError("no <b>way</b>\n")))
        with mediator_of(failing, storage) as mediator:
            outcome = mediator.run(failing.definition.context_type())
        diagram = SagaMermaid.run(storage.load_saga_state(outcome.saga_id))
        answers = [line.partition(" after")[0].strip() for line in diagram.splitlines() if "after" in line]
        back = answers.index("S4--xS: failed")
        assert sorted(answers[:back]) == ["S1-->>S: done", "S2-->>S: done", "S3-->>S: done"]
        assert answers[back + 1 :] == ["S3-->>S: undone", "S2-->>S: undone", "S1-->>S: undone", "Note over S: failed"]
        assert "ValueError: no #60;b#62;way#60;/b#62;\n" in diagram


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n  b\r\nc", "a b c"),
        ("%%{init: {}}%%", "#37;#37;#123;init: #123;#125;#125;#37;#37;"),
        ('#35; & "x" <br/> `$$', "#35;35#59; #38; #34;x#34; #60;br/#62; #96;#36;#36;"),
        ("Zoë → 🦊", "Zoë #8594; #129418;"),
    ],
)
def test_text_is_shown_and_is_never_syntax(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_fallback_that_takes_over_is_a_note_between_the_calls() -> None:
    """It is no call of its own."""
    log = (
        entry("A", status=SagaStepStatus.FAILED),
        entry("B", status=SagaStepStatus.STARTED, duration=None),
        entry("B", after=2.0),
    )
    diagram = SagaMermaid.run(state(SagaStatus.COMPLETED, *log))
    assert "    Note over S,S2: takes over after 1.0 s by web/1\n    S->>S2: act\n" in diagram
    assert diagram.count("act") == 2
