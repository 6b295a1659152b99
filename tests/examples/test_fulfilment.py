"""The shop's sagas: what was killed is recovered, what has failed is undone, and the demo would tell if it were not."""

import contextlib
import datetime
import io
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

import cqrs_sync as cqrs
from cqrs_sync.saga.storage import SagaLogEntry, SagaState, SagaStatus, SagaStepStatus
from examples.shop.application import Shop, build
from examples.shop.database import open_database
from examples.shop.dispatch import KILLED_AFTER, Dispatch, dispatch
from examples.shop.fulfilment import DELIVERY, ship
from examples.shop.history import show_sagas
from examples.shop.ledger import Ledger, NotEnough
from examples.shop.messages import FindOrdersToShip
from examples.shop.tables import PartnerEffect
from examples.shop.topics import Arrival
from tests.examples.test_shop import DATA, LINES, imported, rows

SOLD = LINES[:20]
"""Lines of which 17 are accepted: two times as many as a run of the demo ships, and one."""

SHIPPED = {"W-2001", "W-2002", "W-2004", "W-2007", "W-2008"}
FAILED = {"W-2003", "W-2005", "W-2006"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "shop.sqlite3"


@pytest.fixture
def shop(database: Path) -> Iterator[Shop]:
    """A shop with orders that wait to be shipped."""
    with build(database) as shop:
        sell(shop, database)
        yield shop


def sell(shop: Shop, database: Path) -> None:
    orders = database.with_name("orders.jsonl")
    orders.write_text("\n".join(SOLD), encoding="utf-8")
    imported(shop, orders)


def dispatched(shop: Shop, database: Path, **options: Any) -> tuple[Dispatch, str]:
    console = Console(file=io.StringIO(), width=100)
    result = dispatch(shop, database, console, **options)
    show_sagas(console, result)
    return result, console.file.getvalue()  # type: ignore[attr-defined]


def test_orders_are_shipped_or_undone(shop: Shop, database: Path) -> None:
    """The oldest first; each is out of the list then, however it has ended."""
    orders = shop.requests.send(FindOrdersToShip(limit=8))
    for order in orders:
        ship(shop.sagas, order)
    assert shop.requests.send(FindOrdersToShip())[0] not in orders
    assert shop.administration.find() == []
    sagas = rows(database, "SELECT context, status FROM sagas")
    assert [json.loads(context)["order_id"] for context, _ in sagas] == [order.order_id for order in orders]
    assert Counter(status for _, status in sagas) == Counter(completed=5, failed=3)


class Run(NamedTuple):
    database: Path
    result: Dispatch
    output: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What a run has left: its dispatcher was killed, and all is over."""
    database = tmp_path_factory.mktemp("run") / "shop.sqlite3"
    with build(database) as shop:
        sell(shop, database)
        return Run(database, *dispatched(shop, database))


def wrong(result: Dispatch) -> list[str]:
    return [
        *result.not_ended(),
        *result.in_part(),
        *result.refunded_and_shipped(),
        *result.repeated(),
        *result.not_recovered(),
    ]


def test_killed_dispatcher_leaves_nothing_half_done(run: Run) -> None:
    """Counted in the tables themselves; only the bank was asked twice, by the killed process and by the next."""
    assert "dispatcher killed: 2 orders shipped, 1 failed, W-2004 in the middle of Charge, 4 not begun" in run.output
    assert "W-2004 taken on by a recovery worker: completed" in run.output
    assert (run.result.in_hand, wrong(run.result)) == ("W-2004", [])

    sagas = rows(run.database, "SELECT status, context FROM sagas")
    assert {json.loads(context)["order_id"] for status, context in sagas if status == "completed"} == SHIPPED
    assert {json.loads(context)["order_id"] for status, context in sagas if status == "failed"} == FAILED
    assert len(sagas) == 8

    effects = rows(run.database, "SELECT order_id, action, asked FROM partner_effects")
    assert Counter(effects) == Counter(
        [(order_id, action, 1) for order_id in SHIPPED - {"W-2004"} for action in ("reserved", "charged", "shipped")]
        + [("W-2004", "reserved", 1), ("W-2004", "charged", 2), ("W-2004", "shipped", 1)]
        + [("W-2003", action, 1) for action in ("reserved", "charged", "refunded", "put back")]
        + [("W-2005", "reserved", 1), ("W-2005", "put back", 1)]
    )


def test_partners_have_what_the_shipped_orders_left_them(run: Run) -> None:
    """What was undone is back, and what was asked for twice was taken once."""
    partners = json.loads((DATA / "partners.json").read_text(encoding="utf-8"))
    left = Counter({**partners["warehouse"], **partners["bank"]})
    for order in map(json.loads, SOLD):
        if order["order_id"] in SHIPPED:
            left.subtract({order["product"]: order["quantity"], order["customer"]: DELIVERY})
    assert dict(rows(run.database, "SELECT item, left_over FROM partner_stock")) == dict(left)


def test_shipment_is_in_the_outbox_once_and_of_shipped_orders_only(run: Run) -> None:
    """Under the customer's key, as the order itself."""
    stored = rows(run.database, "SELECT payload, partition_key FROM outbox WHERE event_name = 'order_shipped'")
    told = [json.loads(payload)["payload"] for payload, _ in stored]
    assert sorted(one["order_id"] for one in told) == sorted(SHIPPED)
    assert [one["customer"] for one in told] == [key for _, key in stored]


def test_history_shows_each_step_and_who_has_done_it(run: Run) -> None:
    """Of the saga that was taken on, and of one that was undone."""
    lines = [" ".join(line.split()) for line in run.output.splitlines()]
    assert max(map(len, run.output.splitlines())) <= 100
    begin = lines.index(next(line for line in lines if line.startswith("W-2003 Reserve done")))
    assert [line.split(" done ")[0] for line in lines[begin : begin + 5]] == [
        "W-2003 Reserve", "Charge", lines[begin + 2], "undo Charge", "undo Reserve"
    ]  # fmt: skip
    assert lines[begin + 2].startswith("Ship failed: Refused: C-06: no boat in winter")
    assert lines[begin + 5] == "failed, and undone"

    begin = lines.index(next(line for line in lines if line.startswith("W-2004 Reserve done")))
    assert lines[begin].endswith(" dispatcher")
    assert lines[begin + 1].startswith("taken on ")
    assert [line.split()[0] for line in lines[begin + 2 : begin + 5]] == ["Charge", "Ship", "shipped"]
    assert all(line.endswith(" shop") for line in lines[begin + 1 : begin + 4])
    assert "charged 6 7" in lines


def test_later_runs_ship_the_next_orders(shop: Shop, database: Path) -> None:
    """The eight oldest ones each time, then what is left, then nothing; what ends before the kill ends by itself."""
    seen: list[str] = []
    for orders, end in ((8, "killed"), (8, "killed"), (1, "has come to its end")):
        result, output = dispatched(shop, database)
        assert f"dispatcher {end}: " in output
        assert (len(result.sagas), wrong(result)) == (orders, [])
        seen += result.sagas
    assert (len(set(seen)), seen) == (17, sorted(seen))
    result, output = dispatched(shop, database)
    assert (result.sagas, wrong(result), output) == ({}, [], "no order waits to be shipped\n")


def test_demo_tells_when_nobody_recovers(shop: Shop, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed saga stands still, and two checks say so; the next run finishes it."""
    with monkeypatch.context() as patched:
        patched.setattr(cqrs, "SagaRecoveryWorker", lambda *_, **__: contextlib.nullcontext())
        result, output = dispatched(shop, database, patience=0.0)
    assert "W-2004 taken on by a recovery worker: running" in output
    assert result.not_ended() == [f"{result.sagas['W-2004'].saga_id} is running"]
    assert result.not_recovered() == [f"W-2004 is running, by {result.dispatcher}"]
    later, _ = dispatched(shop, database)
    assert wrong(later) == []


def test_dispatcher_that_ends_by_itself_is_no_kill(
    shop: Shop, database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The demo does not go on as if it had been the kill it waits for."""
    with pytest.raises(RuntimeError, match="the dispatcher ended by itself, with exit code 1"):
        dispatched(shop, database.parent / "missing" / "shop.sqlite3")
    assert "unable to open database file" in capfd.readouterr().err


NOW = datetime.datetime(2030, 5, 1, tzinfo=datetime.UTC)
ALL = ("reserved", "charged", "shipped")


def saga_by(*processes: str, status: SagaStatus = SagaStatus.COMPLETED) -> SagaState:
    """A saga whose steps these processes have done."""
    history = tuple(
        SagaLogEntry("Charge", "act", SagaStepStatus.COMPLETED, actor=f"host:{process}:ab12/1") for process in processes
    )
    return SagaState(
        saga_id=uuid.UUID(int=1), name="FulfilmentSaga", status=status, context="{}", definition="", version=3,
        current_step=None, attempts=0, locked_by=None, available_at=None, error=None, created_at=NOW, updated_at=NOW,
        finished_at=NOW, history=history,
    )  # fmt: skip


def dispatch_of(sagas: dict[str, SagaState], actions: dict[str, tuple[str, ...]], in_hand: str | None) -> Dispatch:
    shop: Any = None
    result = Dispatch(shop, [])
    result.sagas, result.dispatcher, result.in_hand = sagas, "71", in_hand
    result.effects = [
        PartnerEffect(order_id=order_id, action=action) for order_id, done in actions.items() for action in done
    ]
    return result


@pytest.mark.parametrize(
    ("saga", "actions", "found"),
    [
        (saga_by("71", "72"), ALL, []),
        (saga_by("71", "72", status=SagaStatus.FAILED), ("reserved", "charged", "refunded", "put back"), []),
        (saga_by("71", "72"), (*ALL, "charged"), ["W-1 was charged 2 times"]),
        (saga_by("71", "72"), ("charged", "shipped"), ["W-1 is completed, and charged, shipped stands"]),
        (saga_by("71", "72"), (), ["W-1 is completed, and nothing stands"]),
        (
            saga_by("71", "72", status=SagaStatus.FAILED),
            ("reserved", "charged", "shipped", "refunded", "put back"),
            ["W-1 is failed, and shipped stands", "W-1 was"],
        ),
        (saga_by("71"), ALL, ["W-1 is completed, by 71"]),
        (saga_by("71", "72", status=SagaStatus.COMPENSATING), (), ["W-1 is compensating, by 71 and 72"]),
    ],
    ids=["shipped", "undone", "twice", "in part", "nothing", "refunded and shipped", "killed by nobody", "not ended"],
)
def test_sagas_are_checked(saga: SagaState, actions: tuple[str, ...], found: list[str]) -> None:
    """Each thing that can be wrong is found, and named."""
    assert wrong(dispatch_of({"W-1": saga}, {"W-1": actions}, "W-1")) == found


def test_kill_that_did_not_happen_is_found() -> None:
    """A dispatcher that has made as many charges as it takes, and lives; with fewer there was no cause."""
    orders = [f"W-{number}" for number in range(KILLED_AFTER)]
    sagas = {order_id: saga_by("71") for order_id in orders}
    assert wrong(dispatch_of(sagas, dict.fromkeys(orders, ALL), None)) == ["nobody was killed"]
    assert wrong(dispatch_of({"W-1": saga_by("71")}, {"W-1": ALL}, None)) == []


def test_announcements_are_compared_with_the_sagas() -> None:
    """That an order was placed is no news of its shipment."""
    sagas = {"W-1": saga_by("71"), "W-2": saga_by("71", status=SagaStatus.FAILED), "W-3": saga_by("71")}
    arrivals = [
        Arrival(uuid.UUID(int=number), "C-1", order_id, event_name)
        for number, (order_id, event_name) in enumerate(
            [("W-1", "order_placed"), ("W-2", "order_shipped"), ("W-3", "order_shipped")]
        )
    ]
    assert dispatch_of(sagas, {}, None).wrongly_announced(arrivals) == [
        "W-1 is completed, and was not announced",
        "W-2 is failed, and was announced",
    ]


def test_partner_does_once_what_it_is_asked_for_twice(database: Path) -> None:
    """By the key; what is refused takes nothing and leaves the key free; what was not done is not undone."""
    engine = open_database(database)
    ledger = Ledger(engine)
    for _ in range(2):
        ledger.note("key", "charged", "W-1", "C-08", 300)
    with pytest.raises(NotEnough) as refused:
        ledger.note("other key", "charged", "W-2", "C-08", 11)
    assert refused.value.left == 10
    for _ in range(2):
        ledger.undo("undo", "charged", "W-1")
        ledger.undo("undo nothing", "charged", "W-2")
    engine.dispose()
    assert rows(database, "SELECT key, amount, asked FROM partner_effects") == [("key", 300, 2), ("undo", -300, 2)]
    assert rows(database, "SELECT left_over FROM partner_stock WHERE item = 'C-08'") == [(310,)]
