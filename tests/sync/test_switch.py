"""A working copy is switched in one burst."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from pathlib import Path

from chisel.node import stage, switch, tree
from chisel.node.manifest import Rows


def test_a_switch_of_a_hundred_files_takes_five_milliseconds() -> None:
    """Measured in memory: a disk whose journal is being written makes every rename wait, whoever asks for it."""
    bursts = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        root = Path(place) / "root"
        root.mkdir()
        handle = os.open(root, os.O_RDONLY)
        directories = tree.Directories(handle)
        rows: Rows = {}
        for _ in range(5):
            staged_here = stage.Stage(f"{place}/stage", directories)
            staged_here.feed(zlib.compress(b"".join(_put(f"d{number % 9}/f{number}") for number in range(100))))
            staged_here.end()
            orders = staged_here.complete()
            after = switch.applied(rows, orders)
            change = switch.Switch(directories, staged_here, rows, after, orders)
            change.prepare()
            change.burst()
            rows = {**after, **change.seen()}
            staged_here.remove()
            bursts.append(change.burst_s * 1000)
        os.close(handle)
    assert len(rows) == 100
    assert min(bursts) <= 5.0, bursts


def _put(path: str) -> bytes:
    data = os.urandom(3000)
    end = hashlib.sha256(data).hexdigest()[: tree.CHECK_DIGITS]
    return tree.pack(["put", path, 0o644, len(data), 1]) + tree.pack_bytes(data) + tree.pack(["end", end])
