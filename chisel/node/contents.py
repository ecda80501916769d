"""Cut contents into blocks, and know them by hash: what `pull` and `push` compare, resume and verify by.

A content of up to `SMALL` bytes is one block and its digest is its sha256. A larger one is cut into at most
`MOST_BLOCKS` blocks of equal size, and its digest is the sha256 of its blocks' sha256s: it is known while the content
passes, a part of it can be verified, and holes cost nothing. Standard library only, Python 3.10.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

SMALL = 1 << 20
SMALLEST_BLOCK = 1 << 16
MOST_BLOCKS = 1 << 14
SHORT = 16
"""As much of a block's sha256 tells blocks apart; what they make up is verified by its whole digest."""

_READ = 1 << 18
_ZEROS = bytes(_READ)
_SEEK_DATA = getattr(os, "SEEK_DATA", None)
_SEEK_HOLE = getattr(os, "SEEK_HOLE", None)
_STAT_BLOCK = 512


def block_size(size: int) -> int:
    """Return the length of a block (bytes) for a content of `size` bytes; the last block may be shorter."""
    if size <= SMALL:
        return max(size, 1)
    block = SMALLEST_BLOCK
    while size > block * MOST_BLOCKS:
        block *= 2
    return block


class ContentHash:
    """Hash a content as it passes; `blocks` are the sha256s of those that are complete.

    `size` is what the content is expected to be: it decides how it is cut.
    """

    def __init__(self, size: int) -> None:
        self.block = block_size(size)
        self.blocks: list[bytes] = []
        self.length = 0
        self._current = hashlib.sha256()
        self._filled = 0
        self._zero_block = b""

    def update(self, data: bytes | memoryview) -> None:
        """Take the next piece."""
        view = memoryview(data)
        self.length += len(view)
        while view:
            piece = view[: self.block - self._filled]
            self._current.update(piece)
            self._fill(len(piece))
            view = view[len(piece) :]

    def zeros(self, count: int) -> None:
        """Take `count` zero bytes: a hole."""
        while count > 0:
            if not self._filled and count >= self.block:
                if not self._zero_block:
                    self._zero_block = _hash_of_zeros(self.block)
                self.add(self._zero_block)
                count -= self.block
            else:
                piece = min(count, self.block - self._filled, len(_ZEROS))
                self.update(memoryview(_ZEROS)[:piece])
                count -= piece

    def add(self, digest: bytes, length: int | None = None) -> None:
        """Take a whole block (or the last, shorter one) whose sha256 is known already."""
        self.blocks.append(digest)
        self.length += self.block if length is None else length

    def partial(self) -> bytes:
        """Return the sha256 of what has come of the block under way."""
        return self._current.digest()

    def hexdigest(self) -> str:
        """Return the digest of the content so far; nothing may be added after that."""
        if self._filled or not self.blocks:
            self.blocks.append(self._current.digest())
            self._filled = 0
        if self.length <= self.block:
            return self.blocks[0].hex()
        return hashlib.sha256(b"".join(self.blocks)).hexdigest()

    def _fill(self, count: int) -> None:
        self._filled += count
        if self._filled == self.block:
            self.blocks.append(self._current.digest())
            self._current = hashlib.sha256()
            self._filled = 0


def _hash_of_zeros(length: int) -> bytes:
    content = hashlib.sha256()
    for start in range(0, length, len(_ZEROS)):
        content.update(memoryview(_ZEROS)[: length - start])
    return content.digest()


def extents(handle: int, start: int, stop: int, *, size: int, stored: int) -> Iterator[tuple[int, int, bool]]:
    """Give the parts of an open file between two offsets in order: offset, length, and whether it is data or a hole.

    `stored` is its `st_blocks`: one that takes the room of its `size` is not looked at.
    """
    if _SEEK_DATA is None or _SEEK_HOLE is None or stored * _STAT_BLOCK >= size:
        if stop > start:
            yield start, stop - start, True
        return
    while start < stop:
        try:
            data = min(os.lseek(handle, start, _SEEK_DATA), stop)
        except OSError:  # ENXIO: nothing but a hole follows
            data = stop
        if data > start:
            yield start, data - start, False
        if data >= stop:
            return
        hole = min(os.lseek(handle, data, _SEEK_HOLE), stop)
        if hole <= data:  # it changed between the two questions
            hole = stop
        yield data, hole - data, True
        start = hole


def read_range(handle: int, start: int, length: int) -> Iterator[bytes]:
    """Read a range of an open file in pieces; ends early where the file does."""
    while length > 0:
        data = os.pread(handle, min(_READ, length), start)
        if not data:
            return
        yield data
        start += len(data)
        length -= len(data)


def hash_range(handle: int, start: int, length: int) -> bytes:
    """Return the sha256 of a range of an open file, cut where the file ends."""
    content = hashlib.sha256()
    for data in read_range(handle, start, length):
        content.update(data)
    return content.digest()


def hash_open_file(handle: int, status: os.stat_result, *, size: int | None = None) -> ContentHash:
    """Hash an open file as far as `status` says that it goes, cut as a content of `size` bytes is."""
    length = status.st_size
    content = ContentHash(length if size is None else size)
    for start, count, is_data in extents(handle, 0, length, size=length, stored=status.st_blocks):
        if is_data:
            for data in read_range(handle, start, count):
                content.update(data)
        else:
            content.zeros(count)
    return content
