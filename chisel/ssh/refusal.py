"""Turn what the node program refuses into chisel's own error."""

from __future__ import annotations

from chisel.errors import RemoteError
from chisel.node.frames import Frame

_HINTS = {
    "no-cwd": "chisel sync",
    "disk-full": "chisel run 'df -h ~', then make room there",
    "busy": "wait for the other sync, then try again",
    "owned": "chisel sync --take-over makes it yours",
}


def remote_error(frame: Frame, host: str) -> RemoteError:
    """Return the exception that an ERROR frame stands for, with the next command to type where there is one."""
    facts = frame.json()
    code = str(facts.get("code", "bug"))
    return RemoteError(str(facts.get("message", "failed")), host=host, code=code, hint=_HINTS.get(code))
