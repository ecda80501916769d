"""The profilers of ROCm 7.2, 6.4 and 5.7 as a droplet has them: command lines, files, and how they fail."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chisel.sandbox.base import DropletSpec
from chisel.sandbox.cloud import Cloud, Knobs, Machines
from chisel.sandbox.droplets import furnish
from chisel.sandbox.standins import GENERATIONS, install_standins
from tests.conftest import python310
from tests.sandbox.pftrace import tracks_of
from tests.sandbox.test_standins import DEADLINE_S, NOTICE, VECTOR_ADD, Bench, bench_with, rows

NAMES = {
    "vector_add(float const*, float const*, float*, unsigned long)",
    "saxpy(float, float const*, float const*, float*, unsigned long)",
    "sum(float const*, double*, unsigned long)",
}
V1 = ["--hip-trace", "--hsa-trace", "--roctx-trace", "--stats"]
PROGRAM = "./build/vector_add"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the example once; a built program is a text that runs anywhere."""
    bench = bench_with(tmp_path_factory.mktemp("built"), sys.executable)
    shutil.copytree(VECTOR_ADD, bench.work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("build", "out"))
    assert bench.run("make").returncode == 0
    return bench.work


@pytest.fixture
def having(tmp_path: Path, example: Path) -> Callable[[str], Bench]:
    def make(generation: str) -> Bench:
        bench = bench_with(tmp_path, sys.executable)
        install_standins(bench.root, generation)
        shutil.copytree(example, bench.work, dirs_exist_ok=True)
        return bench

    return make


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def json_of(path: Path) -> Any:
    return json.loads(path.read_bytes())


# -- which tools there are


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_droplet_has_the_programs_of_its_rocm(tmp_path: Path, generation: str) -> None:
    install_standins(tmp_path, "6.4" if generation != "6.4" else "7.2")  # another one stood there
    install_standins(tmp_path, generation)
    version, programs = GENERATIONS[generation]
    assert {path.name for path in (tmp_path / "opt/rocm/bin").iterdir()} == programs
    assert (tmp_path / "opt/rocm/.info/version").read_text() == version + "\n"


def test_an_unknown_rocm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`8\.0` is no ROCm that the sandbox plays: 7\.2, 6\.4, 5\.7"):
        install_standins(tmp_path, "8.0")


@pytest.mark.parametrize(("value", "rocm"), [("6.4", "6.4"), (6.4, "6.4"), (5.7, "5.7"), ("7.2", "7.2")])
def test_the_knob_takes_the_version_as_text_or_number(value: object, rocm: str) -> None:
    assert Knobs().changed({"rocm": value}).rocm == rocm


@pytest.mark.parametrize("value", ["8", 7, True, None, ["7.2"]])
def test_the_knob_refuses_what_cannot_be_played(value: object) -> None:
    with pytest.raises(ValueError, match=r"`rocm` takes 7\.2, 6\.4, 5\.7"):
        Knobs().changed({"rocm": value})


def test_droplets_of_a_cloud_play_what_its_knob_says(tmp_path: Path) -> None:
    made: list[DropletSpec] = []
    machines = Machines(
        start=lambda spec, told: made.append(spec), stop=lambda id: None, root_of=lambda id: tmp_path / str(id)
    )
    cloud = Cloud(machines, knobs=Knobs(rocm="5.7"))
    wanted = {"name": "one", "size": "gpu-mi300x1-192gb", "image": "ubuntu-24-04-x64"}
    cloud.create(wanted)
    cloud.knobs = cloud.knobs.changed({"rocm": 6.4})
    cloud.create(wanted)
    for spec in made:
        furnish(spec)
    versions = [(spec.root / "opt/rocm/.info/version").read_text() for spec in made]
    assert versions == ["5.7.1-sandbox-standin\n", "6.4.1-sandbox-standin\n"]


