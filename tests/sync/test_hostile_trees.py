"""A slice of the torture by hostile droplets: nothing outside the target changes, and without care it would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


def torture(*options: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.torture.hostile_trees", *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    assert found["uid"] != 0
    return {**found, "said": ended.stderr}


def test_no_hostile_droplet_writes_outside() -> None:
    found = torture("--count", "1500", "--seed", "11")
    assert (found["escapes"], found["wrong"]) == (0, 0), found["said"]
    assert found["written"] > 50


def test_the_canary_sings_without_care() -> None:
    assert torture("--count", "300", "--control", "--batch", "100")["escapes"] > 0
