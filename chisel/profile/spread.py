"""Take the profiles of a pool's droplets together: one ranking, and how far the droplets are apart. Pure.

Counts, totals, means, standard deviations, least and most are exact. Medians and 99th percentiles are exact where one
droplet has a kernel; else they come from the droplets' quantiles. Each droplet's distribution is taken as straight
lines through its 65 quantiles, its 99th percentile and its ends; it is right at those points, so the share of
dispatches below the merged value is off by at most 1/64. And no merged median lies outside the droplets' own medians:
that holds alone where a droplet told its median but no quantiles.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import median

from chisel.figures import QUANTILES, Copies, KernelStats, Part, ProfileResult, Ranking, Spread

FEWEST_DROPLETS = 3
LEAST_APART = 0.03

# For a normal distribution the median absolute deviation is this part of the standard deviation.
_MAD = 0.6745
_P99 = 0.99

Curve = Sequence[tuple[float, float]]
"""A distribution: (ns, share of dispatches up to it), both ascending."""


def spread(results: Sequence[ProfileResult], *, cause: Callable[[str], str | None]) -> tuple[Spread, ...]:
    """Return for each kernel, in rank order over all, how far the droplets' medians are apart and who stands apart.

    Medians are means where a file holds sums only. A droplet is named where its median is off the others' median by
    more than 3 % and by several of their standard deviations, taken robustly: 12 with up to four droplets, 8 with up to
    seven, 6 with more. So a droplet 15 % off others that are 1 % apart is named in 8 of 10 pools of three and in 98 of
    100 of five and more; where nothing but noise sets droplets apart (5 % standard deviation), one is named in 2 of 10
    pools of three or four, in 1 of 10 of more (simulated): a hint, which `cause`, asked for the named droplet, may
    confirm. Of two droplets none is named. Droplets whose profiler is of another generation than most are left out (see
    the notes of `merged`).
    """
    compared = _comparable(results)
    groups = _by_name(one.kernels for one in compared)
    whole = sum(one.total_ns for one in chain.from_iterable(groups.values()))
    whole += sum(one.ranking.rest_ns for one in compared)
    by_host = {one.host: {kernel.name: kernel for kernel in one.kernels if kernel.calls > 0} for one in compared}
    found = [_spread(name, by_host, whole, cause) for name in groups]
    return tuple(sorted(found, key=lambda one: (-one.total_ns, one.name)))


def merged(results: Sequence[ProfileResult]) -> Ranking:
    """Return the droplets' rankings as one: calls and time added, see the module for what is exact.

    Shares are of all droplets' time. `parts` and notes name their droplet; `rest` is the largest of the droplets',
    since which kernels they are is not known. A kernel that one droplet lists and another has behind its listed ones
    counts without the latter's. Droplets that ranked nothing are passed over.
    """
    ranked = _ranked(results)
    if not ranked:
        return Ranking(notes=tuple(_notes(results)))
    rankings = [one.ranking for one in ranked]
    rest_ns = sum(one.rest_ns for one in rankings)
    kernels = _merged_kernels(ranked)
    whole = sum(one.total_ns for one in kernels) + rest_ns
    return Ranking(
        kernels=tuple(replace(one, share=one.total_ns / whole if whole else 0.0) for one in kernels),
        pseudo=_by_time(_merged(parts) for parts in _by_name(one.pseudo for one in rankings).values()),
        parts=tuple(_named(part, one.host) for one in ranked for part in one.ranking.parts),
        copies=_merged_copies(rankings),
        source=", ".join(sorted({one.source for one in rankings if one.source})) or None,
        files=sum(one.files for one in rankings),
        dispatches=sum(one.dispatches for one in rankings),
        rest=max(one.rest for one in rankings),
        rest_ns=rest_ns,
        notes=tuple(_notes(results)),
        stand_in=next((one.stand_in for one in sorted(rankings, key=_stand_in) if one.stand_in), None),
    )


# -- which droplets


def _ranked(results: Sequence[ProfileResult]) -> list[ProfileResult]:
    """Return the droplets that ranked kernels or pseudo rows, in the order of their names."""
    return sorted((one for one in results if one.kernels or one.pseudo), key=lambda one: one.host)


def _comparable(results: Sequence[ProfileResult]) -> list[ProfileResult]:
    """Return the droplets whose profiler is of the generation that most have."""
    ranked = _ranked(results)
    generations = sorted(one.generation for one in ranked)
    usual = max(generations, key=generations.count, default="")
    return [one for one in ranked if one.generation == usual]


def _notes(results: Sequence[ProfileResult]) -> Iterable[str]:
    for one in sorted(results, key=lambda one: one.host):
        yield from (f"{one.host}: {note}" if one.host else note for note in one.ranking.notes)
    compared = _comparable(results)
    others = [one for one in _ranked(results) if one not in compared]
    if others:
        names = ", ".join(f"`{one.host}` ({one.generation or 'unknown'})" for one in others)
        yield (
            f"not compared with the other droplets, since another generation of profiler measured there: {names}; "
            "its times may differ by up to 20 % for the same kernel"
        )


# -- kernels over droplets


def _merged_kernels(results: Sequence[ProfileResult]) -> tuple[KernelStats, ...]:
    return _by_time(_merged(parts) for parts in _by_name(one.kernels for one in results).values())


def _by_name(rankings: Iterable[Iterable[KernelStats]]) -> dict[str, list[KernelStats]]:
    found: dict[str, list[KernelStats]] = {}
    for kernel in chain.from_iterable(rankings):
        if kernel.calls > 0:
            found.setdefault(kernel.name, []).append(kernel)
    return found


def _by_time(kernels: Iterable[KernelStats]) -> tuple[KernelStats, ...]:
    return tuple(sorted(kernels, key=lambda one: (-one.total_ns, one.name)))


def _merged(parts: Sequence[KernelStats]) -> KernelStats:
    """Return one kernel's figures over droplets; its share is left to the caller."""
    if len(parts) == 1:
        return replace(parts[0], drift=())
    calls, total = sum(one.calls for one in parts), sum(one.total_ns for one in parts)
    curves = [(one.calls, curve) for one in parts if (curve := _curve(one)) is not None]
    mixed = curves if len(curves) == len(parts) else []
    return KernelStats(
        name=parts[0].name,
        calls=calls,
        total_ns=total,
        mean_ns=total / calls,
        p50_ns=_between(mixed, 0.5, [one.p50_ns for one in parts]),
        p99_ns=_between(mixed, _P99, [one.p99_ns for one in parts]),
        min_ns=_if_all(min, [one.min_ns for one in parts]),
        max_ns=_if_all(max, [one.max_ns for one in parts]),
        share=0.0,
        std_ns=_merged_std(parts, total / calls),
        launch=max(parts, key=lambda one: (one.calls, repr(one.launch))).launch,
        quantiles=_mixed_quantiles(mixed) if all(one.quantiles for one in parts) else (),
        counters=_merged_counters(parts),
    )


