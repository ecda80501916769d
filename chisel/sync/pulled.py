"""Remember what was pulled: the next pull need not read it again, and a sync does not send it back.

One small file per target directory, in the cache: losing it costs time, never correctness.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chisel.model import Host
from chisel.node.offer import RACY_NS

MOST_ENTRIES = 200_000
MOST_FILES = 256
_VERSION = 3
_SUFFIX = ".pulled"


class Pulled(NamedTuple):
    """A file as `pull` wrote it: while it has this size and time here, it is the droplet's.

    `host` is the droplet it came from. One that `was_own` took the place of a file of the user's: to other droplets it
    is one.
    """

    size: int
    mtime_ns: int
    host: str
    was_own: bool


def name_of(host: Host) -> str:
    """Return what a droplet is known by here: another one of the same name is another droplet."""
    return f"{host.name}/{host.droplet_id}"


class Note(NamedTuple):
    """What is known of one pulled file: how it is here, and how it looked on the droplet (None: unsure).

    `is_pulled` says that a pull has written it; one that had the droplet's content already is the user's own. `was_own`
    says that a pull has written it over a file of the user's.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digest: str
    host: str
    remote: tuple[int, ...] | None
    is_pulled: bool = True
    was_own: bool = False

    def is_untouched(self, status: os.stat_result) -> bool:
        """Say whether the file here is as it was written."""
        return (self.size, self.mtime_ns, self.ctime_ns, self.inode) == (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )


def pulled_paths(index_dir: Path, root: Path) -> Mapping[str, Pulled]:
    """Return what pulls wrote below `root`, by path relative to it; blocking, raises nothing.

    Whether a file still is what was pulled is the caller's to see: its size and time are the same then.
    """
    whole = os.path.realpath(root)
    found: dict[str, Pulled] = {}
    for target, file in _files(index_dir):
        if not (_is_within(target, whole) or _is_within(whole, target)):
            continue
        for path, note in _read(file, target).items():
            place = os.path.join(target, path)
            if note.is_pulled and place.startswith(whole.rstrip("/") + "/"):
                found[os.path.relpath(place, whole)] = Pulled(note.size, note.mtime_ns, note.host, note.was_own)
    return found


class Notes:
    """The notes of one target directory; blocking, for one thread at a time."""

    def __init__(self, index_dir: Path, target: Path) -> None:
        self._directory = index_dir
        self._target = os.path.realpath(target)
        key = hashlib.sha256(os.fsencode(self._target)).hexdigest()[:24]
        self._file = index_dir / f"{key}{_SUFFIX}"
        self._known = _read(self._file, self._target)
        self._changed: dict[str, Note] = {}

    def get(self, path: str) -> Note | None:
        """Return what is known of a file."""
        return self._changed.get(path) or self._known.get(path)

    def add(self, path: str, note: Note) -> None:
        """Learn how a file was written."""
        self._changed[path] = note

    def save(self) -> None:
        """Write them, with what others have written meanwhile; raises nothing: they are only notes."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = {**_read(self._file, self._target), **self._changed}
            _write(self._file, self._target, dict(list(whole.items())[-MOST_ENTRIES:]))
            self._known, self._changed = whole, {}
            self._prune()

    def _prune(self) -> None:
        """Forget targets that are gone, and the oldest of too many."""
        found = list(_files(self._directory))
        gone = [file for target, file in found if not os.path.isdir(target)]
        kept = sorted((file for target, file in found if file not in gone), key=lambda file: file.stat().st_mtime)
        for file in [*gone, *kept[: max(0, len(kept) - MOST_FILES)]]:
            file.unlink(missing_ok=True)


def _is_within(path: str, above: str) -> bool:
    return path == above or path.startswith(above.rstrip("/") + "/")


def _files(index_dir: Path) -> Iterator[tuple[str, Path]]:
    """Give the targets that there are notes of, and the files."""
    try:
        entries = sorted(entry for entry in os.listdir(index_dir) if entry.endswith(_SUFFIX))
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(index_dir / entry, encoding="ascii") as source:
                head = json.loads(source.readline())
            if head["version"] == _VERSION:
                yield str(head["target"]), index_dir / entry


def _read(file: Path, target: str) -> dict[str, Note]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(file, encoding="ascii") as source:
            head, rows = json.loads(source.readline()), json.loads(source.readline())
        if head["version"] == _VERSION and head["target"] == target:
            return {str(row[0]): _note(row) for row in rows}
    return {}


def _note(row: list[Any]) -> Note:
    _, size, mtime_ns, ctime_ns, inode, digest, host, remote, is_pulled, was_own = row
    looked = None if remote is None else tuple(remote)
    return Note(size, mtime_ns, ctime_ns, inode, str(digest), str(host), looked, bool(is_pulled), bool(was_own))


def _write(file: Path, target: str, notes: Mapping[str, Note]) -> None:
    now = time.time_ns()
    rows = []
    for path, note in notes.items():
        # A write within the clock's tick would leave the same look: such a one is read again next time.
        is_racy = now - note.ctime_ns < RACY_NS
        rows.append([path, *(note._replace(ctime_ns=0) if is_racy else note)])
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(json.dumps({"version": _VERSION, "target": target}) + "\n" + json.dumps(rows) + "\n")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
