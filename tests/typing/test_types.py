"""mypy and pyright accept these files and the article's snippets, and refuse what they say is refused."""

from __future__ import annotations

import collections
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOT_CHECKED = {"conftest", "emit_to_kafka", "outbox_publisher", "saga"}

FILES = [
    *sorted(path for path in pathlib.Path(__file__).parent.glob("*.py") if path != pathlib.Path(__file__)),
    *sorted(path for path in (ROOT / "tests/examples/article").glob("*.py") if path.stem not in NOT_CHECKED),
]
"""What is checked; snippets that need names, or types, that the article leaves to the reader are not."""

Findings: TypeAlias = Mapping[pathlib.Path, list[str]]


def run(tool: str, *arguments: str) -> str:
    """What a tool prints, which is not there unless it could do its work; skips where it is not installed."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = [sys.executable, "-m", tool, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="session")
def mypy(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Findings:
    """What mypy reports for each file."""
    cache = getattr(pytestconfig, "cache", None)  # not there under -p no:cacheprovider
    cache_dir = cache.mkdir("mypy") if cache is not None else tmp_path_factory.mktemp("mypy")
    options = ["--strict", "--output=json", "--config-file=pyproject.toml", f"--cache-dir={cache_dir}"]
    found: Findings = collections.defaultdict(list)
    for line in run("mypy", *options, *map(str, FILES)).splitlines():
        report = json.loads(line) if line.startswith("{") else {"severity": "note"}
        if report["severity"] == "error":
            text = f"{report['line']}: {report['message']} [{report['code']}]"
            found[(ROOT / report["file"]).resolve()].append(text)
    return found


@pytest.fixture(scope="session")
def pyright() -> Findings:
    """What pyright reports for each file, by its standard rules or those the file asks for."""
    result = json.loads(run("pyright", "--outputjson", f"--pythonpath={sys.executable}", *map(str, FILES)))
    assert result["summary"]["filesAnalyzed"] == len(FILES)
    found: Findings = collections.defaultdict(list)
    for report in result["generalDiagnostics"]:
        line = report["range"]["start"]["line"] + 1
        text = f"{line}: {report['message']} [{report.get('rule')}]"
        found[pathlib.Path(report["file"]).resolve()].append(text)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tool", ["mypy", "pyright"])
def test_type_checker_reports_nothing(tool: str, path: pathlib.Path, request: pytest.FixtureRequest) -> None:
    """Every expression has the stated type, and every ``ignore`` comment is needed."""
    findings: Findings = request.getfixturevalue(tool)
    assert findings[path.resolve()] == []


@pytest.fixture
def broken(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file with an error in it."""
    path = tmp_path / "broken.py"
    path.write_text('answer: int = "text"\n')
    return path


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("mypy", lambda path: ["--output=json", f"--cache-dir={path.parent}", str(path)]),
        ("pyright", lambda path: ["--outputjson", str(path)]),
    ],
)
def test_type_checker_would_report_something(
    tool: str, arguments: Callable[[pathlib.Path], list[str]], broken: pathlib.Path
) -> None:
    """Silence means that all is well, not that the tool did not run."""
    assert "broken.py" in run(tool, *arguments(broken))
