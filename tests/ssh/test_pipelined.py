"""Count what a login takes: the opening, then all the rest in one piece; and meet servers that will not have it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import anyio
import pytest
from anyio.abc import SocketStream

from chisel.errors import HostUnreachable
from chisel.events import NullSink
from chisel.model import DropletId, Host, RunId
from chisel.runner import Order, run_one
from chisel.ssh import connector as connecting
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.early import Departures, may_begin_early
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.ssh.sockets import open_socket
from tests.ssh.conftest import Sshd, free_port
from tests.ssh.test_man_in_the_middle import a_stranger

pytestmark = [pytest.mark.timeout(60), pytest.mark.real_part("sshd")]
DEADLINE_S = 20.0


@dataclass
class Turns:
    """Somebody in between who counts how often the client speaks after the server did, and may stop listening."""

    port: int = 0
    limit: int = 1_000_000
    taken: list[int] = field(default_factory=list)
    cuts_after: int | None = None

    async def between(self, client: SocketStream, server: SocketStream) -> None:
        number = len(self.taken)
        self.taken.append(0)
        has_spoken = True  # so that the first piece counts

        async def back() -> None:
            nonlocal has_spoken
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async for piece in server:
                    await client.send(piece)
                    has_spoken = True
            await client.aclose()

        async with client, server, anyio.create_task_group() as tasks:
            tasks.start_soon(back)
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                async for piece in client:
                    if has_spoken:
                        has_spoken = False
                        self.taken[number] += 1
                    if self.taken[number] <= self.limit:
                        await server.send(piece)
                    if self.taken[number] == self.cuts_after:
                        self.cuts_after = None
                        break
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def turns(host: Host) -> AsyncIterator[tuple[Turns, Host]]:
    counted = Turns()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    counted.port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def serve(client: SocketStream) -> None:
        try:
            server = await anyio.connect_tcp(host.address, host.port)
        except OSError:
            await client.aclose()
            return
        await counted.between(client, server)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield counted, replace(host, port=counted.port)
        tasks.cancel_scope.cancel()


async def ask(connector: Connector, host: Host) -> None:
    with anyio.fail_after(DEADLINE_S):
        assert "runs" in await connector.ask(host, "status", {})


@asynccontextmanager
async def installed(sshd: Sshd) -> AsyncIterator[None]:
    """Have the node program there."""
    async with open_connector(sshd.key) as connector:
        await ask(connector, sshd.host)
    yield


async def test_an_answer_takes_three_round_trips(sshd: Sshd) -> None:
    """The connection itself, the opening, and one more: nothing after the second piece reaches the server."""
    async with installed(sshd), turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        counted.limit = 2
        await ask(connector, host)
        assert connector.plain == set()


async def test_without_it_an_answer_takes_many(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is what it saves, and another version of asyncssh is left alone."""
    monkeypatch.setattr(connecting, "READ_IN", frozenset())
    async with installed(sshd), turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        await ask(connector, host)
        assert counted.taken[0] >= 7


async def test_a_server_that_drops_the_environment_is_asked_again(sshd: Sshd) -> None:
    sshd.config.write_text(sshd.config.read_text().replace("AcceptEnv LANG LC_*\n", ""))
    sshd.configure()
    async with installed(sshd), turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        await ask(connector, host)
        assert counted.taken[0] <= 4
        before = counted.taken[0]
        await ask(connector, host)
        assert len(counted.taken) == 1
        assert counted.taken[0] > before


@pytest.mark.parametrize("algorithms", ["KexAlgorithms=ecdh-sha2-nistp256", "Ciphers=aes128-ctr"])
async def test_a_server_that_agrees_to_something_else_is_met_as_usual(sshd: Sshd, algorithms: str) -> None:
    name, _, value = algorithms.partition("=")
    sshd.configure(**{name: value})
    async with open_connector(sshd.key) as connector:
        await ask(connector, sshd.host)
        assert connector.plain == {sshd.host}
        connector.forget(sshd.host)
        await ask(connector, sshd.host)


async def test_a_refused_key_is_named_and_nothing_was_run(sshd: Sshd) -> None:
    async with installed(sshd), open_connector(generate_keypair("other")) as connector:
        request = {"run_id": "a", "line": "touch ~/begun", "cwd": "~"}
        with pytest.raises(HostUnreachable, match="refuses chisel's SSH key"):
            async with connector.node(sshd.host, "supervise", request):
                pass
    assert not (sshd.home / "begun").exists()


async def test_what_was_on_its_way_when_the_link_was_cut_is_said(sshd: Sshd) -> None:
    async with installed(sshd), turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        counted.cuts_after = 2
        with pytest.raises(HostUnreachable) as caught:
            await ask(connector, host)
        assert caught.value.was_asked
        await ask(connector, host)
    async with turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        counted.cuts_after = 1
        with suppress(HostUnreachable):  # or the server has said its version before: then it is met again, as usual
            await ask(connector, host)
        assert connector.plain == set()


async def test_sockets_that_are_on_their_way_are_used_and_closed(sshd: Sshd) -> None:
    nobody = replace(sshd.host, name="nobody", port=free_port())
    async with installed(sshd), turns(sshd.host) as (counted, host):
        begun = open_socket(host.address, host.port)
        assert begun is not None
        unused = open_socket(host.address, host.port)
        assert unused is not None
        departures = Departures({(host.address, host.port): begun, ("127.0.0.2", 1): unused})
        departures.add([host, nobody])
        await departures.send_while(lambda: None)
        async with open_connector(sshd.key, departures=departures) as connector:
            await ask(connector, host)
            with pytest.raises(HostUnreachable, match="refused"):
                await connector.connect(nobody)
        departures.close()
        assert unused.fileno() == -1
        assert len(counted.taken) <= 2  # the one that was used, and the unused one if it got so far


async def test_a_stranger_gets_the_opening_only() -> None:
    """Byte for byte: a server that holds another key sees the version, KEXINIT, a public key and a goodbye."""
    pinned: KeyPair = generate_keypair("pinned")
    async with a_stranger(generate_keypair("another")) as stranger:
        host = Host("one", DropletId(1), "127.0.0.1", stranger.port, "root", pinned.public_openssh)
        async with turns(host) as (counted, between), open_connector(generate_keypair("me")) as connector:
            with pytest.raises(HostUnreachable, match="pinned host key"):
                await ask(connector, between)
            assert counted.taken[0] <= 2
    assert stranger.heard == []


def test_only_keys_that_an_opening_asks_for_are_begun_early() -> None:
    host = Host("one", DropletId(1), "127.0.0.1", 22, "root", "ssh-ed25519 AAAA")
    assert may_begin_early(host)
    assert not may_begin_early(replace(host, host_key="ecdsa-sha2-nistp256 AAAA"))
    assert not may_begin_early(replace(host, next_host_key="ssh-rsa AAAA"))
    assert not may_begin_early(replace(host, pipelines=False))


@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_command_runs_once_wherever_its_first_link_is_cut(sshd: Sshd, turn: int) -> None:
    async with installed(sshd), turns(sshd.host) as (counted, host), open_connector(sshd.key) as connector:
        counted.cuts_after = turn
        order = Order(line="echo begun >> ~/begun; echo out", cwd="~", capture=True)
        for number in range(10):  # a link cut before anything was asked is an error: the next attempt is another run
            with suppress(HostUnreachable):
                result = await run_one(connector, host, order, NullSink(), run_id=RunId(f"run{number}"))
                break
            assert turn == 1
        assert (result.status, result.stdout) == (0, b"out\n")
    assert (sshd.home / "begun").read_text() == "begun\n"
