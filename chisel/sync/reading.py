"""Read a file for several droplets at once: each block hashed, and packed where that pays, one time."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chisel.node import contents, frames
from chisel.node.contents import ContentHash
from chisel.node.frames import Kind
from chisel.node.offer import RACY_NS
from chisel.sync.sources import Source

BATCH_BYTES = 1 << 20
"""So much is read at a time: what a slow droplet holds back in memory is a few of these."""
_MOST_IN_BATCH = 1 << 10
_FRAME = 1 << 18
_SAMPLE = 1 << 14
_WORTH = 0.9
_MOST_KNOWN = 100_000


def order(*record: Any) -> bytes:
    """Return an order of a push as a frame."""
    return frames.encode(Kind.DATA, b"J" + json.dumps(record, separators=(",", ":")).encode("ascii"))


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its sha256, its length in bytes, and the frames that carry it; none for a hole."""

    digest: bytes
    length: int
    frames: bytes


class Reading:
    """Read one file once, in batches of blocks; blocking. What was hashed is what is sent.

    After the last batch `digest` is known, and `is_torn` says whether it changed meanwhile.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._content = ContentHash(source.size)
        self._packs: bool | None = None
        self.digest = ""
        self.digests: list[bytes] = []
        self.is_torn = False
        self.look: list[int] = []

    def batches(self) -> Iterator[list[Block]]:
        """Give the blocks in order. Raises OSError."""
        handle = os.open(self._source.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(handle)
            if before.st_size != self._source.size:
                self.is_torn = True
                return
            batch: list[Block] = []
            size = 0
            for block in self._blocks(handle, before):
                batch.append(block)
                size += len(block.frames)
                if size >= BATCH_BYTES or len(batch) >= _MOST_IN_BATCH:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch
            self.look = look_of(before)
            self.is_torn = look_of(os.fstat(handle)) != self.look or self._content.length != before.st_size
            self.digest = self._content.hexdigest()
        finally:
            os.close(handle)

    def whole_digests(self) -> list[bytes]:
        """Return the sha256s of the blocks that are not cut by the end."""
        return self.digests[: self._content.length // self._content.block]

    def _blocks(self, handle: int, status: os.stat_result) -> Iterator[Block]:
        size, step = status.st_size, self._content.block
        is_sparse = status.st_blocks * 512 < size
        for start in range(0, size, step):
            length = min(step, size - start)
            if is_sparse and _is_hole(handle, start, length, status):
                self._content.zeros(length)
                yield self._block(length, b"")
                continue
            data = b"".join(contents.read_range(handle, start, length))
            self._content.update(data)
            yield self._block(len(data), self._packed(data))

    def _block(self, length: int, packed: bytes) -> Block:
        if self._content.length % self._content.block == 0:
            digest = self._content.blocks[-1]
        else:  # the last one, which is shorter
            digest = self._content.partial()
        self.digests.append(digest)
        return Block(digest, length, packed)

    def _packed(self, data: bytes) -> bytes:
        """Return a block's frames, compressed where a sample of it says that this pays."""
        found = []
        for start in range(0, len(data), _FRAME):
            piece = data[start : start + _FRAME]
            sample = piece[:_SAMPLE]
            if len(piece) > 512 and len(zlib.compress(sample, 1)) < _WORTH * len(sample):
                found.append(frames.encode(Kind.DATA, b"Z" + zlib.compress(piece, 1)))
            else:
                found.append(frames.encode(Kind.DATA, b"B" + piece))
        return b"".join(found)


def _is_hole(handle: int, start: int, length: int, status: os.stat_result) -> bool:
    parts = contents.extents(handle, start, start + length, size=status.st_size, stored=status.st_blocks)
    return all(not is_data for _, _, is_data in parts)


def look_of(status: os.stat_result) -> list[int]:
    """Return what changes when a file does."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Digests:
    """Remember digests of files here by what they look like, so that a second push need not read them; blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = json.loads(file.read_bytes())
            if isinstance(found, dict):
                self._known = {path: row for path, row in found.items() if isinstance(row, list) and len(row) == 5}
        self._is_changed = False

    def get(self, source: Source) -> str:
        """Return a file's digest, empty when it is not known."""
        known = self._known.get(source.place)
        with contextlib.suppress(OSError):
            if known is not None and known[:4] == look_of(os.stat(source.place)):
                return str(known[4])
        return ""

    def add(self, source: Source, look: list[int], digest: str) -> None:
        """Learn one; of a file touched just now nothing is learnt."""
        if look and time.time_ns() - max(look[1], look[2]) > RACY_NS:
            self._known.pop(source.place, None)
            self._known[source.place] = [*look, digest]
            self._is_changed = True

    def save(self) -> None:
        """Write them; raises nothing."""
        if not self._is_changed:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._file.with_name(f".{self._file.name}.{secrets.token_hex(4)}")
            temporary.write_text(json.dumps(dict(list(self._known.items())[-_MOST_KNOWN:])), encoding="ascii")
            temporary.chmod(0o600)
            temporary.replace(self._file)
