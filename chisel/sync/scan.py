"""Know the local tree: every path that is to be sent, with content hashes kept from scan to scan.

A file is read again only when its size, times, inode or mode differ from the last scan's. One that was changed within
the clock tick of its reading is not remembered: the next change could leave the same times. A large file that changed
is not read here but while it is sent, once: its digest is empty until then.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from chisel.errors import UsageError
from chisel.node import tree
from chisel.node.tree import DIRECTORY, FILE, LINK, Item
from chisel.sync import blocks
from chisel.sync.ignore import GIT, Ignore, ignore_for
from chisel.sync.index import Index, Look, index_file_for, is_settled, look_of
from chisel.sync.pulled import pulled_paths

__all__ = ["Index", "LocalTree", "index_file_for", "scan", "scan_tree"]

DEFERRED_BYTES = 4 << 20
_TRIES = 3
_SHORT_NAME = 63
"""A name of so many characters has no more bytes than a name may have, whatever it is."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A scanned tree: its items by path, what was left out and why, and one hash of it all (empty: not known yet).

    Below the paths of `unread` this user may not look; `released` are files that `pull` wrote and nobody edited.
    `notes` are remarks on what is sent otherwise than it is here.
    """

    root: Path
    items: dict[str, Item] = field(repr=False)
    skipped: tuple[str, ...]
    tree_hash: str
    unread: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


async def scan_tree(root: Path, index: Index | Path, *, is_thorough: bool = False) -> LocalTree:
    """Scan a tree in a thread; raises UsageError when it cannot be read. Losing the index file costs time only."""
    return await to_thread.run_sync(scan, root, index, is_thorough)


def scan(root: Path, index: Index | Path, is_thorough: bool = False) -> LocalTree:
    """Scan a tree; blocking. A thorough scan reads every file."""
    if isinstance(index, Path):
        index = Index.load(index)
    walk = _Walk(str(root), index, is_thorough=is_thorough)
    try:
        walk.run()
    except OSError as error:
        raise UsageError(f"`{error.filename or root}` cannot be read: {error.strerror}") from error
    index.remember_sums(walk.sums)
    known, found = index.files, walk.files
    index.change(
        {path: seen for path, seen in found.items() if known.get(path) is not seen}, known.keys() - found.keys()
    )
    if walk.is_deferred or not index.tree_hash or walk.items != index.items:
        index.tree_hash = "" if walk.is_deferred else tree.tree_hash(walk.items.values())
    index.items = walk.items
    notes = (f"{walk.links} hard links are sent as files of their own",) if walk.links else ()
    return LocalTree(
        root,
        walk.items,
        tuple(walk.skipped),
        index.tree_hash,
        unread=tuple(walk.unread),
        released=tuple(walk.released),
        notes=notes,
    )


class _Walk:
    """Go through one tree; `files` is what the next scan may rely on."""

    def __init__(self, root: str, index: Index, *, is_thorough: bool) -> None:
        self._root = root
        self._index = index
        self._known = {} if is_thorough else index.files
        self._pulled = pulled_paths(index.file.parent, Path(root))
        self.items: dict[str, Item] = {}
        self.skipped: list[str] = []
        self.unread: list[str] = []
        self.released: list[str] = []
        self.files: dict[str, tuple[Look, str]] = {}
        self.sums: dict[str, bytes] = {}
        self.links = 0
        self.is_deferred = False

    def run(self) -> None:
        # The root may itself be a symbolic link; nothing below it is followed.
        self._directory("", ignore_for(self._root), "")

    def _directory(self, path: str, ignore: Ignore, base: str) -> None:
        """Go through one directory; what has not changed since the last scan takes the short way."""
        entries = self._entries(path)
        if path and path != base[:-1] and any(entry.name == GIT for entry in entries):
            # A repository of its own (a submodule, a nested clone): its own rules hold inside.
            ignore, base = ignore_for(os.path.join(self._root, path)), f"{path}/"
        skipped, prefix = len(base), f"{path}/" if path else ""
        is_ignored, known_of, items, files = ignore.is_ignored, self._known.get, self.items, self.files
        seen = self._index.items
        for entry in entries:
            name = entry.name
            inner = prefix + name
            is_directory = entry.is_dir(follow_symlinks=False)
            if name == GIT or is_ignored(inner[skipped:], is_directory=is_directory):
                continue
            if len(name) > _SHORT_NAME and not self._can_be_sent(inner):
                continue
            if is_directory:
                self._enter(entry, inner, ignore, base)
                continue
            known = known_of(inner)
            if known is None or inner in self._pulled:
                self._leaf(entry, inner)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                self._leaf(entry, inner)
                continue
            look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
            if look != known[0] or status.st_nlink > 1:
                self._leaf(entry, inner)
                continue
            files[inner] = known
            same = seen.get(inner)
            if same is None or same[3] != known[1] or same[5] != look[1] or same[2] != look[4] & tree.PERMISSIONS:
                same = Item(inner, FILE, look[4] & tree.PERMISSIONS, known[1], look[0], look[1])
            items[inner] = same

    def _can_be_sent(self, path: str) -> bool:
        try:
            tree.check_path(path)
        except tree.UnsafePath:
            self.skipped.append(f"{path!r}: the name cannot be sent")
            return False
        return True

    def _enter(self, entry: os.DirEntry[str], path: str, ignore: Ignore, base: str) -> None:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode & tree.PERMISSIONS
        except OSError:
            return
        self.items[path] = Item(path, DIRECTORY, mode)
        self._directory(path, ignore, base)

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        place = os.path.join(self._root, path) if path else self._root
        try:
            with os.scandir(place) as found:
                return list(found)
        except FileNotFoundError:
            if not path:
                raise
            return []
        except OSError as error:
            if not path:
                raise
            self._cannot_read(path, f"{path}/", error)
            return []

    def _cannot_read(self, path: str, shown: str, error: OSError) -> None:
        """Leave out what cannot be read: it is there, so nothing is deleted for it."""
        self.unread.append(path)
        why = "no permission to read it" if isinstance(error, PermissionError) else error.strerror
        self.skipped.append(f"{shown}: {why}")

    def _leaf(self, entry: os.DirEntry[str], path: str) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                self._file(entry.path, path, status)
            elif stat.S_ISLNK(status.st_mode):
                self.items[path] = Item(path, LINK, 0, os.readlink(entry.path))
            else:
                self.skipped.append(f"{path}: neither a file, a directory nor a link")
        except FileNotFoundError:
            return
        except OSError as error:
            self._cannot_read(path, path, error)

    def _file(self, place: str, path: str, status: os.stat_result) -> None:
        pulled = self._pulled.get(path)
        if pulled is not None and pulled[:2] == (status.st_size, status.st_mtime_ns):
            self.released.append(path)
            return
        if status.st_nlink > 1:
            self.links += 1
        known = self._known.get(path)
        if known is not None and known[0] == look_of(status):
            digest = known[1]
            self.files[path] = known
        elif known is not None and status.st_size >= DEFERRED_BYTES:
            digest, self.is_deferred = "", True
            self.files[path] = known  # the look is of before: it is sent, and hashed, again until that has been done
        else:
            read_at = time.time_ns()
            hashed = self._hash(place)
            if hashed is None:
                self._cannot_read(path, path, OSError(errno.EBUSY, "it kept changing while it was read"))
                return
            digest, status = hashed
            if is_settled(status, read_at):
                self.files[path] = (look_of(status), digest)
        mode = status.st_mode & tree.PERMISSIONS
        self.items[path] = Item(path, FILE, mode, digest, status.st_size, status.st_mtime_ns)

    def _hash(self, place: str) -> tuple[str, os.stat_result] | None:
        for _ in range(_TRIES):
            handle = os.open(place, _READ)
            try:
                before = os.fstat(handle)
                if not stat.S_ISREG(before.st_mode):
                    raise OSError(errno.EINVAL, "it is no longer a file", place)
                if before.st_size < blocks.LEAST_BYTES:
                    found = tree.hash_handle(handle)
                    if found is not None:
                        return found
                    continue
                content, length, sums = blocks.read_whole(tree.read_chunks(handle, before.st_size + 1), before.st_size)
                if length == before.st_size and tree.same_file_state(before, os.fstat(handle)):
                    digest = str(content.hexdigest())
                    self.sums[digest] = sums
                    return digest, before
            finally:
                os.close(handle)
        return None
