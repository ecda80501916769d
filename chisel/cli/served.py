"""Run a command line inside the agent for one of its callers, with the same parser and renderers as anywhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import CancelScope

from chisel.agent import wire
from chisel.agent.server import Caller
from chisel.agent.warm import Warm
from chisel.cli.app import report, run_under, takes_value
from chisel.cli.around import Declined
from chisel.cli.session import Session, own_words
from chisel.cli.takeup import ended_fields, place_fields
from chisel.errors import leaves
from chisel.events import Event, RunEnded
from chisel.model import RunId
from chisel.render.writer import LAST_FLUSH_S, Writer

_AT_ONCE_BYTES = 256 << 10
_HELP = frozenset({"-h", "--help"})


async def handle(caller: Caller, warm: Warm) -> int | None:
    """Run one caller's command line and return its status; None when it is to run in the caller's own process.

    Cancelled when the caller is gone: what runs on droplets is ended then.
    """
    own = own_words(caller.words, takes_value)
    if any(word in _HELP or (word[:1] == "-" and word[:2] != "--" and "h" in word) for word in own):
        return None  # help is written by the parser, to this process's own output
    around = Served(caller)
    session = Session(around=around)
    session.connector, session.store, session.family = warm.connector, warm.store, RunId(caller.family)
    session.trees = warm.trees
    try:
        return await run_under(caller.signals, session, caller.words, {})
    except BaseException as error:
        found = list(leaves(error))
        if any(isinstance(leaf, anyio.get_cancelled_exc_class()) for leaf in found):
            raise
        if any(isinstance(leaf, Declined) for leaf in found):
            return None
        status = report(found, session, caller.words)
        with CancelScope(shield=True), anyio.move_on_after(LAST_FLUSH_S):
            await around.flush()
        return status


class Served:
    """What a command sees of a process that has called the agent (see `chisel.cli.around.Around`)."""

    is_served = True

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._writer = ServedWriter(caller)
        self._said: list[list[bytes]] = []
        self.environ: Mapping[str, str] = caller.environ
        self.cwd = Path(caller.cwd)
        self.terminals = caller.terminals
        self.columns = caller.columns
        self.may_read = caller.may_read

    async def read(self) -> bytes:
        """Have the caller read a piece of its standard input."""
        return await self._caller.read()

    def taken(self, offset: int) -> None:
        """Let the caller forget its input up to `offset`."""
        self._caller.taken(offset)

    def say(self, descriptor: int, data: bytes) -> None:
        """Keep it for `flush`."""
        self._said.append([b"", bytes([descriptor]), data])

    async def flush(self) -> None:
        """Send what was said."""
        await self._caller.put(b"".join(wire.frame(wire.PART, wire.pack(fields)) for fields in self._said))

    def writer(self) -> ServedWriter:
        """Return what sends output to the caller."""
        return self._writer

    def sink(self, screen: Any) -> KeptSink:
        """Return a sink that tells the caller how far it has come."""
        for notice in self._caller.notices:
            screen.emit(notice)
        return KeptSink(screen, self._writer, self._caller)

    def take_on(self) -> None:
        """Let output go."""
        self._writer.gate.set()

    def decline(self) -> None:
        """Drop what was said and leave the command to the caller."""
        self._writer.discard()
        raise Declined


class _Part:
    """What goes out together: pieces by descriptor, and the places that hold once all of it is written."""

    __slots__ = ("pieces", "places", "positions", "size")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.places: list[bytes] = []
        self.positions: list[tuple[str, int]] = []
        self.size = 0


class ServedWriter(Writer):
    """Queue output in parts and send them to a caller, once the command is answered for (`gate`)."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self.gate = anyio.Event()
        self._caller = caller
        self._parts: deque[_Part] = deque()
        self._open: _Part | None = None
        self._last: _Part | None = None
        self._numbered: deque[tuple[int, str, int]] = deque()
        self._count = 0
        self._kept: dict[str, int] = {}
        caller.on_broken = self._break

    def _break(self, descriptor: int) -> None:
        self._broken.add(descriptor)
        self.broke.set()

    def discard(self) -> None:
        """Forget what waits."""
        self._parts.clear()
        self._queued_bytes = 0
        self._less.set()

    @contextmanager
    def part(self) -> Iterator[None]:
        """Keep together what is written in the block."""
        self._open = _Part()
        try:
            yield
        finally:
            part, self._open = self._open, None
            self._queue_part(part)

    def write(self, descriptor: int, data: bytes) -> None:
        """Queue a piece."""
        if not data or descriptor in self._broken:
            return
        part = self._open or _Part()
        part.pieces += (bytes([descriptor]), data)
        part.size += len(data)
        if part is not self._open:
            self._queue_part(part)

    def write_lazily(self, descriptor: int, pieces: Iterator[bytes]) -> None:
        """Queue all of it now: what would lie in files is declined."""
        self.write(descriptor, b"".join(pieces))

    def note(self, fields: list[bytes], position: tuple[str, int] | None = None) -> None:
        """Say what holds when all that was queued so far is written."""
        part = self._last
        if part is None:
            part = _Part()
            self._queue_part(part)
        part.places += fields
        if position is not None:
            part.positions.append(position)

    def kept(self, host: str) -> int:
        """Return how much of a host's output the caller has written."""
        while self._numbered and self._numbered[0][0] <= self._caller.seen:
            _, name, position = self._numbered.popleft()
            self._kept[name] = position
        return self._kept.get(host, 0)

    def _queue_part(self, part: _Part) -> None:
        self._parts.append(part)
        self._last = part
        self._queued_bytes += part.size + 1
        self._more.set()

    async def run(self) -> None:
        """Send for ever what is queued."""
        await self.gate.wait()
        while True:
            if not self._parts:
                self._more = anyio.Event()
                await self._more.wait()
            size, data = self._next_frames()
            await self._caller.put(data)
            self._queued_bytes = max(0, self._queued_bytes - size)
            self._less.set()
            self._less = anyio.Event()

    def _next_frames(self) -> tuple[int, bytes]:
        size, frames = 0, []
        while self._parts and size < _AT_ONCE_BYTES:
            part = self._parts.popleft()
            self._last = None if part is self._last else self._last
            size += part.size + 1
            if not part.pieces and not part.places:
                continue
            self._count += 1
            self._numbered.extend((self._count, *position) for position in part.positions)
            places = wire.pack(part.places) if part.places else b""
            frames.append(wire.frame(wire.PART, wire.pack([places, *part.pieces])))
        return size, b"".join(frames)


class KeptSink:
    """Show events on a screen, and tell the caller with each how far the command has come (a `PlaceKeeper`)."""

    def __init__(self, screen: Any, writer: ServedWriter, caller: Caller) -> None:
        self._screen = screen
        self._writer = writer
        self._caller = caller

    def emit(self, event: Event) -> None:
        """Show it."""
        with self._writer.part():
            self._screen.emit(event)
        if isinstance(event, RunEnded):
            self._writer.note(ended_fields(event.result))

    async def drain(self) -> None:
        """Wait until the caller keeps up."""
        await self._screen.drain()

    def keep(self, host: str, place: dict[str, Any]) -> None:
        """Tell it with what was shown last."""
        fields = place_fields(host, place, self._screen.tails(host))
        self._writer.note(fields, (host, int(place["stdout"]) + int(place["stderr"])))

    def kept(self, host: str) -> int:
        """Ask the writer."""
        return self._writer.kept(host)
