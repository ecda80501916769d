"""Play a droplet's sshd in this process, with asyncssh: what OpenSSH does by default, no root needed.

Like sshd it takes ten sessions a connection, drops the environment a client sends, refuses signals to root's
commands, and leaves a command without a terminal alone when its channel closes: it only loses its pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import Callable, Mapping
from typing import Any, cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.stream import SSHServerStreamSession

from chisel.sandbox.base import BANNER, DropletSpec, banner_file, home_of, session_environment
from chisel.sandbox.droplets import AUTHORIZED_KEYS, HOST_KEY
from chisel.sandbox.processes import end_processes

MAX_SESSIONS = 10
_CLOSE_S = 2.0
_FOLLOW_S = 0.02
_SFTP_VERSION = 3

TermSize = tuple[int, int, int, int]
TermModes = Mapping[int, int]


async def start_asyncssh(spec: DropletSpec) -> AsyncsshDroplet:
    """Return a running droplet."""
    droplet = AsyncsshDroplet(spec)
    await droplet.listen()
    return droplet


class AsyncsshDroplet:
    """One droplet: a listening socket, its connections, its directory."""

    def __init__(self, spec: DropletSpec) -> None:
        self.spec = spec
        self.address = "127.0.0.1"
        self.port = 0
        self.environment = session_environment(spec)
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._running: list[_Running] = []
        self._listener: asyncssh.SSHAcceptor | None = None
        self._following: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Start to accept connections."""
        self._listener = await asyncssh.listen(
            self.address,
            self.spec.port,
            server_factory=lambda: _Login(self),
            server_host_keys=[str(self.spec.root / HOST_KEY)],
            password_auth=False,
            kbdint_auth=False,
            gss_host=None,
            compression_algs=["none"],
            encoding=None,
            line_editor=False,
        )
        self.port = self._listener.get_port()
        self._following = asyncio.get_running_loop().create_task(self._follow_host_key())

    async def _follow_host_key(self) -> None:
        """Show a host key that was put in the place of the old one, as a reloaded sshd does."""
        place = self.spec.root / HOST_KEY
        seen = place.stat().st_mtime_ns
        while self._listener is not None:
            await asyncio.sleep(_FOLLOW_S)
            with contextlib.suppress(OSError, asyncssh.KeyImportError):
                if place.stat().st_mtime_ns != seen:
                    seen = place.stat().st_mtime_ns
                    self._listener.update(server_host_keys=[str(place)])

    def drop_connections(self) -> None:
        """Cut every connection, as a restart of sshd with its sessions does."""
        for connection in list(self._connections):
            connection.abort()

    def joined(self, connection: asyncssh.SSHServerConnection) -> None:
        """Count a connection in."""
        self._connections.add(connection)

    def started(self, running: _Running) -> None:
        """Remember a process until it has ended."""
        self._running = [one for one in self._running if not one.has_ended.is_set()]
        self._running.append(running)

    def left(self, connection: asyncssh.SSHServerConnection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)

    async def close(self) -> None:
        """Stop listening, drop every connection, end every process."""
        if self._following is not None:
            self._following.cancel()
        if self._listener is not None:
            self._listener.close()
        self.drop_connections()
        await asyncio.to_thread(end_processes, [self.spec.root])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                for running in self._running:
                    await running.has_ended.wait()
                if self._listener is not None:
                    await self._listener.wait_closed()


class _Login(asyncssh.SSHServer):
    """Let root in with an authorized key, and ten sessions at a time."""

    def __init__(self, droplet: AsyncsshDroplet) -> None:
        self._droplet = droplet
        self._sessions = 0
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._droplet.joined(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._connection is not None:
            self._droplet.left(self._connection)

    def begin_auth(self, username: str) -> bool:
        # Nobody but root exists there: for others no key is looked up at all.
        if username == "root" and self._connection is not None and self._droplet.spec.authorized_keys:
            self._connection.set_authorized_keys(str(home_of(self._droplet.spec) / AUTHORIZED_KEYS))
        return True

    def session_requested(self) -> _Session:
        if self._sessions >= MAX_SESSIONS:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "open failed")
        self._sessions += 1
        return _Session(self._droplet, self._session_ended)

    def _session_ended(self) -> None:
        self._sessions -= 1


