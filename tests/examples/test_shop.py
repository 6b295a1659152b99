"""The shop's numbers, against a count that knows nothing of the shop but its data files; and its events."""

import contextlib
import datetime
import io
import json
import os
import re
import subprocess
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pydantic
import pytest
from rich.console import Console
from sqlalchemy import create_engine, text

from cqrs_sync.message_brokers import MessageBroker
from cqrs_sync.testing.message_broker import MessageBrokerContract
from examples.shop import __main__ as program
from examples.shop import kafka_topic, topics
from examples.shop.application import Shop, build
from examples.shop.delivery import Delivery
from examples.shop.errors import OrderRejected
from examples.shop.messages import (
    AuditReadModel,
    GetBestSellers,
    GetCustomerOrders,
    GetPaymentTotals,
    GetTopCustomers,
    ImportedLine,
    ImportOrders,
    OrderConfirmation,
    PlaceOrder,
)
from examples.shop.report import follow
from examples.shop.topics import Arrival, Journal, JournalBroker
from tests.kafka import Kafka

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "shop"
ORDERS = DATA / "orders.jsonl"
LINES = ORDERS.read_text(encoding="utf-8").splitlines()
OUTAGE = [datetime.datetime.fromisoformat(f"2025-03-11T{time}+01:00") for time in ("11:00", "12:15")]


class Refused(Exception):
    """The count's own refusal; its text is the reason."""


class Count:
    """A plain count of the order lines: what is accepted, what it is worth, what is left."""

    def __init__(self, lines: list[str]) -> None:
        catalogue = json.loads((DATA / "catalogue.json").read_text(encoding="utf-8"))
        self.prices = {product["id"]: product["price"] for product in catalogue["products"]}
        self.stock = {product["id"]: product["stock"] for product in catalogue["products"]}
        self.names = {product["id"]: product["name"] for product in catalogue["products"]}
        self.credit = {customer["id"]: customer["credit_limit"] for customer in catalogue["customers"]}
        self.vouchers = {voucher["code"]: voucher["worth"] for voucher in catalogue["vouchers"]}
        self.failures = 0  # of the first card provider in a row; at three it is not asked any more
        self.accepted: dict[str, dict[str, Any]] = {}
        self.reasons: dict[int, str] = {}
        for number, line in enumerate(lines, start=1):
            try:
                self.place(line)
            except Refused as refused:
                self.reasons[number] = str(refused)

    def place(self, line: str) -> None:
        try:
            order = json.loads(line)
        except ValueError:
            raise Refused("broken JSON") from None
        if set(order) != {"order_id", "placed_at", "customer", "product", "quantity", "payment"}:
            raise Refused("missing field")
        quantity, product = order["quantity"], order["product"]
        if not isinstance(quantity, int) or quantity < 1:
            raise Refused("bad quantity")
        for reason, applies in {
            "unknown customer": order["customer"] not in self.credit,
            "unknown product": product not in self.prices,
            "order id used before": order["order_id"] in self.accepted,
        }.items():
            if applies:
                raise Refused(reason)
        if self.stock[product] < quantity:
            raise Refused("insufficient stock")
        order["total"] = self.prices[product] * quantity
        order["paid_by"] = self.pay(order)
        self.stock[product] -= quantity
        self.accepted[order["order_id"]] = order

    def pay(self, order: dict[str, Any]) -> str:
        payment, total = order["payment"], order["total"]
        voucher = payment.get("voucher")
        if voucher and self.vouchers[voucher] >= total:
            self.vouchers[voucher] -= total
            return "voucher"
        if "card" in payment:
            return self.charge(payment["card"], order["placed_at"])
        if payment["method"] == "invoice":
            if self.credit[order["customer"]] < total:
                raise Refused("credit limit exceeded")
            self.credit[order["customer"]] -= total
            return "invoice"
        raise Refused("voucher too small" if voucher else "unknown payment method")

    def charge(self, card: dict[str, str], placed_at: str) -> str:
        if card["expires"] < placed_at[:7]:
            raise Refused("card expired")
        provider = "card, Nordpay" if self.failures < 3 else "card, Cardia"
        if provider == "card, Nordpay" and OUTAGE[0] <= datetime.datetime.fromisoformat(placed_at) < OUTAGE[1]:
            self.failures += 1
            provider = "card, Cardia"
        elif provider == "card, Nordpay":
            self.failures = 0
        if card["token"].startswith("tok_declined"):
            raise Refused("card declined")
        return provider

    def sums(self, field: str, *summed: str) -> dict[str, tuple[int, ...]]:
        """For each value of a field: how many orders, and the sums of other fields."""
        groups = defaultdict(list)
        for order in self.accepted.values():
            groups[order[field]].append(order)
        return {
            value: (len(orders), *(sum(order[name] for order in orders) for name in summed))
            for value, orders in groups.items()
        }


