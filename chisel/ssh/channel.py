"""Carry frames over one SSH session: bounded buffers both ways, every way to end told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import asyncssh

from chisel.errors import HostUnreachable, NotReady
from chisel.model import Host
from chisel.node import frames
from chisel.node.frames import Frame, Kind
from chisel.ssh.boot import MISSING, MISSING_STATUS
from chisel.ssh.link import answers
from chisel.ssh.window import correct, widen

BUFFER_LIMIT = 1 << 18
_STDERR_LIMIT = 8192
_SHOWN = 200
_NO_INTERPRETER = (126, 127)
"""What a shell ends with when it cannot run the interpreter: there is nothing to put right."""
_END_S, _CLOSE_S = 1.0, 2.0


class NodeSession(asyncssh.SSHClientSession[bytes]):
    """Receive one session's bytes, cut them into frames, pause the peer while too much waits to be read."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.waiting: list[Frame] = []
        self.waiting_bytes = 0
        self.said_missing = False
        self.error: Exception | None = None
        self.is_closed = False
        self.stderr = b""
        self._begun = b""
        self._has_begun = False
        self._decoder = frames.Decoder()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._is_paused = False
        self._is_discarding = False
        self.when_closed: list[Callable[[], None]] = []
        self.news = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write.set()

    # -- what asyncssh calls

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """Keep the channel."""
        correct(chan)
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take output; standard error of the node program is kept for messages."""
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self.stderr = (self.stderr + data)[-_STDERR_LIMIT:]
            return
        try:
            self._take(data)
        except frames.FrameError as error:
            self.error = NotReady(f"`{self.host.name}` answers with something else: {error}", host=self.host.name)
        self.news.set()

    def eof_received(self) -> bool:
        """Let the channel close when the peer has ended."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whoever waits: nothing more comes."""
        if exc is not None and self.error is None:
            self.error = HostUnreachable(f"`{self.host.name}`: the connection was lost: {exc}", host=self.host.name)
            self.error.__cause__ = exc
        self.is_closed = True
        while self.when_closed:
            self.when_closed.pop()()
        self.news.set()
        self.may_write.set()

    def pause_writing(self) -> None:
        """Hold senders back."""
        self.may_write.clear()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.may_write.set()

    # -- what the channel calls

    def take_waiting(self) -> list[Frame]:
        """Return what has arrived and let the peer go on when little enough is left."""
        found, self.waiting, self.waiting_bytes = self.waiting, [], 0
        if self._is_paused and self._channel is not None:
            self._is_paused = False
            self._channel.resume_reading()
        return found

    def discard(self) -> None:
        """Drop what comes from now on: nobody reads it, and a paused peer would never get to its end."""
        self._is_discarding = True
        self.take_waiting()

    def _take(self, data: bytes) -> None:
        if self._is_discarding:
            return
        if not self._has_begun:
            self._begun += data
            if MISSING.startswith(self._begun[: len(MISSING)]):
                self.said_missing = len(self._begun) >= len(MISSING)
                return
            data, self._begun, self._has_begun = self._begun, b"", True
        self.waiting_bytes += len(data)
        self.waiting.extend(self._decoder.feed(data))
        if self.waiting_bytes > BUFFER_LIMIT and not self._is_paused and self._channel is not None:
            self._is_paused = True
            self._channel.pause_reading()


