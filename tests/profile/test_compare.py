"""Verdicts over sessions: how often they cry wolf, what they find, and what they say of odd input."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist, fmean, median, variance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.errors import UsageError
from chisel.figures import Comparison, KernelStats, KernelVerdict, Ranking
from chisel.profile.compare import REST, WHOLE, Session, compare, session_of, slower_than
from chisel.profile.student import critical, two_sided
from tests.profile.noise import MILD, ROUGH, TREND, TWO_STATES, WANDERING, Lab, Noise, kernel

Side = Sequence[Session]


def judged(a: Side, b: Side, **how: Any) -> Comparison:
    return compare(a, b, label_a="before", label_b="after", **how)


def by_name(found: Comparison) -> Mapping[str, KernelVerdict]:
    return {one.name: one for one in found.verdicts}


def cries_wolf(found: Comparison) -> bool:
    return any(one.verdict != "can't tell" for one in found.verdicts)


def side(*medians: float, name: str = "k", calls: int = 20) -> list[Session]:
    """Make sessions of one kernel whose dispatches lie 1 % around a median."""
    return [
        {name: kernel(name, [ns * (1 + 0.01 * (k / (calls - 1 or 1) - 0.5)) for k in range(calls)])} for ns in medians
    ]


# -- the promise: false alarms


def too_many_alarms(comparisons: int, rate: float = 0.05) -> int:
    """Return the number of alarms that is reached less than once in a thousand times if one's chance is `rate`."""
    left = 1.0
    for alarms in range(comparisons + 1):
        if left < 0.001:
            return alarms
        left -= math.comb(comparisons, alarms) * rate**alarms * (1 - rate) ** (comparisons - alarms)
    raise AssertionError


def test_the_bound_on_alarms_is_the_binomials() -> None:
    assert too_many_alarms(300) == 29  # 28 or more: 0.0013, 29 or more: 0.0006


@pytest.mark.parametrize(
    ("noise", "order", "sessions", "kernels", "comparisons"),
    [
        (MILD, "blocks", 5, 4, 150),
        (ROUGH, "blocks", 5, 4, 150),
        (ROUGH, "turns", 8, 2, 150),
        (MILD, "blocks", 3, 1, 150),
        (TWO_STATES, "blocks", 5, 1, 150),
        (WANDERING, "turns", 5, 4, 150),
        (TREND, "balanced", 6, 3, 150),
        (Noise(between=0.05, common=0.0), "blocks", 5, 20, 40),
        (Noise(between=0.05, common=1.0), "turns", 5, 20, 40),
    ],
    ids=["mild", "rough", "rough pairs", "three sessions", "two states", "wandering", "trend", "apart", "together"],
)
def test_identical_code_is_called_different_at_most_once_in_twenty(
    noise: Noise, order: str, sessions: int, kernels: int, comparisons: int
) -> None:
    lab = Lab.of(5, noise, kernels)
    found = (judged(*lab.sides(sessions, order=order), paired=order != "blocks") for _ in range(comparisons))
    assert sum(map(cries_wolf, found)) < too_many_alarms(comparisons)


