"""Push a scanned tree to one droplet over a session of its own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from chisel.errors import RemoteError
from chisel.model import Host, SyncResult
from chisel.sync.hearing import heard
from chisel.sync.job import Job
from chisel.sync.part import Part

RETRIED = frozenset({"moved", "mismatch"})
"""Refusals of a droplet whose working copy changed while it was synced: it is asked what it has, and sent that."""
TRIES = 3
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
        finally:
            job.relays.settled(host)
    raise AssertionError("unreachable")


async def _push(opens: Opens, host: Host, part: Part) -> SyncResult:
    async with opens("receive", part.request()) as channel:
        await part.begin(channel)
        while True:
            for frame in await heard(channel, host.name):
                if await part.take(frame, channel) and part.result is not None:
                    channel.done()
                    return part.result
