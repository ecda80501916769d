from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from chisel.paths import resolve_paths, write_private_file


def test_files_live_below_home_unless_xdg_says_otherwise() -> None:
    home = Path("/home/me")
    plain = resolve_paths({}, home)
    assert plain.config_file == home / ".config/chisel/config.toml"
    assert plain.state_file == home / ".cache/chisel/state.json"
    moved = resolve_paths({"XDG_CONFIG_HOME": "/c", "XDG_CACHE_HOME": "/k"}, home)
    assert (moved.config_dir, moved.cache_dir) == (Path("/c/chisel"), Path("/k/chisel"))
    relative = resolve_paths({"XDG_CONFIG_HOME": "c", "XDG_CACHE_HOME": ""}, home)
    assert relative == plain, "the specification demands that relative values are ignored"


def test_a_private_file_is_replaced_whole_and_never_through_a_link(tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "f.new").symlink_to(elsewhere)
    old = os.umask(0)
    try:
        write_private_file(file, b"one")
    finally:
        os.umask(old)
    assert (file.read_bytes(), elsewhere.read_text()) == (b"one", "untouched")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "f"]


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "d"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private_file(target, b"two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
