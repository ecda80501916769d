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

LEAST_BYTES = 1 << 10
"""Smaller files are sent whole."""

_LONGEST = 4 << 20
_STEPS = ((64 << 10, 512), (1 << 20, 4 << 10), (1 << 62, 64 << 10))


def block_for(size: int) -> int:
    """Return the length of the blocks that a file of that size is cut into."""
    return next(block for most, block in _STEPS if size <= most)


class Sums:
    """Collect the checksum of every block of a file of `size` bytes that is read from its start."""

    def __init__(self, size: int) -> None:
        self._block = block_for(size)
        self._sums: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, data: bytes, crc: int | None = None) -> None:
        """Take the next piece, whose checksum may be known."""
        if crc is not None and not self._filled and len(data) == self._block:
            self._sums.append(crc)
            return
        block, view, at = self._block, memoryview(data), 0
        if not self._filled:
            whole = len(data) - len(data) % block
            self._sums += [zlib.crc32(view[start : start + block]) for start in range(0, whole, block)]
            at = whole
        while at < len(data):
            piece = view[at : at + block - self._filled]
            self._crc = zlib.crc32(piece, self._crc)
            self._filled += len(piece)
            at += len(piece)
            if self._filled == block:
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
        self._block = block_for(old_size)
        self.content = hashlib.sha256()
        self.sums = Sums(size)
        self.length = 0

    def pieces(self) -> Iterator[bytes | tuple[int, int]]:
        """Give, in order, bytes to send and (offset, length) of what the former content holds."""
        shift, growth = 0, self._size - self._old_size
        start = length = 0
        while self.length < self._size:
            at = self.length
            number, aligned = divmod(at - shift, self._block)
            step = self._block if not aligned else self._block - aligned
            data = self._read(at, step)
            if not data:
                break
            crc = None if aligned else zlib.crc32(data)
            if crc is not None and self._is_old(number, len(data), crc):
                if length and (start + length != number * self._block or length >= _LONGEST):
                    yield (start, length)
                    length = 0
                start = start if length else number * self._block
                length += len(data)
                self._take(data, crc)
                continue
            if length:
                yield (start, length)
                length = 0
            if shift != growth and (stop := self._met_again(at, growth)) is not None:
                shift = growth
                yield from self._literal(data, at, stop)
                continue
            self._take(data, crc)
            yield data
        if length:
            yield (start, length)

    def _met_again(self, at: int, growth: int) -> int | None:
        """Return where the next old block begins if all the growth lies before it and it is there; None if not."""
        number = max(0, -((growth - at) // self._block))
        begin = number * self._block + growth
        if begin < at or number >= len(self._old):
            return None
        data = self._read(begin, self._block)
        return begin if self._is_old(number, len(data), zlib.crc32(data)) else None

    def _literal(self, data: bytes, at: int, stop: int) -> Iterator[bytes]:
        """Give what lies between two places; `data` has been read already."""
        while at < stop:
            piece = (data or self._read(at, min(self._block, stop - at)))[: stop - at]
            data = b""
            if not piece:
                return
            self._take(piece)
            at += len(piece)
            yield piece

    def _is_old(self, number: int, length: int, crc: int) -> bool:
        if not 0 <= number < len(self._old) or length != min(self._block, self._old_size - number * self._block):
            return False
        return crc == self._old[number]

    def _read(self, at: int, length: int) -> bytes:
        return os.pread(self._handle, length, at)

    def _take(self, data: bytes, crc: int | None = None) -> None:
        self.content.update(data)
        self.sums.add(data, crc)
        self.length += len(data)


def read_whole(pieces: Iterator[bytes], size: int) -> tuple[Any, int, bytes]:
    """Return the sha256, the length and the checksums of what is read of a file of `size` bytes."""
    content, sums, length = hashlib.sha256(), Sums(size), 0
    for data in pieces:
        content.update(data)
        sums.add(data)
        length += len(data)
    return content, length, sums.packed()
