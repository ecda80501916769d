"""Put somebody between chisel and its droplets, hundreds of times: nothing but the key exchange ever reaches them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import asyncssh
import pytest

from chisel.errors import HostKeyMismatch, HostUnreachable
from chisel.model import DropletId, Host
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.keys import KeyPair, generate_keypair

ATTEMPTS = 200
AT_ONCE = 20
SECRET = "make secret-target"
VERSION = "OpenSSH_9.6p1"  # whose sessions are sent with the login


@dataclass
class Stranger:
    """An SSH server that lets everybody in and writes down whatever it is told."""

    port: int = 0
    connections: int = 0
    heard: list[str] = field(default_factory=list)

    def server(self) -> asyncssh.SSHServer:
        stranger = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                del conn
                stranger.connections += 1

            def begin_auth(self, username: str) -> bool:
                stranger.heard.append(f"user {username}")
                return False

            def server_requested(self, *_: object) -> bool:
                stranger.heard.append("a forwarding")
                return False

        return Server()

    def process(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self.heard += [f"command {process.command}", f"environment {dict(process.env)}"]
        process.exit(0)


@asynccontextmanager
async def a_stranger(shown: KeyPair, version: str = VERSION) -> AsyncIterator[Stranger]:
    stranger = Stranger()
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=stranger.server, process_factory=stranger.process, encoding=None,
        server_host_keys=[asyncssh.import_private_key(shown.private_openssh)], server_version=version,
    )  # fmt: skip
    stranger.port = listener.get_port()
    try:
        yield stranger
    finally:
        listener.close()
        await listener.wait_closed()


FIRST, NEXT, OTHERS, RANDOM = (generate_keypair(name) for name in ("first", "next", "other", "random"))
HOST = Host("bench-1", DropletId(1), "127.0.0.1", 0, "root", FIRST.public_openssh)
# What chisel has pinned, and which key the stranger shows: its own, another droplet's, one that has been replaced.
SCENES = {
    "before rotation": (HOST, RANDOM),
    "during rotation": (replace(HOST, next_host_key=NEXT.public_openssh), RANDOM),
    "after rotation": (replace(HOST, host_key=NEXT.public_openssh), RANDOM),
    "after rotation, with the first key, which user data gave away": (
        replace(HOST, host_key=NEXT.public_openssh),
        FIRST,
    ),
    "two droplets' addresses swapped": (HOST, OTHERS),
    "an address reused by another droplet": (replace(HOST, droplet_id=DropletId(2)), OTHERS),
}


async def tell(connector: Connector, host: Host) -> None:
    request = {"run_id": "a", "line": SECRET, "cwd": "~", "env": {"SECRET": SECRET}}
    async with connector.node(host, "supervise", request) as channel:
        await channel.receive()


@pytest.mark.timeout(120)
async def test_hundreds_of_men_in_the_middle_hear_nothing() -> None:
    met: Counter[str] = Counter()
    heard: list[str] = []
    for name, (host, shown) in SCENES.items():
        async with a_stranger(shown) as stranger:
            at = replace(host, port=stranger.port)
            limiter = anyio.Semaphore(AT_ONCE)

            async def attempt(at: Host = at, limiter: anyio.Semaphore = limiter, name: str = name) -> None:
                async with limiter, open_connector(generate_keypair("me")) as connector:
                    for _ in range(10):  # a login that times out on a busy machine is no attempt
                        try:
                            await tell(connector, at)
                        except HostKeyMismatch:
                            met[name] += 1
                            return
                        except HostUnreachable:
                            continue
                    pytest.fail("nobody answered")

            async with anyio.create_task_group() as tasks:
                for _ in range(-(-ATTEMPTS // len(SCENES))):
                    tasks.start_soon(attempt)
            assert stranger.connections >= met[name]
            heard += stranger.heard
    assert heard == []
    assert sum(met.values()) >= ATTEMPTS


async def test_the_stranger_hears_what_it_is_told_when_its_key_is_right() -> None:
    """The test above can fail."""
    async with a_stranger(FIRST, version="other") as stranger, open_connector(generate_keypair("me")) as connector:
        with pytest.raises(HostUnreachable, match="does not start the node program"):
            await tell(connector, replace(HOST, port=stranger.port))
        assert "user root" in stranger.heard
        assert any("environment" in one and "secret-target" in one for one in stranger.heard)


async def test_what_was_verified_once_is_verified_again() -> None:
    async with a_stranger(FIRST, version="other") as stranger, open_connector(generate_keypair("me")) as connector:
        connector_host = replace(HOST, port=stranger.port)
        await connector.connect(connector_host)
        connector.forget(connector_host)
        heard = len(stranger.heard)
        with pytest.raises((HostKeyMismatch, HostUnreachable)):
            await connector.connect(replace(connector_host, host_key=NEXT.public_openssh))
        assert len(stranger.heard) == heard
