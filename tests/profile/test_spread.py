"""Droplets taken together: one ranking, how far apart they are, and who stands apart."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.figures import QUANTILES, Copies, KernelStats, Launch, Part, ProfileResult, Ranking
from chisel.profile.spread import merged, outlier_of, spread
from tests.profile.noise import kernel


def stats(name: str, durations: Sequence[int]) -> KernelStats:
    ordered = sorted(durations)
    place = (len(ordered) - 1) * 0.99
    low = int(place)
    p99 = ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)
    return replace(kernel(name, durations), p99_ns=p99, std_ns=stdev(durations) if len(durations) > 1 else None)


def droplet(host: str, *kernels: KernelStats, generation: str = "rocprofv3/rocpd", **ranking: Any) -> ProfileResult:
    whole = Ranking(kernels=kernels, dispatches=sum(one.calls for one in kernels), files=1, **ranking)
    return ProfileResult(host, 0, whole, generation=generation)


def no_cause(host: str) -> str | None:
    return None


# -- one ranking

durations = st.lists(st.integers(1, 10**9), min_size=1, max_size=300)


@settings(max_examples=80, deadline=None)
@given(st.lists(durations, min_size=1, max_size=4))
def test_the_merged_figures_are_those_of_all_dispatches(parts: list[list[int]]) -> None:
    (found,) = merged([droplet(f"d{number}", stats("k", part)) for number, part in enumerate(parts)]).kernels
    pooled = sorted(ns for part in parts for ns in part)
    assert (found.calls, found.total_ns, found.share) == (len(pooled), sum(pooled), 1.0)
    assert (found.min_ns, found.max_ns) == (pooled[0], pooled[-1])
    assert found.mean_ns == pytest.approx(fmean(pooled))
    if len(pooled) == 1:
        assert found.std_ns is None
    else:
        assert found.std_ns == pytest.approx(stdev(pooled), rel=1e-6, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.lists(durations, min_size=2, max_size=4))
def test_merged_quantiles_keep_their_bound(parts: list[list[int]]) -> None:
    kernels = [stats("k", part) for part in parts]
    (found,) = merged([droplet(f"d{number}", one) for number, one in enumerate(kernels)]).kernels
    pooled = sorted(ns for part in parts for ns in part)
    slack = 1 / 64 + len(parts) / len(pooled)  # quantiles between dispatches are up to one dispatch of each off
    wanted = [(0.5, found.p50_ns), (0.99, found.p99_ns)]
    wanted += [(number / QUANTILES, ns) for number, ns in enumerate(found.quantiles)]
    assert len(wanted) == QUANTILES + 3
    for fraction, ns in wanted:
        assert ns is not None
        below, upto = bisect_left(pooled, ns - 1e-6), bisect_right(pooled, ns + 1e-6)
        assert below / len(pooled) - slack <= fraction <= upto / len(pooled) + slack
    medians = [one.p50_ns or 0.0 for one in kernels]
    assert min(medians) <= (found.p50_ns or 0.0) <= max(medians)
    assert list(found.quantiles) == sorted(found.quantiles)


def test_a_percentile_between_the_quantiles_is_not_guessed_from_the_longest() -> None:
    source = random.Random(1)
    parts = [[round(1e4 * source.paretovariate(1.5)) for _ in range(5000)] for _ in range(3)]
    (found,) = merged([droplet(f"d{number}", stats("k", part)) for number, part in enumerate(parts)]).kernels
    pooled = sorted(ns for part in parts for ns in part)
    assert found.p99_ns == pytest.approx(pooled[round(0.99 * len(pooled))], rel=0.03)
    assert found.p50_ns == pytest.approx(pooled[len(pooled) // 2], rel=0.01)


def test_the_same_distribution_stays_what_it_is() -> None:
    one = stats("k", [round(1e4 * random.Random(2).lognormvariate(0, 1)) + k for k in range(1000)])
    (found,) = merged([droplet("a", one), droplet("b", one)]).kernels
    assert found.quantiles == pytest.approx(one.quantiles)
    assert (found.p50_ns, found.p99_ns) == (pytest.approx(one.p50_ns), pytest.approx(one.p99_ns))
    (alone,) = merged([droplet("a", replace(one, drift=((5, 1.0),)))]).kernels
    assert alone == replace(one, share=1.0)


def test_two_lumps_far_apart_have_no_median_made_up_between_them() -> None:
    kernels = [stats("k", [100] * 30), stats("k", [900] * 10)]
    (found,) = merged([droplet("a", kernels[0]), droplet("b", kernels[1])]).kernels
    assert (found.p50_ns, found.p99_ns) == (100, 900)


def sums(name: str, calls: int, total: int, **known: Any) -> KernelStats:
    return replace(KernelStats(name, calls, total, total / calls, None, None, None, None, 0.0), **known)


def test_what_one_droplet_does_not_know_is_not_known_of_all() -> None:
    known = stats("k", [100, 200, 300])
    (found,) = merged([droplet("a", known), droplet("b", sums("k", 3, 900))]).kernels
    assert (found.calls, found.total_ns, found.mean_ns) == (6, 1500, 250)
    assert (found.p50_ns, found.p99_ns, found.min_ns, found.max_ns, found.std_ns, found.quantiles) == (None,) * 5 + (
        (),
    )
    coarse = sums("k", 3, 900, p50_ns=300.0, p99_ns=310.0, min_ns=290.0, max_ns=310.0, std_ns=10.0)
    (found,) = merged([droplet("a", known), droplet("b", coarse)]).kernels
    assert 200 <= (found.p50_ns or 0) <= 300
    assert found.quantiles == ()
    assert found.std_ns == pytest.approx((2 * 100**2 + 2 * 10**2 + 6 * 50**2) ** 0.5 / 5**0.5)


def test_shares_order_and_counts_are_over_all_droplets() -> None:
    launch = Launch(workgroup=(256, 1, 1), vgprs=64)
    a = droplet(
        "a", sums("hot", 1, 600), sums("late", 2, 100, counters={"hits": 4.0}),
        pseudo=(sums("<barrier packet>", 1, 50),), rest=3, rest_ns=100, source="rocpd", notes=("`x.db` is cut",),
        copies=(Copies("HtoD", 1, 10, 64),), parts=(Part("gpu", "GPU 0", 3, 700),),
    )  # fmt: skip
    b = droplet(
        "b", sums("late", 6, 700, counters={"hits": 8.0}, launch=launch), pseudo=(sums("<barrier packet>", 2, 70),),
        rest=2, source="trace", copies=(Copies("HtoD", 2, 30, None), Copies("DtoH", 1, 50, 8)), stand_in="a player",
    )  # fmt: skip
    found = merged([b, a, ProfileResult("c", 1, error="unreachable")])
    assert [(one.name, one.calls, one.total_ns, one.share) for one in found.kernels] == [
        ("late", 8, 800, 800 / 1500), ("hot", 1, 600, 600 / 1500),
    ]  # fmt: skip
    assert (found.kernels[0].counters, found.kernels[0].launch) == ({"hits": 7.0}, launch)
    assert [(one.calls, one.total_ns, one.share) for one in found.pseudo] == [(3, 120, 0.0)]
    assert (found.rest, found.rest_ns, found.files, found.dispatches) == (3, 100, 2, 9)
    assert (found.source, found.stand_in) == ("rocpd, trace", "a player")
    assert found.notes == ("a: `x.db` is cut",)
    assert found.copies == (Copies("DtoH", 1, 50, 8), Copies("HtoD", 3, 40, None))
    assert found.parts == (Part("gpu", "a GPU 0", 3, 700),)


def test_nothing_ranked_is_an_empty_ranking_with_its_notes() -> None:
    assert merged([]) == Ranking()
    assert merged([ProfileResult("a", 1, Ranking(notes=("no files",)))]).notes == ("a: no files",)
    assert spread([], cause=no_cause) == ()
    assert merged([droplet("a", sums("k", 1, 0))]).kernels[0].share == 0.0


# -- droplets apart


@pytest.mark.parametrize(
    ("medians", "outlier"),
    [
        ([100, 120], None),
        ([100, 100, 120], 2),
        ([100, 100.2, 90], 2),
        ([100, 101, 115], 2),
        ([100, 104, 108], None),
        ([100, 100, 102.9], None),
        ([100, 100, 100, 103.1], 3),
        ([100, 99, 101, 100, 115], 4),
        ([115, 99, 101, 100, 85], 0),
        ([100, 99, 101, 100, 110, 130], 5),
        ([90, 95, 100, 105, 110, 115], None),
        ([100] * 7 + [200, 300], 8),
        ([0, 0, 5], None),
        ([], None),
    ],
)
def test_who_stands_apart(medians: list[float], outlier: int | None) -> None:
    named = {f"d{number}": float(ns) for number, ns in enumerate(medians)}
    assert outlier_of(named) == (None if outlier is None else f"d{outlier}")


def test_the_outlier_is_named_with_its_cause_and_nobody_else_is_asked_for() -> None:
    asked = []

    def cause(host: str) -> str:
        asked.append(host)
        return "power cap: 749 of 750 W"

    levels = {"a": 1.0, "b": 1.01, "c": 1.2, "d": 0.99}
    results = [
        droplet(host, stats("k", [round(1e5 * level)] * 9), stats("same", [5000] * 9)) for host, level in levels.items()
    ]
    k, same = spread(results, cause=cause)
    assert (k.name, k.outlier, k.cause, same.outlier, same.cause) == ("k", "c", "power cap: 749 of 750 W", None, None)
    assert asked == ["c"]
    assert k.p50_ns == {host: round(1e5 * level) for host, level in levels.items()}
    assert k.spread == pytest.approx(1.2 / 0.99 - 1)
    assert same.spread == 0
    assert k.share + same.share == pytest.approx(1)
    assert (k.calls, k.total_ns) == (36, 9 * 420_000)


def test_noise_seldom_names_anybody() -> None:
    source = random.Random(3)
    for droplets, deviation, most in ((8, 0.05, 0.15), (5, 0.05, 0.2), (3, 0.05, 0.25), (3, 0.01, 0.03)):
        pools = [{str(k): 1 + source.gauss(0, deviation) for k in range(droplets)} for _ in range(400)]
        assert sum(outlier_of(pool) is not None for pool in pools) <= most * 400


def test_a_throttled_droplet_is_found_in_noise() -> None:
    source = random.Random(4)
    for droplets, least in ((3, 0.7), (5, 0.95), (8, 0.97)):
        pools = [{str(k): 1 + source.gauss(0, 0.01) + 0.15 * (k == 0) for k in range(droplets)} for _ in range(200)]
        assert sum(outlier_of(pool) == "0" for pool in pools) >= least * 200


def test_another_generation_of_profiler_is_not_compared() -> None:
    results = [droplet(host, stats("k", [1000] * 5)) for host in "ab"]
    results.append(droplet("c", stats("k", [1200] * 5), stats("other", [7]), generation="rocprof v1"))
    (found,) = spread(results, cause=no_cause)
    assert list(found.p50_ns) == ["a", "b"]
    ranking = merged(results)
    assert ranking.kernels[0].calls == 15
    assert any("`c` (rocprof v1)" in note and "20 %" in note for note in ranking.notes)


def test_means_take_the_place_of_medians_for_all_droplets_or_none() -> None:
    skewed = stats("k", [100, 100, 100, 500])
    (found,) = spread([droplet("a", skewed), droplet("b", sums("k", 4, 800))], cause=no_cause)
    assert found.p50_ns == {"a": 200, "b": 200}


kernels_by_host = st.dictionaries(
    st.sampled_from("abcdef"), st.dictionaries(st.sampled_from(["k", "m", "n"]), durations, max_size=3), max_size=6
)


@settings(max_examples=50, deadline=None)
@given(kernels_by_host, st.randoms(use_true_random=False))
def test_the_order_of_droplets_does_not_matter(
    found: Mapping[str, Mapping[str, list[int]]], source: random.Random
) -> None:
    results = [droplet(host, *(stats(name, ns) for name, ns in own.items())) for host, own in found.items()]
    shuffled = source.sample(results, len(results))
    assert merged(results) == merged(shuffled)
    assert spread(results, cause=no_cause) == spread(shuffled, cause=no_cause)


@settings(max_examples=50, deadline=None)
@given(durations, st.integers(1, 8))
def test_identical_droplets_are_not_apart(ns: list[int], count: int) -> None:
    results = [droplet(str(number), stats("k", ns)) for number in range(count)]
    (found,) = spread(results, cause=no_cause)
    assert (found.spread, found.outlier, found.cause) == (0, None, None)
    (whole,) = merged(results).kernels
    assert whole.p50_ns == pytest.approx(stats("k", ns).p50_ns)
