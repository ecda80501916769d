"""What a report makes of figures before it draws them: words, histograms, thinned series, ticks."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from chisel.figures import (
    QUANTILES,
    Launch,
)
from chisel.profile.report import amounts, shapes
from chisel.profile.report.kernels import launch_words


@pytest.mark.parametrize(
    ("launch", "wanted"),
    [
        (None, ""),
        (Launch(), ""),
        (Launch((256, 1, 1), (1024, 2, 1), 1), "grid 1,024 x 2 · workgroup 256"),
        (Launch(grid=(64, 1, 1), grids=3, vgprs=40, agprs=0, sgprs=0), "grid 64 (1 of 3 grids) · 40 VGPRs · 0 SGPRs"),
        (Launch(agprs=32, lds_bytes=65536, scratch_bytes=96), "32 AGPRs · 64 KiB LDS · 96 B scratch"),
    ],
)
def test_a_launch_is_said_in_the_fields_words(launch: Launch | None, wanted: str) -> None:
    assert launch_words(launch).replace("\N{MULTIPLICATION SIGN}", "x") == wanted


@pytest.mark.parametrize(
    ("time_ns", "wanted"),
    [
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
        (0, "0 ns"),
        (850, "850 ns"),
        (850.25, "850 ns"),
        (1234.5, "1.23 µs"),
        (99_960, "100.0 µs"),
        (123_456_789, "123 ms"),
        (4e9, "4.00 s"),
        (5e12, "5,000 s"),
    ],
)
def test_times_are_said_with_three_figures(time_ns: float | None, wanted: str) -> None:
    assert amounts.time(time_ns) == wanted


def test_a_histogram_holds_every_share_and_no_more() -> None:
    even = [float(number) for number in range(QUANTILES + 1)]
    assert shapes.histogram(even, 8, 0, 64) == pytest.approx([1 / 8] * 8)
    chance = random.Random(3)
    for _ in range(50):
        drawn = sorted(chance.choice([10.0, chance.uniform(5, 50), chance.expovariate(0.01)]) for _ in range(65))
        low, high = drawn[0], drawn[-1]
        assert sum(shapes.histogram(drawn, 40, low, high)) == pytest.approx(1.0)
        assert sum(shapes.histogram(drawn, 40, low, (low + high) / 2)) <= 1.0 + 1e-9
    same = [7.0] * 65
    low, high = shapes.bounds(same)
    assert low < 7 < high
    assert sum(shapes.histogram(same, 40, low, high)) == pytest.approx(1.0)


def test_a_thinned_series_keeps_its_extremes_and_its_order() -> None:
    chance = random.Random(5)
    points = [(float(at), chance.gauss(0, 1)) for at in range(5000)]
    points[1234] = (1234.0, 99.0)
    points[4000] = (4000.0, -99.0)
    kept = shapes.thinned(points, 100)
    assert len(kept) <= 100
    assert points[1234] in kept
    assert points[4000] in kept
    assert all(before[0] < after[0] for before, after in itertools.pairwise(kept))
    assert shapes.thinned(points[:50], 100) == points[:50]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.97, 1.03), (1e3, 1.0001e3), (-3, 1e9), (0, 5e-9)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = shapes.ticks(low, high, 5)
    assert 2 <= len(found) <= 6
    assert all(low <= one <= high * (1 + 1e-9) for one in found)


@pytest.mark.parametrize(
    ("drift", "wanted"),
    [
        ([], None),
        ([(5, 100.0)] * 7, None),
        ([(5, 100.0)] * 8, 1.0),
        ([(5, 100.0)] * 4 + [(5, 105.0)] * 4, 1.05),
        ([(5, math.nan)] * 48, None),
    ],
)
def test_a_trend_is_the_last_quarter_over_the_first(drift: list[tuple[int, float]], wanted: float | None) -> None:
    assert shapes.trend(drift) == (None if wanted is None else pytest.approx(wanted))
