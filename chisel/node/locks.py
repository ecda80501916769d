"""Lock working copies: one sync at a time, and no switch under a running command.

`~/.chisel/sync/<key>/` holds a working copy's manifest and two locks: `lock` is held by a sync, `use` shared by running
commands and alone by a switch. They are flocks: the kernel lets them go when their holder dies. Standard library only,
Python 3.10.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator

from . import stdio, tree

LOCK_DEADLINE_S = 30.0
USE_DEADLINE_S = 30.0
_LOOK_S = 0.02


def directory_for(root: str, *, makes: bool = True) -> str:
    """Return where what is known of a working copy is kept; `root` is absolute."""
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    directory = tree.expand_home(os.path.join("~/.chisel/sync", key))
    if makes:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


def latest_directory(within_s: float | None = None) -> str | None:
    """Return where what is known of the working copy that was synced last is kept, None where there is none.

    With `within_s` only one counts that was synced within so many seconds.
    """
    above, found = tree.expand_home("~/.chisel/sync"), []
    with contextlib.suppress(OSError), os.scandir(above) as entries:
        for entry in entries:
            for name in ("journal", "manifest"):
                with contextlib.suppress(OSError):
                    found.append((os.stat(os.path.join(entry.path, name)).st_mtime_ns, entry.path))
    latest = max(found, default=None)
    if latest is None or (within_s is not None and abs(time.time_ns() - latest[0]) > within_s * 1e9):
        return None
    return latest[1]


@contextlib.contextmanager
def syncing(directory: str, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
    """Hold the lock of a working copy; raises Refused `busy` when another holds it for too long."""
    handle = _open(os.path.join(directory, "lock"))
    try:
        end = time.monotonic() + deadline_s
        while not _try(handle, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise stdio.Refused("busy", "another sync of this working copy is under way")
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def switching(directory: str, wait: Callable[[list[str]], None] | None) -> Iterator[None]:
    """Keep commands from starting while a switch is under way, and wait for those that run.

    `wait` is called with their names while there are some, and raises when that is to end; None: not waited for.
    """
    handle = _open(os.path.join(directory, "use"))
    try:
        while not _try(handle, fcntl.LOCK_EX):
            if wait is None:
                break
            wait(_users(directory))
        yield
    finally:
        os.close(handle)


class Use:
    """A command's use of the working copy that its directory lies in, until it is closed."""

    def __init__(self, cwd: str, run_id: str, line: str) -> None:
        self._handle: int | None = None
        self._note = ""
        directory = _around(cwd)
        if directory is None:
            return
        handle = _open(os.path.join(directory, "use"))
        end = time.monotonic() + USE_DEADLINE_S
        while not _try(handle, fcntl.LOCK_SH) and time.monotonic() < end:
            time.sleep(_LOOK_S / 10)
        self._handle = handle
        self._note = os.path.join(directory, f"use-{run_id}")
        with contextlib.suppress(OSError), open(self._note, "w", encoding="ascii") as out:
            json.dump({"line": line[:200], "pid": os.getpid()}, out)

    def close(self) -> None:
        """Let it go."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._note)
            os.close(self._handle)
            self._handle = None


def _around(cwd: str) -> str | None:
    """Return the directory of the working copy that a path lies in."""
    place = os.path.normpath(cwd)
    while place not in ("/", ""):
        directory = directory_for(place, makes=False)
        if os.path.isdir(directory):
            return directory
        place = os.path.dirname(place)
    return None


def _users(directory: str) -> list[str]:
    """Name the commands that use a working copy; notes of dead ones are removed."""
    found = []
    for name in sorted(os.listdir(directory)):
        if name.startswith("use-"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                path = os.path.join(directory, name)
                with open(path, encoding="ascii") as source:
                    facts = json.load(source)
                if not os.path.exists(f"/proc/{int(facts['pid'])}") and os.path.isdir("/proc/self"):
                    os.unlink(path)
                    continue
                found.append(f"{name[4:]} (`{facts['line']}`)")
    return found


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(handle: int, how: int) -> bool:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
