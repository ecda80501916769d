"""Run the real node program at the other end of two pipes, as sshd would, and cut the line after so many bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from chisel.errors import HostUnreachable
from chisel.events import NullSink
from chisel.model import DropletId, Host, SyncResult
from chisel.node import frames
from chisel.node.frames import Frame, Kind
from chisel.ssh.program import pack_node_program
from chisel.sync.index import Index
from chisel.sync.job import Job
from chisel.sync.push import push, remote_root_for
from chisel.sync.scan import scan_tree
from chisel.sync.there import Known

HOST = Host("pipe", DropletId(1), "nowhere", 1, "root", "")
_PIECE = 4096


class PipeChannel:
    """One role's frames over pipes; after `cut_after` bytes the line is dead, or this process is."""

    def __init__(self, process: anyio.abc.Process, cut_after: int | None, *, is_deadly: bool) -> None:
        self._process = process
        self._left = cut_after
        self._is_deadly = is_deadly
        self._decoder = frames.Decoder()
        self.waiting: list[Frame] = []
        self.sent_bytes = 0

    async def send(self, kind: int, payload: bytes = b"") -> None:
        data = frames.encode(kind, payload)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            if self._left is not None and self._left < len(piece):
                await self._write(piece[: self._left])
                if self._is_deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                await self.cut()
                raise HostUnreachable("cut", host="pipe")
            await self._write(piece)

    async def send_json(self, kind: int, obj: Any) -> None:
        await self.send(kind, frames.as_json(obj))

    async def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self.sent_bytes += len(data)
        if self._left is not None:
            self._left -= len(data)
        try:
            await self._process.stdin.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise HostUnreachable("it ended", host="pipe") from error

    async def receive(self) -> list[Frame]:
        assert self._process.stdout is not None
        while not self.waiting:
            try:
                self.waiting = self._decoder.feed(await self._process.stdout.receive())
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                return []
        found, self.waiting = self.waiting, []
        return found

    def done(self) -> None:
        return

    async def cut(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.aclose()
        await self._process.stdout.aclose()


class Droplet:
    """A home with working copies, and the node program."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        self.home.mkdir(parents=True)
        self._program = place / "node.pyz"
        self._program.write_bytes(pack_node_program().data)
        self.sent_bytes = 0

    @asynccontextmanager
    async def node(
        self, role: str, request: dict[str, Any], *, cut_after: int | None = None, is_deadly: bool = False
    ) -> AsyncIterator[PipeChannel]:
        """Start a role; leaving closes its input and waits for its end."""
        line = [sys.executable, "-I", "-S", str(self._program), role]
        environ = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        process = await anyio.open_process(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
        )
        channel = PipeChannel(process, cut_after, is_deadly=is_deadly)
        try:
            await channel.send(Kind.REQUEST, frames.as_json(request))
            found = await channel.receive()
            if not found or found[0].kind != Kind.HELLO:
                raise HostUnreachable("no hello", host="pipe")
            channel.waiting = found[1:]
            yield channel
        finally:
            with anyio.CancelScope(shield=True):
                await channel.cut()
                await process.wait()
                self.sent_bytes = channel.sent_bytes

    def copy_of(self, local: Path) -> Path:
        """Return where a local tree's working copy is."""
        return Path(str(remote_root_for(local)).replace("~", str(self.home), 1))


async def sync(local: Path, index_file: Path, droplet: Droplet, **how: Any) -> SyncResult:
    """Sync as a chisel of its own does: whatever it knows, it knows from its files."""
    index = await to_thread.run_sync(Index.load, index_file)
    tree = await scan_tree(local, index)
    job = Job(tree, index, Known(index_file), remote_root_for(local), owner="me", sink=NullSink())

    def opens(role: str, request: dict[str, Any]) -> Any:
        return droplet.node(role, request, **how)

    try:
        return await push(opens, HOST, job)
    finally:
        job.close()
