"""Compression with the standard library."""

from __future__ import annotations

import zlib

from cqrs_sync.errors import ConfigurationError


class ZlibCompressor:
    """Deflates at a level from 0 (stored as is) to 9 (smallest); -1 is zlib's own choice, today 6.

    The level matters to the writer only: every level is read by every other. Payloads below some 100 bytes
    grow rather than shrink.
    """

    name = "zlib"

    def __init__(self, level: int = -1) -> None:
        if not -1 <= level <= 9:
            raise ConfigurationError(f"zlib has the levels -1 to 9, not {level}")
        self._level = level

    def compress(self, value: bytes) -> bytes:
        """Return the zlib stream of ``value``."""
        return zlib.compress(value, self._level)

    def decompress(self, value: bytes) -> bytes:
        """Return the content of a zlib stream; raises ``ValueError`` if it is none, is cut short or has a tail."""
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(value) + inflater.flush()
        except zlib.error as error:
            raise ValueError(f"not a zlib stream: {error}") from error
        # zlib.decompress() ignores what follows the stream: a row written twice over would pass for a good one.
        if not inflater.eof or inflater.unused_data:
            raise ValueError("not a zlib stream: it is cut short or something follows it")
        return content
