"""Tell from several profiling sessions a side whether kernels became faster or slower, or that it cannot be told. Pure.

Why sessions: on real MI300X data the usual test over dispatches (Mann-Whitney) calls 8 of 9 pairs of runs of identical
code "different", because the dispatches of one session share its clocks, temperature and memory layout. One session is
one observation, however many dispatches it holds.

How: a kernel's figure in a session is the logarithm of its median; the estimate is the mean over B's sessions less the
mean over A's. Its error comes from a hierarchical bootstrap: sessions are drawn again (pairs of them when A and B were
measured in turns), and within each the median of as many dispatches drawn again. With few sessions a plain percentile
interval is too narrow: its spread lacks the factor sqrt(n/(n-1)), and its shape is the normal's, not Student's
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The American Statistician 69:4, on narrowness and the
expanded percentile interval). So each side's deviations are stretched by that factor, the half width that holds 95 % of
them gives the standard error, and Student's t takes the place of the normal, with Welch's degrees of freedom, or n - 1
for n pairs. Drawing within sessions counts noise again that the sessions' medians already have: it errs on the safe
side. So does the least error there is, the rounding to the grain of the GPU's clock.

All rows together cry wolf in at most 5 % of comparisons: Holm's step-down (1979, Scandinavian Journal of Statistics
6:2) in its weighted form, where the whole program has a fifth of the 5 %, and the kernels have the rest, half of it in
equal parts and half by their share of the time. It holds whatever the correlation between kernels.

What it cannot do: tell a change of the droplet from a change of the code where the sides were not measured in turns;
tell a trend from a change where one side always goes first (take turns in that too: A B B A); see a change of the
slower dispatches that leaves the median alone (the row of all kernels does, it goes by sums).
`tests/benchmarks/verdicts.py` measures false alarms and power.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import NormalDist, fmean, median, variance
from typing import Literal

from chisel.errors import UsageError
from chisel.figures import QUANTILES, Comparison, KernelStats, KernelVerdict, Ranking
from chisel.profile.student import critical, two_sided

Session = Mapping[str, KernelStats]
"""One profiling session: its kernels by name."""

WHOLE = "(all kernels)"
"""The row that stands for the program: the sum of all kernels' time in a session."""

REST = "(other kernels)"
"""The name under which a session holds the time of kernels that are not listed: it counts in the sum only."""

FALSE_ALARMS = 0.05
"""The chance that a comparison of identical code calls any row, at most."""

POWER = 0.8
"""How often a change of the size called `detectable` is found."""

FEWEST_SESSIONS = 3
LEAST_SHARE = 0.001

# A level of 5 % gave up to 5.2 % of alarms where a GPU is in one of two states by chance: that far from normal.
_LEVEL = 0.9 * FALSE_ALARMS
_WHOLE_PART = 0.2
_REPLICATES = 1000
_DRAWS = 16
_NORMAL_POWER = NormalDist().inv_cdf(POWER)
_NORMAL_95 = NormalDist().inv_cdf(0.975)
_NORMAL_DRAWS = tuple(NormalDist().inv_cdf((k + 0.5) / _DRAWS) for k in range(_DRAWS))
# MI300X stamps dispatches with a counter of 100 MHz (measured in ROCm/hrx-system pull request 143, July 2026).
_GRAIN_NS = 10.0
_MOST_NAMED = 3
_LONGEST_SHOWN = 60
_EDGE = 700.0


