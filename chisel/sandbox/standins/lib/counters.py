"""Make up hardware counters: no GPU counted anything, but names have descriptions and figures follow the launch."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

from .collection import Collected, Dispatch
from .identity import NOTICE

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\[\d+\])?")


def counter_names(words: Sequence[str]) -> list[str]:
    """Return the counters that `--pmc` names, separated by spaces or commas; raises ValueError for what is no name."""
    names = [part for word in words for part in re.split(r"[,\s]+", word) if part]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"Unable to find counter {name}")
    return list(dict.fromkeys(names))


def counter_value(name: str, kernel: str, dispatch: Dispatch) -> float:
    """Make up one counter's value for one dispatch: waves are counted, the rest follows from names and size."""
    items, threads = math.prod(dispatch.grid), math.prod(dispatch.block)
    waves = math.prod(-(-grid // block) for grid, block in zip(dispatch.grid, dispatch.block, strict=True))
    waves *= -(-threads // 64)
    if name == "SQ_WAVES":
        return float(waves)
    trait = zlib.crc32(f"{name}/{kernel}".encode()) % 997 / 997
    if name.lower().endswith(("util", "percent")) or name.startswith("MeanOccupancy"):
        return round(100 * trait, 3)
    return float(int(items * (0.25 + 4 * trait)))


def description(name: str) -> str:
    """Say what the counter is."""
    return f"{name}: {NOTICE}"


class Filter:
    """Which kernels' counters are collected, by the regular expressions of the command line."""

    def __init__(self, include: str | None, exclude: str | None) -> None:
        self._include = re.compile(include or "")
        self._exclude = re.compile(exclude) if exclude else None

    def takes(self, found: Collected, dispatch: Dispatch) -> bool:
        """Say whether this dispatch's kernel is wanted."""
        name = found.kernels[dispatch.kernel]["display"]
        return bool(self._include.search(name)) and not (self._exclude and self._exclude.search(name))
