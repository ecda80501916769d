"""List what of a tree is to be sent, and why not the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from anyio import to_thread

from chisel.events import Notice
from chisel.node.tree import DIRECTORY, FILE, LINK
from chisel.sync.ignore import CHISEL_IGNORE, GIT, GIT_IGNORE, Place, Rules, Surroundings, Verdict, default_surroundings

MANY_FILES = 10_000
MANY_BYTES = 100_000_000
_MOST = 0.8
"""What part of the files or bytes the named directories have to hold."""
_HALF = 0.5
_NEARLY_ALL = 0.9
"""A directory that holds so much of the one above is named instead of it."""
_NAMED_AT_MOST = 5
_NAME = attrgetter("name")
_RULE_FILES = frozenset({GIT, GIT_IGNORE, CHISEL_IGNORE})

Reason = Literal["ignored", "special", "unreadable", "vanished"]


class Entry(NamedTuple):
    """One path that is sent: `kind` as in `chisel.node.tree`, `status` what lstat said when it was listed."""

    path: str
    kind: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One path that is not sent, a directory standing for all that is in it.

    `verdict` is the rule that left it out, `detail` what there is to say of the rest: a FIFO, no permission.
    """

    path: str
    is_directory: bool
    reason: Reason
    verdict: Verdict | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A listed tree: what is sent, a directory before what is in it; what is not; and what the user should know.

    `unreadable` directories were not seen: what is known to be in them must not count as deleted.
    """

    root: Path
    entries: dict[str, Entry] = field(repr=False)
    left_out: tuple[LeftOut, ...] = field(repr=False)
    notices: tuple[str, ...]

    @property
    def files(self) -> Iterator[Entry]:
        """Give the regular files."""
        return (entry for entry in self.entries.values() if entry.kind == FILE)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Return, in words, what no rule leaves out and is not sent all the same."""
        return tuple(f"{one.path}: {one.detail}" for one in self.left_out if one.reason in {"special", "unreadable"})

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Return the directories that could not be read."""
        return tuple(one.path for one in self.left_out if one.reason == "unreadable" and one.is_directory)


async def list_tree(root: Path, surroundings: Surroundings | None = None) -> Listing:
    """List a tree in a thread; raises OSError when the root itself cannot be read."""
    return await to_thread.run_sync(listing_of, root, surroundings)


def listing_of(root: Path, surroundings: Surroundings | None = None) -> Listing:
    """List a tree; blocking. One `git ls-files` for it and each repository in it, and one look at every path."""
    rules = Rules(root, surroundings or default_surroundings(), trusts_listing=True)
    walk = Walk(rules)
    walk.run()
    return Listing(root, walk.entries, tuple(walk.left_out), tuple(rules.notices))


class Walk:
    """Go through a tree once, however deep it is. `directories` are all that were looked into.

    A directory that is left out but may lead to something that a `.chiselignore` takes in is sent with that alone
    (`leads` says that there is such a one). `names` says of every directory what is in it, and whether that is a
    directory, `rule_files` where rules may come from, `scopes` which repositories were met.
    """

    def __init__(self, rules: Rules) -> None:
        self._root = rules.root
        self._rules = rules
        self._waiting: list[tuple[Place, list[os.DirEntry[str]]]] = []
        self._leading: dict[str, Entry] = {}
        """Directories that are sent as soon as something below them is."""
        self._verdicts: dict[str, Verdict] = {}
        self.entries: dict[str, Entry] = {}
        self.left_out: list[LeftOut] = []
        self.directories: list[str] = []
        self.names: dict[str, dict[str, bool]] = {}
        self.rule_files: list[str] = []
        self.scopes = {rules.top.scope}
        self.leads = False

    def run(self) -> None:
        """Go through all of it; raises OSError when the root itself cannot be read."""
        with os.scandir(self._root) as found:
            entries = sorted(found, key=_NAME)
        self.directories.append("")
        self._waiting.append((self._rules.top, entries))
        while self._waiting:
            self._look(*self._waiting.pop())
        for path in self._leading:
            self.left_out.append(LeftOut(path, is_directory=True, reason="ignored", verdict=self._verdicts[path]))

    def _look(self, place: Place, entries: list[os.DirEntry[str]]) -> None:
        names = self.names[place.path] = dict[str, bool]()
        prefix = f"{place.path}/" if place.path else ""
        sends_all, lists = place.sends_all, place.lists
        for entry in entries:
            name = entry.name
            path = prefix + name
            if name in _RULE_FILES:
                self.rule_files.append(path)
            try:
                is_directory = names[name] = entry.is_dir(follow_symlinks=False)
                if not is_directory and ((sends_all and name[0] != ".") or lists(name)):
                    self._leaf(entry, path)
                    continue
                verdict = place.decide(name, is_directory=is_directory)
                if is_directory:
                    self._directory(place, entry, path, verdict)
                elif verdict.is_sent or (verdict.source is None and _is_special(entry)):
                    self._leaf(entry, path)
                else:
                    self.left_out.append(LeftOut(path, is_directory=False, reason="ignored", verdict=verdict))
            except FileNotFoundError:
                self.left_out.append(LeftOut(path, is_directory=False, reason="vanished"))
            except OSError as error:
                self.left_out.append(LeftOut(path, False, "unreadable", detail=error.strerror or str(error)))

    def _directory(self, place: Place, entry: os.DirEntry[str], path: str, verdict: Verdict) -> None:
        if not verdict.is_sent and not place.may_send_below(entry.name, verdict):
            self.left_out.append(LeftOut(path, is_directory=True, reason="ignored", verdict=verdict))
            return
        one = Entry(path, DIRECTORY, entry.stat(follow_symlinks=False))
        if verdict.is_sent:
            self._send(one)
        else:
            self._leading[path] = one
            self._verdicts[path] = verdict
            self.leads = True
        found = self._scan(path)
        if found is not None:
            self.directories.append(path)
            inner_place = place.enter(entry.name, verdict, {inner.name for inner in found})
            self.scopes.add(inner_place.scope)
            self._waiting.append((inner_place, found))

    def _send(self, entry: Entry) -> None:
        """Take an entry in, and before it the directories above it that only lead to it."""
        if self._leading:
            parts = entry.path.split("/")
            for depth in range(1, len(parts)):
                above = self._leading.pop("/".join(parts[:depth]), None)
                if above is not None:
                    self.entries[above.path] = above
        self.entries[entry.path] = entry

    def _scan(self, path: str) -> list[os.DirEntry[str]] | None:
        try:
            with os.scandir(os.path.join(self._root, path)) as found:
                return sorted(found, key=_NAME)
        except FileNotFoundError:
            self.left_out.append(LeftOut(path, is_directory=True, reason="vanished"))
        except OSError as error:
            self.left_out.append(LeftOut(path, True, "unreadable", detail=error.strerror or str(error)))
        return None

    def _leaf(self, entry: os.DirEntry[str], path: str) -> None:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            one = Entry(path, FILE, status)
            if self._leading:
                self._send(one)
            else:
                self.entries[path] = one
        elif stat.S_ISLNK(status.st_mode):
            self._send(Entry(path, LINK, status))
        else:
            detail = kind_of_special(status.st_mode)
            self.left_out.append(LeftOut(path, is_directory=False, reason="special", detail=detail))


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Say whether it is neither a file nor a link: git lists no such thing, without any rule against it."""
    return not entry.is_file(follow_symlinks=False) and not entry.is_symlink() and entry.name != GIT


