"""What was moved is said in as many lines as one reads."""

from __future__ import annotations

from chisel.model import SyncResult
from chisel.render import transfers


def test_what_was_changed_there_is_said_by_directory_and_not_for_ever() -> None:
    wiped = ("m0", "m0/a", "m0/a/x.c", "m0-1", "b", *(f"z/{number:02}" for number in range(40)))
    lines = list(
        transfers.remarked(SyncResult(host="a", root="~/x", repaired=wiped, kept=("k",), skipped=("p",) * 205))
    )
    assert lines[:3] == [
        "repaired `b`, which was changed there",
        "repaired `m0` and 2 paths in it, which were changed there",
        "repaired `m0-1`, which was changed there",
    ]
    assert lines[19:22] == [
        "repaired `z/16`, which was changed there",
        "repaired 23 more (--json names all)",
        "kept `k`, which was changed there",
    ]
    assert lines[-2:] == ["not sent: p", "not sent: 5 more (--json names all)"]
    assert list(transfers.remarked(SyncResult(host="a", root="~/x", repaired=wiped, is_dry=True))) == []
