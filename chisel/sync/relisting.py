"""List a tree again without reading its directories: those that nothing was made in, removed from or renamed in.

Such a change always shows in a directory's times (POSIX, `rename`, `unlink`, `open`), and nobody can set them all back:
the time of the last status change is the system's own. Relied on that is on Linux, on the file systems of `_TRUSTED`;
elsewhere every listing is a whole one. The rules are the same while no file that holds some has changed.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from chisel.node.offer import RACY_NS
from chisel.node.tree import DIRECTORY, FILE, LINK, Look, look_of
from chisel.sync.ignore import (
    CHISEL_IGNORE,
    GIT,
    GIT_IGNORE,
    Place,
    Rules,
    Surroundings,
    default_surroundings,
)
from chisel.sync.ignore.rules import Scope
from chisel.sync.listing import Entry, LeftOut, Listing, Walk

_TRUSTED = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "zfs"})
_RULE_FILES = frozenset({GIT, GIT_IGNORE, CHISEL_IGNORE})
_MOUNTS = "/proc/self/mountinfo"
_TYPES = {DIRECTORY: stat.S_IFDIR, FILE: stat.S_IFREG, LINK: stat.S_IFLNK}
_OPEN_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Stamp = tuple[int, ...]


class Lister:
    """List one tree as often as one likes; only changed directories are read again. Blocking, for one thread."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def list(
        self, root: str | os.PathLike[str], around: Surroundings | None = None
    ) -> tuple[Listing, frozenset[str] | None]:
        """List a tree; raises OSError when the root cannot be read. The listing holds until the next one is made.

        Returns with it the paths that came, went, or look otherwise than in the listing before; None where that is not
        known, because all of it was listed anew.
        """
        around = around or default_surroundings()
        kept, self._kept = self._kept, None
        if kept is not None and kept.is_of(root, around):
            differs = kept.renew()
            if differs is not None:
                self._kept = kept
                return kept.listing, frozenset(differs)
        looked_at_ns = time.time_ns()
        top = os.stat(root)
        rules = Rules(root, around, trusts_listing=True)
        walk = Walk(rules)
        walk.run()
        listing = Listing(Path(root), walk.entries, tuple(walk.left_out), tuple(rules.notices))
        is_whole = all(one.reason in {"ignored", "special"} for one in walk.left_out)
        if is_whole and not walk.leads and not rules.notices and _knows_repositories(walk) and is_trusted(rules.root):
            self._kept = _Kept(listing, walk, rules, top, looked_at_ns)
        return listing, None


