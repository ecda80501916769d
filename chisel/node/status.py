"""Answer how a droplet is: what ran, what runs, since when nothing does."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from . import activity, env, frames, registry, watchdog
from .stdio import Channel


def idle_seconds(now: float, last_activity_at: float, has_running: bool) -> float:
    """Return how long nothing has happened; a running command is activity, a clock that went back is no idleness."""
    return 0.0 if has_running else max(0.0, now - last_activity_at)


def _last_activity_at() -> float:
    """Return when a command last began or ended; before the first, when chisel first came."""
    for path in (os.path.join(env.own_directory(), "activity"), env.own_directory()):
        with suppress(OSError):
            return os.stat(path).st_mtime
    return time.time()


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Answer with the runs, what else is under way, and for how long the droplet has been idle.

    Asking is itself no activity. GPUs are looked at only when the request says `looks_at_gpus`: that takes seconds.
    """
    now = time.time()
    found = registry.runs(now)
    busy = activity.busy(looks_at_gpus=bool(request.get("looks_at_gpus")))
    is_busy = bool(busy) or any(run["running"] for run in found)
    idle = idle_seconds(now, max(_last_activity_at(), activity.last_at()), is_busy)
    watched = watchdog.state()
    if watched is not None:
        idle = min(idle, float(watched.get("idle_s", idle)))
    answer = {"now": now, "idle_s": idle, "runs": found, "busy": busy, "load": os.getloadavg()[0]}
    channel.send_json(frames.Kind.REPLY, {**answer, "self_destruct": watched})
    return 0
