"""Decide what may cost money and what may be destroyed: tags, ownership, cost, sweep. Pure: no I/O, never awaits.

Every droplet chisel makes carries the tags below. DigitalOcean allows letters, digits, `:`, `-` and `_` in a tag, at
most 255 characters (API reference, 2026-08); names are hostnames and may repeat, so neither alone proves anything.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from chisel.errors import UsageError
from chisel.model import Droplet, DropletId, SweepItem

TAG = "chisel"
_OWNER, _POOL, _PROJECT, _ATTEMPT, _UNTIL, _IDLE, _KEPT = (
    f"{TAG}-{part}-" for part in ("owner", "pool", "project", "attempt", "until", "idle", "kept")
)
_ARMED = f"{TAG}-self-destruct"
_ATTEMPT_TAG = re.compile(rf"{_ATTEMPT}(?P<attempt>[0-9a-f]+)(?:-(?P<key>[0-9a-f]{{64}}))?")
_KEY_ALGORITHM = b"ssh-ed25519"
_KEY_HEAD_BYTES = 4 + len(_KEY_ALGORITHM) + 4
_DIGITS = 12
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
MINIMUM_BILLED_S = 60
MINIMUM_USD = Decimal("0.01")
HALF_MADE_AFTER = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Label:
    """What a droplet's tags say about it; empty texts where a tag is missing, `until` None when it has no limit.

    `host_keys` are the public host keys it may show after its first boot, in OpenSSH's form. `idle_s` is the idleness
    after which it is destroyed, 0 for never; one that `is_armed` does that itself. Until `kept_until` idleness does not
    count.
    """

    is_ours: bool
    owner: str = ""
    pool: str = ""
    project: str = ""
    attempt: str = ""
    until: datetime | None = None
    kept_until: datetime | None = None
    idle_s: int = 0
    is_armed: bool = False
    host_keys: tuple[str, ...] = ()


def check_pool_name(name: str) -> str:
    """Return the name when it can be a hostname's first part, else raise UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be a pool's name: lower-case letters, digits and inner hyphens only, 48 at most",
            hint="chisel up --pool bench",
        )
    return name


def make_tags(
    *,
    owner: str,
    pool: str,
    project: str,
    attempt: str,
    host_key: str,
    until: datetime | None,
    idle_s: int = 0,
    is_armed: bool = False,
) -> tuple[str, ...]:
    """Return the tags of a droplet about to be made; `attempt` is unique to one create request.

    They hold all that a lost state needs to be rebuilt, the public host key to verify the droplet by included.
    """
    safe_project = re.sub(r"[^A-Za-z0-9_-]", "-", project)[:100]
    tags = [TAG, _OWNER + owner, _POOL + pool, _PROJECT + safe_project, attempt_tag(attempt, host_key)]
    if until is not None:
        tags.append(until_tag(until))
    if idle_s:
        tags.append(f"{_IDLE}{idle_s}")
    if is_armed:
        tags.append(_ARMED)
    return tuple(tags)


def attempt_tag(attempt: str, host_key: str) -> str:
    """Return the tag that only this attempt's droplet carries: its own word, and the host key it is to show."""
    return f"{_ATTEMPT}{attempt}-{_key_in_hex(host_key)}"


def attempt_tags(tags: Iterable[str], attempt: str) -> tuple[str, ...]:
    """Return those tags that only this attempt's droplet carries."""
    found = [tag for tag in tags if (match := _ATTEMPT_TAG.fullmatch(tag)) and match["attempt"] == attempt]
    return tuple(sorted(found))


def until_tag(until: datetime) -> str:
    """Return the tag of a limit in time."""
    return f"{_UNTIL}{int(until.timestamp())}"


def kept_tag(until: datetime) -> str:
    """Return the tag that says until when idleness does not count."""
    return f"{_KEPT}{int(until.timestamp())}"


def kept_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return those tags that let a droplet be idle."""
    return tuple(sorted(tag for tag in tags if tag.startswith(_KEPT)))


def limit_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return those tags that limit a droplet's time."""
    return tuple(sorted(tag for tag in tags if tag.startswith(_UNTIL)))


