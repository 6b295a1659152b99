"""A chain of responsibility: who answers, who is asked, whose events count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import punq
import pytest

import cqrs_sync as cqrs
from cqrs_sync.errors import RequestHandlerTypeError
from cqrs_sync.requests.bootstrap import bootstrap, bootstrap_streaming
from cqrs_sync.requests.cor_request_handler import build_chain
from cqrs_sync.unit_of_work.memory import MemoryTransaction, MemoryUnitOfWork


class Pay(cqrs.Request[str]):
    method: str


class Asked(cqrs.DomainEvent):
    who: str


class Pays(cqrs.CORRequestHandler[Pay, str]):
    """Answers for its own method, and says that it was asked."""

    method = ""

    def handle(self, request: Pay) -> str | None:
        self.events = [Asked(who=self.method)]
        return f"paid by {self.method}" if request.method == self.method else self.next(request)


class ByCard(Pays):
    method = "card"


class ByInvoice(Pays):
    method = "invoice"


class InCash(Pays):
    method = "cash"


class Notes:
    """What collects who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def bind(self, event_map: cqrs.EventMap) -> None:
        asked = self.asked

        class OnAsked(cqrs.EventHandler[Asked]):
            def handle(self, event: Asked) -> None:
                asked.append(event.who)

        event_map.bind(Asked, OnAsked)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def mediator(notes: Notes, *chain: type[cqrs.CORRequestHandler[Any, Any]], **options: Any) -> cqrs.RequestMediator:
    return bootstrap(
        options.pop("di_container", None) or punq.Container(),
        commands_mapper=lambda m: m.bind(Pay, chain),
        domain_events_mapper=notes.bind,
        **options,
    )


# --- linked by hand ------------------------------------------------------------------------------------------


def test_chain_is_built_in_the_order_of_the_list_and_its_head_returned() -> None:
    """Each passes to the next."""
    handlers = [ByCard(), ByInvoice(), InCash()]
    head = build_chain(handlers)
    assert head is handlers[0]
    assert head.handle(Pay(method="cash")) == "paid by cash"


def test_chain_of_one_has_nobody_behind_it() -> None:
    """Passing on at the end is None."""
    head = build_chain([ByCard()])
    assert head.handle(Pay(method="cash")) is None
    assert head.next(Pay(method="card")) is None


def test_set_next_returns_the_handler_so_that_links_can_be_written_in_a_row() -> None:
    """``a.set_next(b).set_next(c)``."""
    first, second, third = ByCard(), ByInvoice(), InCash()
    assert first.set_next(second).set_next(third) is third
    assert first.handle(Pay(method="cash")) == "paid by cash"


def test_first_link_stays() -> None:
    """As in the async library, a second ``set_next`` changes nothing."""
    first, second, third = ByCard(), ByInvoice(), InCash()
    first.set_next(second)
    assert first.set_next(third) is third
    assert first.handle(Pay(method="cash")) is None


def test_links_belong_to_the_object_and_not_to_its_class() -> None:
    """A second chain of the same classes starts without links."""
    build_chain([ByCard(), InCash()])
    assert ByCard().handle(Pay(method="cash")) is None


def test_events_of_a_chain_are_those_of_the_handlers_that_were_reached() -> None:
    """In the order of the chain."""
    head = build_chain([ByCard(), ByInvoice(), InCash()])
    head.handle(Pay(method="invoice"))
    assert head.chain_events() == [Asked(who="card"), Asked(who="invoice")]


def test_chain_that_was_not_called_has_no_events() -> None:
    """There is nothing to report before the call."""
    assert build_chain([ByCard(), ByInvoice()]).chain_events() == []


# --- by the mediator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer", "asked"),
    [
        ("card", "paid by card", ["card"]),
        ("invoice", "paid by invoice", ["card", "invoice"]),
        ("cash", "paid by cash", ["card", "invoice", "cash"]),
        ("shells", None, ["card", "invoice", "cash"]),
    ],
)
def test_first_handler_that_can_answers(method: str, answer: str | None, asked: list[str], notes: Notes) -> None:
    """Those behind it are not asked, and the events are of those that were."""
    assert mediator(notes, ByCard, ByInvoice, InCash).send(Pay(method=method)) == answer
    assert notes.asked == asked


def test_chain_of_one_is_a_chain(notes: Notes) -> None:
    """A list with a single class."""
    assert mediator(notes, ByCard).send(Pay(method="card")) == "paid by card"
    assert notes.asked == ["card"]


def test_each_send_walks_a_new_chain(notes: Notes) -> None:
    """Nothing of a send is left for the next."""
    payments = mediator(notes, ByCard, InCash)
    for _ in range(3):
        payments.send(Pay(method="cash"))
    assert notes.asked == ["card", "cash"] * 3


def test_handlers_of_a_chain_get_their_dependencies(notes: Notes) -> None:
    """Registered or not, each is built by the container."""

    class Fees:
        def of(self, method: str) -> int:
            return len(method)

    class WithFees(cqrs.CORRequestHandler[Pay, str]):
        def __init__(self, fees: Fees) -> None:
            self._fees = fees

        def handle(self, request: Pay) -> str | None:
            return f"fee {self._fees.of(request.method)}"

    container = punq.Container()
    container.register(Fees)
    assert mediator(notes, ByCard, WithFees, di_container=container).send(Pay(method="cash")) == "fee 4"


