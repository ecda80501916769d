"""Tell what of what happened in a tree matters: which paths are sent, and which change the rules themselves.

Shared by the ways to watch a tree. Blocking, for one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import anyio

from chisel.sync.ignore import CHISEL_IGNORE, GIT, GIT_IGNORE, Place, Rules, Surroundings, Verdict

_RULE_FILES = frozenset({CHISEL_IGNORE, GIT_IGNORE, GIT})
_INDEX = "index"
MAKES_REPOSITORY = frozenset({"HEAD", "objects", "refs"})
"""What a `.git` that is just being made becomes a repository with."""
_LOST_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Changes:
    """What may differ from what it was: relative paths, each standing for all that is or was below it as well.

    With `is_everything` anything may: `reason` says why (an overflow, other rules, a root that was replaced).
    `first_at` is when the first of it was heard of (monotonic seconds).
    """

    first_at: float
    paths: frozenset[str] = frozenset()
    is_everything: bool = False
    reason: str = ""

    def merged(self, later: Changes) -> Changes:
        """Return both as one."""
        everything = self if self.is_everything else later
        if everything.is_everything:
            return replace(everything, first_at=self.first_at, paths=frozenset())
        return Changes(self.first_at, self.paths | later.paths)


class Sieve:
    """The rules of one watched tree, and what is known to have happened to them."""

    def __init__(self, root: str, around: Surroundings) -> None:
        self.rules = Rules(root, around, trusts_listing=False)
        self._around = around
        self.reason = ""
        """Why everything may differ, empty while it does not."""
        self.has_new_index = False

    @property
    def root(self) -> str:
        """Return the watched directory, symbolic links resolved."""
        return self.rules.root

    def note(self, name: str) -> None:
        """Learn that something of this name was made, changed or removed somewhere in the tree."""
        if name in _RULE_FILES:
            self.reason = self.reason or "the rules have changed"

    def note_git(self, name: str) -> None:
        """Learn that a file of a git directory that is listened to has changed."""
        if name == _INDEX:
            self.has_new_index = True
        else:
            self.reason = self.reason or "the rules have changed"

    def check_index(self) -> None:
        """After a new index: see whether something that git ignores has become tracked, or is tracked no more."""
        if not self.has_new_index:
            return
        self.has_new_index = False
        before, self.rules = self.rules, Rules(self.root, self._around, trusts_listing=False)
        bases = {scope.base for scope in before.scopes()}
        changed = _tracked(before, bases) ^ _tracked(self.rules, bases)
        if any(_is_ignored(self.rules, path) for path in changed):
            self.reason = self.reason or "what git tracks has changed"

    def is_sent(self, path: str, *, is_directory: bool) -> bool:
        """Say whether a path is sent, or leads to something that may be."""
        folder, _, name = path.rpartition("/")
        place = self.rules.place(folder)
        if isinstance(place, Verdict):
            return False
        return _is_entered(place, name, place.decide(name, is_directory=is_directory), is_directory=is_directory)

    def sent(self, happened: Mapping[str, Collection[bool]]) -> frozenset[str]:
        """Return the paths that are sent, none below another.

        The values say as what a path was met, a directory or something else: a file that makes place for a directory
        which is ignored is sent no more, and has to be told.
        """
        found = {
            path
            for path, kinds in happened.items()
            if any(self.is_sent(path, is_directory=is_directory) for is_directory in kinds)
        }
        return frozenset(path for path in found if not any(folder in found for folder in _folders(path)))

    def directories(self, below: str) -> Iterator[str]:
        """Give a directory and those below it that are looked into, each before what it holds is looked at."""
        waiting = [below]
        while waiting:
            folder = waiting.pop()
            place = self.rules.place(folder)
            if isinstance(place, Verdict):
                continue
            yield folder
            try:
                with os.scandir(os.path.join(self.root, folder)) as found:
                    inner = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            waiting.extend(
                f"{folder}/{name}" if folder else name
                for name in inner
                if _is_entered(place, name, place.decide(name, is_directory=True), is_directory=True)
            )

    def git_files(self, folder: str) -> dict[str, frozenset[str]]:
        """Return directories of git's whose named files hold rules, when a repository begins at this directory."""
        place = self.rules.place(folder)
        if isinstance(place, Verdict):
            return {}
        repository = place.scope.repository
        if repository is None or place.scope.base != folder:
            git = os.path.join(self.root, folder, GIT)
            return {git: MAKES_REPOSITORY} if os.path.isdir(git) else {}
        found = {repository.common_directory: frozenset({"config"})}
        own = found.get(repository.git_directory, frozenset())
        found[repository.git_directory] = own | {_INDEX, "config.worktree"}
        found[os.path.dirname(repository.exclude_file)] = frozenset({"exclude"})
        return found


async def until_back(root: str) -> None:
    """Wait until there is a directory again: nothing tells of it, where what held it may be gone as well."""
    while not await anyio.Path(root).is_dir():  # noqa: ASYNC110 - see above
        await anyio.sleep(_LOST_EVERY_S)


def _tracked(rules: Rules, bases: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for base in bases:
        place = rules.place(base)
        if isinstance(place, Place) and place.scope.base == base:
            found.update(f"{base}/{path}" if base else path for path in place.scope.tracked)
    return found


def _folders(path: str) -> Iterator[str]:
    folder = path.rpartition("/")[0]
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _is_entered(place: Place, name: str, verdict: Verdict, *, is_directory: bool) -> bool:
    return verdict.is_sent or (is_directory and place.may_send_below(name, verdict))


def _is_ignored(rules: Rules, path: str) -> bool:
    found = rules.git_line(path, is_directory=False)
    return found is not None and not found.is_sent
