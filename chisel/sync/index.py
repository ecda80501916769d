"""Remember what files held, so that a scan reads only what changed. Losing it costs time only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chisel.node import kept
from chisel.node.offer import RACY_NS
from chisel.node.tree import Item, Look, TreeHash
from chisel.sync.relisting import Lister

_VERSION = 4
_MOST_SUMS = 64 << 20


def is_settled(status: os.stat_result, read_at_ns: int) -> bool:
    """Say whether a later change must show in a file's times, when its reading began at that instant."""
    return read_at_ns - max(status.st_ctime_ns, status.st_mtime_ns) > RACY_NS


def index_file_for(index_dir: Path, root: Path) -> Path:
    """Return where the hashes of a tree are kept; what else is known of the tree lies beside, with endings."""
    return index_dir / hashlib.sha256(os.fsencode(root)).hexdigest()[:24]


class Index:
    """The hashes of one tree's files, by path, and the block checksums of contents, by digest. For one thread.

    `items`, `tree_hash`, what `hashing` and `lister` know and `last` (the scan's own) are those of the last scan, in
    memory only: a kept index makes the next scan quicker.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.items: dict[str, Item] = {}
        self.tree_hash = ""
        self.hashing = TreeHash()
        self.lister = Lister()
        self.last: Any = None
        self._files = kept.Table(str(file), _VERSION)
        self._sums: kept.Table | None = None

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read it; empty when there is none that can be read. Blocking."""
        return cls(file)

    @property
    def files(self) -> Mapping[str, tuple[Look, str]]:
        """Return the look and the digest of files, by path."""
        return self._files.values

    def change(self, changed: dict[str, tuple[Look, str]], gone: Iterable[str] = ()) -> None:
        """Take what is new, and write it; a disk that is full keeps what it had. Blocking."""
        with suppress(OSError):
            self._files.change(changed, gone)

    def is_news(self, text: str) -> bool:
        """Say whether a text differs from what was said of this tree last, and remember it. Blocking."""
        file = f"{self.file}.said"
        if (kept.read(file) or "") == text:
            return False
        with suppress(OSError):
            os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
            kept.write(file, text)
        return True

    # -- block checksums

    def sums_of(self, digest: str) -> bytes | None:
        """Return the block checksums of a content, None where they are not known. Blocking, the first time."""
        found: bytes | None = self._known_sums.values.get(digest)
        return found

    def remember_sums(self, sums: dict[str, bytes]) -> None:
        """Keep the block checksums of contents; the oldest go when there are too many. Blocking."""
        if not sums:
            return
        table = self._known_sums
        total = sum(map(len, table.values.values())) + sum(map(len, sums.values()))
        gone = []
        for digest, one in table.values.items():
            if total <= _MOST_SUMS:
                break
            total -= len(one)
            gone.append(digest)
        with suppress(OSError):
            table.change(sums, gone)

    @property
    def _known_sums(self) -> kept.Table:
        if self._sums is None:
            self._sums = kept.Table(f"{self.file}.sums", _VERSION)
        return self._sums
