"""What the demo shows on the terminal."""

import dataclasses
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.shop.application import Shop
from examples.shop.messages import (
    GetBestSellers,
    GetCustomerOrders,
    GetPaymentTotals,
    GetTopCustomers,
    ImportedLine,
    OrderConfirmation,
    Rejection,
)

PLAIN_STEP = 40
"""A line of plain progress stands for this many lines of the file."""


@dataclasses.dataclass
class ImportSummary:
    """What became of the lines so far.

    Attributes:
        placed: the orders that were accepted, in order.
        rejected: for each reason, the numbers of the lines.
        examples: for each reason, its first rejection.
    """

    placed: list[OrderConfirmation] = dataclasses.field(default_factory=list)
    rejected: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    examples: dict[str, Rejection] = dataclasses.field(default_factory=dict)

    @property
    def accepted(self) -> int:
        return len(self.placed)

    @property
    def refused(self) -> int:
        return sum(map(len, self.rejected.values()))

    def count(self, line: ImportedLine) -> None:
        """Add a line."""
        if line.confirmation is not None:
            self.placed.append(line.confirmation)
        if line.rejection is not None:
            self.rejected.setdefault(line.rejection.reason, []).append(line.number)
            self.examples.setdefault(line.rejection.reason, line.rejection)

    def __str__(self) -> str:
        return f"{self.accepted} accepted, {self.refused} rejected"


def follow(console: Console, lines: Iterable[ImportedLine], total: int) -> ImportSummary:
    """Show the import's progress while it goes on: a bar on a terminal, else a line of text now and then."""
    summary = ImportSummary()
    if not console.is_terminal:
        for line in lines:
            summary.count(line)
            if line.number % PLAIN_STEP == 0 or line.number == total:
                console.print(f"line {line.number} of {total}: {summary}")
        return summary
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=total)
        for line in lines:
            summary.count(line)
            progress.update(task, advance=1, description=str(summary))
    return summary


def show_sales(console: Console, shop: Shop) -> None:
    """Show what the read model and the orders answer."""
    payments = make_table("Payments", "way", "#orders", "#amount")
    for way in shop.requests.send(GetPaymentTotals()):
        payments.add_row(way.paid_by, str(way.orders), money(way.amount))
    console.print(payments)

    best_sellers = make_table("Best sellers", "product", "#sold", "#revenue")
    for product in shop.requests.send(GetBestSellers(limit=5)):
        best_sellers.add_row(product.product, str(product.quantity), money(product.revenue))
    console.print(best_sellers)

    for customer in shop.requests.send(GetTopCustomers(limit=1)):
        title = f"Best customer: {customer.name}, {money(customer.spent)}"
        latest = make_table(title, "latest orders", "product", "#quantity", "#total")
        for order in shop.requests.send(GetCustomerOrders(customer=customer.customer, limit=5)):
            latest.add_row(order.order_id, order.product, str(order.quantity), money(order.total))
        console.print(latest)


def show_outcome(console: Console, summary: ImportSummary) -> None:
    """Show how many lines were accepted, how many rejected, and why."""
    outcome = make_table("Order lines", "outcome", "#lines", "the first of them")
    outcome.add_row("accepted", str(summary.accepted))
    outcome.add_row("rejected", str(summary.refused), end_section=True)
    for reason, numbers in sorted(summary.rejected.items(), key=lambda item: -len(item[1])):
        outcome.add_row(reason, str(len(numbers)), f"line {numbers[0]}: {summary.examples[reason].detail}")
    console.print(outcome)


def show_events(console: Console, arrivals: int, in_hand: int, twice: int) -> None:
    """Show how many events the broker has, and what the killed relay has to do with it."""
    events = make_table("Events at the broker", "", "#events")
    events.add_row("arrived", str(arrivals), end_section=True)
    events.add_row("in the killed relay's hands", str(in_hand))
    events.add_row("arrived twice", str(twice))
    console.print(events)


def show_check(console: Console, claim: str, differences: list[str]) -> bool:
    """Show whether a claim holds, and what speaks against it; returns whether it holds."""
    console.print(f"{claim}: {'no' if differences else 'yes'}", style="red" if differences else "green")
    for difference in differences:
        console.print(f"  {difference}")
    return not differences


def money(cents: int) -> str:
    """Write an amount as people read it."""
    return f"{cents / 100:,.2f} €"


def make_table(title: str, *columns: str) -> Table:
    """Make an empty table; a column whose name begins with # holds numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        numbers = column.startswith("#")
        table.add_column(column.removeprefix("#"), justify="right" if numbers else "left", no_wrap=numbers)
    return table
