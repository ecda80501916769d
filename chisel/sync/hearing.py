"""Wait for a droplet to say something in the middle of a sync."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio

from chisel.errors import HostUnreachable
from chisel.node.frames import Kind

SURVEY_DEADLINE_S = 180.0
"""How long the droplet may be silent: another sync may hold it for 30 s, its disk be slow."""
_BEAT_S = 1.0


async def heard(channel: Any, name: str) -> Any:
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
