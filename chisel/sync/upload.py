"""Put files on several droplets at once, outside the working copy: read one time, sent to each what it lacks.

The pace is that of the slowest droplet: memory holds a few megabytes, however large the files are. Droplets that lack
the same may pass it on to each other (`chisel.sync.relay`): all but one of them are told only what the files
have to be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from chisel.errors import ChiselError, HostUnreachable, RemoteError
from chisel.events import Progress, Sink
from chisel.model import PushResult, Relay
from chisel.node import frames, tree
from chisel.node.contents import MOST_BLOCKS
from chisel.node.frames import Frame, FrameError, Kind
from chisel.node.offer import decode_count, decode_text
from chisel.ssh.refusal import remote_error
from chisel.sync.position import DIGEST, Has, Position
from chisel.sync.push import Connection
from chisel.sync.reading import Digests, Reading, order
from chisel.sync.relay import Place, Relays, neighbourhoods, places_among
from chisel.sync.sources import Source, Sources
from chisel.sync.throttle import Throttle

STALL_DEADLINE_S = 120.0
"""How long a megabyte may take to leave."""
ANSWER_DEADLINE_S = 300.0
"""How long a droplet may be silent: before it says what it has, and when it makes the last file durable."""
TRIES = 3
_HEARTBEAT_S = 3.0
_SAID_S = 1.0
_AHEAD = 4

Step = tuple[str, int, Any]
"""What is to be done about a file: `begin`, `blocks` (a batch), `end` (digest and time), `same`, `again`, `drop`."""


async def upload(
    connections: Sequence[Connection],
    sources: Sources,
    to: str,
    *,
    sink: Sink,
    digests_file: Path,
    throttle: Throttle | None = None,
    relay: Relay = "off",
) -> list[PushResult]:
    """Put all sources below the directory `to` of every droplet; one result each, in their order.

    An empty `to` lets the droplet choose. Files that are there with the same content are not sent; one that was cut
    goes on at the block where it was, also when a neighbour was to bring it and did not. Cancelled, it leaves finished
    files, and of the one under way what had come.
    """
    digests = await to_thread.run_sync(Digests, digests_file)
    known = await to_thread.run_sync(lambda: [digests.get(source) for source in sources.files])
    droplets = [
        _Droplet(connection, sources, known, to, sink, throttle or Throttle(None)) for connection in connections
    ]
    try:
        relays = Relays(relay, len(droplets), throttle or Throttle(None), sink)
        await _bring(droplets, sources, known, digests, relays)
        lost = [droplet.direct() if droplet.is_lost else droplet for droplet in droplets]
        for before in droplets:
            if before.is_lost:
                relays.say_direct(before.host, before.error or "")
        again = [droplet for droplet in lost if droplet not in droplets]
        if again:
            await _bring(again, sources, known, digests, Relays("off", 1, Throttle(None), sink))
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(digests.save)
    return [droplet.result() for droplet in lost]


async def _bring(
    droplets: Sequence[_Droplet], sources: Sources, known: Sequence[str], digests: Digests, relays: Relays
) -> None:
    async with anyio.create_task_group() as tasks:
        for droplet in droplets:
            tasks.start_soon(droplet.run)
        await _feed(droplets, sources, known, digests, relays)


def _find_places(droplets: Sequence[_Droplet], relays: Relays) -> None:
    """Let droplets that lack the same pass it on to each other, where that is worth it."""
    alike: dict[Any, list[_Droplet]] = {}
    for droplet in droplets:
        if droplet.error is None:
            alike.setdefault(droplet.lacks(), []).append(droplet)
    for row in alike.values():
        by_name = {droplet.host.name: droplet for droplet in row}
        for near in neighbourhoods([droplet.host for droplet in row]):
            if relays.is_wanted(row[0].missing_bytes(), 0.0, len(near)):
                for name, place in places_among(near).items():
                    by_name[name].place = place


async def _feed(
    droplets: Sequence[_Droplet], sources: Sources, known: Sequence[str], digests: Digests, relays: Relays
) -> None:
    """Hand every droplet what it is to do, file by file."""
    for droplet in droplets:
        await droplet.is_ready.wait()
    _find_places(droplets, relays)
    for droplet in droplets:
        droplet.may_work.set()
    try:
        for number, source in enumerate(sources.files):
            needy = [droplet for droplet in droplets if droplet.wants(number)]
            for droplet in droplets:
                if droplet not in needy:
                    await droplet.take(("same", number, known[number]))
            if needy:
                await _feed_one(needy, number, source, digests)
    finally:
        for droplet in droplets:
            droplet.close_feed()


async def _feed_one(needy: Sequence[_Droplet], number: int, source: Source, digests: Digests) -> None:
    trouble = ""
    for remaining in reversed(range(TRIES)):
        reading = Reading(source)
        for droplet in needy:
            await droplet.take(("begin", number, None))
        try:
            batches = reading.batches()
            while (batch := await to_thread.run_sync(next, batches, None)) is not None:
                for droplet in needy:
                    await droplet.take(("blocks", number, batch))
        except OSError as error:
            trouble = error.strerror or "it cannot be read"
            break
        if not reading.is_torn:
            digests.add(source, reading.look, reading.digest)
            for droplet in needy:
                await droplet.take(("end", number, (reading.digest, reading.look[1])))
            return
        trouble = "it changed while it was read: push it again"
        if not reading.digests or not remaining:
            break
        for droplet in needy:
            await droplet.take(("again", number, reading.whole_digests()))
    for droplet in needy:
        await droplet.take(("drop", number, trouble))


class _Droplet:
    """One droplet's side of a push: what it has, what it is sent, what became of it."""

    def __init__(
        self, connection: Connection, sources: Sources, known: Sequence[str], to: str, sink: Sink, throttle: Throttle
    ) -> None:
        self._connection = connection
        self._more = sources, known, to, sink, throttle
        self.host = connection.host
        self._host = connection.host.name
        self._sources = sources
        self._known = known
        self._to = to
        self._sink = sink
        self._throttle = throttle
        self._feed: MemoryObjectSendStream[Step]
        self._steps: MemoryObjectReceiveStream[Step]
        self._feed, self._steps = anyio.create_memory_object_stream[Step](_AHEAD)
        self._frames: list[Frame] = []
        self._has: list[Has | None] = []
        self._position = Position()
        self._began_at = time.monotonic()
        self._seconds = 0.0
        self._reply: dict[str, Any] = {}
        self._skipped: list[str] = list(sources.skipped)
        self.error: str | None = None
        self.is_lost = False
        self.place: Place | None = None
        self.may_work = anyio.Event()
        self._target = to
        self._sent_bytes = 0
        self._done = 0
        self._files = 0
        self._same = 0
        self._written = 0
        self.is_ready = anyio.Event()

    # -- what is fed

    def wants(self, number: int) -> bool:
        """Say whether a file has to be read for this droplet."""
        return self.error is None and self._has[number] is not None

    def direct(self) -> _Droplet:
        """Return the same droplet before another push, which goes on from what this one brought."""
        return _Droplet(self._connection, *self._more)

    def lacks(self) -> Any:
        """Return what is equal for droplets that need the same frames."""
        return tuple(None if has is None else (has.in_part, has.size, has.hashes) for has in self._has)

    def missing_bytes(self) -> int:
        """Return how much of the files the droplet may need, in bytes."""
        needed = zip(self._sources.files, self._has, strict=True)
        return sum(source.size for source, has in needed if has is not None and not has.hashes)

    async def take(self, step: Step) -> None:
        """Take a step, waiting while too many wait; a droplet that failed takes none, one that is fed few."""
        if self._is_fed and step[0] in {"begin", "blocks", "again"}:
            return
        try:
            await self._feed.send(step)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    def close_feed(self) -> None:
        """Say that no step follows."""
        self._feed.close()

    # -- the conversation

    async def run(self) -> None:
        """Hold the conversation; a failure is the result's `error`."""
        try:
            await self._hold()
        except ChiselError as error:
            self.error = error.message if error.hint is None else f"{error.message} ({error.hint})"
            self.is_lost = self._is_fed and isinstance(error, RemoteError) and error.code == "relay-lost"
        except (tree.DamagedStream, tree.UnsafePath, FrameError) as error:
            self.error = f"`{self._host}` answers something that makes no sense: {error}"
        finally:
            self._seconds = time.monotonic() - self._began_at
            self.is_ready.set()
            self._steps.close()
            self._feed.close()

    async def _hold(self) -> None:
        async with self._connection.node("store", {"to": self._to}) as channel:
            try:
                offer = self._offer()
                while (piece := await to_thread.run_sync(next, offer, None)) is not None:
                    await self._send(channel, Kind.DATA, piece)
                await self._send(channel, Kind.DATA_END)
                await self._learn(channel)
                self.is_ready.set()
                await self.may_work.wait()
                await self._bring(channel)
            except HostUnreachable:
                with anyio.move_on_after(_SAID_S):  # the droplet may have said why before it ended the session
                    await self._next(channel)
                raise
            if not self._reply:
                self._reply = (await self._next(channel)).json()
            for row in self._reply.get("skipped", []):
                self._skipped.append(": ".join(str(text)[:5000] for text in row[:2]))
            self._progress(is_done=True)
            channel.done()

    def _offer(self) -> Iterator[bytes]:
        objects: list[list[Any]] = [["dir", path] for path in self._sources.directories]
        objects += [
            ["file", source.path, source.mode, source.size, max(0, source.mtime_ns), digest]
            for source, digest in zip(self._sources.files, self._known, strict=True)
        ]
        objects += [["link", *link] for link in self._sources.links]
        return tree.compress(objects)

    async def _learn(self, channel: Any) -> None:
        """Learn what the droplet has of every file."""
        reply = (await self._next(channel)).json()
        self._target = str(reply.get("to", self._to))
        records = tree.Records((len(self._sources.files) + 1) * 4096 + self._most_hashes())
        while (frame := await self._next(channel)).kind != Kind.DATA_END:
            if frame.kind == Kind.DATA:
                for record in records.feed(frame.payload):
                    self._learn_one(record)
        records.end()
        if len(self._has) != len(self._sources.files):
            raise tree.DamagedStream(f"{len(self._has)} answers for {len(self._sources.files)} files")

    def _most_hashes(self) -> int:
        return sum(min(MOST_BLOCKS, 1 + source.size // (1 << 16)) * DIGEST for source in self._sources.files)

    def _learn_one(self, record: list[Any] | bytes) -> None:
        if isinstance(record, bytes):
            if not self._has or self._has[-1] is None:
                raise tree.DamagedStream("hashes came for no file")
            self._has[-1].hashes = record
        elif record[0] == "same":
            self._has.append(None)
        elif record[0] == "has":
            size = record[2] if len(record) > 2 and isinstance(record[2], int) else -1
            self._has.append(Has(decode_count(record, 1, MOST_BLOCKS), size))
        else:
            raise tree.DamagedStream(f"`{decode_text(record, 0)[:40]}` has no place here")

    @property
    def _is_fed(self) -> bool:
        """Say whether a neighbour sends the droplet what it needs."""
        return self.place is not None and not self.place.is_root

    async def _bring(self, channel: Any) -> None:
        """Send what the droplet needs, or have it sent."""
        if self.place is None:
            await self._work(channel)
            await self._send(channel, Kind.DATA_END)
        elif self.place.is_root:
            async with self.place.feeding(channel):
                await self._work(channel)
                await self._send(channel, Kind.DATA_END)
                self.place.passed_frames(frames.encode(Kind.DATA_END))
                self.place.ended("")
        else:
            await self._have_it_fed(channel, self.place)

    async def _have_it_fed(self, channel: Any, place: Place) -> None:
        async with place.conducted(channel) as tasks:
            tasks.start_soon(self._promise, channel)
            self._reply = (await self._next(channel)).json()

    async def _promise(self, channel: Any) -> None:
        """Tell the droplet what the files have to be that a neighbour sends it."""
        with suppress(HostUnreachable):  # whoever reads the channel says so
            async for kind, number, what in self._steps:
                size = self._sources.files[number].size
                if kind == "drop":
                    self._skipped.append(f"{self._sources.files[number].path}: {what}")
                    continue
                self._done += size
                if kind == "end" and self._has[number] is not None:
                    await self._send(channel, Kind.RELAY, frames.as_json({"promised": [[number, what[0]]]}))
                self._progress()

    async def _work(self, channel: Any) -> None:
        while True:
            step: Step | None = None
            with anyio.move_on_after(_HEARTBEAT_S):
                try:
                    step = await self._steps.receive()
                except anyio.EndOfStream:
                    return
            if step is None:
                await self._send(channel, Kind.HEARTBEAT)
                continue
            data = self._frames_for(step)
            if data:
                await self._send_frames(channel, data)
                self._sent_bytes += len(data)
                if self.place is not None:
                    self.place.passed_frames(data)
                await self._throttle.take(len(data))
            self._progress()

    def _frames_for(self, step: Step) -> bytes:
        """Return what a step means for this droplet, as frames."""
        kind, number, what = step
        has = self._has[number]
        size = self._sources.files[number].size
        if has is None:
            if kind in {"same", "end"}:
                self._same += 1
                self._done += size
            return b""
        if kind == "begin":
            self._position = Position(has)
            return b""
        if kind == "blocks":
            self._done += sum(block.length for block in what)
            return self._position.take(number, what)
        if kind == "end":
            if self._position.is_same(size):
                self._same += 1
                return order("same", number, what[0])
            self._files += 1
            self._written += size
            return self._position.begun(number) + order("end", *what)
        self._done -= self._position.done
        if kind == "drop":
            self._skipped.append(f"{self._sources.files[number].path}: {what}")
        if not self._position.has_begun:
            return b""
        if kind == "again":
            # What was sent is in the part there now: of the next reading only what differs goes.
            self._has[number] = Has(len(what), has.size, b"".join(what))
        return self._position.begun(number) + order("drop")

    async def _send(self, channel: Any, kind: Kind, payload: bytes = b"") -> None:
        with anyio.move_on_after(STALL_DEADLINE_S):
            await channel.send(kind, payload)
            return
        raise HostUnreachable(f"`{self._host}` takes no more data", host=self._host)

    async def _send_frames(self, channel: Any, data: bytes) -> None:
        with anyio.move_on_after(STALL_DEADLINE_S):
            await channel.send_raw(data)
            return
        raise HostUnreachable(f"`{self._host}` takes no more data", host=self._host)

    async def _next(self, channel: Any) -> Frame:
        """Return the next frame that is no report of how far the droplet has read."""
        while True:
            if not self._frames:
                try:
                    with anyio.fail_after(ANSWER_DEADLINE_S):
                        self._frames = await channel.receive()
                except TimeoutError as error:
                    raise HostUnreachable(f"`{self._host}` does not answer a push", host=self._host) from error
            if not self._frames:
                raise HostUnreachable(f"`{self._host}` ended the session in the middle of a push", host=self._host)
            frame = self._frames.pop(0)
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, self._host)
            if frame.kind == Kind.RELAY and self.place is not None:
                self.place.listens(int(frame.json()["port"]))
                continue
            if frame.kind not in {Kind.PROGRESS, Kind.REPLY, Kind.DATA, Kind.DATA_END}:
                raise RemoteError(f"`{self._host}` answers with frame {frame.kind}", host=self._host, code="bug")
            if frame.kind != Kind.PROGRESS:
                return frame

    def _progress(self, *, is_done: bool = False) -> None:
        self._sink.emit(
            Progress(
                host=self._host,
                task="push",
                done=self._done,
                total=self._sources.size,
                done_files=self._files + self._same,
                total_files=len(self._sources.files),
                is_done=is_done,
            )
        )

    def result(self) -> PushResult:
        """Return what became of it."""
        is_over = bool(self._reply)
        return PushResult(
            host=self._host,
            target=self._target,
            files=int(self._reply["files"]) if is_over else self._files,
            bytes=int(self._reply["bytes"]) if is_over else self._written,
            sent_bytes=self._sent_bytes,
            unchanged=int(self._reply["same"]) if is_over else self._same,
            seconds=self._seconds,
            skipped=tuple(self._skipped),
            error=self.error,
            relayed_bytes=int(self._reply.get("relayed", 0)),
        )
