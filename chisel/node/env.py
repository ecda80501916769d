"""Know the droplet: where system files are, and the environment a command gets.

`CHISEL_DROPLET_ROOT` is the prefix of system paths; a sandbox sets it in every session, a real droplet has none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

ROOT_VARIABLE = "CHISEL_DROPLET_ROOT"
PROFILE = "/etc/profile.d/chisel.sh"
_TIMEOUT_S = 10.0


def system_path(path: str) -> str:
    """Return where an absolute system path is on this droplet."""
    root = os.environ.get(ROOT_VARIABLE, "")
    return root + path if root else path


def is_played() -> bool:
    """Say whether this droplet is a directory of a sandbox: the machine around it is not to be touched."""
    return bool(os.environ.get(ROOT_VARIABLE))


def expand(path: str) -> str:
    """Return a path with a leading `~` as this user's home; relative ones are taken from there."""
    home = os.environ.get("HOME") or os.path.expanduser("~")
    if path == "~":
        return home
    return os.path.join(home, path[2:] if path.startswith("~/") else path)


def own_directory(*parts: str) -> str:
    """Return a directory below chisel's own in the home, made where it is missing, for its owner only."""
    path = os.path.join(expand("~/.chisel"), *parts)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def command_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return what a command's environment is: this session's, what chisel's profile exports, and `extra` on top."""
    profile = system_path(PROFILE)
    found = dict(os.environ)
    if os.path.exists(profile):
        found.update(_exports(profile))
    found.update(extra)
    return found


def _exports(profile: str) -> dict[str, str]:
    """Source a shell file and read the environment back; what cannot be sourced adds nothing."""
    import subprocess

    try:
        ended = subprocess.run(
            ["bash", "-c", '. "$1" >/dev/null 2>&1 </dev/null; exec env -0', "bash", profile],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in ended.stdout.split(b"\0") if entry)
    return {name: value for name, _, value in pairs if name not in {"_", "SHLVL", "PWD", "OLDPWD"}}
