"""Decide what to create: the wish, and which of the cloud's offers fulfil it, in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from chisel.errors import CapacityError
from chisel.model import Secret, Size

SAME_ARCHITECTURE = ("mi300x", "mi325x")
"""GPU models that run gfx942 code objects (LLVM's AMDGPU processor table, 2026)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What `up` is to reach: a pool of at least `count` ready droplets; None lets the cloud's offer decide.

    `takes_any` allows other sizes of the same architecture and number of GPUs. `ttl` and `max_usd` (for the whole pool)
    limit each new droplet's time, whichever ends first; `idle_s` is the idleness after which it is destroyed (0:
    never): by itself, with `self_destruct_token`. At the end of its time a running command is ended only with
    `ends_busy`. `wait_s` is how long to hunt for capacity.
    """

    pool: str
    count: int
    project: str
    sizes: tuple[str, ...]
    region: str | None
    image: str
    ttl: timedelta | None = None
    max_usd: Decimal | None = None
    idle_s: int = 0
    self_destruct_token: Secret | None = None
    ends_busy: bool = False
    takes_any: bool = False
    wait_s: float = 0.0

    @property
    def is_armed(self) -> bool:
        """Say whether new droplets destroy themselves: that takes a token, and a limit."""
        has_limit = bool(self.idle_s) or self.ttl is not None or self.max_usd is not None
        return self.self_destruct_token is not None and has_limit

    def until(self, now: datetime, usd_per_hour: Decimal) -> datetime | None:
        """Return when the time of a droplet made now ends, None for never."""
        ends = [now + self.ttl] if self.ttl is not None else []
        if self.max_usd is not None and usd_per_hour > 0:
            share = self.max_usd / self.count
            ends.append(now + timedelta(seconds=float(share / usd_per_hour * 3600)))
        return min(ends, default=None)


def offers(sizes: Sequence[Size], wish: Wish) -> list[tuple[Size, str]]:
    """Return every size and region that fulfils the wish, the best first.

    A size may be `available` with no region at all (seen for MI300X, 2026-10): that means no.
    """
    return [
        (size, region)
        for size in _wanted(sizes, wish)
        for region in size.regions
        if wish.region is None or region == wish.region
    ]


def _wanted(sizes: Sequence[Size], wish: Wish) -> Iterator[Size]:
    """Give the sizes in the order of preference: as wished, then, if that is allowed, the cheapest of the same kind."""
    offered = {size.slug: size for size in sizes if size.is_available and size.regions}
    named = [offered[slug] for slug in wish.sizes if slug in offered]
    yield from named
    if wish.takes_any:
        counts = {size.gpu_count for size in sizes if size.slug in wish.sizes} or {1}
        alike = [size for size in offered.values() if is_gfx942(size) and size.gpu_count in counts]
        yield from sorted((size for size in alike if size not in named), key=lambda size: size.usd_per_hour)


def is_gfx942(size: Size) -> bool:
    """Say whether a size's GPUs run gfx942 code."""
    return any(model in (size.gpu_model or "").lower() for model in SAME_ARCHITECTURE)


def no_offer(sizes: Sequence[Size], wish: Wish) -> CapacityError:
    """Return the error that names what of the same architecture could be had instead, where and for how much."""
    where = f" in `{wish.region}`" if wish.region else ""
    others = [size for size in sizes if size.is_available and size.regions and is_gfx942(size)]
    others = sorted((size for size in others if size.slug not in wish.sizes), key=lambda size: size.usd_per_hour)
    shown = ", ".join(f"{one.slug} (${one.usd_per_hour}/h, {' '.join(one.regions)})" for one in others)
    return CapacityError(
        f"`{'`, `'.join(wish.sizes)}` cannot be created{where} now",
        hint=f"offered: {shown}: chisel up --size {others[0].slug}; or wait for it: chisel up --wait 30m"
        if others
        else "wait for it: chisel up --wait 30m",
    )