@dataclass(frozen=True, slots=True)
class _Figure:
    """A kernel in one session: its duration, that one's logarithm, and what the logarithm could have been as well."""

    ns: float
    log: float
    draws: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """A kernel on both sides; a figure is None where a session has none. `share` is the mean of the sides' shares."""

    name: str
    share: float
    a: tuple[_Figure | None, ...]
    b: tuple[_Figure | None, ...]
    calls_a: int
    calls_b: int
    missing: Literal["a", "b"] | None = None
    is_by_mean: bool = False


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The logarithm of the ratio, its standard error, the degrees of freedom, the chance of as much by noise alone."""

    log: float
    error: float
    freedom: float
    chance: float


def session_of(ranking: Ranking) -> Session:
    """Return a ranking as a session to compare, the time of kernels behind the listed ones included under `REST`."""
    kernels = {kernel.name: kernel for kernel in ranking.kernels}
    if ranking.rest_ns > 0:
        calls = max(ranking.rest, 1)
        kernels[REST] = KernelStats(REST, calls, ranking.rest_ns, ranking.rest_ns / calls, *_UNKNOWN, share=0.0)
    return kernels


_UNKNOWN = (None, None, None, None)


def compare(
    a: Sequence[Session],
    b: Sequence[Session],
    *,
    label_a: str,
    label_b: str,
    seed: int = 0,
    paired: bool = False,
    host: str = "",
) -> Comparison:
    """Judge every kernel that takes at least 0.1 % of the time on either side, and the program as a whole, first.

    `paired` says that `a[i]` and `b[i]` were measured one after the other on the same droplet: pairs are drawn again
    then, and what drifts over pairs cancels. The chance that any row is called although nothing changed is at most 5 %.
    `low` and `high` are the interval that the verdict was made on, at the level the family leaves to this row (wider
    than 95 %); `detectable` is the slowdown that as many sessions with as much noise would show 4 times in 5. All are
    None, and the verdict is "can't tell", with fewer than `FEWEST_SESSIONS` on a side: a GPU that is in one of two
    states by chance would fool two sessions a side in one comparison of eight. `calls_*` count over all sessions; for
    the row of all kernels `p50_*_ns` are medians of sums. `missing` names the side that lacks a kernel.

    Deterministic for a seed. Swapping A and B inverts the ratio; the order of sessions (of pairs) does not matter.
    Raises UsageError without a session on a side, and for pairs that do not match.
    """
    if not a or not b:
        raise UsageError(f"there is no profiling session of `{label_b if a else label_a}` to compare")
    if paired and len(a) != len(b):
        raise UsageError(f"sessions in turns come in pairs, but there are {len(a)} and {len(b)}")
    rows, small = _rows(a, b)
    estimates = {row.name: found for row in rows if (found := _estimate(row, paired, seed)) is not None}
    judged = _family([(row, estimates[row.name]) for row in rows if row.name in estimates])
    return Comparison(
        label_a=label_a,
        label_b=label_b,
        sessions_a=len(a),
        sessions_b=len(b),
        verdicts=tuple(judged.get(row.name) or _unjudged(row) for row in rows),
        notes=tuple(_notes(rows, small, estimates, (len(a), len(b)), paired)),
        host=host,
    )


def slower_than(comparison: Comparison, percent: float) -> tuple[KernelVerdict, ...]:
    """Return what `--fail-if-slower PERCENT` fails on: rows called slower whose estimate is beyond the percentage.

    Both are asked for: an estimate beyond it that may be noise does not fail, nor does a certain slowdown within it.
    The lower bound may lie within it: to ask that of the bound would let a regression of twice the percentage pass when
    sessions are few. Raises UsageError for a percentage below 0.
    """
    if not percent >= 0:
        raise UsageError(f"`{percent}` is no percentage to be slower by")
    limit = 1 + percent / 100
    return tuple(one for one in comparison.verdicts if one.verdict == "slower" and (one.ratio or 0.0) > limit)


# -- what is compared


def _rows(a: Sequence[Session], b: Sequence[Session]) -> tuple[list[_Row], int]:
    """Return the rows in the order of their time, the whole program first, and how many kernels are too small."""
    totals_a, totals_b = _totals(a), _totals(b)
    whole_a, whole_b = max(sum(totals_a.values()), 1), max(sum(totals_b.values()), 1)
    shares = {
        name: (totals_a.get(name, 0) / whole_a, totals_b.get(name, 0) / whole_b)
        for name in dict.fromkeys(chain(totals_a, totals_b))
        if name != REST
    }
    shown = sorted(
        (name for name, both in shares.items() if max(both) >= LEAST_SHARE), key=lambda name: (-sum(shares[name]), name)
    )
    kernels = [_row(name, fmean(shares[name]), a, b) for name in shown]
    return [_whole_row(a, b), *kernels], len(shares) - len(shown)


def _totals(side: Sequence[Session]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for session in side:
        for name, kernel in session.items():
            totals[name] = totals.get(name, 0) + max(kernel.total_ns, 0)
    return totals


def _row(name: str, share: float, a: Sequence[Session], b: Sequence[Session]) -> _Row:
    in_a, in_b = [session.get(name) for session in a], [session.get(name) for session in b]
    is_by_mean = any(one is not None and _median_ns(one) is None for one in (*in_a, *in_b))
    has_a, has_b = any(in_a), any(in_b)
    return _Row(
        name=name,
        share=share,
        a=tuple(_figure(one, is_by_mean) for one in in_a),
        b=tuple(_figure(one, is_by_mean) for one in in_b),
        calls_a=sum(one.calls for one in in_a if one),
        calls_b=sum(one.calls for one in in_b if one),
        missing=None if has_a and has_b else "b" if has_a else "a",
        is_by_mean=is_by_mean,
    )


def _whole_row(a: Sequence[Session], b: Sequence[Session]) -> _Row:
    return _Row(
        name=WHOLE,
        share=1.0,
        a=tuple(_sum_figure(session) for session in a),
        b=tuple(_sum_figure(session) for session in b),
        calls_a=_calls(a),
        calls_b=_calls(b),
    )


def _calls(side: Sequence[Session]) -> int:
    return sum(kernel.calls for session in side for kernel in session.values())


def _sum_figure(session: Session) -> _Figure | None:
    total = float(sum(max(kernel.total_ns, 0) for kernel in session.values()))
    return _Figure(total, math.log(total), (math.log(total),) * _DRAWS) if total > 0 else None


def _figure(kernel: KernelStats | None, is_by_mean: bool) -> _Figure | None:
    """Return a kernel's figure in a session; None where it was not launched, or its durations are no durations."""
    ns = None if kernel is None else kernel.mean_ns if is_by_mean else _median_ns(kernel)
    if kernel is None or ns is None or not 0 < ns < math.inf:
        return None
    log = math.log(ns)
    if is_by_mean or len(kernel.quantiles) <= 1:
        return _Figure(ns, log, (log,) * _DRAWS)
    return _Figure(ns, log, tuple(_drawn_medians(kernel.quantiles, kernel.calls, log)))


