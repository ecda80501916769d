"""Bring files, directories and globs back from one droplet: only what changed, resumable, in one or two round trips.

A client that has nothing of it gets everything in one stream. Else it is offered a listing, keeps what it knows to be
unchanged, and says what it has of the rest (`chisel.node.sender` has the conversation).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
from anyio import to_thread

from chisel.errors import ChiselError, HostUnreachable, RemoteError
from chisel.events import Progress, Sink
from chisel.model import PullResult
from chisel.node import tree
from chisel.node.frames import Frame, FrameError, Kind
from chisel.ssh.refusal import remote_error
from chisel.sync.codec import CODECS
from chisel.sync.compare import Answers, has_something, pieces
from chisel.sync.pulled import Notes, name_of
from chisel.sync.push import Connection
from chisel.sync.throttle import Throttle
from chisel.sync.wanted import Caps, Wanted
from chisel.sync.writer import NoRoom, TooMuch, Writer

SILENCE_DEADLINE_S = 120.0
"""How long a droplet may be silent in the middle of a pull: a slow disk, a large directory."""
LONG_SILENCE_DEADLINE_S = 900.0
"""The same while it reads what it has of large files, to compare."""
_ACKED_S = 5.0
_MOST_NAMED = 1000

Agree = Callable[[str, Sequence[str]], Awaitable[None]]
"""Called with the droplet and the paths that are about to be written; raises to have nothing written."""


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull: what at most, `is_dry` to say only what would come, `notes` where to remember what was pulled.

    `agree` is asked before anything is written.
    """

    caps: Caps = field(default_factory=Caps)
    is_dry: bool = False
    notes: Path | None = None
    throttle: Throttle | None = None
    agree: Agree | None = None


async def pull(
    connection: Connection,
    remote_cwd: PurePosixPath,
    patterns: Sequence[str],
    target: Path,
    *,
    sink: Sink,
    total_bytes: int | None = None,
    options: PullOptions | None = None,
) -> PullResult:
    """Write what the patterns name, relative to `remote_cwd` on the droplet, below `target`, with the same paths.

    A pattern from `/` or `~/` arrives under its last component, or from its first wildcard on. Ignore rules play no
    part: build outputs are what one pulls. Finished files stay when it is cancelled or fails later; what has come of
    an unfinished large one is kept hidden, and the next pull goes on with it. A pattern that names nothing is the
    result's `error`, what could not be written is in its `skipped`. `total_bytes` is what is expected where that is
    known, for the progress. Raises HostUnreachable, RemoteError (`too-much` for what is above the caps), and
    ChiselError when this machine cannot write (disk full, no permission).
    """
    options = options or PullOptions()
    began_at, host = time.monotonic(), connection.host.name
    known_as = name_of(connection.host)
    try:
        writer = await to_thread.run_sync(partial(_open, target, patterns, options, known_as))
        conversation = _Pull(writer, host, sink, options, total_bytes)
        try:
            await conversation.hold(connection, remote_cwd, patterns)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(writer.close)
    except TooMuch as error:
        raise RemoteError(
            f"`{host}` offers {error}", host=host, code="too-much", hint=f"{error.option} allows more"
        ) from error
    except NoRoom as error:
        raise ChiselError(f"no room below `{target}`: {error}", hint="make room, or --to DIR") from error
    except (tree.DamagedStream, tree.UnsafePath, FrameError) as error:
        raise RemoteError(f"`{host}` sends something that is no pull: {error}", host=host, code="bad-stream") from error
    except OSError as error:
        raise ChiselError(f"cannot write below `{target}`: {error.strerror}") from error
    return conversation.result(target, time.monotonic() - began_at)


def _open(target: Path, patterns: Sequence[str], options: PullOptions, host: str) -> Writer:
    notes = Notes(options.notes, target) if options.notes is not None else None
    writer = Writer(target, Wanted(patterns), options.caps, host=host, notes=notes)
    writer.is_dry = options.is_dry
    writer.is_asking = options.is_dry or options.agree is not None or has_something(writer)
    return writer


