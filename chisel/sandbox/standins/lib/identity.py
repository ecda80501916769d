"""Say who is speaking: versions, the device that is played, the note every stand-in prints."""

from __future__ import annotations

import os
import sys

from .motions import DEVICE, NOTICE

ROCM_VERSION = "7.2.0-sandbox-standin"
PROFILER_VERSION = "1.1.0-sandbox-standin"
ARCHITECTURE = "gfx942"
DEVICE_ID = "0x74b5"

__all__ = ["ARCHITECTURE", "DEVICE", "DEVICE_ID", "NOTICE", "PROFILER_VERSION", "ROCM_VERSION", "note", "say"]


def say(text: str) -> None:
    """Write one line to standard output."""
    sys.stdout.write(text + "\n")


def note(tool: str, text: str = NOTICE) -> None:
    """Write one line to standard error, headed by the tool's name."""
    sys.stderr.write(f"{tool}: {text}\n")
    sys.stderr.flush()


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
