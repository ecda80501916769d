"""Decide which of the paths that a droplet sends were asked for, before anything is written. Pure.

A droplet could send a `Makefile` or a `.git/hooks/...` where `out/` was asked for: what is written is what the patterns
name, and nothing else. A repository's own directory runs commands of whoever writes it, and so has to be named.
"""

from __future__ import annotations

import glob
import posixpath
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

STAGE_PREFIX = ".chisel-pull"
_REPOSITORY = ".git"
_ANY = "**"


@dataclass(frozen=True, slots=True)
class Caps:
    """What a pull may bring at most: files (links and directories included), bytes as they appear, depth of a path."""

    files: int = 1_000_000
    bytes: int = 1 << 40
    depth: int = 128


class Wanted:
    """The patterns of one pull, as the node program reads them (`chisel.node.walk`)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [_rule(pattern) for pattern in patterns]
        self._takes_repository = any(_REPOSITORY in rule for rule in self._rules)

    def refusal(self, path: str) -> str | None:
        """Say why a path (checked already) is not to be written; None when it is."""
        names = path.split("/")
        if any(name.casefold().startswith(STAGE_PREFIX) for name in names):
            return "a name that chisel uses itself"
        if not self._takes_repository and any(map(_is_repository, names)):
            return "a repository's own files; name it to have it"
        if not any(_matches(names, rule) for rule in self._rules):
            return "it was not asked for"
        return None

    def prefixes(self) -> list[tuple[str, str]]:
        """Return for every pattern the directory that has no wildcard in its name, and the name that is looked for."""
        found = []
        for rule in self._rules:
            plain = next((index for index, name in enumerate(rule) if glob.has_magic(name)), len(rule) - 1)
            found.append(("/".join(rule[: max(plain, 0)]), rule[plain] if rule else "*"))
        return found


def name_matches(name: str, pattern: str) -> bool:
    """Say whether one component of a path is what one component of a pattern means."""
    if not glob.has_magic(pattern):
        return name == pattern
    return (pattern.startswith(".") or not name.startswith(".")) and fnmatchcase(name, pattern)


def _rule(pattern: str) -> tuple[str, ...]:
    """Return the components that a path begins with, as it arrives here; none when everything is asked for."""
    if not pattern.startswith(("/", "~/")):
        plain = posixpath.normpath(pattern)
        return () if plain == "." else tuple(plain.split("/"))
    names = [name for name in posixpath.normpath(pattern).split("/") if name]
    if names and names[0] == "~":
        names = names[1:] or ["*"]
    magic = next((index for index, name in enumerate(names) if glob.has_magic(name)), len(names) - 1)
    return tuple(names[max(magic, 0) :])


def _matches(names: Sequence[str], rule: Sequence[str]) -> bool:
    if not rule:
        return True
    if not names:
        return all(name == _ANY for name in rule)
    if rule[0] == _ANY:
        is_hidden = names[0].startswith(".")
        return (len(rule) > 1 and _matches(names, rule[1:])) or (
            not is_hidden and (len(rule) == 1 or _matches(names[1:], rule))
        )
    return name_matches(names[0], rule[0]) and _matches(names[1:], rule[1:])


def _is_repository(name: str) -> bool:
    """Say whether some file system takes a name for `.git`: by case, by marks that do not show, by dots at its end."""
    if name.isascii() and "git" not in name.lower():  # nearly all of them
        return False
    shown = "".join(char for char in name if unicodedata.category(char) != "Cf")
    return shown.casefold().rstrip(". ") in {_REPOSITORY, "git~1"}


def folded(path: str) -> str:
    """Return what names have in common that a folding file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
