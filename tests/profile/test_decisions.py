"""Which profiler, which command line, which table, where the files go."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.errors import ConfigError, UsageError
from chisel.figures import Copies, KernelStats, Launch, Part, Ranking
from chisel.profile.archive import check_out, default_out, put_in_place, staging_for, write_table
from chisel.profile.drivers import (
    Asked,
    Driver,
    check_counters,
    check_traces,
    choose_driver,
    command_line,
    cost_of,
)
from chisel.profile.rank import Facts, decode_ranking, diagnosis

ROCPD = Driver("rocprofv3", "1.1.0", "rocpd", (7, 2))
HIP = Asked(("hip",))
KERNEL = KernelStats("void k<a, b>()", 2, 30, 15.0, 15.0, 19.9, 10, 20, 1.0)


def facts(rocm: str | None, version: str | None, **profiler: str | None) -> dict[str, Any]:
    return {"rocm": rocm, "profiler": {"rocprofv3": "/opt/rocm/bin/rocprofv3", "version": version, **profiler}}


@pytest.mark.parametrize(
    ("found", "driver"),
    [
        (facts("7.2.0", "1.1.0"), Driver("rocprofv3", "1.1.0", "rocpd", (7, 2))),
        (facts("6.4.1", None), Driver("rocprofv3", None, "csv", (6, 4))),
        (facts("6.2.0-66", "0.4.0"), Driver("rocprofv3", "0.4.0", "csv", (6, 2))),
        (facts("10.0.0", "1.3.5"), Driver("rocprofv3", "1.3.5", "rocpd", (10, 0))),
        (facts(None, "1.0.0"), Driver("rocprofv3", "1.0.0", "rocpd")),
        (facts(None, None), Driver("rocprofv3", None, "csv")),
        (facts("5.7.1", None, rocprofv3=None, rocprof="/x"), Driver("rocprof", None, "v1", (5, 7))),
        (facts("6.4.1", None, rocprof="/x"), Driver("rocprofv3", None, "csv", (6, 4))),
    ],
)
def test_the_driver_follows_what_the_droplet_has(found: dict[str, Any], driver: Driver) -> None:
    assert choose_driver(found) == driver


@pytest.mark.parametrize("found", [{}, {"profiler": None}, {"profiler": {"rocprofv3": None, "rocprof": None}}])
def test_without_a_profiler_it_is_said_what_to_do(found: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no profiler") as caught:
        choose_driver(found)
    assert caught.value.hint


def test_a_driver_can_be_forced_where_the_droplet_has_it() -> None:
    both = facts("7.2.0", "1.1.0", rocprof="/opt/rocm/bin/rocprof")
    assert [choose_driver(both, name).format for name in ("rocpd", "csv", "v1")] == ["rocpd", "csv", "v1"]
    generations = {choose_driver(both, name).generation for name in ("rocpd", "csv", "v1")}
    assert len(generations) == 3, "none of them may be compared with another"
    with pytest.raises(UsageError, match="`v4` is no driver"):
        choose_driver(both, "v4")
    with pytest.raises(ConfigError, match="cannot do `--driver rocpd`") as caught:
        choose_driver(facts("6.4.1", None), "rocpd")
    assert caught.value.hint == "it can: csv"


def test_traces_are_named() -> None:
    assert check_traces(None) == ("memory", "hip")
    assert check_traces(["roctx", "hip", "roctx"]) == ("roctx", "hip")
    assert check_traces([]) == ()
    with pytest.raises(UsageError, match="`cuda` is no trace") as caught:
        check_traces(["cuda"])
    assert caught.value.hint == "known: memory, hip, hsa, roctx, rccl, sys"


PLAYED = """#!/bin/sh
printf '%s\\n' "$ROCPROF_TMPDIR" "$@" > "$HOME/called"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def run_line(
    home: Path, line: str, driver: Driver = ROCPD, asked: Asked = HIP, played: str = PLAYED
) -> subprocess.CompletedProcess[bytes]:
    environment, whole = prepared(home, line, driver, asked, played)
    return subprocess.run(["bash", "-c", whole], env=environment, cwd=home, capture_output=True, timeout=10)


