"""Find what of a large file changed, from the checksums of its blocks: without asking anybody, in one pass.

Blocks are compared where they were (an edit in place), and, from the first difference on, also where they would be
had all of the growth happened there (an insertion or a deletion). Several insertions in one file cost what lies between
them. A CRC-32 that is equal by chance is found out by the hash of the whole, which the droplet checks.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

BLOCK = 1 << 16
LEAST_BYTES = 1 << 20
"""Smaller files are sent whole."""


class Sums:
    """Collect the checksum of every block of a file that is read from its start."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        view = memoryview(data)
        while view:
            piece = view[: BLOCK - self._filled]
            self._crc = zlib.crc32(piece, self._crc)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK:
                self._cut()

    def _cut(self) -> None:
        self._sums.append(self._crc)
        self._crc = self._filled = 0

    def packed(self) -> bytes:
        """Return the checksums, the last of a shorter block where the size is no multiple."""
        if self._filled:
            self._cut()
        return struct.pack(f"!{len(self._sums)}I", *self._sums)


def unpacked(sums: bytes) -> tuple[int, ...]:
    """Return checksums as numbers."""
    return struct.unpack(f"!{len(sums) // 4}I", sums[: len(sums) // 4 * 4])


class Difference:
    """Compare an open file of `size` bytes with what is known of its former content.

    After `pieces` are exhausted, `content` is the sha256 of what was read, `length` its bytes, `sums` its checksums.
    """

    def __init__(self, handle: int, size: int, old_sums: bytes, old_size: int) -> None:
        self._handle = handle
        self._size = size
        self._old = unpacked(old_sums)
        self._old_size = old_size
        self.content = hashlib.sha256()
        self.sums = Sums()
        self.length = 0

    def pieces(self) -> Iterator[bytes | tuple[int, int]]:
        """Give, in order, bytes to send and (offset, length) of what the former content holds."""
        shift, growth = 0, self._size - self._old_size
        start = length = 0
        while self.length < self._size:
            at = self.length
            number, aligned = divmod(at - shift, BLOCK)
            step = BLOCK if not aligned else BLOCK - aligned
            data = self._read(at, step)
            if not data:
                break
            if not aligned and self._is_old(number, data):
                if length and start + length != number * BLOCK:
                    yield (start, length)
                    length = 0
                start = start if length else number * BLOCK
                length += len(data)
                self._take(data)
                continue
            if length:
                yield (start, length)
                length = 0
            if shift != growth and (stop := self._met_again(at, growth)) is not None:
                shift = growth
                yield from self._literal(data, at, stop)
                continue
            self._take(data)
            yield data
        if length:
            yield (start, length)

    def _met_again(self, at: int, growth: int) -> int | None:
        """Return where the next old block begins if all the growth lies before it and it is there; None if not."""
        number = max(0, -((growth - at) // BLOCK))
        begin = number * BLOCK + growth
        if begin < at or number >= len(self._old):
            return None
        return begin if self._is_old(number, self._read(begin, BLOCK)) else None

    def _literal(self, data: bytes, at: int, stop: int) -> Iterator[bytes]:
        """Give what lies between two places; `data` has been read already."""
        while at < stop:
            piece = (data or self._read(at, min(BLOCK, stop - at)))[: stop - at]
            data = b""
            if not piece:
                return
            self._take(piece)
            at += len(piece)
            yield piece

    def _is_old(self, number: int, data: bytes) -> bool:
        if not 0 <= number < len(self._old) or len(data) != min(BLOCK, self._old_size - number * BLOCK):
            return False
        return zlib.crc32(data) == self._old[number]

    def _read(self, at: int, length: int) -> bytes:
        return os.pread(self._handle, length, at)

    def _take(self, data: bytes) -> None:
        self.content.update(data)
        self.sums.add(data)
        self.length += len(data)


def read_whole(pieces: Iterator[bytes]) -> tuple[Any, int, bytes]:
    """Return the sha256, the length and the checksums of what is read."""
    content, sums, length = hashlib.sha256(), Sums(), 0
    for data in pieces:
        content.update(data)
        sums.add(data)
        length += len(data)
    return content, length, sums.packed()
