"""Send a signal to a run, or end it, from any session."""

from __future__ import annotations

import select
import time
from typing import Any

from . import attach, frames, registry
from .stdio import Channel

GRACE_S = 5.0
_SLACK_S = 5.0


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Pass `signal` on; without one end the run (TERM, KILL after `grace_s`) and answer when it is over, and how."""
    directory = attach.find(str(request.get("run_id", "")), forbids=bool(request.get("forbids")))
    number, grace_s = request.get("signal"), float(request.get("grace_s") or GRACE_S)
    asked = {"what": "signal", "signal": number} if number else {"what": "end", "grace_s": grace_s}
    door = attach.knock(directory, asked)
    if door is not None:
        ends_at = time.monotonic() + grace_s + _SLACK_S
        while select.select([door], [], [], max(0.0, ends_at - time.monotonic()))[0] and door.recv(64):
            pass
    ended = registry.read(directory, "exit.json")
    status = registry.status_of(ended) if ended else None
    facts = {"was_running": door is not None, "running": registry.is_alive(directory) and ended is None}
    channel.send_json(frames.Kind.REPLY, {**facts, "status": status})
    return 0
