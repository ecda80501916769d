"""After every change of a tree: end the command that runs, sync, and run it again."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from chisel.errors import ChiselError, leaves
from chisel.sync.sieve import Changes

GRACE_S = 5.0
"""How long a command may take to end after SIGINT, and then after SIGKILL."""
RETRY_AFTER_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""When a sync that failed is tried again, should nothing change before; the last one for ever."""
CATCH_UP_S = 2.0
"""How long changes that come during a sync may put the command off by one more sync."""


class ChangeSource(Protocol):
    """Where changes come from: `chisel.sync.watching.ChangeStream`, or a memory object stream."""

    async def receive(self) -> Changes:
        """Wait for changes; raises anyio.EndOfStream after the last."""

    def receive_nowait(self) -> Changes:
        """Take what there is; raises anyio.WouldBlock when there is nothing."""


class Command(Protocol):
    """One run of a command. `signal` may be called while `wait` waits."""

    async def wait(self) -> None:
        """Start it and return when it has ended; cancelled, it ends the command."""

    def signal(self, number: int) -> None:
        """Send a signal to it."""


async def follow(
    changes: ChangeSource,
    sync: Callable[[Changes], Awaitable[object]],
    run: Callable[[], Command] | None = None,
    *,
    failed: Callable[[ChiselError], None],
    grace_s: float = GRACE_S,
    retry_after_s: tuple[float, ...] = RETRY_AFTER_S,
    catch_up_s: float = CATCH_UP_S,
) -> None:
    """Sync at once and after every set of changes, and run a command after each sync that worked.

    Before a sync the running command gets SIGINT, after `grace_s` SIGKILL, and after as long again it is given up. What
    changes during a sync is one more sync before the command runs, for `catch_up_s` at most, so that a tree that never
    rests does not keep it from running. A sync that raises ChiselError is told to `failed`; its changes stay due, with
    what changes next or after `retry_after_s`, and the command does not run. A command that raises ChiselError is told
    as well; how it ends is not asked. Returns when the stream ends and the command with it; cancelled, the command is
    cancelled too.
    """
    try:
        async with anyio.create_task_group() as tasks:
            await _Follower(changes, sync, run, failed, tasks, _Patience(grace_s, retry_after_s, catch_up_s)).follow()
    except BaseExceptionGroup as group:
        found = list(leaves(group))
        if len(found) == 1:
            raise found[0] from found[0].__cause__
        raise


@dataclass(frozen=True, slots=True)
class _Patience:
    grace_s: float
    retry_after_s: tuple[float, ...]
    catch_up_s: float


class _Follower:
    def __init__(
        self,
        changes: ChangeSource,
        sync: Callable[[Changes], Awaitable[object]],
        run: Callable[[], Command] | None,
        failed: Callable[[ChiselError], None],
        tasks: TaskGroup,
        patience: _Patience,
    ) -> None:
        self._changes = changes
        self._sync = sync
        self._run = run
        self._failed = failed
        self._tasks = tasks
        self._patience = patience
        self._due: Changes | None = Changes(time.monotonic(), is_everything=True, reason="the watch begins")
        self._failures = 0
        self._running: _Running | None = None

    async def follow(self) -> None:
        """Go on until the stream ends."""
        is_open = True
        while is_open or self._due is not None:
            if self._due is not None and await self._sync_all():
                self._start()
            is_open = is_open and await self._hear()
            if not is_open and self._failures:
                return  # what is due would never be asked for again
        if self._running is not None:
            await self._running.has_ended.wait()

    async def _hear(self) -> bool:
        """Wait for changes, or for the time to try again; False at the end of the stream."""
        wait_s = None
        if self._due is not None:
            after_s = self._patience.retry_after_s
            wait_s = after_s[min(self._failures, len(after_s)) - 1]
        with anyio.move_on_after(wait_s):
            try:
                self._add(await self._changes.receive())
            except anyio.EndOfStream:
                return False
        return True

    def _add(self, changes: Changes) -> None:
        self._due = changes if self._due is None else self._due.merged(changes)

    async def _sync_all(self) -> bool:
        """Sync until nothing is due, or for some time; False when it failed."""
        if self._running is not None:
            await self._running.end(self._patience.grace_s, self._failed)
            self._running = None
        until = time.monotonic() + self._patience.catch_up_s
        while self._due is not None:
            try:
                await self._sync(self._due)
            except ChiselError as error:
                self._failures += 1
                self._failed(error)
                return False
            self._due, self._failures = None, 0
            if time.monotonic() < until:
                self._take_waiting()
        return True

    def _take_waiting(self) -> None:
        try:
            self._add(self._changes.receive_nowait())
        except (anyio.WouldBlock, anyio.EndOfStream):
            return

    def _start(self) -> None:
        if self._run is not None:
            self._running = _Running(self._run())
            self._tasks.start_soon(self._running.wait, self._failed)


class _Running:
    def __init__(self, command: Command) -> None:
        self._command = command
        self._scope = anyio.CancelScope()
        self.has_ended = anyio.Event()

    async def wait(self, failed: Callable[[ChiselError], None]) -> None:
        """Run the command to its end."""
        try:
            with self._scope:
                await self._command.wait()
        except ChiselError as error:
            failed(error)
        finally:
            self.has_ended.set()

    async def end(self, grace_s: float, failed: Callable[[ChiselError], None]) -> None:
        """End the command: ask, then kill, then give it up."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if not self.has_ended.is_set():
                self._command.signal(number)
                with anyio.move_on_after(grace_s):
                    await self.has_ended.wait()
        if not self.has_ended.is_set():
            failed(ChiselError("the command that runs does not end, not even killed", hint="chisel status"))
            self._scope.cancel()
            await self.has_ended.wait()
