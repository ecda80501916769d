"""A full disk under state, log and socket of the agent: the next command works, or says in one line what is wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.agent.conftest import WarmUser
from tests.support import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.real_part("root", "mount")]


@pytest.fixture
def small(user: WarmUser) -> Iterator[Path]:
    """Give the user's cache on a disk of its own, of 6 MB; the pool is known there."""
    cache = user.home / ".cache"
    user.chisel("agent", "stop")
    saved = user.home / "saved"
    cache.rename(saved)
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", cache]
    if subprocess.run(mount, check=False).returncode:
        saved.rename(cache)
        pytest.skip("file systems cannot be mounted here")
    try:
        subprocess.run(["cp", "-a", f"{saved}/.", cache], check=True)
        yield cache
    finally:
        user.chisel("agent", "stop")
        subprocess.run(["umount", "-l", cache], check=True)
        cache.rmdir()
        saved.rename(cache)


def fill(disk: Path) -> Path:
    """Leave not a byte free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as out, suppress(OSError):
        while out.write(b"x" * 4096):
            pass
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def test_commands_go_on_when_the_disk_is_full(user: WarmUser, small: Path) -> None:
    (user.cwd / "a.txt").write_text("first")
    user.does("sync", "--on", "1")
    until(user.is_warm, what="the agent")
    ballast = fill(small)
    pid = user.pid
    assert user.does("run", "--on", "1", "cat a.txt; echo err >&2; exit 0").out == b"first"
    assert user.chisel("run", "--on", "1", "exit 7").status == 7
    (user.cwd / "a.txt").write_text("other")
    synced = user.chisel("sync", "--on", "1")
    assert synced.status in {0, 6}, synced.err
    assert len([line for line in synced.err.splitlines() if line.startswith("error:")]) <= 1
    assert user.does("run", "--on", "1", "cat a.txt").out == b"other", "what the sync brought is there"
    assert user.pid == pid, "the agent lives"
    user.chisel("agent", "stop")
    assert user.does("run", "--on", "1", "cat a.txt").out == b"other", "without an agent too"
    ballast.unlink()
    assert user.does("sync", "--on", "1").status == 0
    until(user.is_warm, what="another agent")
    assert user.does("run", "--on", "1", "cat a.txt").out == b"other"


def test_no_room_for_a_socket_means_no_agent(user: WarmUser, small: Path) -> None:
    (user.cwd / "a.txt").write_text("first")
    user.does("sync", "--on", "1")
    stopped = user.does("agent", "stop").err
    assert "finishes" in stopped, "the sync has started it"
    directory, _ = user.place
    until(lambda: user.facts() is None, what="its end")
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()
    directory.write_text("in the way")
    for _ in range(2):
        ended = user.does("run", "--on", "1", "cat a.txt")
        assert (ended.out, ended.err) == (b"first", "")
    assert user.facts() is None
