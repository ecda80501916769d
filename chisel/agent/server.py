"""Listen on the agent's socket and run one command line for each caller: who may call, and what a caller is."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio

from chisel.agent import wire
from chisel.events import Notice

Handler = Callable[["Caller"], Awaitable[int | None]]
"""Run a caller's command line and return its status, None to leave it to the caller."""

_CALL_DEADLINE_S = 10.0
_END_S = 5.0
_READ_BYTES = 1 << 16
_MOST_WAITING = 256


class Caller:
    """One process that has called: what it is, its signals as they come, its input and output.

    `seen` counts the parts that it has written, `notices` is what its user is to read first. `on_broken` is
    told the descriptors that nobody reads any more.
    """

    def __init__(self, line: Line, request: list[bytes]) -> None:
        """Take a request apart; raises ValueError (IndexError, too) for what is none."""
        _, cwd, family, facts, words, environ = request
        self._line = line
        self.cwd = os.fsdecode(cwd)
        self.family = family.decode("ascii")
        self.words = [os.fsdecode(word) for word in wire.unpack(words)]
        pairs = (pair.partition(b"=") for pair in wire.unpack(environ))
        self.environ = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        told = wire.unpack(facts)
        self.terminals = (told[0] == b"1", told[1] == b"1", told[2] == b"1")
        self.may_read = told[3] == b"1"
        self.columns = int(told[4])
        self.seen = 0
        self.notices: list[Notice] = []
        self.on_broken: Callable[[int], None] = lambda _: None
        self._given: int | None = None
        self._given_sent = 0
        self._input: list[bytes] = []
        self._signals: list[int] = []
        self._news = anyio.Event()

    @property
    def signals(self) -> AsyncIterator[int]:
        """Give the numbers of the signals that it gets, as they come."""
        return self._each_signal()

    async def _each_signal(self) -> AsyncIterator[int]:
        while True:
            while self._signals:
                yield self._signals.pop(0)
            await self._news.wait()

    async def put(self, data: bytes) -> None:
        """Send frames, waiting while the caller is slow; what comes when it is gone is dropped."""
        if self._given is not None and self._given > self._given_sent:
            self._given_sent = self._given
            data = wire.frame(wire.GIVEN, self._given.to_bytes(8, "big")) + data
        with suppress(OSError):  # whoever listens to it finds out, and ends the command
            await self._line.send(data)

    async def read(self) -> bytes:
        """Return a piece of its standard input, an empty one at the end."""
        await self.put(wire.frame(wire.WANT))
        while not self._input:
            await self._news.wait()
        return self._input.pop(0)

    def taken(self, offset: int) -> None:
        """Have it forget its input up to `offset`, with what is sent next."""
        self._given = offset

    def take(self, kind: bytes, payload: bytes) -> None:
        """Take what it says."""
        if kind == wire.SEEN:
            self.seen = int.from_bytes(payload, "big")
        elif kind == wire.BROKEN:
            self.on_broken(payload[0])
        elif kind == wire.SIGNAL:
            self._signals.append(payload[0])
        elif kind == wire.INPUT:
            self._input.append(payload)
        self._news.set()
        self._news = anyio.Event()


