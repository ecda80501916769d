"""Let a droplet live longer: the role behind `chisel keep`."""

from __future__ import annotations

from typing import Any

from . import frames, watchdog
from .stdio import Channel, Refused

_LONGEST_S = 366 * 86400.0


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Extend the limits by the request's `keep_s` seconds from now and answer with those that hold."""
    by_s = float(request.get("keep_s", 0.0))
    if not 0 < by_s <= _LONGEST_S:
        raise Refused("bad-request", f"a droplet cannot be kept for {by_s:g} s")
    channel.send_json(frames.Kind.REPLY, {"limits": watchdog.keep(by_s)})
    return 0
