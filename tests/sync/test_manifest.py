"""A manifest that is kept in memory follows what is written beside it."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from chisel.node import locks, manifest, roles, supervisor
from chisel.node.manifest import ByFolder, Facts, Manifest, Row, by_folder
from chisel.node.tree import FILE

PATHS = [f"{above}{name}" for above in ("", "a/", "a/b/", "c/d/") for name in ("x", "y", "z")]


def sorted_by_name(found: ByFolder) -> ByFolder:
    return {folder: sorted(members) for folder, members in found.items()}


def test_the_order_to_look_in_follows_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process settles, interrupted at times, another one takes it in, from the journal or a new snapshot."""
    monkeypatch.setattr(manifest, "_LONGEST_JOURNAL", 5000)
    chance = random.Random(5)
    writer, reader = Manifest(str(tmp_path)), Manifest(str(tmp_path))
    for number in range(300):
        writer.refresh()
        rows = {
            path: Row(FILE, 0o644, f"{chance.random()}", 1, number, (1, number, number, 1, 0o100644))
            for path in chance.sample(PATHS, chance.randint(0, 3))
        }
        gone = [path for path in chance.sample(PATHS, 2) if path not in rows]
        if chance.random() < 0.5:
            writer.intend(rows)
        if chance.random() < 0.8:
            writer.by_folder()
            writer.settle(rows, gone, Facts(token=f"{number}"))
            assert sorted_by_name(writer.by_folder()) == sorted_by_name(by_folder(writer.rows))
        if chance.random() < 0.7:
            reader.refresh()
            assert sorted_by_name(reader.by_folder()) == sorted_by_name(by_folder(reader.rows))
            writer.refresh()
            assert reader.rows == writer.rows
            assert sorted_by_name(writer.by_folder()) == sorted_by_name(by_folder(writer.rows))
    assert reader.rows


def test_a_supervisor_in_reserve_reads_a_manifest_of_late_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "supervise" in roles.PREPARED
    assert supervisor.prepare() is None
    row = Row(FILE, 0o644, "f", 1, 1, None)
    for name in ("earlier", "later"):
        known = Manifest(locks.directory_for(f"/{name}"))
        known.settle({name: row}, [], Facts(token=name))
        os.utime(known.directory + "/journal", (0, time.time() - (60 if name == "earlier" else 0)))
    ready = supervisor.prepare()
    assert ready is not None
    assert (ready.rows, ready.facts.token) == ({"later": row}, "later")
    for path in tmp_path.rglob("journal"):
        os.utime(path, (0, time.time() - 7200))
    assert supervisor.prepare() is None, "nobody has synced for long"
