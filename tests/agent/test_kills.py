"""A slice of `tests.torture.agent_kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_run import kind_of_droplet
from tests.torture.agent_kills import torture


@pytest.mark.timeout(240)
def test_an_agent_that_is_killed_again_and_again_costs_no_byte(tmp_path: Path) -> None:
    tally = torture(tmp_path, kills=8, workers=2, seed=3, droplets=kind_of_droplet())
    assert tally.wrong == []
    assert tally.kills == 8
    assert tally.runs > 0
