"""Hold a command and all that descends from it in a control group of its own, which nothing leaves by setsid.

Kernel documentation, Control Group v2: a process forked in a group is born in it; `cgroup.kill` (Linux 5.14) ends all
of them at once, also those forked meanwhile; `cgroup.events` says whether the group is populated. Where there is no
version 2 hierarchy or no right to it, there is no group, and the supervisor as the reaper of orphans has to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from contextlib import suppress

_ALL = "chisel"
_CLONE3, _CLONE_INTO_CGROUP = 435, 0x200000000


class Cgroup:
    """One run's group; make it with `make`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._kills_at_once = os.path.exists(os.path.join(path, "cgroup.kill"))

    def open_door(self) -> int:
        """Return a descriptor: a process that writes 0 to it is in the group from then on."""
        return os.open(os.path.join(self._path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """Fork a process that is born in the group; 0 in the child. Raises OSError where the kernel cannot do that.

        clone3(2) with CLONE_INTO_CGROUP (Linux 5.7): to move a process afterwards waits for the kernel's other
        processors, which took up to 20 ms here. The GIL is kept over the call (PyDLL); the child has to exec.
        """
        directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            arguments = ctypes.create_string_buffer(
                struct.pack("11Q", _CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
            )
            pid = int(ctypes.PyDLL(None, use_errno=True).syscall(_CLONE3, arguments, len(arguments) - 1))
            if pid < 0:
                raise OSError(ctypes.get_errno(), "clone3")
            return pid
        finally:
            os.close(directory)

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
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with suppress(FileNotFoundError):
            os.rmdir(path)
        os.mkdir(path)
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