@pytest.fixture(scope="module")
def count() -> Count:
    return Count(LINES)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with build(tmp_path / "shop.sqlite3") as shop:
        yield shop


def imported(shop: Shop, path: Path = ORDERS) -> list[ImportedLine]:
    with closing(shop.streams.stream(ImportOrders(path=path))) as lines:
        return list(lines)


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    engine = create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            return sorted(tuple(row) for row in connection.execute(text(query)))
    finally:
        engine.dispose()


def check_stock_and_orders(database: Path) -> None:
    """The stock that left is the stock that was ordered: no order is stored in part."""
    sold = dict(rows(database, "SELECT product, sum(quantity) FROM orders GROUP BY product"))
    catalogue = json.loads((DATA / "catalogue.json").read_text(encoding="utf-8"))
    expected = [(product["id"], product["stock"] - sold.get(product["id"], 0)) for product in catalogue["products"]]
    assert rows(database, "SELECT id, stock FROM products") == sorted(expected)


def test_shipped_lines_go_wrong_in_every_way(count: Count) -> None:
    """The data file is of a size to read, and has each kind of bad line."""
    assert len(LINES) == 320
    assert set(count.reasons.values()) == {
        "bad quantity", "broken JSON", "card declined", "card expired", "credit limit exceeded", "insufficient stock",
        "missing field", "order id used before", "unknown customer", "unknown payment method", "unknown product",
        "voucher too small",
    }  # fmt: skip
    assert {order["paid_by"] for order in count.accepted.values()} == {
        "card, Cardia", "card, Nordpay", "invoice", "voucher"
    }  # fmt: skip


def test_import_accepts_and_rejects_what_an_independent_count_does(shop: Shop, count: Count) -> None:
    """Line by line: the same orders at the same price, the same reasons."""
    lines = imported(shop)
    assert [line.number for line in lines] == list(range(1, len(LINES) + 1))
    assert {line.number: line.rejection.reason for line in lines if line.rejection} == count.reasons
    confirmations = [line.confirmation for line in lines if line.confirmation]
    assert [(one.order_id, one.total, one.paid_by) for one in confirmations] == [
        (order["order_id"], order["total"], order["paid_by"]) for order in count.accepted.values()
    ]


def test_rejected_lines_leave_no_row(shop: Shop, count: Count, tmp_path: Path) -> None:
    """Only accepted orders are stored, and only they took something from stock."""
    imported(shop)
    database = tmp_path / "shop.sqlite3"
    assert rows(database, "SELECT id, total FROM orders") == sorted(
        (order_id, order["total"]) for order_id, order in count.accepted.items()
    )
    assert rows(database, "SELECT id, stock FROM products") == sorted(count.stock.items())


def test_read_model_holds_the_counted_sums(shop: Shop, count: Count, tmp_path: Path) -> None:
    """Four handlers at once lose no update."""
    imported(shop)
    database = tmp_path / "shop.sqlite3"
    assert rows(database, "SELECT product, quantity, revenue FROM product_sales") == sorted(
        (product, quantity, total)
        for product, (_, quantity, total) in count.sums("product", "quantity", "total").items()
    )
    assert rows(database, "SELECT customer, orders, spent FROM customer_sales") == sorted(
        (customer, *sums) for customer, sums in count.sums("customer", "total").items()
    )
    audit = shop.requests.send(AuditReadModel())
    assert (audit.orders, audit.differences) == (len(count.accepted), [])


def test_queries_answer_what_was_counted(shop: Shop, count: Count) -> None:
    """Best sellers, payments, the best customer and a customer's latest orders."""
    imported(shop)
    by_product = count.sums("product", "quantity", "total")
    best = sorted(by_product, key=lambda product: -by_product[product][2])[:3]
    assert [tuple(dict(one).values()) for one in shop.requests.send(GetBestSellers(limit=3))] == [
        (count.names[product], *by_product[product][1:]) for product in best
    ]
    payments = {one.paid_by: (one.orders, one.amount) for one in shop.requests.send(GetPaymentTotals())}
    assert payments == count.sums("paid_by", "total")
    by_customer = count.sums("customer", "total")
    (top,) = shop.requests.send(GetTopCustomers(limit=1))
    assert (top.orders, top.spent) == max(by_customer.values(), key=lambda sums: sums[1])
    assert by_customer[top.customer] == (top.orders, top.spent)
    latest = shop.requests.send(GetCustomerOrders(customer=top.customer, limit=1000))
    assert [order.order_id for order in latest] == [
        order_id for order_id, order in reversed(count.accepted.items()) if order["customer"] == top.customer
    ]


