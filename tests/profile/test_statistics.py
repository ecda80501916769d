"""Figures are exact, whatever the order and however the values are cut into pieces."""

from __future__ import annotations

import statistics
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.figures import QUANTILES, SLICES
from chisel.node import names
from chisel.node import statistics as ours
from chisel.node.statistics import Series, drift_of, figures_of, without_first


@pytest.fixture(params=[3, 1 << 16], ids=["pieces", "whole"], autouse=True)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(ours, "_PIECE", request.param)
    return int(request.param)


def test_the_constants_are_the_ones_everybody_knows() -> None:
    assert (ours.QUANTILES, ours.SLICES) == (QUANTILES, SLICES)


def in_two(durations: list[int]) -> list[Series]:
    """Return durations as those of two GPUs."""
    half = len(durations) // 3
    return [Series(array("q", part), array("q", part)) for part in (durations[:half], durations[half:])]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=100))
def test_figures_are_exact(durations: list[int]) -> None:
    found = figures_of(in_two(durations), detailed=True)
    assert (found["calls"], found["total_ns"]) == (len(durations), sum(durations))
    assert (found["min_ns"], found["max_ns"]) == (min(durations), max(durations))
    assert found["p50_ns"] == pytest.approx(statistics.median(durations))
    assert found["quantiles"] == sorted(found["quantiles"])
    assert (len(found["quantiles"]), found["quantiles"][32]) == (65, pytest.approx(found["p50_ns"]))
    if len(durations) > 1:
        assert found["p99_ns"] == pytest.approx(statistics.quantiles(durations, n=100, method="inclusive")[98])
        assert found["std_ns"] == pytest.approx(statistics.stdev(durations), abs=1e-3)
    else:
        assert found["std_ns"] is None


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=150), st.randoms(use_true_random=False))
def test_drift_follows_the_launches_in_whatever_order_they_are_written(durations: list[int], draw: object) -> None:
    order = list(range(len(durations)))
    draw.shuffle(order)  # type: ignore[attr-defined]  # a random.Random
    written = Series(array("q", order), array("q", [durations[place] for place in order]))
    half = len(order) // 2
    found = drift_of(
        [
            Series(written.starts[:half], written.durations[:half]),
            Series(written.starts[half:], written.durations[half:]),
        ]
    )
    assert found == drift_of([written])
    parts = min(SLICES, len(durations))
    bounds = [len(durations) * part // parts for part in range(parts + 1)]
    expected = [durations[low:high] for low, high in pairwise(bounds)]
    assert found == [[len(part), statistics.median(part)] for part in expected]


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40), st.integers(0, 30))
def test_the_first_launches_are_left_out_over_all_gpus(one: list[int], other: list[int], count: int) -> None:
    parts = [Series(array("q", starts), array("q", starts)) for starts in (one, other)]
    left = without_first(parts, count)
    assert sorted([*left[0].starts, *left[1].starts]) == sorted(one + other)[count:]
    assert all(part.starts == part.durations for part in left)


@pytest.mark.parametrize("name", ["k", "k.kd", "k [clone .kd]", "k(.kd)", "k.kd [clone .kd]", " k "])
def test_endings_are_dropped(name: str) -> None:
    assert names.normalise(name) == "k"


@pytest.mark.parametrize("name", [".kd", "a.kd.b", "f(.kdx)", "x<.kd>"])
def test_what_is_no_ending_stays(name: str) -> None:
    assert names.normalise(name) == name


@pytest.mark.parametrize(
    ("name", "is_pseudo"), [('"<barrier packet>"', True), ("Unknown command type", True), ("marker", False)]
)
def test_pseudo_rows_are_known(name: str, is_pseudo: bool) -> None:
    assert names.is_pseudo(name) is is_pseudo
