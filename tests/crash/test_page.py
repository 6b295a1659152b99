"""The page about the kit is a test file that works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.examples.test_pages import ROOT, program

PAGE = ROOT / "docs" / "crash-kit.md"


def test_the_page_is_a_test_file_in_a_project_of_its_own(tmp_path: Path) -> None:
    """With the fixture as users get it, and the report as the page shows it."""
    (tmp_path / "test_orders.py").write_text(program(PAGE), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    assert "2 passed" in result.stdout
    shown = re.search(r"^```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] in result.stdout
