"""Show what runs have written, end them, find them: from any machine that knows the droplets."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import anyio

from chisel.errors import HostKeyMismatch, HostUnreachable
from chisel.events import LinkLost, LinkResumed, Sink
from chisel.model import Host, RunId, RunResult
from chisel.node.frames import Kind
from chisel.runner.order import Order
from chisel.runner.run import Connector
from chisel.runner.watch import Watch

_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.2, 5.0
_CONNECT_S = 20.0


async def show_logs(
    connector: Connector,
    host: Host,
    run_id: RunId,
    sink: Sink,
    *,
    follow: bool = False,
    since: float = 0.0,
    kept: dict[str, Any] | None = None,
    patience_s: float = 300.0,
) -> RunResult | None:
    """Emit what a droplet keeps of a run's output, written at `since` (Unix time, s) or later.

    `kept` is where another process stopped (`Watch.kept_place`).
    With `follow` what comes, until the run ends, over lost links for `patience_s` each. Returns how it ended, None
    while it runs. Raises HostUnreachable, and RemoteError where there is no such run.
    """
    watch = Watch(host.name, run_id, Order(line=""), sink)
    request: dict[str, Any] = {"run_id": run_id, "follow": follow, "since": since}
    if kept is not None:
        watch.take_up(kept)
        request = {"run_id": run_id, "follow": follow, "place": watch.place}
    lost_at, wait_s, is_first = 0.0, _BACK_OFF_S, True
    while True:
        try:
            async with connector.node(host, "logs", request) as channel:
                while row := await channel.receive():
                    if lost_at:
                        seconds = time.monotonic() - lost_at
                        sink.emit(LinkResumed(host=host.name, position=watch.position, seconds=seconds))
                    is_first, lost_at, wait_s = False, 0.0, _BACK_OFF_S
                    for frame in row:
                        if frame.kind == Kind.ATTACHED:
                            watch.begin_at(frame.json()["place"])
                        else:
                            watch.take(frame)
                    await sink.drain()
            return watch.result() if watch.exit is not None else None
        except HostUnreachable as error:
            if is_first or not follow or isinstance(error, HostKeyMismatch):
                raise
            if not lost_at:
                lost_at = time.monotonic()
                sink.emit(LinkLost(host=host.name, run_id=run_id, reason=error.message))
            elif time.monotonic() - lost_at > patience_s:
                raise
        request = {"run_id": run_id, "follow": follow, "place": watch.place}
        await anyio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_BACK_OFF_S)


async def end_run(
    connector: Connector, host: Host, run_id: RunId, *, signal: int | None = None, grace_s: float = 5.0
) -> dict[str, Any]:
    """Send a run a signal, or end it (TERM, KILL after `grace_s`) and wait for its end; returns what became of it.

    `was_running`, `running` and `status` are in it. Raises HostUnreachable, and RemoteError where there is no such run.
    """
    with anyio.fail_after(grace_s + 15 + _CONNECT_S):
        return await connector.ask(host, "kill", {"run_id": run_id, "signal": signal, "grace_s": grace_s})


async def runs_of(connector: Any, host: Host, *, timeout_s: float) -> list[dict[str, Any]]:
    """Return a droplet's record of runs, the newest last; empty where it does not answer."""
    with suppress(HostUnreachable), anyio.move_on_after(timeout_s):
        found: list[dict[str, Any]] = (await connector.ask(host, "status", {}))["runs"]
        return found
    return []