def _median_ns(kernel: KernelStats) -> float | None:
    if kernel.p50_ns is not None:
        return kernel.p50_ns
    return kernel.quantiles[len(kernel.quantiles) // 2] if len(kernel.quantiles) == QUANTILES + 1 else None


def _drawn_medians(quantiles: Sequence[float], calls: int, log: float) -> Iterator[float]:
    """Give logarithms of medians of `calls` dispatches drawn again, evenly spread over their distribution.

    The median of n draws is the quantile at a place of distribution Beta((n+1)/2, (n+1)/2), whose variance is
    1/(4(n+2)); the normal curve of that variance is taken for it.
    """
    spread = 0.5 / math.sqrt(max(calls, 1) + 2)
    for normal in _NORMAL_DRAWS:
        ns = _at(quantiles, min(max(0.5 + normal * spread, 0.0), 1.0))
        yield math.log(ns) if 0 < ns < math.inf else log


def _at(quantiles: Sequence[float], fraction: float) -> float:
    place = fraction * (len(quantiles) - 1)
    low = min(int(place), len(quantiles) - 2)
    return quantiles[low] + (quantiles[low + 1] - quantiles[low]) * (place - low)


# -- how far it can be trusted


def _estimate(row: _Row, paired: bool, seed: int) -> _Estimate | None:
    """Return what the sessions say of a row; None where too few have it."""
    if paired:
        pairs = [(one, other) for one, other in zip(row.a, row.b, strict=True) if one and other]
        a, b = [one for one, _ in pairs], [other for _, other in pairs]
    else:
        a, b = [one for one in row.a if one], [one for one in row.b if one]
    if min(len(a), len(b)) < FEWEST_SESSIONS:
        return None
    log = fmean(one.log for one in b) - fmean(one.log for one in a)
    source = random.Random(f"{seed}:".encode() + row.name.encode("utf-8", "surrogatepass"))
    deviations = _pair_deviations(a, b, source) if paired else _deviations(a, b, source)
    error = math.hypot(_spread(deviations), _grain(a, b))
    freedom = len(a) - 1.0 if paired else _welch(a, b)
    return _Estimate(log, error, freedom, two_sided(log / error, freedom))


def _deviations(a: Sequence[_Figure], b: Sequence[_Figure], source: random.Random) -> list[float]:
    """Return by how much the estimate differs when sessions and their dispatches are drawn again.

    The sides are drawn in an order of their own and their sessions sorted, so that neither swapping nor shuffling them
    changes the draws.
    """
    first, second = sorted(sorted((one.log, one.draws) for one in side) for side in (a, b))
    both = [_resampled([draws for _, draws in side], fmean(log for log, _ in side), source) for side in (first, second)]
    return [one - other for one, other in zip(*both, strict=True)]


def _pair_deviations(a: Sequence[_Figure], b: Sequence[_Figure], source: random.Random) -> list[float]:
    sides = sorted([[(one.log, one.draws) for one in a], [(one.log, one.draws) for one in b]], key=sorted)
    pairs = sorted(zip(*sides, strict=True))
    draws = [
        tuple(map(float.__sub__, source.sample(one[1], _DRAWS), source.sample(other[1], _DRAWS)))
        for one, other in pairs
    ]
    return _resampled(draws, fmean(one[0] - other[0] for one, other in pairs), source)


def _resampled(draws: Sequence[tuple[float, ...]], centre: float, source: random.Random) -> list[float]:
    """Return the means of as many sessions drawn again, as deviations from their own mean, stretched for their number.

    To draw a session and then one of its equally many medians is to draw one of all medians. The deviations are scaled
    to the spread that endlessly many would have, since for a mean that is known: it leaves less to chance.
    """
    count, pool = len(draws), tuple(chain.from_iterable(draws))
    drawn = iter(source.choices(pool, k=count * _REPLICATES))
    deviations = [sum(means) / count - centre for means in zip(*[drawn] * count, strict=True)]
    stretched = _root_mean_square([one - centre for one in pool]) / math.sqrt(count - 1)  # not count: see the module
    found = _root_mean_square(deviations)
    return [one * stretched / found for one in deviations] if found > 0 else deviations


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(one * one for one in values) / len(values))


