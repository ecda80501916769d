"""Decide which paths of a tree git ignores: by git itself where it is, else by the same rules from `pathspec`.

Tracked files are never ignored, whatever a pattern says: only git knows them. `.git` itself is always left out: it is
hot, large, and its index belongs to one machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pathspec import GitIgnoreSpec

from chisel.errors import ChiselError

GIT = ".git"
IGNORE_FILE = ".gitignore"
_GIT_TIMEOUT_S = 60.0


class Ignore(Protocol):
    """Answer for the paths of one directory and below; `path` is relative to that directory, `/` between names."""

    def is_ignored(self, path: str, *, is_directory: bool) -> bool:
        """Say whether git would leave this path out."""


def ignore_for(directory: str) -> Ignore:
    """Return the rules that hold below a directory: git's, when it lies in a work tree and git is installed.

    Raises ChiselError when git is there but refuses to answer, because guessing would send what must not be sent.
    """
    top = _work_tree(directory)
    git = shutil.which("git") if top else None
    if top is not None and git is not None:
        return _listed_by_git(git, directory)
    return Patterns.above(directory, top)


class Listed:
    """What `git ls-files` listed as ignored: files, and directories that are ignored as a whole."""

    def __init__(self, listed: Sequence[str]) -> None:
        self._files = {path for path in listed if not path.endswith("/")}
        self._directories = {path[:-1] for path in listed if path.endswith("/")}

    def is_ignored(self, path: str, *, is_directory: bool) -> bool:
        """Say whether git listed it."""
        return path in (self._directories if is_directory else self._files)


class Patterns:
    """The .gitignore files from the work tree's top down to where one looks, the nearest one deciding.

    Each is read when its directory is first looked into. Files that git tracks against its own patterns are left out.
    """

    def __init__(self, directory: str, specs: Sequence[tuple[str, GitIgnoreSpec]]) -> None:
        self._directory = directory
        self._above = list(specs)
        self._specs: dict[str, GitIgnoreSpec | None] = {}

    @classmethod
    def above(cls, directory: str, top: str | None) -> Patterns:
        """Read the pattern files of the directories between the top and this one."""
        specs = []
        parents = (
            [] if top is None else [p for p in Path(directory).parents if p == Path(top) or Path(top) in p.parents]
        )
        for parent in parents:
            spec = _read_spec(str(parent / IGNORE_FILE))
            if spec is not None:
                specs.append((Path(directory).relative_to(parent).as_posix(), spec))
        exclude = _read_spec(os.path.join(top, GIT, "info", "exclude")) if top else None
        if exclude is not None:
            specs.append((Path(directory).relative_to(str(top)).as_posix().removeprefix("."), exclude))
        return cls(directory, specs)

    def is_ignored(self, path: str, *, is_directory: bool) -> bool:
        """Ask the nearest pattern file first; the first that has an opinion decides."""
        name = f"{path}/" if is_directory else path
        folder = path.rpartition("/")[0]
        while True:
            spec = self._spec(folder)
            found = spec.check_file(name[len(folder) + 1 if folder else 0 :]).include if spec else None
            if found is not None:
                return found
            if not folder:
                break
            folder = folder.rpartition("/")[0]
        for prefix, spec in self._above:
            found = spec.check_file(f"{prefix}/{name}" if prefix else name).include
            if found is not None:
                return found
        return False

    def _spec(self, folder: str) -> GitIgnoreSpec | None:
        if folder not in self._specs:
            self._specs[folder] = _read_spec(os.path.join(self._directory, folder, IGNORE_FILE))
        return self._specs[folder]


def _read_spec(path: str) -> GitIgnoreSpec | None:
    try:
        lines = Path(path).read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return GitIgnoreSpec.from_lines(lines)


def _work_tree(directory: str) -> str | None:
    """Return the nearest directory upwards that holds `.git`, None when there is none."""
    for place in (Path(directory), *Path(directory).parents):
        if (place / GIT).exists():
            return str(place)
    return None


def _listed_by_git(git: str, directory: str) -> Listed:
    # A git hook exports these, and git would then answer for another tree.
    unset = [word for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE") for word in ("-u", name)]
    command = [
        "env",
        *unset,
        git,
        "-C",
        directory,
        "ls-files",
        "--others",
        "--ignored",
        "--exclude-standard",
        "--directory",
        "-z",
    ]
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip()
        raise ChiselError(f"git does not say what `{directory}` ignores: {said}", hint="git status") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChiselError(f"git does not say what `{directory}` ignores: {error}", hint="git status") from error
    return Listed([os.fsdecode(path) for path in ended.stdout.split(b"\0") if path])
