"""Misbehave as real profilers do, by name: `CHISEL_STANDIN_FAULT` reaches the profiler with the command's environment.

no-files              nothing is written at all
barriers-only         every dispatch is a barrier packet
truncated-db          databases end in the middle (a full disk, a copy that was cut)
killed-while-writing  half a file and a journal are left, temporary files too; the profiler dies by SIGKILL
slow-finalise         after a SIGINT the files grow for seconds (rocm-systems#1072: 9 minutes); another one ends it
stats-truncated       statistics end in the middle of a row while the trace is whole
long-names            kernel names of 1,800 characters that differ in the last ones only
secrets-in-markers    what the environment calls a token, a key or a secret stands in the text of markers
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable

from .collection import Collected
from .identity import NOTICE, die_like

FAULT = "CHISEL_STANDIN_FAULT"
FINALISE_S = "CHISEL_STANDIN_FINALISE_S"
"""How long `slow-finalise` takes, in seconds; 3 without it."""
NAMES = (
    "no-files",
    "barriers-only",
    "truncated-db",
    "killed-while-writing",
    "slow-finalise",
    "stats-truncated",
    "long-names",
    "secrets-in-markers",
)
BARRIER = "<barrier packet>"
_LONG = 1800
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY")
_PIECES = 60


def fault() -> str:
    """Return the fault that is switched on, empty for none; raises ValueError for a name that is none."""
    name = os.environ.get(FAULT, "")
    if name and name not in NAMES:
        raise ValueError(f"{FAULT}={name} is no fault; known: {', '.join(NAMES)}")
    return name


def spoiled(found: Collected, name: str) -> Collected:
    """Return what a process recorded as the fault lets it appear."""
    if name == "barriers-only":
        kernels = [{"name": BARRIER, "display": BARRIER, "symbol": BARRIER, "pointers": 0}]
        launches = [{**launch, "kernel": 0} for launch in found.launches]
        return Collected(found.process, kernels, launches, found.path, found.more_markers)
    if name == "long-names":
        kernels = [{**one, "display": _long(one["display"]), "symbol": _long(one["symbol"])} for one in found.kernels]
        return Collected(found.process, kernels, found.launches, found.path, found.more_markers)
    if name == "secrets-in-markers":
        secrets = [f"{key}={value}" for key, value in found.process.environment.items() if _SECRET.search(key)]
        markers = [*found.more_markers, *(f'request with "{text}", made' for text in secrets)]
        return Collected(found.process, found.kernels, found.launches, found.path, markers)
    return found


def _long(name: str) -> str:
    tail = f"{name}>(float*, unsigned long)"
    return ("void standin::detail::launch_with<" + "standin::layout<float, 4ul>, " * 80)[: _LONG - len(tail)] + tail


class Delivery:
    """Bring finished files from the temporary directory to where they belong, as the fault has it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.was_interrupted = False

    def bring(self, staged: str, place: str) -> None:
        """Move every file of `staged` into `place`; may end this process."""
        os.makedirs(place, exist_ok=True)
        names = sorted(os.listdir(staged))
        if self.name == "killed-while-writing":
            self._die_in_the_middle(staged, place, names)
        if self.name == "slow-finalise" and self.was_interrupted:
            self._slowly(staged, place, names)
            return
        for name in names:
            shutil.move(os.path.join(staged, name), os.path.join(place, name))
            self._cut(os.path.join(place, name))

    def _cut(self, path: str) -> None:
        is_stats = path.endswith("stats.csv")
        if self.name == "truncated-db" and path.endswith(".db"):
            os.truncate(path, os.path.getsize(path) * 6 // 10)
        elif self.name == "stats-truncated" and is_stats:
            with open(path, "rb") as file:
                data = file.read()
            start = data.index(b"\n") + 1
            os.truncate(path, start + max(1, (len(data) - start) // 3))

    def _die_in_the_middle(self, staged: str, place: str, names: list[str]) -> None:
        for name in names:
            source, target = os.path.join(staged, name), os.path.join(place, name)
            size = os.path.getsize(source)
            shutil.copyfile(source, target)
            if name.endswith(".db"):
                with open(target + "-journal", "wb") as journal:
                    journal.write(NOTICE.encode() + b"\0" * 512)
            if size > 1 and not name.endswith(".txt"):
                os.truncate(target, size // 2)
        die_like(signal.SIGKILL)

    def _slowly(self, staged: str, place: str, names: list[str]) -> None:
        """Let the files grow over some seconds; a signal meanwhile ends this process with what is there."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        pause_s = float(os.environ.get(FINALISE_S, "3")) / (_PIECES * max(len(names), 1))
        for name in names:
            size = os.path.getsize(os.path.join(staged, name))
            with open(os.path.join(staged, name), "rb") as source, open(os.path.join(place, name), "wb") as target:
                _copy_slowly(source.read, target.write, target.flush, size, pause_s)


def _copy_slowly(
    read: Callable[[int], bytes], write: Callable[[bytes], int], flush: Callable[[], None], size: int, pause_s: float
) -> None:
    piece = max(1, -(-size // _PIECES))
    while data := read(piece):
        write(data)
        flush()
        time.sleep(pause_s)
