"""The port behind which payloads shrink before they are stored."""

from __future__ import annotations

from typing import Protocol


class Compressor(Protocol):
    """Shrinks bytes and gives them back unchanged.

    One instance serves every thread at once, so it keeps no state between calls. An outbox stores with each row what
    compressed it: the attribute ``name`` where the compressor has one, else the name of its class; 16 characters at
    most.
    """

    def compress(self, value: bytes) -> bytes:
        """Return ``value`` in a form that :meth:`decompress` understands."""
        ...

    def decompress(self, value: bytes) -> bytes:
        """Return what was given to :meth:`compress`; raises ``ValueError`` for anything else."""
        ...
