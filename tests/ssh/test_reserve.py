"""Sessions in reserve: ready before they are asked, replaced when taken, gone with their connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from chisel.errors import HostUnreachable
from chisel.model import DropletId, Host
from chisel.ssh.channel import NodeSession
from chisel.ssh.connection import _opened
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.link import MOST_SESSIONS
from chisel.ssh.pipelined import Ahead
from chisel.ssh.translate import translated
from tests.ssh.conftest import Sshd
from tests.ssh.test_connector import output_of

pytestmark = [pytest.mark.timeout(60), pytest.mark.real_part("sshd")]


async def holds(check: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not check():  # noqa: ASYNC110 - what is looked at sends no event
            await anyio.sleep(0.02)


def ready(connector: Connector, sshd: Sshd) -> int:
    spares = connector._connections[sshd.host]._reserve._spares["supervise"]
    return sum(spare.found is not None for spare in spares)


def waiting(sshd: Sshd) -> int:
    """Count the processes that wait on this droplet: others may have theirs at the same time."""
    mine = f"HOME={sshd.home}".encode()
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                is_node = b"python3\0-I" in line and b"supervise" in line and b"chisel_node" in line
                found += is_node and mine in (entry / "environ").read_bytes().split(b"\0")
    return found


async def test_a_command_takes_a_session_that_waits(sshd: Sshd) -> None:
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        connection = await connector.connect(sshd.host)
        await holds(lambda: ready(connector, sshd) == 2)
        spare = connection._reserve._spares["supervise"][0]
        assert spare.found is not None
        pid = spare.found[1].hello["pid"]
        assert int(await output_of(connection, "echo $PPID", "a")) == pid
        await holds(lambda: ready(connector, sshd) == 2)
        assert connection._links[0].sessions == 2
        for number in range(5):
            assert await output_of(connection, f"echo {number}", f"b{number}") == b"%d\n" % number
        await holds(lambda: ready(connector, sshd) == 2)
        assert connection._links[0].sessions == 2


async def test_what_waits_is_no_use_of_the_droplet(sshd: Sshd) -> None:
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        await connector.connect(sshd.host)
        await holds(lambda: ready(connector, sshd) == 2)
        assert not (sshd.home / ".chisel" / "activity").exists()
        assert (await connector.ask(sshd.host, "status", {}))["runs"] == []


async def test_it_ends_with_the_connection(sshd: Sshd) -> None:
    assert waiting(sshd) == 0
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        await connector.connect(sshd.host)
        await holds(lambda: ready(connector, sshd) == 2)
        assert waiting(sshd) == 2
        connector.forget(sshd.host)
        await holds(lambda: waiting(sshd) == 0)


async def test_many_commands_at_once_keep_to_the_limit_of_sessions(sshd: Sshd) -> None:
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        connection = await connector.connect(sshd.host)
        found: list[bytes] = []

        async def one(number: int) -> None:
            found.append(await output_of(connection, f"echo {number}", f"c{number}"))
            assert all(link.sessions <= MOST_SESSIONS for link in connection._links)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(one, number)
        assert sorted(found) == sorted(b"%d\n" % number for number in range(20))


@pytest.mark.parametrize("limit_s", [0.2, 30.0])
@pytest.mark.parametrize(("commands", "limit", "left"), [(1, "_FIRST_S", 1), (5, "_LONGEST_S", 0)])
async def test_what_was_taken_is_replaced_when_its_command_is_over_and_few_are_under_way(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, commands: int, limit: str, left: int, limit_s: float
) -> None:
    """Or after a while, whatever goes on."""
    monkeypatch.setattr(f"chisel.ssh.reserve.{limit}", limit_s)
    gate, runs = sshd.home / "gate", sshd.home / ".chisel" / "runs"
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        connection = await connector.connect(sshd.host)
        await holds(lambda: ready(connector, sshd) == 2)
        async with anyio.create_task_group() as tasks:
            for number in range(commands):
                line = f"while [ ! -e {gate} ]; do sleep 0.1; done"
                tasks.start_soon(output_of, connection, line, f"d{number}")
            await holds(lambda: len(list(runs.glob("d*/run.json"))) == commands)
            if limit_s > 1:
                await anyio.sleep(0.5)
                assert ready(connector, sshd) == left
            else:
                await holds(lambda: ready(connector, sshd) == 2)
            gate.touch()
        await holds(lambda: ready(connector, sshd) == 2)


@pytest.mark.parametrize("is_cold", [True, False])
async def test_a_command_that_opens_the_connection_sees_to_its_reserve(sshd: Sshd, is_cold: bool) -> None:
    async with open_connector(sshd.key, reserve={"supervise": 2}) as connector:
        if not is_cold:
            await connector.connect(sshd.host)
        assert (await connector.ask(sshd.host, "status", {}))["runs"] == []
        await holds(lambda: ready(connector, sshd) == 2)


async def test_a_connection_in_doubt_is_asked_and_a_dead_one_replaced(sshd: Sshd) -> None:
    async with open_connector(sshd.key) as connector:
        first = await connector.connect(sshd.host)
        connector.doubt()
        assert not connector.is_warm(sshd.host)
        assert await connector.connect(sshd.host) is first
        assert connector.is_warm(sshd.host)
        first._links[0].raw._transport.pause_reading()  # type: ignore[attr-defined]  # nothing arrives any more
        connector.doubt()
        began = time.monotonic()
        again = await connector.connect(sshd.host)
        assert again is not first
        assert time.monotonic() - began < 8
        assert await output_of(again, "echo there", "d") == b"there\n"


ENDS = """
async def create_session(*_, **__):
    await anyio.sleep(0.05)
    None.session_started()
"""


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_connection_that_ends_just_when_a_session_begins_is_lost(is_cancelled: bool) -> None:
    """asyncssh calls a session then that it has let go: nobody's command fails for a spare one."""
    theirs: dict[str, Any] = {"anyio": anyio, "__name__": "asyncssh.channel"}
    ours: dict[str, Any] = {"anyio": anyio, "__name__": __name__}
    for place in (theirs, ours):
        exec(ENDS, place)
    host = Host("one", DropletId(1), "127.0.0.1", 22, "root", "")
    ahead = Ahead(NodeSession(host), "line", {}, 1)
    if is_cancelled:
        with anyio.move_on_after(0.01) as scope, translated(host, "opening"):
            await _opened(SimpleNamespace(**theirs), ahead)  # type: ignore[arg-type]
        assert scope.cancelled_caught
        return
    with pytest.raises(HostUnreachable, match="opening failed"), translated(host, "opening"):
        await _opened(SimpleNamespace(**theirs), ahead)  # type: ignore[arg-type]
    with pytest.raises(AttributeError), translated(host, "opening"):  # a bug of ours stays one
        await _opened(SimpleNamespace(**ours), ahead)  # type: ignore[arg-type]