class _Pull:
    """One conversation with the sender."""

    def __init__(self, writer: Writer, host: str, sink: Sink, options: PullOptions, total_bytes: int | None) -> None:
        self._writer = writer
        self._host = host
        self._sink = sink
        self._options = options
        self._total_bytes = total_bytes
        self._throttle = options.throttle or Throttle(None)
        self._frames: list[Frame] = []
        self._deadline_s = SILENCE_DEADLINE_S
        self._wire_bytes = 0

    async def hold(self, connection: Connection, remote_cwd: PurePosixPath, patterns: Sequence[str]) -> None:
        writer = self._writer
        request = {"cwd": str(remote_cwd), "patterns": list(patterns), "codecs": CODECS, "asks": writer.is_asking}
        window = self._throttle.window
        extra: dict[str, Any] = {} if window is None else {"window": window}
        async with connection.node("send", request, **extra) as channel:
            if writer.is_asking:
                await self._take_listing(channel)
                if self._options.agree is not None:
                    offered = [entry.path for entry in writer.offered if entry is not None]
                    await self._options.agree(self._host, offered)
                await self._answer(channel)
            if writer.asked_for != {}:
                await self._take_contents(channel)
            if not writer.is_dry:
                await to_thread.run_sync(writer.end)
            await self._acknowledge(channel)
            channel.done()

    async def _take_listing(self, channel: Any) -> None:
        records = tree.Records()
        while (frame := await self._next(channel)).kind != Kind.DATA_END:
            if frame.kind == Kind.DATA:
                await to_thread.run_sync(self._offer, records, frame.payload)
        records.end()

    def _offer(self, records: tree.Records, data: bytes) -> None:
        self._wire_bytes += len(data)
        for record in records.feed(data):
            self._writer.offer(record)

    async def _answer(self, channel: Any) -> None:
        given = pieces(Answers(self._writer))
        while (piece := await to_thread.run_sync(next, given, None)) is not None:
            await self._send(channel, Kind.DATA, piece)
        await self._send(channel, Kind.DATA_END, b"")
        self._deadline_s = LONG_SILENCE_DEADLINE_S

    async def _send(self, channel: Any, kind: Kind, payload: bytes) -> None:
        with anyio.move_on_after(SILENCE_DEADLINE_S):
            await channel.send(kind, payload)
            return
        raise HostUnreachable(f"`{self._host}` takes no more data", host=self._host)

    async def _take_contents(self, channel: Any) -> None:
        writer = self._writer
        while True:
            frame = await self._next(channel)
            if frame.kind == Kind.PROGRESS:
                writer.expect(str(frame.json().get("codec")))
            elif frame.kind == Kind.DATA:
                self._wire_bytes += len(frame.payload)
                await to_thread.run_sync(writer.feed, frame.payload)
                self._deadline_s = SILENCE_DEADLINE_S
                self._progress()
                await self._throttle.take(len(frame.payload))
            elif frame.kind == Kind.DATA_END:
                return

    async def _acknowledge(self, channel: Any) -> None:
        """Tell the droplet what is here now: it is no loss any more when it is destroyed.

        Where something came, wait until it has noted that: `down` may ask it next.
        """
        writer = self._writer
        self._progress(is_done=True)
        if writer.is_dry or len(writer.refused) >= _MOST_NAMED:
            return
        with anyio.move_on_after(_ACKED_S), suppress(HostUnreachable):  # it notes less than it could
            await channel.send_json(Kind.ACK, {"not": [path[:300] for path in writer.refused]})
            while writer.files and await channel.receive():
                continue  # the REPLY; then the role ends

    def _progress(self, *, is_done: bool = False) -> None:
        writer = self._writer
        self._sink.emit(
            Progress(
                host=self._host,
                task="pull",
                done=writer.done,
                total=writer.expected_bytes if self._total_bytes is None else self._total_bytes,
                done_files=writer.files + writer.unchanged,
                total_files=writer.expected_files,
                is_done=is_done,
            )
        )

    async def _next(self, channel: Any) -> Frame:
        if not self._frames:
            try:
                with anyio.fail_after(self._deadline_s):
                    self._frames = await channel.receive()
            except TimeoutError as error:
                raise HostUnreachable(f"`{self._host}` sends nothing more", host=self._host) from error
        if not self._frames:
            raise HostUnreachable(f"`{self._host}` ended the session in the middle of a pull", host=self._host)
        frame = self._frames.pop(0)
        if frame.kind == Kind.ERROR:
            raise remote_error(frame, self._host)
        return frame

    def result(self, target: Path, seconds: float) -> PullResult:
        writer = self._writer
        missing = ", ".join(f"`{pattern}`" for pattern, _ in writer.missing)
        near = [f"`{name}`" for _, names in writer.missing for name in names]
        error = f"{missing} is not there on `{self._host}`" if missing else None
        if near:
            error = f"{error}; there is {', '.join(near)}"
        return PullResult(
            host=self._host,
            target=target,
            files=writer.files,
            bytes=writer.bytes,
            seconds=seconds,
            skipped=tuple(writer.skipped),
            error=error,
            unchanged=writer.unchanged,
            wire_bytes=self._wire_bytes,
            would=tuple((entry.path, entry.size) for entry in writer.would),
            is_dry=writer.is_dry,
        )
