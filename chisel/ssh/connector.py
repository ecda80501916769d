"""Keep one warm, verified connection per droplet, and start the node program's roles over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import asyncssh
from anyio import to_thread
from anyio.abc import TaskGroup

from chisel.errors import HostUnreachable, NotReady
from chisel.model import Host
from chisel.node.frames import REQUEST_VARIABLE, Kind, as_json
from chisel.ssh.boot import install_line, start_line
from chisel.ssh.channel import NodeChannel, NodeSession
from chisel.ssh.early import Departures, depart, may_begin_early
from chisel.ssh.keys import KeyPair, load_or_create_client_key
from chisel.ssh.link import Link
from chisel.ssh.pipelined import AGREED, READ_IN, Ahead, NotPipelined, connect_pipelined, would_agree
from chisel.ssh.program import NodeProgram, pack_node_program
from chisel.ssh.refusal import remote_error
from chisel.ssh.reserve import WINDOW, Reserve
from chisel.ssh.silence import Listening
from chisel.ssh.translate import translated

DEFAULT_WINDOW = 2 << 20
MOST_AT_ONCE = 64
"""Logins under way at a time: each is judged by its own silence, and is not to wait for this machine's processors."""

MOST_REQUEST_BYTES = 48 << 10
"""A longer request is sent when the role asks for it: Linux takes variables of up to 128 KiB (execve(2))."""

