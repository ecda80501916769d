"""Take one kernel's dispatches together: exact quantiles, spread and drift, all in nanoseconds, in little memory.

Durations stay in arrays of machine words. They are sorted in pieces, and a quantile is found by bisecting the pieces:
five million durations of one kernel never become a list of five million Python numbers.
Pure; standard library only, Python 3.10.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import le
from typing import Any

QUANTILES = 64
SLICES = 48
_PIECE = 1 << 16
LONGEST_SHORT_NS = (1 << 32) - 1
"""What a duration may be in an array of type `I`."""


class Series:
    """Dispatches as two columns: when each started and how long it took, in ns; in any order."""

    __slots__ = ("_total", "durations", "starts")

    def __init__(self, starts: array[int] | None = None, durations: array[int] | None = None) -> None:
        self.starts: array[int] = array("q") if starts is None else starts
        self.durations: array[int] = array("q") if durations is None else durations
        self._total: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.durations)

    @property
    def total_ns(self) -> int:
        """Return the sum of all durations."""
        count, total = self._total
        if count != len(self.durations):
            total = sum(self.durations)
            self._total = (len(self.durations), total)
        return total

    def widen(self) -> None:
        """Make room for durations above `LONGEST_SHORT_NS`."""
        if self.durations.typecode != "q":
            self.durations = array("q", self.durations)

    def extend(self, other: Series) -> None:
        """Take in another's dispatches."""
        if self.durations.typecode != other.durations.typecode:
            if not self.durations:
                self.durations = array(other.durations.typecode)
            else:
                self.widen()
                other.widen()
        self.starts.extend(other.starts)
        self.durations.extend(other.durations)


class Ordered:
    """Whole numbers in sorted pieces; `at` finds the n-th of all."""

    def __init__(self, parts: Iterable[Sequence[int]]) -> None:
        self._pieces = [
            array("q", sorted(part[start : start + _PIECE])) for part in parts for start in range(0, len(part), _PIECE)
        ]
        self.count = sum(map(len, self._pieces))

    def at(self, index: int) -> int:
        """Return the value with `index` smaller or equal ones before it."""
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces[0][index]
        low, high = min(piece[0] for piece in pieces), max(piece[-1] for piece in pieces)
        while low < high:
            middle = (low + high) // 2
            if sum(bisect_right(piece, middle) for piece in pieces) > index:
                high = middle
            else:
                low = middle + 1
        return low

    def quantile(self, fraction: float) -> float:
        """Return a quantile, between two neighbours by straight line (numpy's default, R's type 7)."""
        place = (self.count - 1) * fraction
        low = math.floor(place)
        first = self.at(low)
        if place == low:
            return first
        return first + (self.at(low + 1) - first) * (place - low)

    def std(self, mean: float) -> float | None:
        """Return the sample's standard deviation, None for fewer than two values."""
        if self.count < 2:
            return None
        parts = [math.dist(piece, [mean] * len(piece)) for piece in self._pieces]
        return round(math.hypot(*parts) / math.sqrt(self.count - 1), 3)  # the rest depends on how it was cut


def figures_of(parts: Sequence[Series], *, detailed: bool = False) -> dict[str, Any]:
    """Return the figures of at least one dispatch; `detailed` adds the `QUANTILES` + 1 quantiles."""
    ordered = Ordered(part.durations for part in parts)
    total = sum(part.total_ns for part in parts)
    mean = total / ordered.count
    found: dict[str, Any] = {
        "calls": ordered.count,
        "total_ns": total,
        "mean_ns": mean,
        "p50_ns": ordered.quantile(0.5),
        "p99_ns": ordered.quantile(0.99),
        "min_ns": ordered.at(0),
        "max_ns": ordered.at(ordered.count - 1),
        "std_ns": ordered.std(mean),
    }
    if detailed:
        found["quantiles"] = [_short(ordered.quantile(step / QUANTILES)) for step in range(QUANTILES + 1)]
    return found


def drift_of(parts: Sequence[Series]) -> list[list[float]]:
    """Return calls and median of each part of the run, the dispatches in the order they were launched.

    A series that is in order stays whole, whatever its length: those of several GPUs are cut where their starts say.
    """
    pieces = [piece for part in parts if part for piece in _in_order(part)]
    count = sum(len(took) for _, took in pieces)
    slices = min(SLICES, count)
    bounds = [count * number // slices for number in range(slices + 1)]
    if len(pieces) == 1:
        return [_median(pieces[0][1][low:high]) for low, high in pairwise(bounds)]
    edges = [_Pieces([starts for starts, _ in pieces]).split(bound) for bound in bounds]
    found = []
    for low, high in pairwise(edges):
        chosen = [took[first:last] for (_, took), first, last in zip(pieces, low, high, strict=True)]
        found.append(_median([one for piece in chosen for one in piece] if len(chosen) > 1 else chosen[0]))
    return found


def _in_order(series: Series) -> list[tuple[array[int], array[int]]]:
    starts, durations = series.starts, series.durations
    if all(map(le, starts, memoryview(starts)[1:])):
        return [(starts, durations)]
    count = len(series)
    return [_by_start(starts[at : at + _PIECE], durations[at : at + _PIECE]) for at in range(0, count, _PIECE)]


class _Pieces:
    """Sorted pieces of starts; says where each is to be cut so that `bound` dispatches lie before."""

    def __init__(self, pieces: list[array[int]]) -> None:
        self._pieces = pieces

    def split(self, bound: int) -> list[int]:
        low, high = min(piece[0] for piece in self._pieces), max(piece[-1] for piece in self._pieces) + 1
        while low < high:
            middle = (low + high) // 2
            if sum(bisect_right(piece, middle) for piece in self._pieces) >= bound:
                high = middle
            else:
                low = middle + 1
        cuts = [bisect_left(piece, low) for piece in self._pieces]
        left = bound - sum(cuts)
        for index, piece in enumerate(self._pieces):  # those that started in the same ns: in the order of the file
            more = min(left, bisect_right(piece, low) - cuts[index])
            cuts[index] += more
            left -= more
        return cuts


def _by_start(starts: array[int], durations: array[int]) -> tuple[array[int], array[int]]:
    order = sorted(range(len(starts)), key=starts.__getitem__)
    return array("q", map(starts.__getitem__, order)), array("q", map(durations.__getitem__, order))


def _median(durations: Sequence[int]) -> list[float]:
    ordered = sorted(durations)
    count = len(ordered)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return [count, _short(middle)]


def _short(value: float) -> float:
    """Return a whole number where it is one: it is shorter on the wire."""
    return int(value) if value == int(value) else value


def without_first(parts: Sequence[Series], count: int) -> list[Series]:
    """Return series of one kernel in one process without the `count` dispatches that were launched first."""
    if count <= 0:
        return list(parts)
    if sum(map(len, parts)) <= count:
        return [Series() for _ in parts]
    pieces = [_by_start(part.starts, part.durations) for part in parts]
    filled = [index for index, (starts, _) in enumerate(pieces) if starts]
    cuts = dict(zip(filled, _Pieces([pieces[index][0] for index in filled]).split(count), strict=True))
    return [Series(starts[cuts.get(at, 0) :], took[cuts.get(at, 0) :]) for at, (starts, took) in enumerate(pieces)]
