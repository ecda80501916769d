"""Start a command in its own process group and know everything that descends from it, until nothing does.

On Linux this process is made the reaper of orphans (PR_SET_CHILD_SUBREAPER, prctl(2)), so that a descendant which
left the group by setsid is found as a child of ours once its parent has ended, and is ended as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

PIPE_BYTES = 1 << 20
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_F_SETPIPE_SZ = 1031


class Command:
    """One shell line running under bash, its pipes non-blocking; `counts` are bytes read of each stream."""

    def __init__(self, line: str, cwd: str, environment: Mapping[str, str], *, wants_stdin: bool) -> None:
        self.wants_stdin = wants_stdin
        prctl = _prctl()
        if prctl:
            prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._began_at = time.monotonic()
        self._process = subprocess.Popen(
            ["bash", "-c", line],
            stdin=subprocess.PIPE if wants_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_die_with_parent(prctl),
        )
        self.pid = self._process.pid
        assert self._process.stdout
        assert self._process.stderr
        self.pipes = {"stdout": self._process.stdout.fileno(), "stderr": self._process.stderr.fileno()}
        self.stdin = self._process.stdin.fileno() if self._process.stdin else None
        for descriptor in [*self.pipes.values(), *([self.stdin] if self.stdin is not None else [])]:
            os.set_blocking(descriptor, False)
            with suppress(OSError):
                fcntl.fcntl(descriptor, _F_SETPIPE_SZ, PIPE_BYTES)
        self.counts = {"stdout": 0, "stderr": 0}
        self._checksums = {"stdout": 0, "stderr": 0}
        self._status: int | None = None
        self._seconds = 0.0
        self._peak_rss_bytes = 0
        self._left_behind = 0
        self._has_children = True

    def identity(self) -> dict[str, int]:
        """Return the leader's process and group ids."""
        return {"pid": self.pid, "pgid": self.pid}

    @property
    def has_leader_ended(self) -> bool:
        """Say whether the shell itself has ended."""
        return self._status is not None

    def is_over(self) -> bool:
        """Say whether nothing runs any more and every byte was read."""
        return self.has_leader_ended and not self._has_children and not self.pipes

    def read(self, name: str, size: int) -> bytes | None:
        """Return what is in a pipe, None when nothing is or it has ended."""
        try:
            data = os.read(self.pipes[name], size)
        except BlockingIOError:
            return None
        if not data:
            os.close(self.pipes.pop(name))
            return None
        self.counts[name] += len(data)
        self._checksums[name] = zlib.crc32(data, self._checksums[name])
        return data

    def close_stdin(self) -> None:
        """End the command's standard input."""
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None

    def signal(self, number: int) -> None:
        """Send a signal to the process group; a group that is gone is fine."""
        with suppress(OSError):
            os.killpg(self.pid, number)

    def signal_everything(self, number: int) -> None:
        """Send a signal to the group and to every orphan that came to us."""
        orphans = [pid for pid in _children() if pid != self.pid]
        if self.has_leader_ended and number == signal.SIGTERM:
            self._left_behind += len(orphans)
        self.signal(number)
        for pid in orphans:
            with suppress(OSError):
                os.kill(pid, number)

    def reap(self) -> None:
        """Collect every child that has ended; remember how the leader did."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                return
            if pid == 0:
                return
            if pid == self.pid:
                self._status = os.waitstatus_to_exitcode(status)
                self._process.returncode = self._status
                self._seconds = time.monotonic() - self._began_at
                self._peak_rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def end(self) -> dict[str, Any]:
        """Return the facts of the end, once it is over."""
        status = self._status if self._status is not None else 0
        return {
            "status": status if status >= 0 else None,
            "signal": -status if status < 0 else None,
            "seconds": self._seconds,
            "peak_rss_bytes": self._peak_rss_bytes,
            "stdout_bytes": self.counts["stdout"],
            "stderr_bytes": self.counts["stderr"],
            "stdout_crc32": self._checksums["stdout"],
            "stderr_crc32": self._checksums["stderr"],
            "left_behind": self._left_behind,
        }


def _prctl() -> Callable[..., int] | None:
    """Return prctl(2) where there is one."""
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function


def _die_with_parent(prctl: Callable[..., int] | None) -> Callable[[], None] | None:
    """Have the shell killed when this process is: nobody else would end it then."""
    if prctl is None:
        return None

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)

    return in_child


def _children() -> list[int]:
    """Return this process's children, orphans that came to it included; empty where /proc does not tell."""
    mine = os.getpid()
    found = []
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    for name in names:
        try:
            with open(f"/proc/{name}/stat", "rb") as source:
                fields = source.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == mine and fields[0] != b"Z":
            found.append(int(name))
    return found
