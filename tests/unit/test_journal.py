"""The journal of the tests that kill processes: half an entry spoils no other."""

from __future__ import annotations

import os
from pathlib import Path

from tests import journal


def test_half_an_entry_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert journal.entries(path) == []
    file = journal.append_to(path)
    journal.note(file, number=1)
    os.write(file, b'\n{"number": 2, "words": "kill')
    assert journal.entries(path) == [{"number": 1}]
    journal.note(file, number=3)
    os.close(file)
    assert journal.entries(path) == [{"number": 1}, {"number": 3}]