def test_two_imports_into_two_databases_are_the_same(tmp_path: Path) -> None:
    """Nothing is random, the circuit breaker of one shop is not that of the next."""
    results = []
    for name in ("first.sqlite3", "second.sqlite3"):
        with build(tmp_path / name) as shop:
            results.append((imported(shop), shop.requests.send(GetPaymentTotals())))
    assert results[0] == results[1]


def test_importing_again_changes_nothing(tmp_path: Path, count: Count) -> None:
    """Orders that are there already are refused, also in the next process."""
    database = tmp_path / "shop.sqlite3"
    with build(database) as shop:
        imported(shop)
    tables = ("orders", "products", "product_sales", "customer_sales", "payment_sales", "outbox")
    before = [rows(database, f"SELECT * FROM {table}") for table in tables]
    with build(database) as shop:
        reasons = Counter(line.rejection.reason if line.rejection else "accepted" for line in imported(shop))
        assert shop.requests.send(AuditReadModel()).differences == []
    assert reasons["accepted"] == 0
    assert reasons["order id used before"] >= len(count.accepted)
    assert [rows(database, f"SELECT * FROM {table}") for table in tables] == before


def test_import_that_is_left_early_places_no_further_order(shop: Shop) -> None:
    """What was answered is stored, and nothing else."""
    with closing(shop.streams.stream(ImportOrders(path=ORDERS))) as lines:
        seen = [next(lines) for _ in range(100)]
    audit = shop.requests.send(AuditReadModel())
    assert (audit.orders, audit.differences) == (sum(1 for line in seen if line.confirmation), [])


def test_killed_process_leaves_no_part_of_an_order(tmp_path: Path) -> None:
    """It dies while the thirtieth card is charged: 29 charges are orders, the goods of the thirtieth are in stock."""
    database = tmp_path / "shop.sqlite3"
    code = f"""
import os
from pathlib import Path
from examples.shop.application import build
from examples.shop.card_providers import CardProvider
from examples.shop.messages import ImportOrders

charge, charges = CardProvider.charge, []

def charge_or_die(self, request):
    charge(self, request)
    charges.append(request)
    if len(charges) == 30:
        os._exit(9)

CardProvider.charge = charge_or_die
with build(Path({str(database)!r})) as shop:
    for line in shop.streams.stream(ImportOrders(path=Path({str(ORDERS)!r}))):
        pass
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, timeout=60)
    assert ended.returncode == 9
    assert rows(database, "SELECT count(*) FROM orders WHERE paid_by LIKE 'card%'") == [(29,)]
    check_stock_and_orders(database)
    with build(database) as shop:
        assert shop.requests.send(AuditReadModel()).differences == []


def test_orders_from_many_threads_never_oversell(shop: Shop, tmp_path: Path) -> None:
    """Eight threads place orders at once: the stock and the read model agree with the orders."""

    def place(line: str) -> bool:
        try:
            shop.requests.send(PlaceOrder.model_validate_json(line))
        except (OrderRejected, pydantic.ValidationError):
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        accepted = sum(threads.map(place, LINES[:160]))
    audit = shop.requests.send(AuditReadModel())
    assert (audit.orders, audit.differences) == (accepted, [])
    check_stock_and_orders(tmp_path / "shop.sqlite3")


def test_event_is_stored_with_each_accepted_order_and_no_other(shop: Shop, count: Count, tmp_path: Path) -> None:
    """In the order of the orders, under the customer's key; a refusal leaves none."""
    imported(shop)
    stored = rows(tmp_path / "shop.sqlite3", "SELECT id, event_name, topic, partition_key, payload, status FROM outbox")
    payloads = [json.loads(row[4])["payload"] for row in stored]
    assert [(payload["order_id"], payload["total"]) for payload in payloads] == [
        (order_id, order["total"]) for order_id, order in count.accepted.items()
    ]
    assert [row[1:4] for row in stored] == [
        ("order_placed", "shop.orders", order["customer"]) for order in count.accepted.values()
    ]
    assert {row[5] for row in stored} == {"new"}


