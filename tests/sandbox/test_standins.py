"""Run the stand-ins as a sandbox droplet does: as programs, with nothing of the host's environment but PATH."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chisel.sandbox.standins import VERSION, install_standins

VECTOR_ADD = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
NOTICE = "sandbox stand-in: no GPU was used; figures are made up"
DEADLINE_S = 10.0

KERNEL = "__global__ void k(float* x) { x[threadIdx.x] = 1; }\n"
LAUNCH = "int main() { k<<<4, 256>>>(nullptr); }\n"


@dataclass(frozen=True)
class Bench:
    """A directory to work in and the environment of a sandbox droplet."""

    root: Path
    work: Path
    path: str

    def environment(self, **extra: str) -> dict[str, str]:
        return {"PATH": self.path, "HOME": str(self.root), "LANG": "C.UTF-8", **extra}

    def run(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.work, env=self.environment(**extra), capture_output=True, text=True, timeout=DEADLINE_S
        )

    def compile(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        (self.work / "k.hip").write_text(source)
        return self.run("hipcc", *options, "k.hip", "-o", "k")


def bench_with(tmp_path: Path, python: str) -> Bench:
    root, work, tools = tmp_path / "root", tmp_path / "work", tmp_path / "tools"
    work.mkdir()
    tools.mkdir()
    (tools / "python3").symlink_to(python)
    install_standins(root)
    return Bench(root, work, f"{root}/opt/rocm/bin:{tools}:/usr/local/bin:/usr/bin:/bin")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return bench_with(tmp_path, sys.executable)


@pytest.fixture
def built(bench: Bench) -> Bench:
    shutil.copytree(VECTOR_ADD, bench.work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("build", "out"))
    made = bench.run("make")
    assert made.returncode == 0, made.stderr
    return bench


def databases(bench: Bench) -> list[Path]:
    return sorted(bench.work.rglob("*_results.db"))


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(database)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_installing_twice_leaves_working_programs_and_the_version(tmp_path: Path) -> None:
    for _ in range(2):
        install_standins(tmp_path)
    assert (tmp_path / "opt/rocm/.info/version").read_text() == VERSION + "\n"
    installed = sorted((tmp_path / "opt/rocm/bin").iterdir())
    assert [path.name for path in installed] == ["amd-smi", "hipcc", "rocm-smi", "rocminfo", "rocpd", "rocprofv3"]
    assert all(os.access(path, os.X_OK) and not path.is_symlink() for path in installed)


@pytest.mark.parametrize(
    "line",
    [
        "hipcc --version",
        "rocprofv3 --version",
        "rocprofv3 --help",
        "rocm-smi",
        "rocm-smi --showproductname",
        "rocm-smi --showuse",
        "rocm-smi --json",
        "rocminfo",
    ],
)
def test_whatever_is_printed_says_that_it_is_a_stand_in(bench: Bench, line: str) -> None:
    ended = bench.run(*line.split())
    assert ended.returncode == 0, ended.stderr
    assert "stand-in" in ended.stdout


def test_rocm_smi_answers_in_json(bench: Bench) -> None:
    ended = bench.run("rocm-smi", "--showproductname", "--showuse", "--json")
    card = json.loads(ended.stdout)["card0"]
    assert card["Card Series"] == "AMD Instinct MI300X (sandbox stand-in)"
    assert card["GPU use (%)"] == "97"
    assert card["stand-in"] == NOTICE


def test_rocminfo_shows_an_mi300x(bench: Bench) -> None:
    assert "gfx942" in bench.run("rocminfo").stdout


def test_the_example_builds_runs_and_says_what_it_is(built: Bench) -> None:
    ended = built.run("./build/vector_add", "100000", "3")
    assert ended.returncode == 0
    lines = ended.stdout.splitlines()
    assert lines[:3] == [
        NOTICE,
        "device: AMD Instinct MI300X (sandbox stand-in)",
        "n: 100000, block size: 256, iterations: 3",
    ]
    assert [line.split(":")[0] for line in lines[3:6]] == ["vector_add", "saxpy", "sum"]
    assert lines[6:] == ["PASSED"]


def test_figures_follow_block_size_and_seed_and_nothing_else(built: Bench) -> None:
    first = built.run("./build/vector_add", "1048576", "5").stdout
    assert built.run("./build/vector_add", "1048576", "5").stdout == first
    assert built.run("./build/vector_add", "1048576", "5", CHISEL_STANDIN_SEED="1").stdout != first
    assert built.run("make", "BLOCK_SIZE=1024").returncode == 0
    wide = built.run("./build/vector_add", "1048576", "5").stdout
    assert "block size: 1024" in wide
    assert wide.splitlines()[3:] != first.splitlines()[3:]


def test_make_builds_again_only_when_something_changed(built: Bench) -> None:
    assert "hipcc" not in built.run("make").stdout
    assert "-DBLOCK_SIZE=64" in built.run("make", "BLOCK_SIZE=64").stdout
    assert "--offload-arch=gfx90a" in built.run("make", CHISEL_GPU_ARCH="gfx90a").stdout


def test_bench_script_writes_a_table_that_names_the_stand_in(built: Bench) -> None:
    ended = built.run("./bench.sh", "1000", "2000", BLOCK_SIZE="128", ITERATIONS="2")
    assert ended.returncode == 0, ended.stderr
    with (built.work / "out/results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["kernel"], row["n"]) for row in table] == [
        (kernel, n) for n in ("1000", "2000") for kernel in ("vector_add", "saxpy", "sum")
    ]
    assert {row["block_size"] for row in table} == {"128"}
    assert all("stand-in" in row["device"] and float(row["gb_per_s"]) > 0 for row in table)


def test_bench_script_fails_when_the_program_does(built: Bench) -> None:
    assert built.run("./bench.sh", "0").returncode == 2
    assert not (built.work / "out/results.csv").exists()


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (KERNEL + "int main() {\n  k<<<1, 1>>>(0);\n", "k.hip:3:17: error: expected '}'"),
        (KERNEL + "int main() { } }\n", "k.hip:2:16: error: extraneous closing brace ('}')"),
        (KERNEL + "int main() { f(1]; }\n", "k.hip:2:17: error: expected ')'"),
        ("int main() { }\n", "k.hip:1:1: error: no `__global__` function found"),
        (KERNEL + "int main() {\n  wrong<<<1, 1>>>();\n}\n", "k.hip:3:3: error: use of undeclared identifier 'wrong'"),
        ('#include "none.h"\n' + KERNEL, "k.hip:1:10: fatal error: 'none.h' file not found"),
        (KERNEL + "#error turn back\n", "k.hip:2:2: error: turn back"),
        ('#define B 48\nstatic_assert(B % 32 == 0, "x");\n' + KERNEL, "k.hip:2:1: error: static assertion failed"),
    ],
)
def test_wrong_source_is_refused_as_the_compiler_does(bench: Bench, source: str, error: str) -> None:
    ended = bench.compile(source)
    assert ended.returncode == 1
    assert error in ended.stderr
    assert "1 error generated" in ended.stderr
    assert not (bench.work / "k").exists()


@pytest.mark.parametrize(
    "source",
    [
        "// {\n/* ( */ " + KERNEL + "const char* s = \"}}\";\nchar c = '{';\n" + LAUNCH,
        "#ifdef NEVER\n{{{\n#error no\n#else\n" + KERNEL + "#endif\n" + LAUNCH,
        "#if 0\n}\n#elif defined(__HIP__)\n}\n#else\n" + KERNEL + "#endif\n" + LAUNCH,
        'static_assert(sizeof(float) == 4, "unknown here");\n' + KERNEL + LAUNCH,
    ],
)
def test_sound_source_is_accepted(bench: Bench, source: str) -> None:
    ended = bench.compile(source)
    assert ended.returncode == 0, ended.stderr
    assert bench.run("./k", "100").stdout.endswith("PASSED\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["k.hip", "--offload-arch=sm_90"], "invalid target ID 'sm_90'"),
        (["k.hip", "--wrong"], "unknown argument: '--wrong'"),
        (["none.hip"], "no such file or directory: 'none.hip'"),
        (["k.hip", "-o", "none/k"], "unable to open output file 'none/k'"),
        (["k.hip", "-o"], "argument to '-o' is missing"),
        ([], "no input files"),
    ],
)
def test_a_wrong_command_line_is_refused(bench: Bench, words: list[str], error: str) -> None:
    (bench.work / "k.hip").write_text(KERNEL + LAUNCH)
    ended = bench.run("hipcc", *words)
    assert ended.returncode == 1
    assert error in ended.stderr


def test_objects_link_with_headers_and_dependencies(bench: Bench) -> None:
    (bench.work / "k.h").write_text("#define BLOCK_SIZE 512\n" + KERNEL)
    (bench.work / "k.hip").write_text('#include "k.h"\n' + LAUNCH.replace("256", "BLOCK_SIZE"))
    (bench.work / "host.cpp").write_text("int helper() { return 1; }\n")
    for source in ("k.hip", "host.cpp"):
        ended = bench.run("hipcc", "-O2", "-std=c++17", "-MMD", "-Wall", "-c", source)
        assert ended.returncode == 0, ended.stderr
    assert (bench.work / "k.d").read_text() == "k.o: k.hip k.h\n"
    assert NOTICE in (bench.work / "k.o").read_text()
    assert bench.run("hipcc", "host.o", "k.o", "-o", "k").returncode == 0
    assert "block size: 512" in bench.run("./k").stdout


@pytest.mark.parametrize(
    ("words", "options", "status", "said"),
    [
        (["0"], [], 2, "usage: ./k"),
        (["9" * 12], [], 1, "out of memory"),
        (["100"], ["--offload-arch=gfx90a"], 1, "no kernel image is available"),
        (["100"], ["-DBLOCK=2048"], 1, "invalid configuration argument"),
    ],
)
def test_a_program_fails_as_it_would_on_the_gpu(
    bench: Bench, words: list[str], options: list[str], status: int, said: str
) -> None:
    source = "#ifndef BLOCK\n#define BLOCK 256\n#endif\n" + KERNEL + LAUNCH.replace("256", "BLOCK")
    assert bench.compile(source, *options).returncode == 0
    ended = bench.run("./k", *words)
    assert ended.returncode == status
    assert said in ended.stderr
    assert "PASSED" not in ended.stdout


def test_the_profiler_records_each_launch_with_its_geometry(bench: Bench) -> None:
    source = """
    template <typename T> __global__ void scale(T* x, const T* __restrict__ y, unsigned n) { }
    extern "C" __global__ void plain(int* x) { }
    constexpr int threads = 64 * 2;
    int main() {
        const dim3 block(16, 8);
        scale<float><<<dim3(10, 20), block, 0, nullptr>>>(a, b, 1);
        hipLaunchKernelGGL(plain, dim3((n + threads - 1) / threads), dim3(threads), 0, 0, c);
    }
    """
    assert bench.compile(source).returncode == 0
    ended = bench.run("rocprofv3", "--kernel-trace", "-d", "p", "-o", "x", "--", "./k", "1000", "2")
    assert ended.returncode == 0, ended.stderr
    sizes = "workgroup_x, workgroup_y, workgroup_z, grid_x, grid_y, grid_z"
    assert (
        rows(bench.work / "p/x_results.db", f"SELECT name, {sizes} FROM kernels ORDER BY start")
        == [
            ("void scale<float>(float*, float const*, unsigned int)", 16, 8, 1, 160, 160, 1),
            ("plain", 128, 1, 1, 1024, 1, 1),
        ]
        * 2
    )


def test_rocpd_and_csv_of_one_run_agree(built: Bench) -> None:
    traces = ["--kernel-trace", "--memory-copy-trace", "--hip-runtime-trace", "--hsa-trace", "--stats"]
    ended = built.run(
        "rocprofv3", *traces, "-f", "csv", "rocpd", "-d", "p", "-o", "x", "--", "./build/vector_add", "1000000", "7"
    )
    assert ended.returncode == 0, ended.stderr
    query = (
        'SELECT S.display_name, count(*), sum(D."end" - D.start) FROM rocpd_kernel_dispatch D '
        "JOIN rocpd_info_kernel_symbol S ON S.id = D.kernel_id AND S.guid = D.guid GROUP BY D.guid, D.kernel_id"
    )
    from_database = {name: (calls, total) for name, calls, total in rows(built.work / "p/x_results.db", query)}
    with (built.work / "p/x_kernel_stats.csv").open() as file:
        from_stats = {row["Name"]: (int(row["Calls"]), int(row["TotalDurationNs"])) for row in csv.DictReader(file)}
    from_trace: dict[str, tuple[int, int]] = {}
    with (built.work / "p/x_kernel_trace.csv").open() as file:
        for row in csv.DictReader(file):
            calls, total = from_trace.get(row["Kernel_Name"], (0, 0))
            took = int(row["End_Timestamp"]) - int(row["Start_Timestamp"])
            from_trace[row["Kernel_Name"]] = calls + 1, total + took
    assert from_database == from_stats == from_trace
    assert sorted(from_database) == [
        "saxpy(float, float const*, float const*, float*, unsigned long)",
        "sum(float const*, double*, unsigned long)",
        "vector_add(float const*, float const*, float*, unsigned long)",
    ]
    assert {calls for calls, _ in from_database.values()} == {7}
    top = rows(built.work / "p/x_results.db", "SELECT name, total_calls, total_duration FROM top_kernels")
    assert {name: (calls, us) for name, calls, us in top} == {
        n: (c, ns // 1000) for n, (c, ns) in from_database.items()
    }
    for name in ("hip_api_trace", "hip_api_stats", "hsa_api_trace", "memory_copy_trace", "domain_stats", "agent_info"):
        assert (built.work / f"p/x_{name}.csv").stat().st_size > 100
    assert rows(built.work / "p/x_results.db", "SELECT count(*) FROM memory_copies") == [(5,)]
    assert rows(built.work / "p/x_results.db", "SELECT count(*) FROM regions WHERE name = 'hipLaunchKernel'") == [(21,)]


def test_profiles_say_that_they_are_made_up(built: Bench) -> None:
    built.run("rocprofv3", "--kernel-trace", "-f", "csv", "rocpd", "-d", "p", "-o", "x", "--", "./build/vector_add")
    assert rows(built.work / "p/x_results.db", "SELECT value FROM rocpd_metadata WHERE tag = 'stand-in'") == [(NOTICE,)]
    assert NOTICE in (built.work / "p/x_agent_info.csv").read_text()
    assert NOTICE in (built.work / "p/SANDBOX-STAND-IN.txt").read_text()


@pytest.mark.real_part("shared")
def test_tables_are_those_of_a_real_database(built: Bench, shared: Path) -> None:
    built.run("rocprofv3", "--kernel-trace", "-d", "p", "-o", "x", "--", "./build/vector_add")
    database = built.work / "p/x_results.db"
    [(guid,)] = rows(database, "SELECT value FROM rocpd_metadata WHERE tag = 'guid'")
    suffix = str(guid).replace("-", "_")
    expected = {}
    for line in (shared / "facts/rocpd-schema.txt").read_text().splitlines():
        if line.startswith("rocpd_"):
            name, _, columns = line.rstrip(")").partition("_<GUID>(")
            expected[name] = [tuple(column.split()) for column in columns.split(", ")]
    assert len(expected) == 20
    for name, wanted in expected.items():
        for relation in (f"{name}_{suffix}", name):
            found = rows(database, f'SELECT name, type FROM pragma_table_info("{relation}")')
            assert found == wanted, relation


@pytest.mark.real_part("shared")
def test_csv_columns_are_those_of_real_files(built: Bench, shared: Path) -> None:
    built.run("rocprofv3", "--runtime-trace", "--stats", "-f", "csv", "-d", "p", "-o", "x", "--", "./build/vector_add")
    pairs = {
        "kernel_trace": shared / "rocprof/v3-gfx1151-crlf/decode_kernel_trace.csv",
        "hip_api_stats": shared / "rocprof/v3-sdk-docs/hip_api_stats.csv",
        "hip_api_trace": shared / "rocprof/v3-sdk-docs/marker_api_trace.csv",
    }
    for name, real in pairs.items():
        ours = (built.work / f"p/x_{name}.csv").read_text().splitlines()[0]
        assert ours == real.read_text().splitlines()[0].strip()


def test_the_whole_environment_travels_as_it_really_does(built: Bench) -> None:
    built.run("rocprofv3", "--kernel-trace", "-d", "p", "--", "./build/vector_add", HF_TOKEN="planted;secret")
    [database] = databases(built)
    [(environment, command)] = rows(database, "SELECT environment, command FROM rocpd_info_process")
    assert json.loads(str(environment))["HF_TOKEN"] == "planted;secret"
    assert command == "./build/vector_add"


def test_without_names_files_go_below_the_host_name(built: Bench) -> None:
    built.run("rocprofv3", "--kernel-trace", "--", "./build/vector_add", "10")
    [database] = databases(built)
    [(host, pid)] = rows(
        database, "SELECT hostname, P.pid FROM rocpd_info_node N JOIN rocpd_info_process P ON P.nid = N.id"
    )
    assert database == built.work / str(host) / f"{pid}_results.db"


@pytest.mark.parametrize(("name", "files"), [("%pid%", 2), ("%hostname%-%pid%", 2), ("same", 1)])
def test_several_processes_write_several_files_unless_the_name_is_one(built: Bench, name: str, files: int) -> None:
    line = "./build/vector_add 10 1 && ./build/vector_add 20 2"
    ended = built.run("rocprofv3", "--kernel-trace", "-d", "p", "-o", name, "--", "bash", "-c", line)
    assert ended.returncode == 0, ended.stderr
    counts = [rows(path, "SELECT count(*) FROM kernels")[0][0] for path in databases(built)]
    assert sorted(counts, key=str) == ([3, 6] if files == 2 else [6])


def test_an_application_without_kernels_gives_a_database_without_dispatches(bench: Bench) -> None:
    ended = bench.run("rocprofv3", "--kernel-trace", "-d", "p", "-o", "%pid%", "--", "bash", "-c", "echo hello")
    assert (ended.returncode, ended.stdout) == (0, "hello\n")
    [database] = databases(bench)
    assert rows(database, "SELECT count(*) FROM rocpd_kernel_dispatch") == [(0,)]
    assert rows(database, "SELECT command FROM rocpd_info_process") == [("bash -c echo hello",)]


@pytest.mark.parametrize(("line", "status"), [("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15), ("true", 0)])
def test_the_application_decides_the_exit_status(bench: Bench, line: str, status: int) -> None:
    ended = bench.run("rocprofv3", "--kernel-trace", "-d", "p", "--", "bash", "-c", line)
    assert ended.returncode == status
    assert not (bench.work / ".rocprofv3").exists()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("rocprofv3 --kernel-trace true", 2),
        ("rocprofv3 --kernel-trace --", 2),
        ("rocprofv3 --no-such-option -- true", 2),
        ("rocprofv3 --kernel-trace --stats ./a.out -- true", 2),
        ("rocprofv3 --stats -- true", 1),
        ("rocprofv3 --kernel-trace -f otf2 -- true", 1),
        ("rocprofv3 --kernel-trace --pmc SQ_WAVES; -- true", 1),
        ("rocprofv3 --pmc SQ_WAVES,GRBM_COUNT --kernel-include-regex vector --rccl-trace -- true", 0),
        ("rocprofv3 --kernel-trace -- ./none", 1),
        ("rocprofv3 --kernel-trace=no --hip-trace=yes --stats -- true", 0),
    ],
)
def test_the_command_line_is_judged_as_by_the_real_one(bench: Bench, line: str, status: int) -> None:
    assert bench.run(*line.split()).returncode == status


def part_files(directory: Path) -> Iterator[Path]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        yield from (path for path in directory.rglob("*.jsonl.part") if path.stat().st_size > 0)


def test_an_interrupted_run_keeps_what_it_has(built: Bench) -> None:
    words = ["rocprofv3", "--kernel-trace", "-d", "p", "-o", "x", "--", "./build/vector_add", "1000", "100000000"]
    process = subprocess.Popen(
        words, cwd=built.work, env=built.environment(ROCPROF_TMPDIR=str(built.root)), stderr=subprocess.DEVNULL
    )
    try:
        collection = next(part_files(built.root / ".rocprofv3"))
        assert collection.stat().st_mode & 0o077 == 0, "it holds the environment"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
    assert rows(built.work / "p/x_results.db", "SELECT count(*) > 0 FROM kernels") == [(1,)]
    assert not (built.root / ".rocprofv3").exists()


@pytest.mark.real_part("python3.10")
def test_everything_runs_on_the_python_of_ubuntu_22_04(tmp_path: Path) -> None:
    python = os.environ.get("CHISEL_TEST_PYTHON310") or shutil.which("python3.10") or sys.executable
    asked = subprocess.run([python, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    if asked.returncode:
        give_up = pytest.fail if os.environ.get("CHISEL_TEST_REAL_PARTS") == "required" else pytest.skip
        give_up(f"{python} is there but does not start; set CHISEL_TEST_PYTHON310")
    bench = bench_with(tmp_path, asked.stdout.strip())
    assert bench.run("python3", "-c", "import sys; print(sys.version_info[:2])").stdout == "(3, 10)\n"
    shutil.copytree(VECTOR_ADD, bench.work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("build", "out"))
    assert bench.run("make").returncode == 0
    traces = ["--sys-trace", "--stats", "-f", "csv", "rocpd"]
    ended = bench.run("rocprofv3", *traces, "-d", "p", "-o", "x", "--", "./build/vector_add", "1000", "2")
    assert ended.returncode == 0, ended.stderr
    assert rows(bench.work / "p/x_results.db", "SELECT count(*) FROM kernels") == [(6,)]
    for tool in ("rocm-smi", "rocminfo"):
        assert bench.run(tool).returncode == 0
