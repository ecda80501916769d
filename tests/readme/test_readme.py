"""Run every command block of the README against a sandbox, as a reader would type it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import User, running_sandbox

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CONSOLE = [text for kind, text in BLOCKS if kind == "console"]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]

pytestmark = pytest.mark.timeout(240)


def commands(block: str) -> list[str]:
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


def block_with(word: str) -> list[str]:
    (found,) = [commands(block) for block in CONSOLE if word in block]
    return found


@pytest.fixture
def reader(tmp_path: Path) -> User:
    """Somebody with a project of kernels, and `chisel` on the path."""
    home, work, tools = tmp_path / "home", tmp_path / "project", tmp_path / "bin"
    for directory in (home, work, tools):
        directory.mkdir()
    shutil.copytree(PROJECT / "examples" / "vector_add", work / "kernels")
    script = tools / "chisel"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chisel "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return User(home, work, {"PATH": f"{tools}:{os.environ['PATH']}"})


def bash(script: str, reader: User, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=reader.cwd,
        env=reader.environ(**changed),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_loop_works_as_written(reader: User, tmp_path: Path) -> None:
    steps = block_with("chisel sync ./kernels")
    assert [step.split("#")[0].split()[1] for step in steps] == ["auth", "up", "sync", "run", "profile", "pull", "down"]
    # The one difference to a reader at a terminal: nobody is there to be asked.
    script = "\n".join(re.sub(r"^chisel down", "chisel down --yes", step) for step in steps)
    with running_sandbox(tmp_path / "cloud") as cloud:
        ended = bash(script, reader, **cloud)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (reader.cwd / "out" / "results.csv").is_file()
    assert list((reader.cwd / "chisel-profile").glob("*/kernels.csv"))
    assert "\nsum,67108864,256," in ended.stdout


@pytest.mark.timeout(120)
def test_the_profiles_work_as_written(reader: User, tmp_path: Path) -> None:
    steps = [step.split("   #")[0] for step in block_with("chisel profile --build")]
    before = "chisel up >/dev/null 2>&1; chisel sync ./kernels; chisel run make >/dev/null"
    with running_sandbox(tmp_path / "cloud") as cloud:
        ended = bash("\n".join([before, *steps]), reader, **cloud)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr.count("hottest kernels") == 5
    assert "now against main, medians of 5 and 5 sessions" in ended.stderr
    assert "B against A, medians of 4 and 4 sessions" in ended.stderr
    assert (reader.cwd / "chisel-profile" / "saved" / "main.json").is_file()


def test_the_sandbox_works_as_written(reader: User) -> None:
    script = "\n".join(block_with("chisel sandbox start"))
    try:
        ended = bash(script, reader)
    finally:
        bash("chisel sandbox stop", reader)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("Linux") + ended.stdout.count("Darwin") == 2


def test_the_first_command_is_the_demo_and_the_second_the_tests() -> None:
    (first,), (second,) = block_with("chisel demo"), block_with("pytest")
    assert first == "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/chisel demo"
    assert second == ".venv/bin/python -m pytest -n 3 --dist loadfile"


def test_the_demo_ends_with_nothing_left(reader: User) -> None:
    ended = bash("chisel demo", reader)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 droplets are left of 3" in ended.stderr
    for verb in ("auth", "up", "sync", "run", "profile", "pull", "down"):
        assert f"$ chisel {verb}" in ended.stderr


def test_the_python_block_works_as_written(reader: User, tmp_path: Path) -> None:
    (reader.cwd / "Makefile").write_text("bench:\n\t@echo benched\n")
    body = PYTHON[0].replace("import chisel\n", "").replace("\n", "\n    ")
    shown = "print(*(one.stdout for one in results))"
    program = f"import anyio, chisel\nasync def main():\n    {body}\n    {shown}\nanyio.run(main)\n"
    (tmp_path / "program.py").write_text(program)
    with running_sandbox(tmp_path / "cloud") as cloud:
        ended = bash(f'"{sys.executable}" "{tmp_path / "program.py"}"', reader, **cloud)
    assert ended.stdout.count("benched") == 4, ended.stderr


def test_every_command_block_is_run_by_a_test() -> None:
    assert len(CONSOLE) == 5
    assert len(PYTHON) == 1


def test_the_table_of_statuses_is_what_the_errors_say() -> None:
    from chisel import errors

    stated = {int(number) for number in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ChiselError)]
    ours = {kind.exit_status for kind in kinds}
    assert stated == ours | {130}
