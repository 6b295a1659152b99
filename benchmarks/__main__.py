"""Measures and prints: ``python -m benchmarks [SUITE]...``, by default all."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import (
    events,
    imports,
    outbox,
    outbox_add,
    outbox_kafka,
    outbox_latency,
    progress,
    saga_recovery,
    sagas,
    send,
    servers,
    unit_of_work,
)
from benchmarks.report import Section, environment, print_section, write_json
from benchmarks.timing import Effort

SUITES = {
    "send": send.measure,
    "events": events.measure,
    "pool": events.measure_pool,
    "import": imports.measure,
    "unit-of-work": unit_of_work.measure,
    "outbox": outbox.measure,
    "outbox-backlog": outbox.measure_backlog,
    "outbox-add": outbox_add.measure,
    "outbox-latency": outbox_latency.measure,
    "outbox-kafka": outbox_kafka.measure,
    "sagas": sagas.measure,
    "saga-memory": sagas.measure_memory,
    "saga-recovery": saga_recovery.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where ``--check`` was given and a bound is broken."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))} (there are {', '.join(SUITES)})")
    effort = _effort(options)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(_conditions())
    found: dict[str, list[Section]] = {}
    try:
        for suite in options.suites or SUITES:
            found[suite] = []
            for section in SUITES[suite](effort):
                progress.done()
                found[suite].append(section)
                console.print()
                print_section(console, section)
    finally:
        servers.stop()
    if options.json:
        write_json(options.json, found)
    broken = [
        row.name for sections in found.values() for section in sections for row in section.rows if row.holds is False
    ]
    if broken:
        console.print(f"\nbroken bounds: {'; '.join(broken)}", style="bold red")
    return 1 if broken and options.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=", ".join(SUITES))
    parser.add_argument("--check", action="store_true", help="fail when a bound is broken")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures mean nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds instead of those that suit each suite")
    return parser


def _effort(options: argparse.Namespace) -> Effort:
    effort = dataclasses.replace(Effort.quick() if options.quick else Effort(), peers=not options.no_peers)
    if options.rounds is None:
        return effort
    return dataclasses.replace(
        effort, rounds=options.rounds, slow_rounds=options.rounds, processes=options.rounds, drains=options.rounds
    )


def _conditions() -> str:
    found = environment()
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['python']}, {found['system']}, {found['processors']} processors; {versions}"


if __name__ == "__main__":
    sys.exit(main())
