"""Decide whether a path below a root is sent, and by which line of which file.

From the strongest to the weakest: `.git` and what a pull has under way are never sent; `.chiselignore` files, the
nearest one first, leave out and take in whatever git thinks; what git tracks is sent; git's own rules (`.gitignore`
files from the nearest up to the work tree's top, `info/exclude`, `core.excludesFile`). A directory that is left out is
not looked into, so nothing below it can be taken in again, with one exception: `!results/keep.csv` in a `.chiselignore`
reaches into a directory that only git ignores. A repository inside has git rules of its own. Outside of any, the
`.gitignore` files found hold.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from chisel.sync.ignore.git import GitRefused, Surroundings, list_files, read_config
from chisel.sync.ignore.pattern import Pattern, PatternFile, parse_patterns
from chisel.sync.ignore.repository import (
    GIT,
    Repository,
    UnknownIndex,
    read_config_files,
    read_ignore_file,
    read_tracked,
    repository_around,
    repository_at,
)
from chisel.sync.wanted import STAGE_PREFIX

GIT_IGNORE = ".gitignore"
CHISEL_IGNORE = ".chiselignore"

By = Literal["default", "tracked", "git", "chiselignore", "built-in"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a path is sent and by what: `source`, `line` and `pattern` name the line of a file that decided."""

    is_sent: bool
    by: By
    source: str | None = None
    line: int | None = None
    pattern: str | None = None

    @property
    def where(self) -> str:
        """Return `FILE:LINE: PATTERN` of what decided, empty where no line did."""
        return f"{self.source}:{self.line}: {self.pattern}" if self.source else ""


_DEFAULT = Verdict(is_sent=True, by="default")
_TRACKED = Verdict(is_sent=True, by="tracked")
_BUILT_IN = Verdict(is_sent=False, by="built-in")
_UNLISTED = Verdict(is_sent=False, by="git")


class Rules:
    """What holds below one root. `notices` are texts about what could not be asked and what was done instead.

    With `trusts_listing` git's own list of files, taken when the rules are made, decides about files: right for one
    look at a tree. Without, git is asked only what is tracked, and paths that do not exist yet are decided as well.
    Blocking, for one thread at a time.
    """

    def __init__(self, root: str | os.PathLike[str], around: Surroundings, *, trusts_listing: bool) -> None:
        self.root = os.path.realpath(root)
        self.around = around
        self.trusts_listing = trusts_listing
        self.notices: list[str] = []
        self._places: dict[str, Place] = {}
        self.top = self._open_root()

    def _open_root(self) -> Place:
        repository = repository_around(self.root)
        if repository is None:
            scope = Scope(self, "", None)
            return Place(scope, "", _above(self.root, self.root, CHISEL_IGNORE, scope))
        scope = Scope(self, "", repository)
        below_top = os.path.relpath(self.root, repository.top)
        chisel_files = _above(repository.top, self.root, CHISEL_IGNORE, scope)
        if below_top == os.curdir:
            return Place(scope, "", chisel_files)
        ignored = scope.ignored_root(below_top)
        if ignored is not None:
            self.notices.append(f"`{self.root}` itself is ignored ({ignored.where}): only the rules found in it hold")
            scope.forget_above()
        return Place(scope, "", chisel_files)

    def decide(self, path: str, *, is_directory: bool) -> Verdict:
        """Decide about any path below the root, there or not; it is relative, `/` between names."""
        folder, _, name = path.rpartition("/")
        place = self.place(folder)
        return place if isinstance(place, Verdict) else place.decide(name, is_directory=is_directory)

    def place(self, folder: str) -> Place | Verdict:
        """Return where one decides about what a directory holds, or the verdict that leaves it out as a whole."""
        if not folder:
            return self.top
        place = self._places.get(folder)
        if place is not None:
            return place
        place, path = self.top, ""
        for name in folder.split("/"):
            path = f"{path}/{name}" if path else name
            below = self._places.get(path)
            if below is None:
                verdict = place.decide(name, is_directory=True)
                if not verdict.is_sent and not place.may_send_below(name, verdict):
                    return verdict
                self._places[path] = below = place.enter(name, verdict)
            place = below
        return place

    def scopes(self) -> set[Scope]:
        """Return the repositories that were met until now, and what is outside of any."""
        return {self.top.scope, *(place.scope for place in self._places.values())}

    def forget_below(self, folder: str) -> None:
        """Read the ignore files of a directory and those below it again when they are needed: it was replaced."""
        for path in [path for path in self._places if path == folder or path.startswith(folder + "/")]:
            del self._places[path]

    def git_line(self, path: str, *, is_directory: bool) -> Verdict | None:
        """Return what git's patterns say of a path, whatever is tracked: what `git check-ignore -v --no-index` prints.

        None where no pattern says anything. It is asked about paths of the root's own repository.
        """
        folder, _, name = path.rpartition("/")
        place = self.place(folder)
        if isinstance(place, Verdict):
            return place if place.by == "git" else None
        return place.excluded_by or place.match(name, is_directory=is_directory)

    def shown(self, path: str) -> str:
        """Return a path of this machine as people know it: relative to the root where it is below."""
        return os.path.relpath(path, self.root) if path.startswith(self.root + os.sep) else path


