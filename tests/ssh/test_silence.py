"""A droplet that is busy is waited for, one that is dead is given up, and only what is dead of it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

import chisel.runner.run
from chisel.errors import HostUnreachable
from chisel.events import Event, LinkLost, RunStarted
from chisel.model import Host, RunResult
from chisel.runner import Order, new_run_id, run_one
from chisel.ssh.connection import Deadlines
from chisel.ssh.connector import Connector, open_connector
from chisel.ssh.link import MOST_SESSIONS
from tests.ssh.conftest import Sshd
from tests.ssh.test_connector import link_of

pytestmark = [pytest.mark.timeout(90), pytest.mark.real_part("sshd")]


def mute_for(seconds: int) -> str:
    """Return a line that stops its own supervisor for so long: the droplet answers, its program does not."""
    return f"kill -STOP $PPID; sleep {seconds}; kill -CONT $PPID; echo fine"


@dataclass
class Command:
    """One command and all that was heard of it."""

    line: str
    events: list[Event] = field(default_factory=list)
    result: RunResult | None = None
    has_begun: anyio.Event = field(default_factory=anyio.Event)
    has_lost: anyio.Event = field(default_factory=anyio.Event)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, RunStarted):
            self.has_begun.set()
        elif isinstance(event, LinkLost):
            self.has_lost.set()

    async def drain(self) -> None:
        return

    async def run(self, connector: Connector, host: Host) -> None:
        self.run_id = new_run_id()
        self.result = await run_one(connector, host, Order(line=self.line), self, run_id=self.run_id)

    @property
    def losses(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, LinkLost)]

    @property
    def ended(self) -> tuple[int | None, int, int]:
        """Return its status, how much it printed and how often its link was opened again."""
        assert self.result is not None
        return self.result.status, self.result.stdout_bytes, self.result.links


async def test_a_busy_droplet_is_waited_for(sshd: Sshd) -> None:
    busy = Command(mute_for(5))
    async with open_connector(sshd.key) as connector:
        await busy.run(connector, sshd.host)
    assert (busy.ended, busy.losses) == ((0, 5, 0), [])


async def test_one_that_is_mute_for_too_long_costs_the_others_nothing(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chisel.runner.run, "MUTE_S", 2.5)
    mute, other = Command(mute_for(7)), Command("sleep 5; echo other")
    async with open_connector(sshd.key) as connector, anyio.create_task_group() as tasks:
        for one in (mute, other):
            tasks.start_soon(one.run, connector, sshd.host)
    assert mute.ended[:2] == (0, 5)
    assert any("answers, but its command has been silent" in reason for reason in mute.losses)
    assert (other.ended, other.losses) == ((0, 6, 0), [])


async def test_only_the_link_that_is_dead_is_given_up(sshd: Sshd) -> None:
    """The commands of the first link see nothing of what becomes of the second."""
    gate, runs = sshd.home / "gate", sshd.home / ".chisel" / "runs"
    commands = [Command(f"while [ ! -e {gate} ]; do sleep 0.1; done; echo fine") for _ in range(MOST_SESSIONS + 2)]
    async with open_connector(sshd.key) as connector, anyio.create_task_group() as tasks:
        for one in commands:
            tasks.start_soon(one.run, connector, sshd.host)
        for one in commands:
            await one.has_begun.wait()
        frozen = link_of(runs / commands[-1].run_id / "run.json")
        os.kill(frozen, signal.SIGSTOP)
        try:
            for one in commands[MOST_SESSIONS:]:
                await one.has_lost.wait()
            gate.touch()
        finally:
            os.kill(frozen, signal.SIGKILL)
    assert [one.ended for one in commands] == [(0, 5, 0)] * MOST_SESSIONS + [(0, 5, 1)] * 2
    assert not any(one.losses for one in commands[:MOST_SESSIONS])


@asynccontextmanager
async def full_link(sshd: Sshd) -> AsyncIterator[tuple[Connector, list[Command]]]:
    """Give a connector whose one link to the droplet has no room left, all its commands waiting; then see them end."""
    gate = sshd.home / "gate"
    commands = [Command(f"while [ ! -e {gate} ]; do sleep 0.1; done; echo fine") for _ in range(MOST_SESSIONS)]
    deadlines = Deadlines(silence_s=0.5)
    async with open_connector(sshd.key, deadlines=deadlines) as connector, anyio.create_task_group() as tasks:
        for one in commands:
            tasks.start_soon(one.run, connector, sshd.host)
        for one in commands:
            await one.has_begun.wait()
        try:
            yield connector, commands
        finally:
            gate.touch()


def unharmed(commands: list[Command]) -> bool:
    return all((one.ended, one.losses) == ((0, 5, 0), []) for one in commands)


async def test_a_further_link_may_take_its_time_while_the_first_answers(sshd: Sshd) -> None:
    late = Command("echo late")
    async with full_link(sshd) as (connector, others), anyio.create_task_group() as tasks:
        os.kill(sshd.process.pid, signal.SIGSTOP)  # the kernel takes connections, nobody says anything on them
        tasks.start_soon(late.run, connector, sshd.host)
        with anyio.move_on_after(2.0):
            await late.has_begun.wait()
        assert not late.has_begun.is_set()
        os.kill(sshd.process.pid, signal.SIGCONT)
    assert (late.ended[0], late.losses) == (0, [])
    assert unharmed(others)


async def test_a_further_login_that_sshd_drops_is_made_again(sshd: Sshd) -> None:
    """Others that are logging in at the same time may leave no room for it (MaxStartups, sshd_config(5))."""
    sshd.configure(MaxStartups="1:100:1")
    late = Command("echo late")
    async with full_link(sshd) as (connector, others), anyio.create_task_group() as tasks:
        with socket.create_connection((sshd.host.address, sshd.host.port)) as other:
            assert other.recv(4) == b"SSH-"
            tasks.start_soon(late.run, connector, sshd.host)
            with anyio.move_on_after(2.0):
                await late.has_begun.wait()
            assert not late.has_begun.is_set()
    assert (late.ended[0], late.losses) == (0, [])
    assert unharmed(others)


async def test_a_further_link_is_not_waited_for_when_the_first_is_dead_too(sshd: Sshd) -> None:
    late = Command("echo late")
    async with full_link(sshd) as (connector, commands):
        link = link_of(sshd.home / ".chisel" / "runs" / commands[0].run_id / "run.json")
        frozen = [sshd.process.pid, link]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(10), pytest.raises(HostUnreachable, match="silent"):
                await late.run(connector, sshd.host)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
