"""What ``import cqrs_sync`` costs beyond pydantic, in fresh interpreters."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import Row, Section
from benchmarks.timing import Effort, Run, Times, race

ROOT = Path(__file__).resolve().parent.parent
OURS = "import cqrs_sync"
PYDANTIC = "import pydantic"
MODEL = "import pydantic; pydantic.create_model('Model', field=int)"
TIMED = "from time import perf_counter; started = perf_counter(); {statement}; print(perf_counter() - started)"
IMPORT_TIME = re.compile(r"import time:\s+(?P<own>\d+) \|\s+\d+ \|\s+(?P<module>\S+)")
COSTLIEST = 5

MARK = "from here on cqrs_sync"


def measure(effort: Effort) -> Iterator[Section]:
    """The sections of this subject."""
    times = race({name: _timed(name) for name in (PYDANTIC, MODEL, OURS)}, rounds=effort.processes, slice=0)
    yield Section(
        "import",
        [
            Row(name=PYDANTIC, seconds=times.median(PYDANTIC)),
            Row(name=MODEL, seconds=times.median(MODEL)),
            _more(times, PYDANTIC, "ms more than pydantic"),
            _more(times, MODEL, "ms more than with a model"),
        ],
        "pydantic loads most of itself when the first model is defined; cqrs_sync defines its own when they are used.",
    )
    yield Section(
        f"the {COSTLIEST} costliest modules beyond pydantic with a model, each without what it imports",
        [Row(name=module, seconds=seconds) for module, seconds in _costliest(effort.processes)],
    )


def _more(times: Times, than: str, unit: str) -> Row:
    more = times.added(OURS, than)
    return Row(name=OURS, seconds=times.median(OURS), figure=more * 1000, unit=f" {unit}", at_most=40)


def _timed(statement: str) -> Run:
    def run(number: int) -> float:
        return sum(float(_python("-c", TIMED.format(statement=statement)).stdout) for _ in range(number))

    return run


def _costliest(processes: int) -> list[tuple[str, float]]:
    """The modules with the greatest medians of their own import time."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(processes):
        report = _python(
            "-X", "importtime", "-c", f"{MODEL}; import sys; print({MARK!r}, file=sys.stderr); {OURS}"
        ).stderr
        for line in IMPORT_TIME.finditer(report, report.index(MARK)):
            found[line["module"]].append(float(line["own"]) / 1e6)
    medians = {module: statistics.median(seconds) for module, seconds in found.items()}
    return sorted(medians.items(), key=lambda item: item[1], reverse=True)[:COSTLIEST]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Compiled modules are kept, as they are where a package is installed; the first run, not counted, writes them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
