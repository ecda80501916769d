"""A slice of `tests/torture/sync_edits.py`: edits, kills, cuts, races and random commands against the real receiver."""

from __future__ import annotations

import pytest

from tests.torture.sync_edits import torture


@pytest.mark.timeout(180)
@pytest.mark.blocking_allowed
async def test_nothing_is_missed_torn_or_left() -> None:
    """Blocking is allowed: the torture describes trees between its syncs."""
    failed = await torture(edit=12, kills=10, cuts=10, race=5, walk=6, seed=11)
    assert not any(failed.values()), failed
