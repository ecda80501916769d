"""Decide what may cost money and what may be destroyed: tags, ownership, cost, sweep. Pure: no I/O, never awaits.

Every droplet chisel makes carries the tags below. DigitalOcean allows letters, digits, `:`, `-` and `_` in a tag, at
most 255 characters (API reference, 2026-08); names are hostnames and may repeat, so neither alone proves anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from chisel.errors import UsageError
from chisel.model import Droplet, DropletId, SweepItem

TAG = "chisel"
_OWNER, _POOL, _PROJECT, _ATTEMPT, _UNTIL = (
    f"{TAG}-{part}-" for part in ("owner", "pool", "project", "attempt", "until")
)
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")
MINIMUM_BILLED_S = 60
MINIMUM_USD = Decimal("0.01")
HALF_MADE_AFTER = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Label:
    """What a droplet's tags say about it; empty texts where a tag is missing, `until` None when it has no limit."""

    is_ours: bool
    owner: str = ""
    pool: str = ""
    project: str = ""
    attempt: str = ""
    until: datetime | None = None


def check_pool_name(name: str) -> str:
    """Return the name when it can be a hostname's first part, else raise UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be a pool's name: lower-case letters, digits and inner hyphens only, 48 at most",
            hint="chisel up --pool bench",
        )
    return name


def make_tags(*, owner: str, pool: str, project: str, attempt: str, until: datetime | None) -> tuple[str, ...]:
    """Return the tags of a droplet about to be made; `attempt` is unique to one create request."""
    safe_project = re.sub(r"[^A-Za-z0-9_-]", "-", project)[:100]
    tags = [TAG, _OWNER + owner, _POOL + pool, _PROJECT + safe_project, attempt_tag(attempt)]
    if until is not None:
        tags.append(f"{_UNTIL}{int(until.timestamp())}")
    return tuple(tags)


def attempt_tag(attempt: str) -> str:
    """Return the tag that only this attempt's droplet carries."""
    return _ATTEMPT + attempt


def owner_tag(owner: str) -> str:
    """Return the tag that all droplets of one owner carry."""
    return _OWNER + owner


def read_label(tags: Iterable[str], zone: datetime) -> Label:
    """Read the tags back; `zone` is any aware datetime, whose zone `until` is given in."""
    found = set(tags)
    until = _after(found, _UNTIL)
    return Label(
        is_ours=TAG in found,
        owner=_after(found, _OWNER),
        pool=_after(found, _POOL),
        project=_after(found, _PROJECT),
        attempt=_after(found, _ATTEMPT),
        until=datetime.fromtimestamp(int(until), zone.tzinfo) if until.isdigit() else None,
    )


def _after(tags: Iterable[str], start: str) -> str:
    return next((tag[len(start) :] for tag in sorted(tags) if tag.startswith(start)), "")


def refusal_to_destroy(droplet: Droplet, *, id: DropletId, name: str, owner: str, attempt: str) -> str | None:
    """Say why this droplet must not be destroyed, None when id, name, owner and attempt all agree with the record."""
    label = read_label(droplet.tags, droplet.created_at)
    checks = (
        (droplet.id == id, f"the API answered with droplet {droplet.id} instead of {id}"),
        (label.is_ours, f"it does not carry the tag `{TAG}`"),
        (label.owner == owner, f"its owner tag says `{label.owner or 'nobody'}`, not `{owner}`"),
        (label.attempt == attempt, "its attempt tag is not the one that chisel recorded"),
        (droplet.name == name, f"its name is `{droplet.name}`, not `{name}`"),
    )
    return next((reason for holds, reason in checks if not holds), None)


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


def sweep_items(
    droplets: Iterable[Droplet],
    known: Mapping[DropletId, bool],
    *,
    owner: str,
    now: datetime,
    named: Iterable[str] = (),
) -> list[SweepItem]:
    """Judge every droplet that carries chisel's tag.

    `known` maps the ids this machine's state records to whether they became ready. Selected are ours that are past
    their limit, or recorded here and still not ready after `HALF_MADE_AFTER`; and ours that are `named`.
    """
    wanted = set(named)
    return [
        _sweep_item(droplet, known, owner, now, wanted) for droplet in sorted(droplets, key=lambda one: one.created_at)
    ]


def _sweep_item(
    droplet: Droplet, known: Mapping[DropletId, bool], owner: str, now: datetime, wanted: set[str]
) -> SweepItem:
    label = read_label(droplet.tags, now)
    age = now - droplet.created_at
    reason, is_selected = _verdict(droplet, label, known, owner, now, wanted)
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
    )


def _verdict(
    droplet: Droplet, label: Label, known: Mapping[DropletId, bool], owner: str, now: datetime, wanted: set[str]
) -> tuple[str, bool]:
    if not label.is_ours or label.owner != owner:
        return "not yours: left", False
    if droplet.name in wanted:
        return "named on the command line", True
    if label.until is not None and label.until <= now:
        return f"past its limit ({label.until:%Y-%m-%d %H:%M} UTC)", True
    if droplet.id not in known:
        return "yours, but not in this machine's state: destroyed only by name", False
    if not known[droplet.id] and now - droplet.created_at > HALF_MADE_AFTER:
        return "never became ready", True
    return "in use", False
