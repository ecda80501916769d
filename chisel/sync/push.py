"""Push a scanned tree to one droplet: one session, one request, and only what changed."""

from __future__ import annotations

import hashlib
import os
import re
import time
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import anyio
from anyio import to_thread

from chisel.errors import HostUnreachable, RemoteError
from chisel.events import Progress, Sink
from chisel.model import Host, SyncResult
from chisel.node import tree
from chisel.node.frames import Frame, Kind
from chisel.node.tree import Directories, Item
from chisel.ssh.refusal import remote_error
from chisel.sync.plan import Plan, make_plan
from chisel.sync.scan import LocalTree

SURVEY_DEADLINE_S = 180.0
"""How long the droplet may take to look at its working copy: another sync may hold it for 30 s, its disk be slow."""
STALL_DEADLINE_S = 60.0
"""How long a quarter of a megabyte may take to leave."""
_TRIES = 3
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Connection(Protocol):
    """A warm, verified connection to one droplet."""

    host: Host

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program: an async context manager of a channel."""


def remote_root_for(root: Path) -> PurePosixPath:
    """Return where a local tree lives on every droplet: `~/chisel/<name>-<hash of its path>`."""
    name = _UNSAFE.sub("-", root.name).strip("-.")[:60] or "tree"
    return PurePosixPath("~/chisel", f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}")


async def push(
    connection: Connection, local: LocalTree, remote: PurePosixPath, *, owner: str, sink: Sink
) -> SyncResult:
    """Make the working copy at `remote` equal to a scanned tree.

    Everything is staged and verified there before anything changes. Cancelled or cut, it leaves the working copy as
    it was, or wholly switched. Raises HostUnreachable, and RemoteError when the droplet refuses (disk full, busy).
    """
    began_at = time.monotonic()
    for remaining in reversed(range(_TRIES)):
        try:
            result = await _Push(connection, local, remote, owner, sink).run()
        except RemoteError as error:
            # What was to be copied there changed between its survey and the copy: look again.
            if error.code != "moved" or not remaining:
                raise
        else:
            return SyncResult(seconds=time.monotonic() - began_at, **result)
    raise AssertionError("unreachable")


class _Push:
    """One conversation with the receiver."""

    def __init__(self, connection: Connection, local: LocalTree, remote: PurePosixPath, owner: str, sink: Sink) -> None:
        self._connection = connection
        self._host = connection.host.name
        self._local = local
        self._remote = remote
        self._owner = owner
        self._sink = sink
        self._frames: list[Frame] = []

    async def run(self) -> dict[str, Any]:
        request = {"root": str(self._remote), "owner": self._owner, "tree": self._local.tree_hash}
        result: dict[str, Any] = {
            "host": self._host,
            "root": str(self._remote),
            "total_files": sum(item.kind != tree.DIRECTORY for item in self._local.items.values()),
            "skipped": self._local.skipped,
            "tree_hash": self._local.tree_hash,
        }
        async with self._connection.node("receive", request) as channel:
            if (await self._reply(channel))["same"]:
                return result
            plan = await self._plan(channel)
            stream = _Stream(self._local, plan)
            await self._send(channel, stream, plan)
            reply = await self._reply(channel)
        aside = tuple(
            f"{path}: a directory of the droplet's own was in the way and kept here" for path in reply["aside"]
        )
        return {
            **result,
            "sent_files": reply["puts"],
            "deleted_files": reply["deleted"],
            "sent_bytes": stream.sent_bytes,
            "repaired": plan.repaired,
            "skipped": (*self._local.skipped, *stream.skipped, *aside),
            "tree_hash": reply["tree"],
        }

    async def _plan(self, channel: Any) -> Plan:
        pieces: list[bytes] = []
        while (frame := await self._next(channel)).kind == Kind.DATA:
            pieces.append(frame.payload)
        try:
            return await to_thread.run_sync(_plan_from, self._local, pieces)
        except (tree.DamagedStream, tree.UnsafePath) as error:
            raise RemoteError(
                f"`{self._host}` describes its working copy in a way that makes no sense: {error}",
                host=self._host,
                code="bad-survey",
            ) from error

    async def _send(self, channel: Any, stream: _Stream, plan: Plan) -> None:
        total = plan.content_bytes
        pieces = stream.pieces()
        try:
            while (piece := await to_thread.run_sync(next, pieces, None)) is not None:
                await _deliver(channel, piece, self._host)
                self._progress(stream.done_bytes, total)
            await channel.send(Kind.DATA_END)
        except HostUnreachable:
            # The droplet may have said why before it ended the session.
            await self._reply(channel)
            raise
        finally:
            pieces.close()
        self._progress(stream.done_bytes, total, is_done=True)

    def _progress(self, done: int, total: int, *, is_done: bool = False) -> None:
        self._sink.emit(Progress(host=self._host, task="sync", done=done, total=total, is_done=is_done))

    async def _reply(self, channel: Any) -> dict[str, Any]:
        frame = await self._next(channel)
        if frame.kind != Kind.REPLY:
            raise RemoteError(f"`{self._host}` answers with frame {frame.kind}", host=self._host, code="bug")
        return frame.json()

    async def _next(self, channel: Any) -> Frame:
        if not self._frames:
            try:
                with anyio.fail_after(SURVEY_DEADLINE_S):
                    self._frames = await channel.receive()
            except TimeoutError as error:
                raise HostUnreachable(f"`{self._host}` does not answer a sync", host=self._host) from error
        if not self._frames:
            raise HostUnreachable(f"`{self._host}` ended the session in the middle of a sync", host=self._host)
        frame = self._frames.pop(0)
        if frame.kind == Kind.ERROR:
            raise remote_error(frame, self._host)
        return frame


async def _deliver(channel: Any, piece: bytes, host: str) -> None:
    """Send one piece; a window that does not open for `STALL_DEADLINE_S` is a lost droplet."""
    with anyio.move_on_after(STALL_DEADLINE_S):
        await channel.send(Kind.DATA, piece)
        return
    raise HostUnreachable(f"`{host}` takes no more data", host=host)


def _plan_from(local: LocalTree, pieces: list[bytes]) -> Plan:
    """Decode a droplet's survey and compare."""
    records = tree.Records()
    present: dict[str, Item] = {}
    drift: list[str] = []
    for piece in pieces:
        for record in records.feed(piece):
            if not isinstance(record, bytes) and record[0] == "gone":
                drift.append(tree.check_path(record[1]))
                continue
            item = tree.decode_item(record)
            present[item.path] = item
            if record[0] == "drift":
                drift.append(item.path)
    records.end()
    return make_plan(local.items, present, drift)


