"""`chisel profile` as a process: what is on which stream, statuses, the last line of --json, the browser."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from tests.profile import lookalike
from tests.profile.browser import chromium
from tests.profile.test_viewer_in_chromium import selected_name, sql
from tests.support import User, running_sandbox, until

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vector_add"
KERNEL_KEYS = {"name", "calls", "total_ns", "mean_ns", "p50_ns", "p99_ns", "min_ns", "max_ns", "share"}
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A pool of two droplets with the example built in their working copies."""
    base = tmp_path_factory.mktemp("bench")
    shutil.copytree(EXAMPLE, base / "work")
    if shutil.which("git"):
        subprocess.run(["git", "init", "-q", "-b", "faster", base / "work"], check=True)
    (base / "home").mkdir()
    with running_sandbox(base / "sandbox") as cloud:
        made = User(base / "home", base / "work", cloud)
        made.does("up", "-n", "2", "--pool", "bench")
        made.does("sync", "--pool", "bench", "--all", ".")
        made.does("run", "--pool", "bench", "--all", "make")
        yield made


@pytest.fixture
def alone(tmp_path: Path) -> User:
    """Somebody without a cloud."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    return User(tmp_path / "home", tmp_path / "work")


def last(out: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


ON_ONE = ("--pool", "bench", "--on", "1")


def test_stdout_is_the_programs_and_the_table_is_chisels(bench: User) -> None:
    ended = bench.chisel("profile", *ON_ONE, "--out", "a", "echo out; ./build/vector_add 4096 >/dev/null; exit 3")
    assert (ended.status, ended.out) == (3, b"out\n")
    assert "hottest kernels by total time" in ended.err
    assert "the command ended with status 3" in ended.err
    assert ended.err.rstrip().endswith("report.html, kernels.csv, trace.json.gz and the raw files are in ./a")


@pytest.mark.real_part("git")
def test_json_ends_with_the_kernels_in_rank_order(bench: User) -> None:
    ended = bench.does("profile", *ON_ONE, "--out", "b", "--json", "./build/vector_add", "4096")
    final = last(ended.out)
    assert (final["event"], final["status"], final["source"]) == ("ended", 0, "remote")
    assert all(kernel.keys() >= KERNEL_KEYS for kernel in final["kernels"])
    totals = [kernel["total_ns"] for kernel in final["kernels"]]
    assert totals == sorted(totals, reverse=True)
    assert len(totals) == 3
    (ranked,) = ended.of("profile")
    assert ranked["result"]["fingerprint"]["facts"]["droplet"].startswith("bench-1 (")
    assert len(ranked["result"]["fingerprint"]["facts"]["tree"]) == 64, "which tree was measured"
    assert ranked["result"]["fingerprint"]["facts"]["commit"] == "faster before the first commit, with changes"
    assert ranked["result"]["telemetry"]["source"] == "amd-smi"


def test_a_pool_is_ranked_together_into_one_directory(bench: User) -> None:
    ended = bench.does("profile", "--pool", "bench", "--all", "--out", "c", "--json", "./build/vector_add 4096")
    (summed,) = ended.of("profile-summed")
    assert sorted(summed["hosts"]) == ["bench-1", "bench-2"]
    assert [set(spread["p50_ns"]) for spread in summed["spreads"]] == [{"bench-1", "bench-2"}] * 3
    names = sorted(path.name for path in (bench.cwd / "c").iterdir())
    assert names == [
        ".gitignore", "bench-1", "bench-2", "kernels.csv", "profile.json", "report.html", "trace.json.gz",
    ]  # fmt: skip
    refused = bench.chisel("profile", "--pool", "bench", "true")
    assert (refused.status, refused.out == b"") == (2, True)
    assert "--all" in refused.err


def test_a_comparison_fails_the_build_only_for_a_real_regression(bench: User) -> None:
    slower = "CHISEL_STANDIN_SEED=$RANDOM ./build/vector_add 409600"
    before = "CHISEL_STANDIN_SEED=$RANDOM ./build/vector_add 4096"
    words = ("profile", *ON_ONE, "--sessions", "4")
    bench.does(*words, "--save", "main", before)
    failed = bench.chisel(*words, "--against", "main", "--fail-if-slower", "3", "--json", slower)
    final = last(failed.out)
    assert (failed.status, final["status"], final["source"]) == (5, 5, "chisel")
    assert final["regressions"]
    passed = bench.chisel(*words, "--against", "main", "--fail-if-slower", "3", "--json", before)
    assert passed.status == 0, passed.err
    (compared,) = passed.of("comparison")
    assert {one["verdict"] for one in compared["comparison"]["verdicts"]} <= {"can't tell", "faster"}
    assert (bench.cwd / "chisel-profile" / "saved" / "main.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is no command to profile"),
        (("--ab", "a", "b", "c"), "COMMAND and --ab exclude each other"),
        (("--from", "x", "--sessions", "2"), "--from runs nothing"),
        (("--fail-if-slower", "3", "x"), "--fail-if-slower needs something"),
        (("--trace", "cuda", "x"), "`cuda` is no trace"),
        (("--pmc", "a b,--x", "x"), "is no counter"),
        (("--kernel", "(", "x"), "`(` is no regular expression"),
        (("--against", "nosuch", "x"), "nosuch"),
        (("--profiler-args", "'", "x"), "--profiler-args"),
    ],
)
def test_wishes_that_make_no_sense_are_refused_in_one_line(bench: User, words: tuple[str, ...], said: str) -> None:
    ended = bench.chisel("profile", *ON_ONE, *words)
    assert (ended.status, ended.out) == (2, b""), ended.err
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_ctrl_c_keeps_what_there_is_and_a_second_one_gives_up(bench: User) -> None:
    mark = bench.cwd / "started"
    line = f"./build/vector_add 4096; : > {mark}; exec sleep 1000"
    process = bench.start("profile", *ON_ONE, "--out", "d", "--json", line)
    with process:
        until(mark.exists, what="the program to run")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert last(out)["status"] == 130
    assert len(last(out)["kernels"]) == 3
    assert (bench.cwd / "d" / "kernels.csv").is_file()
    mark.unlink()


# -- files that are here


def test_files_are_ranked_without_a_cloud(alone: User) -> None:
    lookalike.rocpd(alone.cwd / "raw" / "7_results.db", [("gemm(float*)", 900), ("sum(float*)", 100)])
    ended = alone.does("profile", "--from", "raw", "--json")
    final = last(ended.out)
    assert [(one["name"], one["share"]) for one in final["kernels"]] == [("gemm(float*)", 0.9), ("sum(float*)", 0.1)]
    shown = alone.does("profile", "--from", "raw/7_results.db", "--top", "1", "--kernel", "sum")
    assert shown.out == b""
    assert "sum(float*)" in shown.err
    assert "gemm" not in shown.err
    kept = alone.does("profile", "--from", "raw", "--out", "kept", "--save", "base")
    assert "kept" in kept.err
    assert {path.name for path in (alone.cwd / "kept").iterdir()} >= {"kernels.csv", "trace.json.gz", "report.html"}
    again = alone.does("profile", "--from", "kept", "--against", "base", "--json")
    (compared,) = again.of("comparison")
    assert {one["verdict"] for one in compared["comparison"]["verdicts"]} == {"can't tell"}, "one session tells nothing"


def test_files_that_cannot_be_ranked_are_refused_with_what_is_wrong(alone: User) -> None:
    (alone.cwd / "notes.txt").write_text("hello")
    newer = alone.cwd / "newer.db"
    lookalike.rocpd(newer, [("k", 1)])
    with sqlite3.connect(newer) as database:
        database.execute(f'ALTER TABLE "rocpd_kernel_dispatch{lookalike.GUID}" RENAME COLUMN start TO began')
    database.close()
    for path, said in (("nosuch", "nosuch` does not exist"), ("notes.txt", "no format"), ("newer.db", "newer.db")):
        ended = alone.chisel("profile", "--from", path)
        assert ended.status in {1, 2}, ended.err
        assert said in ended.err
        assert "Traceback" not in ended.err
    assert "a bug in chisel" not in alone.chisel("profile", "--from", "newer.db").err
    assert [path.name for path in alone.cwd.iterdir() if path.name.startswith(".")] == []


@pytest.mark.real_part("chromium")
async def test_open_shows_every_dispatch_in_a_real_browser_and_ends_with_it(alone: User, tmp_path: Path) -> None:
    lookalike.rocpd(alone.cwd / "raw" / "7_results.db", [("gemm(float*)", 900_000), ("sum(float*)", 100_000)] * 20)
    address = tmp_path / "address"
    opener = tmp_path / "opener"
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {address}.new; mv {address}.new {address}\n')
    opener.chmod(0o755)
    with alone.start("profile", "--from", "raw", "--open", BROWSER=str(opener)) as process:
        await to_thread.run_sync(partial(until, address.exists, what="the browser to be started", deadline_s=40))
        async with chromium(tmp_path / "browser") as browser:
            tab = await browser.open(address.read_text())
            loaded = "document.getElementById('ui')?.contentWindow?.app?.trace?.engine !== undefined"
            await tab.until(loaded, deadline_s=40)
            dispatches = "select count(*) as n from slice where name in ('gemm(float*)', 'sum(float*)')"
            assert (await sql(tab, dispatches, n="num"))[0]["n"] == 40
            assert await selected_name(tab) == "gemm(float*)"
            await tab.close()
            _, err = await to_thread.run_sync(partial(process.communicate, timeout=40))
    assert process.returncode == 0, err
    assert "the trace is at http://127.0.0.1:" in err.decode()


def test_ctrl_c_ends_what_is_shown_with_the_profiles_own_status(alone: User, tmp_path: Path) -> None:
    lookalike.rocpd(alone.cwd / "raw" / "7_results.db", [("gemm(float*)", 900_000)])
    with alone.start("profile", "--from", "raw", "--open", BROWSER=f"touch {tmp_path}/asked %s") as process:
        until((tmp_path / "asked").exists, what="the browser to be started", deadline_s=40)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
