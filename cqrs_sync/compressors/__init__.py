"""Compression of payloads at rest."""

from cqrs_sync.compressors.protocol import Compressor
from cqrs_sync.compressors.zlib import ZlibCompressor

__all__ = ("Compressor", "ZlibCompressor")
