"""Run the benchmark sweep as a user would, against a sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.sweep_block_sizes import Failure, Measurement, table
from tests.support import User, running_sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.timeout(150)

Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def user(tmp_path: Path) -> User:
    home, cwd = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    cwd.mkdir()
    return User(home, cwd)


@pytest.fixture
def run_sweep(user: User) -> Sweep:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(EXAMPLES / "sweep_block_sizes.py"), *words],
            cwd=user.cwd,
            env=user.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_every_size_is_measured_once_and_nothing_is_left(user: User, run_sweep: Sweep, tmp_path: Path) -> None:
    with running_sandbox(tmp_path / "cloud") as user.cloud:
        ended = run_sweep("--count", "2", "--n", "1048576", "--iterations", "3", "64", "128", "256")
        left = user.does("status")
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in ended.stdout.splitlines()]
    measured = {(record["block_size"], record["kernel"]) for record in records}
    kernels = {kernel for _, kernel in measured}
    assert len(kernels) > 1
    assert measured == {(size, kernel) for size in (64, 128, 256) for kernel in kernels}
    assert len(records) == len(measured)
    assert {record["droplet"] for record in records} == {"sweep-1", "sweep-2"}
    assert all("stand-in" in record["device"] for record in records)
    assert ended.stderr.count("*") == len(kernels), ended.stderr
    assert "sweep-1: $" in ended.stderr
    assert left.out == b"Nothing is up.\n"


def test_a_size_that_fails_is_a_record_and_a_status(user: User, run_sweep: Sweep, tmp_path: Path) -> None:
    with running_sandbox(tmp_path / "cloud") as user.cloud:
        ended = run_sweep("--count", "1", "--n", "1048576", "--iterations", "3", "64", "4096")
        left = user.does("status")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    records = [json.loads(line) for line in ended.stdout.splitlines()]
    [failed] = [record for record in records if "error" in record]
    assert failed["block_size"] == 4096
    assert failed["status"] != 0
    assert failed["error"]
    assert {record["block_size"] for record in records if "kernel" in record} == {64}
    assert left.out == b"Nothing is up.\n"


def test_without_a_token_it_says_what_to_do(run_sweep: Sweep) -> None:
    ended = run_sweep("64")
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].startswith("hint: chisel auth")


def test_the_table_stars_the_best_and_shows_what_is_missing() -> None:
    measured = [
        Measurement(64, "add", 1.0, 100.0, "a GPU", "sweep-1"),
        Measurement(128, "add", 0.5, 200.0, "a GPU", "sweep-2"),
        Measurement(128, "sum", 0.5, 50.0, "a GPU", "sweep-2"),
    ]
    shown = table(measured, [Failure(4096, "sweep-1", 1, "too large")]).splitlines()
    assert shown[1].split() == ["block", "64", "100.0", "-"]
    assert shown[2].split() == ["block", "128", "200.0*", "50.0*"]
    assert shown[3] == "block 4096  failed with status 1 on sweep-1"
    assert shown[4] == "device: a GPU"