def _spread(deviations: Sequence[float]) -> float:
    """Return the half width that holds 95 % of them in standard deviations, or their own where that is more.

    It is with three or four sessions: resamples of so few lie within narrow bounds.
    """
    half_width = sorted(map(abs, deviations))[round(0.95 * len(deviations)) - 1]
    return max(half_width / _NORMAL_95, _root_mean_square(deviations))


def _grain(a: Sequence[_Figure], b: Sequence[_Figure]) -> float:
    """Return the relative error that rounding both ends to the counter's grain may leave in all medians alike."""
    return _GRAIN_NS / math.sqrt(6) * math.hypot(*(1 / median(one.ns for one in side) for side in (a, b)))


def _welch(a: Sequence[_Figure], b: Sequence[_Figure]) -> float:
    """Return the degrees of freedom of a difference of means (Welch 1947, by Satterthwaite's formula)."""
    part_a, part_b = (variance([one.log for one in side]) / len(side) for side in (a, b))
    if part_a + part_b <= 0:
        return len(a) + len(b) - 2.0
    share = part_a / (part_a + part_b)
    return 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))


# -- verdicts


def _family(found: Sequence[tuple[_Row, _Estimate]]) -> dict[str, KernelVerdict]:
    """Judge all rows together by Holm's weighted step-down: the first that stays within noise ends it."""
    weights = _weights([row for row, _ in found])
    waiting = sorted(found, key=lambda one: (one[1].chance / weights[one[0].name], one[0].name))
    left, goes_on = 1.0, True
    judged = {}
    for row, estimate in waiting:
        level = _LEVEL * min(weights[row.name] / left, 1.0)
        goes_on = goes_on and estimate.chance <= level
        judged[row.name] = _judged(row, estimate, level, goes_on)
        if goes_on:
            left = max(left - weights[row.name], 1e-12)
    return judged


def _weights(rows: Sequence[_Row]) -> dict[str, float]:
    """Return each row's part of the false alarms; together 1."""
    kernels = [row for row in rows if row.name != WHOLE]
    whole = sum(row.share for row in kernels) or 1.0
    parts = {row.name: row.share / whole + 1 / len(kernels) for row in kernels}
    if len(kernels) < len(rows):
        parts[WHOLE] = 2 * _WHOLE_PART / (1 - _WHOLE_PART) if kernels else 1.0
    total = sum(parts.values())
    return {name: part / total for name, part in parts.items()}


