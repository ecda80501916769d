"""Bring files, directories and globs back from one droplet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
from anyio import to_thread

from chisel.errors import ChiselError, HostUnreachable, RemoteError
from chisel.events import Progress, Sink
from chisel.model import PullResult
from chisel.node import tree
from chisel.node.frames import FrameError, Kind
from chisel.ssh.refusal import remote_error
from chisel.sync.codec import CODECS
from chisel.sync.push import Connection
from chisel.sync.writer import Writer

SILENCE_DEADLINE_S = 120.0
"""How long a droplet may be silent in the middle of a pull: a slow disk, a large directory."""


async def pull(
    connection: Connection,
    remote_cwd: PurePosixPath,
    patterns: Sequence[str],
    target: Path,
    *,
    sink: Sink,
    total_bytes: int | None = None,
) -> PullResult:
    """Write what the patterns name, relative to `remote_cwd` on the droplet, below `target`, with the same paths.

    A pattern from `/` or `~/` arrives under its last component. Ignore rules play no part: build outputs are what one
    pulls. Finished files stay when it is cancelled or fails later, an unfinished one never shows. A pattern that names
    nothing is the result's `error`, what could not be written is in its `skipped`. `total_bytes` is what is expected
    where that is known, for the progress. Raises HostUnreachable,
    RemoteError, and ChiselError when this machine cannot write (disk full, no permission).
    """
    began_at = time.monotonic()
    host = connection.host.name
    try:
        writer = await to_thread.run_sync(Writer, target)
        try:
            async with connection.node("send", _request(remote_cwd, patterns)) as channel:
                await _receive(channel, writer, host, sink, total_bytes)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(writer.close)
    except (tree.DamagedStream, tree.UnsafePath, FrameError) as error:
        raise RemoteError(f"`{host}` sends something that is no pull: {error}", host=host, code="bad-stream") from error
    except OSError as error:
        raise ChiselError(f"cannot write below `{target}`: {error.strerror}") from error
    missing = ", ".join(f"`{pattern}`" for pattern in writer.missing)
    return PullResult(
        host=host,
        target=target,
        files=writer.files,
        bytes=writer.bytes,
        seconds=time.monotonic() - began_at,
        skipped=tuple(writer.skipped),
        error=f"{missing} is not there on `{host}`" if missing else None,
    )


def _request(remote_cwd: PurePosixPath, patterns: Sequence[str]) -> dict[str, Any]:
    return {"cwd": str(remote_cwd), "patterns": list(patterns), "codecs": CODECS}


async def _receive(channel: Any, writer: Writer, host: str, sink: Sink, total: int | None) -> None:
    while True:
        try:
            with anyio.fail_after(SILENCE_DEADLINE_S):
                found = await channel.receive()
        except TimeoutError as error:
            raise HostUnreachable(f"`{host}` sends nothing more", host=host) from error
        if not found:
            raise HostUnreachable(f"`{host}` ended the session in the middle of a pull", host=host)
        for frame in found:
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, host)
            if frame.kind == Kind.PROGRESS:
                writer.expect(str(frame.json().get("codec")))
            elif frame.kind == Kind.DATA:
                await to_thread.run_sync(writer.feed, frame.payload)
                sink.emit(Progress(host=host, task="pull", done=writer.received, total=total))
            elif frame.kind == Kind.DATA_END:
                await to_thread.run_sync(writer.end)
                sink.emit(Progress(host=host, task="pull", done=writer.received, total=total, is_done=True))
                return
