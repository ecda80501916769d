"""Hold a command and all that descends from it in a control group of its own, which nothing leaves by setsid.

Kernel documentation, Control Group v2: a process forked in a group is born in it; `cgroup.kill` (Linux 5.14) ends all
of them at once, also those forked meanwhile; `cgroup.events` says whether the group is populated. Where there is no
version 2 hierarchy or no right to it, there is no group, and the supervisor as the reaper of orphans has to do.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

_ALL = "chisel"


class Cgroup:
    """One run's group; make it with `make`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._kills_at_once = os.path.exists(os.path.join(path, "cgroup.kill"))

    def open_door(self) -> int:
        """Return a descriptor: a process that writes 0 to it is in the group from then on."""
        return os.open(os.path.join(self._path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def is_populated(self) -> bool:
        """Say whether any process is left in the group."""
        with suppress(OSError), open(os.path.join(self._path, "cgroup.events"), encoding="ascii") as source:
            return "populated 1" in source.read()
        return False

    def processes(self) -> list[int]:
        """Return the ids of the processes in the group."""
        with suppress(OSError, ValueError), open(os.path.join(self._path, "cgroup.procs"), encoding="ascii") as source:
            return [int(line) for line in source]
        return []

    def signal(self, number: int) -> None:
        """Send a signal to every process in the group."""
        if number == signal.SIGKILL and self._kills_at_once:
            with suppress(OSError), open(os.path.join(self._path, "cgroup.kill"), "w", encoding="ascii") as out:
                out.write("1")
            return
        for pid in self.processes():
            with suppress(OSError):
                os.kill(pid, number)

    def remove(self) -> None:
        """Remove the empty group."""
        with suppress(OSError):
            os.rmdir(self._path)


def make(name: str) -> Cgroup | None:
    """Make a group, None where there can be none."""
    mount = _mount()
    if mount is None:
        return None
    path = os.path.join(mount, _ALL, name)
    try:
        os.makedirs(path, exist_ok=True)
        return Cgroup(path)
    except OSError:
        return None


def find(name: str) -> Cgroup | None:
    """Return a group that is there, None where there is none."""
    mount = _mount()
    path = os.path.join(mount or "", _ALL, name)
    return Cgroup(path) if mount is not None and os.path.isdir(path) else None


def _mount() -> str | None:
    """Return where the version 2 hierarchy is mounted (proc(5), mountinfo), None where it is not."""
    if os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        return "/sys/fs/cgroup"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as source:
        for line in source:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return fields[4]
    return None
