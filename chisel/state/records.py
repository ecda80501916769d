"""Hold what chisel remembers between commands: droplets, intents, projects. Plain values."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from chisel.errors import HostUnreachable
from chisel.model import DropletId, GitFacts, Host

VERSION = 1


@dataclass(frozen=True, slots=True)
class DropletRecord:
    """What chisel knows of a droplet it made; `attempt` is its tag's unique part, `host_key` the pinned public key.

    While the first boot's key is being replaced `next_host_key` is accepted as well; `is_rotated` says that it was.
    `until` is the end of its time, None for no limit; after `idle_s` of idleness it is destroyed (0: never), by itself
    when it `is_armed`, else by whichever chisel notices; until `kept_until` idleness does not count. A running command
    is ended at `until` only with `ends_busy`.

    `pipelines` is False when its sshd did not agree to a pipelined handshake (`chisel.model.Host`).

    `address` is None until the cloud has given one, `is_ready` says that it once answered, `facts` is what its probe
    found then (JSON values). `private_address` is None where it was not recorded. `created_at` is aware UTC.
    """

    id: DropletId
    name: str
    pool: str
    address: str | None
    port: int
    host_key: str
    region: str
    size: str
    image: str
    usd_per_hour: Decimal
    created_at: datetime
    attempt: str
    is_ready: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    next_host_key: str | None = None
    is_rotated: bool = False
    until: datetime | None = None
    idle_s: int = 0
    is_armed: bool = False
    ends_busy: bool = False
    kept_until: datetime | None = None
    pipelines: bool = True
    private_address: str | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A create request that is about to be sent, or whose answer is not recorded.

    `host_key` is the public half of the first boot's key, `next_host_key` of the one that replaces it.
    """

    attempt: str
    pool: str
    name: str
    size: str
    region: str
    image: str
    started_at: datetime
    host_key: str
    next_host_key: str
    usd_per_hour: Decimal
    until: datetime | None = None
    idle_s: int = 0
    is_armed: bool = False
    ends_busy: bool = False


@dataclass(frozen=True, slots=True)
class CloudState:
    """One account's part: pool name to droplet name to record, attempt to intent."""

    pools: dict[str, dict[str, DropletRecord]] = field(default_factory=dict)
    intents: dict[str, Intent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What was synced of one project: local root to the droplets' path of its working copy, and the latest root.

    `tree_hash` is that of the tree synced last (`chisel.node.tree.tree_hash`), empty where it is not known; `git` is
    what it was checked out from.
    """

    id: str
    root: str
    pool: str | None = None
    synced_roots: dict[str, str] = field(default_factory=dict)
    last_root: str | None = None
    tree_hash: str = ""
    git: GitFacts | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything remembered; `owner` is random, made once, and tells this user's droplets from others'.

    `recovered_from` is not stored: it names the unreadable file that was set aside in favour of this state.
    """

    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    clouds: dict[str, CloudState] = field(default_factory=dict)
    projects: dict[str, ProjectState] = field(default_factory=dict)
    version: int = VERSION
    recovered_from: Path | None = field(default=None, compare=False)


def host_of(record: DropletRecord) -> Host:
    """Return the droplet as SSH sees it; it must have an address."""
    if record.address is None:
        raise HostUnreachable(f"`{record.name}` has no address yet", host=record.name, hint="chisel up")
    return Host(
        name=record.name,
        droplet_id=record.id,
        address=record.address,
        port=record.port,
        user="root",
        host_key=record.host_key,
        next_host_key=record.next_host_key,
        pipelines=record.pipelines,
        region=record.region,
        private_address=record.private_address,
    )
