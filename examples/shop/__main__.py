"""Imports orders and ships some, while processes are killed, and shows the result: ``python -m examples.shop``."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

try:
    from rich.console import Console
except ImportError:
    print("skipped: this example needs rich, pip install rich")
    sys.exit()

from examples.shop.application import Shop, build
from examples.shop.delivery import Delivery, RelayProcess
from examples.shop.dispatch import Dispatch, dispatch
from examples.shop.history import show_sagas
from examples.shop.messages import AuditReadModel, ImportOrders
from examples.shop.report import follow, show_check, show_events, show_outcome, show_sales
from examples.shop.topics import Arrival, Topic, has_kafka_client, open_topic

ORDERS = Path(__file__).with_name("orders.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 if all its checks hold."""
    options = _options(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with tempfile.TemporaryDirectory() as directory:
        database = options.database or str(Path(directory, "shop.sqlite3"))
        # What stands in the lines of the file is shown as it is.
        console = Console(markup=False, highlight=False)
        with build(database) as shop, open_topic(options.kafka, Path(directory)) as topic:
            console.print(f"events go to {topic.name}")
            return 0 if import_and_report(shop, options.orders, database, topic, console) else 1


def import_and_report(shop: Shop, orders: Path, database: str, topic: Topic, console: Console) -> bool:
    """Import the orders, ship some, have it announced, and show the result; returns whether all checks hold."""
    with orders.open(encoding="utf-8") as file:
        total = sum(1 for _ in file)
    before = shop.requests.send(AuditReadModel())
    with RelayProcess(shop, topic, database, console, killed_after=total // 3) as relay:
        with closing(shop.streams.stream(ImportOrders(path=orders))) as lines:
            summary = follow(console, relay.beside(lines), total)
        dispatched = dispatch(shop, database, console)
        waiting = relay.finish()
    after = shop.requests.send(AuditReadModel())
    arrivals = topic.arrivals()
    delivery = Delivery(shop, summary.placed, arrivals, relay.in_hand)

    show_sales(console, shop)
    show_outcome(console, summary)
    show_sagas(console, dispatched)
    show_events(console, len(arrivals), len(relay.in_hand), len(delivery.twice))
    missing = before.orders + summary.accepted - after.orders
    unanswered = total - summary.accepted - summary.refused
    checks = [
        show_check(console, "every line was answered", [f"{unanswered} were not"] if unanswered else []),
        show_check(console, "every accepted order is stored", [f"{missing} are missing"] if missing else []),
        show_check(console, "read model agrees with the orders", after.differences),
        show_check(console, "outbox is empty", [f"{waiting} events wait"] if waiting else []),
        show_check(console, "event of every accepted order has arrived", delivery.missing()),
        show_check(console, "every event has its order", delivery.without_order()),
        show_check(console, "only what was in hand at the kill arrived twice", delivery.repeated()),
        show_check(console, "events of each customer arrived in order", delivery.out_of_order()),
    ]
    return all(checks + check_sagas(dispatched, arrivals, console))


def check_sagas(dispatched: Dispatch, arrivals: Sequence[Arrival], console: Console) -> list[bool]:
    """Show what holds of the sagas."""
    return [
        show_check(console, "every saga has ended", dispatched.not_ended()),
        show_check(console, "every order was shipped, or all was undone", dispatched.in_part()),
        show_check(console, "nothing was both refunded and shipped", dispatched.refunded_and_shipped()),
        show_check(console, "nothing was done twice", dispatched.repeated()),
        show_check(console, "what was killed was recovered", dispatched.not_recovered()),
        show_check(
            console, "shipped orders were announced, failed ones were not", dispatched.wrongly_announced(arrivals)
        ),
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description="The order desk of a small web shop.")
    parser.add_argument("--orders", type=Path, default=ORDERS, help="JSON Lines to import (default: those it ships)")
    parser.add_argument(
        "--database", help="SQLite file to keep (default: a temporary one), or a URL: postgresql://shop@localhost/shop"
    )
    parser.add_argument("--kafka", metavar="HOST:PORT", help="publish to this Kafka (default: one that the demo plays)")
    parser.add_argument("--verbose", action="store_true", help="show the log, such as fallbacks that take over")
    options = parser.parse_args(arguments)
    if not options.orders.is_file():
        parser.error(f"{options.orders} is not a file")
    if options.database and "://" not in options.database and not Path(options.database).parent.is_dir():
        parser.error(f"{Path(options.database).parent} is not a directory")
    if options.kafka and not has_kafka_client():
        parser.error("--kafka needs confluent-kafka: pip install confluent-kafka")
    return options


if __name__ == "__main__":
    sys.exit(main())
