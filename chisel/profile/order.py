"""Say what is to be profiled, and with whose help: plain values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from chisel.events import Sink
from chisel.model import Host, PullResult, RunResult
from chisel.profile.drivers import Asked


@dataclass(frozen=True, slots=True)
class ProfileOrder:
    """One command to profile: `line` is a shell line for bash.

    `kernel` keeps kernels whose name it matches (a regular expression, searched), the first `skip_warmup` dispatches of
    each are left out, `top` is how many are to be shown. `build` runs first and outside the profiler. `driver` forces
    one (see `drivers.DRIVERS`). With `converts` the droplet is asked for a trace in Perfetto's own format. `secrets`
    are values that must not be in anything that leaves the droplet.
    """

    line: str
    asked: Asked = field(default_factory=Asked)
    kernel: str | None = None
    skip_warmup: int = 0
    top: int = 10
    build: str | None = None
    driver: str | None = None
    converts: bool = False
    secrets: Sequence[str] = ()


class Connection(Protocol):
    """What profiling needs of a connection."""

    @property
    def host(self) -> Host:
        """The droplet it leads to."""

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program."""

    async def ask(self, role: str, request: dict[str, Any]) -> dict[str, Any]:
        """Start a role that gives one answer, and return it."""

    async def shell(self, line: str, *, timeout_s: float) -> Any:
        """Run a line in the remote shell and return its status and output."""


class Fetch(Protocol):
    """Bring files of a directory on a droplet into one here; `total_bytes` is for the progress."""

    async def __call__(
        self, connection: Any, remote: PurePosixPath, patterns: Sequence[str], local: Path, total_bytes: int | None
    ) -> PullResult:
        """Return what came; what went wrong is its `error`, or raised as a ChiselError."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One droplet to profile on.

    `connect` gives a connection that works, a new one where the last was lost. `execute` runs a shell line there as
    `run` does, shown to people as its second argument, and returns how it ended. `probe` is what the droplet's probe
    found, `facts` what chisel knows of it (label to text). `was_interrupted` says whether the user has pressed Ctrl-C.
    `new_id` gives a fresh name for a directory on the droplet.
    """

    host: str
    connect: Callable[[], Awaitable[Connection]]
    execute: Callable[[str, str], Awaitable[RunResult]]
    fetch: Fetch
    probe: Mapping[str, Any]
    facts: Mapping[str, str]
    was_interrupted: Callable[[], bool]
    new_id: Callable[[], str]
    sink: Sink
