"""Be one verified connection to a droplet: as many links as its sessions need, and the node program's roles."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import anyio
import asyncssh
from anyio.abc import TaskGroup

from chisel.errors import HostUnreachable, NotReady
from chisel.model import Host
from chisel.node.frames import REQUEST_VARIABLE, Kind, as_json
from chisel.ssh.boot import install_line, start_line
from chisel.ssh.channel import NodeChannel, NodeSession
from chisel.ssh.link import Link, answers
from chisel.ssh.pipelined import Ahead
from chisel.ssh.program import NodeProgram
from chisel.ssh.refusal import remote_error
from chisel.ssh.reserve import WINDOW, Pace, Reserve
from chisel.ssh.translate import translated

DEFAULT_WINDOW = 2 << 20

MOST_REQUEST_BYTES = 48 << 10
"""A longer request is sent when the role asks for it: Linux takes variables of up to 128 KiB (execve(2))."""

_FOLLOWED = frozenset({"supervise", "attach"})
_SECRET = frozenset({"hostkey"})
_ANSWER_S = 1.5
_ABANDON_S = 1.0
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait, in seconds: for TCP, login, a peer silent in it, the node's hello, a silent connection.

    `busy_s` is for the login of a further link to a droplet that answers on the first.
    """

    connect_s: float = 3.0
    login_s: float = 15.0
    silence_s: float = 3.0
    busy_s: float = 60.0
    hello_s: float = 20.0
    keepalive_s: float = 3.0
    keepalive_count: int = 3


@dataclass(frozen=True, slots=True)
class ShellAnswer:
    """What a line in the remote shell gave; `status` is None when it was ended by a signal."""

    status: int | None
    stdout: bytes
    stderr: bytes


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
        more: Callable[[Host, Callable[[], Awaitable[bool]]], Awaitable[Link]],
        reserve: tuple[TaskGroup | None, Mapping[str, int], Pace],
    ) -> None:
        self.host = host
        self.is_doubted = False
        self._reserve = Reserve(*reserve, self._begin)
        self._pace = reserve[2]
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
            if not await self._answers():
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
        link = await self._entered()
        try:
            yield link
        finally:
            link.leave()

    async def _entered(self) -> Link:
        """Take a session's place on a link; the caller gives it back (`Link.leave`)."""
        link = await self._link_with_room()
        link.sessions += 1
        return link

    async def _link_with_room(self) -> Link:
        """Return a link with room for a session, opening another where all are full."""
        if (link := self._with_room()) is None:
            async with self._opening:
                link = self._with_room() or await self._another()
        return link

    def _with_room(self) -> Link | None:
        return next((link for link in self._links if link.has_room), None)

    async def _another(self) -> Link:
        """Open a further link; a droplet that answers on the first and fails in this is busy, and is asked again.

        sshd drops logins when it has too many under way (MaxStartups), whoever they are of.
        """
        until = time.monotonic() + self._deadlines.busy_s
        while True:
            if self.is_lost:
                raise HostUnreachable(f"the connection to `{self.host.name}` was lost", host=self.host.name)
            try:
                link = await self._more(self.host, self._answers)
            except HostUnreachable as error:
                is_final = isinstance(error.__cause__, asyncssh.PermissionDenied | asyncssh.HostKeyNotVerifiable)
                if is_final or time.monotonic() > until or not await self._answers():
                    raise
                await anyio.sleep(_AGAIN_S * random.uniform(0.5, 1.0))
                if (free := self._with_room()) is not None:
                    return free
            else:
                self._links = [self._links[0], *(one for one in self._links[1:] if not one.is_lost), link]
                return link

    async def _answers(self) -> bool:
        return await answers(self._links[0].raw, _ANSWER_S)

    async def _begin(self, role: str) -> tuple[Link, NodeChannel]:
        """Start a role that waits for its request; its place on the link is the caller's to give back."""
        link = await self._entered()
        try:
            ahead = Ahead(NodeSession(self.host), start_line(self._program.sha256, role), {}, WINDOW)
            return link, await self._start(link, role, None, ahead)
        except BaseException:
            link.leave()
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
        async with AsyncExitStack() as leaving:
            leaving.enter_context(self._pace.using())
            was_sent = ahead is not None and ahead.channel is not None
            spare = None if was_sent else await self._reserve.take(role)
            link = await self._entered() if spare is None else spare[0]
            channel: NodeChannel | None = None
            # sshd counts a session that is left without waiting until it has closed it
            leaving.callback(lambda: link.leave() if channel is None else channel.when_closed(link.leave))
            if role in _FOLLOWED:
                link.follow()
                leaving.callback(link.unfollow)
            if spare is not None:
                channel = await self._ask_spare(spare[1], request, window or DEFAULT_WINDOW)
            else:
                if ahead is None or not was_sent:
                    ahead = ahead_of(self.host, self._program, role, request, window or DEFAULT_WINDOW)
                    ahead.env = {} if self._drops_environment else ahead.env
                channel = await self._start(link, role, request, ahead)
            over = anyio.Event()
            leaving.callback(over.set)
            self._reserve.fill_soon(over)
            leaving.push_async_callback(channel.close)
            yield channel

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
            return await answer_of(channel, self.host, role)

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
                            with suppress(HostUnreachable):  # it may have ended, saying why: greet tells
                                await channel.send_raw(self._program.data)
                        if request is not None and (ships or not ahead.env):
                            was_asked = True
                            with suppress(HostUnreachable):
                                await channel.send_json(Kind.REQUEST, request)
                        if await channel.greet(was_shipped=ships):
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
            raw = await _opened(link.raw, ahead)
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


