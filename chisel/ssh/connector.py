"""Keep one warm, verified connection per droplet, and start the node program's roles over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import asyncssh
from anyio import to_thread

from chisel.errors import HostUnreachable, NotReady
from chisel.model import Host
from chisel.node.frames import Kind
from chisel.ssh.boot import install_line, start_line
from chisel.ssh.channel import NodeChannel, NodeSession
from chisel.ssh.keys import KeyPair, load_or_create_client_key
from chisel.ssh.link import Link
from chisel.ssh.program import NodeProgram, pack_node_program
from chisel.ssh.refusal import remote_error
from chisel.ssh.silence import Listening
from chisel.ssh.translate import translated

DEFAULT_WINDOW = 2 << 20
MOST_AT_ONCE = 64
"""Logins under way at a time: each is judged by its own silence, and is not to wait for this machine's processors."""

_FOLLOWED = frozenset({"supervise", "attach"})
_CLOSE_S = 2.0
_KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait, in seconds: for TCP, login, a peer silent in it, the node's hello, a silent connection."""

    connect_s: float = 3.0
    login_s: float = 15.0
    silence_s: float = 3.0
    hello_s: float = 20.0
    keepalive_s: float = 3.0
    keepalive_count: int = 3


@dataclass(frozen=True, slots=True)
class ShellAnswer:
    """What a line in the remote shell gave; `status` is None when it was ended by a signal."""

    status: int | None
    stdout: bytes
    stderr: bytes


@asynccontextmanager
async def open_connector(client_key: KeyPair | Path, *, deadlines: Deadlines | None = None) -> AsyncIterator[Connector]:
    """Give the keeper of connections that log in with this key; leaving closes them all, in bounded time."""
    pair = (
        await to_thread.run_sync(load_or_create_client_key, client_key) if isinstance(client_key, Path) else client_key
    )
    program = await to_thread.run_sync(pack_node_program)
    connector = Connector(pair, program, deadlines or Deadlines())
    try:
        yield connector
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await connector.close()


class Connector:
    """Open each connection once and share it; calls may overlap."""

    def __init__(self, pair: KeyPair, program: NodeProgram, deadlines: Deadlines) -> None:
        self._key = asyncssh.import_private_key(pair.private_openssh)
        self._program = program
        self._deadlines = deadlines
        self._connections: dict[Host, Connection] = {}
        self._locks: dict[Host, anyio.Lock] = {}
        self._opening = anyio.Semaphore(MOST_AT_ONCE)

    async def connect(self, host: Host) -> Connection:
        """Return the warm connection to a host, opened where there is none or it was lost.

        Raises HostKeyMismatch when another host key answers (nothing was sent), else HostUnreachable. Cancelled, it
        leaves no half-open connection; another caller that waits for the same host then tries itself.
        """
        async with self._locks.setdefault(host, anyio.Lock()):
            known = self._connections.get(host)
            if known is not None and not known.is_lost:
                return known
            first = await self._open(host)
            fresh = Connection(host, first, self._program, self._deadlines, self._open)
            self._connections[host] = fresh
            return fresh

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

    async def _open(self, host: Host) -> Link:
        deadlines = self._deadlines
        listening = Listening()
        raw: asyncssh.SSHClientConnection | None = None
        trouble: Exception | None = None
        limit_s = deadlines.connect_s + deadlines.login_s
        async with self._opening:
            with translated(host, "connecting"), anyio.fail_after(limit_s):
                async with anyio.create_task_group() as tasks:
                    limits = deadlines.connect_s, deadlines.silence_s
                    tasks.start_soon(listening.cancel_when_silent, limits, tasks.cancel_scope)
                    try:
                        raw = await self._log_in(host, listening)
                    except (OSError, asyncssh.Error) as error:
                        trouble = error
                    tasks.cancel_scope.cancel()
                if trouble is not None:
                    raise trouble
        if raw is None:
            silent = f"is connected but has been silent for {deadlines.silence_s:.0f} s (login)"
            absent = f"did not answer in time ({host.address} for {deadlines.connect_s:.0f} s)"
            said = absent if listening.heard_at is None else silent
            raise HostUnreachable(f"`{host.name}` {said}", host=host.name)
        listening.done()
        return Link(raw, deadlines.keepalive_s, deadlines.keepalive_count)

    async def _log_in(self, host: Host, listening: Listening) -> asyncssh.SSHClientConnection:
        pinned = [_public_key(key) for key in (host.host_key, host.next_host_key) if key is not None]
        algorithms = list(dict.fromkeys(key.get_algorithm() for key in pinned))
        deadlines = self._deadlines
        return await asyncssh.connect(
            host.address,
            host.port,
            client_factory=lambda: listening,
            username=host.user,
            client_keys=[self._key],
            known_hosts=(pinned, [], []),
            server_host_key_algs=algorithms,
            config=None,
            agent_path=None,
            preferred_auth="publickey",
            compression_algs=["none"],
            kex_algs=_KEX,
            encryption_algs=_CIPHERS,
            connect_timeout=deadlines.connect_s + deadlines.login_s,
            login_timeout=deadlines.login_s,
            keepalive_interval=deadlines.keepalive_s,
            keepalive_count_max=deadlines.keepalive_count,
        )


