"""Hear of what changes in a tree, filtered by what is sent, in sets that come a few milliseconds after a save.

>>> async with watching(root) as changes:
...     async for change in changes:
...         ...

The way to listen is chosen here and loaded when it is needed: inotify on Linux, else what `watchfiles` knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
from anyio import to_thread
from anyio.abc import ObjectReceiveStream

from chisel.errors import ChiselError, UsageError, leaves
from chisel.sync.ignore import Surroundings, default_surroundings
from chisel.sync.sieve import Changes

DEBOUNCE_S = 0.005
"""How long nothing more must happen before a set is delivered: editors save in several steps."""
AT_MOST_S = 0.1
"""How long a set is collected at most while things go on happening."""

_CLOSE_S = 5.0


class Watch(Protocol):
    """One way to listen to a tree. Only `collect` is awaited; the others block and run in a thread, one at a time."""

    def start(self) -> None:
        """Begin to listen."""

    def close(self) -> None:
        """Listen no more."""

    async def collect(self, debounce_s: float, at_most_s: float) -> float:
        """Wait for the first thing that happens, and for what belongs to it; return when the first did (monotonic)."""

    def settle(self, first_at: float) -> Changes | None:
        """Return what may differ by now."""


class ChangeStream(ObjectReceiveStream[Changes]):
    """Give what has changed since it was asked last, as one set. For one receiver."""

    def __init__(self) -> None:
        self._changes: Changes | None = None
        self._has_some = anyio.Event()
        self._is_closed = False

    def put(self, changes: Changes) -> None:
        """Add to what is kept until somebody asks."""
        self._changes = changes if self._changes is None else self._changes.merged(changes)
        self._has_some.set()

    async def receive(self) -> Changes:
        """Wait for changes and take all of them; cancelled, nothing is taken."""
        await self._has_some.wait()
        return self.receive_nowait()

    def receive_nowait(self) -> Changes:
        """Take what there is; raises anyio.WouldBlock when there is nothing, ClosedResourceError when closed."""
        if self._is_closed:
            raise anyio.ClosedResourceError
        changes = self._changes
        if changes is None:
            raise anyio.WouldBlock
        self._changes, self._has_some = None, anyio.Event()
        return changes

    async def aclose(self) -> None:
        """Give nothing more."""
        self._is_closed = True
        self._has_some.set()


WatchMaker = Callable[[str, Surroundings], Watch]


@asynccontextmanager
async def watching(
    root: Path,
    surroundings: Surroundings | None = None,
    *,
    debounce_s: float = DEBOUNCE_S,
    at_most_s: float = AT_MOST_S,
    make_watch: WatchMaker | None = None,
) -> AsyncIterator[ChangeStream]:
    """Listen to a tree and give the stream of what changes, from the moment this is entered.

    What happens while nobody receives is kept as one set. What the rules leave out is not heard of; when the rules
    themselves change, when the system lost something, or when the root was replaced, everything may differ. While the
    root is gone nothing is delivered. Raises UsageError when the root cannot be listened to, ChiselError when the
    system allows no more watches. Cancelled or left, it listens no more, and nothing of it runs.
    """
    watch = await to_thread.run_sync(_open, root, surroundings, make_watch)
    try:
        async with ChangeStream() as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, watch, stream, debounce_s, at_most_s)
            yield stream
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        found = list(leaves(group))
        if len(found) == 1:
            raise found[0] from found[0].__cause__
        raise
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True):
            await to_thread.run_sync(watch.close)


def _open(root: Path, surroundings: Surroundings | None, make_watch: WatchMaker | None) -> Watch:
    watch = (make_watch or _way_to_watch())(os.path.abspath(root), surroundings or default_surroundings())
    try:
        watch.start()
    except OSError as error:
        watch.close()
        raise UsageError(f"`{root}` cannot be watched: {error.strerror or error}") from error
    except ChiselError:
        watch.close()
        raise
    return watch


def _way_to_watch() -> WatchMaker:
    if sys.platform == "linux":
        from chisel.sync.inotify import InotifyWatch

        return InotifyWatch
    from chisel.sync.polled import PolledWatch

    return PolledWatch


async def _listen(watch: Watch, stream: ChangeStream, debounce_s: float, at_most_s: float) -> None:
    while True:
        first_at = await watch.collect(debounce_s, at_most_s)
        changes = await to_thread.run_sync(watch.settle, first_at)
        if changes is not None:
            stream.put(changes)
