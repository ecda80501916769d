"""Live in the background: become nobody's child, keep secrets out of core dumps, notice what makes an agent useless."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

LONGEST_LOG_BYTES = 256 << 10
_PR_SET_DUMPABLE = 4
_FIRST_INHERITED = 3
_LOOK_EVERY_S = 1.0


def detach(kept: int) -> None:
    """Leave the session, the directory and the descriptors of whoever started this process, but for one descriptor."""
    with suppress(OSError):
        os.setsid()
    os.chdir("/")
    os.closerange(_FIRST_INHERITED, kept)
    os.closerange(kept + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.set_inheritable(kept, False)


def forbid_core_dumps() -> None:
    """Let neither a core file nor another process of this user read the memory (prctl(2), PR_SET_DUMPABLE)."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def raise_limits() -> None:
    """Allow as many open files as the system lets this user have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Log:
    """A bounded file of lines; what cannot be written (a full disk) is lost, and nothing else."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, text: str) -> None:
        """Write a line with its time; never blocks for long, never raises."""
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} [{os.getpid()}] {text}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.file, flags, 0o600)
            try:
                if os.fstat(descriptor).st_size > LONGEST_LOG_BYTES:
                    os.replace(self.file, self.file.with_name(self.file.name + ".1"))
                os.write(descriptor, line)
            finally:
                os.close(descriptor)


class Sources:
    """The files that this process is made of: when one of them changes, another program should be in its place."""

    def __init__(self, more: Iterable[Path]) -> None:
        self._more = tuple(map(str, more))
        self._seen: dict[str, tuple[int, int] | None] = {}
        self._looked_at = 0.0
        self.have_changed()

    def have_changed(self) -> bool:
        """Say whether a module of chisel that is loaded, or another file of interest, differs from when it was seen.

        Within `_LOOK_EVERY_S` of the last look it was not.
        """
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return False
        self._looked_at = time.monotonic()
        modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "chisel"]
        files = [file for module in modules if (file := getattr(module, "__file__", None))]
        return sum(self._differs(file) for file in (*files, *self._more)) > 0  # every one is to be looked at

    def _differs(self, file: str) -> bool:
        try:
            found = os.stat(file)
            stamp: tuple[int, int] | None = (found.st_mtime_ns, found.st_size)
        except OSError:
            stamp = None
        return self._seen.setdefault(file, stamp) != stamp
