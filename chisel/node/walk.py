"""Find what patterns name below a directory of the droplet: each path once, in order, without following links.

Standard library only, Python 3.10.
"""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import stat
import time
from collections.abc import Iterator

from . import env, stdio, tree
from .offer import RACY_NS, Entry, Link

STAGE = ".chisel-pull"
_REPOSITORY = ".git"
_NEAR, _LOOKED_AT = 3, 5000


class Walk:
    """Collect the entries that patterns name; `places` says where each file is, by its path at the client."""

    def __init__(self, cwd: str) -> None:
        self._cwd = cwd.rstrip("/") or "/"
        self._seen: set[str] = set()
        self.files: list[Entry] = []
        self.directories: list[str] = []
        self.links: list[Link] = []
        self.places: dict[str, str] = {}
        self.missing: list[tuple[str, list[str]]] = []
        self.skipped: list[tuple[str, str]] = []

    def add(self, pattern: str) -> None:
        """Collect what one pattern names; raises Refused for one that leads out of the working copy."""
        takes_repository = _REPOSITORY in pattern.split("/")
        found = list(self._matches(pattern))
        if not found:
            self.missing.append((pattern, self._near(pattern)))
        for name, place in found:
            self._collect(name, place, takes_repository=takes_repository)

    def _matches(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Give what a pattern names: the path it gets at the client, and where it is.

        A relative pattern keeps its path; of an absolute one, or one from the home, the path begins at its last
        component, or at the first that has a wildcard.
        """
        whole, base = self._base(pattern)
        places = sorted(glob.iglob(whole, recursive=True)) if glob.has_magic(whole) else [whole]
        for place in places:
            place = os.path.normpath(place)
            if not os.path.lexists(place):
                continue
            if place == base:
                yield "", place
            elif place.startswith(base.rstrip("/") + "/"):
                yield os.path.relpath(place, base), place
            else:
                raise stdio.Refused("outside", f"`{pattern}` leads out of the working copy; name it from `/` or `~/`")

    def _base(self, pattern: str) -> tuple[str, str]:
        """Return the whole pattern and the directory that paths are relative to."""
        if not pattern.startswith(("/", "~/")):
            return os.path.join(glob.escape(self._cwd), pattern) if glob.has_magic(pattern) else os.path.join(
                self._cwd, pattern
            ), self._cwd
        whole = os.path.normpath(env.expand(pattern))
        if whole == "/":
            raise stdio.Refused("too-wide", "`/` is everything there is: name what is to be pulled")
        components = whole.split("/")
        magic = next((index for index, name in enumerate(components) if glob.has_magic(name)), len(components) - 1)
        return whole, "/".join(components[:magic]) or "/"

    def _near(self, pattern: str) -> list[str]:
        """Name what is there and looks like a pattern that names nothing."""
        whole, base = self._base(pattern)
        directory, name = os.path.split(os.path.normpath(whole))
        while not os.path.isdir(directory) and directory not in {"/", ""}:
            directory, name = os.path.split(directory)
        try:
            with os.scandir(directory) as entries:
                there = [entry.name for entry in itertools.islice(entries, _LOOKED_AT)]
        except OSError:
            return []
        plain = glob.escape(name).replace("[*]", "").replace("[?]", "").replace("[[]", "")
        folded = {other.lower(): other for other in there}
        near = [folded[one] for one in difflib.get_close_matches(plain.lower(), folded, _NEAR, 0.6)]
        inside = directory == base or directory.startswith(base.rstrip("/") + "/")
        return [os.path.relpath(os.path.join(directory, one), base) if inside else one for one in near]

    def _collect(self, name: str, place: str, *, takes_repository: bool) -> None:
        """Collect a path and all below it, in the order of their names; a deep tree takes no deep stack."""
        waiting = [(name, place)]
        while waiting:
            name, place = waiting.pop()
            if place in self._seen:
                continue
            self._seen.add(place)
            last = name.rpartition("/")[2]
            if last == STAGE or (last == _REPOSITORY and not takes_repository):
                if last == _REPOSITORY:
                    self.skipped.append((name, "a repository's own files; name it to have it"))
                continue
            try:
                status = os.stat(place) if name == "" else os.lstat(place)
                if stat.S_ISDIR(status.st_mode):
                    entries = sorted(os.listdir(place), reverse=True)
                    if name:
                        self.directories.append(name)
                    waiting += [(f"{name}/{one}" if name else one, os.path.join(place, one)) for one in entries]
                elif stat.S_ISLNK(status.st_mode):
                    self.links.append(Link(name, os.readlink(place)))
                elif stat.S_ISREG(status.st_mode):
                    self.places[name] = place
                    self.files.append(entry_of(name, status))
                else:
                    self.skipped.append((name, "neither a file, a directory nor a link"))
            except OSError as error:
                self.skipped.append((name, error.strerror or "it cannot be read"))


def entry_of(name: str, status: os.stat_result) -> Entry:
    """Return how a file is offered, as `status` saw it just now."""
    touched = max(status.st_mtime_ns, status.st_ctime_ns)
    return Entry(
        name,
        status.st_mode & tree.PERMISSIONS,
        status.st_size,
        min(status.st_size, status.st_blocks * 512),
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        is_racy=time.time_ns() - touched < RACY_NS,
    )
