"""Let a stream cross this machine's uplink once: one droplet gets it, and they pass it on among themselves, in a tree.

Each keeps its own session: where it listens, whom it feeds, and what the stream must have been is said there only. What
passes between droplets is protected by a certificate of that one stream; a droplet that the stream does not reach, or
not whole, says so and is sent what it lacks directly. `chisel.node.incoming` is the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from chisel.errors import HostUnreachable
from chisel.events import Notice, Sink
from chisel.model import Host, Relay
from chisel.node import frames
from chisel.node.frames import Kind
from chisel.ssh.relaykeys import RelayKey, make_relay_key
from chisel.sync.beside import beside
from chisel.sync.cast import Cast, Piece
from chisel.sync.throttle import Throttle

FAN_OUT = 4
ASSUMED_BYTES_PER_S = 2.5e6
"""How fast an uplink is that was never measured: 20 Mbit/s."""
PORTS_S = 2.0
"""How long whoever feeds others waits to hear where they listen."""
_PACKED = 0.5
_SETUP_S = 0.5
_ROUND_TRIPS = 3
_LEAST_GAIN_S = 1.0
_LEAST_GAIN = 1.5
_LEAST_BYTES = 1 << 16
_GATHER_S = 0.5, 5.0
_GATHER_SHARE = 0.2


class Channel(Protocol):
    """A session to one droplet."""

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one frame; waits while the window is full. Raises HostUnreachable."""


def pays(droplets: int, content_bytes: int, bytes_per_s: float, rtt_s: float = 0.1) -> bool:
    """Say whether a relay clearly beats sending to each; `bytes_per_s` is the uplink's rate (0: not known). Pure."""
    once_s = content_bytes * _PACKED / (bytes_per_s or ASSUMED_BYTES_PER_S)
    direct_s, relayed_s = droplets * once_s, once_s + _SETUP_S + _ROUND_TRIPS * rtt_s
    return droplets > 1 and direct_s - relayed_s > _LEAST_GAIN_S and direct_s > _LEAST_GAIN * relayed_s


def neighbourhoods(hosts: Sequence[Host]) -> list[list[Host]]:
    """Return which droplets share a private network, two at least: by region, those with a private address. Pure."""
    found: dict[str, list[Host]] = {}
    for host in hosts:
        if host.region and host.private_address:
            found.setdefault(host.region, []).append(host)
    return [near for near in found.values() if len(near) > 1]


def fed_by(number: int, droplets: int) -> range:
    """Return whom the droplet of that number passes the stream on to, in a tree with 0 as its root. Pure."""
    return range(min(droplets, number * FAN_OUT + 1), min(droplets, number * FAN_OUT + FAN_OUT + 1))


class Relays:
    """Bring together the droplets of one job that need the same stream. For one event loop."""

    def __init__(self, mode: Relay, droplets: int, throttle: Throttle, sink: Sink) -> None:
        self._mode = mode
        self._droplets = droplets
        self._throttle = throttle
        self._sink = sink
        self._settled: set[str] = set()
        self._groups: dict[int, _Group] = {}
        self._has_said = False

    def is_wanted(self, content_bytes: int, bytes_per_s: float, droplets: int | None = None) -> bool:
        """Say whether so many droplets (default: all) should pass on content of that size to each other."""
        count = self._droplets if droplets is None else droplets
        if self._mode == "auto":
            limit = self._throttle.bytes_per_s
            return pays(count, content_bytes, min(bytes_per_s or ASSUMED_BYTES_PER_S, limit or float("inf")))
        return self._mode == "on" and count > 1 and content_bytes >= _LEAST_BYTES

    def settled(self, host: Host) -> None:
        """Do not wait for a droplet: it needs no stream, has one, or failed."""
        self._settled.add(host.name)
        if len(self._settled) >= self._droplets:
            for group in self._groups.values():
                group.close(self)

    async def place(self, host: Host, cast: Cast, content_bytes: int, bytes_per_s: float) -> Place | None:
        """Wait until it is clear who needs the stream; None where the droplet is to be sent it directly."""
        if not (host.private_address and host.region) or not self.is_wanted(content_bytes, bytes_per_s):
            self.settled(host)
            return None
        group = self._groups.get(id(cast))
        if group is None or group.is_closed.is_set():
            once_s = content_bytes * _PACKED / (bytes_per_s or ASSUMED_BYTES_PER_S)
            wait_s = min(max(_GATHER_S[0], once_s * _GATHER_SHARE), _GATHER_S[1])
            group = self._groups[id(cast)] = _Group(cast, content_bytes, anyio.current_time() + wait_s)
        group.take(host, bytes_per_s)
        self.settled(host)
        with anyio.CancelScope(deadline=group.deadline):
            await group.is_closed.wait()
        group.close(self)
        return group.places.get(host.name)

    def say_direct(self, host: Host, why: str) -> None:
        """Tell the user once that the private network did not do."""
        if not self._has_said:
            self._has_said = True
            self._sink.emit(Notice(host=host.name, message=f"sent directly, not by its neighbours: {why}"))