CLAIMS_OF_SAGAS = (
    "every saga has ended",
    "every order was shipped, or all was undone",
    "nothing was both refunded and shipped",
    "nothing was done twice",
    "what was killed was recovered",
    "shipped orders were announced, failed ones were not",
)


def demo(*options: str) -> tuple[int, str]:
    """Run the demo in this process; its relay is another one."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = program.main(options)
    return code, output.getvalue()


def number(pattern: str, output: str) -> int:
    """The number in the one place of the output that looks like this."""
    [found] = re.findall(pattern, output)
    return int(found)


def check_killed_and_made_good(code: int, output: str, count: Count) -> None:
    """The relay was killed with events in hand, and these, and only these, have arrived twice; a saga was recovered."""
    assert code == 0, output
    in_hand = number(r"relay killed .*, (\d+) not marked yet", output)
    assert in_hand > 0
    assert "relay started again " in output
    assert number(r"arrived twice +(\d+)", output) == in_hand
    shipped = 5
    assert number(r"arrived +(\d+)", output) == len(count.accepted) + shipped + in_hand
    assert "dispatcher killed: 2 orders shipped, 1 failed, W-2004 in the middle of Charge" in output
    assert "W-2004 taken on by a recovery worker: completed" in output
    assert re.findall(r"shipped +(\d) +(\d) *\n", output) == [(str(shipped), str(shipped))]
    assert re.findall(r"charged +(\d) +(\d) *\n", output) == [("6", "7")]
    for claim in CLAIMS_OF_SAGAS:
        assert f"{claim}: yes\n" in output


def test_killed_relay_loses_nothing(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a journal file, where there is no Kafka client; the kill is a SIGKILL in the middle of the import."""
    monkeypatch.setattr(topics, "has_kafka_client", lambda: False)
    code, output = demo()
    assert "events go to a journal file" in output
    check_killed_and_made_good(code, output, count)


def test_killed_relay_loses_nothing_on_its_way_from_postgresql_to_kafka(
    count: Count, kafka: Kafka, postgres_url: str
) -> None:
    """The same between real servers, twice: what the topic holds from before does not count."""
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    for name in ("shop_one", "shop_two"):
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        url = engine.url.set(database=name).render_as_string(hide_password=False)
        code, output = demo("--database", url, "--kafka", kafka.address)
        assert f"events go to Kafka at {kafka.address}" in output
        check_killed_and_made_good(code, output, count)
    engine.dispose()


def test_demo_fails_when_an_event_is_missing(tmp_path: Path) -> None:
    """The fiftieth event vanishes from the outbox: the demo says of which order, and its exit code is 1."""
    database = tmp_path / "shop.sqlite3"
    with build(database):
        pass
    engine = create_engine(f"sqlite:///{database}")
    theft = "CREATE TRIGGER thief AFTER INSERT ON outbox WHEN NEW.id = 50 BEGIN DELETE FROM outbox WHERE id = 50; END"
    with engine.begin() as connection:
        connection.execute(text(theft))
    engine.dispose()
    code, output = demo("--database", str(database))
    assert code == 1
    assert "event of every accepted order has arrived: no" in output
    assert re.search(r"W-\d+ is missing", output)


