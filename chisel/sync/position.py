"""Know where one droplet is in a file that is pushed to it, and what it has of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chisel.sync.reading import Block, order

DIGEST = 32
"""The length of a sha256 in bytes."""


class Has:
    """What a droplet has of one file: the sha256s of blocks, `in_part` of them in the part of an interrupted push.

    `size` is that of the file itself there, -1 when there is none.
    """

    def __init__(self, in_part: int, size: int, hashes: bytes = b"") -> None:
        self.in_part = in_part
        self.size = size
        self.hashes = hashes


class Position:
    """Where one droplet is in a file: which blocks it is to keep is said in runs."""

    def __init__(self, has: Has | None = None) -> None:
        self._has = has or Has(0, -1)
        self._index = 0
        self._kept = self._hole = 0
        self.has_begun = False
        self.done = 0

    def take(self, number: int, batch: Sequence[Block]) -> bytes:
        """Return a batch as frames: what the droplet has is only named."""
        found = []
        for block in batch:
            at = self._index * DIGEST
            self._index += 1
            self.done += block.length
            if self._has.hashes[at : at + DIGEST] == block.digest:
                found.append(self._after_hole())
                self._kept += 1
            elif block.frames:
                found += [self.begun(number), block.frames]
            else:
                if self._kept or not self.has_begun:
                    found.append(self.begun(number))
                self._hole += block.length
        return b"".join(found)

    def begun(self, number: int) -> bytes:
        """Return the frames that come before anything else of the file: that it begins, what is kept, a hole."""
        said = b"" if self.has_begun else order("begin", number)
        self.has_begun = True
        if self._kept:
            said += order("keep", self._kept)
            self._kept = 0
        return said + self._after_hole()

    def _after_hole(self) -> bytes:
        said, self._hole = order("hole", self._hole) if self._hole else b"", 0
        return said

    def is_same(self, size: int) -> bool:
        """Say whether the file itself is there, whole and as it is here."""
        return not self.has_begun and not self._has.in_part and self._has.size == size