@pytest.mark.parametrize(
    ("generation", "line", "status", "said"),
    [
        ("7.2", "rocprofv3 --version", 0, "1.1.0-sandbox-standin"),
        ("7.2", "rocpd --version", 0, "1.1.0-sandbox-standin"),
        ("7.2", "rocprofv3 --kernel-trace -f rocpd -- true", 0, ""),
        ("6.4", "rocprofv3 --version", 2, "unrecognized arguments: --version"),
        ("6.4", "rocprofv3 --kernel-trace -f rocpd -- true", 2, "invalid choice: 'rocpd'"),
        ("6.4", "rocprofv3 --kernel-trace --rccl-trace --kernel-exclude-regex x -- true", 0, ""),
        ("6.4", "rocprofv3 --kernel-trace --kernel-include-regex [ -- true", 1, "bad regular expression"),
        ("6.4", "rocprof --version", 0, "ROCm version: 6.4.1-sandbox-standin"),
        ("5.7", "rocprof", 1, "Usage:"),
        ("5.7", "rocprof -h", 1, "Usage:"),
        ("5.7", "rocprof --stats", 1, "Usage:"),
        ("5.7", "rocprof --kernel-trace true", 1, "Wrong option '--kernel-trace'"),
        ("5.7", "rocprof -o results.db true", 1, "must have .CSV extension"),
        ("5.7", "rocprof -i none.txt true", 1, "Input file 'none.txt' not found"),
        ("5.7", "rocprof --hip-trace --stats bash -c 'exit 7'", 7, "RPL: profiling"),
        ("5.7", "rocprof --hip-trace --stats bash -c 'kill -9 $BASHPID'", 137, "RPL: profiling"),
    ],
)
def test_command_lines_are_judged_as_by_the_real_ones(
    having: Callable[[str], Bench], generation: str, line: str, status: int, said: str
) -> None:
    ended = having(generation).run("bash", "-c", line)
    assert ended.returncode == status, ended.stderr
    assert said in ended.stdout + ended.stderr
    assert "stand-in" in ended.stdout + ended.stderr


# -- ROCm 7.2


