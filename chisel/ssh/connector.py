"""Keep one warm, verified connection per droplet, and start the node program's roles over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncssh
from anyio import to_thread
from anyio.abc import TaskGroup

from chisel.errors import HostUnreachable
from chisel.model import Host
from chisel.ssh.channel import NodeChannel
from chisel.ssh.connection import (
    DEFAULT_WINDOW,
    Connection,
    Deadlines,
    ahead_of,
    answer_of,
)
from chisel.ssh.early import Departures, depart, may_begin_early
from chisel.ssh.keys import KeyPair, load_or_create_client_key
from chisel.ssh.link import Link
from chisel.ssh.pipelined import AGREED, READ_IN, Ahead, NotPipelined, connect_pipelined, would_agree
from chisel.ssh.program import NodeProgram, node_program
from chisel.ssh.reserve import Pace
from chisel.ssh.silence import Listening
from chisel.ssh.translate import translated

MOST_AT_ONCE = 64
"""Logins under way at a time: each is judged by its own silence, and is not to wait for this machine's processors."""


_CLOSE_S = 2.0
_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")


@asynccontextmanager
async def open_connector(
    client_key: KeyPair | Path,
    *,
    deadlines: Deadlines | None = None,
    departures: Departures | None = None,
    reserve: Mapping[str, int] | None = None,
    kept_in: Path | None = None,
) -> AsyncIterator[Connector]:
    """Give the keeper of connections that log in with this key; leaving closes them all, in bounded time.

    `departures` are sockets that are on their way already; who made them closes those that were of no use. `reserve`
    says how many sessions of which role every connection keeps ready (see `chisel.ssh.reserve`). `kept_in` is a
    directory of this user's for what need not be made again.
    """
    pair = (
        await to_thread.run_sync(load_or_create_client_key, client_key) if isinstance(client_key, Path) else client_key
    )
    program = await to_thread.run_sync(node_program, kept_in)
    async with AsyncExitStack() as stack:
        # without a reserve there is no task to own: then it may be left by another task than it was entered by
        tasks = await stack.enter_async_context(anyio.create_task_group()) if reserve else None
        connector = Connector(pair, program, deadlines or Deadlines(), departures, tasks, reserve or {})
        try:
            yield connector
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await connector.close()
            if tasks is not None:
                tasks.cancel_scope.cancel()