def kind_of_special(mode: int) -> str:
    """Say what a file is that cannot be sent."""
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISCHR, "a device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "neither a file, a directory nor a link")


# -- too much


def too_much(listing: Listing) -> Notice | None:
    """Warn when more is sent than anybody sends on purpose, naming what causes it; None for an ordinary tree.

    Named are the fewest directories (or single files) that hold most of it, each as deep as it still does.
    """
    sizes = {path: status.st_size for path, kind, status in listing.entries.values() if kind == FILE}
    total = sum(sizes.values())
    if len(sizes) <= MANY_FILES and total <= MANY_BYTES:
        return None
    weights = dict.fromkeys(sizes, 1) if len(sizes) > MANY_FILES else sizes
    held, children = _holders(weights)
    causes = _causes(held, children)
    said = f"nothing ignores {len(sizes):,} files ({_megabytes(total)}) here"
    if sum(held[cause] for cause in causes) < _HALF * held.get("", 0):
        hint = "what is not needed there belongs into .chiselignore"
        return Notice(level="warning", message=f"{said}, spread over many directories", hint=hint)
    named = ", ".join(_named(cause, sizes) for cause in causes)
    lines = " ".join(ignoring_line(cause, is_directory=cause not in sizes) for cause in causes)
    return Notice(
        level="warning",
        message=f"{said}: most of it is in {named}",
        hint=f"if it is not needed there, write into .chiselignore: {lines}",
    )


