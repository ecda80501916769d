"""Play systemd's timers on a droplet: those that its user data writes, each taken as enabled.

Only what a timer of the monotonic kind needs is read: `OnActiveSec` and `OnUnitInactiveSec` in whole seconds, and the
`ExecStart` and `WorkingDirectory` of the service of the same name. Commands run with the droplet's environment, with
paths below its root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from chisel.sandbox.base import DropletSpec, WriteFile, session_environment

_UNITS = "/etc/systemd/system/"
_LOG = "var/log/journal.txt"


@dataclass(frozen=True, slots=True)
class Timer:
    """One timer with its service's command."""

    name: str
    first_s: float
    every_s: float
    command: tuple[str, ...]
    directory: str


def timers_of(files: Sequence[WriteFile]) -> list[Timer]:
    """Return the timers among a user data's files; one that does not say when, or what, is left out."""
    units = {file.path.removeprefix(_UNITS): _read(file.content) for file in files if file.path.startswith(_UNITS)}
    found = []
    for name, unit in units.items():
        stem, _, kind = name.rpartition(".")
        service = units.get(f"{stem}.service", {})
        if kind == "timer" and "ExecStart" in service and {"OnActiveSec", "OnUnitInactiveSec"} <= unit.keys():
            found.append(
                Timer(
                    name=stem,
                    first_s=float(unit["OnActiveSec"]),
                    every_s=float(unit["OnUnitInactiveSec"]),
                    command=tuple(shlex.split(service["ExecStart"])),
                    directory=service.get("WorkingDirectory", "/"),
                )
            )
    return found


def _read(text: str) -> dict[str, str]:
    """Return a unit's settings, of all sections together; a setting that repeats keeps its last value."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith(("#", ";")))
    return {name.strip(): value.strip() for name, _, value in pairs}


async def run_timer(spec: DropletSpec, timer: Timer) -> None:
    """Run a timer's command again and again until cancelled; what it says goes to the droplet's journal."""
    environment = session_environment(spec)
    program = _program(spec, timer.command[0], environment["PATH"])
    if program is None:
        return
    directory = spec.root.joinpath(*PurePosixPath(timer.directory).parts[1:])
    pause = timer.first_s
    while True:
        await asyncio.sleep(pause)
        pause = timer.every_s
        with contextlib.suppress(OSError), _journal(spec) as journal:
            ended = await asyncio.create_subprocess_exec(
                program, *timer.command[1:], env=environment, cwd=directory, stdin=asyncio.subprocess.DEVNULL,
                stdout=journal, stderr=journal, start_new_session=True,
            )  # fmt: skip
            await ended.wait()


def _journal(spec: DropletSpec) -> IO[bytes]:
    path = spec.root / _LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _program(spec: DropletSpec, path: str, search: str) -> str | None:
    """Return where a program is: in the droplet, else wherever its PATH has one of that name."""
    inside = spec.root.joinpath(*PurePosixPath(path).parts[1:])
    return str(inside) if inside.exists() else shutil.which(os.path.basename(path), path=search)
