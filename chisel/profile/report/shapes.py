"""Turn figures into what is drawn: histograms out of quantiles, thinned series, ticks. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

TAIL = 63 / 64
"""A distribution is drawn up to this quantile: one outlier of a thousand times the median would leave a line else."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Map values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return where a value is, cut at the ends."""
        if not math.isfinite(value) or self.high <= self.low:
            return self.start
        part = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + part * (self.end - self.start)


def usable(quantiles: Sequence[float]) -> bool:
    """Say whether quantiles can be drawn: at least three, finite, ascending."""
    return (
        len(quantiles) > 2
        and all(math.isfinite(one) for one in quantiles)
        and all(low <= high for low, high in itertools.pairwise(quantiles))
    )


def bounds(quantiles: Sequence[float]) -> tuple[float, float]:
    """Return the least value and the one at `TAIL`; never the same twice."""
    last = max(1, round((len(quantiles) - 1) * TAIL))
    low, high = quantiles[0], quantiles[last]
    return (low, high) if high > low else (low - max(abs(low) * 0.01, 0.5), low + max(abs(low) * 0.01, 0.5))


def histogram(quantiles: Sequence[float], bins: int, low: float, high: float) -> list[float]:
    """Return the share of all values in each of `bins` equal parts of `low` to `high`.

    Between two quantiles the values are taken to lie evenly; where they are the same, all lie there.
    """
    parts, width = [0.0] * bins, (high - low) / bins
    each = 1 / (len(quantiles) - 1)
    for start, end in itertools.pairwise(quantiles):
        if end <= start:
            place = int((start - low) / width)
            if 0 <= place < bins or start == high:
                parts[min(place, bins - 1)] += each
            continue
        first = max(int((start - low) / width), 0)
        last = min(int((end - low) / width), bins - 1)
        for place in range(first, last + 1):
            inside = min(end, low + (place + 1) * width) - max(start, low + place * width)
            parts[place] += each * max(inside, 0.0) / (end - start)
    return parts


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points of a series in its order: of each stretch the least and the greatest stay."""
    if len(points) <= most:
        return list(points)
    kept: list[tuple[float, float]] = []
    stretches = max(most // 2, 1)
    for number in range(stretches):
        part = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        ends = {min(part, key=lambda one: one[1]), max(part, key=lambda one: one[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round values between `low` and `high`, at most `most` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, first + most + 2) if number * step <= high]


def trend(drift: Sequence[tuple[int, float]]) -> float | None:
    """Return the median of the last quarter of a run over that of the first; None with too little to tell."""
    values = [median for _, median in drift if math.isfinite(median) and median > 0]
    quarter = len(values) // 4
    if quarter < 2:
        return None
    first, last = sorted(values[:quarter]), sorted(values[-quarter:])
    return last[quarter // 2] / first[quarter // 2]
