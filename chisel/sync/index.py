"""Remember what files held, so that a scan reads only what changed. Losing it costs time only."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from chisel.node import kept

RACY_NS = 50_000_000
"""What changed so shortly before it was read may change again within the same tick of the file system's clock."""

_VERSION = 3
_MOST_SUMS = 64 << 20

Look = tuple[int, int, int, int, int]
"""Size, modification and change time in ns, inode, mode: what tells that a file was touched."""


def look_of(status: os.stat_result) -> Look:
    """Return a file's look."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def is_settled(status: os.stat_result, read_at_ns: int) -> bool:
    """Say whether a later change must show in a file's times, when its reading began at that instant."""
    return read_at_ns - max(status.st_ctime_ns, status.st_mtime_ns) > RACY_NS


def index_file_for(index_dir: Path, root: Path) -> Path:
    """Return where the hashes of a tree are kept; what else is known of the tree lies beside, with endings."""
    return index_dir / hashlib.sha256(os.fsencode(root)).hexdigest()[:24]


@dataclass(slots=True)
class Index:
    """The hashes of one tree's files, by path, and the block checksums of large contents, by digest."""

    file: Path
    files: dict[str, tuple[Look, str]] = field(default_factory=dict, repr=False)
    _sums: dict[str, bytes] | None = field(default=None, repr=False)

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read it; empty when there is none that can be read. Blocking."""
        found = kept.read(str(file))
        if not isinstance(found, dict) or found.get("version") != _VERSION:
            return cls(file)
        return cls(file, found["files"])

    def replace(self, files: dict[str, tuple[Look, str]]) -> None:
        """Take the files of a new scan, and write them where they differ. Blocking."""
        if files != self.files:
            self.files = files
            self.save()

    def save(self) -> None:
        """Write it; a disk that is full keeps the old one. Blocking."""
        with suppress(OSError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.write(str(self.file), {"version": _VERSION, "files": self.files})

    # -- block checksums

    def sums_of(self, digest: str) -> bytes | None:
        """Return the block checksums of a content, None where they are not known. Blocking, the first time."""
        return self._loaded().get(digest)

    def remember_sums(self, sums: dict[str, bytes]) -> None:
        """Keep the block checksums of contents; the oldest go when there are too many. Blocking."""
        if not sums:
            return
        known = {digest: one for digest, one in self._loaded().items() if digest not in sums} | sums
        total = sum(map(len, known.values()))
        for digest in list(known):
            if total <= _MOST_SUMS:
                break
            total -= len(known.pop(digest))
        self._sums = known
        with suppress(OSError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.write(f"{self.file}.sums", known)

    def _loaded(self) -> dict[str, bytes]:
        if self._sums is None:
            found = kept.read(f"{self.file}.sums")
            self._sums = found if isinstance(found, dict) else {}
        return self._sums
