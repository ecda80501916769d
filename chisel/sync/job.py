"""Bring one scanned tree to any number of droplets: what they share is made once, each has a part of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar, TypeVarTuple

import anyio
from anyio import to_thread

from chisel.events import Sink
from chisel.model import GitFacts, Host, Relay, SyncResult
from chisel.sync.cast import Cast
from chisel.sync.index import Index
from chisel.sync.part import Part
from chisel.sync.plan import Here, Plan, Present, make_plan
from chisel.sync.relay import Relays
from chisel.sync.scan import LocalTree
from chisel.sync.stream import Outcome, Stream
from chisel.sync.there import Known
from chisel.sync.throttle import Throttle

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True)
class Options:
    """How to sync.

    `keeps` leaves alone what somebody changed on the droplet, `checks` reads every file on both sides, `is_now` does
    not wait for commands that run in the working copy, `takes_over` makes another owner's working copy one's own,
    `deletes_extra` removes what was never pushed, `is_dry` changes nothing. `relay` says whether droplets pass on to
    each other what all of them need (`auto`: where it clearly pays).
    """

    keeps: bool = False
    checks: bool = False
    is_now: bool = False
    takes_over: bool = False
    deletes_extra: bool = False
    is_dry: bool = False
    relay: Relay = "auto"


class Job:
    """One sync of one tree: parts of several droplets share its plans and streams.

    Without a tree as yet the parts announce themselves, so that the droplets look at their working copies while the
    tree is scanned, and go on when it is there (`scanned`). It counts on parts for so many `droplets`. With
    `goes_ahead` each is the first part of a command, which learns what `git` says then.
    """

    def __init__(
        self,
        local: LocalTree | None,
        index: Index,
        known: Known,
        remote: PurePosixPath,
        *,
        owner: str,
        sink: Sink,
        owner_name: str = "",
        options: Options | None = None,
        throttle: Throttle | None = None,
        on_end: Callable[[SyncResult], None] | None = None,
        droplets: int = 1,
        goes_ahead: bool = False,
        git: Callable[[], Awaitable[GitFacts | None]] | None = None,
    ) -> None:
        self._local = local
        self._has_scanned = anyio.Event()
        self.index = index
        self.known = known
        self.remote = remote
        self.owner = owner
        self.owner_name = owner_name
        self.sink = sink
        self.options = options or Options()
        self.throttle = throttle or Throttle(None)
        self.on_end = on_end
        self.goes_ahead = goes_ahead
        self.git = git
        self.relays = Relays(self.options.relay, droplets, self.throttle, sink)
        self._casts: dict[Any, Cast] = {}
        self._plans: dict[Any, Plan] = {}
        self._noted: set[int] = set()
        self._one_at_a_time = anyio.CapacityLimiter(1)

    @property
    def local(self) -> LocalTree:
        """Return the scanned tree."""
        assert self._local is not None
        return self._local

    @property
    def is_scanned(self) -> bool:
        """Say whether the tree is there."""
        return self._local is not None

    def scanned(self, local: LocalTree) -> None:
        """Take the tree, and let the parts go on that have announced themselves."""
        self._local = local
        self._has_scanned.set()

    async def wait_scanned(self) -> None:
        """Wait for the tree."""
        if self._local is None:
            await self._has_scanned.wait()

    async def part(self, host: Host) -> Part:
        """Return a droplet's part, ready to be sent."""
        part = Part(self, host)
        if self.is_scanned:
            await part.prepare()
        return part

    async def work(self, do: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """Do in a thread what blocks, and what parts share: one at a time, so that none undoes what another wrote."""
        return await to_thread.run_sync(do, *arguments, limiter=self._one_at_a_time)

    def close(self) -> None:
        """Let the tree go."""
        for cast in self._casts.values():
            cast.close()
        self._casts.clear()

    def plan(self, key: Any, present: Present, keeps: frozenset[str]) -> Plan:
        """Return the plan for a state, made once; `keeps` are paths that the droplet has of its own. Blocking."""
        if (key, keeps) not in self._plans:
            items = self.local.items
            if not keeps.isdisjoint(items):
                items = {path: item for path, item in items.items() if path not in keeps}
            self._plans[key, keeps] = make_plan(Here(items, self.local.unread, keeps), present)
        return self._plans[key, keeps]

    def cast(self, key: Any, plan: Plan, codec_name: str, bytes_per_s: float) -> Cast:
        """Return the stream of a plan, which droplets of the same state share."""
        known = self._casts.get((key, codec_name))
        if known is None or not known.can_be_joined:
            known = Cast(Stream(self.local, self.index, plan), codec_name, bytes_per_s)
            self._casts[key, codec_name] = known
        return known

    def note(self, outcome: Outcome) -> None:
        """Take into the index what was read while it was sent. Blocking."""
        if id(outcome) not in self._noted:
            self._noted.add(id(outcome))
            if outcome.files or outcome.sums:
                self.index.remember_sums(outcome.sums)
                self.index.change(outcome.files)
