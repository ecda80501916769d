"""What is found to be unchanged of a large file, and what is sent of it, give the file again; little is sent."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chisel.sync import blocks


def sums(data: bytes) -> bytes:
    found = blocks.Sums(len(data))
    found.add(data)
    return found.packed()


def difference(path: Path, old: bytes, new: bytes) -> tuple[int, blocks.Difference]:
    """Check that the pieces give the new content; return how much of it is sent."""
    path.write_bytes(new)
    handle = os.open(path, os.O_RDONLY)
    try:
        found = blocks.Difference(handle, len(new), sums(old), len(old))
        made, sent = bytearray(), 0
        for piece in found.pieces():
            if isinstance(piece, tuple):
                made += old[piece[0] : piece[0] + piece[1]]
            else:
                made += piece
                sent += len(piece)
    finally:
        os.close(handle)
    assert bytes(made) == new
    assert found.content.hexdigest() == hashlib.sha256(new).hexdigest()
    assert found.sums.packed() == sums(new)
    return sent, found


OLD = random.Random(4).randbytes(300_000)


@pytest.mark.parametrize(
    ("new", "most"),
    [
        (OLD, 0),
        (OLD[:100_000] + b"x" * 300 + OLD[100_300:], 8 << 10),
        (OLD[:100_000] + b"inserted" + OLD[100_000:], 8 << 10),
        (OLD[:100_000] + OLD[150_000:], 8 << 10),
        (b"in front" + OLD, 8),
        (OLD + b"behind", 4 << 10),
        (OLD[50_000:], 4 << 10),
        (OLD[:-50_000], 4 << 10),
        (b"", 0),
    ],
    ids=["same", "in place", "inserted", "cut out", "in front", "behind", "front gone", "end gone", "empty"],
)
def test_one_change_costs_little(tmp_path: Path, new: bytes, most: int) -> None:
    assert difference(tmp_path / "file", OLD, new)[0] <= most


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 1500), st.binary(max_size=900)), max_size=4))
def test_any_changes_give_the_file_again(tmp_path: Path, changes: list[tuple[int, int, bytes]]) -> None:
    old = random.Random(5).randbytes(5000)
    new = old
    for at, removed, put in changes:
        new = new[:at] + put + new[at + removed :]
    difference(tmp_path / "file", old, new)


@given(st.lists(st.binary(max_size=2000), max_size=12))
def test_sums_do_not_depend_on_how_a_file_is_read(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    found = blocks.Sums(len(whole))
    for piece in pieces:
        found.add(piece)
    assert found.packed() == sums(whole)
