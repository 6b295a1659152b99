"""What a benchmark found, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Times

REPORTED_VERSIONS = (
    *("pydantic", "punq", "SQLAlchemy", "psycopg2-binary", "kafka-python", "confluent-kafka"),
    *("python-cqrs", "asyncpg", "dbos", "psycopg", "mediatr", "buz", "pymediate"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure and what was promised about it.

    Attributes:
        name: what was measured.
        seconds: how long it took, the median.
        figure: what the bound is about, in ``unit``: most often a ratio.
        at_most: the bound, where the figure must not be greater.
        at_least: the bound, where it must not be less.
        note: what the reader must know.
    """

    name: str
    seconds: float | None = None
    figure: float | None = None
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None where there is none, or nothing was measured."""
        if self.figure is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or self.figure <= self.at_most) and (
            self.at_least is None or self.figure >= self.at_least
        )

    @property
    def bound(self) -> str:
        """The bound in words."""
        limits = (("at most", self.at_most), ("at least", self.at_least))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


@dataclass(frozen=True)
class Section:
    """The rows of one subject."""

    title: str
    rows: Sequence[Row]
    caption: str = ""


def compared(
    times: Times, name: str, to: str, unit: str, *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """The row of one contestant with how many times as long as another one it takes."""
    return Row(
        name=name,
        seconds=times.median(name),
        figure=times.ratio(name, to),
        unit=unit,
        at_most=at_most,
        at_least=at_least,
    )


def missing(reasons: Mapping[str, str]) -> list[Row]:
    """The rows of what was not measured."""
    return [Row(name=name, note=reason) for name, reason in reasons.items()]


def print_section(console: Console, section: Section) -> None:
    """Print a section as a table."""
    table = Table(title=section.title, caption=section.caption or None, title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("compared", justify="right", no_wrap=True)
    table.add_column("bound", no_wrap=True)
    table.add_column("")
    for row in section.rows:
        table.add_row(row.name, duration(row.seconds), _figure(row), row.bound, _verdict(row))
    console.print(table)


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return ""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{seconds:.2f} s"


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": {name: version for name in REPORTED_VERSIONS if (version := _version(name))},
    }


def write_json(path: Path, sections: Mapping[str, Sequence[Section]]) -> None:
    """Write everything as JSON."""
    found = {
        "environment": environment(),
        "results": {
            suite: [
                {
                    "title": section.title,
                    "rows": [dataclasses.asdict(row) | {"holds": row.holds} for row in section.rows],
                }
                for section in suite_sections
            ]
            for suite, suite_sections in sections.items()
        },
    }
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _figure(row: Row) -> str:
    return "" if row.figure is None else f"{_digits(row.figure)}{row.unit}"


def _verdict(row: Row) -> str:
    verdict = {None: "", True: "[green]ok[/]", False: "[bold red]broken[/]"}[row.holds]
    return " ".join(part for part in (verdict, row.note) if part)


def _digits(number: float) -> str:
    """Three significant digits, more where they stand before the point."""
    decimals = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:,.{decimals}f}"
