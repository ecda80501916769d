"""Note which files of a tree `pull` wrote: they belong to the droplet, until somebody edits them here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from chisel.node import kept

_MOST = 100_000


def read_pulled(index_file: Path) -> dict[str, tuple[int, int]]:
    """Return the size and modification time (ns) that pulled files had when they were written. Blocking."""
    found = kept.read(f"{index_file}.pulled")
    return found if isinstance(found, dict) else {}


def remember_pulled(index_file: Path, root: Path, written: Iterable[Path]) -> None:
    """Note files that a pull has written below a tree; others are passed over. Blocking; raises OSError."""
    found = dict(read_pulled(index_file))
    for file in written:
        try:
            path, status = file.relative_to(root).as_posix(), os.lstat(file)
        except (ValueError, FileNotFoundError):
            continue
        found.pop(path, None)
        found[path] = (status.st_size, status.st_mtime_ns)
    index_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept.write(f"{index_file}.pulled", dict(list(found.items())[-_MOST:]))