def _above(top: str, directory: str, name: str, scope: Scope) -> tuple[PatternFile, ...]:
    """Read the ignore files from a top down to a directory, that one's included; the nearest one is the last."""
    below = os.path.relpath(directory, top)
    parts = [] if below == os.curdir else below.split(os.sep)
    found = []
    for depth in range(len(parts) + 1):
        inner = "/".join(parts[:depth])
        file = os.path.join(top, inner, name)
        # Below the root's own directory people know it by its name, above it by the whole path.
        source = name if depth == len(parts) else file
        found.append(read_patterns(file, inner, source, scope))
    return tuple(file for file in found if file is not None)


def read_patterns(
    path: str, base: str, source: str, scope: Scope, *, follows_links: bool = False
) -> PatternFile | None:
    """Read one ignore file; None where there is none."""
    text = read_ignore_file(path, follows_links=follows_links)
    if text is None:
        return None
    return PatternFile(source, os.fsencode(base), parse_patterns(text, folds_case=scope.folds_case))


class Scope:
    """The git rules of one repository from one directory down, or of a tree outside of any.

    `base` is that directory, relative to the root; paths in the sets are relative to it.
    """

    def __init__(self, rules: Rules, base: str, repository: Repository | None) -> None:
        self.rules = rules
        self.base = base
        self.directory = os.path.join(rules.root, base) if base else rules.root
        self.repository = repository
        self.tracked: frozenset[str] = frozenset()
        self.others: frozenset[str] | None = None
        self._uses_above = True
        if repository is not None:
            self._ask(repository)

    def _ask(self, repository: Repository) -> None:
        """Learn what is tracked: from git, else from its index."""
        around = self.rules.around
        try:
            if around.git is None:
                raise GitRefused("git is not installed")
            listing = list_files(around, self.directory, repository.top)
        except GitRefused as error:
            said = f"git is not asked about `{self.directory}` ({error.said.splitlines()[0][:200]})"
            try:
                self.tracked = self._from_index(repository)
            except UnknownIndex as unknown:
                self.rules.notices.append(f"{said}, its index is not known ({unknown}): what is ignored is not sent")
            else:
                if around.git is not None:
                    self.rules.notices.append(f"{said}: its files are read instead")
            return
        self.tracked = listing.tracked
        self.others = listing.others if self.rules.trusts_listing else None

    def _from_index(self, repository: Repository) -> frozenset[str]:
        tracked = read_tracked(repository)
        below = os.path.relpath(self.directory, repository.top)
        if below == os.curdir:
            return tracked
        return frozenset(path[len(below) + 1 :] for path in tracked if path.startswith(below + "/"))

    @cached_property
    def listed_files(self) -> frozenset[str]:
        """Return every path that git lists, where its list is trusted."""
        return self.tracked if self.others is None else self.tracked | self.others

    @cached_property
    def listed_directories(self) -> frozenset[str]:
        """Return every directory that holds something tracked, or listed where git's list is trusted."""
        found: set[str] = set()
        for path in self.listed_files:
            folder = path.rpartition("/")[0]
            while folder and folder not in found:
                found.add(folder)
                folder = folder.rpartition("/")[0]
        return frozenset(found)

    @cached_property
    def tracked_directories(self) -> frozenset[str]:
        """Return every directory that holds something tracked."""
        if self.others is None:
            return self.listed_directories
        return frozenset(folder for path in self.tracked for folder in _folders(path))

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return what the configuration says about ignoring."""
        if self.repository is None:
            return {}
        around = self.rules.around
        if around.git is not None:
            try:
                return read_config(around, self.directory)
            except GitRefused:
                pass
        return read_config_files(self.repository, around.home, around.config_home)

    @cached_property
    def folds_case(self) -> bool:
        """Say whether names that differ in case only are one."""
        return self.settings.get("core.ignorecase", "").lower() in {"true", "yes", "on", "1"}

    @cached_property
    def folded(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """Return what is tracked, other, and a listed directory, in lower case."""
        found = (self.tracked, self.others or frozenset(), self.listed_directories)
        tracked, others, directories = (frozenset(path.lower() for path in paths) for paths in found)
        return tracked, others, directories

    @cached_property
    def git_files(self) -> tuple[PatternFile, ...]:
        """Return the pattern files that hold at the base directory, the strongest last; its own is among them."""
        repository = self.repository
        if repository is None or not self._uses_above:
            return _above(self.directory, self.directory, GIT_IGNORE, self)
        per_directory = _above(repository.top, self.directory, GIT_IGNORE, self)
        if self.base:
            per_directory = tuple(_renamed(file, f"{self.base}/{file.source}") for file in per_directory)
        return (*self._shared_files(repository), *per_directory)

    def _shared_files(self, repository: Repository) -> Iterable[PatternFile]:
        default = str(self.rules.around.config_home / "git" / "ignore")
        for path in (self.settings.get("core.excludesfile", default), repository.exclude_file):
            whole = os.path.join(repository.top, path)
            found = read_patterns(whole, "", self.rules.shown(whole), self, follows_links=True)
            if found is not None:
                yield found

    @property
    def path_from_top(self) -> str:
        """Return the base directory relative to what git's pattern files are relative to."""
        return self.path_from_work_tree if self._uses_above else ""

    @cached_property
    def path_from_work_tree(self) -> str:
        """Return the base directory relative to the work tree's top, empty outside of any."""
        below = os.path.relpath(self.directory, self.repository.top) if self.repository else os.curdir
        return "" if below == os.curdir else below

    def ignored_root(self, below_top: str) -> Verdict | None:
        """Return what ignores the base directory itself, or one between it and the work tree's top; None otherwise."""
        parts = below_top.split(os.sep)
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            found = _match(self.git_files, os.fsencode(path), is_directory=True)
            if found is not None and not found.is_sent:
                return found
        return None

    def forget_above(self) -> None:
        """Let only the pattern files from the base down hold, and git's list no more."""
        self._uses_above = False
        self.others = None
        for name in ("git_files", "listed_files", "listed_directories"):
            self.__dict__.pop(name, None)


