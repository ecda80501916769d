"""Start the command line: the console script `chisel` and `python -m chisel`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_GC_THRESHOLD = 100_000
"""Objects between two collections: imports make tens of thousands that all stay, and looking at them takes 15 ms."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit status; Ctrl-C during the start is 130 without a traceback."""
    gc.set_threshold(_GC_THRESHOLD)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from chisel.cli.ahead import open_sockets

        sockets = open_sockets(words, os.environ)
        from chisel.cli.app import run_command

        status = run_command(words, sockets)
    except KeyboardInterrupt:
        status = 130
    leave(status)


def leave(status: int) -> NoReturn:
    """Flush what Python buffers and end, not waiting for a thread that is stuck in a write to a stalled reader."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(status)  # to take the interpreter apart takes 20 ms, and nothing is left for it to do