class Connection:
    """A verified connection: one link, and more of them while more than `MOST_SESSIONS` sessions are open at a time.

    Links are opened one after the other: sshd drops some of those that come at once (MaxStartups, sshd_config(5)).
    """

    def __init__(
        self,
        host: Host,
        first: Link,
        program: NodeProgram,
        deadlines: Deadlines,
        more: Callable[[Host], Awaitable[Link]],
    ) -> None:
        self.host = host
        self._links = [first]
        self._program = program
        self._deadlines = deadlines
        self._more = more
        self._opening = anyio.Lock()

    @property
    def is_lost(self) -> bool:
        """Say whether the first of its links has ended."""
        return self._links[0].is_lost

    def abort(self) -> None:
        """Drop the connection at once."""
        for link in self._links:
            link.raw.abort()

    async def close(self) -> None:
        """Close in order."""
        for link in self._links:
            link.raw.close()
        for link in self._links:
            await link.raw.wait_closed()

    @asynccontextmanager
    async def _link(self) -> AsyncIterator[Link]:
        """Give a link with room for a session, opening another where all are full."""
        link = next((one for one in self._links if one.has_room), None)
        if link is None:
            async with self._opening:
                link = next((one for one in self._links if one.has_room), None)
                if link is None:
                    if self.is_lost:
                        raise HostUnreachable(f"the connection to `{self.host.name}` was lost", host=self.host.name)
                    link = await self._more(self.host)
                    self._links = [self._links[0], *(one for one in self._links[1:] if not one.is_lost), link]
        link.sessions += 1
        try:
            yield link
        finally:
            link.sessions -= 1

    @asynccontextmanager
    async def node(
        self, role: str, request: dict[str, Any], *, window: int | None = None
    ) -> AsyncIterator[NodeChannel]:
        """Start a role of the node program, shipping the program first where it is missing, and send the request.

        `window` bounds, in bytes, what may arrive unread. Leaving closes the channel: the role sees the end of its
        input and ends. Raises HostUnreachable, and NotReady when something else than the program answers.
        """
        async with self._link() as link:
            channel = await self._start(link, role, request, window or DEFAULT_WINDOW)
            is_followed = role in _FOLLOWED
            if is_followed:
                link.follow()
            try:
                yield channel
            finally:
                await channel.close()
                if is_followed:
                    link.unfollow()

    async def ask(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Start a role that gives one answer, and return it.

        Raises RemoteError for what the role refuses, HostUnreachable also when it ends without an answer, NotReady.
        Waits as long as the role works: give it a deadline.
        """
        async with self.node(role, request) as channel:
            while frames := await channel.receive():
                for frame in frames:
                    if frame.kind == Kind.ERROR:
                        raise remote_error(frame, self.host.name)
                    if frame.kind == Kind.REPLY:
                        answer: dict[str, Any] = frame.json()
                        return answer
        raise HostUnreachable(f"`{self.host.name}` ended `{role}` without an answer", host=self.host.name)

    async def _start(self, link: Link, role: str, request: dict[str, Any], window: int) -> NodeChannel:
        program = self._program
        for ships in (False, True):
            line = install_line(program.sha256, role, len(program.data)) if ships else start_line(program.sha256, role)
            channel = await self._session(link, line, window)
            try:
                with translated(self.host, f"starting `{role}`"), anyio.fail_after(self._deadlines.hello_s):
                    if ships:
                        await channel.send_raw(program.data)
                    with suppress(HostUnreachable):  # it may have ended, saying why: greet tells
                        await channel.send_json(Kind.REQUEST, request)
                    if await channel.greet():
                        return channel
            except BaseException:
                await channel.close()
                raise
            await channel.close()
        raise NotReady(f"`{self.host.name}` does not keep the node program", host=self.host.name)

    async def _session(self, link: Link, line: str, window: int) -> NodeChannel:
        with translated(self.host, "opening a session"), anyio.fail_after(self._deadlines.hello_s):
            session = NodeSession(self.host)
            raw, _ = await link.raw.create_session(
                lambda: session, line, encoding=None, request_pty=False, window=window
            )
        return NodeChannel(self.host, session, raw)

    async def shell(self, line: str, *, timeout_s: float, input: bytes = b"") -> ShellAnswer:
        """Run a short line in the remote shell and return all it gave: for readiness, never for user commands.

        Raises HostUnreachable after `timeout_s`; the line may then still run on the droplet.
        """
        async with self._link() as link:
            with translated(self.host, "asking the shell"), anyio.fail_after(timeout_s):
                ended = await link.raw.run(line, input=input, encoding=None, check=False)
        return ShellAnswer(ended.exit_status, _bytes(ended.stdout), _bytes(ended.stderr))

    async def read_file(self, path: PurePosixPath, *, max_bytes: int, timeout_s: float = 30.0) -> bytes:
        """Return a single file's content over SFTP; raises HostUnreachable, also for a file above `max_bytes`."""
        async with self._link() as link:
            with translated(self.host, f"reading `{path}`"), anyio.fail_after(timeout_s):
                async with link.raw.start_sftp_client() as sftp, sftp.open(str(path), "rb") as source:
                    data = await source.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise HostUnreachable(
                f"`{path}` on `{self.host.name}` is larger than {max_bytes} bytes", host=self.host.name
            )
        return _bytes(data)

    async def write_file(self, path: PurePosixPath, data: bytes, *, mode: int = 0o600, timeout_s: float = 30.0) -> None:
        """Write a single file over SFTP, beside its place and then renamed into it."""
        new = f"{path}.new"
        async with self._link() as link:
            with translated(self.host, f"writing `{path}`"), anyio.fail_after(timeout_s):
                async with link.raw.start_sftp_client() as sftp:
                    async with sftp.open(new, "wb", asyncssh.SFTPAttrs(permissions=mode)) as out:
                        await out.write(data)
                    await sftp.posix_rename(new, str(path))


def _public_key(line: str) -> asyncssh.SSHKey:
    algorithm, blob = line.split()[:2]
    return asyncssh.import_public_key(f"{algorithm} {blob}")


def _bytes(data: bytes | str | bytearray | memoryview | None) -> bytes:
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")
    return bytes(data or b"")
