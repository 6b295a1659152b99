"""Compression gives back what it was given, and refuses what it did not write."""

import pytest

from cqrs_sync.compressors import Compressor, ZlibCompressor
from cqrs_sync.errors import ConfigurationError

TEXT = b'{"order_id": "o1"}' * 100


@pytest.mark.parametrize("level", range(-1, 10))
@pytest.mark.parametrize("content", [b"", b"\x00", TEXT])
def test_content_comes_back_at_every_level(level: int, content: bytes) -> None:
    compressor: Compressor = ZlibCompressor(level=level)
    assert ZlibCompressor().decompress(compressor.compress(content)) == content


def test_higher_level_is_not_larger() -> None:
    stored, smallest = (len(ZlibCompressor(level).compress(TEXT)) for level in (0, 9))
    assert smallest < stored


@pytest.mark.parametrize("level", [-2, 10])
def test_unknown_level_is_refused(level: int) -> None:
    with pytest.raises(ConfigurationError, match=str(level)):
        ZlibCompressor(level)


@pytest.mark.parametrize(
    "damaged",
    [b"", TEXT, ZlibCompressor().compress(TEXT)[:-1], ZlibCompressor().compress(TEXT) + b"tail"],
    ids=["empty", "plain", "cut short", "with a tail"],
)
def test_anything_but_one_whole_stream_is_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="not a zlib stream"):
        ZlibCompressor().decompress(damaged)