def test_the_usual_test_over_dispatches_cries_wolf_on_the_same_data() -> None:
    for noise in (MILD, ROUGH):
        lab = Lab.of(5, noise, kernels=1)
        alarms = 0
        for _ in range(100):
            a, b = lab.dispatches(5), lab.dispatches(5)
            alarms += mann_whitney([ns for one in a for ns in one], [ns for one in b for ns in one]) < 0.05
        assert alarms > 50


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value by the normal approximation; ties do not matter among continuous durations."""
    ranked = sorted([(ns, 0) for ns in a] + [(ns, 1) for ns in b])
    ranks = sum(rank for rank, (_, of_b) in enumerate(ranked, 1) if of_b)
    m, n = len(a), len(b)
    mean, deviation = n * (m + n + 1) / 2, math.sqrt(m * n * (m + n + 1) / 12)
    return 2 * NormalDist().cdf(-abs(ranks - mean) / deviation)


def test_the_usual_test_is_right_where_sessions_do_not_matter() -> None:
    lab = Lab.of(5, Noise(between=0.0, drift=0.0), kernels=1)
    alarms = sum(mann_whitney(lab.dispatches(1)[0], lab.dispatches(1)[0]) < 0.05 for _ in range(200))
    assert alarms < too_many_alarms(200)


# -- what is found


@pytest.mark.parametrize(
    ("noise", "order", "sessions", "kernels", "effect", "least", "most"),
    [
        (MILD, "blocks", 5, 1, 0.05, 0.70, 1.0),
        (MILD, "balanced", 7, 1, 0.05, 0.80, 1.0),
        (MILD, "blocks", 10, 12, 0.05, 0.85, 1.0),
        (MILD, "blocks", 5, 12, 0.10, 0.85, 1.0),
        (WANDERING, "balanced", 10, 8, 0.05, 0.85, 1.0),
        (ROUGH, "blocks", 10, 4, 0.20, 0.85, 1.0),
        (ROUGH, "blocks", 5, 4, 0.05, 0.0, 0.30),
    ],
)
def test_a_true_change_is_found_as_often_as_is_said(
    noise: Noise, order: str, sessions: int, kernels: int, effect: float, least: float, most: float
) -> None:
    lab = Lab.of(6, noise, kernels)
    slower = 0
    seen = []
    for _ in range(40):
        a, b = lab.sides(sessions, {0: 1 + effect}, order=order)
        found = by_name(judged(a, b, paired=order != "blocks"))["k0"]
        slower += found.verdict == "slower"
        assert found.detectable is not None
        seen.append(found.detectable)
    assert least <= slower / 40 <= most
    assert (median(seen) <= effect) == (slower / 40 >= 0.75)


def test_what_is_said_to_be_detectable_is_found_four_times_in_five() -> None:
    for noise in (MILD, ROUGH):
        lab = Lab.of(7, noise, kernels=2)
        seen = [by_name(judged(*lab.sides(8)))["k1"].detectable or math.inf for _ in range(60)]
        effect = 1 + median(seen)
        found = sum(by_name(judged(*lab.sides(8, {1: effect})))["k1"].verdict == "slower" for _ in range(100))
        assert 64 <= found <= 92  # 78 on average: `detectable` is an estimate from 8 sessions


def test_turns_see_through_a_wandering_droplet_that_blocks_mistake_for_a_change() -> None:
    lab = Lab.of(8, WANDERING, kernels=2)
    blocks = sum(cries_wolf(judged(*lab.sides(8, order="blocks"))) for _ in range(60))
    turns = sum(cries_wolf(judged(*lab.sides(8, order="turns"), paired=True)) for _ in range(60))
    assert turns <= 9 < 25 <= blocks


def test_a_trend_favours_the_side_that_always_goes_first() -> None:
    lab = Lab.of(8, TREND, kernels=1)
    turns = sum(cries_wolf(judged(*lab.sides(8, order="turns"), paired=True)) for _ in range(40))
    balanced = sum(cries_wolf(judged(*lab.sides(8, order="balanced"), paired=True)) for _ in range(40))
    assert balanced <= 7 < 30 <= turns


def test_time_that_moved_between_kernels_is_judged_in_sum() -> None:
    lab = Lab.of(9, Noise(between=0.005), kernels=2)
    a, b = lab.sides(8)
    moved = 0.2 * b[0]["k0"].total_ns
    b = [{"k0": scaled(one["k0"], 0.8), "k1": scaled(one["k1"], 1 + moved / b[0]["k1"].total_ns)} for one in b]
    found = by_name(judged(a, b))
    assert [found[name].verdict for name in (WHOLE, "k0", "k1")] == ["can't tell", "faster", "slower"]


def scaled(one: KernelStats, factor: float) -> KernelStats:
    return replace(
        one,
        total_ns=round(one.total_ns * factor),
        mean_ns=one.mean_ns * factor,
        p50_ns=None if one.p50_ns is None else one.p50_ns * factor,
        quantiles=tuple(ns * factor for ns in one.quantiles),
    )


# -- properties

durations = st.floats(100.0, 1e9)
medians = st.lists(durations, min_size=3, max_size=6)


@settings(max_examples=60, deadline=None)
@given(medians, medians, st.integers(0, 5))
def test_swapping_the_sides_inverts_the_verdict(a: list[float], b: list[float], seed: int) -> None:
    one, other = judged(side(*a), side(*b), seed=seed), judged(side(*b), side(*a), seed=seed)
    assert_inverted(one, other)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(durations, durations), min_size=3, max_size=6))
def test_swapping_pairs_inverts_the_verdict(pairs: list[tuple[float, float]]) -> None:
    a, b = side(*(one for one, _ in pairs)), side(*(other for _, other in pairs))
    assert_inverted(judged(a, b, paired=True), judged(b, a, paired=True))


def assert_inverted(one: Comparison, other: Comparison) -> None:
    opposite = {"faster": "slower", "slower": "faster", "can't tell": "can't tell"}
    for here, there in zip(one.verdicts, other.verdicts, strict=True):
        assert (here.name, here.verdict) == (there.name, opposite[there.verdict])
        for value, inverse in ((here.ratio, there.ratio), (here.low, there.high), (here.high, there.low)):
            assert value is not None and inverse is not None  # noqa: PT018 - one thing: both are told
            assert value * inverse == pytest.approx(1, rel=1e-6)
        assert here.detectable == pytest.approx(there.detectable)
        assert (here.p50_a_ns, here.calls_a) == (there.p50_b_ns, there.calls_b)


@settings(max_examples=40, deadline=None)
@given(medians, medians, st.floats(0.1, 10), st.booleans())
def test_scaling_a_side_scales_the_ratio(a: list[float], b: list[float], factor: float, paired: bool) -> None:
    a, b = a[: min(len(a), len(b))], b[: min(len(a), len(b))]
    times = [{name: scaled(one, factor) for name, one in session.items()} for session in side(*b)]
    before, after = (judged(side(*a), other, paired=paired) for other in (side(*b), times))
    assert ratio(after) == pytest.approx(factor * ratio(before), rel=1e-6)


def ratio(found: Comparison) -> float:
    value = by_name(found)["k"].ratio
    assert value is not None
    return value


@settings(max_examples=40, deadline=None)
@given(medians, medians, st.randoms(use_true_random=False))
def test_the_order_of_sessions_does_not_matter(a: list[float], b: list[float], source: random.Random) -> None:
    one, other = side(*a), side(*b)
    shuffled = source.sample(one, len(one)), source.sample(other, len(other))
    assert_same(judged(one, other), judged(*shuffled))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(durations, durations), min_size=3, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pairs: list[tuple[float, float]], source: random.Random) -> None:
    def ordered(pairs: list[tuple[float, float]]) -> Comparison:
        return judged(side(*(one for one, _ in pairs)), side(*(other for _, other in pairs)), paired=True)

    assert_same(ordered(pairs), ordered(source.sample(pairs, len(pairs))))


def assert_same(one: Comparison, other: Comparison) -> None:
    for here, there in zip(one.verdicts, other.verdicts, strict=True):
        assert (here.name, here.verdict) == (there.name, there.verdict)
        assert (here.low, here.high) == (pytest.approx(there.low), pytest.approx(there.high))


def test_the_seed_decides() -> None:
    a, b = Lab.of(1, ROUGH).sides(5)
    assert judged(a, b, seed=1) == judged(a, b, seed=1)
    assert judged(a, b, seed=1) != judged(a, b, seed=2)


def test_a_row_does_not_depend_on_which_others_there_are() -> None:
    a, b = Lab.of(1, ROUGH).sides(5)
    alone = [[{"k3": session["k3"]} for session in one] for one in (a, b)]
    assert ratio_of(judged(*alone), "k3") == ratio_of(judged(a, b), "k3")


def ratio_of(found: Comparison, name: str) -> float | None:
    return by_name(found)[name].ratio


def test_the_interval_is_the_one_the_verdict_was_made_on() -> None:
    for seed in range(20):
        a, b = Lab.of(seed, MILD).sides(6, {0: 1.04, 3: 0.95, 5: 1.1})
        for one in judged(a, b).verdicts:
            assert one.low is not None and one.high is not None and one.ratio is not None  # noqa: PT018
            assert one.low < one.ratio < one.high
            told = "slower" if one.low > 1 else "faster" if one.high < 1 else "can't tell"
            assert one.verdict == told


def test_twenty_kernels_of_ten_sessions_take_less_than_two_seconds() -> None:
    a, b = Lab.of(1, ROUGH, kernels=20).sides(10)
    start = time.process_time()
    judged(a, b)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("sessions", [3, 5, 10])
def test_sessions_whose_medians_are_certain_give_welchs_interval(sessions: int) -> None:
    source = random.Random(sessions)
    widths = []
    for _ in range(40):
        a, b = ([1e6 * source.lognormvariate(0, 0.05) for _ in range(sessions)] for _ in range(2))
        found = by_name(judged(*(side(*ns, calls=1) for ns in (a, b))))["k"]
        parts = [variance(map(math.log, ns)) / sessions for ns in (a, b)]
        freedom = sum(parts) ** 2 / (sum(part**2 for part in parts) / (sessions - 1))
        assert found.high is not None and found.low is not None  # noqa: PT018 - one thing: the interval is told
        level = 0.8 * 0.045  # of the two rows, the kernel's
        widths.append(math.log(found.high / found.low) / (2 * critical(level, freedom) * math.sqrt(sum(parts))))
    assert 0.98 < fmean(widths) < 1.06


# -- what is shown


def test_rows_come_in_the_order_of_time_and_the_small_are_left_out() -> None:
    def session(**totals: int) -> dict[str, KernelStats]:
        return {name: KernelStats(name, 1, ns, ns, ns, ns, ns, ns, 0.0) for name, ns in totals.items()}

    a = [session(hot=10**9, tiny=10**5, grown=10**5, gone=10**7, some=10**8) for _ in range(3)]
    b = [session(hot=10**9, tiny=10**5, grown=10**7, new=10**7, some=10**8) for _ in range(3)]
    found = judged(a, b)
    assert [(one.name, one.missing) for one in found.verdicts] == [
        (WHOLE, None), ("hot", None), ("some", None), ("grown", None), ("gone", "b"), ("new", "a"),
    ]  # fmt: skip
    assert by_name(found)["gone"].ratio is None
    assert by_name(found)["gone"].calls_a == 3
    assert by_name(found)["gone"].p50_b_ns is None
    assert by_name(found)["grown"].verdict == "slower"
    assert any("1 kernel below 0.1% of the time on both sides" in note for note in found.notes)
    assert (found.label_a, found.label_b, found.sessions_a, found.sessions_b) == ("before", "after", 3, 3)


def test_a_session_keeps_the_time_of_kernels_that_are_not_listed() -> None:
    listed = kernel("k", [100.0] * 10)
    ranking = Ranking(kernels=(listed,), rest=4, rest_ns=9000)
    session = session_of(ranking)
    assert session["k"] == listed
    assert session[REST].total_ns == 9000
    found = judged([session] * 3, [session_of(Ranking(kernels=(listed,)))] * 3)
    assert [one.name for one in found.verdicts] == [WHOLE, "k"]
    assert ratio_of(found, WHOLE) == pytest.approx(0.1)


def test_sessions_of_sides_that_were_not_measured_in_turns_are_warned_of() -> None:
    a = side(100.0, 101.0, 99.0)
    assert any("not measured in turns" in note for note in judged(a, a).notes)
    assert judged(a, a, paired=True).notes == ()


def test_a_different_number_of_launches_is_said() -> None:
    found = judged(side(1e4, 1.1e4, 1e4), side(1e4, 1.1e4, 1e4, calls=10), paired=True)
    assert found.notes == ("launched more often in a session on one side than on the other: `k`",)
    assert not judged(side(1e4, 1.1e4, 1e4, 1e4), side(1e4, 1.1e4, 1e4)).notes[1:]


# -- odd input


@pytest.mark.parametrize(("sessions_a", "sessions_b"), [(1, 1), (1, 8), (8, 1), (2, 5)])
def test_too_few_sessions_never_tell(sessions_a: int, sessions_b: int) -> None:
    found = judged(side(*[100.0] * sessions_a), side(*[900.0] * sessions_b))
    for one in found.verdicts:
        assert (one.verdict, one.detectable, one.low, one.high) == ("can't tell", None, None, None)
        assert one.ratio == pytest.approx(9)
    assert any("`--sessions 5`" in note for note in found.notes)
    assert not slower_than(found, 5)


def test_no_session_and_unmatched_pairs_are_refused() -> None:
    with pytest.raises(UsageError, match="no profiling session of `before`"):
        judged([], side(1.0))
    with pytest.raises(UsageError, match="no profiling session of `after`"):
        judged(side(1.0), [])
    with pytest.raises(UsageError, match="there are 2 and 1"):
        judged(side(1.0, 2.0), side(1.0), paired=True)


def test_durations_of_zero_are_no_durations() -> None:
    found = judged(side(*[0.0] * 5), side(*[100.0] * 5))
    assert [(one.name, one.verdict, one.ratio) for one in found.verdicts] == [
        (WHOLE, "can't tell", None), ("k", "can't tell", None),
    ]  # fmt: skip
    assert any("durations of zero on a side: `k`" in note for note in found.notes)
    assert judged(side(*[0.0] * 5), side(*[0.0] * 5)).verdicts[0].ratio is None
    assert judged([{}] * 5, [{}] * 5).verdicts[0].ratio is None


def test_one_session_of_zeros_is_left_aside() -> None:
    found = by_name(judged(side(0.0, 1e6, 1e6, 1e6), side(2e6, 2e6, 2e6)))["k"]
    assert (found.verdict, found.ratio, found.p50_a_ns) == ("slower", pytest.approx(2), 1e6)
    paired = by_name(judged(side(0.0, 1e6, 1e6), side(2e6, 2e6, 2e6), paired=True))["k"]
    assert paired.verdict == "can't tell"


def constant(ns: float) -> list[Session]:
    return [{"k": kernel("k", [ns] * 20)}] * 5


@pytest.mark.parametrize("paired", [False, True])
def test_constant_durations_differ_by_more_than_the_clocks_grain_or_not_at_all(paired: bool) -> None:
    same = by_name(judged(constant(2000.0), constant(2000.0), paired=paired))["k"]
    assert (same.verdict, same.ratio) == ("can't tell", 1)
    assert by_name(judged(constant(2000.0), constant(2010.0), paired=paired))["k"].verdict == "can't tell"
    assert by_name(judged(constant(2000.0), constant(2200.0), paired=paired))["k"].verdict == "slower"
    assert by_name(judged(constant(2e6), constant(2.01e6), paired=paired))["k"].verdict == "slower"


def test_one_dispatch_a_session_is_enough() -> None:
    found = judged(side(1e6, 1.01e6, 0.99e6, 1e6, 1e6, calls=1), side(1.2e6, 1.21e6, 1.19e6, 1.2e6, 1.2e6, calls=1))
    assert by_name(found)["k"].verdict == "slower"


def test_sums_alone_are_compared_by_means_on_both_sides() -> None:
    def sums(one: Session) -> Session:
        k = one["k"]
        return {"k": KernelStats("k", k.calls, k.total_ns, k.mean_ns, None, None, None, None, 0.0)}

    a = side(1e6, 1.01e6, 0.99e6, 1e6)
    skewed = [{"k": replace(one["k"], p50_ns=5e6)} for one in a]
    found = judged([sums(one) for one in a], skewed, paired=True)
    assert by_name(found)["k"].ratio == pytest.approx(1)
    assert by_name(found)["k"].p50_b_ns == pytest.approx(1e6)
    assert found.notes == ("compared by means, since the files hold sums only: `k`",)


def test_few_dispatches_of_wide_spread_are_trusted_less() -> None:
    def wide(calls: int) -> list[Session]:
        return [
            {"k": kernel("k", [1e6 * (0.5 + (k + step) / calls) for k in range(calls)])} for step in (0.45, 0.5, 0.55)
        ]

    few, many = (judged(wide(calls), wide(calls)) for calls in (3, 3000))
    assert (by_name(few)["k"].detectable or 0) > 5 * (by_name(many)["k"].detectable or 0)


def test_a_kernel_that_too_few_sessions_launched_is_not_judged() -> None:
    other = kernel("rare", [1e6] * 10)
    a = [{**one, "rare": other} if number < 2 else one for number, one in enumerate(side(1e6, 1e6, 1.01e6, 1e6))]
    found = judged(a, a, paired=True)
    assert by_name(found)["rare"].detectable is None
    assert any("fewer than 3 sessions a side have durations of them: `rare`" in note for note in found.notes)


def test_odd_names_and_numbers_pass() -> None:
    for name in ("\udcff", "", "k" * 5000, REST + " "):
        found = judged(side(1e6, 1e6, 1.1e6, name=name), side(1e300, 1e300, 1e300, name=name, calls=3))
        assert by_name(found)[name].high is not None
        assert all(len(note) < 300 for note in found.notes)


# -- failing a build


def verdict(name: str, told: Any, ratio: float | None, low: float | None = None) -> KernelVerdict:
    return KernelVerdict(name, told, ratio, low)


def test_a_build_fails_for_what_is_slower_for_certain_and_by_more() -> None:
    rows = (
        verdict("certain", "slower", 1.08, 1.02),
        verdict("just", "slower", 1.05, 1.01),
        verdict("noise", "can't tell", 1.30, 0.9),
        verdict("faster", "faster", 0.5, 0.4),
        verdict("missing", "can't tell", None),
    )
    comparison = Comparison("a", "b", 5, 5, rows)
    assert [one.name for one in slower_than(comparison, 5)] == ["certain"]
    assert [one.name for one in slower_than(comparison, 0)] == ["certain", "just"]
    assert slower_than(comparison, 10) == ()
    for wrong in (-1.0, math.nan):
        with pytest.raises(UsageError, match="no percentage"):
            slower_than(comparison, wrong)


# -- Student's t, against published tables (NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2)


@pytest.mark.parametrize(
    ("probability", "freedom", "t"),
    [
        (0.05, 1, 12.706), (0.05, 4, 2.776), (0.01, 8, 3.355), (0.002, 2, 22.327), (0.002, 18, 3.610),
        (0.2, 30, 1.310), (0.05, 100, 1.984), (0.05, 1e7, 1.960),
    ],
)  # fmt: skip
def test_students_t_is_the_tables(probability: float, freedom: float, t: float) -> None:
    assert critical(probability, freedom) == pytest.approx(t, abs=5e-4)


@given(st.floats(-9, -0.01), st.floats(1, 1000))
def test_students_t_inverts(exponent: float, freedom: float) -> None:
    assert two_sided(critical(10**exponent, freedom), freedom) == pytest.approx(10**exponent, rel=1e-6)


def test_students_t_has_ends() -> None:
    assert two_sided(0, 5) == 1
    assert two_sided(1e200, 5) == 0