_FOLLOWED = frozenset({"supervise", "attach"})
_SECRET = frozenset({"hostkey"})
_CLOSE_S = 2.0
_ANSWER_S = 1.5
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
async def open_connector(
    client_key: KeyPair | Path,
    *,
    deadlines: Deadlines | None = None,
    departures: Departures | None = None,
    reserve: Mapping[str, int] | None = None,
) -> AsyncIterator[Connector]:
    """Give the keeper of connections that log in with this key; leaving closes them all, in bounded time.

    `departures` are sockets that are on their way already; who made them closes those that were of no use. `reserve`
    says how many sessions of which role every connection keeps ready (see `chisel.ssh.reserve`).
    """
    pair = (
        await to_thread.run_sync(load_or_create_client_key, client_key) if isinstance(client_key, Path) else client_key
    )
    program = await to_thread.run_sync(pack_node_program)
    async with anyio.create_task_group() as tasks:
        connector = Connector(pair, program, deadlines or Deadlines(), departures, (tasks, reserve or {}))
        try:
            yield connector
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await connector.close()
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
        reserve: tuple[TaskGroup, Mapping[str, int]],
    ) -> None:
        self.plain: set[Host] = set()
        self._departures = departures
        self._reserve = reserve
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
            fresh = Connection(host, first, self._program, self._deadlines, self._open, self._reserve)
            self._connections[host] = fresh
            fresh.fill_reserve()
            return fresh

    @asynccontextmanager
    async def node(
        self, host: Host, role: str, request: dict[str, Any], *, window: int | None = None
    ) -> AsyncIterator[NodeChannel]:
        """Connect where needed and start a role of the node program in one go: see `connect` and `Connection.node`.

        A HostUnreachable raised by it says in `was_asked` whether the request was on its way.
        """
        ahead = _ahead(host, self._program, role, request, window or DEFAULT_WINDOW)
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
            return await _answer(channel, host, role)

    def is_warm(self, host: Host) -> bool:
        """Say whether there is a connection to a host, nothing is known against it, and its reserve is full."""
        known = self._connections.get(host)
        return known is not None and known.is_warm

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

    async def _open(self, host: Host, ahead: Ahead | None = None) -> Link:
        deadlines = self._deadlines
        listening = Listening()
        raw: asyncssh.SSHClientConnection | None = None
        trouble: Exception | None = None
        limit_s = deadlines.connect_s + deadlines.login_s
        try:
            async with self._opening:
                with translated(host, "connecting"), anyio.fail_after(limit_s):
                    async with anyio.create_task_group() as tasks:
                        limits = deadlines.connect_s, deadlines.silence_s
                        tasks.start_soon(listening.cancel_when_silent, limits, tasks.cancel_scope)
                        try:
                            raw = await self._log_in(host, listening, ahead)
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

    async def _log_in(self, host: Host, listening: Listening, ahead: Ahead | None) -> asyncssh.SSHClientConnection:
        """Log in pipelined, and in the usual way where the host did not agree to that or it was not read how."""
        departure = self._departures.claim(host) if self._departures is not None else None
        options = self._options(host, listening)
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

    def _options(self, host: Host, listening: Listening) -> dict[str, Any]:
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
            "connect_timeout": deadlines.connect_s + deadlines.login_s,
            "login_timeout": deadlines.login_s,
            "keepalive_interval": deadlines.keepalive_s,
            "keepalive_count_max": deadlines.keepalive_count,
        }


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
        reserve: tuple[TaskGroup, Mapping[str, int]],
    ) -> None:
        self.host = host
        self.is_doubted = False
        self._reserve = Reserve(*reserve, self._begin)
        self._links = [first]
        self._program = program
        self._deadlines = deadlines
        self._more = more
        self._opening = anyio.Lock()
        self._drops_environment = False

    @property
    def is_lost(self) -> bool:
        """Say whether the first of its links has ended."""
        return self._links[0].is_lost

    @property
    def is_warm(self) -> bool:
        """Say whether the next command can begin at once."""
        return not self.is_lost and not self.is_doubted and self._reserve.is_full

    async def is_alive(self) -> bool:
        """Say whether it can be used; one in doubt is asked."""
        if self.is_doubted and not self.is_lost:
            if not await self._links[0].answers(_ANSWER_S):
                return False
            self.is_doubted = False
        return not self.is_lost

    def fill_reserve(self) -> None:
        """Have the sessions in reserve started that are missing."""
        self._reserve.fill()

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
        """Give a link with room for a session."""
        link = await self._link_with_room()
        link.sessions += 1
        try:
            yield link
        finally:
            link.sessions -= 1

    async def _link_with_room(self) -> Link:
        """Return a link with room for a session, opening another where all are full."""
        link = next((one for one in self._links if one.has_room), None)
        if link is None:
            async with self._opening:
                link = next((one for one in self._links if one.has_room), None)
                if link is None:
                    if self.is_lost:
                        raise HostUnreachable(f"the connection to `{self.host.name}` was lost", host=self.host.name)
                    link = await self._more(self.host)
                    self._links = [self._links[0], *(one for one in self._links[1:] if not one.is_lost), link]
        return link

    async def _begin(self, role: str) -> tuple[Link, NodeChannel]:
        """Start a role that waits for its request; its place on the link is the caller's to give back."""
        link = await self._link_with_room()
        link.sessions += 1
        try:
            ahead = Ahead(NodeSession(self.host), start_line(self._program.sha256, role), {}, WINDOW)
            return link, await self._start(link, role, None, ahead)
        except BaseException:
            link.sessions -= 1
            raise

    @asynccontextmanager
    async def node(
        self, role: str, request: dict[str, Any], *, window: int | None = None, ahead: Ahead | None = None
    ) -> AsyncIterator[NodeChannel]:
        """Start a role of the node program, shipping the program first where it is missing, and send the request.

        `window` bounds, in bytes, what may arrive unread; `ahead` is the same session where it was sent with the login.
        Leaving closes the channel: the role sees the end of its input and ends. Raises HostUnreachable (`was_asked`
        tells whether the request was on its way), and NotReady when something else than the program answers.
        """
        was_sent = ahead is not None and ahead.channel is not None
        spare = None if was_sent else await self._reserve.take(role)
        async with self._link() if spare is None else _taken(spare[0]) as link:
            is_followed = role in _FOLLOWED
            if is_followed:
                link.follow()
            try:
                if spare is not None:
                    channel = await self._ask_spare(spare[1], request, window or DEFAULT_WINDOW)
                else:
                    if ahead is None or not was_sent:
                        ahead = _ahead(self.host, self._program, role, request, window or DEFAULT_WINDOW)
                        ahead.env = {} if self._drops_environment else ahead.env
                    channel = await self._start(link, role, request, ahead)
                try:
                    yield channel
                finally:
                    await channel.close()
            finally:
                if is_followed:
                    link.unfollow()

    async def _ask_spare(self, channel: NodeChannel, request: dict[str, Any], window: int) -> NodeChannel:
        """Send a waiting role its request; all it says from then on is its answer."""
        try:
            channel.widen(window)
            await channel.send_json(Kind.REQUEST, request)
        except BaseException as error:
            await channel.close()
            if isinstance(error, HostUnreachable):
                error.was_asked = True
            raise
        return channel

    async def ask(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Start a role that gives one answer, and return it.

        Raises RemoteError for what the role refuses, HostUnreachable also when it ends without an answer, NotReady.
        Waits as long as the role works: give it a deadline.
        """
        async with self.node(role, request) as channel:
            return await _answer(channel, self.host, role)

    async def _start(self, link: Link, role: str, request: dict[str, Any] | None, ahead: Ahead) -> NodeChannel:
        """Start a role; without a request it is left waiting for it."""
        for ships in (False, True):
            if ships:
                line = install_line(self._program.sha256, role, len(self._program.data))
                ahead = Ahead(NodeSession(self.host), line, {}, ahead.window)
            was_asked = bool(ahead.env)
            try:
                channel = await self._session(link, ahead)
                try:
                    with translated(self.host, f"starting `{role}`"), anyio.fail_after(self._deadlines.hello_s):
                        if ships:
                            await channel.send_raw(self._program.data)
                        if request is not None and (ships or not ahead.env):
                            was_asked = True
                            with suppress(HostUnreachable):  # it may have ended, saying why: greet tells
                                await channel.send_json(Kind.REQUEST, request)
                        if await channel.greet():
                            if ahead.env and not channel.hello.get("was_asked"):
                                self._drops_environment = True
                                await channel.send_json(Kind.REQUEST, request)
                            return channel
                except BaseException:
                    await channel.close()
                    raise
                await channel.close()
            except HostUnreachable as error:
                error.was_asked = was_asked
                raise
        raise NotReady(f"`{self.host.name}` does not keep the node program", host=self.host.name)

    async def _session(self, link: Link, ahead: Ahead) -> NodeChannel:
        with translated(self.host, "opening a session"), anyio.fail_after(self._deadlines.hello_s):
            if ahead.channel is not None:
                await ahead.channel.begun()
                return NodeChannel(self.host, ahead.session, ahead.channel)
            raw, _ = await link.raw.create_session(
                lambda: ahead.session, ahead.line, encoding=None, request_pty=False, window=ahead.window, env=ahead.env
            )
        return NodeChannel(self.host, ahead.session, raw)

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


@asynccontextmanager
async def _taken(link: Link) -> AsyncIterator[Link]:
    """Give back a session's place that was taken before."""
    try:
        yield link
    finally:
        link.sessions -= 1


async def _answer(channel: NodeChannel, host: Host, role: str) -> dict[str, Any]:
    while frames := await channel.receive():
        for frame in frames:
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, host.name)
            if frame.kind == Kind.REPLY:
                answer: dict[str, Any] = frame.json()
                channel.done()
                return answer
    raise HostUnreachable(f"`{host.name}` ended `{role}` without an answer", host=host.name)


def _ahead(host: Host, program: NodeProgram, role: str, request: dict[str, Any], window: int) -> Ahead:
    """Return the session that starts a role; its request travels as a variable where it is not too long for one."""
    text = as_json(request)
    env: dict[str | bytes, str | bytes] = {}
    env = {REQUEST_VARIABLE: text.decode()} if len(text) <= MOST_REQUEST_BYTES and role not in _SECRET else {}
    return Ahead(NodeSession(host), start_line(program.sha256, role), env, window)


def _public_key(line: str) -> asyncssh.SSHKey:
    algorithm, blob = line.split()[:2]
    return asyncssh.import_public_key(f"{algorithm} {blob}")


def _bytes(data: bytes | str | bytearray | memoryview | None) -> bytes:
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")
    return bytes(data or b"")
