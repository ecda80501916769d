"""Read, hash and compress once, and give the same bytes to every droplet that needs them, each at its own pace.

The stream is produced by whoever needs its next piece first. What the slowest has not taken yet is kept, up to a bound:
only then do the others wait for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread

from chisel.node import frames, tree
from chisel.node.frames import Kind
from chisel.sync import codec
from chisel.sync.stream import Outcome, Stream

KEPT_BYTES = 32 << 20
LAG_BYTES = 96 << 20
PART_BYTES = 8 << 20
"""After so much content the droplet gets what there is: it works while this machine reads on."""
PLAIN = "none"


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame of a stream, and how much content had been read when it was made."""

    kind: int
    payload: bytes
    done_bytes: int
    done_files: int


class Cast:
    """One stream for several droplets. Calls may overlap within one event loop.

    Pieces are kept from the first on as long as they are few, so that a droplet that is late can still join.
    """

    def __init__(self, stream: Stream, codec_name: str, bytes_per_s: float) -> None:
        self._stream = stream
        self._pieces: list[Piece] = []
        self._first = 0
        self._made_bytes = 0  # counted by the thread that makes pieces
        self._dropped_bytes = 0  # counted by the loop
        self._places: dict[int, int] = {}
        self._producing = anyio.Lock()
        self._moved = anyio.Event()
        self._source = self._produce(codec_name, bytes_per_s)
        self._is_over = False
        self.outcome: Outcome | None = None
        self.sent_bytes = 0

    @property
    def can_be_joined(self) -> bool:
        """Say whether the first piece is still there."""
        return self._first == 0

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[AsyncIterator[Piece]]:
        """Give all pieces, from the first on; `outcome` is there when they are exhausted. Raises OSError."""
        me = len(self._places) + sum(self._places.values()) + 1
        while me in self._places:
            me += 1
        self._places[me] = 0
        try:
            yield self._from(me)
        finally:
            del self._places[me]
            self._stir()

    def close(self) -> None:
        """Let the tree go."""
        self._source.close()
        self._stream.close()

    async def _from(self, me: int) -> AsyncIterator[Piece]:
        while True:
            piece = await self._get(self._places[me])
            if piece is None:
                return
            self._places[me] += 1
            self._drop()
            yield piece

    async def _get(self, number: int) -> Piece | None:
        """Return a piece, None after the last."""
        while True:
            if number - self._first < len(self._pieces):
                return self._pieces[number - self._first]
            if self._is_over:
                return None
            if self._made_bytes - self._dropped_bytes >= LAG_BYTES and len(self._places) > 1:
                await self._moved.wait()
                continue
            async with self._producing:
                if number - self._first >= len(self._pieces) and not self._is_over:
                    await to_thread.run_sync(self._step)

    def _step(self) -> None:
        """Make the next piece, in a thread; cancelled meanwhile, the piece is there all the same."""
        piece = next(self._source, None)
        if piece is None:
            self._is_over = True
            return
        self._pieces.append(piece)
        self._made_bytes += len(piece.payload)

    def _drop(self) -> None:
        """Forget what everybody has, once it is much."""
        needed = min(self._places.values())
        while self._made_bytes - self._dropped_bytes > KEPT_BYTES and self._first < needed and self._pieces:
            self._dropped_bytes += len(self._pieces.pop(0).payload)
            self._first += 1
        self._stir()

    def _stir(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()

    def _produce(self, codec_name: str, bytes_per_s: float) -> Generator[Piece, None, None]:
        stream = self._stream
        stream.open()
        yield self._piece(Kind.PROGRESS, frames.as_json({"codec": codec_name}))
        packer = codec.open_packer(codec_name, bytes_per_s, stream.read_bytes)
        waiting, given = bytearray(), 0
        for record in stream.packed_part():
            waiting += packer.compress(record)
            if stream.done_bytes - given >= PART_BYTES:
                given = stream.done_bytes
                waiting += packer.part()
                yield self._data(waiting)
            while len(waiting) >= tree.CHUNK:
                yield self._data(waiting)
        waiting += packer.flush()
        while waiting:
            yield self._data(waiting)
        if stream.has_plain_part:
            yield self._piece(Kind.DATA_END, frames.as_json({"next": PLAIN}))
            for record in stream.plain_part():
                waiting += record
                while len(waiting) >= tree.CHUNK:
                    yield self._data(waiting)
            while waiting:
                yield self._data(waiting)
        self.outcome = stream.finish()
        yield self._piece(Kind.DATA_END, frames.as_json({"tree": self.outcome.tree_hash}))
        stream.close()

    def _data(self, waiting: bytearray) -> Piece:
        payload = bytes(waiting[: tree.CHUNK])
        del waiting[: tree.CHUNK]
        self.sent_bytes += len(payload)
        return self._piece(Kind.DATA, payload)

    def _piece(self, kind: int, payload: bytes) -> Piece:
        return Piece(kind, payload, self._stream.done_bytes, self._stream.done_files)


async def all_of(cast: Cast) -> list[Piece]:
    """Return every piece of a small stream."""
    async with cast.joined() as pieces:
        return [piece async for piece in pieces]
