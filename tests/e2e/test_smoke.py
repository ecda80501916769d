"""The script for the first person with an account works on the embedded cloud, and spends nothing unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = [sys.executable, "-m", "tests.live.smoke"]


@pytest.mark.timeout(180)
def test_the_live_script_goes_through_the_loop_on_the_sandbox(tmp_path: Path) -> None:
    report = tmp_path / "smoke.json"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CHISEL_DO")}
    ran = subprocess.run(
        [*SMOKE, "--sandbox", "--report", str(report)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(report.read_text())
    assert [one["step"] for one in found if "step" in one][-2:] == ["down", "sweep"]
    assert [one for one in found if one.get("differs")] == []
    assert sum("fact" in one for one in found) >= 5


def test_it_spends_nothing_unasked() -> None:
    ran = subprocess.run(SMOKE, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "costs money" in ran.stderr
