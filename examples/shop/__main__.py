"""Imports a file of orders and shows what became of it: ``python -m examples.shop``."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from examples.shop.application import Shop, build
from examples.shop.messages import AuditReadModel, ImportOrders
from examples.shop.report import follow, show_check, show_outcome, show_sales

ORDERS = Path(__file__).with_name("orders.jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 if all its checks hold."""
    options = _options(arguments)
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with tempfile.TemporaryDirectory() as directory:
        database = options.database or Path(directory) / "shop.sqlite3"
        # What stands in the lines of the file is shown as it is.
        console = Console(markup=False, highlight=False)
        with build(database) as shop:
            return 0 if import_and_report(shop, options.orders, console) else 1


def import_and_report(shop: Shop, orders: Path, console: Console) -> bool:
    """Import the orders and show the result; returns whether all checks hold."""
    with orders.open(encoding="utf-8") as file:
        total = sum(1 for _ in file)
    before = shop.requests.send(AuditReadModel())
    with closing(shop.streams.stream(ImportOrders(path=orders))) as lines:
        summary = follow(console, lines, total)
    after = shop.requests.send(AuditReadModel())

    show_sales(console, shop)
    show_outcome(console, summary)
    missing = before.orders + summary.accepted - after.orders
    unanswered = total - summary.accepted - summary.refused
    checks = [
        show_check(console, "every line was answered", [f"{unanswered} were not"] if unanswered else []),
        show_check(console, "every accepted order is stored", [f"{missing} are missing"] if missing else []),
        show_check(console, "read model agrees with the orders", after.differences),
    ]
    return all(checks)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop", description="The order desk of a small web shop.")
    parser.add_argument("--orders", type=Path, default=ORDERS, help="JSON Lines to import (default: those it ships)")
    parser.add_argument("--database", type=Path, help="SQLite file to keep (default: a temporary one)")
    parser.add_argument("--verbose", action="store_true", help="show the log, such as fallbacks that take over")
    options = parser.parse_args(arguments)
    if not options.orders.is_file():
        parser.error(f"{options.orders} is not a file")
    if options.database and not options.database.parent.is_dir():
        parser.error(f"{options.database.parent} is not a directory")
    return options


if __name__ == "__main__":
    sys.exit(main())