class _Session(asyncssh.SSHServerSession[bytes]):
    """One session: a command or a login shell, with or without a terminal."""

    def __init__(self, droplet: AsyncsshDroplet, ended: Callable[[], None]) -> None:
        self._droplet = droplet
        self._ended = ended
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._command: str | None = None
        self._terminal: tuple[str, TermSize] | None = None
        self._running: _Running | None = None
        self._is_closed = False
        self._early: list[bytes] = []
        self._has_early_eof = False
        self._starting: asyncio.Task[None] | None = None
        self._sftp: SSHServerStreamSession[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: TermSize, term_modes: TermModes) -> bool:
        del term_modes
        self._terminal = (term_type, term_size)
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Hand everything to asyncssh's own session for SFTP."""
        assert self._channel is not None
        spec = self._droplet.spec
        if banner_file(spec.root).exists():
            return False
        self._sftp = SSHServerStreamSession(
            None, lambda chan: _HomeSftp(chan, str(home_of(spec)), str(spec.root)), _SFTP_VERSION
        )
        self._sftp.connection_made(self._channel)
        return self._sftp.subsystem_requested(subsystem)

    def session_started(self) -> None:
        if self._sftp is not None:
            self._sftp.session_started()
            return
        # Kept by this session until it ends: a task group cannot be opened in a callback.
        self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        assert self._channel is not None
        loop = asyncio.get_running_loop()
        arguments = ["bash", "-l"] if self._command is None else ["bash", "-c", self._command]
        options: dict[str, Any] = {
            "env": self._droplet.environment,
            "cwd": self._droplet.environment["HOME"],
            "start_new_session": True,
        }
        if banner_file(self._droplet.spec.root).exists():
            self._channel.write(BANNER.encode())
            self._channel.exit(0)
            self._starting = None
            return
        running = _Running(self._channel, self._terminal is not None)
        try:
            if self._terminal is None:
                await loop.subprocess_exec(lambda: running, *arguments, **options)
            else:
                await running.start_on_terminal(arguments, options, *self._terminal)
        except OSError as error:
            self._channel.write_stderr(f"the session could not be started: {error.strerror}\n".encode())
            self._channel.exit(255)
            self._starting = None
            return
        self._running = running
        self._droplet.started(running)
        for data in self._early:
            running.write(data)
        if self._has_early_eof:
            running.write_eof()
        if self._is_closed:
            running.channel_closed(self._ended)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._sftp is not None:
            self._sftp.data_received(data, datatype)
        elif self._running is None:
            self._early.append(data)
        else:
            self._running.write(data)

    def eof_received(self) -> bool:
        if self._sftp is not None:
            return bool(self._sftp.eof_received())
        if self._running is None:
            self._has_early_eof = True
        else:
            self._running.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._sftp is not None:
            self._sftp.pause_writing()
        if self._running is not None:
            self._running.hold(is_held=True)

    def resume_writing(self) -> None:
        if self._sftp is not None:
            self._sftp.resume_writing()
        if self._running is not None:
            self._running.hold(is_held=False)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._running is not None:
            self._running.resize(width, height, pixwidth, pixheight)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sftp is not None:
            self._sftp.connection_lost(exc)
        self._is_closed = True
        if self._running is not None:
            self._running.channel_closed(self._ended)
        elif self._starting is None:
            self._ended()


