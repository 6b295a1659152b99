"""Says on standard error what is being measured, where that takes a while."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Replace the line that was said before; on anything but a terminal, say another one."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
    else:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def done() -> None:
    """Take the line away."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
