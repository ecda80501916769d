"""Keep the registry of runs on a droplet: what ran, what runs, since when nothing does.

A run's directory is `~/.chisel/runs/<run_id>/` with `run.json`, later `exit.json`, and `lock`, which its supervisor
holds by flock as long as it lives: whether a run is alive is exact even when its supervisor was killed.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import re
import signal
from contextlib import suppress
from typing import Any

from . import cgroup, env
from .stdio import Refused

codecs.lookup("ascii")  # loaded now, not while a command waits to be started

KEPT_S = 7 * 86400.0
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_run_id(text: str) -> bool:
    """Say whether a text can be a run's id, and so a directory's name."""
    return bool(_RUN_ID.fullmatch(text))


def touch() -> None:
    """Note that something happens now."""
    path = os.path.join(env.own_directory(), "activity")
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.utime(path)


class Entry:
    """One run's place in the registry, locked while this object lives; an id is used once only."""

    def __init__(self, run_id: str) -> None:
        self.directory = _make(run_id)
        self._lock = os.open(os.path.join(self.directory, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # who looks whether it is held holds it for a moment

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a record atomically; a disk without room has none."""
        path = os.path.join(self.directory, name)
        with suppress(OSError):
            descriptor = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as out:
                json.dump(facts, out)
            os.replace(path + ".new", path)

    def close(self) -> None:
        """Let the lock go."""
        os.close(self._lock)


def _make(run_id: str) -> str:
    """Make a run's directory; where the home has no room for it, in memory. Raises Refused for an id that was used."""
    for place in _places():
        directory = os.path.join(place, run_id)
        try:
            os.makedirs(place, mode=0o700, exist_ok=True)
            os.mkdir(directory, 0o700)
            with open(os.path.join(directory, "lock"), "wb"):
                return directory
        except FileExistsError as error:
            raise Refused("used", f"there is a run `{run_id}` already") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
    raise Refused("disk-full", "there is no room left for a run's record, on the disk or in memory")


def _places() -> tuple[str, str]:
    return os.path.join(env.expand("~/.chisel"), "runs"), f"/dev/shm/chisel-{os.getuid()}/runs"


def directory_of(run_id: str) -> str | None:
    """Return where a run's record is, None when there is none."""
    if is_run_id(run_id):
        for place in _places():
            if os.path.isdir(os.path.join(place, run_id)):
                return os.path.join(place, run_id)
    return None


def forbid(run_id: str) -> bool:
    """Take a run's id, so that a request for it that is still under way starts nothing; False when it is in use."""
    try:
        directory = _make(run_id)
    except Refused:
        return False
    with open(os.path.join(directory, "never"), "wb"):
        return True


def read(directory: str, name: str) -> dict[str, Any] | None:
    """Return one of a run's records, None when it is not there."""
    return _read(os.path.join(directory, name))


def exists(directory: str, name: str) -> bool:
    """Say whether a run's directory holds a file."""
    return os.path.exists(os.path.join(directory, name))


def is_alive(directory: str) -> bool:
    """Say whether a run's supervisor lives; what one left that was killed is ended."""
    if is_locked(os.path.join(directory, "lock")):
        return True
    if _read(os.path.join(directory, "exit.json")) is None:
        group = cgroup.find(os.path.basename(directory))
        if group is not None:
            group.signal(signal.SIGKILL)
            group.remove()
    return False


def runs(now: float) -> list[dict[str, Any]]:
    """Return every readable record, oldest first; ended ones older than `KEPT_S` are removed."""
    place = env.own_directory("runs")
    found = []
    for name in sorted(os.listdir(place)):
        directory = os.path.join(place, name)
        started = _read(os.path.join(directory, "run.json"))
        if not is_run_id(name):
            continue
        if started is None:
            with suppress(OSError):
                if now - os.stat(directory).st_mtime > KEPT_S:
                    _remove(directory)
            continue
        ended = _read(os.path.join(directory, "exit.json"))
        is_running = ended is None and is_alive(directory)
        if not is_running and now - float(started.get("started_at", now)) > KEPT_S:
            _remove(directory)
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
                "detached": bool(started.get("detached")),
                "status": status_of(ended) if ended else None,
            }
        )
    return sorted(found, key=lambda run: float(run["started_at"]))


def status_of(ended: dict[str, Any]) -> int | None:
    """Return an ended command's status as a shell gives it: 128 + n for signal n."""
    number = ended.get("signal")
    return 128 + int(number) if number else ended.get("status")


def _remove(directory: str) -> None:
    for name in os.listdir(directory):
        with suppress(OSError):
            os.unlink(os.path.join(directory, name))
    with suppress(OSError):
        os.rmdir(directory)


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as source:
            found = json.load(source)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_locked(path: str) -> bool:
    """Say whether somebody holds the lock of a file; False where there is none."""
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
