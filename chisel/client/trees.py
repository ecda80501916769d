"""Keep what is known of local trees between syncs: a tree that is warm is scanned without reading its directories."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from chisel.sync.index import Index, index_file_for
from chisel.sync.there import Known

MOST_TREES = 8
UNUSED_S = 1800.0
_ENDINGS = ("", ".log", ".there")

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """What is kept of one local tree between two syncs: the hashes of its files, and who has what of it."""

    index: Index
    known: Known


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A tree that nobody uses: how its files were when it was given back, and when that was (monotonic seconds)."""

    tree: Tree
    stamps: Stamps
    since_s: float


class Trees:
    """The local trees of one client, or of many one after the other. Calls may overlap within one event loop.

    A tree is lent to one user at a time; a second one at the same time gets what the files say. One whose files
    somebody else has changed, that was not used for `UNUSED_S`, or is one of more than `MOST_TREES` is forgotten.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[Path, Path], _Waiting] = {}

    @asynccontextmanager
    async def lent(self, index_dir: Path, root: Path) -> AsyncIterator[Tree]:
        """Give what is known of a tree, warm where it was used before."""
        self.forget_unused()
        file, waiting = index_file_for(index_dir, root), self._waiting.pop((index_dir, root), None)
        if waiting is not None and await to_thread.run_sync(_stamps_of, file) == waiting.stamps:
            tree = waiting.tree
        else:
            tree = await to_thread.run_sync(_load, file)
        yield tree
        # Only what was used to the end: what was cut short in a thread may still be under way there.
        stamps = await to_thread.run_sync(_stamps_of, file)
        self._waiting[index_dir, root] = _Waiting(tree, stamps, time.monotonic())

    def forget_unused(self) -> None:
        """Let go what has not been used for long, and the oldest of too many."""
        oldest = time.monotonic() - UNUSED_S
        kept = sorted(self._waiting.items(), key=lambda entry: entry[1].since_s)[-MOST_TREES:]
        self._waiting = {key: one for key, one in kept if one.since_s > oldest}


def _load(file: Path) -> Tree:
    return Tree(Index.load(file), Known(file))


def _stamps_of(file: Path) -> Stamps:
    return tuple(_stamp_of(f"{file}{ending}") for ending in _ENDINGS)


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