def _key_in_hex(host_key: str) -> str:
    """Return an ed25519 public key's 32 bytes in hex; raises ValueError for another kind."""
    blob = base64.b64decode(host_key.split()[1], validate=True)
    if not host_key.startswith(f"{_KEY_ALGORITHM.decode()} ") or len(blob) != _KEY_HEAD_BYTES + 32:
        raise ValueError("not an ed25519 public key")
    return blob[_KEY_HEAD_BYTES:].hex()


def _key_from_hex(text: str) -> str:
    head = len(_KEY_ALGORITHM).to_bytes(4, "big") + _KEY_ALGORITHM + (32).to_bytes(4, "big")
    return f"{_KEY_ALGORITHM.decode()} {base64.b64encode(head + bytes.fromhex(text)).decode('ascii')}"


def owner_tag(owner: str) -> str:
    """Return the tag that all droplets of one owner carry."""
    return _OWNER + owner


def read_label(tags: Iterable[str]) -> Label:
    """Read the tags back; of several limits the latest holds, and two owners' or attempts' tags prove nothing."""
    found = set(tags)
    idle = _after(found, _IDLE)
    attempts = [match for tag in sorted(found) if (match := _ATTEMPT_TAG.fullmatch(tag))]
    return Label(
        is_ours=TAG in found,
        owner=_after(found, _OWNER),
        pool=_after(found, _POOL),
        project=_after(found, _PROJECT),
        attempt=attempts[0]["attempt"] if len({match["attempt"] for match in attempts}) == 1 else "",
        until=_latest(found, _UNTIL),
        kept_until=_latest(found, _KEPT),
        idle_s=int(idle) if idle.isascii() and idle.isdigit() and len(idle) < _DIGITS else 0,
        is_armed=_ARMED in found,
        host_keys=tuple(_key_from_hex(match["key"]) for match in attempts if match["key"]),
    )


def _latest(tags: Iterable[str], start: str) -> datetime | None:
    """Return the latest instant of those that tags name behind `start`."""
    texts = [tag[len(start) :] for tag in tags if tag.startswith(start)]
    instants = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < _DIGITS]
    return datetime.fromtimestamp(max(instants), UTC) if instants else None


def _after(tags: Iterable[str], start: str) -> str:
    found = {tag[len(start) :] for tag in tags if tag.startswith(start)}
    return found.pop() if len(found) == 1 else ""


def refusal_to_destroy(droplet: Droplet, *, id: DropletId, name: str, owner: str, attempt: str) -> str | None:
    """Say why this droplet must not be destroyed, None when id, name, owner and attempt all agree with the record."""
    label = read_label(droplet.tags)
    checks = (
        (droplet.id == id, f"the API answered with droplet {droplet.id} instead of {id}"),
        (label.is_ours, f"it does not carry the tag `{TAG}`"),
        (label.owner == owner, f"its owner tag says `{label.owner or 'nobody'}`, not `{owner}`"),
        (label.attempt == attempt, "its attempt tag is not the one that chisel recorded"),
        (droplet.name == name, f"its name is `{droplet.name}`, not `{name}`"),
    )
    return next((reason for holds, reason in checks if not holds), None)


def refusal_to_sweep(droplet: Droplet, item: SweepItem) -> str | None:
    """Say why a droplet must not be destroyed, None when it still is what the sweep judged and showed."""
    return refusal_to_destroy(droplet, id=item.droplet_id, name=item.name, owner=item.owner_tag, attempt=item.attempt)


def cost(usd_per_hour: Decimal, seconds: float) -> Decimal:
    """Return dollars for a droplet that lived so long: per second, at least 60 s and one cent.

    DigitalOcean bills per second since January 2026, powered-off droplets included; its invoice may round otherwise.
    """
    billed = Decimal(max(seconds, MINIMUM_BILLED_S))
    usd = usd_per_hour * billed / 3600
    return max(usd, MINIMUM_USD).quantize(Decimal("0.0001"), ROUND_HALF_UP)


