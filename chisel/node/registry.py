"""Keep the registry of runs on a droplet: what ran, what runs, since when nothing does.

A run's directory is `~/.chisel/runs/<run_id>/` with `run.json`, later `exit.json`, and `lock`, which its supervisor
holds by flock as long as it lives: whether a run is alive is exact even when its supervisor was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from contextlib import suppress
from typing import Any

from . import activity, env, frames, watchdog
from .stdio import Channel

KEPT_S = 7 * 86400.0
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_run_id(text: str) -> bool:
    """Say whether a text can be a run's id, and so a directory's name."""
    return bool(_RUN_ID.fullmatch(text))


def idle_seconds(now: float, last_activity_at: float, has_running: bool) -> float:
    """Return how long nothing has happened; a running command is activity, a clock that went back is no idleness."""
    return 0.0 if has_running else max(0.0, now - last_activity_at)


def touch() -> None:
    """Note that something happens now."""
    path = os.path.join(env.own_directory(), "activity")
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.utime(path)


class Entry:
    """One run's place in the registry, locked while this object lives."""

    def __init__(self, run_id: str) -> None:
        self.directory = env.own_directory("runs", run_id)
        self._lock = os.open(os.path.join(self.directory, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a record atomically."""
        path = os.path.join(self.directory, name)
        descriptor = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            json.dump(facts, out)
        os.replace(path + ".new", path)

    def close(self) -> None:
        """Let the lock go."""
        os.close(self._lock)


def runs(now: float) -> list[dict[str, Any]]:
    """Return every readable record, oldest first; ended ones older than `KEPT_S` are removed."""
    place = env.own_directory("runs")
    found = []
    for name in sorted(os.listdir(place)):
        directory = os.path.join(place, name)
        started = _read(os.path.join(directory, "run.json"))
        if not is_run_id(name) or started is None:
            continue
        ended = _read(os.path.join(directory, "exit.json"))
        is_running = ended is None and _is_locked(os.path.join(directory, "lock"))
        if not is_running and now - float(started.get("started_at", now)) > KEPT_S:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        found.append(
            {
                "run_id": name,
                "line": str(started.get("line", "")),
                "cwd": str(started.get("cwd", "")),
                "owner": str(started.get("owner", "")),
                "started_at": float(started.get("started_at", 0.0)),
                "ended_at": ended.get("ended_at") if ended else None,
                "running": is_running,
                "status": ended.get("status") if ended else None,
            }
        )
    return sorted(found, key=lambda run: float(run["started_at"]))


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as source:
            found = json.load(source)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


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
    found = runs(now)
    busy = activity.busy(looks_at_gpus=bool(request.get("looks_at_gpus")))
    is_busy = bool(busy) or any(run["running"] for run in found)
    idle = idle_seconds(now, max(_last_activity_at(), activity.last_at()), is_busy)
    watched = watchdog.state()
    if watched is not None:
        idle = min(idle, float(watched.get("idle_s", idle)))
    answer = {"now": now, "idle_s": idle, "runs": found, "busy": busy, "load": os.getloadavg()[0]}
    channel.send_json(frames.Kind.REPLY, {**answer, "self_destruct": watched})
    return 0
