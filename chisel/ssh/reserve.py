"""Keep sessions in reserve: a role of the node program that has started and waits for its request costs one round trip.

A session in reserve is a process on the droplet that sleeps; it ends with its connection. What is taken is replaced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import anyio
from anyio.abc import TaskGroup

from chisel.errors import ChiselError
from chisel.ssh.channel import NodeChannel
from chisel.ssh.link import Link

WINDOW = 256 << 10
"""The receive window, in bytes, until it is known what the session is for."""

_FIRST_S, _PAUSE_FOR_EACH_S = 0.06, 0.01
"""The command under way comes first, on the droplet and here: what is missing begins when it is over, or has taken so
long, and so much later for each that is to begin: 32 starts at a time would slow a command fivefold."""
_FEW, _LONGEST_S = 3, 2.0
"""While more commands than these are under way nothing is replaced, for so long: what 32 droplets of one pool answer
would wait behind 32 logins of processes that nobody needs yet."""

Begin = Callable[[str], Awaitable[tuple[Link, NodeChannel]]]


class Pace:
    """Count, over all connections, the sessions that are to be replaced, and those that are used."""

    def __init__(self) -> None:
        self.waiting = 0
        self._used = 0
        self._calmer = anyio.Event()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Count a session as used."""
        self._used += 1
        try:
            yield
        finally:
            self._used -= 1
            if self._used == _FEW:
                self._calmer.set()
                self._calmer = anyio.Event()

    async def wait(self, over: anyio.Event) -> None:
        """Wait until it is time to begin with one; `over` is the end of the command that comes first."""
        self.waiting += 1
        try:
            with anyio.move_on_after(_FIRST_S):
                await over.wait()
            with anyio.move_on_after(_LONGEST_S):
                while self._used > _FEW:
                    await self._calmer.wait()
            await anyio.sleep(_PAUSE_FOR_EACH_S * self.waiting)
        finally:
            self.waiting -= 1


class _Spare:
    """One session on its way or there: `found` is None while it comes and when it did not."""

    def __init__(self) -> None:
        self.has_come = anyio.Event()
        self.found: tuple[Link, NodeChannel] | None = None


class Reserve:
    """The sessions that one connection keeps ready, so many for each role; `begin` starts one."""

    def __init__(self, tasks: TaskGroup | None, wanted: Mapping[str, int], pace: Pace, begin: Begin) -> None:
        self._tasks = tasks
        self._pace = pace
        self._wanted = wanted
        self._begin = begin
        self._will_be_filled = False
        self._spares: dict[str, list[_Spare]] = {role: [] for role in wanted}

    @property
    def is_full(self) -> bool:
        """Say whether all that is wanted is there, on its way, or will be when it is time."""
        return self._will_be_filled or all(len(spares) >= self._wanted[role] for role, spares in self._spares.items())

    def fill_soon(self, over: anyio.Event) -> None:
        """Have what is missing started, after the command that has just begun: `over` is that command's end."""
        if self._tasks is not None and not self.is_full:
            self._will_be_filled = True
            self._tasks.start_soon(self._fill_later, over)

    async def _fill_later(self, over: anyio.Event) -> None:
        await self._pace.wait(over)
        self._will_be_filled = False
        self.fill()

    def fill(self) -> None:
        """Have what is missing started."""
        for role, spares in self._spares.items():
            self._drop_dead(spares)
            while self._tasks is not None and len(spares) < self._wanted[role]:
                spare = _Spare()
                spares.append(spare)
                self._tasks.start_soon(self._bring, role, spare)

    async def take(self, role: str) -> tuple[Link, NodeChannel] | None:
        """Return a session of a role, the caller's from then on, waiting for one on its way; None without one."""
        spares = self._spares.get(role)
        while spares:
            spare = spares.pop(0)
            await spare.has_come.wait()
            if spare.found is not None and not spare.found[1].is_over:
                return spare.found
            _let_go(spare)
        return None

    async def _bring(self, role: str, spare: _Spare) -> None:
        try:
            spare.found = await self._begin(role)
        except ChiselError:
            if spare in self._spares[role]:
                self._spares[role].remove(spare)
        finally:
            spare.has_come.set()

    def _drop_dead(self, spares: list[_Spare]) -> None:
        for spare in [one for one in spares if one.found is not None and one.found[1].is_over]:
            spares.remove(spare)
            _let_go(spare)


def _let_go(spare: _Spare) -> None:
    if spare.found is not None:
        spare.found[0].leave()
        spare.found = None