class _Running(asyncio.SubprocessProtocol):
    """A session's process, its pipes joined to the channel with flow control both ways."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], has_terminal: bool) -> None:
        self._channel = channel
        self._has_terminal = has_terminal
        self._transport: asyncio.SubprocessTransport | None = None
        self._master: int | None = None
        self._is_gone = False
        self.has_ended = asyncio.Event()
        self._then: Callable[[], None] | None = None

    async def start_on_terminal(
        self, arguments: list[str], options: dict[str, Any], term_type: str, size: TermSize
    ) -> None:
        """Start with a new pseudo-terminal as the controlling one."""
        loop = asyncio.get_running_loop()
        master, slave = pty.openpty()
        try:
            self._master = master
            self.resize(*size)
            os.set_blocking(master, False)
            await loop.subprocess_exec(
                lambda: self,
                *arguments,
                **{**options, "env": {**options["env"], "TERM": term_type}},
                stdin=slave,
                stdout=slave,
                stderr=slave,
                preexec_fn=_take_terminal,
            )
            loop.add_reader(master, self._read_terminal)
        finally:
            os.close(slave)

    def resize(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Tell the terminal's programs its size, in characters and pixels."""
        if self._master is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixwidth, pixheight))

    # -- from the process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if self._is_gone:
            return
        with contextlib.suppress(BrokenPipeError):  # the client closed its channel a moment ago
            if fd == 2:
                self._channel.write_stderr(data)
            else:
                self._channel.write(data)

    def pause_writing(self) -> None:
        """Stop taking input from the client: the process does not read."""
        self._channel.pause_reading()

    def resume_writing(self) -> None:
        """Take input again, from a callback of its own.

        Waiting input may end in EOF, and a pipe that is closed inside this very call loses its connection twice
        (asyncio's _UnixWritePipeTransport._write_ready looks at `closing` after it).
        """
        asyncio.get_running_loop().call_soon(self._channel.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end: the process has ended and nobody holds its pipes any more."""
        del exc
        if self._master is not None:
            self._read_terminal()
            self._drop_terminal()
        assert self._transport is not None
        status = self._transport.get_returncode()
        self._transport.close()
        self.has_ended.set()
        if self._then is not None:
            self._then()
        if self._is_gone:
            return
        if status is not None and status < 0:
            self._channel.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            self._channel.exit(status or 0)

    # -- from the channel

    def write(self, data: bytes) -> None:
        """Hand the client's input on; a process that reads no more loses it."""
        if self._master is not None:
            with contextlib.suppress(OSError):
                os.write(self._master, data)
        elif isinstance(pipe := self._pipe(0), asyncio.WriteTransport) and not pipe.is_closing():
            pipe.write(data)

    def write_eof(self) -> None:
        """End the process's input."""
        if self._master is not None:
            self.write(b"\x04")
        elif (pipe := self._pipe(0)) is not None:
            pipe.close()

    def hold(self, *, is_held: bool) -> None:
        """Stop or go on reading what the process writes: the client's window is full, or has room again."""
        for fd in (1, 2):
            pipe = self._pipe(fd)
            if isinstance(pipe, asyncio.ReadTransport) and not pipe.is_closing():
                (pipe.pause_reading if is_held else pipe.resume_reading)()
        if self._master is not None:
            loop = asyncio.get_running_loop()
            if is_held:
                loop.remove_reader(self._master)
            else:
                loop.add_reader(self._master, self._read_terminal)

    def channel_closed(self, then: Callable[[], None]) -> None:
        """Take the pipes away and call `then` when the process ends, which keeps its session until then.

        Only a terminal's process is told (SIGHUP), as by a real sshd.
        """
        self._is_gone = True
        if self.has_ended.is_set():
            then()
        else:
            self._then = then
        for fd in (0, 1, 2):
            pipe = self._pipe(fd)
            if pipe is not None:
                pipe.close()
        if self._master is not None:
            self._drop_terminal()

    def _pipe(self, fd: int) -> asyncio.BaseTransport | None:
        return self._transport.get_pipe_transport(fd) if self._transport is not None else None

    def _read_terminal(self) -> None:
        if self._master is None:
            return
        try:
            data = os.read(self._master, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and not self._is_gone:
            self._channel.write(data)
        elif not data:
            asyncio.get_running_loop().remove_reader(self._master)

    def _drop_terminal(self) -> None:
        if self._master is not None:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = None


def _take_terminal() -> None:
    """Make standard input the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _HomeSftp(asyncssh.SFTPServer):
    """Serve files below the droplet's root; relative paths start in root's home."""

    def __init__(self, chan: SSHChannel[bytes], home: str, root: str) -> None:
        super().__init__(cast("asyncssh.SSHServerChannel[bytes]", chan))
        self._home = home
        self._root = root

    def map_path(self, path: bytes) -> bytes:
        wanted = os.path.normpath(os.path.join(self._home, os.fsdecode(path)))
        if os.path.commonpath([os.path.realpath(wanted), os.path.realpath(self._root)]) != os.path.realpath(self._root):
            raise asyncssh.SFTPPermissionDenied("outside the droplet")
        return os.fsencode(wanted)
