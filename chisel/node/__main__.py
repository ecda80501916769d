"""Start one role of the node program: say hello, read the request, serve it."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence

from . import frames, registry
from .roles import MODULES, PASSIVE, PREPARED
from .stdio import Channel, Refused

BUG_STATUS = 70
VERSION_VARIABLE = "CHISEL_NODE_VERSION"
_GC_THRESHOLD = 50_000
"""Objects between two collections: a manifest is ten thousand that all stay, and looking at them again takes long."""


def main(argv: Sequence[str]) -> int:
    """Serve the role that the first argument names, over standard input and output; return the exit status."""
    gc.set_threshold(_GC_THRESHOLD)
    channel = Channel()
    request = os.environ.pop(frames.REQUEST_VARIABLE, None)
    if request is not None:
        channel.waiting.append(frames.Frame(frames.Kind.REQUEST, request.encode("ascii")))
    channel.send_json(
        frames.Kind.HELLO,
        {
            "magic": frames.MAGIC,
            "version": os.environ.get(VERSION_VARIABLE, ""),
            "python": ".".join(map(str, sys.version_info[:3])),
            "pid": os.getpid(),
            "home": os.environ.get("HOME", ""),
            "was_asked": request is not None,
        },
    )
    try:
        return _serve(channel, argv[0] if argv else "install")
    except Refused as refusal:
        return _answer_error(channel, refusal.code, str(refusal), 1)
    except BrokenPipeError:
        return BUG_STATUS
    except Exception:  # noqa: BLE001 - the boundary: it becomes an ERROR frame
        import traceback  # what a start does not need is not imported: it is paid for by every command

        return _answer_error(channel, "bug", traceback.format_exc(), BUG_STATUS)


def _serve(channel: Channel, role: str) -> int:
    if role == "install":
        return 0
    if role not in MODULES:
        raise Refused("no-role", f"this node program has no role `{role}`")
    module = importlib.import_module(f"{__package__}.{MODULES[role]}")  # a role in reserve is ready when asked
    ready = []
    if role in PREPARED and not channel.waiting:
        ready = [module.prepare()]
    frame = channel.receive()
    if frame is None:
        return 0
    if frame.kind != frames.Kind.REQUEST:
        raise Refused("no-request", f"a request was expected, frame {frame.kind} came")
    if role in PASSIVE:
        return int(module.main(channel, frame.json()))
    registry.touch()
    try:
        return int(module.main(channel, frame.json(), *ready))
    finally:
        registry.touch()


def _answer_error(channel: Channel, code: str, message: str, status: int) -> int:
    try:
        channel.send_json(frames.Kind.ERROR, {"code": code, "message": message})
    except OSError:
        return BUG_STATUS
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
