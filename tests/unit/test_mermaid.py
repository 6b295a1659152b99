"""Chains are drawn as Mermaid diagrams that a renderer accepts."""

import dataclasses
import uuid
from typing import Any, Generic, TypeVar

import pytest

from cqrs_sync.errors import RequestHandlerTypeError
from cqrs_sync.requests.cor_request_handler import CORRequestHandler
from cqrs_sync.requests.mermaid import CoRMermaid
from cqrs_sync.requests.request import DCRequest, Request
from cqrs_sync.requests.request_handler import RequestHandler
from cqrs_sync.response import Response


class Receipt(Response):
    receipt_id: uuid.UUID
    lines: list[dict[str, int]] = []


class Refusal(Response):
    pass


class Pay(Request[Receipt]):
    amount: int
    note: str | None = None


@dataclasses.dataclass
class Refund(DCRequest[Receipt]):
    amount: int
    reason: "str" = ""


class PayByCard(CORRequestHandler[Pay, Receipt]):
    def handle(self, request: Pay) -> Receipt | None:
        return self.next(request)


class PayByInvoice(CORRequestHandler[Pay, Receipt | Refusal | None]):
    def handle(self, request: Pay) -> Receipt | Refusal | None:
        return self.next(request)


class RefundByHand(CORRequestHandler[Refund, Receipt]):
    def handle(self, request: Refund) -> Receipt | None:
        return None


def namesake(name: str, module: str) -> Any:
    return type(name, (CORRequestHandler,), {"handle": PayByCard.handle, "__module__": module, "__qualname__": name})


class TestSequence:
    def test_request_goes_down_the_chain_until_a_handler_answers(self) -> None:
        assert CoRMermaid([PayByCard, PayByInvoice]).sequence() == (
            "sequenceDiagram\n"
            "    participant M as Mediator\n"
            "    participant H1 as PayByCard\n"
            "    participant H2 as PayByInvoice\n"
            "    M->>H1: handle(request)\n"
            "    alt PayByCard answers\n"
            "        H1-->>M: response\n"
            "    else it passes the request on\n"
            "        H1->>H2: next(request)\n"
            "        alt PayByInvoice answers\n"
            "            H2-->>M: response\n"
            "        else nobody is left to ask\n"
            "            H2-->>M: None\n"
            "        end\n"
            "    end"
        )

    def test_handlers_of_one_name_are_told_apart_by_their_module(self) -> None:
        diagram = CoRMermaid([namesake("Check", "shop.stock"), namesake("Check", "shop.fraud")]).sequence()
        assert "participant H1 as shop.stock.Check\n" in diagram
        assert "participant H2 as shop.fraud.Check\n" in diagram

    def test_handler_that_is_listed_twice_takes_part_twice(self) -> None:
        diagram = CoRMermaid([PayByCard, PayByCard]).sequence()
        assert "participant H1 as PayByCard\n" in diagram
        assert "participant H2 as PayByCard\n" in diagram

    def test_empty_chain_says_so(self) -> None:
        assert "Note over M: the chain has no handlers" in CoRMermaid([]).sequence()


class TestClassDiagram:
    def test_handlers_and_messages_are_drawn_with_their_relations(self) -> None:
        assert CoRMermaid([PayByCard, PayByInvoice]).class_diagram() == (
            "classDiagram\n"
            "    class CORRequestHandler {\n"
            "        <<abstract>>\n"
            "        +handle(request)\n"
            "        +next(request)\n"
            "        +events\n"
            "    }\n"
            "    class PayByCard {\n"
            "        +handle(request)\n"
            "        +events\n"
            "    }\n"
            "    class PayByInvoice {\n"
            "        +handle(request)\n"
            "        +events\n"
            "    }\n"
            "    class Pay {\n"
            "        +amount: int\n"
            "        +note: str | None\n"
            "    }\n"
            "    class Receipt {\n"
            "        +receipt_id: UUID\n"
            "        +lines: list[dict[str, int]]\n"
            "    }\n"
            "    class Refusal\n"
            "    CORRequestHandler <|-- PayByCard\n"
            "    CORRequestHandler <|-- PayByInvoice\n"
            "    PayByCard --> PayByInvoice : next\n"
            "    PayByCard ..> Pay : takes\n"
            "    PayByCard ..> Receipt : answers\n"
            "    PayByInvoice ..> Pay : takes\n"
            "    PayByInvoice ..> Receipt : answers\n"
            "    PayByInvoice ..> Refusal : answers"
        )

    def test_fields_of_a_dataclass_are_drawn_with_resolved_annotations(self) -> None:
        diagram = CoRMermaid([RefundByHand]).class_diagram()
        assert "    class Refund {\n        +amount: int\n        +reason: str\n    }" in diagram

    def test_annotation_for_type_checkers_only_is_drawn_as_written(self) -> None:
        @dataclasses.dataclass
        class Unresolved(DCRequest[Receipt]):
            order: "shop.Order"  # type: ignore[name-defined]  # noqa: F821

        class Handler(CORRequestHandler[Unresolved, Any]):
            def handle(self, request: Unresolved) -> Any:
                return None

        assert "+order: Order" in CoRMermaid([Handler]).class_diagram()

    def test_types_are_found_through_generic_bases(self) -> None:
        res = TypeVar("res")

        class Audited(CORRequestHandler[Pay, res], Generic[res]):
            pass

        class AuditedCard(Audited[Receipt]):
            def handle(self, request: Pay) -> Receipt | None:
                return None

        diagram = CoRMermaid([AuditedCard]).class_diagram()
        assert "AuditedCard ..> Pay : takes" in diagram
        assert "AuditedCard ..> Receipt : answers" in diagram

    def test_handler_that_names_no_types_is_drawn_alone(self) -> None:
        assert ".." not in CoRMermaid([namesake("Plain", "shop")]).class_diagram()

    def test_classes_of_one_name_do_not_collide(self) -> None:
        handlers = [namesake("Check", "stock"), namesake("Check", "fraud"), namesake("Check_2", "shop")]
        diagram = CoRMermaid([*handlers, namesake("CORRequestHandler", "shop")]).class_diagram()
        assert '    class Check["stock.Check"] {' in diagram
        assert '    class Check_2["fraud.Check"] {' in diagram
        assert '    class Check_2_2["Check_2"] {' in diagram
        assert '    class CORRequestHandler_2["shop.CORRequestHandler"] {' in diagram
        assert "    Check --> Check_2 : next" in diagram
        assert "    Check_2 --> Check_2_2 : next" in diagram

    def test_name_that_mermaid_could_not_read_becomes_a_label(self) -> None:
        assert '    class Page_int_["Page[int]"] {' in CoRMermaid([namesake("Page[int]", "shop")]).class_diagram()

    def test_name_that_could_be_a_keyword_becomes_a_label(self) -> None:
        assert '    class C_note["note"] {' in CoRMermaid([namesake("note", "shop")]).class_diagram()

    def test_empty_chain_draws_the_base_class(self) -> None:
        assert CoRMermaid([]).class_diagram().startswith("classDiagram\n    class CORRequestHandler {")


@pytest.mark.parametrize("stranger", [RequestHandler, PayByCard(), str, "PayByCard"])
def test_anything_but_a_chain_handler_is_refused(stranger: Any) -> None:
    with pytest.raises(RequestHandlerTypeError) as caught:
        CoRMermaid([PayByCard, stranger])
    assert caught.value.handler_type is stranger
