"""Which profiler, which command line, which table, where the files go."""

from __future__ import annotations

import csv
import json
import os
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
from chisel.profile.drivers import Driver, check_traces, choose_driver, command_line
from chisel.profile.rank import Facts, decode_ranking, diagnosis

KERNEL = KernelStats("void k<a, b>()", 2, 30, 15.0, 15.0, 19.9, 10, 20, 1.0)


def facts(rocm: str | None, version: str | None, **profiler: str | None) -> dict[str, Any]:
    return {"rocm": rocm, "profiler": {"rocprofv3": "/opt/rocm/bin/rocprofv3", "version": version, **profiler}}


@pytest.mark.parametrize(
    ("found", "driver"),
    [
        (facts("7.2.0", "1.1.0"), Driver("rocprofv3", "1.1.0", "rocpd")),
        (facts("6.4.1", None), Driver("rocprofv3", None, "csv")),
        (facts("6.2.0-66", "0.4.0"), Driver("rocprofv3", "0.4.0", "csv")),
        (facts("10.0.0", "1.3.5"), Driver("rocprofv3", "1.3.5", "rocpd")),
        (facts(None, "1.0.0"), Driver("rocprofv3", "1.0.0", "rocpd")),
        (facts(None, None), Driver("rocprofv3", None, "csv")),
    ],
)
def test_the_driver_follows_what_the_droplet_has(found: dict[str, Any], driver: Driver) -> None:
    assert choose_driver(found) == driver


@pytest.mark.parametrize("found", [{}, {"profiler": None}, {"profiler": {"rocprofv3": None, "rocprof": "/x"}}])
def test_without_a_profiler_it_is_said_what_to_do(found: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no `rocprofv3`") as caught:
        choose_driver(found)
    assert caught.value.hint


def test_traces_are_named() -> None:
    assert check_traces(None) == ("memory", "hip")
    assert check_traces(["roctx", "hip", "roctx"]) == ("roctx", "hip")
    assert check_traces([]) == ()
    with pytest.raises(UsageError, match="`cuda` is no trace") as caught:
        check_traces(["cuda"])
    assert caught.value.hint == "known: memory, hip, hsa, roctx"


PLAYED = """#!/bin/sh
printf '%s\\n' "$ROCPROF_TMPDIR" "$@" > "$HOME/called"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""


def run_line(home: Path, line: str, format: Any = "rocpd") -> subprocess.CompletedProcess[bytes]:
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "rocprofv3").write_text(PLAYED)
    (tools / "rocprofv3").chmod(0o755)
    whole = command_line(Driver("rocprofv3", "1.1.0", format), line, ("hip",), "~/.chisel/profiles/r 1")
    environment = {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", whole], env=environment, cwd=home, capture_output=True, timeout=10)


def test_the_profiler_is_called_as_it_must_be(tmp_path: Path) -> None:
    ended = run_line(tmp_path, "echo out; echo err >&2; exit 7")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out\n", b"err\n")
    place = f"{tmp_path}/.chisel/profiles/r 1"
    assert (tmp_path / "called").read_text().splitlines() == [
        f"{place}/tmp", "--kernel-trace", "--hip-runtime-trace", "-f", "rocpd", "-d", f"{place}/raw", "-o", "%pid%",
        "--", "bash", f"{place}/command.sh",
    ]  # fmt: skip
    assert Path(place).stat().st_mode & 0o777 == 0o700


def test_csv_asks_for_statistics_too(tmp_path: Path) -> None:
    run_line(tmp_path, "true", "csv")
    assert "--stats\n-f\ncsv\n" in (tmp_path / "called").read_text()


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
