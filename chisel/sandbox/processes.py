"""Find and end the processes of a droplet: those whose environment names its root, or whose sessions it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from chisel.sandbox.base import ROOT_VARIABLE

_DEADLINE_S = 5.0
_PAUSE_S = 0.01


def processes_of(roots: Collection[Path]) -> list[int]:
    """Return the ids of living processes that belong to droplets with these roots, this process excepted."""
    marks = {f"{ROOT_VARIABLE}={root}".encode() for root in roots}
    mine = os.getpid()
    return [pid for pid, entries in _environments() if pid != mine and not marks.isdisjoint(entries)]


def end_processes(roots: Collection[Path]) -> None:
    """Kill every process of these droplets until none is left; blocking, for five seconds at most."""
    end = time.monotonic() + _DEADLINE_S
    while True:
        found = processes_of(roots)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found or time.monotonic() > end:
            return
        time.sleep(_PAUSE_S)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Give each living process's environment, as far as this user may read it."""
    if sys.platform.startswith("linux"):
        yield from _from_proc()
    else:
        yield from _from_ps()


def _from_proc() -> Iterator[tuple[int, list[bytes]]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            # A zombie's environment reads as empty, so what was killed and waits for its parent does not count.
            with contextlib.suppress(OSError):
                yield int(name), Path("/proc", name, "environ").read_bytes().split(b"\0")


def _from_ps() -> Iterator[tuple[int, list[bytes]]]:
    """Read what BSD's `ps e` shows (macOS); a root with a space in its path is not found this way."""
    listed = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True, timeout=10, check=False)
    for line in listed.stdout.splitlines():
        pid, _, rest = line.strip().partition(b" ")
        if pid.isdigit():
            yield int(pid), rest.split(b" ")