def prepared(home: Path, line: str, driver: Driver, asked: Asked, played: str) -> tuple[dict[str, str], str]:
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    (tools / driver.tool).write_text(played)
    (tools / driver.tool).chmod(0o755)
    whole = command_line(driver, line, asked, "~/.chisel/profiles/r 1" if played == PLAYED else "~/.chisel/profiles/r1")
    return {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}, whole


def called(home: Path) -> list[str]:
    return (home / "called").read_text().splitlines()


def test_the_profiler_is_called_as_it_must_be(tmp_path: Path) -> None:
    ended = run_line(tmp_path, "echo out; echo err >&2; exit 7")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out\n", b"err\n")
    place = f"{tmp_path}/.chisel/profiles/r 1"
    assert called(tmp_path) == [
        f"{place}/tmp", "--kernel-trace", "--hip-runtime-trace", "-f", "rocpd", "-d", f"{place}/raw", "-o", "%pid%",
        "--", "bash", f"{place}/command.sh",
    ]  # fmt: skip
    assert Path(place).stat().st_mode & 0o777 == 0o700


def test_csv_asks_for_statistics_too(tmp_path: Path) -> None:
    run_line(tmp_path, "true", Driver("rocprofv3", None, "csv", (6, 4)))
    assert "--stats\n-f\ncsv\n" in (tmp_path / "called").read_text()


def test_counters_go_on_the_command_line_and_before_rocm_6_3_into_a_file(tmp_path: Path) -> None:
    asked = Asked((), ("SQ_WAVES", "GRBM_COUNT"), kernel="gemm.*<", more=("--x", "a b"))
    run_line(tmp_path, "true", Driver("rocprofv3", None, "rocpd", (7, 1)), asked)
    assert called(tmp_path)[1:11] == [
        "--kernel-trace", "--pmc", "SQ_WAVES", "GRBM_COUNT", "--kernel-include-regex", "gemm.*<", "-f", "rocpd",
        "--x", "a b",
    ]  # fmt: skip
    run_line(tmp_path, "true", Driver("rocprofv3", None, "csv", (6, 2)), asked)
    place = f"{tmp_path}/.chisel/profiles/r 1"
    assert ["-i", f"{place}/counters.txt"] == called(tmp_path)[9:11]
    assert Path(f"{place}/counters.txt").read_text() == "pmc: SQ_WAVES GRBM_COUNT\n"


@pytest.mark.parametrize("name", ["", "a b", "$(x)", "--x", "1"])
def test_what_is_no_counter_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no counter"):
        check_counters([name])
    assert check_counters(["A", "TCC_HIT[0]", "A"]) == ("A", "TCC_HIT[0]")


V1 = Driver("rocprof", None, "v1", (5, 7))
PLAYED_V1 = """#!/bin/bash
printf '%s\\n' "$@" > "$HOME/called"
while [ "$1" != bash ]; do shift; done
eval "$*" 2>&1 | tee "$HOME/log.txt"
status=${PIPESTATUS[0]}
echo written > "$HOME/results"
exit $status
"""


def test_the_old_profiler_gets_a_script_and_merges_nothing(tmp_path: Path) -> None:
    line = """echo "a  'b'" '$HOME `id -u`' \\$x; echo err >&2; exit 7"""
    ended = run_line(tmp_path, line, V1, Asked(("hip", "roctx", "memory")), PLAYED_V1)
    expected = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, expected.stdout, b"err\n")
    place = f"{tmp_path}/.chisel/profiles/r1"
    assert called(tmp_path) == [
        "--hip-trace", "--roctx-trace", "--stats", "-t", f"{place}/tmp", "-d", f"{place}/v1", "-o",
        f"{place}/raw/results.csv", "bash", f"{place}/start.sh", f"{place}/command.sh",
    ]  # fmt: skip


def test_the_old_profiler_outlives_ctrl_c_and_the_command_does_not(tmp_path: Path) -> None:
    line = "trap 'echo interrupted; exit 130' INT; echo started; while :; do sleep 0.01; done"
    environment, whole = prepared(tmp_path, line, V1, HIP, PLAYED_V1)
    with subprocess.Popen(
        ["bash", "-c", whole], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=10)[0] == b"interrupted\n"
    assert process.returncode == 130
    assert (tmp_path / "results").exists(), "what writes the results was not interrupted"


