"""Remember what each droplet is known to have of a tree, so that the next sync needs to ask nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chisel.node import kept
from chisel.node.tree import Item

_VERSION = 1
_DEEPEST = 24
_UNUSED = 32


@dataclass(frozen=True, slots=True)
class There:
    """One droplet's working copy as it was last confirmed.

    `token` names that state there, `tree` is its tree hash, `codecs` what the droplet can decompress, `bytes_per_s` how
    fast it took the last large stream (0: not known). While `is_pending` something was sent that was not confirmed: it
    has to be asked what came.
    """

    token: str = ""
    tree: str = ""
    codecs: tuple[str, ...] = ()
    bytes_per_s: float = 0.0
    is_pending: bool = False


class Known:
    """What is known of all droplets' copies of one tree; `file` is the tree's index file. Blocking; for one thread.

    A tree is kept as what differs from an earlier one, so that to remember an edit costs a small write.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._there: dict[str, There] | None = None
        self._trees: dict[str, dict[str, Item]] = {}
        self._stored: kept.Table | None = None

    def of(self, key: str) -> There:
        """Return what is known of one droplet."""
        return self._loaded().get(key, There())

    def tree(self, tree_hash: str) -> dict[str, Item] | None:
        """Return the items of a tree that some droplet has, None where they are not known."""
        if tree_hash not in self._trees:
            rows = self._rows(tree_hash, 0)
            if rows is None:
                return None
            self._trees[tree_hash] = {path: Item(path, *row) for path, row in rows.items()}
        return self._trees[tree_hash]

    def remember(self, key: str, there: There, items: Mapping[str, Item] | None = None) -> None:
        """Keep what a droplet has now confirmed; trees that no droplet has are forgotten."""
        found = self._reloaded()
        if found.get(key) == there:
            return
        before = found.get(key, There()).tree
        found[key] = there
        with suppress(OSError):
            if items is not None and there.tree not in self._trees:
                self._keep(there.tree, dict(items), before)
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.write(f"{self._file}.there", {name: _row(one) for name, one in found.items()})
            self._forget({one.tree for one in found.values()})

    def _keep(self, tree_hash: str, items: dict[str, Item], before: str) -> None:
        if self._is_stored(tree_hash):
            self._trees[tree_hash] = items
            return  # it was here before: to make it depend on a later one would be a circle
        base = self.tree(before) if before else None
        depth = self._depth(before) + 1 if base is not None else 0
        if base is None or depth > _DEEPEST:
            base, before, depth = {}, "", 0
        changed = {
            path: tuple(item[1:])
            for path, item in items.items()
            if (old := base.get(path)) is not item and old != item  # of another process's scan all are new objects
        }
        gone = list(base.keys() - items.keys())
        self._trees[tree_hash] = items
        self._store.change({tree_hash: (before, depth, changed, gone)})

    def _is_stored(self, tree_hash: str) -> bool:
        """Say whether a tree can be read, with those that it is kept as a difference from."""
        for _ in range(2 * _DEEPEST + 1):
            entry = self._store.values.get(tree_hash)
            if entry is None:
                return False
            tree_hash = entry[0]
            if not tree_hash:
                return True
        return False

    def _rows(self, tree_hash: str, depth: int) -> dict[str, Any] | None:
        entry = self._store.values.get(tree_hash)
        if entry is None or depth > 2 * _DEEPEST:
            return None
        before, _, changed, gone = entry
        rows = self._rows(before, depth + 1) if before else {}
        if rows is None:
            return None
        for path in gone:
            rows.pop(path, None)
        rows.update(changed)
        return rows

    def _depth(self, tree_hash: str) -> int:
        entry = self._store.values.get(tree_hash)
        return int(entry[1]) if entry is not None else 0

    def _forget(self, used: set[str]) -> None:
        for tree_hash in self._trees.keys() - used:
            del self._trees[tree_hash]
        needed = set(used)
        for tree_hash in used:
            while tree_hash in self._store.values and (tree_hash := self._store.values[tree_hash][0]) not in needed:
                needed.add(tree_hash)
        stored = self._store.values
        if len(stored) > len(needed) + _UNUSED:
            self._store.change({}, stored.keys() - needed)

    @property
    def _store(self) -> kept.Table:
        if self._stored is None:
            self._stored = kept.Table(f"{self._file}.trees", _VERSION)
        return self._stored

    def _loaded(self) -> dict[str, There]:
        return self._reloaded() if self._there is None else self._there

    def _reloaded(self) -> dict[str, There]:
        """Read it again: another chisel may have written meanwhile. What it loses costs a question only."""
        found = kept.read(f"{self._file}.there")
        rows = found if isinstance(found, dict) else {}
        self._there = {name: There(*row) for name, row in rows.items()}
        return self._there


def _row(there: There) -> tuple[Any, ...]:
    return (there.token, there.tree, tuple(there.codecs), there.bytes_per_s, there.is_pending)
