"""A slice of the crash walk (`tests/torture/crash_walk.py` is the whole): killed somewhere, right after one more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCHEDULES = "none,lag,504,reset,chance"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("verb", ["up", "down", "sweep", "recover"])
def test_a_command_killed_anywhere_leaves_what_one_more_puts_right(verb: str) -> None:
    walk = [sys.executable, "-W", "ignore", "-m", "tests.torture.crash_walk", "--points", "2"]
    ended = subprocess.run(
        [*walk, "--schedules", SCHEDULES, verb], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    killed = [int(number) for number in re.findall(r"killed (\d+) times", ended.stdout)]
    assert len(killed) == len(SCHEDULES.split(","))
    assert sum(killed) >= len(killed)