def test_the_old_profiler_has_fewer_traces_and_counters_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace `rccl`"):
        run_line(tmp_path, "true", V1, Asked(("rccl",)), PLAYED_V1)
    run_line(tmp_path, "true", V1, Asked((), ("SQ_WAVES",)), PLAYED_V1)
    assert called(tmp_path)[:4] == ["--timestamp", "on", "-i", f"{tmp_path}/.chisel/profiles/r1/counters.txt"]


def test_what_a_wide_trace_costs_is_said() -> None:
    assert cost_of(("memory", "hip", "roctx"), ()) == []
    assert [said.split()[1] for said in cost_of(("hsa", "sys"), ())] == ["hsa", "sys"]
    assert "one kernel run at a time" in cost_of((), ("SQ_WAVES",))[0]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_text_reaches_the_script_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    home = tmp_path_factory.mktemp("home")
    run_line(home, text)
    script = home / ".chisel/profiles/r 1/command.sh"
    assert script.read_bytes() == text.encode() + b"\n"


# -- what a droplet says


def said(**changes: Any) -> bytes:
    kernel = {
        "name": "k",
        "calls": 2,
        "total_ns": 30,
        "mean_ns": 15.0,
        "p50_ns": 15,
        "p99_ns": None,
        "min_ns": 1,
        "max_ns": 2,
    }
    other = {**kernel, "name": "m", "total_ns": 10}
    whole = {"source": "rocpd", "files": 1, "kernels": [kernel, other], "pseudo": [], "notes": [], "stand_in": None}
    return zlib.compress(json.dumps({**whole, **changes}).encode())


def changed(**changes: Any) -> bytes:
    """Return an answer whose kernel differs in these fields."""
    kernel = {"name": "k", "calls": 2, "total_ns": 30, "mean_ns": 15.0, "p50_ns": 15, "p99_ns": None}
    return said(kernels=[{**kernel, **changes}])


def test_shares_add_up_to_one() -> None:
    ranking = decode_ranking(said())
    assert [kernel.share for kernel in ranking.kernels] == [0.75, 0.25]
    assert ranking.kernels[0].p99_ns is None
    assert decode_ranking(said(rest=1, rest_ns=40)).kernels[0].share == 30 / 80