def test_all_formats_of_one_run_hold_the_same(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    traces = ["--kernel-trace", "--memory-copy-trace", "--hip-runtime-trace", "--marker-trace", "--stats"]
    words = [*traces, "--pmc", "SQ_WAVES", "MfmaUtil", "-f", "rocpd", "csv", "json", "pftrace", "-d", "p", "-o", "x"]
    ended = bench.run("rocprofv3", *words, "--", PROGRAM, "5000", "4", CHISEL_STANDIN_GPUS="2")
    assert ended.returncode == 0, ended.stderr
    query = (
        'SELECT S.display_name, D.agent_id, D.start, D."end" FROM rocpd_kernel_dispatch D '
        "JOIN rocpd_info_kernel_symbol S ON S.id = D.kernel_id ORDER BY D.start"
    )
    expected = [tuple(row) for row in rows(bench.work / "p/x_results.db", query)]
    assert {name for name, *_ in expected} == NAMES
    assert [agent for _, agent, *_ in expected] == [1, 2] * 6, "dispatches alternate over the GPUs"

    [tool] = json_of(bench.work / "p/x_results.json")["rocprofiler-sdk-tool"]
    symbols = [symbol.get("formatted_kernel_name") for symbol in tool["kernel_symbols"]]
    agents = [agent["id"]["handle"] for agent in tool["agents"]]
    assert [
        (
            symbols[one["dispatch_info"]["kernel_id"]],
            agents.index(one["dispatch_info"]["agent_id"]["handle"]),
            one["start_timestamp"],
            one["end_timestamp"],
        )
        for one in tool["buffer_records"]["kernel_dispatch"]
    ] == expected
    kinds = tool["strings"]["buffer_records"]
    for name in ("hip_api", "memory_copy"):
        one = tool["buffer_records"][name][0]
        assert kinds[one["kind"]]["operations"][one["operation"]].startswith(("hipMalloc", "MEMORY_COPY"))
    assert tool["metadata"]["command"] == [PROGRAM, "5000", "4"]
    assert tool["metadata"]["environment"]["HOME"] == str(bench.root)
    assert tool["metadata"]["stand-in"] == NOTICE

    tracks = tracks_of((bench.work / "p/x_results.pftrace").read_bytes()).values()
    queues = {track.name: track.slices for track in tracks if track.name.startswith("COMPUTE")}
    assert sorted(queues) == ["COMPUTE AGENT [1] QUEUE [0]", "COMPUTE AGENT [2] QUEUE [1]"]
    assert sorted((start, name, end) for slices in queues.values() for name, start, end in slices) == [
        (start, name, end) for name, _, start, end in expected
    ]
    assert any(NOTICE in track.name for track in tracks)

    counted = rows(bench.work / "p/x_results.db", "SELECT counter_name, dispatch_id, value FROM counters_collection")
    from_csv = [
        (row["Counter_Name"], int(row["Dispatch_Id"]), float(row["Counter_Value"]))
        for row in table(bench.work / "p/x_counter_collection.csv")
    ]
    assert len(counted) == 24
    assert sorted(counted) == sorted(from_csv)
    assert {value for name, _, value in from_csv if name == "SQ_WAVES"} == {20 * 4.0}, "5000 items, 256 a group"
    [(said,)] = set(rows(bench.work / "p/x_results.db", "SELECT description FROM rocpd_info_pmc WHERE id = 1"))
    assert NOTICE in said


def test_counters_are_collected_of_the_kernels_that_were_named(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    words = ["--pmc", "SQ_WAVES,GRBM_COUNT", "--kernel-include-regex", "^s", "--kernel-exclude-regex", "^saxpy"]
    assert bench.run("rocprofv3", *words, "-d", "p", "-o", "x", "--", PROGRAM, "9", "2").returncode == 0
    counted = rows(
        bench.work / "p/x_results.db", "SELECT counter_name, kernel_id, count(*) FROM counters_collection GROUP BY 1, 2"
    )
    assert sorted(counted) == [("GRBM_COUNT", 3, 2), ("SQ_WAVES", 3, 2)]
    assert rows(bench.work / "p/x_results.db", "SELECT count(*) FROM rocpd_kernel_dispatch") == [(6,)]


def test_rocpd_converts_several_databases_into_one_trace_and_csv(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    line = f"{PROGRAM} 10 1 && {PROGRAM} 20 2"
    traces = ["--kernel-trace", "--hip-trace", "--memory-copy-trace"]
    assert bench.run("rocprofv3", *traces, "-d", "p", "-o", "%pid%", "--", "bash", "-c", line).returncode == 0
    databases = [str(path) for path in sorted((bench.work / "p").glob("*.db"))]
    ended = bench.run("rocpd", "convert", "-i", *databases, "-f", "pftrace", "csv", "-d", "c", "-o", "both")
    assert ended.returncode == 0, ended.stderr
    tracks = tracks_of((bench.work / "c/both_results.pftrace").read_bytes()).values()
    kernels = [slice for track in tracks if track.name.startswith("COMPUTE") for slice in track.slices]
    assert {name for name, _, _ in kernels} == NAMES
    found = table(bench.work / "c/both_kernel_trace.csv")
    assert [
        (row["Kernel_Name"], int(row["Start_Timestamp"]), int(row["Start_Timestamp"]) + int(row["Duration"]))
        for row in sorted(found, key=lambda row: int(row["Start_Timestamp"]))
    ] == sorted(kernels, key=lambda slice: slice[1])
    assert len({row["Guid"] for row in found}) == 2
    calls = sum(len(track.slices) for track in tracks if track.name.endswith("HIP_RUNTIME_API"))
    assert calls == sum(rows(Path(one), "SELECT count(*) FROM rocpd_region")[0][0] for one in databases)
    assert NOTICE in (bench.work / "c/SANDBOX-STAND-IN.txt").read_text()


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("convert -f pftrace -i none.db", 2, "File 'none.db' does not exist."),
        ("convert -i Makefile", 2, "required: -f/--output-format"),
        ("convert -f json -i Makefile", 2, "invalid choice: 'json'"),
        ("convert -f pftrace -i Makefile", 1, "file is not a database"),
    ],
)
def test_rocpd_refuses(having: Callable[[str], Bench], line: str, status: int, said: str) -> None:
    ended = having("7.2").run("rocpd", *line.split())
    assert ended.returncode == status
    assert said in ended.stderr


# -- ROCm 6.4


def test_6_4_writes_csv_in_its_own_columns(having: Callable[[str], Bench]) -> None:
    bench = having("6.4")
    words = ["--kernel-trace", "--memory-copy-trace", "--stats", "--pmc", "SQ_WAVES", "-d", "p", "-o", "x"]
    ended = bench.run("rocprofv3", *words, "--", PROGRAM, "5000", "2")
    assert ended.returncode == 0, ended.stderr
    assert not list((bench.work / "p").glob("*.db"))
    trace = table(bench.work / "p/x_kernel_trace.csv")
    assert {row["Kernel_Name"] for row in trace} == NAMES
    assert {row["Agent_Id"] for row in trace} == {"1"}
    assert {row["Agent_Id"] for row in table(bench.work / "p/x_counter_collection.csv")} == {"1"}
    totals = {row["Name"]: int(row["TotalDurationNs"]) for row in table(bench.work / "p/x_kernel_stats.csv")}
    assert sum(totals.values()) == sum(int(row["End_Timestamp"]) - int(row["Start_Timestamp"]) for row in trace)


@pytest.mark.real_part("shared")
def test_6_4_columns_are_those_of_the_documentation(having: Callable[[str], Bench], shared: Path) -> None:
    bench = having("6.4")
    bench.run("rocprofv3", "--kernel-trace", "--memory-copy-trace", "-d", "p", "-o", "x", "--", PROGRAM, "9", "1")
    for name in ("kernel_trace", "memory_copy_trace"):
        real = (shared / f"rocprof/v3-sdk-docs/{name}.csv").read_text().splitlines()[0].strip()
        assert (bench.work / f"p/x_{name}.csv").read_text().splitlines()[0] == real


def test_6_4_json_holds_no_environment(having: Callable[[str], Bench]) -> None:
    bench = having("6.4")
    bench.run("rocprofv3", "--kernel-trace", "-f", "json", "-d", "p", "-o", "x", "--", PROGRAM, "9", HF_TOKEN="planted")
    assert b"planted" not in (bench.work / "p/x_results.json").read_bytes()


# -- ROCm 5.7: rocprof v1


def test_v1_results_agree_with_each_other(having: Callable[[str], Bench]) -> None:
    bench = having("5.7")
    ended = bench.run("rocprof", *V1, "-d", "raw", "-o", "out/results.csv", PROGRAM, "5000", "4")
    assert ended.returncode == 1, "its directory must be there"
    (bench.work / "out").mkdir()
    ended = bench.run("rocprof", *V1, "-d", "raw", "-o", "out/results.csv", PROGRAM, "5000", "4")
    assert ended.returncode == 0, ended.stdout
    out = bench.work / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "SANDBOX-STAND-IN.txt",
        *(f"results.{name}" for name in ("copy_stats.csv", "db", "hip_stats.csv", "hsa_stats.csv")),
        *(f"results.{name}" for name in ("json", "stats.csv", "sysinfo.txt")),
    ]
    stats = {row["Name"]: (int(row["Calls"]), int(row["TotalDurationNs"])) for row in table(out / "results.stats.csv")}
    assert set(stats) == {*NAMES, "<barrier packet>"}
    assert max(stats, key=lambda name: stats[name][1]) == "<barrier packet>", "whoever ranks it, ranks it first"
    query = 'SELECT trim(Name, \'"\'), count(*), sum("DurationNs") FROM OPS GROUP BY 1'
    assert {name: (calls, total) for name, calls, total in rows(out / "results.db", query)} == stats
    trace = json_of(out / "results.json")
    assert trace["traceEvents"][0] == {}
    labels = {one["pid"]: one["args"]["name"] for one in trace["traceEvents"][1:] if one["ph"] == "M"}
    assert labels == {
        2: "CPU HIP API",
        3: "CPU HSA API",
        1: "COPY",
        6: "GPU0",
        518: "GPU Barriers0",
        0: "Markers and Ranges",
    }
    slices = [one for one in trace["traceEvents"][1:] if one["ph"] == "X"]
    totals: dict[str, tuple[int, int]] = {}
    for one in slices:
        assert all(isinstance(one[name], str) for name in ("pid", "tid", "ts", "dur"))
        if one["pid"] == "6":
            calls, total = totals.get(one["name"], (0, 0))
            took = int(one["args"]["EndNs"]) - int(one["args"]["BeginNs"])
            assert int(one["dur"]) in (took // 1000, 1)
            totals[one["name"]] = calls + 1, total + took
    assert totals == stats
    raw = list((bench.work / "raw").rglob("*"))
    assert {path.suffix for path in raw if path.is_file()} == {".txt"}, "-d holds raw text only"
    for name in ("SANDBOX-STAND-IN.txt", "results.sysinfo.txt", "results.json"):
        assert NOTICE in (out / name).read_text()


@pytest.mark.real_part("shared")
def test_v1_tables_and_columns_are_those_of_real_files(having: Callable[[str], Bench], shared: Path) -> None:
    bench = having("5.7")
    assert bench.run("rocprof", *V1, PROGRAM, "9", "1").returncode == 0
    real = shared / "rocprof/kokkos-v1-a"
    for name in ("stats.csv", "hip_stats.csv"):
        heads = [
            path.read_text().splitlines()[0] for path in (bench.work / f"results.{name}", real / f"results.{name}")
        ]
        assert heads[0] == heads[1]
    database = sqlite3.connect(f"file:{real / 'results.db'}?mode=ro&immutable=1", uri=True)
    for table in ("HIP", "OPS", "COPY", "rocTX"):
        query = f"SELECT name FROM pragma_table_info('{table}')"
        wanted = {name for (name,) in database.execute(query)} - {"proc-id"}  # ROCm 4 names the process there
        assert wanted <= {name for (name,) in rows(bench.work / "results.db", query)}, table
    database.close()
    keys = [
        {key for one in json_of(path)["traceEvents"] if one.get("pid") == "2" for key in (*one, *one["args"])}
        for path in (bench.work / "results.json", real / "results.json")
    ]
    assert keys[0] == keys[1]


def test_v1_without_o_writes_where_it_stands_and_forgets_the_raw_text(having: Callable[[str], Bench]) -> None:
    bench = having("5.7")
    (bench.work / "results.csv").write_text("an older one")
    ended = bench.run("rocprof", "--hip-trace", "-t", str(bench.work / "tmp"), PROGRAM, "9", "1")
    assert ended.returncode == 0
    assert (bench.work / "results.stats.csv").exists()
    assert not (bench.work / "results.csv").exists(), "an existing results.csv is deleted first"
    assert list((bench.work / "tmp").iterdir()) == [], "data in the temporary directory goes"


def test_v1_counts_in_a_csv_of_dispatches(having: Callable[[str], Bench]) -> None:
    bench = having("5.7")
    (bench.work / "input.txt").write_text("# waves\npmc : SQ_WAVES GRBM_COUNT\n")
    ended = bench.run("rocprof", "-i", "input.txt", "--timestamp", "on", PROGRAM, "5000", "2")
    assert ended.returncode == 0, ended.stdout
    found = table(bench.work / "input.csv")
    assert {row["KernelName"] for row in found} == NAMES
    assert {row["SQ_WAVES"] for row in found} == {"80"}
    assert all(int(row["BeginNs"]) < int(row["EndNs"]) for row in found)
    bench.run("rocprof", "--stats", PROGRAM, "5000", "2")
    stats = {row["Name"]: int(row["TotalDurationNs"]) for row in table(bench.work / "results.stats.csv")}
    assert sum(stats.values()) == sum(int(row["DurationNs"]) for row in table(bench.work / "results.csv"))


def test_v1_evaluates_arguments_again_and_merges_the_streams(having: Callable[[str], Bench]) -> None:
    bench = having("5.7")
    (bench.work / "script.sh").write_text('echo "$1" >&2; exit 3')
    ended = bench.run("rocprof", "--hip-trace", "bash", "script.sh", "$HOME `id -u`  two")
    assert ended.returncode == 3
    assert f"\n{bench.root} {os.getuid()} two\n" in ended.stdout
    assert ended.stderr == ""


def test_v1_interrupted_keeps_raw_text_only(having: Callable[[str], Bench]) -> None:
    bench = having("5.7")
    words = ["rocprof", "--hip-trace", "-d", "raw", PROGRAM, "1000", "100000000"]
    process = subprocess.Popen(
        words, cwd=bench.work, env=bench.environment(), stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    try:
        while not process.stdout.readline().startswith(b"n: 1000"):
            pass
        wait_for(lambda: process_names(process.pid, PROGRAM))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(3 * DEADLINE_S) == -signal.SIGINT
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert not list(bench.work.glob("results.*"))
    assert list((bench.work / "raw").rglob("log.txt"))


def process_names(session: int, name: str) -> bool:
    """Say whether a program of a session is far enough to take a signal: it has opened what it records into."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(session):
            with contextlib.suppress(OSError):
                is_ours = os.getsid(int(entry.name)) == session and name.encode() in (entry / "cmdline").read_bytes()
                if is_ours and any(os.readlink(one).endswith(".jsonl.part") for one in (entry / "fd").iterdir()):
                    return True
    return False


def wait_for(holds: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)  # noqa: TID251 - another process's files send no event


# -- failures


def profiled(bench: Bench, fault: str, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    own = [*(words or ("--kernel-trace",)), "-d", "p", "-o", "x"]
    return bench.run("rocprofv3", *own, "--", PROGRAM, "100", "3", CHISEL_STANDIN_FAULT=fault, **extra)


def test_an_unknown_fault_is_refused(having: Callable[[str], Bench]) -> None:
    ended = profiled(having("7.2"), "nofiles")
    assert ended.returncode == 1
    assert "CHISEL_STANDIN_FAULT=nofiles is no fault; known: no-files" in ended.stderr


def test_a_profiler_that_writes_nothing(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    assert profiled(bench, "no-files").returncode == 0
    assert not (bench.work / "p").exists()


def test_only_barriers(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    profiled(bench, "barriers-only")
    assert rows(bench.work / "p/x_results.db", "SELECT name, count(*) FROM kernels GROUP BY 1") == [
        ("<barrier packet>", 9)
    ]


def test_a_truncated_database(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    profiled(bench, "truncated-db")
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        rows(bench.work / "p/x_results.db", "SELECT * FROM rocpd_kernel_dispatch")


def test_killed_while_writing(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    ended = profiled(bench, "killed-while-writing", ROCPROF_TMPDIR=str(bench.root))
    assert ended.returncode == -signal.SIGKILL
    assert {path.name for path in (bench.work / "p").iterdir()} >= {"x_results.db", "x_results.db-journal"}
    assert list((bench.root / ".rocprofv3").iterdir()), "temporary files are left"
    with pytest.raises(sqlite3.DatabaseError):
        rows(bench.work / "p/x_results.db", "SELECT * FROM rocpd_kernel_dispatch")


@pytest.mark.parametrize("generation", ["6.4", "5.7"])
def test_truncated_statistics_beside_a_whole_trace(having: Callable[[str], Bench], generation: str) -> None:
    bench = having(generation)
    if generation == "6.4":
        profiled(bench, "stats-truncated", "--kernel-trace", "--stats")
        stats, whole = bench.work / "p/x_kernel_stats.csv", len(table(bench.work / "p/x_kernel_trace.csv"))
    else:
        bench.run("rocprof", *V1, PROGRAM, "100", "3", CHISEL_STANDIN_FAULT="stats-truncated")
        stats = bench.work / "results.stats.csv"
        whole = rows(bench.work / "results.db", "SELECT count(*) FROM OPS WHERE Name NOT LIKE '\"<%'")[0][0]
    assert whole == 9
    assert len(stats.read_text().splitlines()) in (2, 3)
    assert not stats.read_text().endswith("\n"), "the last row is cut"


def test_long_names_differ_late(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    profiled(bench, "long-names")
    names = [name for (name,) in rows(bench.work / "p/x_results.db", "SELECT DISTINCT name FROM kernels")]
    assert [len(name) for name in names] == [1800] * 3
    assert len({name[:1600] for name in names}) == 1


def test_secrets_stand_in_markers(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    profiled(bench, "secrets-in-markers", "--marker-trace", "--kernel-trace", HF_TOKEN="hunter2")
    assert rows(bench.work / "p/x_results.db", "SELECT name FROM regions") == [
        ('request with "HF_TOKEN=hunter2", made',)
    ]


def slow(bench: Bench, seconds: float) -> subprocess.Popen[bytes]:
    """Interrupt a profile that takes so long to finalise; return it when it has begun to write."""
    words = ["rocprofv3", "--kernel-trace", "-f", "csv", "-d", "p", "-o", "x", "--", PROGRAM, "1000", "100000000"]
    environment = bench.environment(
        ROCPROF_TMPDIR=str(bench.root), CHISEL_STANDIN_FAULT="slow-finalise", CHISEL_STANDIN_FINALISE_S=str(seconds)
    )
    process = subprocess.Popen(
        words, cwd=bench.work, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: [part for part in (bench.root / ".rocprofv3").rglob("*.jsonl.part") if part.stat().st_size])
    os.killpg(process.pid, signal.SIGINT)
    wait_for((bench.work / "p").exists)
    return process


def test_a_slow_finalisation_grows_and_comes_to_its_end(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    process = slow(bench, 0.6)
    try:
        sizes = set()
        while process.poll() is None:
            sizes.add(sum(path.stat().st_size for path in (bench.work / "p").iterdir()))
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
    assert len(sizes) > 5
    assert (bench.work / "p/x_kernel_trace.csv").read_bytes().endswith(b"\n")
    assert not (bench.root / ".rocprofv3").exists()


def test_a_second_interrupt_ends_a_slow_finalisation(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    process = slow(bench, 60)
    try:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(3 * DEADLINE_S) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
    assert not (bench.work / "p/x_kernel_trace.csv").exists(), "files before it in the alphabet were under way"


# -- what sensors show


@pytest.mark.parametrize("generation", ["7.2", "6.4"])
def test_amd_smi_answers_in_the_form_of_its_rocm(having: Callable[[str], Bench], generation: str) -> None:
    bench = having(generation)
    readings = {"power_w": 749, "sclk_mhz": 1259, "gpus": 2, "gpu": {"1": {"hotspot_c": 95}}}
    (bench.root / "etc").mkdir()
    (bench.root / "etc/chisel-standin.json").write_text(json.dumps(readings))
    metric = json.loads(bench.run("amd-smi", "metric", "--json").stdout)
    static = json.loads(bench.run("amd-smi", "static", "--limit", "--json").stdout)
    if generation == "7.2":
        metric, static = metric["gpu_data"], static["gpu_data"]
        assert static[0]["limit"]["ppt0"]["socket_power_limit"] == {"value": 750, "unit": "W"}
    else:
        assert static[0]["limit"]["socket_power"] == {"value": 750, "unit": "W"}
    assert [one["power"]["socket_power"]["value"] for one in metric] == [749, 749]
    assert [one["temperature"]["hotspot"]["value"] for one in metric][1] == 95
    assert {one["clock"]["gfx_0"]["clk"]["value"] for one in metric} == {1259}
    assert metric[0]["throttle"]["ppt_violation_status"] == "ACTIVE"
    assert all(one["stand-in"] == NOTICE for one in (*metric, *static))
    assert bench.run("amd-smi", "metric", "--nothing").returncode == 2


def test_readings_nobody_set_are_plausible(having: Callable[[str], Bench]) -> None:
    bench = having("7.2")
    card = json.loads(
        bench.run("rocm-smi", "--showpower", "--showclocks", "--showtemp", "--showmaxpower", "--json").stdout
    )
    found = card["card0"]
    assert 600 < float(found["Current Socket Graphics Package Power (W)"]) < 750.0
    assert found["Max Graphics Package Power (W)"] == "750.0"
    assert 2000 < int(found["sclk clock speed:"].strip("()Mhz")) <= 2100
    assert found["stand-in"] == NOTICE
    install_standins(bench.root, "5.7")
    assert "Average Graphics Package Power (W)" in bench.run("rocm-smi", "--showpower", "--json").stdout


def test_every_line_of_amd_smi_says_what_it_is(having: Callable[[str], Bench]) -> None:
    lines = having("7.2").run("amd-smi", "metric", "--power").stdout.splitlines()
    assert lines
    assert all("stand-in" in line for line in lines)


@pytest.mark.real_part("python3.10")
@pytest.mark.parametrize(
    ("generation", "line"),
    [
        ("7.2", f"rocprofv3 -s --pmc SQ_WAVES -f csv rocpd json pftrace -d p -o x -- {PROGRAM} 100 2"),
        ("7.2", f"rocprofv3 -s -d p -o x -- {PROGRAM} 9 1 && rocpd convert -i p/x_results.db -f pftrace csv -d c"),
        ("6.4", "amd-smi metric --json && amd-smi static && rocm-smi -a --json"),
        ("5.7", f"rocprof --sys-trace --roctx-trace {PROGRAM} 100 2 && rocprof --stats {PROGRAM} 100 2"),
    ],
)
def test_everything_runs_on_the_python_of_ubuntu_22_04(
    tmp_path: Path, example: Path, generation: str, line: str
) -> None:
    python = python310()
    assert python
    bench = bench_with(tmp_path, os.path.realpath(python))
    install_standins(bench.root, generation)
    shutil.copytree(example, bench.work, dirs_exist_ok=True)
    ended = bench.run("bash", "-c", line)
    assert ended.returncode == 0, ended.stderr + ended.stdout
