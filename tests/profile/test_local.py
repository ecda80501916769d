"""Files that are here: ranked and made into traces in a process of its own, with one clear message when they cannot."""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from chisel.errors import ChiselError, UsageError
from chisel.profile.local import Window, rank_local, write_local_trace
from chisel.profile.rank import Facts, diagnosis
from tests.profile import lookalike

GEMM = "void gemm<float, 128>(float const*, int)"
DISPATCHES = [(GEMM, 9000), ("scale.kd", 500), (GEMM, 7000), ("<barrier packet>", 90_000)]


def events(path: Path, kind: str = "X") -> list[dict[str, Any]]:
    with gzip.open(path) as source:
        return [event for event in json.load(source)["traceEvents"] if event["ph"] == kind]


async def test_a_file_a_directory_and_a_profile_of_chisels_give_the_same(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "p" / "raw" / "7_results.db", DISPATCHES, counters=["SQ_WAVES"])
    lookalike.kernel_trace(tmp_path / "p" / "other" / "7_kernel_trace.csv", [("elsewhere", 1)])
    found = [await rank_local(tmp_path / "p" / where, top=1) for where in ("", "raw", "raw/7_results.db")]
    assert found[0] == found[1] == found[2]
    ranking = found[0]
    assert [(one.name, one.calls, one.total_ns) for one in ranking.kernels] == [(GEMM, 2, 16_000), ("scale", 1, 500)]
    assert ranking.kernels[0].share == pytest.approx(16_000 / 16_500)
    assert (ranking.source, ranking.dispatches, ranking.rest, len(ranking.kernels[0].quantiles)) == ("rocpd", 3, 0, 65)
    assert ranking.kernels[0].launch is not None
    assert (ranking.kernels[0].launch.vgprs, ranking.kernels[0].launch.grids) == (32, 1)
    assert ranking.kernels[0].counters == {"SQ_WAVES": 12.0}
    assert (ranking.copies[0].name, ranking.copies[0].bytes) == ("host to device", 4096)


async def test_what_chisel_wrote_for_viewers_is_not_ranked(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "raw" / "7_kernel_trace.csv", DISPATCHES)
    await write_local_trace({"d": tmp_path}, tmp_path / "trace.json.gz")
    with pytest.raises(UsageError, match="chisel's trace for viewers"):
        await rank_local(tmp_path / "trace.json.gz", top=1)
    (tmp_path / "raw").rename(tmp_path / "host")
    assert (await rank_local(tmp_path, top=1)).source == "trace"


@pytest.mark.parametrize(
    ("name", "content", "kind", "said", "hint"),
    [
        ("nothing", None, UsageError, "does not exist", "--from takes"),
        ("notes.md", b"# hello\n", UsageError, "is of no format that chisel ranks", "--from takes"),
        ("x.pftrace", b"\x0a\xff\x00", UsageError, "it is a Perfetto trace", "--from takes"),
        ("x.csv", b"", ChiselError, "`x.csv` is empty", "--from takes"),
        (
            "hip_stats.csv",
            b'"Name","Calls","TotalDurationNs"\nhipMalloc,1,2\n',
            UsageError,
            "holds no kernels",
            "stats.csv",
        ),
        ("odd.csv", b'"Name","Calls","TotalDurationNs"\nhipMalloc,1,2\n', UsageError, "holds no kernels", "stats.csv"),
        ("kernel_stats.csv", b'"Name","Calls","TotalDurationNs"\n', ChiselError, "holds no dispatch", "--kernel-trace"),
        ("y.db", b"SQLite format 3\0" + b"\1" * 200, ChiselError, "`y.db` cannot be read as a database", "--from"),
    ],
)
async def test_what_cannot_be_ranked_is_said_with_the_next_step(
    tmp_path: Path, name: str, content: bytes | None, kind: type[ChiselError], said: str, hint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=said) as caught:
        await rank_local(tmp_path / name, top=5)
    assert type(caught.value) is kind
    assert name in caught.value.message
    assert hint in str(caught.value.hint)


async def test_wishes_are_served_or_refused(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "a.db", DISPATCHES)
    ranking = await rank_local(tmp_path, top=5, kernel="^scale", skip_warmup=1)
    assert (ranking.kernels, ranking.filtered) == ((), 3)
    said = diagnosis(ranking, 0, Facts(kernel="^scale", skip_warmup=1))
    assert "all 3 dispatches are left out by --kernel `^scale` and --skip-warmup 1" in str(said)
    with pytest.raises(UsageError, match=r"`\*` is no regular expression"):
        await rank_local(tmp_path, top=5, kernel="*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file of a profiler"):
        await rank_local(tmp_path / "empty", top=5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
async def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"x")
    (tmp_path / "a.db").chmod(0)
    with pytest.raises(ChiselError, match=r"a\.db` cannot be read"):
        await rank_local(tmp_path / "a.db", top=5)


async def test_modules_of_the_users_directory_are_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "orjson.py", "statistics.py"):
        (tmp_path / name).write_text("raise SystemExit(9)\n")
    lookalike.rocpd(tmp_path / "a.db", DISPATCHES)
    monkeypatch.chdir(tmp_path)
    assert len((await rank_local(Path("a.db"), top=5)).kernels) == 2


async def test_cancelled_it_leaves_no_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.db")
    lookalike.rocpd(tmp_path / "p" / "b.db", DISPATCHES)
    (tmp_path / "trace.json.gz.new").mkdir()  # the worker's open of it fails only after it has begun
    with pytest.raises(ChiselError, match="cannot be read or written"):
        await write_local_trace({"d": tmp_path / "p"}, tmp_path / "trace.json.gz")
    before = children()
    with anyio.move_on_after(0.05) as scope:
        for _ in range(1000):
            await rank_local(tmp_path / "p", top=5)
    assert scope.cancelled_caught
    assert children() == before


