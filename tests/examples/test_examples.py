"""Every example runs as a user runs it, without a warning, and says what it is there to show."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_pages import KAFKA_PYTHON
from tests.kafka import Kafka

ROOT = Path(__file__).parents[2]

ESSENTIALS = {
    "hello": ["created user_ada@example.com"],
    "domain_events": [": mail about o-1", ": packing o-1", "cqrs-events_", "MainThread: done"],
    "streaming": ["1 of 2: a.txt", "2 of 2: b.txt", "scanner closed", "only the first: c.txt\nscanner closed"],
    "chain": ["approved by the team lead", "approved by the manager", "80000 € is refused", "sequenceDiagram"],
    "unit_of_work": ["Brian was not added: the mail server is down", "users: Ada\n"],
    "middleware": ["attempt 1 failed", "attempt 2 failed", "the rate is 1.08"],
    "flask_app": ["200 {'text': 'hello Ada'}"],
    "flask_outbox": ["welcome Ada", "published: Ada"],
    "outbox": ["o-1 was placed before", "published: o-1 o-2\n"],
    "outbox_kafka": ["skipped: this example needs a Kafka, python examples/outbox_kafka.py localhost:9092\n"],
    "saga": [
        "o-1 is completed",
        "o-2: undo Charge\no-2: undo Reserve\no-2 is failed",
        "o-3: Charge\nthe process of o-3 was killed, and this one goes on\no-3: Ship\n",
    ],
    "shop": [
        "320 of 320: ",
        "relay killed ",
        "relay started again ",
        "credit limit exceeded",
        "every line was answered: yes",
        "agrees with the orders: yes",
        "event of every accepted order has arrived: yes",
        "arrived in order: yes",
        "dispatcher killed: ",
        "W-2004 taken on by a recovery worker: completed",
        "failed: Refused: ",
        "undo Charge ",
        "  taken on  ",
        "every saga has ended: yes",
        "nothing was both refunded and shipped: yes",
        "what was killed was recovered: yes",
    ],
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "KAFKA"},
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def test_every_example_has_its_essentials() -> None:
    """An example that is added is tested too."""
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "examples").glob("*/__main__.py")}
    assert scripts | packages == set(ESSENTIALS)


@pytest.mark.parametrize("name", ESSENTIALS)
def test_example_shows_what_it_promises(name: str) -> None:
    """It ends well, warns of nothing and prints its essential lines."""
    if name.startswith("flask_") and importlib.util.find_spec("flask") is None:
        pytest.skip("Flask is not installed")
    arguments = ("-m", f"examples.{name}") if (ROOT / "examples" / name).is_dir() else (f"examples/{name}.py",)
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    for essential in ESSENTIALS[name]:
        assert essential in ended.stdout


@pytest.mark.parametrize("name", ["flask_app", "flask_outbox"])
def test_flask_example_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    """Without Flask it ends with one line and no traceback."""
    (tmp_path / "flask.py").write_text("raise ImportError('no Flask here')", encoding="utf-8")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path('examples/{name}.py')"
    ended = run("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "skipped: this example needs Flask, pip install flask\n"


def test_shop_says_what_it_lacks(tmp_path: Path) -> None:
    """Without rich it ends with one line and no traceback, when it is asked for help too."""
    (tmp_path / "rich.py").write_text("raise ImportError('no rich here')", encoding="utf-8")
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv.append('--help'); "
        "runpy.run_module('examples.shop', run_name='__main__')"
    )
    ended = run("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "skipped: this example needs rich, pip install rich\n"


def test_kafka_example_publishes_to_a_real_kafka(kafka: Kafka) -> None:
    """Given an address, it sends and says so."""
    ended = run(*KAFKA_PYTHON, "examples/outbox_kafka.py", kafka.address)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "Kafka took 3 events into the topic 'orders'\n"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short_enough_to_copy(path: Path) -> None:
    """A page at most."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 70