class Connector:
    """Open each connection once and share it; calls may overlap.

    `plain` are the hosts that did not agree to a pipelined handshake and were connected in the usual way.
    """

    def __init__(
        self,
        pair: KeyPair,
        program: NodeProgram,
        deadlines: Deadlines,
        departures: Departures | None,
        tasks: TaskGroup | None,
        reserve: Mapping[str, int],
    ) -> None:
        self.plain: set[Host] = set()
        self._departures = departures
        self._reserve = tasks, reserve, Pace()
        self._key = asyncssh.import_private_key(pair.private_openssh)
        self._program = program
        self._deadlines = deadlines
        self._connections: dict[Host, Connection] = {}
        self._locks: dict[Host, anyio.Lock] = {}
        self._opening = anyio.Semaphore(MOST_AT_ONCE)

    async def connect(self, host: Host, *, ahead: Ahead | None = None) -> Connection:
        """Return the warm connection to a host, opened where there is none or it was lost.

        A connection that has to be opened may start the session `ahead` on its way. Raises HostKeyMismatch when another
        host key answers (nothing was sent), else HostUnreachable. Cancelled, it leaves no half-open connection; another
        caller that waits for the same host then tries itself.
        """
        async with self._locks.setdefault(host, anyio.Lock()):
            known = self._connections.get(host)
            if known is not None and await known.is_alive():
                return known
            self.forget(host)
            first = await self._open(host, ahead)
            fresh = Connection(host, first, self._program, self._deadlines, self._open_more, self._reserve)
            self._connections[host] = fresh
            if ahead is None:  # else its session comes first, and sees to that
                fresh.fill_reserve()
            return fresh

    @asynccontextmanager
    async def node(
        self, host: Host, role: str, request: dict[str, Any], *, window: int | None = None
    ) -> AsyncIterator[NodeChannel]:
        """Connect where needed and start a role of the node program in one go: see `connect` and `Connection.node`.

        A HostUnreachable raised by it says in `was_asked` whether the request was on its way.
        """
        ahead = ahead_of(host, self._program, role, request, window or DEFAULT_WINDOW)
        try:
            connection = await self.connect(host, ahead=ahead)
        except HostUnreachable as error:
            error.was_asked = ahead.channel is not None
            raise
        if ahead.channel is not None and connection.is_lost:
            lost = HostUnreachable(f"the connection to `{host.name}` was lost", host=host.name)
            lost.was_asked = True
            raise lost
        async with connection.node(role, request, window=window, ahead=ahead) as channel:
            yield channel

    async def ask(self, host: Host, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Connect where needed and start a role that gives one answer, in one go: see `Connection.ask`."""
        async with self.node(host, role, request) as channel:
            return await answer_of(channel, host, role)

    def is_warm(self, host: Host) -> bool:
        """Say whether there is a connection to a host, nothing is known against it, and its reserve is full."""
        known = self._connections.get(host)
        return known is not None and known.is_warm

    def is_connected(self, host: Host) -> bool:
        """Say whether there is a connection to a host, and nothing is known against it."""
        known = self._connections.get(host)
        return known is not None and not known.is_lost and not known.is_doubted

    def doubt(self) -> None:
        """Have every connection asked for a sign of life before it is used again: this machine has slept."""
        for connection in self._connections.values():
            connection.is_doubted = True

    def forget(self, host: Host) -> None:
        """Close the connection to a host, if there is one, without waiting."""
        known = self._connections.pop(host, None)
        if known is not None:
            known.abort()

    async def close(self) -> None:
        """Close every connection and wait until each is closed."""
        closing = list(self._connections.values())
        self._connections.clear()
        for connection in closing:
            await connection.close()

    async def _open_more(self, host: Host, lives: Callable[[], Awaitable[bool]]) -> Link:
        return await self._open(host, lives=lives)

    async def _open(
        self, host: Host, ahead: Ahead | None = None, *, lives: Callable[[], Awaitable[bool]] | None = None
    ) -> Link:
        """Open a link; how long a silent host is waited for is `lives`' to say where there is another link to it."""
        deadlines = self._deadlines
        login_s = deadlines.login_s if lives is None else deadlines.busy_s
        listening = Listening()
        raw: asyncssh.SSHClientConnection | None = None
        trouble: Exception | None = None
        limit_s = deadlines.connect_s + login_s
        try:
            async with self._opening:
                with translated(host, "connecting"), anyio.fail_after(limit_s):
                    async with anyio.create_task_group() as tasks:
                        limits = deadlines.connect_s, deadlines.silence_s
                        tasks.start_soon(listening.cancel_when_silent, limits, tasks.cancel_scope, lives)
                        try:
                            raw = await self._log_in(host, listening, ahead, login_s)
                        except (OSError, asyncssh.Error) as error:
                            trouble = error
                        tasks.cancel_scope.cancel()
                    if trouble is not None:
                        raise trouble
        except BaseException:
            if raw is not None:
                raw.abort()
            raise
        if raw is None:
            silent = f"is connected but has been silent for {deadlines.silence_s:.0f} s (login)"
            absent = f"did not answer in time ({host.address} for {deadlines.connect_s:.0f} s)"
            said = absent if listening.heard_at is None else silent
            raise HostUnreachable(f"`{host.name}` {said}", host=host.name)
        listening.done()
        return Link(raw, deadlines.keepalive_s, deadlines.keepalive_count)

    async def _log_in(
        self, host: Host, listening: Listening, ahead: Ahead | None, login_s: float
    ) -> asyncssh.SSHClientConnection:
        """Log in pipelined, and in the usual way where the host did not agree to that or it was not read how."""
        departure = self._departures.claim(host) if self._departures is not None else None
        options = self._options(host, listening, login_s)
        if asyncssh.__version__ in READ_IN and may_begin_early(host) and host not in self.plain:
            departure = departure or depart(host)
        elif departure is not None:
            departure.socket.close()
            departure = None
        if departure is not None:
            agreed = asyncssh.SSHClientConnectionOptions(**{**options, **AGREED}, host=host.address, port=host.port)
            try:
                return await connect_pipelined(host, departure, agreed, ahead)
            except NotPipelined:
                raw = await asyncssh.connect(host.address, host.port, **options)
                if not would_agree(raw):
                    self.plain.add(host)
                return raw
        return await asyncssh.connect(host.address, host.port, **options)

    def _options(self, host: Host, listening: Listening, login_s: float) -> dict[str, Any]:
        pinned = [_public_key(key) for key in (host.host_key, host.next_host_key) if key is not None]
        algorithms = list(dict.fromkeys(key.get_algorithm() for key in pinned))
        deadlines = self._deadlines
        return {
            "client_factory": lambda: listening,
            "username": host.user,
            "client_keys": [self._key],
            "known_hosts": (pinned, [], []),
            "server_host_key_algs": algorithms,
            "config": None,
            "agent_path": None,
            "x509_trusted_certs": [],  # the files of these two are not looked for
            "x509_trusted_cert_paths": [],
            "preferred_auth": "publickey",
            "compression_algs": ["none"],
            "kex_algs": _KEX,
            "encryption_algs": _CIPHERS,
            "connect_timeout": deadlines.connect_s + login_s,
            "login_timeout": login_s,
            "keepalive_interval": deadlines.keepalive_s,
            "keepalive_count_max": deadlines.keepalive_count,
        }


def _public_key(line: str) -> asyncssh.SSHKey:
    algorithm, blob = line.split()[:2]
    return asyncssh.import_public_key(f"{algorithm} {blob}")