def free_names(pool: str, taken: Iterable[str], count: int) -> list[str]:
    """Return the first `count` names `<pool>-1`, `<pool>-2`, ... that are not taken (compared without case)."""
    used = {name.lower() for name in taken}
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        name = f"{pool}-{number}"
        if name not in used:
            names.append(name)
    return names


@dataclass(frozen=True, slots=True)
class Choice:
    """What a sweep may select beyond this owner's droplets that are past their limits or half made.

    `named` are names of this owner's droplets (one that two of them have names neither) and ids of anybody's.
    `expired` takes everybody's that are past the limit they were given, `unknown` those that this machine's state does
    not know, whoever made them. `older_than` takes this owner's of that age.
    """

    named: tuple[str, ...] = ()
    expired: bool = False
    unknown: bool = False
    older_than: timedelta | None = None


NOTHING_MORE = Choice()


@dataclass(frozen=True, slots=True)
class Known:
    """What this machine's state says of a droplet."""

    name: str
    attempt: str
    is_ready: bool


def sweep_items(
    droplets: Iterable[Droplet],
    known: Mapping[DropletId, Known],
    *,
    owner: str,
    now: datetime,
    choice: Choice = NOTHING_MORE,
) -> list[SweepItem]:
    """Judge every droplet that carries chisel's tag, the oldest first.

    `known` is what this machine's state says of ids; where its name or attempt are not the droplet's, it says nothing.
    """
    ordered = sorted(droplets, key=lambda one: (one.created_at, one.id))
    mine = (one.name for one in ordered if (label := read_label(one.tags)).owner == owner and label.attempt)
    names = Counter(mine)
    choice = replace(choice, named=tuple(name for name in choice.named if names[name] <= 1))
    return [_sweep_item(droplet, known, owner, now, choice) for droplet in ordered]


def _sweep_item(
    droplet: Droplet, known: Mapping[DropletId, Known], owner: str, now: datetime, choice: Choice
) -> SweepItem:
    label = read_label(droplet.tags)
    age = now - droplet.created_at
    reason, is_selected = _verdict(droplet, label, known, owner, now, choice)
    return SweepItem(
        droplet_id=droplet.id,
        name=droplet.name,
        owner="you" if label.owner == owner else label.owner or "unknown",
        pool=label.pool,
        age_s=age.total_seconds(),
        usd_so_far=cost(droplet.usd_per_hour, age.total_seconds()),
        usd_per_hour=droplet.usd_per_hour,
        reason=reason,
        is_selected=is_selected,
        owner_tag=label.owner,
        attempt=label.attempt,
    )


def _verdict(
    droplet: Droplet, label: Label, known: Mapping[DropletId, Known], owner: str, now: datetime, choice: Choice
) -> tuple[str, bool]:
    if not (label.is_ours and label.owner and label.attempt):
        return "not made by chisel, whatever its tag says: left", False
    is_mine, age = label.owner == owner, now - droplet.created_at
    is_expired = label.until is not None and label.until <= now
    if str(droplet.id) in choice.named or (is_mine and droplet.name in choice.named):
        return "named on the command line", True
    record = known.get(droplet.id)
    is_known = is_mine and record is not None and (record.name, record.attempt) == (droplet.name, label.attempt)
    if is_expired and (is_known or choice.expired):
        return f"past its limit ({label.until:%Y-%m-%d %H:%M} UTC)", True
    if not is_known:
        whose = "yours, but not in this machine's state" if is_mine else "not yours"
        if choice.unknown:
            return whose, True
        late = "; past its limit: --expired" if is_expired else ""
        return f"{whose}: by name{'' if is_mine else ' of its id'} or --unknown{late}", False
    if choice.older_than is not None and age >= choice.older_than:
        return "older than asked", True
    if record is not None and not record.is_ready and age > HALF_MADE_AFTER:
        return "never became ready", True
    return "in use", False
