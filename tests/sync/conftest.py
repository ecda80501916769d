from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from anyio import to_thread

from chisel.events import NullSink
from chisel.model import DropletId, Host, PullResult, SyncResult
from chisel.sandbox.base import DropletSpec, home_of
from chisel.sandbox.droplets import start_droplet
from chisel.ssh.connector import Connection, open_connector
from chisel.ssh.keys import generate_keypair
from chisel.sync.pull import PullOptions, pull
from chisel.sync.push import push
from chisel.sync.scan import scan_tree

REMOTE = PurePosixPath("~/chisel/tree-1")


@dataclass
class Bench:
    """A local tree, a droplet, and the connection between them."""

    connection: Connection
    home: Path
    local: Path
    index: Path

    @property
    def remote(self) -> Path:
        return self.home / "chisel" / "tree-1"

    async def push(self) -> SyncResult:
        tree = await scan_tree(self.local, self.index)
        return await push(self.connection, tree, REMOTE, owner="me", sink=NullSink())

    async def pull(self, *patterns: str, to: Path, options: PullOptions | None = None) -> PullResult:
        return await pull(self.connection, REMOTE, patterns, to, sink=NullSink(), options=options)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    user, host_key = generate_keypair("user"), generate_keypair("host")
    spec = DropletSpec(1, "one", tmp_path / "droplet", (user.public_openssh,), host_key.private_openssh)
    droplet = await start_droplet(spec, "asyncssh")
    host = Host("one", DropletId(1), droplet.address, droplet.port, "root", host_key.public_openssh)
    local = tmp_path / "local"
    await to_thread.run_sync(local.mkdir)
    try:
        async with open_connector(user) as connector:
            yield Bench(await connector.connect(host), home_of(spec), local, tmp_path / "index" / "one")
    finally:
        await droplet.close()
