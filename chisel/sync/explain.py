"""Say of single paths whether they are sent, and which line of which file decides, whether they exist or not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chisel.sync.ignore import Place, Rules, Surroundings, Verdict, default_surroundings
from chisel.sync.listing import kind_of_special
from chisel.sync.wanted import STAGE_PREFIX

Because = Literal["default", "tracked", "git", "chiselignore", "built-in", "special", "link", "outside"]


@dataclass(frozen=True, slots=True)
class Explained:
    """Whether one path (relative to the root, or as given when it is outside) is sent, and why.

    `source`, `line` and `pattern` are the line that decided, where one did. `because` says what kind of rule it was:
    no rule, git's tracking, git's patterns, a `.chiselignore`; or that the path is `.git` or under way in a pull, a
    special file, behind a symbolic link, or outside of the root. `detail` is what else there is to say, in words.
    """

    path: str
    is_sent: bool
    because: Because
    source: str | None = None
    line: int | None = None
    pattern: str | None = None
    detail: str = ""


def explain(
    root: Path, paths: Iterable[str], *, cwd: Path | None = None, surroundings: Surroundings | None = None
) -> list[Explained]:
    """Explain paths; relative ones start at `cwd` (default: the root). Blocking.

    One that does not exist counts as a file, with a slash at its end as a directory.
    """
    around = surroundings or default_surroundings()
    rules = Rules(root, around, trusts_listing=False)
    listing = Rules(root, around, trusts_listing=True)
    here = os.path.realpath(cwd or root)
    return [_explain(rules, listing, here, path) for path in paths]


def _explain(rules: Rules, listing: Rules, here: str, given: str) -> Explained:
    whole = os.path.normpath(os.path.join(here, given))
    if os.path.isabs(given) and not _is_inside(whole, rules.root):
        whole = os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))
    if not _is_inside(whole, rules.root):
        return Explained(given, is_sent=False, because="outside", detail=f"it is not below `{rules.root}`")
    path = os.path.relpath(whole, rules.root)
    if path == os.curdir:
        return Explained(path, is_sent=True, because="default", detail="it is the root")
    link = _link_above(rules.root, path)
    if link is not None:
        return Explained(path, is_sent=False, because="link", detail=f"it is behind the symbolic link `{link}`")
    mode = _mode_of(whole)
    is_directory = stat.S_ISDIR(mode) if mode is not None else given.endswith("/")
    verdict = rules.decide(path, is_directory=is_directory)
    if verdict.is_sent and mode is not None and not _is_sendable(mode):
        return Explained(path, is_sent=False, because="special", detail=f"it is {kind_of_special(mode)}")
    if verdict.is_sent and mode is not None and not is_directory:
        listed = listing.decide(path, is_directory=False)
        verdict = verdict if listed.is_sent else listed
    detail = _detail(rules, path, verdict, is_directory=is_directory)
    return Explained(path, verdict.is_sent, verdict.by, verdict.source, verdict.line, verdict.pattern, detail)


def _detail(rules: Rules, path: str, verdict: Verdict, *, is_directory: bool) -> str:
    if verdict.by == "tracked":
        ignoring = rules.git_line(path, is_directory=is_directory)
        is_ignored = ignoring is not None and not ignoring.is_sent
        where = f", although {ignoring.where} ignores it" if ignoring is not None and is_ignored else ""
        return f"git tracks {'files in it' if is_directory else 'it'}{where}"
    if verdict.by == "default":
        return "no rule ignores it"
    if verdict.by == "built-in":
        return "a pull has it under way" if STAGE_PREFIX in path else "`.git` is never sent"
    if not verdict.is_sent and is_directory and isinstance(rules.place(path), Place):
        return "but what a .chiselignore takes in below it is sent"
    return "" if verdict.source else "git does not list it"


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _link_above(root: str, path: str) -> str | None:
    parts = path.split(os.sep)
    folders = (os.sep.join(parts[:depth]) for depth in range(1, len(parts)))
    return next((folder for folder in folders if os.path.islink(os.path.join(root, folder))), None)


def _mode_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return None


def _is_sendable(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)
