"""Hold the plain values that travel between the layers: no I/O, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal, NewType

DropletId = NewType("DropletId", int)
RunId = NewType("RunId", str)

StatusSource = Literal["remote", "chisel"]


class Secret:
    """Hold a token whose `repr` and `str` hide it; `reveal()` is the only way to its text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the token itself, for the one place that sends it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


Relay = Literal["auto", "on", "off"]
"""Whether droplets pass on to each other what all of them need: where it clearly pays, wherever they can, or never."""


@dataclass(frozen=True, slots=True)
class Host:
    """A droplet as SSH sees it.

    `host_key` is the pinned public key in OpenSSH's one-line form (`ssh-ed25519 AAAA...`): nothing else is accepted
    from this host but, while it replaces its first key, `next_host_key`. `port` is 22 everywhere but in the sandbox,
    where all droplets share one address. `pipelines` says that its sshd agrees to what chisel foresees in a handshake
    (`chisel.ssh.early`): True until it did not. `private_address` is where droplets of the same `region` reach it, None
    where that is not known.
    """

    name: str
    droplet_id: DropletId
    address: str
    port: int
    user: str
    host_key: str
    next_host_key: str | None = None
    pipelines: bool = True
    region: str = ""
    private_address: str | None = None


@dataclass(frozen=True, slots=True)
class Droplet:
    """A droplet as the cloud reports it, decoded from `GET /v2/droplets`.

    `address` is the public IPv4 address, None until the cloud has given one (an `active` droplet may have none yet).
    `private_address` is its IPv4 address in the network of the droplets around it. `created_at` is aware UTC.
    """

    id: DropletId
    name: str
    status: str
    created_at: datetime
    region: str
    size: str
    image: str
    usd_per_hour: Decimal
    tags: tuple[str, ...] = ()
    address: str | None = None
    port: int = 22
    private_address: str | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """A droplet size on offer; `regions` is where it can be created now (empty: nowhere, whatever `available` says)."""

    slug: str
    usd_per_hour: Decimal
    regions: tuple[str, ...]
    is_available: bool
    gpu_model: str | None = None
    gpu_count: int = 0
    vram_gib: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """What `GET /v2/account` tells: it knows a droplet limit, and nothing about a GPU quota."""

    email: str
    uuid: str
    team: str
    status: str
    status_message: str
    droplet_limit: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An image made from a droplet's disk, from `GET /v2/images`; it bills by its size until it is deleted."""

    id: int
    name: str
    size_gib: Decimal
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a token may do with droplets and around them, as far as requests that cannot succeed can tell.

    `others` are abilities beyond deleting and reading droplets, in words; `unknown` what could not be told.
    `missing_scopes` are those of chisel's that it lacks, in DigitalOcean's words.
    """

    can_delete: bool | None
    can_create: bool | None
    others: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SshKey:
    """A public key registered with the account; `fingerprint` is MD5, as DigitalOcean uses it."""

    id: int
    fingerprint: str
    name: str


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """Everything one `POST /v2/droplets` carries; `tags` include the one that is unique to the attempt."""

    name: str
    region: str
    size: str
    image: str
    ssh_keys: tuple[str, ...]
    tags: tuple[str, ...]
    user_data: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a command ended on one droplet.

    `status` is the command's own exit status, 128 + n when signal n ended it, 255 when it was lost (`source` is then
    `chisel` and `error` says why). `seconds` is wall time on the droplet, `peak_rss_bytes` the largest single process.
    `stdout` and `stderr` hold the output only where capture was asked for. `links` counts how often a lost link was
    taken up again; `was_stopped` says that chisel ended it because of another droplet, `is_detached` that it was left
    running.
    """

    host: str
    run_id: RunId
    status: int
    source: StatusSource = "remote"
    signal: int | None = None
    seconds: float = 0.0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    peak_rss_bytes: int | None = None
    error: str | None = None
    links: int = 0
    was_stopped: bool = False
    is_detached: bool = False
    stdout: bytes | None = None
    stderr: bytes | None = None


