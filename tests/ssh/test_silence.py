"""A droplet that is busy is waited for, one that is dead is given up, and only what is dead of it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

import anyio
import pytest

import chisel.runner.run
from chisel.events import Event, LinkLost, RunStarted
from chisel.model import Host, RunResult
from chisel.runner import Order, new_run_id, run_one
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
