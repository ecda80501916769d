"""Keep the files that OpenSSH's own client reads: known hosts, and Host blocks where the user has asked for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from chisel.model import Host
from chisel.paths import make_private_directory, write_private_file
from chisel.ssh.openssh import known_hosts, ssh_config
from chisel.state import host_of

if TYPE_CHECKING:
    from chisel.client.client import Client


async def write_files(client: Client, *, makes_config: bool = False) -> Path:
    """Write known hosts, and the Host blocks where there are some already or `makes_config`; return the latter's path.

    Every droplet of this account that has an address is in them. Raises OSError.
    """
    recorded = await client.recorded()
    hosts = [host_of(one) for records in recorded.values() for one in records if one.address is not None]
    place = client.paths.ssh_config_file
    await to_thread.run_sync(_write, client.paths.known_hosts_file, known_hosts(hosts))
    if makes_config or await to_thread.run_sync(place.exists):
        text = ssh_config(hosts, key=client.paths.client_key, known=client.paths.known_hosts_file)
        await to_thread.run_sync(_write, place, text)
    return place


async def refresh(client: Client) -> None:
    """Bring Host blocks up to date where the user has some; a file that cannot be written is left as it is."""
    if await to_thread.run_sync(client.paths.ssh_config_file.exists):
        with suppress(OSError):
            await write_files(client)


def _write(path: Path, text: str) -> None:
    with suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    make_private_directory(path.parent)
    write_private_file(path, text.encode(), suffix=f".{os.getpid()}.new")


def only_host(hosts: Sequence[Host]) -> Host:
    """Return the one host of a pool that was narrowed down to one."""
    (host,) = hosts
    return host