class NodeChannel:
    """One role of the node program on one droplet. One task may receive while others send."""

    def __init__(self, host: Host, session: NodeSession, channel: asyncssh.SSHClientChannel[bytes]) -> None:
        self._host = host
        self._session = session
        self._channel = channel
        self._is_done = False
        self.hello: dict[str, Any] = {}

    @property
    def exit_status(self) -> int | None:
        """Return the node program's own exit status once it has ended."""
        return self._channel.get_exit_status()

    @property
    def is_over(self) -> bool:
        """Say whether the session has ended or failed."""
        return self._session.is_closed or self._session.error is not None

    def widen(self, window: int) -> None:
        """Let more arrive unread, in bytes, than the session was opened with."""
        widen(self._channel, window)

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Send one frame, waiting while the peer's window is full; raises HostUnreachable when the link is gone."""
        await self._write(frames.encode(kind, payload))

    async def send_json(self, kind: int, obj: Any) -> None:
        """Send an object."""
        await self._write(frames.encode_json(kind, obj))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes that are no frame: the program itself."""
        await self._write(data)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""
        if not self._session.is_closed:
            self._channel.write_eof()

    async def is_linked(self, within_s: float) -> bool:
        """Say whether the droplet's sshd answers on this connection in time, however silent the role is."""
        return not self._session.is_closed and await answers(self._channel.get_connection(), within_s)

    def when_closed(self, do: Callable[[], None]) -> None:
        """Do something as soon as the droplet has closed the session, or the connection is lost."""
        if self._session.is_closed:
            do()
        else:
            self._session.when_closed.append(do)

    def give_up(self) -> None:
        """Drop the connection that this session is on, with all that it carries, without waiting."""
        if not self._session.is_closed:
            self._channel.get_connection().abort()

    def done(self) -> None:
        """Say that all that was wanted of the role has arrived: to close the channel need not wait for its end."""
        self._is_done = True

    async def close(self) -> None:
        """Let the role end by itself, then close the channel: in bounded time, whatever is being cancelled.

        The role sees the end of its input and ends what it runs; that the channel closes then is the proof. After
        `done` nothing is waited for, which saves a round trip.
        """
        self._session.discard()
        if self._is_done:
            with suppress(OSError, asyncssh.Error):
                self._channel.close()
            return
        with anyio.move_on_after(_CLOSE_S, shield=True):
            if not self._session.is_closed:
                with suppress(OSError, asyncssh.Error):
                    self._channel.write_eof()
            with anyio.move_on_after(_END_S):
                await self._channel.wait_closed()
            self._channel.close()
            await self._channel.wait_closed()

    async def receive(self) -> list[Frame]:
        """Return the frames at hand, waiting when there is none; an empty list means that the role has ended.

        Raises HostUnreachable when the link was lost, NotReady when something else than the node program answers.
        """
        session = self._session
        while True:
            found = session.take_waiting()
            if found:
                return found
            if session.error is not None:
                raise session.error
            if session.is_closed:
                return []
            session.news.clear()
            await session.news.wait()

    def put_back(self, found: Sequence[Frame]) -> None:
        """Have frames that were received given once more, before what comes."""
        self._session.waiting[:0] = found
        self._session.waiting_bytes += sum(len(frame.payload) for frame in found)
        self._session.news.set()

    async def greet(self, *, was_shipped: bool = False) -> bool:
        """Wait for the program's hello; return False when it has to be shipped: it is missing there, or is mute.

        One that says nothing is damaged, unless it was shipped just now.
        """
        session = self._session
        while not session.waiting and not session.is_closed and session.error is None:
            session.news.clear()
            await session.news.wait()
        is_mute = session.is_closed and session.error is None and not session.waiting
        if session.said_missing or self.exit_status == MISSING_STATUS:
            return False
        if is_mute and not was_shipped and self.exit_status not in _NO_INTERPRETER:
            return False
        found = await self.receive()
        self._check_hello(found)
        self.hello = found[0].json()
        self.put_back(found[1:])
        return True

    def _check_hello(self, found: Sequence[Frame]) -> None:
        if found and found[0].kind == Kind.HELLO and found[0].json().get("magic") == frames.MAGIC:
            return
        said = self._session.stderr or (found[0].payload if found else b"")
        raise NotReady(
            f"`{self._host.name}` does not start the node program (status {self.exit_status}): {said[-_SHOWN:]!r}",
            host=self._host.name,
        )

    async def _write(self, data: bytes) -> None:
        await self._session.may_write.wait()
        if self._session.is_closed:
            raise self._session.error or HostUnreachable(f"`{self._host.name}` ended the session", host=self._host.name)
        try:
            self._channel.write(data)
        except (OSError, asyncssh.Error) as error:
            raise HostUnreachable(f"`{self._host.name}` ended the session", host=self._host.name) from error
