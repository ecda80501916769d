"""What a profiler wrote, ranked as the droplet does it: every layout, damaged files, real files, no secrets."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import statistics
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.node import aggregate, names, rocpd, rocprofcsv
from chisel.node.frames import Kind
from chisel.node.rocprofcsv import FormatError
from chisel.node.statistics import Kernel, figures_of
from tests.node.conftest import home, program, python, start  # noqa: F401 - fixtures
from tests.profile import lookalike

GEMM = 'void gemm<float, 128, (type)8>(float const*, float*, "q", int)'
DISPATCHES = [(GEMM, 9000), ("scale.kd", 500), (GEMM, 7000), ("<barrier packet>", 90_000), ("scale [clone .kd]", 300)]


def table(found: dict[str, Any], part: str = "kernels") -> list[tuple[str, int, int]]:
    return [(one["name"], one["calls"], one["total_ns"]) for one in found[part]]


EXPECTED = [(GEMM, 2, 16_000), ("scale", 2, 800)]


@pytest.mark.parametrize(
    "layout",
    [
        {"columns": lookalike.V70},
        {"columns": lookalike.V62, "quoted": False},
        {"columns": lookalike.V70, "end": "\r\n", "bom": True},
        {"columns": lookalike.CONVERTED},
    ],
    ids=["7.0", "6.2", "crlf-bom", "converted"],
)
def test_every_csv_layout_gives_the_same_table(tmp_path: Path, layout: dict[str, Any]) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", DISPATCHES, **layout)
    found = aggregate.rank(str(tmp_path))
    assert (found["source"], found["notes"], table(found)) == ("trace", [], EXPECTED)
    assert table(found, "pseudo") == [("<barrier packet>", 1, 90_000)]
    assert found["dispatches"] == 4


def test_a_database_gives_the_same_table(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "7_results.db", DISPATCHES)
    found = aggregate.rank(str(tmp_path))
    assert (found["source"], found["notes"], table(found)) == ("rocpd", [], EXPECTED)


def test_processes_are_taken_together_and_the_best_source_wins(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "host" / "7_results.db", DISPATCHES)
    lookalike.rocpd(tmp_path / "host" / "8_results.db", [(GEMM, 1)], guid="_1")
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [("other", 1)])
    found = aggregate.rank(str(tmp_path))
    assert (found["source"], found["files"]) == ("rocpd", 2)
    assert table(found)[0] == (GEMM, 3, 16_001)


def test_kernels_that_only_look_alike_are_not_merged(tmp_path: Path) -> None:
    symbols = [("_Z4gemmILi1EE", "gemm"), ("_Z4gemmILi2EE", "gemm"), ("_Z3sum", "sum")]
    lookalike.rocpd(tmp_path / "a.db", [("sum", 5)], symbols=symbols)
    import sqlite3

    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute(f'INSERT INTO "rocpd_kernel_dispatch{lookalike.GUID}" VALUES (9,"x",7,1,1,2,0,70,"")')
        database.execute(f'INSERT INTO "rocpd_kernel_dispatch{lookalike.GUID}" VALUES (9,"x",7,1,2,2,0,60,"")')
    database.close()
    assert table(aggregate.rank(str(tmp_path))) == [
        ("gemm [_Z4gemmILi1EE]", 1, 70),
        ("gemm [_Z4gemmILi2EE]", 1, 60),
        ("sum", 1, 5),
    ]


def test_sums_stand_in_for_a_trace_that_is_empty(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [])
    (tmp_path / "7_kernel_stats.csv").write_text(
        '"Name","Calls","TotalDurationNs","AverageNs","Percentage","MinNs","MaxNs","StdDev"\n'
        '"step "gemm, fp8" [rank 0]",3,9000,3000.000000,90.00,2900,3100,1.000000e+02\n'
        '"copy",1,1000,1000.000000,4.671e-04,1000,1000,0.00000000e+00\n'
    )
    found = aggregate.rank(str(tmp_path))
    assert found["source"] == "stats"
    assert table(found) == [('step "gemm, fp8" [rank 0]', 3, 9000), ("copy", 1, 1000)]
    assert (found["kernels"][0]["p50_ns"], found["kernels"][0]["max_ns"]) == (None, 3100)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("7_kernel_trace.csv", b"", "is empty"),
        ("7_kernel_trace.csv", b"Kind,Name\n1,2\n", "has no column `kernel_name`"),
        ("7_kernel_trace.csv", b"Kernel_Name,Start_Timestamp\nk,2\n", "has no column `end_timestamp`"),
        ("7_results.db", b"", "is no rocpd database"),
        ("7_results.db", b"SQLite format 3\0" + b"x" * 4096, "cannot be read"),
        ("7_results.db", b"no database at all" * 100, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = aggregate.rank(str(tmp_path))
    assert (found["source"], found["kernels"], found["files"]) == (None, [], 1)
    assert said in found["notes"][0]
    assert name in found["notes"][0]


def test_a_file_cut_in_a_line_keeps_the_whole_ones_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "7_kernel_trace.csv"
    lookalike.kernel_trace(path, DISPATCHES[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"KERNEL") + 30])
    found = aggregate.rank(str(tmp_path))
    assert table(found) == [(GEMM, 1, 9000)]
    assert "1 lines are damaged or cut, first line 3" in found["notes"][0]


def test_links_are_not_followed(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "elsewhere" / "7_kernel_trace.csv", DISPATCHES)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "8_kernel_trace.csv").symlink_to(tmp_path / "elsewhere" / "7_kernel_trace.csv")
    (raw / "dir").symlink_to(tmp_path / "elsewhere")
    assert aggregate.rank(str(raw))["files"] == 0


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_figures_are_exact(durations: list[int]) -> None:
    found = figures_of(array("q", durations))
    assert (found["calls"], found["total_ns"]) == (len(durations), sum(durations))
    assert (found["min_ns"], found["max_ns"]) == (min(durations), max(durations))
    assert found["p50_ns"] == pytest.approx(statistics.median(durations))
    if len(durations) > 1:
        assert found["p99_ns"] == pytest.approx(statistics.quantiles(durations, n=100, method="inclusive")[98])


def test_the_order_of_dispatches_and_files_changes_nothing(tmp_path: Path) -> None:
    many = [(f"k{number % 7}", random.Random(number).randrange(10**6)) for number in range(500)]
    tables = []
    for attempt in range(3):
        shuffled = random.Random(attempt).sample(many, len(many))
        raw = tmp_path / str(attempt)
        lookalike.kernel_trace(raw / "1_kernel_trace.csv", shuffled[:200])
        lookalike.kernel_trace(raw / "2_kernel_trace.csv", shuffled[200:])
        tables.append(aggregate.rank(str(raw))["kernels"])
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("name", ["k", "k.kd", "k [clone .kd]", "k(.kd)", "k.kd [clone .kd]", " k "])
def test_endings_are_dropped(name: str) -> None:
    assert names.normalise(name) == "k"


@pytest.mark.parametrize("name", [".kd", "a.kd.b", "f(.kdx)", "x<.kd>"])
def test_what_is_no_ending_stays(name: str) -> None:
    assert names.normalise(name) == name


# -- real files


def expected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_name(path.name + ".expected.json").read_text())
    return found


def top(kernels: dict[str, Kernel], count: int) -> list[tuple[str, int, int]]:
    found = [kernel.figures() for name, kernel in kernels.items() if not names.is_pseudo(name)]
    found.sort(key=lambda one: -one["total_ns"])
    return [(one["name"], one["calls"], one["total_ns"]) for one in found[:count]]


def as_expected(facts: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(one["name"], one["calls"], one["total_ns"]) for one in facts["top5_kernels"]]


@pytest.mark.real_part("shared")
@pytest.mark.parametrize(
    "name",
    [
        "v3-gfx1151-crlf/decode_kernel_trace.csv",
        "v3-gfx1151-crlf/prefill_kernel_trace.csv",
        "v3-sdk-docs/kernel_trace.csv",
    ],
)
def test_real_traces_give_the_known_top(shared: Path, name: str) -> None:
    path = shared / "rocprof" / name
    kernels: dict[str, Kernel] = {}
    assert rocprofcsv.read_trace(str(path), kernels) == []
    facts = expected(path)
    assert top(kernels, 5) == as_expected(facts)
    assert sum(kernel.figures()["total_ns"] for kernel in kernels.values()) == facts["total_ns"]
    assert len(kernels) == facts["n_names"]


@pytest.mark.real_part("shared")
@pytest.mark.parametrize("folder", ["kokkos-v1-a", "kokkos-v1-b"])
def test_real_sums_with_unquoted_commas_give_the_known_top(shared: Path, folder: str) -> None:
    path = shared / "rocprof" / folder / "results.stats.csv"
    kernels: dict[str, Kernel] = {}
    assert rocprofcsv.read_stats(str(path), kernels) == []
    assert top(kernels, 5) == as_expected(expected(path))


@pytest.mark.real_part("shared")
def test_cut_and_odd_files_are_read_or_said_to_be_empty(shared: Path) -> None:
    derived = shared / "rocprof" / "derived"
    kernels: dict[str, Kernel] = {}
    assert rocprofcsv.read_stats(str(derived / "empty.stats.csv"), kernels) == ["`empty.stats.csv` is empty"]
    assert rocprofcsv.read_stats(str(derived / "header_only_kernel_stats.csv"), kernels) == []
    assert kernels == {}
    rocprofcsv.read_stats(str(derived / "v3_unescaped_quotes_kernel_stats.csv"), kernels)
    assert top(kernels, 2) == [('step "gemm, fp8" [rank 0]', 3, 9000), ("copy", 1, 1000)]


# -- before files leave


SECRET = "hunter2-secret-value"


def test_no_byte_of_a_variables_value_leaves_and_the_figures_stay(tmp_path: Path) -> None:
    path = tmp_path / "raw" / "7_results.db"
    lookalike.rocpd(path, DISPATCHES, environment={"HF_TOKEN": SECRET, "BIG": SECRET * 2000})
    (tmp_path / "raw" / "8_results.db-journal").write_text(SECRET)
    assert SECRET.encode() in path.read_bytes()
    before = aggregate.rank(str(tmp_path / "raw"))
    assert aggregate.make_fit_to_leave(str(tmp_path / "raw")) == []
    assert aggregate.rank(str(tmp_path / "raw")) == before
    left = b"".join(file.read_bytes() for file in (tmp_path / "raw").iterdir())
    assert SECRET.encode() not in left
    assert b"HF_TOKEN" in left, "which variables there were is worth knowing"


def test_a_database_that_cannot_be_scrubbed_stays_on_the_droplet(tmp_path: Path) -> None:
    path = tmp_path / "7_results.db"
    lookalike.rocpd(path, DISPATCHES * 50, environment={"HF_TOKEN": SECRET * 5000})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    withheld = aggregate.make_fit_to_leave(str(tmp_path))
    assert len(withheld) == 1
    assert "may hold the values" in withheld[0]
    assert list(tmp_path.iterdir()) == []


def test_the_trace_holds_every_dispatch_copy_and_call(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "raw" / "7_results.db", DISPATCHES)
    out = tmp_path / "trace.json.gz"
    assert aggregate.write_trace(str(tmp_path / "raw"), str(out)) == len(DISPATCHES) + 2
    with gzip.open(out) as source:
        events = json.load(source)["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert [(one["name"], one["ts"], one["dur"]) for one in slices[:2]] == [(GEMM, 1.0, 9.0), ("scale.kd", 10.1, 0.5)]
    labels = defaultdict(set)
    for event in events:
        if event["ph"] == "M":
            labels[event["name"]].add(event["args"]["name"])
    assert labels["process_name"] == {"GPU agent 1", "memory copies", "process 7"}
    assert labels["thread_name"] == {"queue 2", "to agent 1", "thread 8"}


def test_the_trace_of_csv_files_holds_kernels_and_calls(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", DISPATCHES)
    (tmp_path / "7_hip_api_trace.csv").write_text(
        '"Domain","Function","Process_Id","Thread_Id","Correlation_Id","Start_Timestamp","End_Timestamp"\n'
        '"HIP_RUNTIME_API","hipMalloc",7,8,1,100,1400\n'
    )
    out = tmp_path / "trace.json.gz"
    assert aggregate.write_trace(str(tmp_path), str(out)) == len(DISPATCHES) + 1


def test_an_empty_profile_is_a_valid_trace(tmp_path: Path) -> None:
    assert aggregate.write_trace(str(tmp_path), str(tmp_path / "t.gz")) == 0
    with gzip.open(tmp_path / "t.gz") as source:
        assert [event["ph"] for event in json.load(source)["traceEvents"]] == ["M"]


# -- the role


def test_the_role_answers_first_and_makes_ready_second(start: Callable[..., Any], home: Path) -> None:  # noqa: F811
    lookalike.rocpd(home / "p" / "raw" / "7_results.db", DISPATCHES, environment={"T": SECRET})
    with start("aggregate", {"directory": "~/p"}) as session:
        data = session.until(Kind.DATA).payload
        session.until(Kind.DATA_END)
        answer = session.until(Kind.REPLY).json()
    assert table(json.loads(zlib.decompress(data))) == EXPECTED
    assert answer == {"spans": len(DISPATCHES) + 2, "withheld": []}
    assert SECRET.encode() not in (home / "p" / "raw" / "7_results.db").read_bytes()
    assert (home / "p" / "trace.json.gz").exists()


def test_a_directory_that_is_not_there_is_refused(start: Callable[..., Any], home: Path) -> None:  # noqa: F811
    with start("aggregate", {"directory": "~/nothing"}) as session:
        assert session.until(Kind.ERROR).json()["code"] == "no-profile"


def test_a_read_only_folder_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        rocpd.scrub(str(tmp_path / "missing.db"))
    shutil.rmtree(tmp_path)