class Line:
    """One connection's frames; one task may receive while others send, each frame whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = bytearray()
        self._sending = anyio.Lock()

    async def send(self, data: bytes) -> None:
        """Send all of it; raises OSError."""
        async with self._sending:
            view = memoryview(data)
            while view:
                try:
                    view = view[self._connection.send(view) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._connection)

    async def receive(self) -> tuple[bytes, bytes] | None:
        """Return a frame, None at the end of the connection; raises ValueError for one that is too long."""
        while True:
            if len(self._rest) >= wire.HEAD_BYTES:
                size = int.from_bytes(self._rest[1 : wire.HEAD_BYTES], "big")
                if size > wire.LONGEST_CALL:
                    raise ValueError(f"a frame of {size} bytes")
                end = wire.HEAD_BYTES + size
                if len(self._rest) >= end:
                    found = bytes(self._rest[:1]), bytes(self._rest[wire.HEAD_BYTES : end])
                    del self._rest[:end]
                    return found
            try:
                data = self._connection.recv(_READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._connection)
                continue
            except OSError:
                data = b""
            if not data:
                return None
            self._rest += data


class Server:
    """Serve callers until told to finish: then those under way are served to their end, and no others."""

    def __init__(
        self,
        greeting: Callable[[bytes], list[bytes]],
        handler: Handler,
        facts: Callable[[], bytes],
        say: Callable[[str], None],
    ) -> None:
        """Take what to say first (for a state), what runs a command line, the facts about this agent, and a log.

        Before each caller `greeting` decides with FINISHING whether this program is still the right one.
        """
        self._say = say
        self._greeting = greeting
        self._handler = handler
        self._facts = facts
        self._surroundings = wire.surroundings()
        self.finishing = anyio.Event()
        self.under_way = 0
        self.served = 0
        self.last_at = anyio.current_time()

    async def listen(self, listener: socket.socket) -> None:
        """Take callers until it is time to finish; returns when the last of them has been served."""
        async with anyio.create_task_group() as callers:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._accept, listener, callers)
                await self.finishing.wait()
                tasks.cancel_scope.cancel()
            listener.close()  # who has called and was not taken yet is to know at once

    async def _accept(self, listener: socket.socket, callers: anyio.abc.TaskGroup) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                await anyio.wait_readable(listener)
                continue
            except OSError as error:  # no descriptors left: those under way will give some back
                self._say(f"cannot take a caller: {error}")
                await anyio.sleep(0.1)
                continue
            connection.setblocking(False)
            callers.start_soon(self._guarded, connection)

    async def _guarded(self, connection: socket.socket) -> None:
        """Serve one caller; what goes wrong is its own: it goes on without the agent."""
        try:
            await self._serve(connection)
        except Exception:  # noqa: BLE001 - one caller's trouble must not be another's
            self._say(traceback.format_exc())

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            if wire.peer_uid(connection) != os.geteuid():
                return
            line = Line(connection)
            with suppress(OSError, ValueError, IndexError, UnicodeError):
                state = wire.FINISHING if self.finishing.is_set() else wire.READY
                greeting = self._greeting(state)
                await line.send(wire.frame(wire.HELLO, wire.pack(greeting)))
                with anyio.move_on_after(_CALL_DEADLINE_S):
                    found = await line.receive()
                    if found is None:
                        return
                    kind, payload = found
                    if kind == wire.FINISH or greeting[-1] == wire.FINISHING:
                        self.finishing.set()
                    elif kind == wire.STATUS:
                        await line.send(wire.frame(wire.REPLY, self._facts()))
                if found is not None and kind == wire.CALL and greeting[-1] == wire.READY:
                    await self._run(line, wire.unpack(payload))

    async def _run(self, line: Line, request: list[bytes]) -> None:
        if request[0] != self._surroundings:
            await line.send(wire.frame(wire.DECLINED))
            return
        caller = Caller(line, request)
        self.under_way += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, line, caller, tasks.cancel_scope)
                status = await self._handler(caller)
                end = wire.frame(wire.DECLINED) if status is None else wire.frame(wire.END, bytes([status & 0xFF]))
                with anyio.move_on_after(_END_S):
                    await line.send(end)
                tasks.cancel_scope.cancel()
        finally:
            self.under_way -= 1
            self.served += 1
            self.last_at = anyio.current_time()

    @staticmethod
    async def _listen(line: Line, caller: Caller, scope: anyio.CancelScope) -> None:
        """Take what the caller says; its end is the command's end."""
        while (found := await line.receive()) is not None:
            caller.take(*found)
        scope.cancel()


def bind(path: bytes) -> socket.socket:
    """Listen on a path in place of whoever did; raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path + b".new"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    try:
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(_MOST_WAITING)
        listener.setblocking(False)
        os.rename(fresh, path)
    except OSError:
        listener.close()
        raise
    return listener