async def _opened(raw: asyncssh.SSHClientConnection, ahead: Ahead) -> asyncssh.SSHClientChannel[bytes]:
    """Open a session; cancelled meanwhile, wait for it a little and close it: asyncssh would leave it open.

    asyncssh 2.24 forgets nothing of a session whose opening is cancelled: the peer starts the command all the same, and
    its input never ends. What `translated` says of AttributeError may come of that as well.
    """
    opening = asyncio.get_running_loop().create_task(
        raw.create_session(
            lambda: ahead.session, ahead.line, encoding=None, request_pty=False, window=ahead.window, env=ahead.env
        )
    )
    try:
        return (await asyncio.shield(opening))[0]
    except asyncio.CancelledError:
        with anyio.move_on_after(_ABANDON_S, shield=True), suppress(OSError, asyncssh.Error, AttributeError):
            channel, _ = await asyncio.shield(opening)
            channel.close()
            await channel.wait_closed()
        opening.cancel()
        raise


async def answer_of(channel: NodeChannel, host: Host, role: str) -> dict[str, Any]:
    """Wait for a role's one answer; raises RemoteError for what it refuses, HostUnreachable where none comes."""
    while frames := await channel.receive():
        for frame in frames:
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, host.name)
            if frame.kind == Kind.REPLY:
                answer: dict[str, Any] = frame.json()
                channel.done()
                return answer
    raise HostUnreachable(f"`{host.name}` ended `{role}` without an answer", host=host.name)


def ahead_of(host: Host, program: NodeProgram, role: str, request: dict[str, Any], window: int) -> Ahead:
    """Return the session that starts a role; its request travels as a variable where it is not too long for one."""
    text = as_json(request)
    env: dict[str | bytes, str | bytes] = {}
    env = {REQUEST_VARIABLE: text.decode()} if len(text) <= MOST_REQUEST_BYTES and role not in _SECRET else {}
    return Ahead(NodeSession(host), start_line(program.sha256, role), env, window)


def _bytes(data: bytes | str | bytearray | memoryview | None) -> bytes:
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")
    return bytes(data or b"")