class _Group:
    """The droplets that need one stream, while it is found out who they are."""

    def __init__(self, cast: Cast, content_bytes: int, deadline: float) -> None:
        self.cast = cast  # kept, so that no other has its id
        self.deadline = deadline
        self._content_bytes = content_bytes
        self._bytes_per_s = 0.0
        self._hosts: list[Host] = []
        self.places: dict[str, Place] = {}
        self.is_closed = anyio.Event()

    def take(self, host: Host, bytes_per_s: float) -> None:
        """Count a droplet in."""
        self._hosts.append(host)
        self._bytes_per_s = max(self._bytes_per_s, bytes_per_s)

    def close(self, relays: Relays) -> None:
        """Give each a place in a tree, where trees are worth it."""
        if self.is_closed.is_set():
            return
        self.is_closed.set()
        for near in neighbourhoods(self._hosts):
            if relays.is_wanted(self._content_bytes, self._bytes_per_s, len(near)):
                self.places |= places_among(near)


class Branch:
    """One tree of droplets, and how far its stream is."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = hosts
        self.digest = hashlib.sha256()
        self.verdict: dict[str, Any] | None = None
        self.is_over = anyio.Event()
        self.watchers: dict[int, Any] = {}
        self._key: RelayKey | None = None
        self._making = anyio.Lock()
        self._ports: dict[int, int | None] = {}
        self._news = anyio.Event()

    async def secrets(self) -> dict[str, Any]:
        """Return what lets a droplet take part."""
        async with self._making:
            if self._key is None:
                self._key = await to_thread.run_sync(make_relay_key)
        return {"certificate": self._key.certificate, "key": self._key.key}

    def listens(self, number: int, port: int | None) -> None:
        """Take the port where a droplet waits to be fed, None when it will not."""
        self._ports.setdefault(number, port)
        self._news.set()
        self._news = anyio.Event()

    async def ports(self, numbers: Sequence[int]) -> Iterator[tuple[Host, int]]:
        """Wait for some droplets' ports, `PORTS_S` at the longest; gives those that are there."""
        with anyio.move_on_after(PORTS_S):
            while any(number not in self._ports for number in numbers):
                await self._news.wait()
        found = [(self.hosts[number], self._ports.get(number)) for number in numbers]
        return iter([(host, port) for host, port in found if port])


def places_among(hosts: Sequence[Host]) -> dict[str, Place]:
    """Return by name the places of droplets that share a private network, in a tree of their own."""
    branch = Branch(hosts)
    return {host.name: Place(branch, number) for number, host in enumerate(hosts)}


class Place:
    """One droplet's place in a tree."""

    def __init__(self, branch: Branch, number: int) -> None:
        self._branch = branch
        self._number = number
        self._fed = fed_by(number, len(branch.hosts))

    @property
    def is_root(self) -> bool:
        """Say whether this machine feeds the droplet."""
        return self._number == 0

    # -- for the root

    @asynccontextmanager
    async def feeding(self, channel: Channel) -> AsyncIterator[Place]:
        """Have the root pass on what it is sent; `ended` has to be called, or the others are told that it failed."""
        try:
            await self._have_it_feed(channel)
            yield self
        finally:
            self._branch.is_over.set()

    def passed(self, piece: Piece) -> None:
        """Take a piece that the root was sent into account."""
        self.passed_frames(frames.encode(piece.kind, piece.payload))
        for watcher in self._branch.watchers.values():
            watcher(piece)

    def passed_frames(self, data: bytes) -> None:
        """Take whole frames that the root was sent into account."""
        self._branch.digest.update(data)

    def ended(self, tree_hash: str) -> None:
        """Say what the stream has been, and makes."""
        self._branch.verdict = {"tree": tree_hash, "digest": self._branch.digest.hexdigest()}

    # -- for the others

    @asynccontextmanager
    async def conducted(self, channel: Channel, watcher: Any = None) -> AsyncIterator[TaskGroup]:
        """Have the droplet fed while its answers are heard in the block; gives the tasks that end with it.

        Raises the block's own ChiselError, no group.
        """
        async with beside(self._conduct, channel, watcher) as tasks:
            try:
                yield tasks
            finally:
                self._leave()

    async def _conduct(self, channel: Channel, watcher: Any) -> None:
        """Tell the droplet where its stream comes from, whom to feed, and at last what it should have been."""
        branch, address = self._branch, self._branch.hosts[self._number].private_address
        if watcher is not None:
            branch.watchers[self._number] = watcher
        with suppress(HostUnreachable):  # whoever reads the channel says so
            order = {"listen": address, **await branch.secrets()}
            await channel.send(Kind.RELAY, frames.as_json(order))
            await self._have_it_feed(channel)
            await branch.is_over.wait()
            if branch.verdict is None:
                await channel.send(Kind.RELAY, frames.as_json({"give_up": True}))
            else:
                await channel.send(Kind.DATA_END, frames.as_json(branch.verdict))

    def listens(self, port: int) -> None:
        """Say where the droplet waits to be fed."""
        self._branch.listens(self._number, port)

    def _leave(self) -> None:
        """Do not wait for the droplet any more."""
        self._branch.watchers.pop(self._number, None)
        self._branch.listens(self._number, None)

    async def _have_it_feed(self, channel: Channel) -> None:
        if not self._fed:
            return
        targets = [[host.private_address, port] for host, port in await self._branch.ports(self._fed)]
        if targets:
            order = {"feed": targets, **await self._branch.secrets()}
            await channel.send(Kind.RELAY, frames.as_json(order))
