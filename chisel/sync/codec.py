"""Decompress what a droplet compressed: zstd where Python has it, of its own or by the backport, else zlib.

The backport is the standard library's own module (PEP 784) for Pythons before 3.14.
"""

from __future__ import annotations

import sys
from typing import Any

from chisel.node import tree

CODECS = ("zstd", "zlib", "none")


def open_unpacker(codec: str) -> tree.Unpacker:
    """Return what reads a stream of that codec; raises DamagedStream for one that is not known."""
    if codec == "zstd":
        return ZstdUnpacker()
    if codec == "zlib":
        return tree.ZlibUnpacker()
    if codec == "none":
        return PlainUnpacker()
    raise tree.DamagedStream(f"`{codec[:40]}` is no codec")


class PlainUnpacker:
    """Pass a stream that is not compressed."""

    is_at_end = True
    is_overfull = False

    def __init__(self) -> None:
        self._rest = b""

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return bool(self._rest)

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes` of it."""
        whole = self._rest + data
        self._rest = whole[max_bytes:]
        return whole[:max_bytes]


class ZstdUnpacker:
    """Decompress one zstd frame."""

    def __init__(self) -> None:
        zstd = _zstd()
        self._error: type[Exception] = zstd.ZstdError
        self._unpacker = zstd.ZstdDecompressor()

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return not self._unpacker.eof and not self._unpacker.needs_input

    @property
    def is_at_end(self) -> bool:
        """Say whether the stream is complete."""
        return bool(self._unpacker.eof)

    @property
    def is_overfull(self) -> bool:
        """Say whether something came after its end."""
        return bool(self._unpacker.unused_data)

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes` of content; raises DamagedStream."""
        try:
            return bytes(self._unpacker.decompress(data, max_bytes))
        except (self._error, EOFError) as error:
            raise tree.DamagedStream("the stream is damaged") from error


def _zstd() -> Any:
    """Return the module, loaded when a stream needs it: it takes 5 ms."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
