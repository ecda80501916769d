"""Take one kernel's dispatches together: exact quantiles, spread, all in nanoseconds.

Pure; standard library only, Python 3.10.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import Any


class Kernel:
    """One kernel's dispatches by duration; `summed` stands instead where a file holds only sums."""

    __slots__ = ("durations", "name", "summed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.durations = array("q")
        self.summed: dict[str, Any] | None = None

    def figures(self) -> dict[str, Any]:
        """Return calls, total, mean, p50, p99, least, most; None where a file with sums alone cannot tell."""
        if self.summed is not None:
            return {"name": self.name, **self.summed}
        return {"name": self.name, **figures_of(self.durations)}


def figures_of(durations: array[int]) -> dict[str, Any]:
    """Return the figures of at least one duration."""
    ordered = sorted(durations)
    total = sum(ordered)
    return {
        "calls": len(ordered),
        "total_ns": total,
        "mean_ns": total / len(ordered),
        "p50_ns": quantile(ordered, 0.5),
        "p99_ns": quantile(ordered, 0.99),
        "min_ns": ordered[0],
        "max_ns": ordered[-1],
    }


def quantile(ordered: list[int], fraction: float) -> float:
    """Return a quantile of sorted values, between two neighbours by straight line (numpy's default, R's type 7)."""
    place = (len(ordered) - 1) * fraction
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def add_sums(known: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
    """Add one file's sums for a kernel to those of others."""
    if known is None:
        return more
    calls, total = known["calls"] + more["calls"], known["total_ns"] + more["total_ns"]
    return {
        "calls": calls,
        "total_ns": total,
        "mean_ns": total / calls,
        "p50_ns": None,
        "p99_ns": None,
        "min_ns": _both(min, known["min_ns"], more["min_ns"]),
        "max_ns": _both(max, known["max_ns"], more["max_ns"]),
    }


def _both(choose: Any, one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else choose(one, other)


def ranked(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """Return the figures of every kernel that was called, hottest first by total time, ties by name."""
    found = [kernel.figures() for kernel in kernels if kernel.summed or kernel.durations]
    return sorted(found, key=lambda one: (-one["total_ns"], one["name"]))