def children() -> set[str]:
    """Return the ids of this process's children that are alive, and of the sessions they lead."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if "chisel.profile.worker" in (entry / "cmdline").read_text():
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                found |= {entry.name} if parent == str(os.getpid()) else set()
        except OSError:
            continue
    return found


# -- traces


async def test_the_trace_holds_every_dispatch_copy_and_call(tmp_path: Path) -> None:
    lookalike.rocpd(tmp_path / "raw" / "7_results.db", DISPATCHES)
    out = tmp_path / "trace.json.gz"
    window = await write_local_trace({"droplet": tmp_path / "raw"}, out, find=GEMM)
    slices = events(out)
    assert window == Window(1000, 10_000)
    assert {(GEMM, 1.0, 9.0), ("scale", 10.1, 0.5)} <= {(one["name"], one["ts"], one["dur"]) for one in slices}
    assert len(slices) == len(DISPATCHES) + 2
    labels = defaultdict(set)
    for event in events(out, "M"):
        labels[event["name"]].add(event["args"].get("name"))
    assert labels["process_name"] == {"GPU 0 (gfx942)", "memory copies", "process 7"}
    assert labels["thread_name"] == {"queue 2", "to GPU 0 (gfx942)", "thread 8"}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["trace.json.gz"]


@pytest.mark.parametrize(
    ("write", "calls"),
    [
        (lambda path: lookalike.v3_json(path / "a.json", DISPATCHES), 2),
        (lambda path: lookalike.v1_json(path / "results.json", DISPATCHES), 2),
        (lambda path: lookalike.v1_database(path / "results.db", DISPATCHES), 1),
        (lambda path: lookalike.v1_csv(path / "results.csv", DISPATCHES), 0),
        (lambda path: lookalike.kernel_trace(path / "7_kernel_trace.csv", DISPATCHES), 0),
        (lambda path: lookalike.rpd(path / "a.rpd", DISPATCHES), 1 + len(DISPATCHES)),
    ],
    ids=["v3", "v1json", "v1db", "v1csv", "csv", "rpd"],
)
async def test_every_format_becomes_a_trace(tmp_path: Path, write: Any, calls: int) -> None:
    write(tmp_path)
    window = await write_local_trace({"d": tmp_path}, tmp_path / "t.gz", find=GEMM)
    slices = events(tmp_path / "t.gz")
    assert len(slices) == len(DISPATCHES) + calls
    assert window is not None
    assert window.end_ns - window.start_ns == 9000
    assert {"scale", GEMM} <= {one["name"] for one in slices}


async def test_calls_and_markers_of_csv_files_are_in_the_trace(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "7_kernel_trace.csv", DISPATCHES)
    (tmp_path / "7_hip_api_trace.csv").write_text(
        '"Domain","Function","Process_Id","Thread_Id","Correlation_Id","Start_Timestamp","End_Timestamp"\n'
        '"HIP_RUNTIME_API","hipMalloc",7,8,1,100,1400\n'
    )
    await write_local_trace({"d": tmp_path}, tmp_path / "t.gz")
    assert len(events(tmp_path / "t.gz")) == len(DISPATCHES) + 1


async def test_droplets_are_laid_side_by_side(tmp_path: Path) -> None:
    lookalike.kernel_trace(tmp_path / "1" / "7_kernel_trace.csv", [("k", 2000), ("k", 9000)])
    lookalike.v1_database(tmp_path / "2" / "results.db", [("k", 3000)])
    out = tmp_path / "t.gz"
    window = await write_local_trace({"chisel-1": tmp_path / "1", "chisel-2": tmp_path / "2"}, out, find="k")
    groups = {event["pid"]: event["args"]["name"] for event in events(out, "M") if event["name"] == "process_name"}
    assert set(groups.values()) == {"chisel-1 GPU agent 4", "chisel-2 GPU 0", "chisel-2 memory copies"}
    firsts = {groups[one["pid"]].split()[0]: one["ts"] for one in reversed(events(out))}
    assert firsts == {"chisel-1": 0.0, "chisel-2": 0.0}
    assert window == Window(2100, 11_100)


async def test_slices_never_cross_in_a_lane(tmp_path: Path) -> None:
    path = tmp_path / "7_kernel_trace.csv"
    rows = [(0, 100), (50, 150), (100, 200), (120, 130), (10, 20)]
    path.write_text(
        "Kind,Agent_Id,Queue_Id,Kernel_Id,Kernel_Name,Correlation_Id,Start_Timestamp,End_Timestamp\n"
        + "".join(f"K,1,1,1,k,1,{start},{end}\n" for start, end in rows)
    )
    await write_local_trace({"d": tmp_path}, tmp_path / "t.gz")
    lanes = defaultdict(list)
    for one in events(tmp_path / "t.gz"):
        lanes[one["tid"]].append((round(one["ts"] * 1000), round((one["ts"] + one["dur"]) * 1000)))
    assert sorted(span for lane in lanes.values() for span in lane) == sorted(rows)
    for lane in lanes.values():
        lane.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(lane))


async def test_an_empty_run_is_a_valid_trace(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    assert await write_local_trace({"d": tmp_path / "raw"}, tmp_path / "t.gz", find="k") is None
    assert (events(tmp_path / "t.gz"), len(events(tmp_path / "t.gz", "M"))) == ([], 1)
