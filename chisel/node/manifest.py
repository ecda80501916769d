"""Know what was pushed to a working copy, and find what somebody else changed there since.

A manifest is a snapshot and a journal beside it: before a switch its intentions are noted, so that a later sync knows
every path that may have come from here, after it how everything looks now. Standard library only, Python 3.10.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import kept, tree
from .tree import DIRECTORY, FILE, LINK, OTHER, Directories, Item, Look, look_of

RACY_NS = 50_000_000
_VERSION = 2
_LONGEST_JOURNAL = 256 << 10
_MOST_CHANGES = 1000
_SPECIAL = 0o7000


class Row(NamedTuple):
    """One path of a manifest; `look` is how `stat` saw it then, None when that cannot be relied on."""

    kind: str
    mode: int
    digest: str
    size: int
    mtime_ns: int
    look: Look | None

    def item(self, path: str) -> Item:
        """Return it as an item."""
        return Item(path, self.kind, self.mode, self.digest, self.size, self.mtime_ns)


def row_of(item: Item, look: Look | None) -> Row:
    """Return the row for an item."""
    return Row(item.kind, item.mode, item.digest, item.size, item.mtime_ns, look)


Rows = dict[str, Row]
ByFolder = dict[str, list[tuple[str, str, Row]]]
"""By directory the name, path and row of what is in it, a directory before those in it."""


def by_folder(rows: Rows) -> ByFolder:
    """Return rows by directory."""
    found: ByFolder = {}
    for path in sorted(rows):
        above, _, name = path.rpartition("/")
        found.setdefault(above, []).append((name, path, rows[path]))
    return found


@dataclass(slots=True)
class Facts:
    """What a manifest is of: `token` names this state of it, `owner` whoever pushed last, in words `owner_name`."""

    tree: str = ""
    token: str = ""
    owner: str = ""
    owner_name: str = ""
    synced_at: float = 0.0


@dataclass(slots=True)
class Manifest:
    """The manifest of one working copy, in a directory of its own."""

    directory: str
    facts: Facts = field(default_factory=Facts)
    rows: Rows = field(default_factory=dict)
    hashing: tree.TreeHash = field(default_factory=tree.TreeHash)
    _by_folder: ByFolder | None = None
    _machine: str = ""
    _stamp: tuple[int, ...] = ()
    _journal_at: int = 0

    @classmethod
    def load(cls, directory: str) -> Manifest:
        """Read it; an empty one when there is none. Its token counts on this machine and since its boot only."""
        found = cls(directory)
        found.refresh()
        return found

    def refresh(self) -> None:
        """Take in what was written since it was read: what is current is known for certain under the copy's lock."""
        stamp = self._stamp_now()
        entries = []
        if stamp != self._stamp or not stamp:
            self.facts, self.rows, self._by_folder, self._machine, self._journal_at = Facts(), {}, None, "", 0
            self._stamp = stamp
            entries = [kept.read(self._snapshot)]
        more, self._journal_at = kept.journal(self._journal, self._journal_at)
        for entry in entries + more:
            try:
                self._machine = self._replay(entry) or self._machine
            except (TypeError, ValueError, KeyError, AttributeError):
                self._by_folder = None
                continue
        if self._machine != _here():
            self.facts.token = ""

    def by_folder(self) -> ByFolder:
        """Return the rows in the order in which they are looked at; it is worked out once."""
        if self._by_folder is None:
            self._by_folder = by_folder(self.rows)
        return self._by_folder

    def _sort_in(self, paths: Collection[str]) -> None:
        """Take over what has changed in rows."""
        known = self._by_folder
        if known is None or len(paths) > _MOST_CHANGES:
            self._by_folder = None
            return
        for path in sorted(paths):
            folder, _, name = path.rpartition("/")
            members = known.setdefault(folder, [])
            at = next((number for number, one in enumerate(members) if one[0] == name), len(members))
            members[at : at + 1] = [(name, path, self.rows[path])] if path in self.rows else []
            if not members:
                del known[folder]

    def _stamp_now(self) -> tuple[int, ...]:
        """Return what changes when the snapshot is replaced, and with it the journal emptied."""
        try:
            found = os.stat(self._snapshot)
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def intend(self, rows: Rows) -> None:
        """Note what a switch is about to make: should it be cut short, these paths count as ours, unseen."""
        self._append({"intends": {path: tuple(row) for path, row in rows.items()}})

    def settle(self, changed: Rows, removed: list[str], facts: Facts) -> None:
        """Note how everything is now. Raises OSError; it is then as if the switch had been cut short."""
        for path in removed:
            self.rows.pop(path, None)
        self.rows.update(changed)
        self.facts, self._by_folder = facts, None
        if len(changed) + len(removed) > _MOST_CHANGES:
            self._save()
            return
        entry = {"facts": _plain(facts), "rows": {path: tuple(row) for path, row in changed.items()}, "gone": removed}
        if self._append(entry) > _LONGEST_JOURNAL:
            self._save()

    def _replay(self, entry: Any) -> str:
        """Take one entry of the file; return the machine it was written on, empty for an intention."""
        if not entry or entry["version"] != _VERSION:
            return ""
        if "intends" in entry:
            for path, row in entry["intends"].items():
                self.rows[path] = Row(*row)._replace(look=None)
            self._sort_in(entry["intends"])
            self.facts.tree = self.facts.token = ""
            return ""
        for path in entry["gone"]:
            self.rows.pop(path, None)
        self.rows.update(zip(entry["rows"], map(Row._make, entry["rows"].values()), strict=True))
        self._sort_in([*entry["gone"], *entry["rows"]])
        self.facts = Facts(**entry["facts"])
        return str(entry["machine"])

    def _save(self) -> None:
        rows = {path: tuple(row) for path, row in self.rows.items()}
        entry = {"version": _VERSION, "machine": _here(), "facts": _plain(self.facts), "rows": rows, "gone": []}
        kept.write(self._snapshot, entry, is_durable=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._journal)

    def _append(self, entry: dict[str, Any]) -> int:
        return kept.append(self._journal, {"version": _VERSION, "machine": _here(), **entry})

    @property
    def _snapshot(self) -> str:
        return os.path.join(self.directory, "manifest")

    @property
    def _journal(self) -> str:
        return os.path.join(self.directory, "journal")


