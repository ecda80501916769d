"""Write bytes to standard output and error without ever blocking the event loop, in the order they came."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio import CapacityLimiter, to_thread

HIGH_WATER_BYTES = 1 << 20
LAST_FLUSH_S = 0.5
_AT_ONCE = 64
_LAST_STREAM = 2


class Writer:
    """Queue chunks for file descriptors; one task writes them, in a thread, in order.

    A slow reader fills the queue to `HIGH_WATER_BYTES`, then `drain` waits. When the reader is gone (EPIPE) what
    follows for that descriptor is dropped and `is_broken` says so.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[int, bytes | Iterator[bytes]]] = deque()
        self._queued_bytes = 0
        self._more = anyio.Event()
        self._less = anyio.Event()
        self._limiter = CapacityLimiter(1)
        self._broken: set[int] = set()
        self.broke = anyio.Event()

    @property
    def is_broken(self) -> bool:
        """Say whether a reader went away."""
        return bool(self._broken)

    def write(self, descriptor: int, data: bytes) -> None:
        """Queue `data`; never blocks."""
        if data and descriptor not in self._broken:
            self._queue.append((descriptor, data))
            self._queued_bytes += len(data)
            self._more.set()

    def write_lazily(self, descriptor: int, pieces: Iterator[bytes]) -> None:
        """Queue what is yet to be read from somewhere: it is when its turn comes, in the writing thread."""
        self._queue.append((descriptor, pieces))
        self._queued_bytes += 1
        self._more.set()

    async def drain(self) -> None:
        """Wait while more than the high-water mark is queued."""
        while self._queued_bytes > HIGH_WATER_BYTES:
            await self._less.wait()

    async def flush(self) -> None:
        """Wait until everything queued so far has been written."""
        while self._queued_bytes:
            await self._less.wait()

    async def run(self) -> None:
        """Write for ever what is queued; ends by cancellation, which leaves the rest unwritten."""
        while True:
            if not self._queue:
                self._more = anyio.Event()
                await self._more.wait()
            descriptor, chunks = self._next_batch()
            size = 1 if isinstance(chunks, Iterator) else sum(map(len, chunks))
            try:
                await to_thread.run_sync(_write_all, descriptor, chunks, limiter=self._limiter, abandon_on_cancel=True)
            except OSError:
                self._broken.add(descriptor)
                if descriptor <= _LAST_STREAM:
                    self.broke.set()
            self._queued_bytes -= size
            self._less.set()
            self._less = anyio.Event()

    def _next_batch(self) -> tuple[int, list[bytes] | Iterator[bytes]]:
        descriptor, chunk = self._queue.popleft()
        if not isinstance(chunk, bytes):
            return descriptor, chunk
        chunks = [chunk]
        while self._queue and self._queue[0][0] == descriptor and len(chunks) < _AT_ONCE:
            following = self._queue[0][1]
            if not isinstance(following, bytes):
                break
            chunks.append(following)
            self._queue.popleft()
        return descriptor, chunks


def _write_all(descriptor: int, chunks: list[bytes] | Iterator[bytes]) -> None:
    if isinstance(chunks, Iterator):
        for chunk in chunks:
            _write_all(descriptor, [chunk] if chunk else [])
        return
    left = [memoryview(chunk) for chunk in chunks]
    while left:
        written = os.writev(descriptor, left)
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


@asynccontextmanager
async def open_writer(writer: Writer | None = None) -> AsyncIterator[Writer]:
    """Give a writer, of another kind where one is handed in.

    Leaving waits until a reader has taken all that is queued, however slow it is.
    Cancelled, or left by an error, it waits at most `LAST_FLUSH_S`: the writing goes on until then.
    """
    used, service = writer or Writer(), anyio.CancelScope(shield=True)

    async def serve() -> None:
        with service:  # outlives its users: what they say while they are being cancelled is still written
            await used.run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)  # not waited for: cancelled just then, nobody would end what outlives its users
        try:
            yield used
            await used.flush()
        except BaseException:
            with anyio.move_on_after(LAST_FLUSH_S, shield=True):
                await used.flush()
            raise
        finally:
            service.cancel()