def _holders(weights: dict[str, int]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return what every path holds, and what is in each directory: all of the directories, of the files the heaviest.

    At the top all files count.
    """
    held = dict[str, int]()
    heaviest = dict[str, tuple[int, str]]()
    children = dict[str, list[str]]()
    for path, weight in weights.items():
        folder, slash, _ = path.rpartition("/")
        held[folder] = held.get(folder, 0) + weight
        if not slash:
            held[path] = weight
            children.setdefault("", []).append(path)
        elif (weight, path) > heaviest.get(folder, (-1, "")):
            heaviest[folder] = weight, path
    for folder, (weight, path) in heaviest.items():
        held[path] = weight
        children[folder] = [path]
    waiting = {path for path in held if path and path not in weights}
    known = set(waiting)
    while waiting:
        for path in waiting:
            children.setdefault(path.rpartition("/")[0], []).append(path)
        waiting = {path.rpartition("/")[0] for path in waiting} - known - {""}
        known |= waiting
    for path in sorted(known, key=lambda one: -one.count("/")):
        folder = path.rpartition("/")[0]
        held[folder] = held.get(folder, 0) + held[path]
    return held, children


def _causes(held: dict[str, int], children: dict[str, list[str]]) -> list[str]:
    """Return the fewest disjoint paths that hold most of the weight, the heaviest first."""
    total, found = held.get("", 0), 0
    causes = []
    for path in sorted(children.get("", ()), key=lambda one: (-held[one], one))[:_NAMED_AT_MOST]:
        causes.append(_tightest(path, held, children))
        found += held[path]
        if found >= _MOST * total:
            break
    return causes


def _tightest(path: str, held: dict[str, int], children: dict[str, list[str]]) -> str:
    """Go down while one child holds nearly all of what is asked about."""
    whole = held[path]
    while path in children:
        heaviest = max(children[path], key=lambda one: (held[one], one))
        if held[heaviest] < _NEARLY_ALL * whole:
            break
        path = heaviest
    return path


def _named(cause: str, sizes: dict[str, int]) -> str:
    if cause in sizes:
        return f"`{cause}` ({_megabytes(sizes[cause])})"
    inside = [size for path, size in sizes.items() if path.startswith(cause + "/")]
    return f"`{cause}/` ({len(inside):,} files, {_megabytes(sum(inside))})"


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def ignoring_line(path: str, *, is_directory: bool) -> str:
    """Return the line of an ignore file at the root that leaves out exactly this path."""
    escaped = "".join(f"\\{letter}" if letter in "*?[\\" else letter for letter in path)
    stripped = escaped.rstrip(" ")
    spaces = len(escaped) - len(stripped)
    return f"/{stripped}" + "\\ " * spaces + ("/" if is_directory else "")
