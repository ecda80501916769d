"""Compress for droplets, and decompress what they compressed: zstd where Python has it, else lzma or zlib.

zstd is of Python's own (3.14) or by the backport, the standard library's own module (PEP 784) for older Pythons.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Collection
from typing import Any, Protocol

from chisel.node import tree

CODECS = ("zstd", "zlib", "none")
WINDOW_LOG = 26
"""64 MiB on both sides: larger windows gain less than they cost in memory."""

_SLOW_BYTES_PER_S, _FAST_BYTES_PER_S = 6e6, 40e6
_LZMA_DICTIONARY = 64 << 20
SMALL_BYTES = 1 << 20
"""So much goes by zlib: it is not worth loading zstd for, here and there."""
_LARGE_BYTES = 24 << 20
_SAMPLE, _SAMPLES = 16 << 10, 3
_HOPELESS = 0.96


class Packer(Protocol):
    """Compress one stream piece by piece."""

    def compress(self, data: bytes) -> bytes:
        """Take a piece of the stream and return what is compressed by now, often nothing."""

    def part(self) -> bytes:
        """Return what has been taken so far, so that the other end can begin with it; costs some compression."""

    def flush(self) -> bytes:
        """Return the end of the stream."""


def choose_codec(offered: Collection[str], bytes_per_s: float, size: int) -> str:
    """Return the best codec that a droplet offers for `size` bytes over a link of that speed (0: not known).

    Changed blocks of large files count nothing: their order of work is more than their bytes, and a droplet whose zstd
    is a program gets nothing of them before 128 KiB have come.
    """
    if size <= SMALL_BYTES:
        return "zlib"
    if "zstd" in offered:
        return "zstd"
    if "lzma" in offered and bytes_per_s < _SLOW_BYTES_PER_S * 2:
        return "lzma"
    return "zlib"


def open_packer(codec: str, bytes_per_s: float = 0.0, size: int = 1 << 30) -> Packer:
    """Return what compresses a stream of about `size` bytes: the harder, the slower the link is (0: not known, slow).

    A generated tree like a kernel checkout (154 MB) becomes 13.1 MB by zstd's level 3 (0.35 s), 12.8 MB by level 6
    (0.6 s) and by level 9 (1.4 s), on one core, with a window of 64 MiB.
    """
    if codec == "zstd":
        return ZstdPacker(6 if bytes_per_s < _SLOW_BYTES_PER_S else 5 if bytes_per_s < _FAST_BYTES_PER_S else 3, size)
    if codec == "lzma":
        return LzmaPacker()
    is_slow = bytes_per_s < _SLOW_BYTES_PER_S if bytes_per_s else size < _LARGE_BYTES
    return ZlibPacker(6 if is_slow else 1)


class ZstdPacker:
    """Compress into one zstd frame, with a window over all that is worth it."""

    def __init__(self, level: int, size: int) -> None:
        self._zstd = zstd = _zstd()
        parameter, is_large = zstd.CompressionParameter, size >= _LARGE_BYTES
        options = {parameter.compression_level: level if is_large else min(level, 3), parameter.checksum_flag: 1}
        if is_large:
            options |= {parameter.window_log: WINDOW_LOG, parameter.enable_long_distance_matching: 1}
        self._packer = zstd.ZstdCompressor(options=options)

    def compress(self, data: bytes) -> bytes:
        """Take a piece of the stream."""
        return bytes(self._packer.compress(data))

    def part(self) -> bytes:
        """Return what has been taken so far."""
        return bytes(self._packer.flush(self._packer.FLUSH_BLOCK))

    def flush(self) -> bytes:
        """Return the end of the stream."""
        return bytes(self._packer.flush())


class LzmaPacker:
    """Compress into one xz stream."""

    def __init__(self) -> None:
        import lzma

        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": _LZMA_DICTIONARY}]
        self._packer = lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)

    def compress(self, data: bytes) -> bytes:
        """Take a piece of the stream."""
        return self._packer.compress(data)

    def part(self) -> bytes:
        """Return nothing: it gives only what it has done with."""
        return b""

    def flush(self) -> bytes:
        """Return the end of the stream."""
        return self._packer.flush()


class ZlibPacker:
    """Compress into one zlib stream."""

    def __init__(self, level: int) -> None:
        self._packer = zlib.compressobj(level)

    def compress(self, data: bytes) -> bytes:
        """Take a piece of the stream."""
        return self._packer.compress(data)

    def part(self) -> bytes:
        """Return what has been taken so far."""
        return self._packer.flush(zlib.Z_SYNC_FLUSH)

    def flush(self) -> bytes:
        """Return the end of the stream."""
        return self._packer.flush()


def is_hopeless(samples: Collection[bytes]) -> bool:
    """Say whether samples of a content show that it does not compress."""
    total = sum(map(len, samples))
    return total > 0 and sum(len(zlib.compress(one, 1)) for one in samples) > _HOPELESS * total


def sample_places(size: int) -> list[tuple[int, int]]:
    """Return the offsets and lengths to look at of a content of that size."""
    step = max(1, (size - _SAMPLE) // max(1, _SAMPLES - 1))
    return [(number * step, _SAMPLE) for number in range(_SAMPLES)]


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
