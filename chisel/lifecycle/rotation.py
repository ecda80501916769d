"""Replace the host key of the first boot, which stays readable in the droplet's user data, by one that is nowhere else.

Killed at any point, whoever comes next can still verify the droplet: the new key is pinned beside the old one before
the droplet gets it, and the old one is dropped only after the new one was seen.
"""

from __future__ import annotations

from dataclasses import replace

import anyio

from chisel import guard
from chisel.errors import HostKeyMismatch, HostUnreachable
from chisel.lifecycle.desk import Desk
from chisel.model import Host
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.state import DropletRecord, host_of

RELOAD_DEADLINE_S = 10.0
LOCK_DEADLINE_S = 60.0
_LOCKS = 256
_LOOK_AGAIN_S = 0.05
_SHELL_TIMEOUT_S = 10.0


async def rotate(desk: Desk, record: DropletRecord, pair: KeyPair | None) -> DropletRecord:
    """Return the record of a droplet that shows a host key of its own from now on, `pair`'s or a new one.

    Of several that would do it at once one does, the others wait for it. Without the pair that the droplet's tag names
    (whoever made it was cut short) a new one is made and tagged. Raises HostUnreachable, HostKeyMismatch, RemoteError.
    """
    if record.is_rotated:
        return record
    async with desk.store.locked(f"rotate-{record.id % _LOCKS}", deadline_s=LOCK_DEADLINE_S):
        record = await desk.latest(record)
        return record if record.is_rotated else await _rotate(desk, record, pair)


async def _rotate(desk: Desk, record: DropletRecord, pair: KeyPair | None) -> DropletRecord:
    if pair is None or pair.public_openssh != record.next_host_key:
        if record.next_host_key is not None and await _shows(desk, record, record.next_host_key):
            return await _rotated(desk, record, record.next_host_key)  # whoever made it died after the droplet had it
        pair = generate_keypair("chisel")
        desk.connector.forget(host_of(record))
        record = await desk.revise(record, next_host_key=pair.public_openssh)
        await desk.cloud.tag_droplet(guard.attempt_tag(record.attempt, pair.public_openssh), record.id)
    before = host_of(record)
    await _install(desk, record, pair)
    await _see(desk, replace(before, host_key=pair.public_openssh, next_host_key=None))
    return await _rotated(desk, record, pair.public_openssh)


async def _rotated(desk: Desk, record: DropletRecord, key: str) -> DropletRecord:
    desk.connector.forget(host_of(record))
    return await desk.revise(record, host_key=key, next_host_key=None, is_rotated=True)


async def _shows(desk: Desk, record: DropletRecord, key: str) -> bool:
    """Say whether the droplet shows this very key to a new connection."""
    try:
        await desk.connector.connect(replace(host_of(record), host_key=key, next_host_key=None))
    except HostKeyMismatch:
        return False
    return True


async def _see(desk: Desk, after: Host) -> None:
    """Connect by the new key alone; sshd takes a moment to read it, and until then nothing is sent."""
    ends_at = anyio.current_time() + RELOAD_DEADLINE_S
    while True:
        try:
            connection = await desk.connector.connect(after)
        except HostKeyMismatch:
            if anyio.current_time() >= ends_at:
                raise
            await anyio.sleep(_LOOK_AGAIN_S)
            continue
        answer = await connection.shell("true", timeout_s=_SHELL_TIMEOUT_S)
        if answer.status != 0:
            raise HostUnreachable(f"`{after.name}` runs no commands after its host key changed", host=after.name)
        return


async def _install(desk: Desk, record: DropletRecord, pair: KeyPair) -> None:
    connection = await desk.connector.connect(host_of(record))
    request = {"private": pair.private_openssh, "public": pair.public_openssh}
    await connection.ask("hostkey", request)