@dataclass(slots=True)
class _Stream:
    """Write a plan as one compressed stream, reading contents as it goes; for a thread, one piece at a time."""

    local: LocalTree
    plan: Plan
    sent_bytes: int = 0
    done_bytes: int = 0
    skipped: tuple[str, ...] = ()

    def pieces(self) -> Generator[bytes, None, None]:
        """Give pieces that fit into frames; `sent_bytes` and `done_bytes` count along."""
        packer = zlib.compressobj(1)
        waiting = bytearray()
        for record in self._records():
            waiting += packer.compress(record)
            while len(waiting) >= tree.CHUNK:
                piece = bytes(waiting[: tree.CHUNK])
                del waiting[: tree.CHUNK]
                self.sent_bytes += len(piece)
                yield piece
        waiting += packer.flush()
        self.sent_bytes += len(waiting)
        for start in range(0, len(waiting), tree.CHUNK):
            yield bytes(waiting[start : start + tree.CHUNK])

    def _records(self) -> Iterator[bytes]:
        plan = self.plan
        for order, items in (("put", plan.puts), ("link", plan.links), ("dir", plan.directories), ("mode", plan.modes)):
            for item in items:
                yield tree.pack([order, *item])
        for path in plan.deletes:
            yield tree.pack(["delete", path])
        for digest, path in plan.copies.items():
            yield tree.pack(["copy", digest, path])
        handle = os.open(self.local.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        directories = Directories(handle)
        try:
            for digest, item in sorted(plan.contents.items(), key=lambda pair: pair[1].path):
                yield from self._content(directories, digest, item)
        finally:
            directories.close()
            os.close(handle)

    def _content(self, directories: Directories, digest: str, item: Item) -> Iterator[bytes]:
        """Send one content; a file that changed since the scan goes as what it is now, or not at all."""
        users = [put for put in self.plan.puts if put.digest == digest] if digest else []
        try:
            source = tree.open_file(directories, item.path)
        except OSError as error:
            yield from self._without(users, error.strerror or "it cannot be read")
            return
        content = hashlib.sha256()
        length = 0
        try:
            before = os.fstat(source)
            yield tree.pack(["blob"])
            for data in tree.read_chunks(source, before.st_size + 1):
                content.update(data)
                length += len(data)
                self.done_bytes += len(data)
                yield tree.pack_bytes(data)
            is_whole = length == before.st_size and tree.same_file_state(before, os.fstat(source))
        finally:
            os.close(source)
        found = content.hexdigest()
        if found == digest:
            yield tree.pack(["end", digest])
        elif is_whole:
            yield tree.pack(["end", found])
            yield from self._without([user for user in users if user.path != item.path], "it changed meanwhile")
            changed = item._replace(
                digest=found, size=length, mtime_ns=before.st_mtime_ns, mode=before.st_mode & tree.PERMISSIONS
            )
            yield tree.pack(["put", *changed])
        else:
            yield tree.pack(["end", ""])
            yield from self._without(users, "it kept changing while it was read")

    def _without(self, users: list[Item], reason: str) -> Iterator[bytes]:
        for user in users:
            self.skipped = (*self.skipped, f"{user.path}: {reason}")
            yield tree.pack(["skip", user.path])
