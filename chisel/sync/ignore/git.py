"""Ask git about a work tree, so that nothing the repository says of itself is executed.

A repository's own configuration may name programs (file system monitors, hooks, filters, transports): what could run
one of them is switched off on the command line, and of the environment git sees nothing that begins with `GIT_`. A
repository of another owner is not forced open (`safe.directory`): git's refusal stands, and is said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chisel.model import GitFacts
from chisel.sync.ignore.repository import repository_around

Started = Callable[[subprocess.Popen[bytes]], None]

_DEADLINE_S = 60.0
_UNSET = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_CONFIG"),
    *("GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CEILING_DIRECTORIES", "GIT_TRACE", "GIT_TRACE2"),
    *("GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS"),
    *("GIT_ICASE_PATHSPECS", "GIT_ATTR_SOURCE", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_REPLACE_REF_BASE"),
    *("GIT_INDEX_VERSION", "GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_EXEC_PATH", "GIT_TEMPLATE_DIR", "GIT_FLUSH"),
    *("GIT_TRACE_SETUP", "GIT_TRACE_PERFORMANCE", "GIT_TRACE2_EVENT", "GIT_TRACE2_PERF", "GIT_INTERNAL_SUPER_PREFIX"),
)
_FORCED = {
    "LC_ALL": "C",  # what it says is read
    "LANGUAGE": "",
    "GIT_OPTIONAL_LOCKS": "0",  # looking writes nothing
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "none",  # a partial clone fetches nothing, by no program
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_PAGER": "cat",
}
_SWITCHED_OFF = (
    *("-c", "core.fsmonitor=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
    *("-c", "core.alternateRefsCommand="),
    *("-c", "core.sshCommand=false"),
    *("-c", "core.gitProxy="),
    *("-c", "protocol.allow=never"),
    *("-c", "submodule.recurse=false"),
    *("-c", "log.showSignature=false"),
)


class GitRefused(Exception):
    """git does not answer about a directory; `is_repository` says whether it took it for one's inside at all."""

    def __init__(self, said: str, *, is_repository: bool = True) -> None:
        super().__init__(said)
        self.said = said
        self.is_repository = is_repository


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules need to know of this machine; `environ` None means the process's own.

    `git` is the program, None where there is none; `home` and `config_home` hold the user's own git configuration.
    """

    git: str | None
    home: Path
    config_home: Path
    environ: Mapping[str, str] | None = None


def surroundings_of(environ: Mapping[str, str]) -> Surroundings:
    """Return what an environment says: where git is (`PATH`), and the user's configuration (`HOME`, XDG)."""
    home = Path(environ.get("HOME") or Path.home())
    named = environ.get("XDG_CONFIG_HOME")
    return Surroundings(
        shutil.which("git", path=environ.get("PATH")), home, Path(named) if named else home / ".config", environ
    )


def default_surroundings() -> Surroundings:
    """Return what holds where nobody handed in an environment."""
    return Surroundings(shutil.which("git"), Path.home(), Path.home() / ".config")


def git_facts(
    root: Path, surroundings: Surroundings | None = None, *, started: Started | None = None
) -> GitFacts | None:
    """Ask what is checked out around a directory; None outside of a repository, without git, or when it refuses.

    Blocking. `started` is given each process that is asked: whoever does not want to wait any more kills it.
    """
    around = surroundings or default_surroundings()
    place = os.path.realpath(root)
    if around.git is None or repository_around(place) is None:
        return None
    try:
        said = run_git(
            around,
            place,
            *("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=normal", "--ignore-submodules=dirty"),
            *("--no-ahead-behind", "--no-renames", "--", "."),
            switched_off=_filters(around, place, started),
            started=started,
        )
    except GitRefused:
        return None
    lines = said.decode("utf-8", "replace").split("\0")  # a branch's name may be anything, a record is text
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch.") and " " in line[2:])
    revision, branch = heads.get("branch.oid"), heads.get("branch.head")
    return GitFacts(
        revision=None if revision in {None, "(initial)"} else revision,
        is_dirty=any(line and not line.startswith("# ") for line in lines),
        branch=None if branch in {None, "(detached)"} else branch,
    )


