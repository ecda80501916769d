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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread

from chisel.errors import UsageError
from chisel.events import Notice
from chisel.model import Host
from chisel.node import tree
from chisel.node.tree import DIRECTORY, FILE, LINK, Item, Look, look_of
from chisel.sync import blocks
from chisel.sync.ignore import Surroundings
from chisel.sync.index import Index, index_file_for, is_settled
from chisel.sync.listing import Entry, Listing, too_much
from chisel.sync.pulled import Pulled, name_of, pulled_paths

__all__ = ["Index", "LocalTree", "index_file_for", "scan", "scan_tree"]

DEFERRED_BYTES = 4 << 20
_TRIES = 3
_SHORT_NAME = 63
"""A name of so many characters has no more bytes than a name may have, whatever it is."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A scanned tree: its items by path, what was left out and why, and one hash of it all (empty: not known yet).

    Below the paths of `unread` this user may not look; `released` are files that `pull` wrote and nobody edited: they
    are kept from the droplet they came from, or from all (an empty name) where they took no place of the user's.
    `notes` are remarks on what is sent otherwise than it is here, `warning` says that it is more than anybody means to
    send, where that has not been said before.
    """

    root: Path
    items: dict[str, Item] = field(repr=False)
    skipped: tuple[str, ...]
    tree_hash: str
    unread: tuple[str, ...] = ()
    released: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warning: Notice | None = None

    def kept_from(self, host: Host) -> frozenset[str]:
        """Return the paths that a droplet is not sent: they are its own."""
        name = name_of(host)
        return frozenset(path for path, origin in self.released.items() if origin in ("", name))


async def scan_tree(
    root: Path, index: Index | Path, *, is_thorough: bool = False, surroundings: Surroundings | None = None
) -> LocalTree:
    """Scan a tree in a thread; raises UsageError when it cannot be read. Losing the index file costs time only.

    `surroundings` are those of the user whose git and configuration decide (default: this process's).
    """
    return await to_thread.run_sync(scan, root, index, is_thorough, surroundings)