def test_everything_a_droplet_tells_arrives() -> None:
    parts = [{"kind": "gpu", "name": "GPU 0", "calls": 2, "total_ns": 30, "kernels": [[0, 2, 30], ["far", 1, 1]]}]
    data = said(
        kernels=[{
            "name": "k", "calls": 2, "total_ns": 30, "mean_ns": 15.0, "p50_ns": 15, "p99_ns": 16, "std_ns": 1.5,
            "quantiles": list(range(65)), "drift": [[2, 15]], "counters": {"SQ_WAVES": 4},
            "launch": {"grid": [4, 5, 6], "workgroup": [64, 1, 1], "grids": 2, "vgprs": 32, "lds_bytes": 512},
        }],
        parts=parts, copies=[{"name": "host to device", "calls": 1, "total_ns": 9, "bytes": None}],
        filtered=3, unfinished=["x-journal"], dispatches=2,
    )  # fmt: skip
    ranking = decode_ranking(data)
    (kernel,) = ranking.kernels
    assert (kernel.std_ns, kernel.quantiles[64], kernel.drift, dict(kernel.counters)) == (
        1.5, 64.0, ((2, 15.0),), {"SQ_WAVES": 4.0},
    )  # fmt: skip
    assert kernel.launch == Launch(workgroup=(64, 1, 1), grid=(4, 5, 6), grids=2, vgprs=32, lds_bytes=512)
    assert ranking.parts == (Part("gpu", "GPU 0", 2, 30, (("k", 2, 30), ("far", 1, 1))),)
    assert ranking.copies == (Copies("host to device", 1, 9, None),)
    assert (ranking.filtered, ranking.unfinished, ranking.dispatches) == (3, ("x-journal",), 2)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"", b"x", zlib.compress(b"[]"), zlib.compress(b"{"), said()[:-3],
        said(kernels=None), said(kernels=[7]), said(kernels=[{"name": "k"}]), said(files=-1), said(files=True),
        said(kernels=[{"name": 7, "calls": 1, "total_ns": 1}]),
        said(pseudo=[{"name": "k", "calls": 1, "total_ns": 1, "mean_ns": "x"}]),
        changed(quantiles=[1, 2]), changed(quantiles=[*range(64), 1]), changed(quantiles="x" * 65),
        changed(drift=[[1]]), changed(drift=[[1, 2]] * 49), changed(drift=[["x", 1]]),
        changed(launch={"grid": [1, 2]}), changed(launch={"vgprs": 1.5}), changed(counters=["x"]),
        changed(counters={"A": "x"}), changed(std_ns=True), changed(total_ns=1 << 70), changed(name="x" * 70_000),
        said(parts=[{"kind": "moon", "name": "x", "calls": 1, "total_ns": 1, "kernels": []}]),
        said(parts=[{"kind": "gpu", "name": "x", "calls": 1, "total_ns": 1, "kernels": [[7, 1, 1]]}]),
        said(copies=[{"name": "x", "calls": 1, "total_ns": 1, "bytes": -1}]), said(rest_ns=-1), said(unfinished="x"),
        said().replace(b"x", b"y")[:10],
    ],
)  # fmt: skip
def test_nonsense_is_refused(nonsense: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them: the engine names the droplet
        decode_ranking(nonsense)


def test_no_kernels_is_explained() -> None:
    assert diagnosis(Ranking(kernels=(KERNEL,)), 1) is None
    assert "barriers only" in str(diagnosis(Ranking(pseudo=(KERNEL,), files=1), 0))
    assert "ended by signal 9" in str(diagnosis(Ranking(), 137))
    assert "not found" in str(diagnosis(Ranking(), 127))
    assert "wrote nothing" in str(diagnosis(Ranking(), 0))
    assert str(diagnosis(Ranking(files=1, notes=("`x` is empty",)), 0)).endswith("`x` is empty")
    assert "killed while it wrote: `a-journal`" in str(diagnosis(Ranking(unfinished=("a-journal",)), 137))
    assert "SIGSEGV" in str(diagnosis(Ranking(files=1), 139))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sudo ./app", "`sudo` in the command clears the environment"),
        ("make; FOO=1 env -i ./app", "`env -i` in the command clears"),
        ("docker run --rm image ./app", "`docker run` in the command starts the program where the profiler does not"),
        ("cd x && ssh host ./app", "`ssh` in the command starts"),
        ("su - me -c ./app", "`su` in the command clears"),
        ("sudo -u me -E ./app", None),
        ("env A=1 ./app", None),
        ("./sudo; echo ssh x", None),
    ],
)
def test_a_wrapper_that_hides_the_program_is_named(line: str, said: str | None) -> None:
    found = str(diagnosis(Ranking(files=1), 0, Facts(line=line)))
    assert (said in found) if said else "files hold none" in found


# -- where the files go


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("./bench.sh --n 4", "bench.sh"),
        ("HIP_VISIBLE_DEVICES=0 ./build/app", "app"),
        ("exec time 'my app'", "my"),
        ("../..", "command"),
        ("$(rm -rf /)", "rm"),
        ("", "command"),
    ],
)
def test_directories_are_named_for_the_command(line: str, name: str) -> None:
    at = datetime(2026, 11, 1, 12, 30, 5)  # noqa: DTZ001 - the user's own clock
    assert default_out(Path("p"), line, at) == Path(f"p/20261101-123005-{name}")


def test_a_profile_replaces_a_profile_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rank in (1, 2):
        check_out(out)
        staging = staging_for(out)
        write_table(staging, [KERNEL] * rank, [])
        put_in_place(staging, out)
    with (out / "kernels.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(row["rank"], row["kind"], row["name"], row["total_ns"]) for row in rows] == [
        ("1", "kernel", "void k<a, b>()", "30"),
        ("2", "kernel", "void k<a, b>()", "30"),
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (out / ".gitignore").read_text() == "*\n"
    other = tmp_path / "src"
    other.mkdir()
    check_out(other)
    (other / "precious").touch()
    for wrong in (other, other / "precious"):
        with pytest.raises(UsageError):
            check_out(wrong)
    (tmp_path / "link").symlink_to(other)
    with pytest.raises(UsageError):
        check_out(tmp_path / "link")
