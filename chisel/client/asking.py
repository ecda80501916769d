"""Ask the cloud and the droplets how they are; one that does not answer is said to, and holds up nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from chisel import guard
from chisel.client.pool import by_number
from chisel.client.protection import protection
from chisel.client.statuses import droplet_status, running
from chisel.errors import HostUnreachable, RemoteError
from chisel.model import DropletStatus, PoolStatus, RunningCommand
from chisel.state import DropletRecord, host_of

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.client.pool import Pool

_STATUS_TIMEOUT_S, _GPU_LOOK_S = 8.0, 8.0


async def ask_everybody(client: Client) -> list[PoolStatus]:
    """Ask the cloud once and every droplet of every pool at once; raises CloudError."""
    listed = {droplet.id: droplet for droplet in await (await client.cloud()).list_droplets(tag=guard.TAG)}
    reported = []
    for name, records in sorted((await client.recorded()).items()):
        statuses: dict[str, DropletStatus] = {}

        async def one(record: DropletRecord, statuses: dict[str, DropletStatus] = statuses) -> None:
            cloud_status = listed[record.id].status if record.id in listed else "gone"
            answer = await client.ask(record) if cloud_status == "active" else None
            statuses[record.name] = droplet_status(record, cloud_status, answer)

        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(one, record)
        said = {one.host: one.self_destruct for one in statuses.values()}
        ordered = tuple(statuses[record.name] for record in sorted(records, key=by_number))
        reported.append(PoolStatus(name=name, droplets=ordered, self_destruct=protection(records, said)))
    return reported


async def ask(client: Client, record: DropletRecord, looks_at_gpus: bool) -> dict[str, Any] | None:
    """Ask one droplet, for 8 s at most (16 when it looks at its GPUs); None when it does not answer."""
    limit_s = _STATUS_TIMEOUT_S + (_GPU_LOOK_S if looks_at_gpus else 0)
    try:
        with anyio.fail_after(limit_s):
            return await (await client.connector()).ask(host_of(record), "status", {"looks_at_gpus": looks_at_gpus})
    except (HostUnreachable, RemoteError, TimeoutError):
        return None


async def running_on(client: Client, pool: Pool) -> dict[str, tuple[RunningCommand, ...]]:
    """Ask which commands run, by droplet; those that do not answer, or run nothing, are left out."""
    found: dict[str, tuple[RunningCommand, ...]] = {}

    async def one(record: DropletRecord) -> None:
        answer = await client.ask(record) if record.address is not None and record.is_ready else None
        runs = tuple(running(run) for run in answer["runs"]) if answer else ()
        if any(run.is_running for run in runs):
            found[record.name] = tuple(run for run in runs if run.is_running)

    async with anyio.create_task_group() as tasks:
        for record in pool.records:
            tasks.start_soon(one, record)
    return dict(sorted(found.items()))