def _filters(around: Surroundings, place: str, started: Started | None) -> tuple[str, ...]:
    """Return what switches off every content filter that any configuration names; raises GitRefused."""
    asked = ("config", "-z", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$")
    said = run_git(around, place, *asked, may_fail=True, started=started)
    names = {name for name in os.fsdecode(said).split("\0") if name}
    drivers = {name.rpartition(".")[0] for name in names}
    if any("=" in driver for driver in drivers):
        raise GitRefused("a filter is named such that it cannot be switched off")
    off = [f"{driver}.{key}" for driver in sorted(drivers) for key in ("clean=", "process=", "required=false")]
    return tuple(word for setting in off for word in ("-c", setting))


@dataclass(frozen=True, slots=True)
class GitListing:
    """What git lists below a directory: relative paths, `/` between names. A repository inside is one tracked path."""

    tracked: frozenset[str]
    others: frozenset[str]
    """Files that are neither tracked nor ignored."""


def list_files(around: Surroundings, directory: str, top: str | None = None) -> GitListing:
    """Return `git ls-files -co --exclude-standard` of a directory; raises GitRefused.

    `top` is the work tree it is known to be in: git must not take one further up when it does not like this one.
    """
    asked = ("ls-files", "-t", "-c", "-o", "--exclude-standard", "-z")
    said = os.fsdecode(run_git(around, directory, *asked, below=os.path.dirname(top) if top else ""))
    others, tracked = [], []
    for entry in said.split("\0"):
        if entry.startswith("? "):
            others.append(entry[2:])
        elif entry:
            tracked.append(entry[2:])
    return GitListing(frozenset(tracked), frozenset(others))


def read_config(around: Surroundings, directory: str) -> dict[str, str]:
    """Return what git's configuration says about ignoring, names in lower case; raises GitRefused."""
    said = run_git(
        around,
        directory,
        *("config", "-z", "--type=path", "--get-regexp", r"^core\.(excludesfile|ignorecase)$"),
        may_fail=True,
    )
    entries = (entry.partition("\n") for entry in os.fsdecode(said).split("\0") if entry)
    return {name.lower(): value if between else "true" for name, between, value in entries}


def run_git(
    around: Surroundings,
    directory: str,
    *arguments: str,
    switched_off: tuple[str, ...] = (),
    may_fail: bool = False,
    below: str = "",
    deadline_s: float = _DEADLINE_S,
    started: Started | None = None,
) -> bytes:
    """Run git in a directory and return its stdout; raises GitRefused. With `may_fail` status 1 is an empty answer.

    Only repositories below the directory `below` are looked for.
    """
    forced = {**_FORCED, "GIT_CEILING_DIRECTORIES": below}
    assert around.git is not None
    command = [around.git, "-C", directory, *_SWITCHED_OFF, *switched_off, *arguments]
    if around.environ is None:
        environ = None
        unset = [word for name in _UNSET for word in ("-u", name)]
        command = ["env", *unset, *(f"{name}={value}" for name, value in forced.items()), *command]
    else:
        kept = {name: value for name, value in around.environ.items() if not name.startswith(("GIT_", "CHISEL_"))}
        environ = {**kept, **forced}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
    except (OSError, ValueError) as error:
        raise GitRefused(f"git cannot be run: {error}") from error
    with process:
        if started is not None:
            started(process)
        try:
            out, err = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise GitRefused(f"git gave no answer within {deadline_s:.0f} s") from error
    if process.returncode == 0 or (may_fail and process.returncode == 1):
        return out
    said = err.decode("utf-8", "replace").strip()
    is_repository = "not a git repository" not in said or "dubious" in said
    raise GitRefused(said or f"git ended with status {process.returncode}", is_repository=is_repository)
