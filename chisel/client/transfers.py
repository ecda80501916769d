"""Move files between this machine and several droplets at once: pull, and push outside the working copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from chisel.errors import ChiselError, UsageError
from chisel.events import PullEnded, PushEnded
from chisel.model import Host, PullResult, PushResult, Relay
from chisel.runner import describe

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.sync.push import Connection
    from chisel.sync.wanted import Caps


async def pull_all(
    client: Client,
    hosts: Sequence[Host],
    patterns: Sequence[str],
    target: Path,
    *,
    is_flat: bool,
    is_dry: bool,
    bytes_per_s: float | None,
    caps: Caps | None,
) -> list[PullResult]:
    """Pull from all droplets at once; see `Pool.pull`."""
    from chisel.sync.meeting import Meeting
    from chisel.sync.pull import PullOptions, pull
    from chisel.sync.throttle import Throttle
    from chisel.sync.wanted import Caps

    remote = PurePosixPath(await client.remote_cwd())
    connector = await client.connector(hosts)
    meeting = Meeting(host.name for host in hosts) if is_flat and len(hosts) > 1 else None
    options = PullOptions(
        caps=caps or Caps(),
        is_dry=is_dry,
        notes=client.paths.index_dir,
        throttle=Throttle(bytes_per_s),
        agree=meeting.agree if meeting is not None else None,
    )
    results: dict[str, PullResult] = {}
    refused: list[UsageError] = []

    async def one(host: Host) -> None:
        own = target if is_flat or len(hosts) == 1 else target / host.name
        try:
            connection = await connector.connect(host)
            result = await pull(connection, remote, patterns, own, sink=client.sink, options=options)
        except UsageError as error:
            refused.append(error)
            return
        except ChiselError as error:
            result = PullResult(host=host.name, target=own, error=describe(error), is_dry=is_dry)
        finally:
            if meeting is not None:
                meeting.leave(host.name)
        results[host.name] = result
        client.sink.emit(PullEnded(host=host.name, result=result))

    async with anyio.create_task_group() as tasks:
        for host in hosts:
            tasks.start_soon(one, host)
    if refused:
        raise refused[0]
    return [results[host.name] for host in hosts]


async def push_all(
    client: Client,
    hosts: Sequence[Host],
    sources: Sequence[Path],
    to: str | None,
    *,
    bytes_per_s: float | None,
    relay: Relay,
) -> list[PushResult]:
    """Push to all droplets at once; see `Pool.push`."""
    from chisel.sync.sources import gather
    from chisel.sync.throttle import Throttle
    from chisel.sync.upload import upload

    found = await to_thread.run_sync(gather, sources)
    connector = await client.connector(hosts)
    results: dict[str, PushResult] = {}
    connections: dict[str, Connection] = {}

    async def connect(host: Host) -> None:
        try:
            connections[host.name] = await connector.connect(host)
        except ChiselError as error:
            results[host.name] = PushResult(host=host.name, target=to or "", error=describe(error))

    async with anyio.create_task_group() as tasks:
        for host in hosts:
            tasks.start_soon(connect, host)
    reached = [connections[host.name] for host in hosts if host.name in connections]
    for result in await upload(
        reached,
        found,
        to or "",
        sink=client.sink,
        digests_file=client.paths.index_dir / "pushed",
        throttle=Throttle(bytes_per_s),
        relay=relay,
    ):
        results[result.host] = result
    for host in hosts:
        client.sink.emit(PushEnded(host=host.name, result=results[host.name]))
    return [results[host.name] for host in hosts]
