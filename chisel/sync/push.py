"""Push a scanned tree to one droplet over a session of its own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import anyio

from chisel.errors import HostUnreachable, RemoteError
from chisel.model import Host, SyncResult
from chisel.node.frames import Kind
from chisel.sync.job import Job, Part

SURVEY_DEADLINE_S = 180.0
"""How long the droplet may be silent: another sync may hold it for 30 s, its disk be slow."""
RETRIED = frozenset({"moved", "mismatch"})
"""Refusals of a droplet whose working copy changed while it was synced: it is asked what it has, and sent that."""
TRIES = 3
_BEAT_S = 1.0
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

Opens = Callable[[str, dict[str, Any]], Any]
"""Start a role of the node program with a request: an async context manager of a channel."""


class Connection(Protocol):
    """A warm, verified connection to one droplet."""

    host: Host

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program: an async context manager of a channel."""


def remote_root_for(root: Path) -> PurePosixPath:
    """Return where a local tree lives on every droplet: `~/chisel/<name>-<hash of its path>`."""
    name = _UNSAFE.sub("-", root.name).strip("-.")[:60] or "tree"
    return PurePosixPath("~/chisel", f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}")


async def push(opens: Opens, host: Host, job: Job) -> SyncResult:
    """Make a droplet's working copy equal to a scanned tree.

    Everything is staged and verified there before anything changes. Cancelled or cut, it leaves the working copy as
    it was, or wholly switched; what arrived is not sent again. Raises HostUnreachable, and RemoteError when the droplet
    refuses (disk full, busy, owned by another).
    """
    for remaining in reversed(range(TRIES)):
        part = await job.part(host)
        try:
            return await _push(opens, host, part)
        except RemoteError as error:
            if error.code not in RETRIED or not remaining:
                raise
            await part.doubt()
    raise AssertionError("unreachable")


async def _push(opens: Opens, host: Host, part: Part) -> SyncResult:
    async with opens("receive", part.request()) as channel:
        await part.begin(channel)
        while True:
            for frame in await _received(channel, host.name):
                if await part.take(frame, channel) and part.result is not None:
                    channel.done()
                    return part.result


async def _received(channel: Any, name: str) -> Any:
    """Return the frames at hand; a droplet that waits for a command to end is asked now and then whether it lives."""
    end = anyio.current_time() + SURVEY_DEADLINE_S
    while anyio.current_time() < end:
        with anyio.move_on_after(_BEAT_S):
            found = await channel.receive()
            if not found:
                raise HostUnreachable(f"`{name}` ended the session in the middle of a sync", host=name)
            return found
        with suppress(HostUnreachable):  # it may have answered and ended meanwhile: what it said is still to be read
            await channel.send(Kind.HEARTBEAT)
    raise HostUnreachable(f"`{name}` does not answer a sync", host=name)
