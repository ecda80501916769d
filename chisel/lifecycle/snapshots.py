"""Bake a prepared droplet into a snapshot, and find it again by its name."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import anyio

from chisel.errors import CloudError, ConfigError
from chisel.lifecycle.desk import FIRST_POLL_S, SLOWEST_POLL_S, Desk
from chisel.model import Snapshot
from chisel.state import DropletRecord, host_of

USD_PER_GIB_MONTH = Decimal("0.06")
"""What DigitalOcean asks for a snapshot (its price list, 2026); the API does not tell."""
DEADLINE_S = 3600.0
_SHELL_TIMEOUT_S = 60.0
# What must not be in an image: the token and the keys that the droplet was made with; the new one gets its own.
_SCRUB = (
    'root="${CHISEL_DROPLET_ROOT:-}"; rm -f "$root"/etc/chisel/self-destruct.* "$root"/var/lib/chisel/*;'
    ' rm -rf "$root"/var/lib/cloud/instances "$root"/var/lib/cloud/instance "$root"/var/lib/cloud/seed;'
    " rm -rf ~/.chisel/runs; sync; echo scrubbed"
)


async def find_snapshot(desk: Desk, name: str) -> Snapshot:
    """Return the newest snapshot of that name; raises ConfigError naming those that are there."""
    snapshots = await desk.cloud.snapshots()
    found = [one for one in snapshots if one.name == name]
    if not found:
        known = ", ".join(sorted({one.name for one in snapshots}))
        raise ConfigError(
            f"there is no snapshot `{name}`" + (f"; there are: {known}" if known else ""),
            hint=f"chisel down --snapshot {name}",
        )
    return found[-1]


async def take_snapshot(desk: Desk, record: DropletRecord, name: str) -> Snapshot:
    """Make a snapshot of a droplet's disk and return it when it is complete; the droplet goes on running, and billing.

    The self-destruct token is removed from the disk first, so from then on only `down` ends the droplet. Raises
    CloudError, HostUnreachable; cancelled, the cloud may complete it all the same.
    """
    connection = await desk.connector.connect(host_of(record))
    answer = await connection.shell(_SCRUB, timeout_s=_SHELL_TIMEOUT_S)
    if answer.stdout.strip() != b"scrubbed":
        raise CloudError(f"`{record.name}` could not be made ready for a snapshot: {answer.stdout!r}")
    before = {one.id for one in await desk.cloud.snapshots()}
    desk.stage(record.name, "preparing", f"takes the snapshot {name}", record)
    action = await desk.cloud.take_snapshot(record.id, name)
    pause = FIRST_POLL_S
    with anyio.move_on_after(DEADLINE_S):
        while (status := await desk.cloud.action_status(action)) == "in-progress":
            await anyio.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_POLL_S)
        if status == "errored":
            raise CloudError(f"the snapshot of `{record.name}` failed in the cloud", hint="try again, or chisel down")
        while True:
            made = [one for one in await desk.cloud.snapshots() if one.id not in before and one.name == name]
            if made:
                return made[-1]
            await anyio.sleep(pause)
    raise CloudError(f"the snapshot of `{record.name}` is not complete after {DEADLINE_S:.0f} s")


def usd_per_month(snapshot: Snapshot) -> Decimal:
    """Return what a snapshot costs a month, in dollars."""
    return (snapshot.size_gib * USD_PER_GIB_MONTH).quantize(Decimal("0.01"), ROUND_HALF_UP)
