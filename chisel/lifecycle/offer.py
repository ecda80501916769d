"""Decide what to create: the wish, and which of the cloud's offers fulfils it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from chisel.errors import CloudError
from chisel.model import Size


@dataclass(frozen=True, slots=True)
class Wish:
    """What `up` is to reach: a pool of at least `count` ready droplets; None lets the cloud's offer decide."""

    pool: str
    count: int
    project: str
    sizes: tuple[str, ...]
    region: str | None
    image: str
    ttl: timedelta | None = None


def choose_offer(sizes: Sequence[Size], wish: Wish) -> tuple[Size, str]:
    """Return the first wanted size that can be created somewhere, and where; raises CloudError naming what is offered.

    A size may be `available` with no region at all (seen for MI300X, 2026-10): that means no.
    """
    offered = {size.slug: size for size in sizes if size.is_available and size.regions}
    for slug in wish.sizes:
        size = offered.get(slug)
        if size and (wish.region is None or wish.region in size.regions):
            return size, wish.region or size.regions[0]
    where = f" in `{wish.region}`" if wish.region else ""
    others = sorted(slug for slug, size in offered.items() if size.gpu_model and "mi3" in size.gpu_model.lower())
    raise CloudError(
        f"`{'`, `'.join(wish.sizes)}` cannot be created{where} now",
        hint=f"offered: {', '.join(others)} (chisel up --size {others[0]})" if others else "try again later",
    )