def _judged(row: _Row, estimate: _Estimate, level: float, is_certain: bool) -> KernelVerdict:
    beyond = critical(level, estimate.freedom)
    width = beyond * estimate.error
    return KernelVerdict(
        name=row.name,
        verdict="can't tell" if not is_certain else "slower" if estimate.log > 0 else "faster",
        ratio=_exp(estimate.log),
        low=_exp(estimate.log - width),
        high=_exp(estimate.log + width),
        detectable=_exp(_detectable(beyond, estimate)) - 1,
        p50_a_ns=_middle(row.a),
        p50_b_ns=_middle(row.b),
        calls_a=row.calls_a,
        calls_b=row.calls_b,
    )


def _detectable(beyond: float, estimate: _Estimate) -> float:
    """Return the change (as a logarithm) that exceeds `beyond` standard errors with probability `POWER`.

    That is the noncentral t's, by its normal approximation (Abramowitz and Stegun 26.7.10), for the true error: in half
    of all cases the estimated one is below it by the factor that Wilson and Hilferty give for chi-squared's median.
    """
    freedom = estimate.freedom
    error = estimate.error / math.pow(1 - 2 / (9 * freedom), 1.5)
    return error * (beyond * (1 - 1 / (4 * freedom)) + _NORMAL_POWER * math.sqrt(1 + beyond**2 / (2 * freedom)))


def _unjudged(row: _Row) -> KernelVerdict:
    a, b = [one.log for one in row.a if one], [one.log for one in row.b if one]
    return KernelVerdict(
        name=row.name,
        verdict="can't tell",
        ratio=_exp(fmean(b) - fmean(a)) if a and b else None,
        p50_a_ns=_middle(row.a),
        p50_b_ns=_middle(row.b),
        calls_a=row.calls_a,
        calls_b=row.calls_b,
        missing=row.missing,
    )


def _middle(side: Sequence[_Figure | None]) -> float | None:
    known = [one.ns for one in side if one]
    return median(known) if known else None


def _exp(value: float) -> float:
    return math.exp(min(max(value, -_EDGE), _EDGE))


# -- what has to be known beside the verdicts


def _notes(
    rows: Sequence[_Row], small: int, estimates: Mapping[str, _Estimate], sessions: tuple[int, int], paired: bool
) -> Iterator[str]:
    kernels = [row for row in rows if row.name != WHOLE]
    if min(sessions) < FEWEST_SESSIONS:
        yield (
            f"{min(sessions)} session{'s' * (min(sessions) > 1)} on a side cannot tell noise from a change: take at "
            f"least {FEWEST_SESSIONS}, better 5 (`--sessions 5`)"
        )
    elif few := [row for row in kernels if row.name not in estimates and row.missing is None]:
        yield f"not judged, since fewer than {FEWEST_SESSIONS} sessions a side have durations of them: {_named(few)}"
    if not paired:
        yield "the sides were not measured in turns: a change of the droplet in between looks like a change of the code"
    if small:
        yield f"left out: {small} kernel{'s' * (small > 1)} below {LEAST_SHARE:.1%} of the time on both sides"
    if by_mean := [row for row in kernels if row.is_by_mean and row.missing is None]:
        yield f"compared by means, since the files hold sums only: {_named(by_mean)}"
    if zero := [row for row in kernels if row.missing is None and not (any(row.a) and any(row.b))]:
        yield f"durations of zero on a side: {_named(zero)}"
    if other := [row for row in kernels if row.missing is None and _calls_differ(row, sessions)]:
        yield f"launched more often in a session on one side than on the other: {_named(other)}"


def _calls_differ(row: _Row, sessions: tuple[int, int]) -> bool:
    a, b = row.calls_a / sessions[0], row.calls_b / sessions[1]
    return abs(a - b) > 0.01 * max(a, b)


def _named(rows: Sequence[_Row]) -> str:
    shown = [f"`{_short(row.name)}`" for row in rows[:_MOST_NAMED]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_SHOWN else name[: _LONGEST_SHOWN - 1] + "…"