def test_handler_may_work_on_the_answer_of_those_behind_it(notes: Notes) -> None:
    """Passing on is a call like any other; it may come before or after the handler's own work."""

    class Stamps(cqrs.CORRequestHandler[Pay, str]):
        def handle(self, request: Pay) -> str | None:
            answer = self.next(request)
            self.events = [Asked(who="stamp")]
            return f"{answer}, stamped"

    assert mediator(notes, Stamps, InCash).send(Pay(method="cash")) == "paid by cash, stamped"
    assert notes.asked == ["stamp", "cash"]


def test_handler_may_pass_on_another_request(notes: Notes) -> None:
    """Those behind it get what it gives them."""

    class Redirects(cqrs.CORRequestHandler[Pay, str]):
        def handle(self, request: Pay) -> str | None:
            return self.next(Pay(method="cash"))

    assert mediator(notes, Redirects, InCash).send(Pay(method="card")) == "paid by cash"


def test_answer_that_is_false_ends_the_chain_too(notes: Notes) -> None:
    """Only passing on passes on."""

    class SaysNothing(cqrs.CORRequestHandler[Pay, str]):
        def handle(self, request: Pay) -> str | None:
            return ""

    assert mediator(notes, SaysNothing, InCash).send(Pay(method="cash")) == ""
    assert notes.asked == []


class Fails(Pays):
    method = "broken"

    def handle(self, request: Pay) -> str | None:
        self.events = [Asked(who="broken")]
        raise ConnectionError("lost")


def test_error_in_a_chain_reaches_the_caller_and_nothing_is_emitted(notes: Notes) -> None:
    """Not the events of those before it either: the request failed."""
    with pytest.raises(ConnectionError, match="lost"):
        mediator(notes, ByCard, Fails, InCash).send(Pay(method="cash"))
    assert notes.asked == []


def test_handler_that_failed_behind_one_that_copes_reports_no_events(notes: Notes) -> None:
    """Events count once their handler has succeeded; the one that coped has."""

    class Copes(cqrs.CORRequestHandler[Pay, str]):
        def handle(self, request: Pay) -> str | None:
            self.events = [Asked(who="copes")]
            try:
                return self.next(request)
            except ConnectionError:
                return "on the house"

    assert mediator(notes, Copes, Fails).send(Pay(method="cash")) == "on the house"
    assert notes.asked == ["copes"]


@pytest.mark.parametrize("strategy", cqrs.ScopeStrategy)
def test_chain_is_one_unit_of_work(strategy: cqrs.ScopeStrategy, notes: Notes) -> None:
    """All handlers write in the same transaction, which is committed once."""

    class Writes(cqrs.CORRequestHandler[Pay, str]):
        def __init__(self, transaction: MemoryTransaction) -> None:
            self._transaction = transaction

        def handle(self, request: Pay) -> str | None:
            self._transaction[type(self).__name__] = request.method
            return self.next(request)

    class AlsoWrites(Writes):
        pass

    class WritesAndFails(Writes):
        def handle(self, request: Pay) -> str | None:
            super().handle(request)
            raise ConnectionError

    unit_of_work = MemoryUnitOfWork()
    options: dict[str, Any] = {"unit_of_work": unit_of_work, "scope_strategy": strategy}
    mediator(notes, Writes, AlsoWrites, **options).send(Pay(method="cash"))
    assert unit_of_work.store == {"Writes": "cash", "AlsoWrites": "cash"}
    assert unit_of_work.commits == 1
    with pytest.raises(ConnectionError):
        mediator(notes, Writes, WritesAndFails, **options).send(Pay(method="card"))
    assert unit_of_work.store == {"Writes": "cash", "AlsoWrites": "cash"}
    assert unit_of_work.commits == 1


def test_middlewares_see_one_call_per_chain(notes: Notes) -> None:
    """Not one per handler."""
    calls: list[str] = []

    def count(request: Any, handle: Callable[[Any], Any]) -> Any:
        calls.append(request.method)
        return handle(request)

    mediator(notes, ByCard, ByInvoice, InCash, middlewares=[count]).send(Pay(method="cash"))
    assert calls == ["cash"]


def test_chain_cannot_be_streamed() -> None:
    """Refused at start-up, with where it belongs."""
    with pytest.raises(RequestHandlerTypeError, match=r"cannot stream; bind it with bootstrap\(\)"):
        bootstrap_streaming(punq.Container(), commands_mapper=lambda m: m.bind(Pay, [ByCard]))


def test_handler_without_handle_cannot_be_built(notes: Notes) -> None:
    """The abstract method has to be there when the chain is put together, not at the first payment."""

    class Forgets(cqrs.CORRequestHandler[Pay, str]):
        pass

    with pytest.raises((TypeError, RequestHandlerTypeError), match="handle"):
        mediator(notes, ByCard, Forgets)  # type: ignore[type-abstract]
