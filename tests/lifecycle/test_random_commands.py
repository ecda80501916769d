"""A slice of `tests/torture/random_commands.py`: commands at once, some killed, on a cloud that misbehaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_between_random_commands_every_droplet_is_on_record() -> None:
    walk = [sys.executable, "-W", "ignore", "-m", "tests.torture.random_commands", "3", "5"]
    ended = subprocess.run(walk, cwd=ROOT, capture_output=True, text=True, timeout=230, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    assert "every droplet was on record" in ended.stdout
