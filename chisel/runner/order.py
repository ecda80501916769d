"""Say what is to be run, and carry what the user wants of it meanwhile: signals, the terminal's size, its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from chisel.model import GitFacts, Host, RunId, RunResult

PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Terminal:
    """A pseudo-terminal for the command: its size in characters, and the terminal's name (`TERM`)."""

    rows: int = 24
    columns: int = 80
    term: str = "xterm"


class SyncPart(Protocol):
    """One droplet's half of a sync that travels with the start of a command; one task at a time."""

    def request(self) -> dict[str, Any]:
        """Return what belongs into the request that starts the command."""

    async def begin(self, channel: Any) -> None:
        """Send what goes behind the request unasked. Raises HostUnreachable, RemoteError."""

    async def take(self, frame: Any, channel: Any) -> bool:
        """Take one frame that comes before the command's start and answer it; True when the sync is through.

        Raises RemoteError for what the droplet refuses, HostUnreachable.
        """

    async def doubt(self) -> None:
        """Forget what was believed of the droplet: the next part asks."""


class Sync(Protocol):
    """A sync that goes ahead of a command in the same message."""

    async def part(self, host: Host) -> SyncPart:
        """Return a fresh part for a droplet."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: `line` is a shell line for bash, `cwd` a path on the droplet (`~/` is its home).

    `shown` stands for the line wherever people read it. With `capture` the results carry the output, at most
    `CAPTURE_LIMIT_BYTES` of each stream. `timeout_s` ends the command (status 124). With `detaches` the run is left as
    soon as the command has started. A lost link is taken up again for `patience_s` (0: a lost link is the end), and a
    command without a client is ended after `orphan_s`.

    `user` runs it as somebody else than root, `venv` in a virtual environment (from `cwd`), `gpus` with these devices
    only (`0,3`), `container` inside this image. `sync` brings the working copy up to date first, in the same message;
    `tree_hash` names the tree that is there otherwise, for the record; `git` is what the tree was checked out from.
    """

    line: str
    cwd: str = "~"
    env: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    capture: bool = False
    shown: str = ""
    terminal: Terminal | None = None
    timeout_s: float | None = None
    detaches: bool = False
    patience_s: float = PATIENCE.total_seconds()
    orphan_s: float | None = None
    user: str | None = None
    venv: str | None = None
    gpus: str | None = None
    container: str | None = None
    sync: Sync | None = None
    tree_hash: str = ""
    git: GitFacts | None = None


@dataclass(frozen=True, slots=True)
class Resumption:
    """What is known of a command that another process began, or was about to: `family` is the id it has there.

    `places` says by host how far its output has come (`chisel.runner.watch.Watch.kept_place`), `ended` how it ended;
    a host in neither may have begun or not. Input from `input_at` on has not been taken yet. `signals` were sent.
    """

    family: RunId
    places: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    ended: Mapping[str, RunResult] = field(default_factory=dict)
    input_at: int = 0
    signals: tuple[int, ...] = ()


class Control:
    """Carry signals and the terminal's size from whoever watches them to every command under way."""

    def __init__(self) -> None:
        self._sent: list[int] = []
        self._size: tuple[int, int] | None = None
        self._takers: list[Callable[[int], None]] = []
        self._sizers: list[Callable[[int, int], None]] = []

    @property
    def was_used(self) -> bool:
        """Say whether a signal was sent."""
        return bool(self._sent)

    def signal(self, number: int) -> None:
        """Send a signal to the process group of every command under way, and of those still to start."""
        self._sent.append(number)
        for take in self._takers:
            take(number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the commands' terminals their size."""
        self._size = rows, columns
        for take in self._sizers:
            take(rows, columns)

    def listen(self, take: Callable[[int], None], size: Callable[[int, int], None]) -> None:
        """Have every signal, those sent already too, and every size handed to somebody."""
        self._takers.append(take)
        self._sizers.append(size)
        for number in self._sent:
            take(number)
        if self._size is not None:
            size(*self._size)
