"""Name every event that an engine reports, and the sink it reports to.

Engines never print: they call `sink.emit(event)`, which never blocks, awaits or raises, and then
`await sink.drain()`, which is where back-pressure lives. Events carry facts; text is made by `chisel.render`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from chisel.model import (
    Bill,
    GitFacts,
    PoolStatus,
    PullResult,
    PushResult,
    RunId,
    RunResult,
    SweepItem,
    SyncResult,
)

if TYPE_CHECKING:  # most commands profile nothing, and its many classes take a while to make
    from chisel.figures import Comparison, ProfileResult, Ranking, Spread

Stream = Literal["stdout", "stderr"]
Level = Literal["info", "warning", "error"]
Stage = Literal[
    "creating", "booting", "connecting", "preparing", "ready", "reused", "destroying", "destroyed", "gone", "failed"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Say that something happened at `at` (monotonic seconds), on `host` when it concerns one droplet."""

    kind: ClassVar[str] = "event"

    at: float = field(default_factory=time.monotonic)
    host: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something the user should read; `hint` is the next command to type."""

    kind: ClassVar[str] = "notice"

    message: str
    level: Level = "info"
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DropletStage(Event):
    """A droplet reached a stage on its way up or down; `detail` says what it waits for."""

    kind: ClassVar[str] = "droplet"

    stage: Stage
    detail: str = ""
    droplet_id: int | None = None
    usd_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """How far a task of known or unknown length is; the last one of a task has `is_done`.

    A task of many files counts those as well: `done_files` of `total_files`.
    """

    kind: ClassVar[str] = "progress"

    task: str
    done: int
    total: int | None = None
    unit: Literal["bytes", "files", "steps"] = "bytes"
    is_done: bool = False
    done_files: int | None = None
    total_files: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Event):
    """A call that changes nothing failed and will be tried again in `wait_s` seconds."""

    kind: ClassVar[str] = "retry"

    what: str
    attempt: int
    wait_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A command runs on a droplet, in `cwd` there, on the tree that `tree_hash` names (empty: nothing was synced).

    `git` is what that tree was checked out from where it was synced, None where that is not known.
    """

    kind: ClassVar[str] = "run_started"

    run_id: RunId
    line: str
    cwd: str
    tree_hash: str = ""
    git: GitFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Event):
    """Bytes a command wrote, exactly as they came; `offset` counts from the start of that stream."""

    kind: ClassVar[str] = "output"

    stream: Stream
    data: bytes
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A command ended on a droplet, or was lost."""

    kind: ClassVar[str] = "run_ended"

    result: RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetached(Event):
    """A command was started on a droplet and left there: it runs on without anybody.

    `pool_run_id` finds it on all droplets that it was started on.
    """

    kind: ClassVar[str] = "run_detached"

    run_id: RunId
    pool_run_id: RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLost(Event):
    """The link to a running command was lost for a `reason`; the command runs on, the link is being opened again."""

    kind: ClassVar[str] = "link_lost"

    run_id: RunId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkResumed(Event):
    """A command is followed again after `seconds`; its output goes on at byte `position` (of both streams), checked."""

    kind: ClassVar[str] = "link_resumed"

    position: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathExplained(Event):
    """Whether a path is sent and why: the line of the ignore file that decided, where one did, and words."""

    kind: ClassVar[str] = "path_explained"

    path: str
    is_sent: bool
    because: str
    source: str | None = None
    line: int | None = None
    pattern: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncEnded(Event):
    """A working copy equals the local tree again, or says in `result.error` why not.

    `after_s` is how long after the change that was heard of, where one is waited for.
    """

    kind: ClassVar[str] = "sync_ended"

    result: SyncResult
    after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullEnded(Event):
    """Artifacts have arrived from a droplet, or `result.error` says why not."""

    kind: ClassVar[str] = "pull_ended"

    result: PullResult


@dataclass(frozen=True, slots=True, kw_only=True)
class PushEnded(Event):
    """Data is on a droplet, or `result.error` says why not."""

    kind: ClassVar[str] = "push_ended"

    result: PushResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRanked(Event):
    """The hottest kernels of one droplet are known; `top` is how many the user wants to see.

    `is_part` says that it is one of several: a session, a droplet of a pool. What they make together follows.
    """

    kind: ClassVar[str] = "profile"

    result: ProfileResult
    top: int = 10
    is_part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummed(Event):
    """Several profiles of one command are ranked as one: droplets, sessions; `spreads` compare the droplets."""

    kind: ClassVar[str] = "profile-summed"

    ranking: Ranking
    spreads: Sequence[Spread] = ()
    hosts: Sequence[str] = ()
    sessions: int = 1
    tool: str = ""
    top: int = 10
    is_partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Event):
    """Two sets of profiling sessions were compared, kernel by kernel."""

    kind: ClassVar[str] = "comparison"

    comparison: Comparison
    top: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSaved(Event):
    """The files of one droplet's profile are in the directory `out`."""

    kind: ClassVar[str] = "profile-saved"

    out: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Billed(Event):
    """A droplet is confirmed gone, and this is what it cost."""

    kind: ClassVar[str] = "billed"

    bill: Bill


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReported(Event):
    """The answer of `status`."""

    kind: ClassVar[str] = "status"

    pools: Sequence[PoolStatus]
    is_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReported(Event):
    """The answer of `sweep`: everything seen, selected or not."""

    kind: ClassVar[str] = "sweep"

    items: Sequence[SweepItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(Event):
    """Labelled facts to show as they are (`auth`, `sandbox status`): label to text, in order."""

    kind: ClassVar[str] = "facts"

    title: str
    facts: dict[str, Any]


class Sink(Protocol):
    """Take events. One sink may be shared by tasks of one event loop; it is not for threads."""

    def emit(self, event: Event) -> None:
        """Take one event without blocking, awaiting or raising."""

    async def drain(self) -> None:
        """Wait until the reader keeps up again; call it after emitting output."""


@runtime_checkable
class PlaceKeeper(Protocol):
    """A sink that tells somebody else how far a command's output has come, so that they can go on without this one."""

    def keep(self, host: str, place: dict[str, Any]) -> None:
        """Take, right behind the event that led there, the place in a host's output that is reached (JSON values)."""

    def kept(self, host: str) -> int:
        """Return how many bytes of a host's output, of both streams, need not be kept anywhere else."""


class NullSink:
    """Drop every event: the default of the library."""

    def emit(self, event: Event) -> None:
        """Drop it."""

    async def drain(self) -> None:
        """Return at once."""
