"""A working copy is switched in one burst."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import zlib
from pathlib import Path

import pytest

from chisel.node import manifest, stage, switch, tree
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


@pytest.mark.parametrize(("can_exchange", "can_put_away"), [(True, True), (False, True), (True, False)])
def test_large_files_are_freed_after_the_burst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, can_put_away: bool
) -> None:
    """What was replaced or deleted is in the stage then, under no content's name: a kill leaves nothing to trust."""
    if not can_exchange:
        monkeypatch.setattr(switch, "exchanged", lambda *_: False)
    rename = os.rename

    def within_one_disk(old: str, new: str, **where: int) -> None:
        """Be a disk of its own, mounted within the working copy."""
        if new.startswith("gone-"):
            raise OSError(errno.EXDEV, "another disk")
        rename(old, new, **where)

    if not can_put_away:
        monkeypatch.setattr(os, "rename", within_one_disk)
    root, size = tmp_path / "root", 2 << 20
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    directories = tree.Directories(handle)
    rows: Rows = {}
    for round_ in range(2):
        staged_here = stage.Stage(str(tmp_path / "stage"), directories)
        assert staged_here.contents() == []
        records = [tree.pack(["delete", "goes"]), _put("grows", size), _put("shrinks", 10)] if round_ else []
        records = records or [_put("goes", size), _put("grows", 10), _put("shrinks", size)]
        staged_here.feed(zlib.compress(b"".join(records)))
        staged_here.end()
        after = switch.applied(rows, orders := staged_here.complete())
        change = switch.Switch(directories, staged_here, rows, after, orders)
        change.prepare()
        change.burst()
        rows = {**after, **change.seen()}
        left = {path.name: path.stat().st_size for path in Path(staged_here.path).iterdir()}
        assert staged_here.contents() == []
        assert all(row.look is not None for row in rows.values()), "each is what it should be"
        staged_here.close()
    assert {name: (root / name).stat().st_size for name in os.listdir(root)} == {"grows": size, "shrinks": 10}
    assert left == {
        **({"gone-0": size} if can_put_away else {}),
        **({"put-0": 10, "put-1": size} if can_exchange else {}),
    }
    again = stage.Stage(str(tmp_path / "stage"), directories)
    assert os.listdir(again.path) == []
    again.close()
    os.close(handle)


@pytest.mark.parametrize("alien", [None, "old/result", "old/sub/result", "new"])
def test_a_directory_is_renamed_whole_unless_it_holds_something_of_the_droplets_own(
    tmp_path: Path, alien: str | None
) -> None:
    """Files that go with their directory keep their looks: the next sync need not read them."""
    root = tmp_path / "root"
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    directories = tree.Directories(handle)
    rows: Rows = {}
    folders = [tree.pack(["dir", path, 0o755]) for path in ("old", "old/sub")]
    rounds = [
        [*folders, *(_put(path) for path in ("old/a", "old/d", "old/sub/b", "old/sub/c"))],
        [
            tree.pack(["move", "old", "new"]),
            tree.pack(["mode", "new/sub/b", 0o600]),
            _put("new/sub/c"),
            tree.pack(["link", "new/d", "a"]),
        ],
    ]
    inodes = {}
    for number, records in enumerate(rounds):
        staged_here = stage.Stage(str(tmp_path / "stage"), directories)
        staged_here.feed(zlib.compress(b"".join(records)))
        staged_here.end()
        before, orders = rows, staged_here.complete()
        after = switch.applied(rows, orders)
        change = switch.Switch(directories, staged_here, rows, after, orders)
        if number and alien:
            (root / alien).write_text("the droplet's own")
        change.prepare()
        change.burst()
        rows = {**after, **change.seen()}
        inodes[number] = {path: (root / path).lstat().st_ino for path in rows if rows[path].kind == tree.DIRECTORY}
        staged_here.remove()
    assert set(rows) == {"new", "new/a", "new/d", "new/sub", "new/sub/b", "new/sub/c"}
    for path, row in rows.items():
        if row.kind != tree.DIRECTORY:
            assert row.look == manifest.look_of((root / path).lstat()), path
    assert (rows["new/a"].look == before["old/a"].look) == (alien is None)
    assert (inodes[1]["new"] == inodes[0]["old"]) == (alien is None), "it was made anew all the same"
    assert os.readlink(root / "new/d") == "a"
    assert (root / "new/sub/b").stat().st_mode & 0o777 == 0o600
    if alien == "new":
        assert change.aside == ["new.chisel-kept-1"]
    elif alien:
        assert (root / alien).read_text() == "the droplet's own"
    else:
        assert not (root / "old").exists()
    os.close(handle)


def _put(path: str, size: int = 3000) -> bytes:
    data = os.urandom(size)
    end = hashlib.sha256(data).hexdigest()[: tree.CHECK_DIGITS]
    pieces = [tree.pack_bytes(data[start : start + tree.CHUNK]) for start in range(0, size, tree.CHUNK)]
    return tree.pack(["put", path, 0o644, size, 1]) + b"".join(pieces) + tree.pack(["end", end])