@dataclass(frozen=True, slots=True)
class GitFacts:
    """What a tree was made from: the commit (None before the first), the branch (None when detached).

    `is_dirty` says whether what lies below the tree's root differs from that commit, files that git does not know
    included. Content filters are not run for the answer (they are programs): a file of git-lfs whose time has changed
    counts as changed.
    """

    revision: str | None
    is_dirty: bool
    branch: str | None

    def __str__(self) -> str:
        """Return it as people write it: `main 1a2b3c4d5e6f, with changes`."""
        words = (self.branch, self.revision[:12] if self.revision is not None else "before the first commit")
        return " ".join(word for word in words if word) + (", with changes" if self.is_dirty else "")

    @classmethod
    def read(cls, said: object) -> GitFacts | None:
        """Return the facts that JSON holds, None where it holds none: a record may be older, or a droplet's."""
        if not isinstance(said, Mapping):
            return None
        revision, branch = said.get("revision"), said.get("branch")
        if not all(word is None or isinstance(word, str) for word in (revision, branch)):
            return None
        return cls(revision=revision, is_dirty=said.get("is_dirty") is True, branch=branch)


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What one sync changed on one droplet; `sent_bytes` is what crossed the network, compressed, for the content.

    `relayed_bytes` came from another droplet instead, `moved_files` are there under another name now, `repaired` had
    been changed on the droplet, `kept` too but were to stay so. With `is_dry` nothing was done, and `reasons` say by
    path what would be. `burst_ms` is how long the working copy was neither the old nor the new. `setup_error` is the
    part of `error` that the project's setup script is to blame for: the tree itself is there. `git` is what is checked
    out here, None outside of a repository.
    """

    host: str
    root: str
    sent_files: int = 0
    deleted_files: int = 0
    total_files: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    repaired: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    tree_hash: str = ""
    error: str | None = None
    setup_error: str | None = None
    moved_files: int = 0
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_dry: bool = False
    burst_ms: float = 0.0
    relayed_bytes: int = 0
    git: GitFacts | None = None


@dataclass(frozen=True, slots=True)
class PullResult:
    """What one pull brought from one droplet: `files` written below `target`; `skipped` texts carry their reason.

    `unchanged` files were here already, `wire_bytes` crossed the network. With `is_dry` nothing was written, and
    `would` names what would be, with its size in bytes.
    """

    host: str
    target: Path
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    skipped: tuple[str, ...] = ()
    error: str | None = None
    unchanged: int = 0
    wire_bytes: int = 0
    would: tuple[tuple[str, int], ...] = ()
    is_dry: bool = False


@dataclass(frozen=True, slots=True)
class PushResult:
    """What one push put on one droplet: `files` written below `target` there, `unchanged` that it had already.

    `bytes` is what the written files hold, `sent_bytes` what was sent of it from here, `relayed_bytes` what came from
    another droplet; `skipped` texts carry their reason.
    """

    host: str
    target: str
    files: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    unchanged: int = 0
    seconds: float = 0.0
    skipped: tuple[str, ...] = ()
    error: str | None = None
    relayed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Bill:
    """What one destroyed droplet cost, computed from its creation and price (the invoice may round)."""

    host: str
    droplet_id: DropletId
    seconds: float
    usd_per_hour: Decimal
    usd: Decimal
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunningCommand:
    """One entry of the registry of runs that the node program keeps on a droplet."""

    run_id: RunId
    line: str
    started_at: datetime
    is_running: bool
    status: int | None = None


@dataclass(frozen=True, slots=True)
class DropletStatus:
    """One droplet for `chisel status`: what the cloud and the droplet itself say of it.

    `idle_s` is None when the droplet could not be asked; `is_reachable` says whether it answered. `until` is the end of
    its time, None for no limit; `idle_limit_s` the idleness that ends it, 0 for none; `ends_in_s` how long it has
    without another request, None without limit or while a command runs. `self_destruct` is what it says of that itself:
    `on`, or what is wrong; None when it was made without.
    """

    host: str
    droplet_id: DropletId
    cloud_status: str
    region: str
    size: str
    usd_per_hour: Decimal
    usd_so_far: Decimal
    age_s: float
    is_reachable: bool
    idle_s: float | None = None
    runs: tuple[RunningCommand, ...] = ()
    until: datetime | None = None
    idle_limit_s: int = 0
    ends_in_s: float | None = None
    self_destruct: str | None = None


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool for `chisel status`; `self_destruct` says in words which protection holds."""

    name: str
    droplets: tuple[DropletStatus, ...]
    self_destruct: str


@dataclass(frozen=True, slots=True)
class SweepItem:
    """A droplet as `sweep` sees it: who owns it, why it is (or is not) selected for destruction."""

    droplet_id: DropletId
    name: str
    owner: str
    pool: str
    age_s: float
    usd_so_far: Decimal
    usd_per_hour: Decimal
    reason: str
    is_selected: bool
    owner_tag: str = ""
    attempt: str = ""
