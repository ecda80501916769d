"""Keep verified connections to every recorded droplet, each with a session in reserve, over sleep and lost networks."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from chisel.client.trees import Trees
from chisel.errors import ChiselError
from chisel.model import Host
from chisel.paths import Paths
from chisel.ssh.quick import load_asyncssh
from chisel.state import State, StateStore, host_of

if TYPE_CHECKING:
    from chisel.ssh.connector import Connector

LOOK_EVERY_S = 3.0
KEEPALIVE_S, KEEPALIVE_COUNT = 15.0, 2
ANSWER_S = 2.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_RESERVE = {"supervise": 2, "receive": 1}
"""A new one takes two round trips and a start of Python: with two, commands that follow each other at once find one."""


class Warm:
    """The connections of one state, and the trees that were synced; `lost` are the hosts that cannot be reached.

    Of them it says since when (monotonic seconds).
    """

    def __init__(self, connector: Connector, store: StateStore, say: Callable[[str], None]) -> None:
        self.connector = connector
        self.store = store
        self.trees = Trees()
        self.lost: dict[str, float] = {}
        self.hosts: dict[str, Host] = {}
        self._say = say
        self._tries: dict[str, tuple[float, float]] = {}
        self._under_way: set[str] = set()
        self._looked_at = now_s()
        self._state: State | None = None

    def notice_sleep(self) -> None:
        """Doubt every connection when this process has not run for a while: the machine slept, or was stopped."""
        now = now_s()
        if now - self._looked_at > 3 * LOOK_EVERY_S:
            self._say(f"no time for {now - self._looked_at:.0f} s: every connection is looked at")
            self.connector.doubt()
            self._tries.clear()
        self._looked_at = now

    async def keep(self) -> None:
        """Look for ever after the connections: to droplets that came, that went, and whose link was lost."""
        async with anyio.create_task_group() as tasks:
            while True:
                self.notice_sleep()
                self.trees.forget_unused()
                await self._learn()
                now = now_s()
                for host in self.hosts.values():
                    if self.connector.is_warm(host) or host.name in self._under_way:
                        continue
                    if self._tries.get(host.name, (0.0, 0.0))[0] <= now:
                        self._under_way.add(host.name)
                        tasks.start_soon(self._see_to, host)
                await anyio.sleep(LOOK_EVERY_S)

    async def _learn(self) -> None:
        """Read which droplets there are, where the state has changed."""
        try:
            state = await self.store.read()
        except ChiselError as error:
            self._say(f"the state cannot be read: {error.message}")
            return
        if state is self._state:
            return
        self._state = state
        found = {host.name: host for host in hosts_of(state)}
        for name, host in self.hosts.items():
            if found.get(name) != host:
                self.connector.forget(host)
                self.lost.pop(name, None)
                self._tries.pop(name, None)
        self.hosts = found

    async def _see_to(self, host: Host) -> None:
        """Have a connection to a host, waiting longer after each attempt that failed."""
        try:
            connection = await self.connector.connect(host)
            connection.fill_reserve()
        except ChiselError as error:
            if host.name not in self.lost:
                self._say(f"{host.name}: {error.message}")
            self.lost.setdefault(host.name, now_s())
            wait_s = min(2 * self._tries.get(host.name, (0.0, _FIRST_WAIT_S / 2))[1], _LONGEST_WAIT_S)
            self._tries[host.name] = now_s() + wait_s, wait_s
        else:
            if self.lost.pop(host.name, None) is not None:
                self._say(f"{host.name}: connected again")
            self._tries.pop(host.name, None)
        finally:
            self._under_way.discard(host.name)


def now_s() -> float:
    """Return a clock that goes on while the machine sleeps, where the system has one; seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def hosts_of(state: State) -> Iterable[Host]:
    """Return every droplet of the state that is ready."""
    records = [one for cloud in state.clouds.values() for pool in cloud.pools.values() for one in pool.values()]
    return [host_of(one) for one in records if one.is_ready and one.address is not None]


@asynccontextmanager
async def open_warm(paths: Paths, say: Callable[[str], None]) -> AsyncIterator[Warm]:
    """Give the connections; leaving closes them."""
    await to_thread.run_sync(load_asyncssh)
    from chisel.ssh.connection import Deadlines
    from chisel.ssh.connector import open_connector

    deadlines = Deadlines(keepalive_s=KEEPALIVE_S, keepalive_count=KEEPALIVE_COUNT)
    async with open_connector(
        paths.client_key, deadlines=deadlines, reserve=_RESERVE, kept_in=paths.cache_dir
    ) as connector:
        gc.freeze()  # what is loaded now stays: collections need not look at it
        yield Warm(connector, StateStore(paths.state_file, remembers=True), say)
