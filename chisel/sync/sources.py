"""Find what a push names on this machine: files, and directories with all they hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chisel.errors import UsageError
from chisel.node import tree
from chisel.node.offer import Link

_OURS = (".chisel-pull", ".chisel-part-")


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its path below the target, and where it is here (an absolute path)."""

    path: str
    place: str
    mode: int
    size: int
    mtime_ns: int


@dataclass(slots=True)
class Sources:
    """Everything that one push names; `skipped` texts carry their reason."""

    files: list[Source] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return what all files hold, in bytes."""
        return sum(source.size for source in self.files)


def gather(named: Sequence[Path]) -> Sources:
    """Collect files and directories; blocking. Raises UsageError for what is not there or has a name already taken."""
    found, names = Sources(), dict[str, Path]()
    for path in named:
        place = os.path.abspath(path)
        name = os.path.basename(place)
        if name in names:
            raise UsageError(f"`{names[name]}` and `{path}` would both become `{name}` there")
        names[name] = path
        try:
            tree.check_path(name)
            status = path.stat()
        except OSError as error:
            raise UsageError(f"`{path}` cannot be pushed: {error.strerror}") from error
        except tree.UnsafePath as error:
            raise UsageError(f"`{path}` has no name of its own") from error
        if stat.S_ISDIR(status.st_mode):
            _walk(found, name, place)
        elif stat.S_ISREG(status.st_mode):
            found.files.append(_source(name, place, status))
        else:
            raise UsageError(f"`{path}` is neither a file nor a directory")
    return found


def _walk(found: Sources, name: str, place: str) -> None:
    top = name
    waiting = [(name, place)]
    while waiting:
        name, place = waiting.pop()
        found.directories.append(name)
        try:
            with os.scandir(place) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            found.skipped.append(f"{name}: {error.strerror}")
            continue
        for entry in ordered:
            inner = f"{name}/{entry.name}"
            try:
                if entry.name.startswith(_OURS):
                    continue
                tree.check_path(inner)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((inner, entry.path))
                else:
                    _leaf(found, top, inner, entry)
            except OSError as error:
                found.skipped.append(f"{inner}: {error.strerror}")
            except tree.UnsafePath:
                found.skipped.append(f"{inner!r}: the name cannot be sent")


def _leaf(found: Sources, top: str, path: str, entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        found.files.append(_source(path, entry.path, status))
    elif stat.S_ISLNK(status.st_mode):
        text = os.readlink(entry.path)
        inside = os.path.normpath(os.path.join(os.path.dirname(path), text))
        if text.startswith("/") or not (inside == top or inside.startswith(f"{top}/")):
            found.skipped.append(f"{path}: a link that leads out of what is pushed, to `{text}`")
        else:
            found.links.append(Link(path, text))
    else:
        found.skipped.append(f"{path}: neither a file, a directory nor a link")


def _source(path: str, place: str, status: os.stat_result) -> Source:
    return Source(path, place, status.st_mode & tree.PERMISSIONS, status.st_size, status.st_mtime_ns)