def test_relay_that_ends_by_itself_is_no_kill(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The demo does not go on as if it had been the kill it waits for."""
    orders = tmp_path / "orders.jsonl"
    orders.write_text(LINES[0] + "\n", encoding="utf-8")
    with build(tmp_path / "shop.sqlite3") as shop:
        topic = Journal(tmp_path / "missing" / "journal.jsonl")
        with pytest.raises(RuntimeError, match="the relay ended by itself, with exit code 1"):
            program.import_and_report(shop, orders, str(tmp_path / "shop.sqlite3"), topic, Console(file=io.StringIO()))
    assert "FileNotFoundError" in capfd.readouterr().err


def test_demo_without_kafka_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nobody is ends in one line."""
    monkeypatch.setattr(kafka_topic, "PATIENCE", 0.5)
    with pytest.raises(SystemExit, match="no Kafka at localhost:1: "):
        program.main(["--kafka", "localhost:1"])


ORDERS_PLACED = [
    OrderConfirmation(order_id=f"W-{number}", customer=customer, total=1, paid_by="invoice")
    for number, customer in enumerate(("C-1", "C-2", "C-1"))
]
ARRIVALS = [
    Arrival(uuid.UUID(int=number), order.customer, order.order_id) for number, order in enumerate(ORDERS_PLACED)
]


class KnowsTheOrders:
    """A shop in which these orders are all there are."""

    requests: Any

    def __init__(self) -> None:
        self.requests = self

    def send(self, request: Any) -> list[str]:
        return sorted(request.order_ids - {order.order_id for order in ORDERS_PLACED})


@pytest.mark.parametrize(
    ("arrivals", "in_hand", "wrong"),
    [
        (ARRIVALS, (), []),
        ([ARRIVALS[1], *ARRIVALS[::2]], (), []),
        ([*ARRIVALS, ARRIVALS[0]], ARRIVALS[:1], []),
        ([ARRIVALS[0], *ARRIVALS], (), [f"{ARRIVALS[0].event_id} was sent again"]),
        (ARRIVALS[1:], (), ["W-0 is missing"]),
        ([*ARRIVALS, Arrival(uuid.UUID(int=9), "C-1", "W-9")], (), ["W-9 is no order"]),
        (ARRIVALS[::-1], (), ["C-1: W-2, W-0"]),
    ],
    ids=["all", "customers among each other", "in hand", "twice", "missing", "no order", "order"],
)
def test_delivery_is_checked(arrivals: list[Arrival], in_hand: list[Arrival], wrong: list[str]) -> None:
    """Each thing that can be wrong is found, and named."""
    shop: Any = KnowsTheOrders()
    delivery = Delivery(shop, ORDERS_PLACED, arrivals, {arrival.event_id for arrival in in_hand})
    found = delivery.missing() + delivery.without_order() + delivery.repeated() + delivery.out_of_order()
    assert found == wrong


class TestJournalBroker(MessageBrokerContract):
    """The broker of the demo does what every broker does."""

    @pytest.fixture(autouse=True)
    def open(self, tmp_path: Path) -> Iterator[None]:
        self.broker = JournalBroker(tmp_path / "journal.jsonl")
        with self.broker:
            yield

    def make(self) -> MessageBroker:
        return self.broker

    def test_half_a_line_of_a_killed_process_is_cut_off(self, tmp_path: Path) -> None:
        """It was not acknowledged, so it will come again; the lines behind it are whole."""
        path = tmp_path / "torn.jsonl"
        event = {"event_name": "order_placed", "payload": {"order_id": "W-1"}}
        line = json.dumps({"id": str(uuid.UUID(int=1)), "key": "C-1", "event": event})
        path.write_text(f"{line}\n{line[:20]}", encoding="utf-8")
        whole = [Arrival(uuid.UUID(int=1), "C-1", "W-1")]
        assert Journal(path).arrivals() == whole
        with JournalBroker(path):
            assert path.read_text(encoding="utf-8") == f"{line}\n"


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    """Both show the counts at the end."""
    confirmation = OrderConfirmation(order_id="W-1", customer="C-1", total=1, paid_by="invoice")
    lines = [ImportedLine(number=number, confirmation=confirmation) for number in range(1, 42)]
    for terminal, shown in ((True, "41/41"), (False, "line 40 of 41: 40 accepted, 0 rejected")):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        assert follow(console, lines, 41).accepted == 41
        assert shown in console.file.getvalue()  # type: ignore[attr-defined]


def test_demo_fails_when_the_read_model_is_wrong(tmp_path: Path) -> None:
    """A check that does not hold is named, and is the exit code."""
    database = tmp_path / "shop.sqlite3"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert program.main(["--database", str(database)]) == 0
        engine = create_engine(f"sqlite:///{database}")
        with engine.begin() as connection:
            connection.execute(text("UPDATE product_sales SET revenue = revenue + 1 WHERE product = 'KETTLE'"))
        engine.dispose()
        assert program.main(["--database", str(database)]) == 1
    assert "read model agrees with the orders: no" in output.getvalue()
    assert output.getvalue().count("what was killed was recovered: yes") == 2  # each run ships other orders


def test_text_of_a_line_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in a bad line are no markup for the terminal."""
    line = json.loads(LINES[0]) | {"product": "[/red]"}
    orders = tmp_path / "orders.jsonl"
    orders.write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert program.main(["--orders", str(orders)]) == 0
    assert "[/red] is not in the catalogue" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--orders", "--database"])
def test_wrong_path_is_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that cannot be used ends with the usage, not with a traceback."""
    with pytest.raises(SystemExit) as ended:
        program.main([option, str(tmp_path / "missing" / "file")])
    assert ended.value.code == 2
    assert "is not a" in capsys.readouterr().err
