"""Start the command line: the console script `chisel` and `python -m chisel`.

Nothing is imported before the agent has been asked but what that takes: a command that it runs costs a Python start.
"""

from __future__ import annotations

import posix
import sys

from chisel.agent import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_GC_THRESHOLD = 100_000
"""Objects between two collections: imports make tens of thousands that all stay, and looking at them takes 15 ms."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit status; Ctrl-C during the start is 130 without a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        found = wire.call(words, posix.environ)
        status = found if isinstance(found, int) else _run_here(words, found)
    except KeyboardInterrupt:
        status = 130
    leave(status)


def _run_here(words: list[str], remains: wire.Remains | None) -> int:
    """Run the command in this process, and start an agent for the next one where it would have been of use."""
    import gc
    import os

    gc.set_threshold(_GC_THRESHOLD)
    from chisel.cli.ahead import open_sockets

    sockets = open_sockets(words, os.environ)
    from chisel.cli.app import run_and_tell

    status, has_connected = run_and_tell(words, sockets, remains)
    if has_connected:
        from chisel.agent.start import start

        flush(status)
        start(words, posix.environ)
    return status


def flush(status: int) -> int:
    """Write what Python buffers; the status is 1 where that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1
    return status


def leave(status: int) -> NoReturn:
    """Flush and end, not waiting for a thread that is stuck in a write to a stalled reader."""
    posix._exit(flush(status))  # to take the interpreter apart takes 20 ms, and nothing is left to do  # noqa: SLF001 - `os`'s own
