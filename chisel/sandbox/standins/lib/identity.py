"""Say who is speaking: versions, the device that is played, the note every stand-in prints."""

from __future__ import annotations

import os
import sys

from .motions import DEVICE, NOTICE

_PROFILERS = {"7.2": "1.1.0", "6.4": "0.6.0", "5.7": "2.0"}


def _installed() -> str:
    """Return what the version file beside this library says."""
    rocm = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        with open(os.path.join(rocm, ".info", "version"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "7.2.0-sandbox-standin"


ROCM_VERSION = _installed()
GENERATION = ".".join(ROCM_VERSION.split(".")[:2])
PROFILER_VERSION = f"{_PROFILERS.get(GENERATION, '1.1.0')}-sandbox-standin"
ARCHITECTURE = "gfx942"
DEVICE_ID = "0x74b5"
MARK = "(sandbox stand-in)"
NOTE_FILE = "SANDBOX-STAND-IN.txt"
GPUS = "CHISEL_STANDIN_GPUS"
_MOST_GPUS = 8

__all__ = [
    "ARCHITECTURE",
    "DEVICE",
    "DEVICE_ID",
    "GENERATION",
    "GPUS",
    "MARK",
    "NOTE_FILE",
    "NOTICE",
    "PROFILER_VERSION",
    "ROCM_VERSION",
    "die_like",
    "gpu_count",
    "leave_note",
    "note",
    "say",
]


def say(text: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(text + "\n")


def note(tool: str, text: str = NOTICE) -> None:
    """Write one line to standard error, headed by the tool's name."""
    sys.stderr.write(f"{tool}: {text}\n")
    sys.stderr.flush()


def leave_note(directory: str, tool: str) -> None:
    """Say beside files whose format has no place for it that they are a stand-in's."""
    with open(os.path.join(directory, NOTE_FILE), "w", encoding="utf-8") as file:
        file.write(f"Written by {tool} {PROFILER_VERSION}: {NOTICE}.\n")


def gpu_count(environment: dict[str, str] | None = None) -> int:
    """Return how many GPUs are played, 1 to 8: `CHISEL_STANDIN_GPUS` says so."""
    text = (os.environ if environment is None else environment).get(GPUS, "1")
    return min(max(int(text), 1), _MOST_GPUS) if text.isascii() and text.isdecimal() else 1


def die_like(signal_number: int) -> int:
    """End this process by the signal that ended the program it ran; returns 128 + n if it survives that."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    sys.stdout.flush()
    if signal_number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)
    return 128 + signal_number
