"""Remember what each droplet is known to have of a tree, so that the next sync needs to ask nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chisel.node import kept
from chisel.node.tree import Item


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
    """What is known of all droplets' copies of one tree; `file` is the tree's index file. Blocking."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._there: dict[str, There] | None = None
        self._trees: dict[str, dict[str, Item]] = {}

    def of(self, key: str) -> There:
        """Return what is known of one droplet."""
        return self._loaded().get(key, There())

    def tree(self, tree_hash: str) -> dict[str, Item] | None:
        """Return the items of a tree that some droplet has, None where they are not known."""
        if tree_hash not in self._trees:
            found = kept.read(f"{self._file}.tree-{tree_hash[:24]}")
            if not isinstance(found, dict):
                return None
            self._trees[tree_hash] = {path: Item(path, *row) for path, row in found.items()}
        return self._trees[tree_hash]

    def remember(self, key: str, there: There, items: Mapping[str, Item] | None = None) -> None:
        """Keep what a droplet has now confirmed; trees that no droplet has are forgotten."""
        found = self._reloaded()
        if found.get(key) == there:
            return
        found[key] = there
        if items is not None and there.tree not in self._trees:
            self._trees[there.tree] = dict(items)
            rows = {path: tuple(item[1:]) for path, item in items.items()}
            self._write(f".tree-{there.tree[:24]}", rows)
        self._write(".there", {name: _row(one) for name, one in found.items()})
        self._forget({one.tree for one in found.values()})

    def _forget(self, used: set[str]) -> None:
        for tree_hash in self._trees.keys() - used:
            del self._trees[tree_hash]
        names = {f"{self._file.name}.tree-{one[:24]}" for one in used}
        for path in self._file.parent.glob(f"{self._file.name}.tree-*"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _loaded(self) -> dict[str, There]:
        return self._reloaded() if self._there is None else self._there

    def _reloaded(self) -> dict[str, There]:
        """Read it again: another chisel may have written meanwhile. What it loses costs a question only."""
        found = kept.read(f"{self._file}.there")
        rows = found if isinstance(found, dict) else {}
        self._there = {name: There(*row) for name, row in rows.items()}
        return self._there

    def _write(self, ending: str, value: Any) -> None:
        with suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.write(f"{self._file}{ending}", value)


def _row(there: There) -> tuple[Any, ...]:
    return (there.token, there.tree, tuple(there.codecs), there.bytes_per_s, there.is_pending)
