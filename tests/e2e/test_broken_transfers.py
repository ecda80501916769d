"""A slice of the broken transfers: a push or pull that was broken at any byte goes on, and comes out exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.broken_transfers import torture

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("droplets", ["asyncssh", pytest.param("openssh", marks=pytest.mark.real_part("sshd", "root"))])
def test_a_broken_transfer_goes_on(tmp_path: Path, droplets: str) -> None:
    tally = torture(tmp_path, breaks=4, seed=5, droplets=droplets)
    assert tally.wrong == []
    assert tally.right == 4
    assert tally.resumed > 0
