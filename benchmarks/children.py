"""Processes that take part in a measurement: each says when it is ready, and waits for its word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a module as a program; it must have ended, or end at once, when the block does."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def tell(process: subprocess.Popen[str], word: str) -> None:
    """Write a line that it waits for."""
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str], word: str) -> None:
    """Wait for a line.

    Raises:
        RuntimeError: it says something else, or has ended.
    """
    assert process.stdout is not None
    if (said := process.stdout.readline().strip()) != word:
        raise RuntimeError(f"a process said {said!r} and not {word!r}: its exit code is {process.wait(10)}")
