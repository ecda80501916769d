"""Drive chisel as its users do: as a process, against a sandbox of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from chisel.sandbox.pytest import Sandbox, sandbox

COMMAND_DEADLINE_S = 60


@dataclass
class Ended:
    """How a chisel process ended."""

    status: int
    out: bytes
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


@dataclass
class User:
    """Somebody with a home of their own, a current directory, and a cloud at hand."""

    home: Path
    cwd: Path
    cloud: Mapping[str, str] = field(default_factory=dict)
    agent: str = "off"

    def environ(self, **changed: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CHISEL_", "XDG_", "PYTEST")) and name not in {"NO_COLOR", "COLUMNS"}
        }
        mine = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "TERM": "xterm",
            "CHISEL_AGENT": self.agent,
        }
        return {**kept, **mine, **self.cloud, **changed}

    def start(self, *words: str, before: Sequence[str] = (), **changed: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "chisel", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.cwd,
            env=self.environ(**changed),
        )

    def chisel(self, *words: str, **changed: str) -> Ended:
        with self.start(*words, **changed) as process:
            try:
                out, err = process.communicate(timeout=COMMAND_DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Ended(process.returncode, out, err.decode("utf-8", "replace"))

    def does(self, *words: str, **changed: str) -> Ended:
        """Run a command that must succeed."""
        ended = self.chisel(*words, **changed)
        assert ended.status == 0, f"chisel {words}: {ended.status}\n{ended.out.decode(errors='replace')}\n{ended.err}"
        return ended


@contextlib.contextmanager
def running_sandbox(directory: Path, *, droplets: str = "asyncssh", **knobs: Any) -> Iterator[dict[str, str]]:
    """Run a sandbox server; give the two variables that point chisel at it.

    Many tests share one token here, so its requests a minute are not counted.
    """
    with sandbox(directory, droplets=droplets, **{"per_minute": 1_000_000, "per_hour": 1_000_000, **knobs}) as running:
        yield running.environ


def droplets_of(cloud: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the droplets that exist in a sandbox."""
    found = Sandbox(cloud["CHISEL_DO_API_URL"], cloud["CHISEL_DO_TOKEN"]).droplets
    return [droplet for droplet in found if droplet["is_alive"]]


def destroy_all(cloud: Mapping[str, str], *, but: Collection[int] = ()) -> None:
    """Destroy the droplets of a sandbox by its API: what a test leaves behind is no matter of chisel's."""
    url, headers = cloud["CHISEL_DO_API_URL"], {"Authorization": f"Bearer {cloud['CHISEL_DO_TOKEN']}"}
    for droplet in droplets_of(cloud):
        if droplet["id"] not in but:
            request = Request(f"{url}/v2/droplets/{droplet['id']}", headers=headers, method="DELETE")
            with contextlib.suppress(HTTPError), build_opener(ProxyHandler({})).open(request, timeout=20):
                pass


def until(holds: Callable[[], object], *, what: str, deadline_s: float = 15.0) -> None:
    """Wait for a condition, at most so long."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"waited {deadline_s} s for {what}"
        time.sleep(0.02)  # noqa: TID251 - a process to look at sends no event


def processes_with(mark: str, *, home: Path | None = None) -> list[str]:
    """Return the command lines of living processes whose arguments hold a mark, of one home if it is given.

    Tests of other workers may have such processes at the same time.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                is_there = home is None or f"HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if mark in line and state != "Z" and is_there:
                    found.append(line)
    return found