def scan(
    root: Path, index: Index | Path, is_thorough: bool = False, surroundings: Surroundings | None = None
) -> LocalTree:
    """Scan a tree; blocking. A thorough scan reads every file."""
    if isinstance(index, Path):
        index = Index.load(index)
    last, index.last = index.last, None
    try:
        listing, differs = index.lister.list(root, surroundings)
    except OSError as error:
        raise UsageError(f"`{error.filename or root}` cannot be read: {error.strerror}") from error
    look = _Look(root, listing, index, is_thorough=is_thorough)
    if differs is None or is_thorough or last is None or not look.goes_on_from(last, differs):
        look.at_all()
    look.at_left_out()
    index.remember_sums(look.sums)
    known, found = index.files, look.files
    gone = (known.keys() if look.is_whole else known.keys() & look.looked_at) - found.keys()
    index.change({path: seen for path, seen in found.items() if known.get(path) is not seen}, gone)
    if look.is_deferred or not index.tree_hash or look.items != index.items:
        index.tree_hash = "" if look.is_deferred else index.hashing.of_items(look.items)
    index.items = look.items
    index.last = look.seen()
    links = (f"{look.links} hard links are sent as files of their own",) if look.links else ()
    return LocalTree(
        root,
        look.items,
        tuple(look.skipped),
        index.tree_hash,
        unread=tuple(look.unread),
        released=look.released,
        notes=(*listing.notices, *links),
        warning=_new_warning(listing, index) if differs is None else None,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a scan saw: `restless` are the paths that the next one has to look at even where nothing differs.

    Those are files that have not come to rest, that were not read, that have several names, or that a pull wrote.
    """

    items: dict[str, Item]
    restless: frozenset[str]
    pulled: Mapping[str, Pulled]


def _new_warning(listing: Listing, index: Index) -> Notice | None:
    """Return that much is sent which nothing ignores, once for the same causes."""
    warning = too_much(listing)
    said = warning.hint or "" if warning is not None else ""
    return warning if index.is_news(said) and warning is not None else None


class _Look:
    """Look at what is listed; `files` is what the next scan may rely on, of all paths or of those in `looked_at`."""

    def __init__(self, root: Path, listing: Listing, index: Index, *, is_thorough: bool) -> None:
        self._prefix = f"{os.path.realpath(root).rstrip('/')}/"
        self._listing = listing
        self._index = index
        self._known = {} if is_thorough else index.files
        self._pulled = pulled_paths(index.file.parent, root)
        self._gone: dict[Look, str] = {}
        self._restless: set[str] = set()
        self.items: dict[str, Item] = {}
        self.skipped: list[str] = []
        self.unread: list[str] = []
        self.released: dict[str, str] = {}
        self.files: dict[str, tuple[Look, str]] = {}
        self.sums: dict[str, bytes] = {}
        self.looked_at: frozenset[str] = frozenset()
        self.is_whole = True
        self.links = 0
        self.is_deferred = False

    def goes_on_from(self, last: _Seen, differs: frozenset[str]) -> bool:
        """Look only at what differs from the last scan, or may; False where that is not known."""
        if last.pulled != self._pulled:
            return False
        self.looked_at, self.is_whole, self.items = differs | last.restless, False, dict(last.items)
        entries = self._listing.entries
        self._note_gone(path for path in self.looked_at if path not in entries)
        for path in self.looked_at:
            self.items.pop(path, None)
        self._look_at(entries[path] for path in self.looked_at if path in entries)
        return True

    def seen(self) -> _Seen:
        """Return what the next scan may go on from."""
        return _Seen(self.items, frozenset(self._restless), self._pulled)

    def at_all(self) -> None:
        """Look at everything that is listed."""
        self._note_gone(self._known.keys() - self._listing.entries.keys())
        self._look_at(self._listing.entries.values())

    def _note_gone(self, paths: Iterable[str]) -> None:
        """Note what is known of files that are gone: one that went with its directory is the same under a new path."""
        known = self._known
        self._gone = {known[path][0]: known[path][1] for path in paths if path in known}

    def at_left_out(self) -> None:
        """Say what is not sent although no rule leaves it out."""
        for one in self._listing.left_out:
            if one.reason == "unreadable":
                self._cannot_read(one.path, f"{one.path}/" if one.is_directory else one.path, one.detail)
            elif one.reason == "special":
                self.skipped.append(f"{one.path}: {one.detail}")

    def _look_at(self, entries: Iterable[Entry]) -> None:
        """Look at entries; what has not changed since the last scan takes the short way."""
        known_of, items, files, pulled = self._known.get, self.items, self.files, self._pulled
        seen = self._index.items
        for path, kind, status in entries:
            if len(path) > _SHORT_NAME and not self._can_be_sent(path):
                continue
            mode = status.st_mode & tree.PERMISSIONS
            same = seen.get(path)
            if kind == DIRECTORY:
                is_same = same is not None and same[1] == DIRECTORY and same[2] == mode
                items[path] = same if same is not None and is_same else Item(path, DIRECTORY, mode)
                continue
            known = known_of(path) if kind == FILE else None
            if known is None or path in pulled or status.st_nlink > 1:
                self._leaf(path, kind, status)
                continue
            look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
            if look != known[0]:
                self._leaf(path, kind, status)
                continue
            files[path] = known
            if same is None or same[3] != known[1] or same[5] != look[1] or same[2] != mode or same[1] != FILE:
                same = Item(path, FILE, mode, known[1], look[0], look[1])
            items[path] = same

    def _can_be_sent(self, path: str) -> bool:
        if len(path.rpartition("/")[2]) <= _SHORT_NAME:
            return True
        try:
            tree.check_path(path)
        except tree.UnsafePath:
            self._restless.add(path)
            self.skipped.append(f"{path!r}: the name cannot be sent")
            return False
        return True

    def _cannot_read(self, path: str, shown: str, why: str) -> None:
        """Leave out what cannot be read: it is there, so nothing is deleted for it."""
        self._restless.add(path)
        self.unread.append(path)
        self.skipped.append(f"{shown}: {why}")

    def _leaf(self, path: str, kind: str, status: os.stat_result) -> None:
        place = self._prefix + path
        try:
            if kind == FILE:
                self._file(place, path, status)
            else:
                self.items[path] = Item(path, LINK, 0, os.readlink(place))
        except FileNotFoundError:
            self._restless.add(path)
        except OSError as error:
            why = "no permission to read it" if isinstance(error, PermissionError) else error.strerror
            self._cannot_read(path, path, why or "it cannot be read")

    def _file(self, place: str, path: str, status: os.stat_result) -> None:
        pulled = self._pulled.get(path)
        if pulled is not None and pulled[:2] == (status.st_size, status.st_mtime_ns):
            self._restless.add(path)
            self.released[path] = pulled.host if pulled.was_own else ""
            if not pulled.was_own:
                return
        if status.st_nlink > 1:
            self.links += 1
            self._restless.add(path)
        known, look = self._known.get(path), look_of(status)
        moved = self._gone.get(look)
        if known is not None and known[0] == look:
            digest = known[1]
            self.files[path] = known
        elif moved is not None:
            digest = moved
            self.files[path] = look, moved
        elif known is not None and status.st_size >= DEFERRED_BYTES:
            digest, self.is_deferred = "", True
            self._restless.add(path)
            self.files[path] = known  # the look is of before: it is sent, and hashed, again until that has been done
        else:
            read_at = time.time_ns()
            hashed = self._hash(place)
            if hashed is None:
                self._cannot_read(path, path, "it kept changing while it was read")
                return
            digest, status = hashed
            if is_settled(status, read_at):
                self.files[path] = (look_of(status), digest)
            else:
                self._restless.add(path)
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
