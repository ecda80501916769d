"""Know the local tree: every path that is to be sent, with content hashes kept from scan to scan.

A file is read again only when its size, times, inode or mode differ from the last scan's. One that was changed within
the clock tick of the scan is not remembered: the next change could leave the same times.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from chisel.errors import UsageError
from chisel.node import tree
from chisel.node.tree import DIRECTORY, FILE, LINK, Item
from chisel.sync.ignore import GIT, Ignore, ignore_for

_INDEX_VERSION = 1
_RACY_NS = 50_000_000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Look = tuple[int, int, int, int, int]
Index = dict[str, tuple[Look, str]]


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A scanned tree: its items by path, what was left out and why, and one hash of it all."""

    root: Path
    items: dict[str, Item] = field(repr=False)
    skipped: tuple[str, ...]
    tree_hash: str


def index_file_for(index_dir: Path, root: Path) -> Path:
    """Return where the hashes of a tree are kept."""
    return index_dir / hashlib.sha256(os.fsencode(root)).hexdigest()[:24]


async def scan_tree(root: Path, index_file: Path) -> LocalTree:
    """Scan a tree in a thread; raises UsageError when it cannot be read. Losing the index file costs time only."""
    return await to_thread.run_sync(scan, root, index_file)


def scan(root: Path, index_file: Path) -> LocalTree:
    """Scan a tree; blocking."""
    known = _read_index(index_file)
    walk = _Walk(str(root), known)
    try:
        walk.run()
    except OSError as error:
        raise UsageError(f"`{error.filename or root}` cannot be read: {error.strerror}") from error
    if walk.index != known:
        with suppress(OSError):
            _write_index(index_file, walk.index)
    whole = tree.tree_hash(walk.items.values())
    return LocalTree(root, walk.items, tuple(walk.skipped), whole)


class _Walk:
    """Go through one tree; `index` is what the next scan may rely on."""

    def __init__(self, root: str, known: Index) -> None:
        self._root = root
        self._known = known
        self._now = time.time_ns()
        self.items: dict[str, Item] = {}
        self.skipped: list[str] = []
        self.index: Index = {}

    def run(self) -> None:
        # The root may itself be a symbolic link; nothing below it is followed.
        self._directory("", ignore_for(self._root), "")

    def _directory(self, path: str, ignore: Ignore, base: str) -> None:
        for entry in self._entries(path):
            inner = f"{path}/{entry.name}" if path else entry.name
            is_directory = entry.is_dir(follow_symlinks=False)
            if entry.name == GIT or ignore.is_ignored(inner[len(base) :], is_directory=is_directory):
                continue
            try:
                tree.check_path(inner)
            except tree.UnsafePath:
                self.skipped.append(f"{inner!r}: the name cannot be sent")
                continue
            if is_directory:
                self._enter(entry, inner, ignore, base)
            else:
                self._leaf(entry, inner)

    def _enter(self, entry: os.DirEntry[str], path: str, ignore: Ignore, base: str) -> None:
        self.items[path] = Item(path, DIRECTORY)
        if os.path.lexists(os.path.join(entry.path, GIT)):
            # A repository of its own (a submodule, a nested clone): its own rules hold inside.
            self._directory(path, ignore_for(entry.path), f"{path}/")
        else:
            self._directory(path, ignore, base)

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        place = os.path.join(self._root, path) if path else self._root
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError:
            if not path:
                raise
            return
        except PermissionError:
            if not path:
                raise
            self.skipped.append(f"{path}/: no permission to read it")
            return
        yield from entries

    def _leaf(self, entry: os.DirEntry[str], path: str) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                self.items[path] = Item(path, LINK, 0, os.readlink(entry.path))
            elif stat.S_ISREG(status.st_mode):
                self._file(entry.path, path, status)
            else:
                self.skipped.append(f"{path}: neither a file, a directory nor a link")
        except FileNotFoundError:
            return
        except OSError as error:
            self.skipped.append(f"{path}: {error.strerror}")

    def _file(self, place: str, path: str, status: os.stat_result) -> None:
        known = self._known.get(path)
        if known is not None and known[0] == _look(status):
            digest = known[1]
        else:
            hashed = _hash(place)
            if hashed is None:
                self.skipped.append(f"{path}: it kept changing while it was read")
                return
            digest, status = hashed
        if self._now - max(status.st_ctime_ns, status.st_mtime_ns) > _RACY_NS:
            self.index[path] = (_look(status), digest)
        mode = status.st_mode & tree.PERMISSIONS
        self.items[path] = Item(path, FILE, mode, digest, status.st_size, status.st_mtime_ns)


def _hash(place: str, tries: int = 3) -> tuple[str, os.stat_result] | None:
    for _ in range(tries):
        handle = os.open(place, _READ)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "it is no longer a file", place)
            found = tree.hash_handle(handle)
        finally:
            os.close(handle)
        if found is not None:
            return found
    return None


def _look(status: os.stat_result) -> Look:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


# -- the index


def _read_index(file: Path) -> Index:
    """Return the remembered hashes; none when they cannot be read: then every file is."""
    try:
        found = json.loads(file.read_bytes())
        if found["version"] != _INDEX_VERSION:
            return {}
        return {path: (_look_from(look), str(digest)) for path, look, digest in found["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _look_from(row: list[int]) -> Look:
    size, mtime_ns, ctime_ns, inode, mode = row
    return (size, mtime_ns, ctime_ns, inode, mode)


def _write_index(file: Path, index: Index) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rows = [[path, look, digest] for path, (look, digest) in index.items()]
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(json.dumps({"version": _INDEX_VERSION, "files": rows}))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
