"""Give one standard input to one or many commands: each gets every byte, a window ahead of the slowest at most."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import anyio

WINDOW_BYTES = 1 << 20
PIECE_BYTES = 1 << 16


class Feed:
    """Hold the part of the input that some command still needs; `pump` reads on as they take it.

    The source gives the input from `start` on; `on_taken` is told the place up to which nobody needs it any more.
    """

    def __init__(
        self,
        source: Callable[[], Awaitable[bytes]],
        names: Iterable[str],
        *,
        start: int = 0,
        on_taken: Callable[[int], None] | None = None,
    ) -> None:
        self._source = source
        self._taken = dict.fromkeys(names, start)
        self._held = bytearray()
        self._base = start
        self._on_taken = on_taken
        self._has_ended = False
        self._changed = anyio.Event()

    async def pump(self) -> None:
        """Read the source to its end; returns then, or when nobody needs any more."""
        while self._taken:
            if len(self._held) >= WINDOW_BYTES:
                await self._changed.wait()
                continue
            data = await self._source()
            if not data:
                break
            self._held += data
            self._tell()
        self._has_ended = True
        self._tell()

    def ack(self, name: str, offset: int) -> None:
        """Note that a command has taken the input up to `offset`."""
        if name in self._taken:
            self._taken[name] = max(self._taken[name], offset)
            self._trim()

    def leave(self, name: str) -> None:
        """Note that a command takes no more."""
        self._taken.pop(name, None)
        self._trim()

    async def piece(self, name: str, offset: int) -> bytes:
        """Return what comes at `offset`, at most `PIECE_BYTES`; waits for it; empty at the end of the input.

        Waits too while the command is a whole window behind.
        """
        while name in self._taken:
            start = offset - self._base
            if start < len(self._held) and offset - self._taken[name] < WINDOW_BYTES:
                return bytes(self._held[start : start + PIECE_BYTES])
            if self._has_ended and start >= len(self._held):
                return b""
            await self._changed.wait()
        return b""

    def _trim(self) -> None:
        lowest = min(self._taken.values(), default=self._base + len(self._held))
        if lowest > self._base:
            del self._held[: lowest - self._base]
            self._base = lowest
            if self._on_taken is not None:
                self._on_taken(lowest)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def giving(data: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a source that gives bytes once, then the end."""
    pieces = [data]

    async def give() -> bytes:
        return pieces.pop() if pieces else b""

    return give