def _folders(path: str) -> Iterable[str]:
    folder = path.rpartition("/")[0]
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def _renamed(file: PatternFile, source: str) -> PatternFile:
    return PatternFile(source, file.base, iter(file.patterns))


def _match(files: Iterable[PatternFile], path: bytes, *, is_directory: bool, by: By = "git") -> Verdict | None:
    """Return the verdict of the strongest file that has one: of the last."""
    for file in reversed(tuple(files)):
        found = file.match(path, is_directory=is_directory)
        if found is not None:
            return _verdict(file, found, by)
    return None


def _verdict(file: PatternFile, pattern: Pattern, by: By) -> Verdict:
    return Verdict(pattern.is_negative, by, file.source, pattern.line, pattern.text)


class Place:
    """A directory in which one decides about names. What it needs to know is read when it is first needed."""

    def __init__(
        self,
        scope: Scope,
        path: str,
        chisel_files: tuple[PatternFile, ...],
        *,
        above: Place | None = None,
        takes_in: bool = False,
        has_ignore_file: bool = True,
    ) -> None:
        self.scope = scope
        self.path = path
        self._chisel_files = chisel_files
        self.above = above
        self._takes_in = takes_in
        """Whether a .chiselignore takes this directory in although git ignores it."""
        self.is_taken_in: bool = takes_in or (above is not None and above.scope is scope and above.is_taken_in)
        """Whether this or one above is: git's list says nothing about it then."""
        self._has_ignore_file = has_ignore_file
        """Whether a .gitignore may be here; known before it is read."""
        self._inner = path[len(scope.base) + 1 :] if scope.base else path
        self._prefix = f"{self._inner}/" if self._inner else ""
        is_plain = scope.others is not None and not chisel_files and not self.is_taken_in
        self._listed_files = scope.listed_files if is_plain else None
        """What git's list alone decides about; None where more has to be asked."""
        self.outermost: Scope = scope if above is None else above.outermost
        """The scope of the root."""

    @cached_property
    def sends_all(self) -> bool:
        """Say whether all is sent here whose name begins with no dot: no rule holds, and git has not listed it."""
        scope = self.scope
        if self._chisel_files or scope.others is not None or scope.tracked:
            return False
        return self.excluded_by is None and not self.git_files

    def lists(self, name: str) -> bool:
        """Say whether git's list has a file of this directory, and alone decides about it."""
        return self._listed_files is not None and self._prefix + name in self._listed_files

    def decide(self, name: str, *, is_directory: bool) -> Verdict:
        """Decide about one name of this directory."""
        if not is_directory and self.lists(name):
            return _DEFAULT
        if name == GIT or (name.lower() == GIT and self.scope.folds_case):
            return _BUILT_IN
        if name.startswith(STAGE_PREFIX):
            return _BUILT_IN
        if self._chisel_files:
            found = _match(self._chisel_files, self._chisel_path(name), is_directory=is_directory, by="chiselignore")
            if found is not None:
                return found
        return self._by_git(name, is_directory=is_directory)

    def _by_git(self, name: str, *, is_directory: bool) -> Verdict:
        scope = self.scope
        known = self._prefix + name
        listed = self._listed(known, scope.tracked, scope.others, scope.listed_directories, is_directory=is_directory)
        if listed is None and scope.folds_case:
            tracked, others, directories = scope.folded
            others_too = None if scope.others is None else others
            listed = self._listed(known.lower(), tracked, others_too, directories, is_directory=is_directory)
        if listed is not None:
            return listed
        decided = self.excluded_by or self.match(name, is_directory=is_directory)
        if decided is None or decided.is_sent:
            is_missing = scope.others is not None and not self.is_taken_in and not is_directory
            return _UNLISTED if is_missing else decided or _DEFAULT
        return decided

    def _listed(
        self,
        known: str,
        tracked: Collection[str],
        others: Collection[str] | None,
        directories: Collection[str],
        *,
        is_directory: bool,
    ) -> Verdict | None:
        """Return what git's list says of a path, None where it says nothing."""
        if known in tracked:
            return _TRACKED
        if is_directory:
            return _DEFAULT if known in directories and self._is_listed_directory(known) else None
        return _DEFAULT if others is not None and not self.is_taken_in and known in others else None

    def _is_listed_directory(self, known: str) -> bool:
        return not self.is_taken_in or known in self.scope.tracked_directories

    @cached_property
    def git_files(self) -> tuple[PatternFile, ...]:
        """Return git's pattern files that hold here, the strongest last."""
        above, scope = self._above_with("git_files"), self.scope
        if above is None or above.scope is not scope:
            return scope.git_files
        if not self._has_ignore_file:
            return above.git_files
        base = os.path.join(scope.path_from_top, self._inner) if scope.path_from_top else self._inner
        file = os.path.join(scope.rules.root, self.path, GIT_IGNORE)
        own = read_patterns(file, base, f"{self.path}/{GIT_IGNORE}", scope)
        return above.git_files if own is None else (*above.git_files, own)

    @cached_property
    def excluded_by(self) -> Verdict | None:
        """Return what makes git ignore this directory or one above it, None when it does not."""
        above = self._above_with("excluded_by")
        if above is None or above.scope is not self.scope or self._takes_in:
            return None
        if above.excluded_by is not None:
            return above.excluded_by
        found = above.match(self.path.rpartition("/")[2], is_directory=True)
        return None if found is None or found.is_sent else found

    def _above_with(self, name: str) -> Place | None:
        """Return the place above, that property known of it: a deep tree is deeper than calls may be."""
        unknown = []
        place = self.above
        while place is not None and name not in place.__dict__:
            unknown.append(place)
            place = place.above
        for place in reversed(unknown):
            getattr(place, name)
        return self.above

    def match(self, name: str, *, is_directory: bool) -> Verdict | None:
        """Return what git's patterns say of a name here, whatever is tracked and whatever holds above."""
        scope = self.scope
        known = self._prefix + name
        whole = f"{scope.path_from_top}/{known}" if scope.path_from_top else known
        return _match(self.git_files, os.fsencode(whole), is_directory=is_directory)

    def may_send_below(self, name: str, verdict: Verdict) -> bool:
        """Say whether something below a directory that is left out may be sent: a `.chiselignore` may take it in."""
        if verdict.by in {"chiselignore", "built-in"}:
            return False
        path = self._chisel_path(name)
        return any(file.may_include_below(path) for file in self._chisel_files)

    def enter(self, name: str, verdict: Verdict, names: Collection[str] | None = None) -> Place:
        """Go into a directory that was decided about; `names` are what is in it, None when that is not known."""
        path = f"{self.path}/{name}" if self.path else name
        scope, whole = self.scope, os.path.join(self.scope.rules.root, path)
        chisel_files = self._chisel_files
        if names is None or CHISEL_IGNORE in names:
            base = os.fsdecode(self._chisel_path(name))
            file = os.path.join(whole, CHISEL_IGNORE)
            own = read_patterns(file, base, f"{path}/{CHISEL_IGNORE}", self.outermost)
            chisel_files = chisel_files if own is None else (*chisel_files, own)
        # Of a directory that holds something tracked git takes no notice as a repository of its own.
        is_own = verdict.is_sent and (names is None or GIT in names) and not self._holds_tracked(name)
        repository = repository_at(whole) if is_own else None
        if repository is not None:
            return Place(Scope(scope.rules, path, repository), path, chisel_files, above=self)
        return Place(
            scope,
            path,
            chisel_files,
            above=self,
            takes_in=verdict.by == "chiselignore" and verdict.is_sent and self._is_ignored_by_git(name),
            has_ignore_file=names is None or GIT_IGNORE in names,
        )

    def _holds_tracked(self, name: str) -> bool:
        return self._prefix + name in self.scope.tracked_directories

    def _is_ignored_by_git(self, name: str) -> bool:
        if self.excluded_by is not None:
            return True
        found = self.match(name, is_directory=True)
        return found is not None and not found.is_sent

    def _chisel_path(self, name: str) -> bytes:
        """Return a path relative to what the `.chiselignore` files are relative to: to the outermost work tree."""
        inner = f"{self.path}/{name}" if self.path else name
        top = self.outermost.path_from_work_tree
        return os.fsencode(f"{top}/{inner}" if top else inner)
