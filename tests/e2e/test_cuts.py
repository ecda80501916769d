"""A slice of the thousand cuts: the link is cut under running commands, every byte and status is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.cuts import torture

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("droplets", ["asyncssh", pytest.param("openssh", marks=pytest.mark.real_part("sshd", "root"))])
def test_nothing_is_lost_by_a_cut(tmp_path: Path, droplets: str) -> None:
    tally = torture(tmp_path, cuts=10, workers=4, seed=7, droplets=droplets)
    assert tally.wrong == []
    assert tally.right == 10
    assert tally.resumed > 2
