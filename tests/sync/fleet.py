"""Several droplets with a private network between them, each behind a counter of what this machine sends to it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from chisel.errors import ChiselError
from chisel.events import Event
from chisel.model import DropletId, Host, PushResult, SyncResult
from chisel.sandbox.base import DropletSpec, home_of
from chisel.sandbox.droplets import start_droplet
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.keys import generate_keypair
from chisel.sync.index import Index
from chisel.sync.job import Job, Options
from chisel.sync.push import push
from chisel.sync.scan import scan_tree
from chisel.sync.sources import gather
from chisel.sync.there import Known
from chisel.sync.throttle import Throttle
from chisel.sync.upload import upload
from tests.sync.conftest import REMOTE
from tests.torture.proxy import Proxy


class Events:
    """Keep every event."""

    def __init__(self) -> None:
        self.all: list[Event] = []

    def emit(self, event: Event) -> None:
        self.all.append(event)

    async def drain(self) -> None:
        """Have nothing to wait for."""


@dataclass
class Fleet:
    """Droplets, connected; `hosts` may be changed before a sync, to be worse reached than they are."""

    connector: Connector
    hosts: list[Host]
    homes: list[Path]
    proxies: list[Proxy]
    place: Path
    sink: Events = field(default_factory=Events)

    @property
    def local(self) -> Path:
        return self.place / "local"

    def remote(self, number: int) -> Path:
        return self.homes[number] / "chisel" / "tree-1"

    def uplink_bytes(self) -> int:
        return sum(proxy.bytes_up for proxy in self.proxies)

    async def warm_up(self) -> None:
        """Have the node program on all of them: what follows costs what it carries."""
        for host in self.hosts:
            await self.connector.ask(host, "status", {})

    async def sync(
        self, relay: Any = "on", numbers: Sequence[int] | None = None, **more: Any
    ) -> dict[str, SyncResult | ChiselError]:
        """Sync some droplets (default: all); a failure is a value."""
        chosen = [self.hosts[number] for number in (range(len(self.hosts)) if numbers is None else numbers)]
        connections = {host.name: await self.connector.connect(host) for host in chosen}
        file = self.place / "index" / "one"
        index, known = await to_thread.run_sync(Index.load, file), Known(file)
        tree = await scan_tree(self.local, index)
        found: dict[str, SyncResult | ChiselError] = {}
        job = Job(
            tree,
            index,
            known,
            REMOTE,
            owner="me",
            sink=self.sink,
            options=Options(relay=relay),
            droplets=len(chosen),
            **more,
        )

        async def one(host: Host) -> None:
            try:
                found[host.name] = await push(connections[host.name].node, host, job)
            except ChiselError as error:
                found[host.name] = error

        try:
            async with anyio.create_task_group() as tasks:
                for host in chosen:
                    tasks.start_soon(one, host)
        finally:
            job.close()
        return found

    async def upload(
        self, sources: Sequence[Path], relay: Any = "on", numbers: Sequence[int] | None = None, **more: Any
    ) -> list[PushResult]:
        """Push some files to the droplets' `~/data`."""
        chosen = [self.hosts[number] for number in (range(len(self.hosts)) if numbers is None else numbers)]
        return await upload(
            [await self.connector.connect(host) for host in chosen],
            await to_thread.run_sync(gather, list(sources)),
            "~/data",
            sink=self.sink,
            digests_file=self.place / "pushed",
            relay=relay,
            **more,
        )

    def receivers(self, number: int) -> list[int]:
        """Return the processes of a droplet's receiver."""
        return node_processes(self.homes[number])

    def staged(self, number: int) -> list[Path]:
        """Return what lies beside a droplet's working copy."""
        return [path for path in (self.homes[number] / "chisel").glob(".chisel-stage-*/*") if path.is_file()]

    def is_clean(self, number: int) -> bool:
        """Say whether no process of a sync is left there."""
        return not self.receivers(number)


def node_processes(home: Path) -> list[int]:
    """Return the node program's processes that have this home."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
            line = (entry / "cmdline").read_bytes() if environ else b""
        except OSError:
            continue
        if f"HOME={home}".encode() in environ.split(b"\0") and (b"\0receive\0" in line or b"\0store\0" in line):
            found.append(int(entry.name))
    return found


class Held(Throttle):
    """Let so many bytes through at a rate, and the rest once it is let go: a busy machine must not be too late."""

    def __init__(self, bytes_per_s: float, most: int) -> None:
        super().__init__(bytes_per_s)
        self._left = most
        self.let_go = anyio.Event()

    async def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            await self.let_go.wait()
        await super().take(count)


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def running_fleet(place: Path, count: int, region: str = "nyc") -> AsyncIterator[Fleet]:
    user = generate_keypair("user")
    droplets, hosts, homes, proxies = [], [], [], []
    try:
        for number in range(count):
            key = generate_keypair("host")
            spec = DropletSpec(
                number + 1, f"d{number}", place / f"d{number}", (user.public_openssh,), key.private_openssh
            )
            droplet = await start_droplet(spec, "asyncssh")
            droplets.append(droplet)
            proxies.append(Proxy((droplet.address, droplet.port)))
            host = Host(f"d{number}", DropletId(number + 1), "127.0.0.1", proxies[-1].port, "root", key.public_openssh)
            hosts.append(replace(host, region=region, private_address=f"127.9.0.{number + 1}"))
            homes.append(home_of(spec))
        await to_thread.run_sync((place / "local").mkdir)
        async with open_connector(user) as connector:
            fleet = Fleet(connector, hosts, homes, proxies, place)
            await fleet.warm_up()
            yield fleet
    finally:
        for proxy in proxies:
            await to_thread.run_sync(proxy.close)
        for droplet in droplets:
            await droplet.close()
