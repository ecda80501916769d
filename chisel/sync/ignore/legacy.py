"""Answer what the first scan asks: which paths of one directory are ignored. `chisel.sync.listing` knows more."""

from __future__ import annotations

import os
from typing import Protocol

from chisel.errors import ChiselError
from chisel.sync.ignore.git import GitRefused, Surroundings, default_surroundings, list_files
from chisel.sync.ignore.repository import GIT
from chisel.sync.ignore.rules import Rules


class Ignore(Protocol):
    """Answer for the paths of one directory and below; `path` is relative to that directory, `/` between names."""

    def is_ignored(self, path: str, *, is_directory: bool) -> bool:
        """Say whether git would leave this path out."""


def ignore_for(directory: str) -> Ignore:
    """Return the rules that hold below a directory.

    Raises ChiselError when git is there but refuses to answer, because guessing would send what must not be sent.
    """
    around = default_surroundings()
    if around.git is not None and os.path.lexists(os.path.join(directory, GIT)):
        try:
            list_files(around, directory)
        except GitRefused as error:
            raise ChiselError(
                f"git does not say what `{directory}` ignores: {error.said}", hint="git status"
            ) from error
    return Patterns(Rules(directory, around, trusts_listing=True))


class Patterns:
    """The rules as one question."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    @classmethod
    def above(cls, directory: str, top: str | None) -> Patterns:
        """Return what the pattern files alone say, from a work tree's top down, without git."""
        around = default_surroundings()
        return cls(Rules(directory, Surroundings(None, around.home, around.config_home), trusts_listing=False))

    def is_ignored(self, path: str, *, is_directory: bool) -> bool:
        """Say whether a path is left out."""
        return not self._rules.decide(path, is_directory=is_directory).is_sent