class _Kept:
    """A listing, and the stamps of all that it follows from. A stamp that cannot be relied on is empty."""

    def __init__(self, listing: Listing, walk: Walk, rules: Rules, top: os.stat_result, looked_at_ns: int) -> None:
        self._listing = listing
        self._around = rules.around
        self._root = rules.root
        self._rules: Rules | None = None
        self._entries = dict(listing.entries)
        self._looks = {
            path: look_of(entry.status) for path, entry in listing.entries.items() if entry.kind == DIRECTORY
        }
        """How directories looked that are sent."""
        self._members = _members_of(listing.entries.values())
        self._differs = set[str]()
        self._left_out = {one.path: one for one in listing.left_out}
        self._names = walk.names
        looks = {path: walk.entries[path].status for path in walk.directories if path}
        self._folders = {path: stamp_of(look, looked_at_ns) for path, look in {"": top, **looks}.items()}
        places = {*_rule_places(walk, rules), *_places_above(rules)}
        self._sources = {place: _stamp_at(place, looked_at_ns) for place in places}
        self._device = top.st_dev
        self._is_usable = all(look.st_dev == top.st_dev for look in looks.values()) and not _includes_others(
            walk, rules
        )

    def is_of(self, root: str | os.PathLike[str], around: Surroundings) -> bool:
        """Say whether this is about the same directory, as the same user's git sees it."""
        same = (around.git, around.home, around.config_home)
        mine = (self._around.git, self._around.home, self._around.config_home)
        return self._is_usable and same == mine and os.path.realpath(root) == self._root

    @property
    def listing(self) -> Listing:
        """Return the listing as it is now."""
        return Listing(self._listing.root, self._entries, tuple(self._left_out.values()), self._listing.notices)

    def renew(self) -> set[str] | None:
        """Take in what has changed and return those paths; None when the tree must be listed wholly."""
        for place, stamp in self._sources.items():
            if stamp != _stamp_at(place, 0):
                return None
        self._differs = set[str]()
        try:
            fresh = self._look_around()
        except OSError:
            return None
        if fresh is None:
            return None
        self._entries.update((entry.path, entry) for entry in fresh)
        self._differs.update(entry.path for entry in fresh)
        return self._differs

    def _look_around(self) -> list[Entry] | None:
        """Look at everything, and into directories that have changed; return what looks otherwise than it did.

        None when the tree must be listed wholly. Files are looked at by their directory's handle: a long path takes
        longer.
        """
        # Taken before anything is looked at: to decide about what came may take longer than a tick of the clock.
        began_ns, prefix = time.time_ns(), f"{self._root.rstrip('/')}/"
        fresh, looks, entries, lstat = list[Entry](), self._looks, self._entries, os.lstat
        for folder, stamp in list(self._folders.items()):
            if folder not in self._folders:
                continue  # it went with the one above
            handle = os.open(prefix + folder, _OPEN_ROOT | os.O_NOFOLLOW if folder else _OPEN_ROOT)
            try:
                status = os.fstat(handle)
                if stamp != (status.st_dev, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns):
                    if not self._look_again(folder, began_ns):
                        return None
                    self._folders[folder] = stamp_of(status, began_ns)
                if folder and looks[folder] != (look := look_of(status)):
                    looks[folder] = look
                    fresh.append(Entry(folder, DIRECTORY, status))
                members = self._members.get(folder, {})
                for name, known in members.items():
                    status = lstat(name, dir_fd=handle)
                    look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
                    if look == known:
                        continue
                    path = f"{folder}/{name}" if folder else name
                    kind = entries[path].kind
                    if stat.S_IFMT(status.st_mode) != _TYPES[kind]:
                        return None
                    members[name] = look
                    fresh.append(Entry(path, kind, status))
            finally:
                os.close(handle)
        return fresh

    def _look_again(self, folder: str, began_ns: int) -> bool:
        """Take in what came to a directory and went from it; False when other rules may hold for it."""
        with os.scandir(os.path.join(self._root, folder)) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        known = self._names[folder]
        if found == known:
            return True
        differs = {name for name in found.keys() | known.keys() if found.get(name) != known.get(name)}
        if differs & _RULE_FILES:
            return False
        # Whatever goes is gone before anything comes: a name may be both.
        for name in differs & known.keys():
            self._drop(f"{folder}/{name}" if folder else name)
            self._members.get(folder, {}).pop(name, None)
        for name in sorted(differs & found.keys()):
            path = f"{folder}/{name}" if folder else name
            if not (self._take_in_folder(path, began_ns) if found[name] else self._take_in(path)):
                return False
        self._names[folder] = found
        return True

    def _drop(self, path: str) -> None:
        """Forget a path and all that is below it."""
        waiting = [path]
        while waiting:
            one = waiting.pop()
            waiting += [f"{one}/{name}" for name in self._names.pop(one, ())]
            for kept in (self._folders, self._members, self._looks, self._left_out):
                kept.pop(one, None)
            if self._entries.pop(one, None) is not None:
                self._differs.add(one)

    def _take_in_folder(self, path: str, began_ns: int) -> bool:
        """Decide about a directory that is new and all that is in it; False where other rules may hold there."""
        rules, waiting = self._current_rules(), [path]
        while waiting:
            path = waiting.pop()
            verdict = rules.decide(path, is_directory=True)
            if not verdict.is_sent:
                above, _, name = path.rpartition("/")
                place = rules.place(above)
                if isinstance(place, Place) and place.may_send_below(name, verdict):
                    return False
                self._left_out[path] = LeftOut(path, is_directory=True, reason="ignored", verdict=verdict)
                continue
            folder = os.path.join(self._root, path)
            status = os.lstat(folder)
            with os.scandir(folder) as entries:
                names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
            if status.st_dev != self._device or not stat.S_ISDIR(status.st_mode) or names.keys() & _RULE_FILES:
                return False
            self._names[path] = names
            self._folders[path] = stamp_of(status, began_ns)
            self._come(Entry(path, DIRECTORY, status))
            for name, is_directory in sorted(names.items()):
                inner = f"{path}/{name}"
                if is_directory:
                    waiting.append(inner)
                elif not self._take_in(inner):
                    return False
        return True

    def _current_rules(self) -> Rules:
        if self._rules is None:
            self._rules = Rules(self._root, self._around, trusts_listing=False)
        return self._rules

    def _come(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        if entry.kind == DIRECTORY:
            self._looks[entry.path] = look_of(entry.status)
        else:
            folder, _, name = entry.path.rpartition("/")
            self._members.setdefault(folder, {})[name] = look_of(entry.status)
        self._differs.add(entry.path)

    def _take_in(self, path: str) -> bool:
        """Decide about a file that is new; False for what is no file."""
        verdict = self._current_rules().decide(path, is_directory=False)
        if not verdict.is_sent:
            self._left_out[path] = LeftOut(path, is_directory=False, reason="ignored", verdict=verdict)
            return True
        try:
            status = os.lstat(os.path.join(self._root, path))
        except FileNotFoundError:
            return True  # as it came it went: the directory's times will have changed
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            return False
        self._come(Entry(path, FILE if stat.S_ISREG(status.st_mode) else LINK, status))
        return True


def _members_of(entries: Iterable[Entry]) -> dict[str, dict[str, Look]]:
    """Return by directory the names of what is no directory in it, and how each looked."""
    members: dict[str, dict[str, Look]] = {}
    for path, kind, status in entries:
        if kind != DIRECTORY:
            folder, _, name = path.rpartition("/")
            members.setdefault(folder, {})[name] = look_of(status)
    return members


def stamp_of(status: os.stat_result, looked_at_ns: int) -> Stamp:
    """Return what tells that something was changed, empty when it was too shortly before it was looked at."""
    if looked_at_ns and looked_at_ns - max(status.st_mtime_ns, status.st_ctime_ns) < RACY_NS:
        return ()
    return status.st_dev, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_ctime_ns


def _stamp_at(place: str, looked_at_ns: int) -> Stamp:
    """Return the stamp of a file that holds rules, or of nothing (-1): what is empty never equals what is found."""
    try:
        status = os.stat(place)
    except OSError:
        return (-1,)
    found = stamp_of(status, looked_at_ns)
    return (*found, status.st_size) if found else ()


def _rule_places(walk: Walk, rules: Rules) -> Iterator[str]:
    """Give the files in a tree, and of its repositories and its user, that rules were read from or may be."""
    for path in walk.rule_files:
        yield os.path.join(rules.root, path)
    scopes = [scope for scope in walk.scopes if scope.repository is not None]
    for scope in scopes:
        yield from _git_places(scope)
    if scopes:
        yield from _user_places(rules.around)


def _git_places(scope: Scope) -> Iterator[str]:
    repository = scope.repository
    assert repository is not None
    yield repository.index_file
    yield repository.exclude_file
    yield os.path.join(repository.common_directory, "config")
    for name in ("config.worktree", "HEAD"):
        yield os.path.join(repository.git_directory, name)
    if "core.excludesfile" in scope.settings:
        yield os.path.join(repository.top, scope.settings["core.excludesfile"])


def _user_places(around: Surroundings) -> Iterator[str]:
    yield "/etc/gitconfig"
    yield str(around.home / ".gitconfig")
    yield str(around.config_home / "git" / "config")
    yield str(around.config_home / "git" / "ignore")


def _places_above(rules: Rules) -> Iterator[str]:
    """Give what rules may come from above the root: a repository around it, and the ignore files in between."""
    repository = rules.top.scope.repository
    for above in map(str, Path(rules.root).parents):
        yield os.path.join(above, GIT)
        if repository is not None and (above == repository.top or above.startswith(repository.top.rstrip("/") + "/")):
            yield os.path.join(above, GIT_IGNORE)
            yield os.path.join(above, CHISEL_IGNORE)


def _knows_repositories(walk: Walk) -> bool:
    """Say whether every `.git` is a repository's whose rules hold: of another, what makes it one may be far inside."""
    bases = {scope.base for scope in walk.scopes if scope.repository is not None}
    return all(path.rpartition("/")[0] in bases for path in walk.rule_files if path.rpartition("/")[2] == GIT)


def _includes_others(walk: Walk, rules: Rules) -> bool:
    """Say whether a configuration takes in other files: which, only git knows."""
    repositories = [scope.repository for scope in walk.scopes if scope.repository is not None]
    own = [os.path.join(repository.common_directory, "config") for repository in repositories]
    for place in (*own, *_user_places(rules.around)):
        with suppress(OSError), open(place, "rb") as source:
            if re.search(rb"^\s*\[\s*include", source.read(1 << 20), re.IGNORECASE | re.MULTILINE):
                return True
    return False


def is_trusted(root: str, mounts: str = _MOUNTS) -> bool:
    """Say whether a directory and all below it is on one file system whose directories' times can be relied on."""
    if sys.platform != "linux":
        return False
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as source:
            lines = [line.split(" - ", 1) for line in source]
    except OSError:
        return False
    below, best, kind = root.rstrip("/") + "/", "", ""
    for fields, more in (line for line in lines if len(line) == 2):
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields.split(" ")[4])
        if point.startswith(below):
            return False
        if below.startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, more.split(" ", 1)[0]
    return kind in _TRUSTED
