"""What a profiler wrote, ranked as the droplet does it: every layout, damaged files, real files, the role."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from chisel.node import aggregate, halves, names, ranking, tally
from chisel.node.frames import Kind
from chisel.node.table import Wishes
from chisel.node.tally import FormatError
from chisel.profile.rank import decode_ranking
from tests.node.conftest import home, program, python, start  # noqa: F401 - fixtures
from tests.profile import lookalike

GEMM = 'void gemm<float, 128, (type)8>(float const*, float*, "q", int)'
PLAIN = "void gemm<float, 128, (type)8>(float const*, float*, int)"
DISPATCHES = [(GEMM, 9000), ("scale.kd", 500), (GEMM, 7000), ("<barrier packet>", 90_000), ("scale [clone .kd]", 300)]
EXPECTED = [(GEMM, 2, 16_000), ("scale", 2, 800)]


def table(found: dict[str, Any], part: str = "kernels") -> list[tuple[str, int, int]]:
    return [(one["name"], one["calls"], one["total_ns"]) for one in found[part]]


def rank(place: Path, **wishes: Any) -> dict[str, Any]:
    return ranking.rank(str(place), Wishes(**wishes))


# -- every layout


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
    found = rank(tmp_path)
    assert (found["source"], found["notes"], table(found)) == ("trace", [], EXPECTED)
    assert table(found, "pseudo") == [("<barrier packet>", 1, 90_000)]
    assert found["dispatches"] == 4


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("rocpd", lambda path: lookalike.rocpd(path / "7_results.db", DISPATCHES)),
        ("json", lambda path: lookalike.v3_json(path / "7_results.json", DISPATCHES)),
        ("json", lambda path: lookalike.v3_json(path / "7_results.json", DISPATCHES, older=True)),
        ("v1 json", lambda path: lookalike.v1_json(path / "results.json", DISPATCHES)),
        ("v1 json", lambda path: lookalike.v1_json(path / "results.json", DISPATCHES, older=True)),
        ("v1 json", lambda path: lookalike.v1_json(path / "results.json.gz", DISPATCHES)),
        ("v1 db", lambda path: lookalike.v1_database(path / "results.db", DISPATCHES)),
        ("v1 db", lambda path: lookalike.v1_database(path / "results.db", DISPATCHES, table="KERN")),
        ("v1 csv", lambda path: lookalike.v1_csv(path / "results.csv", DISPATCHES)),
        ("v1 csv", lambda path: lookalike.v1_csv(path / "results.csv", DISPATCHES, columns=lookalike.V2_COLUMNS)),
        ("rpd", lambda path: lookalike.rpd(path / "trace.rpd", DISPATCHES)),
    ],
    ids=["rocpd", "v3", "v3-old", "v1json", "v1json-old", "v1json-gz", "v1ops", "v1kern", "v1csv", "v2csv", "rpd"],
)
def test_every_other_format_gives_the_same_table(tmp_path: Path, source: str, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    found = rank(tmp_path)
    assert (found["source"], found["notes"], table(found)) == (source, [], EXPECTED)
    assert table(found, "pseudo") == [("<barrier packet>", 1, 90_000)]
    first = found["kernels"][0]
    assert (first["p50_ns"], first["min_ns"], first["max_ns"]) == (8000, 7000, 9000)
    assert first["std_ns"] == pytest.approx(1414.2135)
    assert first["drift"] == [[1, 9000], [1, 7000]]
    if found["copies"]:
        assert found["copies"][0]["name"] == "host to device"


def test_a_name_tells_nothing_about_a_format(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "a.sqlite", DISPATCHES)
    assert rank(tmp_path / "a.sqlite")["source"] == "rocpd"
    lookalike.v3_json(tmp_path / "trace.txt", DISPATCHES)
    assert rank(tmp_path / "trace.txt")["source"] == "json"
    lookalike.kernel_trace(tmp_path / "t.csv", DISPATCHES)
    assert rank(tmp_path / "t.csv")["source"] == "trace"


def test_launches_registers_and_copies_are_told(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "a.db", [("k", 5)] * 3)
    found = rank(tmp_path)
    assert found["kernels"][0]["launch"] == {
        "workgroup": (256, 1, 1), "grid": (2048, 2, 1), "grids": 2, "vgprs": 32, "agprs": 4, "sgprs": 112,
        "lds_bytes": 512, "scratch_bytes": 16,
    }  # fmt: skip
    assert found["copies"] == [{"name": "host to device", "calls": 1, "total_ns": 400, "bytes": 4096}]


def test_counters_are_means_per_dispatch_their_instances_summed(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "a.db", [("k", 5), ("m", 5), ("k", 5)], counters=["SQ_WAVES"])
    kernels = {one["name"]: one["counters"] for one in rank(tmp_path)["kernels"]}
    assert kernels == {"k": {"SQ_WAVES": 12.0}, "m": {"SQ_WAVES": 12.0}}
    skipped = {one["name"]: one["counters"] for one in rank(tmp_path, skip_warmup=1)["kernels"]}
    assert skipped == {"k": {"SQ_WAVES": 13.0}}
    lookalike.v3_json(tmp_path / "j" / "a.json", [("k", 5)])
    assert rank(tmp_path / "j")["kernels"][0]["counters"] == {"SQ_WAVES": 70.0}
    lookalike.v1_csv(tmp_path / "v" / "results.csv", [("k", 5), ("k", 7)])
    assert rank(tmp_path / "v")["kernels"][0]["counters"] == {"SQ_WAVES": 100.5}


COUNTED = (
    '"Correlation_Id","Dispatch_Id","Agent_Id","Process_Id","Grid_Size","Kernel_Id","Kernel_Name","Workgroup_Size",'
    '"Counter_Name","Counter_Value","Start_Timestamp","End_Timestamp"\n'
    '1,1,1,7,1024,3,"k<a, b>(int)",64,"A",4.0,100,300\n'
    '1,1,1,7,1024,3,"k<a, b>(int)",64,"B",2.5e-1,100,300\n'
    '2,2,1,7,2048,3,"k<a, b>(int)",64,"A",8.0,400,500\n'
)


def test_a_counter_file_adds_to_a_trace_and_stands_alone_with_its_times(tmp_path: Path) -> None:
    (tmp_path / "7_counter_collection.csv").write_text(COUNTED)
    alone = rank(tmp_path)
    assert (alone["source"], table(alone)) == ("counters", [("k<a, b>(int)", 2, 300)])
    assert alone["kernels"][0]["counters"] == {"A": 6.0, "B": 0.25}
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [("k<a, b>(int)", 900)])
    both = rank(tmp_path)
    assert (both["source"], table(both)) == ("trace", [("k<a, b>(int)", 1, 900)])
    assert both["kernels"][0]["counters"] == {"A": 6.0, "B": 0.25}


# -- several files


def test_processes_are_taken_together_and_the_best_source_wins(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "host" / "7_results.db", DISPATCHES, gpus=2)
    lookalike.rocpd(tmp_path / "host" / "8_results.db", [(GEMM, 1)], guid="_1", pid=8)
    for name in ("7_kernel_trace.csv", "host/8_kernel_trace.csv"):
        lookalike.kernel_trace(tmp_path / name, [("other", 1)])
    lookalike.v3_json(tmp_path / "7_results.json", [("other", 1)])
    found = rank(tmp_path)
    assert (found["source"], found["files"]) == ("rocpd", 2)
    assert table(found)[0] == (GEMM, 3, 16_001)
    parts = [(part["kind"], part["name"], part["calls"], part["total_ns"]) for part in found["parts"]]
    assert parts == [
        ("process", "process 7", 4, 16_800),
        ("process", "process 8", 1, 1),
        ("gpu", "GPU 1 (gfx942)", 3, 16_300),
        ("gpu", "GPU 0 (gfx942)", 2, 501),
    ]
    assert found["parts"][0]["kernels"] == [(0, 2, 16_000), (1, 2, 800)]


def test_several_guids_in_one_database_are_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "merged.db"
    lookalike.rocpd(path, [(GEMM, 5)], guid="_1", pid=1)
    lookalike.rocpd(path, [(GEMM, 7), ("k", 1)], guid="_2", pid=2)
    found = rank(path)
    assert table(found) == [(GEMM, 2, 12), ("k", 1, 1)]
    assert [part["name"] for part in found["parts"]] == ["process 2", "process 1"]


def test_passes_of_counters_are_one_run(tmp_path: Path) -> None:
    for number in (1, 2):
        lookalike.kernel_trace(tmp_path / f"pass_{number}" / "7_kernel_trace.csv", [("k<a, b>(int)", 900)])
        text = COUNTED.replace('"A"', f'"A{number}"')
        (tmp_path / f"pass_{number}" / "7_counter_collection.csv").write_text(text)
    found = rank(tmp_path)
    assert table(found) == [("k<a, b>(int)", 1, 900)]
    assert found["kernels"][0]["counters"] == {"A1": 6.0, "A2": 6.0, "B": 0.25}
    assert "2 passes: times are of pass 1" in found["notes"][0]
    shutil.rmtree(tmp_path / "pass_1")
    assert rank(tmp_path)["notes"] == []


def test_kernels_that_only_look_alike_are_not_merged(tmp_path: Path) -> None:
    symbols = [("_Z4gemmILi1EE", "gemm"), ("_Z4gemmILi2EE", "gemm"), ("_Z3sum", "sum")]
    lookalike.rocpd(tmp_path / "a.db", [("gemm", 60), ("sum", 5)], symbols=symbols)
    lookalike.rocpd(tmp_path / "b.db", [("gemm", 70)], symbols=symbols[:1], guid="_2")
    lookalike.rocpd(tmp_path / "c.db", [("gemm", 1)], symbols=[("_Z4gemmILi2EE.kd", "gemm [clone .kd]")], guid="_3")
    with closing(sqlite3.connect(tmp_path / "c.db")) as database:  # the display name's look-alike is found by its id
        database.execute('UPDATE "rocpd_kernel_dispatch_3" SET kernel_id = 1')
        database.commit()
    assert table(rank(tmp_path)) == [
        ("gemm [_Z4gemmILi1EE]", 1, 70),
        ("gemm [_Z4gemmILi2EE]", 2, 61),
        ("sum", 1, 5),
    ]


def test_dispatches_of_many_seconds_are_counted_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "SMALLEST", 1)
    many = [("k", 5_000_000_000), ("k", 7), ("m", 3), ("k", 6_000_000_000), ("k", 9), ("m", 8_000_000_000)]
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", many)
    assert table(rank(tmp_path)) == [("k", 4, 11_000_000_016), ("m", 2, 8_000_000_003)]


def test_mangled_names_are_made_readable_where_a_runtime_is(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [("_Z5scalePfi.kd", 5), ("_Zno", 3)])
    assert [name for name, _, _ in table(rank(tmp_path))] == ["scale(float*, int)", "_Zno"]
    assert names.Demangler().readable("_Z" + "1a" * 20_000) == "_Z" + "1a" * 20_000


# -- what is left out


def test_warm_up_is_left_out_of_every_kernel_in_every_process(tmp_path: Path) -> None:
    for pid in (7, 8):
        lookalike.rocpd(
            tmp_path / f"{pid}.db", [("k", 900), ("m", 50), ("k", 10), ("k", 20)], guid=f"_{pid}", pid=pid, gpus=2
        )
    found = rank(tmp_path, skip_warmup=1)
    assert (table(found), found["filtered"]) == ([("k", 4, 60)], 4)
    assert rank(tmp_path, skip_warmup=3)["filtered"] == 8


def test_kernels_are_chosen_by_their_shown_name(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "a.db", DISPATCHES)
    found = rank(tmp_path, kernel="^scale$|nothing")
    assert (table(found), found["filtered"], found["dispatches"]) == ([("scale", 2, 800)], 2, 2)
    assert table(found, "pseudo") == [("<barrier packet>", 1, 90_000)]
    with pytest.raises(FormatError, match=r"`\(` is no regular expression"):
        rank(tmp_path, kernel="(")


def test_the_order_of_dispatches_and_files_changes_nothing(tmp_path: Path) -> None:
    many = [(f"k{number % 7}", random.Random(number).randrange(10**6)) for number in range(500)]
    tables = []
    for attempt in range(3):
        shuffled = random.Random(attempt).sample(many, len(many))
        raw = tmp_path / str(attempt)
        lookalike.kernel_trace(raw / "1_kernel_trace.csv", shuffled[:200])
        lookalike.kernel_trace(raw / "2_kernel_trace.csv", shuffled[200:])
        found = rank(raw)["kernels"]
        tables.append([{key: value for key, value in one.items() if key not in {"drift", "launch"}} for one in found])
    assert tables[0] == tables[1] == tables[2]


# -- damaged files


def test_sums_stand_in_for_a_trace_that_is_empty_or_cut(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [])
    (tmp_path / "7_kernel_stats.csv").write_text(
        '"Name","Calls","TotalDurationNs","AverageNs","Percentage","MinNs","MaxNs","StdDev"\n'
        '"step "gemm, fp8" [rank 0]",3,9000,3000.000000,90.00,2900,3100,1.000000e+02\n'
        '"copy",1,1000,1000.000000,4.671e-04,1000,1000,0.00000000e+00\n'
    )
    (tmp_path / "7_hip_api_stats.csv").write_text(
        '"Name","Calls","TotalDurationNs","AverageNs","Percentage","MinNs","MaxNs","StdDev"\n"hipMalloc",9,9,1,1,1,1,0\n'
    )
    found = rank(tmp_path)
    assert (found["source"], found["notes"]) == ("stats", [])
    assert table(found) == [('step "gemm, fp8" [rank 0]', 3, 9000), ("copy", 1, 1000)]
    assert (found["kernels"][0]["p50_ns"], found["kernels"][0]["max_ns"]) == (None, 3100)
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [("copy", 1000)])
    found = rank(tmp_path)
    assert (found["source"], table(found)[0][1]) == ("stats", 3)
    assert "holds 1 of the 4 dispatches" in found["notes"][0]
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", [("copy", 1000)] * 5)
    found = rank(tmp_path)
    assert (found["source"], table(found), found["notes"]) == ("trace", [("copy", 5, 5000)], [])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("7_kernel_trace.csv", b"", "is empty"),
        ("7_kernel_trace.csv", b"Kind,Name\n1,2\n", "has no column `kernel_name`"),
        ("7_kernel_trace.csv", b"Kernel_Name,Start_Timestamp\nk,2\n", "has no column `end_timestamp`"),
        ("7_kernel_trace.csv", b"\x00\xff" * 4000, "has no column `kernel_name`"),
        ("7_results.db", b"", "cannot be read as a database: its writer was killed"),
        ("7_results.db", b"SQLite format 3\0" + b"x" * 4096, "cannot be read as a database"),
        ("7_results.db", b"no database at all" * 100, "cannot be read as a database: it does not begin as SQLite"),
        ("7_results.json", b'{"rocprofiler-sdk-tool": [{"metadata": {"pid"', "is no whole JSON: it is cut at byte 45"),
        ("7_results.json", b'{"rocprofiler-sdk-tool": 7}', "has no `rocprofiler-sdk-tool` as rocprofv3 writes it"),
        ("results.json.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "is damaged or cut gzip"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    found = rank(tmp_path)
    assert (found["source"], found["kernels"], found["files"]) == (None, [], 1)
    assert said in found["notes"][0]
    assert name in found["notes"][0]


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "9_results.db")) as database:
        database.executescript(
            """CREATE TABLE "rocpd_metadata_1" (id INTEGER, tag TEXT, value TEXT);
            INSERT INTO "rocpd_metadata_1" VALUES (1, 'schema_version', '4.0.0');
            CREATE TABLE "rocpd_kernel_dispatch_1" (id INTEGER, kernel_id INTEGER, start_id INTEGER, end_id INTEGER);"""
        )
    (note,) = rank(tmp_path)["notes"]
    assert note.startswith("`9_results.db` is of a newer schema than chisel reads (3 to 3.0.5): its schema is 4.0.0")
    assert "rocpd convert" in note


def test_a_file_cut_in_a_line_keeps_the_whole_ones_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "7_kernel_trace.csv"
    lookalike.kernel_trace(path, DISPATCHES[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"KERNEL") + 30])
    found = rank(tmp_path)
    assert table(found) == [(GEMM, 1, 9000)]
    assert found["notes"] == ["`7_kernel_trace.csv`: 1 line is damaged or cut, first line 3, and left out"]


def test_a_cut_trace_of_v1_keeps_its_whole_events_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    lookalike.v1_json(path, [("k", 5)] * 9)
    whole = path.read_bytes()
    at = whole.rindex(b'{"ph":"X"')
    path.write_bytes(whole[: at + 60])
    found = rank(tmp_path)
    assert table(found) == [("k", 8, 40)]
    assert found["notes"] == [f"`results.json`: 1 event is damaged or cut, first at byte {at + 1}, and left out"]
    path.write_bytes(whole[: at - 2])
    assert rank(tmp_path)["notes"] == [f"`results.json` is cut at byte {at - 2}: its list of events does not end"]


def test_a_v1_trace_that_was_formatted_anew_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    lookalike.v1_json(path, [(PLAIN, 5), (PLAIN, 7)])
    for indent in (None, 2):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
        assert table(rank(path)) == [(PLAIN, 2, 12)]


def test_links_are_not_followed(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "elsewhere" / "7_kernel_trace.csv", DISPATCHES)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "8_kernel_trace.csv").symlink_to(tmp_path / "elsewhere" / "7_kernel_trace.csv")
    (raw / "dir").symlink_to(tmp_path / "elsewhere")
    assert rank(raw)["files"] == 0


def test_what_a_killed_profiler_leaves_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "7_results.db-journal").write_bytes(b"x")
    (tmp_path / "tmp" / ".rocprofv3").mkdir(parents=True)
    (tmp_path / "tmp" / ".rocprofv3" / "1-7-kernel.dat").write_bytes(b"x")
    assert rank(raw)["unfinished"] == ["7_results.db-journal", "1-7-kernel.dat"]


def test_two_processes_read_a_large_file_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(f"k<{number % 5}, x>", random.Random(number).randrange(10**6)) for number in range(400)]
    lookalike.kernel_trace(tmp_path / "c" / "7_kernel_trace.csv", many)
    text = (tmp_path / "c" / "7_kernel_trace.csv").read_bytes().splitlines(keepends=True)
    text[350] = b'"KERNEL_DISPATCH","Agent'[:20] + b"\n"
    (tmp_path / "c" / "7_kernel_trace.csv").write_bytes(b"".join(text))
    lookalike.v1_json(tmp_path / "j" / "results.json", many)
    lookalike.rocpd(tmp_path / "d" / "a.db", many)
    one = [rank(tmp_path / place) for place in "cjd"]
    assert "first line 351," in one[0]["notes"][0]
    monkeypatch.setattr(halves, "SMALLEST", 1)
    monkeypatch.setattr("chisel.node.rocpd._LARGE", 1)
    assert [rank(tmp_path / place) for place in "cjd"] == one


def test_a_large_table_is_read_in_blocks_as_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    draw = random.Random(3)
    lookalike.rocpd(path, [(f"k{draw.randrange(5)}", draw.randrange(10**6)) for _ in range(900)], gpus=3)
    with closing(sqlite3.connect(path)) as database:
        dispatches = f'"rocpd_kernel_dispatch{lookalike.GUID}"'
        database.execute(f'UPDATE {dispatches} SET "end" = NULL WHERE id IN (90, 500)')  # never ended
        database.execute(f'UPDATE {dispatches} SET "end" = 0 WHERE id = 200')
        database.execute(f"UPDATE {dispatches} SET kernel_id = 77 WHERE id = 700")  # of no symbol
        database.execute(f"DELETE FROM {dispatches} WHERE id BETWEEN 300 AND 420")
        database.commit()
    one = rank(path)
    monkeypatch.setattr("chisel.node.rocpd._LARGE", 1)
    monkeypatch.setattr("chisel.node.bulk.BLOCK_ROWS", 64)
    monkeypatch.setattr("chisel.node.table._MANY", 1)
    other = rank(path)
    assert one["dispatches"] == 900 - 2 - 121
    # Starts are those of a block, launches are looked at in its first rows: both are rough.
    for found in (one, other):
        for kernel in found["kernels"]:
            drift = kernel.pop("drift")
            assert sum(calls for calls, _ in drift) == kernel["calls"]
            assert kernel.pop("launch")["workgroup"] == (256, 1, 1)
    assert one == other


def test_what_fails_in_the_second_process_is_said_here() -> None:
    def part(index: int, into: tally.Tally) -> None:
        if index:
            raise FormatError("`x.csv` is odd")

    with pytest.raises(FormatError, match="is odd"):
        halves.read_halves(part, tally.Tally())


# -- real files


def expected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.with_name(path.name + ".expected.json").read_text())
    return found


REAL = [
    *(f"kokkos-v1-{run}/results.{what}" for run in "ab" for what in ("stats.csv", "json", "db")),
    "v3-gfx1151-crlf/decode_kernel_trace.csv",
    "v3-gfx1151-crlf/prefill_kernel_trace.csv",
    "v3-sdk-docs/kernel_trace.csv",
]


@pytest.mark.real_part("shared")
@pytest.mark.parametrize("name", REAL)
def test_real_files_give_the_known_table(shared: Path, name: str) -> None:
    path = shared / "rocprof" / name
    found, facts = rank(path), expected(path)
    assert found["notes"] == []
    assert table(found)[:5] == [(one["name"], one["calls"], one["total_ns"]) for one in facts["top5_kernels"]]
    everything = found["kernels"] + found["pseudo"]
    assert len(everything) == facts["n_names"]
    assert sum(one["total_ns"] for one in everything) == facts["total_ns"]
    assert sum(one["calls"] for one in everything) == facts.get("total_calls", sum(one["calls"] for one in everything))


@pytest.mark.real_part("shared")
def test_a_real_run_in_three_formats_is_counted_once(shared: Path) -> None:
    folder = shared / "rocprof" / "kokkos-v1-a"
    found = rank(folder)
    assert (found["source"], found["files"]) == ("v1 db", 1)
    assert table(found) == table(rank(folder / "results.json")) == table(rank(folder / "results.stats.csv"))
    assert found["copies"] == rank(folder / "results.json")["copies"]


@pytest.mark.real_part("shared")
def test_real_counters_join_their_trace(shared: Path) -> None:
    found = rank(shared / "rocprof" / "v3-sdk-docs")
    assert [one["counters"] for one in found["kernels"]] == [{"SQ_WAVES": 16384.0}] * 3
    assert [(one["name"], one["calls"]) for one in found["copies"]] == [("device to host", 1), ("host to device", 1)]


@pytest.mark.real_part("shared")
def test_odd_files_are_read_or_said_to_be_empty(shared: Path) -> None:
    derived = shared / "rocprof" / "derived"
    assert rank(derived / "empty.stats.csv")["notes"] == ["`empty.stats.csv` is empty"]
    assert rank(derived / "header_only_kernel_stats.csv")["kernels"] == []
    found = rank(derived / "v3_unescaped_quotes_kernel_stats.csv")
    assert table(found)[:2] == [('step "gemm, fp8" [rank 0]', 3, 9000), ("copy", 1, 1000)]


# -- the role

SECRET = "hunter2-secret-value"


def answers(session: Any) -> list[bytes]:
    """Return the two answers, as they were sent."""
    found = [b"", b""]
    for index in range(2):
        while (frame := session.next()).kind == Kind.DATA:
            found[index] += frame.payload
        assert frame.kind == Kind.DATA_END
    return found


def test_the_role_answers_first_and_makes_ready_second(start: Callable[..., Any], home: Path) -> None:  # noqa: F811
    place = home / "p" / "raw" / "7_results.db"
    lookalike.rocpd(place, DISPATCHES, environment={"T": SECRET})
    request = {"directory": "~/p", "top": 5, "secrets": ["./app"], "kernel": None, "skip_warmup": 0, "convert": True}
    with start("aggregate", request) as session:
        first, second = answers(session)
        answer = session.until(Kind.REPLY).json()
    ranking_ = decode_ranking(first)
    assert [(one.name, one.calls, one.total_ns) for one in ranking_.kernels] == EXPECTED
    assert (second, ranking_.rest, ranking_.source, ranking_.dispatches) == (b"", 0, "rocpd", 4)
    assert answer == {"withheld": [], "pftrace": False, "raw_bytes": place.stat().st_size, "notes": []}
    assert SECRET.encode() not in place.read_bytes()
    assert b"./app" not in place.read_bytes()
    assert [path.name for path in (home / "p").iterdir()] == ["raw"]


def test_four_hundred_kernels_with_long_names_stay_below_100_kb(start: Callable[..., Any], home: Path) -> None:  # noqa: F811
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:<"
    long = ["".join(draw.choices(letters, k=1500)) for _ in range(400)]
    many = [(name, draw.randrange(10**6)) for name in long for _ in range(6)]
    lookalike.kernel_trace(home / "p" / "raw" / "7_kernel_trace.csv", many)
    with start("aggregate", {"directory": "~/p", "top": 10}) as session:
        first, second = answers(session)
    assert len(first) < 100_000
    shown, whole = decode_ranking(first), decode_ranking(second)
    assert (len(shown.kernels), shown.rest, len(whole.kernels), whole.rest) == (64, 336, 400, 0)
    assert shown.rest_ns == sum(one.total_ns for one in whole.kernels[64:])
    assert shown.kernels[0].share == pytest.approx(whole.kernels[0].share)
    assert [one.name for one in shown.kernels] == [one.name for one in whole.kernels[:64]]
    assert (len(whole.kernels[31].quantiles), len(whole.kernels[32].quantiles)) == (65, 0)


PLAYED = """#!/bin/sh
printf '%s\\n' "$@" > "$HOME/called"
while [ "$1" != -d ]; do shift; done
mkdir -p "$2/host"; printf trace > "$2/host/trace_results.pftrace"
"""


def test_databases_are_converted_where_the_tool_is(start: Callable[..., Any], home: Path) -> None:  # noqa: F811
    database = home / "p" / "raw" / "7_results.db"
    lookalike.rocpd(database, DISPATCHES)
    (home / "rocpd").write_text(PLAYED)
    (home / "rocpd").chmod(0o755)
    for played, said in ((PLAYED, []), ("#!/bin/sh\necho no module >&2; exit 3\n", ["ended with status 3: no module"])):
        (home / "rocpd").write_text(played)
        with start("aggregate", {"directory": "~/p", "convert": True}, PATH=f"{home}:/usr/bin:/bin") as session:
            answer = session.until(Kind.REPLY).json()
        assert answer["pftrace"] is not bool(said)
        assert all(text in note for text, note in zip(said, answer["notes"], strict=True))
        assert sorted(path.name for path in (home / "p").iterdir()) == ["raw", *([] if said else ["trace.pftrace"])]
        (home / "p" / "trace.pftrace").unlink(missing_ok=True)
    called = (home / "called").read_text().splitlines()
    assert called[:5] == ["convert", "-i", str(database), "-f", "pftrace"]


@pytest.mark.parametrize(
    ("request_", "code"),
    [({"directory": "~/nothing"}, "no-profile"), ({"directory": "~/p", "kernel": "("}, "bad-expression")],
)
def test_what_cannot_be_served_is_refused(
    start: Callable[..., Any],  # noqa: F811
    home: Path,  # noqa: F811
    request_: dict[str, Any],
    code: str,
) -> None:
    (home / "p" / "raw").mkdir(parents=True)
    with start("aggregate", request_) as session:
        assert session.until(Kind.ERROR).json()["code"] == code


def test_the_first_answer_drops_details_before_it_grows() -> None:
    kernel = {"name": "k", "calls": 1, "total_ns": 1, "mean_ns": 1.0, "p50_ns": 1, "p99_ns": 1}
    draw = random.Random(2)
    kernels = [
        {**kernel, "name": f"{draw.getrandbits(8600):x}", "quantiles": [draw.random() for _ in range(65)]}
        for _ in range(64)
    ]
    figures = {"kernels": kernels, "parts": [], "notes": [], "pseudo": [], "files": 1, "source": "rocpd"}
    data = aggregate.first_answer(figures, 10)
    found = json.loads(zlib.decompress(data))
    assert len(data) <= aggregate.FIRST_ANSWER_BYTES
    assert 0 < sum("quantiles" in one for one in found["kernels"]) < 32
    assert len(found["kernels"]) == 64