def _plain(facts: Facts) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in Facts.__slots__}


def new_token() -> str:
    """Return a name for a state that no other state has."""
    return secrets.token_hex(8)


def _here() -> str:
    """Name this machine and its boot: a restored or copied disk is not what was synced."""
    found = []
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as source:
            found.append(source.read().strip())
    return " ".join(found)


# -- drift


class Survey(NamedTuple):
    """What differs now from the manifest: rows by path, None for what is gone.

    `differs` are the paths with another kind, mode or content, the rest was only touched; `drift` those of them that
    somebody else must have changed, because they were seen as they should be.
    """

    changed: dict[str, Row | None]
    differs: list[str]
    drift: list[str]


def look_around(directories: Directories, known: ByFolder, *, is_thorough: bool = False) -> Survey:
    """Find what differs from a manifest; content is read only where `stat` differs, or everywhere when thorough.

    It goes into each directory by its handle, where `lstat` of a bare name takes a third less than by handle and name,
    and ends in `/`: for a process with one thread.
    """
    try:
        return _look_around(directories, known, is_thorough)
    finally:
        os.chdir("/")


def _look_around(directories: Directories, known: ByFolder, is_thorough: bool) -> Survey:
    now = time.time_ns()
    changed: dict[str, Row | None] = {}
    differs: list[str] = []
    drift: list[str] = []
    lstat = os.lstat
    for folder, members in known.items():
        is_there = _enter(directories, folder)
        for name, path, row in members:
            try:
                status = lstat(name) if is_there else None
            except OSError:
                status = None
            if status is not None:
                look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
                if row[5] == look and not is_thorough:
                    continue
                if row[0] == DIRECTORY and status.st_mode == stat.S_IFDIR | row[1] | status.st_mode & _SPECIAL:
                    continue
            found = _present(directories, path, status, now)
            is_same = found is not None and found[:3] == row[:3]
            if not is_same or found != row:
                changed[path] = found
            if not is_same:
                differs.append(path)
                if row.look is not None or row.kind == DIRECTORY:
                    drift.append(path)
    return Survey(changed, sorted(differs), sorted(drift))


def _enter(directories: Directories, path: str) -> bool:
    """Go into a directory; False where there is none."""
    try:
        os.fchdir(directories.get(path))
    except OSError:
        return False
    return True


def _present(directories: Directories, path: str, status: os.stat_result | None, now: int) -> Row | None:
    """Describe what is at a path now; a file that keeps changing has an empty digest, which nothing equals."""
    if status is None:
        return None
    if stat.S_ISDIR(status.st_mode):
        return Row(DIRECTORY, status.st_mode & tree.PERMISSIONS, "", 0, 0, None)
    if stat.S_ISLNK(status.st_mode):
        parent, name = directories.of(path)
        return Row(LINK, 0, os.readlink(name, dir_fd=parent), 0, 0, look_of(status))
    if not stat.S_ISREG(status.st_mode):
        return Row(OTHER, 0, "", 0, 0, None)
    try:
        hashed = tree.hash_file(directories, path)
    except (FileNotFoundError, PermissionError):
        hashed = None
    if hashed is None:
        return Row(FILE, status.st_mode & tree.PERMISSIONS, "", status.st_size, status.st_mtime_ns, None)
    digest, status = hashed
    # A write in the same clock tick as this look would leave the same times: such a look is not kept.
    look = None if now - max(status.st_ctime_ns, status.st_mtime_ns) < RACY_NS else look_of(status)
    return Row(FILE, status.st_mode & tree.PERMISSIONS, digest, status.st_size, status.st_mtime_ns, look)
