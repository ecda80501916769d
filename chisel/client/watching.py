"""Keep droplets equal to a local tree: sync after every change, and run a command after each sync."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from chisel.client.syncing import sync
from chisel.errors import ChiselError
from chisel.events import Notice, SyncEnded
from chisel.model import SyncResult
from chisel.runner import Control
from chisel.sync.following import ChangeSource, follow
from chisel.sync.ignore import surroundings_of
from chisel.sync.job import Options as SyncOptions
from chisel.sync.sieve import Changes
from chisel.sync.watching import watching

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.client.pool import Pool

Run = Callable[[Control], Awaitable[object]]
"""Run a command that takes its signals from a `Control`; cancelled, it ends the command."""


class Stop:
    """End a watch from outside: the command that runs gets a signal, and the watch ends when it has ended."""

    def __init__(self) -> None:
        self.was_asked = anyio.Event()
        self._control: Control | None = None

    def ask(self, number: int) -> bool:
        """End the watch, with this signal to the command that runs; False when none does: then cancel the watch."""
        self.was_asked.set()
        if self._control is None:
            return False
        self._control.signal(number)
        return True

    def takes(self, control: Control | None) -> None:
        """Learn which command runs, None when there is none."""
        self._control = control


async def watch(
    pool: Pool,
    client: Client,
    path: Path | str | None,
    *,
    to: str | None,
    options: SyncOptions | None,
    bytes_per_s: float | None,
    run: Run | None,
    stop: Stop | None,
) -> None:
    """Follow a tree's changes: see `Pool.watch`."""
    root = await client.root_to_sync(path)
    stop, how = stop or Stop(), options or SyncOptions()
    is_first, trouble = True, dict[str, str | None]()

    def tell(result: SyncResult, since: Changes) -> None:
        moved = result.sent_bytes or result.relayed_bytes  # a mode that changed is an order without a file
        is_none = not (moved or result.repaired)
        if result.error is None and is_none and not is_first and trouble.get(result.host) is None:
            return  # what was saved is what there was
        if result.error is not None and trouble.get(result.host) == result.error:
            return  # it is tried again and again
        trouble[result.host] = result.error
        after_s = None if is_first else time.monotonic() - since.first_at
        client.sink.emit(SyncEnded(host=result.host, result=result, after_s=after_s))

    async def sync_once(changes: Changes) -> None:
        nonlocal is_first, how
        results = await sync(
            pool,
            client,
            root,
            to=to,
            options=how,
            bytes_per_s=bytes_per_s,
            tell=lambda result: tell(result, changes),
        )
        is_first = False
        failed = [result for result in results if result.error is not None]
        if failed:
            raise _WasTold(f"{len(failed)} of {len(results)} droplets were not synced")
        # What is meant for a working copy as it was found is not done after every save.
        how = replace(how, checks=False, takes_over=False, deletes_extra=False)

    def failed(error: ChiselError) -> None:
        if not isinstance(error, _WasTold):
            client.sink.emit(Notice(level="error", message=error.message, hint=error.hint))

    surroundings = await to_thread.run_sync(surroundings_of, client.where.environ)
    async with watching(root, surroundings) as changes:
        start = None if run is None else lambda: _Command(run, stop)
        await follow(_Until(changes, stop), sync_once, start, failed=failed)


class _WasTold(ChiselError):
    """Droplets' failures, each of which was told when it happened."""


class _Until:
    """Changes until the watch is to end."""

    def __init__(self, changes: ChangeSource, stop: Stop) -> None:
        self._changes = changes
        self._stop = stop

    async def receive(self) -> Changes:
        """Wait for changes; raises anyio.EndOfStream when the watch is to end, or nothing more comes."""
        found: list[Changes] = []
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await self._stop.was_asked.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait)
            with suppress(anyio.EndOfStream):  # raised here it would leave as a group
                found.append(await self._changes.receive())
            tasks.cancel_scope.cancel()
        if not found:
            raise anyio.EndOfStream
        return found[0]

    def receive_nowait(self) -> Changes:
        """Take what there is."""
        if self._stop.was_asked.is_set():
            raise anyio.EndOfStream
        return self._changes.receive_nowait()


class _Command:
    """One run of the command; none when the watch is to end already."""

    def __init__(self, run: Run, stop: Stop) -> None:
        self._run = run
        self._stop = stop
        self._control = Control()

    async def wait(self) -> None:
        """Run it to its end."""
        if self._stop.was_asked.is_set():
            return
        self._stop.takes(self._control)
        try:
            await self._run(self._control)
        finally:
            self._stop.takes(None)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._control.signal(number)
