"""Profiles as people see them: names shortened but told apart, tables that fit, no droplet's text taken as markup."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType

from chisel import events
from chisel.figures import (
    Comparison,
    Copies,
    KernelStats,
    KernelVerdict,
    Launch,
    Part,
    ProfileResult,
    Ranking,
    Spread,
)
from chisel.render import profiles, tables
from chisel.render.kernelnames import ELLIPSIS, shorten, shorten_all

GEMM = "void ck::kernel_gemm<ck::GridwiseGemm<256, float, ck::Sequence<1, 2>>, true>(float const*, float*, int)"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (200, GEMM),
        (102, GEMM.removeprefix("void ")),
        (80, "ck::kernel_gemm<ck::GridwiseGemm<256, float, ck::Sequence<1, 2>>, true>"),
        (50, "ck::kernel_gemm<ck::GridwiseGemm<…>, true>"),
        (20, "ck::kernel_gemm<…>"),
        (15, "kernel_gemm<…>"),
        (8, "kerne……>"),
        (1, "k"),
    ],
)
def test_what_says_least_goes_first(width: int, shown: str) -> None:
    assert shorten(GEMM, width) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("operator<<<int>(std::ostream&, int)", "operator<<<int>"),
        ("f(int) const", "f"),
        ("(anonymous namespace)::elementwise<4, foo(int)::{lambda(int)#1}>", "elementwise<…>"),
        ("Cijk_Ailk_Bljk_HHS_BH_MT128x128x32_MI32x32x8", "Cijk_Aili…x8"),
        ("a->b(x)", "a->b"),
    ],
)
def test_odd_names_are_cut_where_it_makes_sense(name: str, shown: str) -> None:
    found = shorten(name, len(shown))
    assert len(found) <= len(shown)
    assert found == shown or ELLIPSIS in found


@given(st.text(max_size=300), st.integers(1, 120))
def test_any_name_fits(name: str, width: int) -> None:
    assert len(shorten(name, width)) <= width


def test_names_that_become_alike_are_told_apart() -> None:
    names = ["gemm<float, 128>(float*)", "gemm<float, 256>(float*)", "sum(float*)"]
    shown = shorten_all(names, 15, ["[1024]", "[2048]", "[64]"])
    assert shown == ["gemm<…> [1024]", "gemm<…> [2048]", "sum(float*)"]
    launches = ["a::launch<For<scatter(int)>, Policy>(x)", "a::launch<For<atomic(int)>, Policy>(x)"]
    assert shorten_all(launches, 24, ["", ""]) == ["launch<…scatter(int)>, …", "launch<…atomic(int)>, P…"]
    assert shorten_all([launches[0]] * 2, 11, ["", ""]) == ["launch<…>"] * 2, "the same kernel twice is alike"


KERNEL = KernelStats(
    GEMM,
    20,
    12_340_000,
    617_000.0,
    610_000.0,
    700_000.0,
    600_000,
    710_000,
    0.6,
    std_ns=21_000.0,
    launch=Launch((256, 1, 1), (1 << 20, 1, 1), 1, vgprs=64, sgprs=32, lds_bytes=1024),
)
SUM = replace(KERNEL, name="sum[red](float*)\x1b[31m", total_ns=8_000_000, share=0.4, launch=None, p99_ns=None)
BARRIER = replace(KERNEL, name="<barrier packet>", share=0.0)
RESULT = ProfileResult(
    host="bench-1",
    status=0,
    tool="rocprofv3 1.1.0, rocpd",
    ranking=Ranking(
        kernels=(KERNEL, SUM),
        pseudo=(BARRIER,),
        parts=(Part("gpu", "0", 30, 12_000_000, ((GEMM, 20, 11_000_000),)), Part("gpu", "1", 10, 8_340_000)),
        copies=(Copies("HOST_TO_DEVICE", 3, 120_000, 12 << 20),),
        rest=7,
        dispatches=40,
    ),
)


def text(renderable: RenderableType, width: int) -> str:
    return tables.to_text(renderable, width=width, colour=False)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_tables_keep_their_width_and_say_what_matters(width: int) -> None:
    shown = text(profiles.kernels(RESULT, 10, width=width), width)
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown
    assert "kernel_gemm" in shown or width < 60
    assert "60.0 %" in shown
    assert "12.34 ms" in shown
    assert "sum[red]" in shown
    assert "and 7 kernels more" in shown
    assert ("p99" in shown) == (width >= 100)
    assert ("vgpr" in shown) == (width >= 150)


def test_gpus_copies_and_what_is_no_kernel_stand_apart() -> None:
    lines = text(profiles.kernels(RESULT, 10, width=120), 120).splitlines()
    barrier = next(line for line in lines if "<barrier packet>" in line)
    assert barrier.split()[:2] == ["-", "-"], "it has no rank and no share"
    assert any(line.startswith("GPU 0: 12.00 ms") and "kernel_gemm" in line for line in lines)
    assert any(line.startswith("copies HOST_TO_DEVICE: 120.00 us in 3 calls, 12.6 MB") for line in lines)


def test_a_partial_profile_and_a_failed_command_say_so() -> None:
    shown = text(profiles.kernels(replace(RESULT, is_partial=True, status=3), 10, width=120), 120)
    assert "PARTIAL" in shown
    assert "ended with status 3" in shown


def verdict(name: str, **changes: object) -> KernelVerdict:
    whole = {"verdict": "slower", "ratio": 1.052, "low": 1.031, "high": 1.07, "detectable": 0.021, **changes}
    return KernelVerdict(name, p50_a_ns=1000.0, p50_b_ns=1052.0, **whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_comparison_says_how_sure_it_is(width: int) -> None:
    found = Comparison(
        "main", "now", 5, 5,
        (verdict(GEMM), verdict("sum", verdict="can't tell", ratio=1.0, low=0.9, high=1.1, detectable=0.15),
         KernelVerdict("gone", "can't tell", missing="b")),
        ("one note",),
    )  # fmt: skip
    shown = text(profiles.compared(found, 10, width=width), width)
    assert "now against main, medians of 5 and 5 sessions" in shown
    assert "+5.2 %" in shown
    assert ("+3.1 .. +7.0 %" in shown) == (width >= 80)
    assert ("visible from" in shown) == (width >= 120)
    assert "gone (not in B)" in shown
    assert "one note" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_a_pool_names_who_stands_apart_and_why() -> None:
    spreads = (
        Spread(GEMM, 40, 24_000_000, 0.7, {"b-1": 610e3, "b-2": 690e3}, 0.131, "b-2", "at its power cap: 749 of 750 W"),
        Spread("sum", 40, 9_000_000, 0.3, {"b-1": 310e3, "b-2": 320e3}, 0.032),
    )
    event = events.ProfileSummed(ranking=RESULT.ranking, spreads=spreads, hosts=("b-1", "b-2"), tool="rocprofv3")
    shown = text(profiles.summed(event, width=160), 160)
    assert "over 2 droplets" in shown
    assert "13.1 %" in shown
    assert "690.00 us b-2" in shown
    assert "b-2 stands apart by up to 13.1 %: at its power cap: 749 of 750 W" in shown


def test_sessions_of_one_droplet_are_one_table() -> None:
    event = events.ProfileSummed(ranking=RESULT.ranking, hosts=("b-1",), sessions=5, tool="rocprofv3", is_partial=True)
    shown = text(profiles.summed(event, width=120), 120)
    assert "hottest kernels over 5 sessions (rocprofv3)" in shown
    assert "PARTIAL" in shown
    assert "60.0 %" in shown