def _merged_std(parts: Sequence[KernelStats], mean_ns: float) -> float | None:
    """Return the sample's standard deviation of all dispatches: squares within the droplets and between them add up."""
    if any(one.calls > 1 and one.std_ns is None for one in parts):
        return None
    within = (one.std_ns**2 * (one.calls - 1) for one in parts if one.std_ns is not None)
    between = (one.calls * (one.mean_ns - mean_ns) ** 2 for one in parts)
    calls = sum(one.calls for one in parts)
    return math.sqrt(math.fsum(chain(within, between)) / (calls - 1)) if calls > 1 else None


def _merged_counters(parts: Sequence[KernelStats]) -> dict[str, float]:
    """Return each counter's mean per dispatch, over the droplets that counted it."""
    names = sorted({name for one in parts for name in one.counters})
    found = {}
    for name in names:
        counted = [one for one in parts if name in one.counters]
        found[name] = math.fsum(one.calls * one.counters[name] for one in counted) / sum(one.calls for one in counted)
    return found


def _if_all(choose: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if len(known) == len(values) else None


# -- distributions over droplets


def _curve(kernel: KernelStats) -> Curve | None:
    """Return a kernel's distribution on one droplet; None where not even its median is known."""
    ends = [(kernel.min_ns, 0.0), (kernel.p50_ns, 0.5), (kernel.p99_ns, _P99), (kernel.max_ns, 1.0)]
    points = [(ns, share) for ns, share in ends if ns is not None]
    if len(kernel.quantiles) == QUANTILES + 1:
        points += [(ns, number / QUANTILES) for number, ns in enumerate(kernel.quantiles)]
    elif kernel.p50_ns is None:
        return None
    points.sort(key=lambda point: (point[1], point[0]))
    highest = -math.inf
    return [((highest := max(highest, ns)), share) for ns, share in points]


def _below(curve: Curve, ns: float) -> float:
    """Return the share of dispatches that take up to so long."""
    place = bisect_right(curve, (ns, math.inf))
    if place == 0:
        return 0.0
    if place == len(curve):
        return 1.0
    (low, share), (high, more) = curve[place - 1], curve[place]
    return share + (more - share) * (ns - low) / (high - low)


def _mixed(curves: Sequence[tuple[int, Curve]], places: Sequence[float], fraction: float) -> float:
    """Return a quantile of all dispatches together; `places` are all durations at which a curve has a point.

    Between two neighbouring ones the mixture is a straight line, so the right pair is searched and the
    line followed; where it jumps, the jump is the answer.
    """
    wanted = fraction * sum(weight for weight, _ in curves)

    def weight_below(ns: float) -> float:
        return math.fsum(weight * _below(curve, ns) for weight, curve in curves)

    low, high = 0, len(places) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if weight_below(places[middle]) >= wanted else (middle + 1, high)
    if low == 0:
        return places[0]
    before, after = places[low - 1], places[low]
    below, above = weight_below(before), math.fsum(weight * _just_below(curve, after) for weight, curve in curves)
    return (
        after if above <= wanted or above <= below else before + (after - before) * (wanted - below) / (above - below)
    )


def _just_below(curve: Curve, ns: float) -> float:
    """Return the share of dispatches that take less than so long."""
    place = bisect_right(curve, (ns, -math.inf))
    if place == 0:
        return 0.0
    if place == len(curve):
        return 1.0
    (low, share), (high, more) = curve[place - 1], curve[place]
    return share + (more - share) * (ns - low) / (high - low)


def _between(curves: Sequence[tuple[int, Curve]], fraction: float, own: Sequence[float | None]) -> float | None:
    """Return a quantile of all dispatches, never outside the droplets' own ones."""
    known = [ns for ns in own if ns is not None]
    if not curves or len(known) < len(own):
        return None
    return min(max(_mixed(curves, _places(curves), fraction), min(known)), max(known))


def _mixed_quantiles(curves: Sequence[tuple[int, Curve]]) -> tuple[float, ...]:
    places = _places(curves)
    found = [_mixed(curves, places, number / QUANTILES) for number in range(QUANTILES + 1)] if curves else []
    return tuple(sorted(found))


def _places(curves: Sequence[tuple[int, Curve]]) -> list[float]:
    return sorted({ns for _, curve in curves for ns, _ in curve})


# -- droplets apart


def _spread(
    name: str, by_host: Mapping[str, Mapping[str, KernelStats]], whole_ns: int, cause: Callable[[str], str | None]
) -> Spread:
    own = {host: kernel for host, kernels in by_host.items() if (kernel := kernels.get(name)) is not None}
    total = sum(one.total_ns for one in own.values())
    medians = _medians(own)
    outlier = outlier_of(medians)
    fastest = min(medians.values())
    return Spread(
        name=name,
        calls=sum(one.calls for one in own.values()),
        total_ns=total,
        share=total / whole_ns if whole_ns else 0.0,
        p50_ns=medians,
        spread=max(medians.values()) / fastest - 1 if fastest > 0 else 0.0,
        outlier=outlier,
        cause=None if outlier is None else cause(outlier),
    )


def _medians(own: Mapping[str, KernelStats]) -> dict[str, float]:
    """Return each droplet's median, or all their means where one droplet does not know its median."""
    medians = {host: one.p50_ns for host, one in own.items() if one.p50_ns is not None}
    return medians if len(medians) == len(own) else {host: one.mean_ns for host, one in own.items()}


def outlier_of(medians: Mapping[str, float]) -> str | None:
    """Name the droplet that stands apart from the others by most (see `spread`); None where none does."""
    if len(medians) < FEWEST_DROPLETS:
        return None
    apart = {host: _apart(host, medians) for host in medians}
    farthest = max(sorted(apart), key=lambda host: apart[host])
    return farthest if apart[farthest] > 0 else None


def _apart(host: str, medians: Mapping[str, float]) -> float:
    """Return by which part a droplet is off the others' median; 0 where that is within their own spread."""
    others = [ns for other, ns in medians.items() if other != host]
    middle = median(others)
    if middle <= 0:
        return 0.0
    deviation = median(abs(ns - middle) for ns in others) / _MAD
    off = abs(medians[host] - middle) / middle
    return off if off > max(LEAST_APART, _deviations(len(medians)) * deviation / middle) else 0.0


def _deviations(droplets: int) -> float:
    return 12.0 if droplets <= 4 else 8.0 if droplets <= 7 else 6.0


# -- what else a ranking holds


def _named(part: Part, host: str) -> Part:
    return replace(part, name=f"{host} {part.name}") if host else part


def _merged_copies(rankings: Sequence[Ranking]) -> tuple[Copies, ...]:
    found: dict[str, Copies] = {}
    for one in chain.from_iterable(ranking.copies for ranking in rankings):
        known = found.get(one.name, Copies(one.name, 0, 0, 0))
        size = None if known.bytes is None or one.bytes is None else known.bytes + one.bytes
        found[one.name] = Copies(one.name, known.calls + one.calls, known.total_ns + one.total_ns, size)
    return tuple(sorted(found.values(), key=lambda one: (-one.total_ns, one.name)))


def _stand_in(ranking: Ranking) -> str:
    return ranking.stand_in or ""
