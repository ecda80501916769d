"""Show what a run has written, and with `follow` what it writes, without being its client."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from typing import Any

from . import attach, frames, registry
from .spool import Mark, Reader, behind
from .stdio import Channel, Refused

_BLOCK = 256 << 10


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Send a run's facts, its output from `since` (Unix time, s) on, and how it ended if it has."""
    run_id = str(request.get("run_id") or "") or _last_run()
    directory = attach.find(run_id)
    door = attach.knock(directory, {"what": "watch"})
    if door is not None:
        door.recv(1)  # from now on its output is on disk
    reader = Reader(directory)
    facts = {**(registry.read(directory, "run.json") or {}), "run_id": run_id, "running": door is not None}
    first = reader.first()
    channel.send_json(frames.Kind.REPLY, {**facts, "place": first._asdict() if first else None})
    start = Mark(**request["place"]) if request.get("place") else first
    if first is not None and start is not None:
        reader.seek(start)
        channel.send_json(frames.Kind.ATTACHED, {"place": start._asdict()})
    since = float(request.get("since") or 0.0)
    for place, row in _rows(channel, reader, door, follows=bool(request.get("follow"))):
        kept = _from(row, since) if since else row
        if since and kept:
            since = 0.0
            for frame in row[: len(row) - len(kept)]:
                place = behind(place, frame)
            channel.send_json(frames.Kind.ATTACHED, {"place": place._asdict()})
        if kept:
            channel.write(b"".join(kept))
    ended = registry.read(directory, "exit.json")
    if ended is not None:
        channel.send_json(frames.Kind.EXIT, ended)
    return 0


def _last_run() -> str:
    found = registry.runs(time.time())
    if not found:
        raise Refused("no-run", "nothing was run on the droplet in the last days")
    return str(found[-1]["run_id"])


def _rows(channel: Channel, reader: Reader, door: Any, *, follows: bool) -> Iterator[tuple[Mark, list[bytes]]]:
    """Give frames as they come, each row with its place, until the run is over or the client has gone."""
    is_over = not follows or door is None
    while True:
        while reader.is_open:
            place = reader.place
            row = reader.next(_BLOCK)
            if not row:
                break
            yield place, row
        if is_over:
            return
        ready = select.select([door, channel.fileno_in], [], [])[0]
        if channel.fileno_in in ready and not os.read(channel.fileno_in, 1 << 16):
            return
        if door in ready:
            is_over = not door.recv(1 << 16)
        if not reader.is_open and (first := reader.first()) is not None:
            reader.seek(first)


def _from(row: list[bytes], since: float) -> list[bytes]:
    """Return what was written at `since` or later, by the marks of time."""
    for index, frame in enumerate(row):
        if frame[0] == frames.Kind.TIME and frames.TIME.unpack_from(frame, frames.HEADER.size)[0] >= since:
            return row[index:]
    return []
