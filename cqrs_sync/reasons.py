"""Errors as they are stored, with an event that could not be published or a saga that could not go on."""

from __future__ import annotations

MAX_REASON = 2000
"""How many characters of an error are kept."""


def storable(reason: str) -> str:
    """Return a reason in ASCII, which every database takes, whatever its encoding: not to store it would be the end."""
    return reason[:MAX_REASON].replace("\0", "").encode("ascii", "backslashreplace").decode()


def reason_of(error: BaseException) -> str:
    """Return what is stored of an error.

    >>> reason_of(ValueError("no answer"))
    'ValueError: no answer'
    """
    return storable(f"{type(error).__name__}: {error}")


def joined(*reasons: str | None) -> str:
    """Return several reasons as one, the later ones behind; where they are too long, the last characters of them."""
    return "; ".join(filter(None, reasons))[-MAX_REASON:]
