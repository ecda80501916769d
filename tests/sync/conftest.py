from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from anyio import to_thread

from chisel.events import NullSink
from chisel.model import DropletId, Host, PullResult, SyncResult
from chisel.sandbox.base import DropletSpec, home_of
from chisel.sandbox.droplets import start_droplet
from chisel.sandbox.standins import DEFAULT_GENERATION
from chisel.ssh.connector import Connection, Connector, open_connector
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.sync.index import Index
from chisel.sync.job import Job, Options
from chisel.sync.pull import PullOptions, pull
from chisel.sync.push import push
from chisel.sync.scan import scan_tree
from chisel.sync.there import Known

REMOTE = PurePosixPath("~/chisel/tree-1")


@dataclass
class Bench:
    """A local tree, a droplet, and the connection between them."""

    connection: Connection
    connector: Connector
    home: Path
    local: Path
    index: Path
    key: KeyPair

    @property
    def remote(self) -> Path:
        return self.home / "chisel" / "tree-1"

    async def push(self, opens: Any = None, **more: Any) -> SyncResult:
        """Sync as a chisel of its own does: whatever it knows, it knows from its files."""
        index, known = await to_thread.run_sync(Index.load, self.index), Known(self.index)
        options, host = more.get("options") or Options(), more.pop("host", self.connection.host)
        tree = more.pop("tree", None) or await scan_tree(self.local, index, is_thorough=options.checks)
        job = Job(tree, index, known, more.pop("remote", REMOTE), **{"owner": "me", "sink": NullSink(), **more})
        try:
            return await push(opens or self.connection.node, host, job)
        finally:
            job.close()

    async def reconnect(self) -> None:
        """Open another connection in place of one that was cut."""
        self.connection = await self.connector.connect(self.connection.host)

    async def pull(self, *patterns: str, to: Path, options: PullOptions | None = None) -> PullResult:
        return await pull(self.connection, REMOTE, patterns, to, sink=NullSink(), options=options)


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Give a droplet that plays the ROCm of the fixture's parameter: `parametrize("bench", ["6.4"], indirect=True)`."""
    rocm = getattr(request, "param", DEFAULT_GENERATION)
    user, host_key = generate_keypair("user"), generate_keypair("host")
    spec = DropletSpec(1, "one", tmp_path / "droplet", (user.public_openssh,), host_key.private_openssh, rocm=rocm)
    droplet = await start_droplet(spec, "asyncssh")
    host = Host("one", DropletId(1), droplet.address, droplet.port, "root", host_key.public_openssh)
    local = tmp_path / "local"
    await to_thread.run_sync(local.mkdir)
    try:
        async with open_connector(user) as connector:
            yield Bench(
                await connector.connect(host), connector, home_of(spec), local, tmp_path / "index" / "one", user
            )
    finally:
        await droplet.close()
