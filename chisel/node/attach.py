"""Join a session to a run: the supervisor takes its channel over; what has ended is told from its record."""

from __future__ import annotations

import time
from typing import Any

from . import frames, listener, registry
from .spool import Mark, Reader
from .stdio import Channel, Refused

_BLOCK = 256 << 10
_STARTING_S = 5.0
_LOOK_S = 0.02


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Hand this session's channel to the supervisor and stay until it is done with it.

    `place` is what the client has already (see `spool.Mark`), None for all that is kept. With `forbids` a run that
    never began will not begin: the request for it may still be under way.
    """
    run_id = str(request.get("run_id", ""))
    directory = find(run_id, forbids=bool(request.get("forbids")))
    place = request.get("place")
    door = knock(directory, {"what": "attach", "place": place}, (channel.fileno_in, channel.fileno_out))
    if door is not None:
        while door.recv(64):
            pass
        return 0
    ended = registry.read(directory, "exit.json")
    if ended is None:
        raise Refused("died", "its supervisor was killed: the droplet was restarted, or had no memory left")
    _replay(channel, directory, run_id, ended, place)
    return 0


def find(run_id: str, *, forbids: bool = False) -> str:
    """Return the directory of a run; raises Refused where there is none."""
    directory = registry.directory_of(run_id)
    if directory is None and not (forbids and registry.forbid(run_id)):
        directory = registry.directory_of(run_id)
    if directory is None or registry.exists(directory, "never"):
        raise Refused("no-run", f"there is no run `{run_id}` on the droplet")
    return directory


def knock(directory: str, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
    """Go to a run's supervisor, waiting for one that is just starting; None when it has ended."""
    ends_at = time.monotonic() + _STARTING_S
    while True:
        door = listener.call(directory, request, descriptors)
        if door is not None or registry.read(directory, "exit.json") or time.monotonic() > ends_at:
            return door
        if not registry.is_alive(directory) and registry.read(directory, "run.json"):
            return listener.call(directory, request, descriptors)
        time.sleep(_LOOK_S)


def _replay(channel: Channel, directory: str, run_id: str, ended: dict[str, Any], place: dict[str, Any] | None) -> None:
    reader = Reader(directory)
    first = reader.first()
    if first is None:
        first = Mark()
        if ended.get("stdout_bytes", 0) + ended.get("stderr_bytes", 0):
            raise Refused("gone", "its output was not kept: there was no room on the disk")
    start = Mark(**place) if place is not None else first
    if reader.first() is not None:
        reader.seek(start)
    facts = {**(registry.read(directory, "run.json") or {}), "run_id": run_id}
    channel.send_json(frames.Kind.ATTACHED, {**facts, "place": start._asdict(), "stdin": 0, "signals": 0})
    while reader.is_open and (row := reader.next(_BLOCK)):
        channel.write(b"".join(row))
    channel.send_json(frames.Kind.EXIT, ended)
