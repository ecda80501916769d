"""A sync makes the droplet's working copy equal to the local tree, whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import stat
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from chisel.errors import HostUnreachable, RemoteError
from chisel.events import Event, Progress
from chisel.node.frames import Kind
from chisel.sync.push import remote_root_for
from chisel.sync.scan import scan_tree
from tests.support import processes_with, until
from tests.sync.conftest import REMOTE, Bench

pytestmark = pytest.mark.timeout(90)


def write(path: Path, content: bytes | str = b"", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def snapshot(root: Path) -> dict[str, object]:
    """Describe a tree exactly: kinds, modes, contents."""
    found: dict[str, object] = {}
    for place, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(place, name)
            status = os.lstat(path)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            if stat.S_ISLNK(status.st_mode):
                found[key] = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                found[key] = "directory"
            else:
                found[key] = (status.st_mode & 0o777, Path(os.fsdecode(path)).read_bytes())
    return found


def same(bench: Bench) -> None:
    assert snapshot(bench.remote) == snapshot(bench.local)


def torture(root: Path) -> None:
    for name in ("with space", "new\nline", "quote'\"", "-rf", "naïve", "é", "é", "*", "$HOME", "a" * 255):
        write(root / "names" / name, name)
    write(Path(os.fsdecode(os.fsencode(root) + b"/names/latin-\xe9")), "bytes")
    write(root / "script.sh", "#!/bin/sh\n", 0o755)
    write(root / "private", "x", 0o600)
    write(root / "read-only", "x", 0o444)
    write(root / "empty")
    write(root / "zeros", bytes(3 << 20))
    write(root / "random", random.Random(1).randbytes(2 << 20))
    write(root / ("deep/" * 40) / "leaf", "deep")
    (root / "empty directory").mkdir()
    for name, target in (("link", "script.sh"), ("dangling", "nowhere"), ("outside", "/etc/passwd"), ("up", "../..")):
        (root / name).symlink_to(target)
    (root / "directory link").symlink_to("names")
    os.utime(root / "private", (4_000_000_000, 4_000_000_000))


async def test_a_tree_arrives_exactly(bench: Bench) -> None:
    await to_thread.run_sync(torture, bench.local)
    result = await bench.push()
    assert result.error is None
    assert result.skipped == ()
    await to_thread.run_sync(same, bench)
    again = await bench.push()
    assert (again.sent_files, again.deleted_files, again.sent_bytes) == (0, 0, 0)
    assert again.tree_hash == result.tree_hash
    assert os.stat(bench.remote / "private").st_mtime == 4_000_000_000


async def test_only_what_changed_is_sent(bench: Bench) -> None:
    for number in range(50):
        write(bench.local / f"file{number}", random.Random(number).randbytes(10_000))
    first = await bench.push()
    assert first.sent_files == 50
    write(bench.local / "file7", "changed")
    write(bench.local / "new", "new")
    (bench.local / "file8").unlink()
    second = await bench.push()
    assert (second.sent_files, second.deleted_files, second.total_files) == (2, 1, 50)
    assert second.sent_bytes < 1000
    same(bench)


async def test_an_edit_of_the_same_size_in_the_same_second_is_never_missed(bench: Bench) -> None:
    for number in range(30):
        write(bench.local / "kernel.h", f"BLOCK={number:03}")
        await bench.push()
        assert (bench.remote / "kernel.h").read_text() == f"BLOCK={number:03}"


async def test_a_touched_file_keeps_its_time_on_the_droplet(bench: Bench) -> None:
    write(bench.local / "a.c", "int a;")
    await bench.push()
    before = os.stat(bench.remote / "a.c").st_mtime_ns
    os.utime(bench.local / "a.c", (2_000_000_000, 2_000_000_000))
    result = await bench.push()
    assert result.sent_files == 0
    assert os.stat(bench.remote / "a.c").st_mtime_ns == before


async def test_a_moved_directory_costs_no_content(bench: Bench) -> None:
    for number in range(20):
        write(bench.local / "old" / f"f{number}", random.Random(number).randbytes(100_000))
    await bench.push()
    (bench.local / "old").rename(bench.local / "new")
    result = await bench.push()
    assert (result.sent_files, result.deleted_files, result.moved_files) == (0, 0, 20)
    assert result.sent_bytes < 200
    same(bench)


async def test_results_of_the_droplet_stay_and_edits_there_are_repaired(bench: Bench) -> None:
    write(bench.local / "src" / "a.c", "a")
    write(bench.local / "gone" / "b.c", "b")
    await bench.push()
    write(bench.remote / "build" / "a.o", "object")
    write(bench.remote / "gone" / "b.o", "object")
    write(bench.remote / "src" / "a.c", "edited there")
    shutil.rmtree(bench.local / "gone")
    result = await bench.push()
    assert result.repaired == ("src/a.c",)
    assert (bench.remote / "src" / "a.c").read_text() == "a"
    assert (bench.remote / "build" / "a.o").read_text() == "object"
    assert snapshot(bench.remote / "gone") == {"b.o": (0o644, b"object")}


async def test_what_was_removed_there_comes_back(bench: Bench) -> None:
    write(bench.local / "src" / "a.c", "a")
    await bench.push()
    shutil.rmtree(bench.remote)
    result = await bench.push()
    assert result.sent_files == 1
    same(bench)


@pytest.mark.parametrize(
    "kinds", [("file", "directory"), ("directory", "file"), ("file", "link"), ("link", "directory")]
)
async def test_a_path_may_become_something_else(bench: Bench, kinds: tuple[str, str]) -> None:
    def make(kind: str) -> None:
        path = bench.local / "thing"
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        if kind == "file":
            write(path, "content")
        elif kind == "link":
            path.symlink_to("/etc")
        else:
            write(path / "inside", "content")

    for kind in kinds:
        make(kind)
        await bench.push()
        same(bench)
    assert os.listdir("/etc")


async def test_a_directory_with_results_is_set_aside_not_destroyed(bench: Bench) -> None:
    write(bench.local / "out" / "x", "x")
    await bench.push()
    write(bench.remote / "out" / "result", "precious")
    shutil.rmtree(bench.local / "out")
    write(bench.local / "out", "now a file")
    result = await bench.push()
    assert (bench.remote / "out").read_text() == "now a file"
    assert "out.chisel-kept-1" in result.skipped[0]
    assert (bench.remote / "out.chisel-kept-1" / "result").read_text() == "precious"


async def test_nothing_is_written_through_a_link_on_the_droplet(bench: Bench, tmp_path: Path) -> None:
    write(bench.local / "src" / "a.c", "a")
    await bench.push()
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(bench.remote / "src")
    (bench.remote / "src").symlink_to(outside)
    write(bench.local / "src" / "b.c", "b")
    await bench.push()
    assert list(outside.iterdir()) == []
    same(bench)


async def test_what_cannot_be_sent_is_named(bench: Bench) -> None:
    os.mkfifo(bench.local / "pipe")
    write(bench.local / "file", "x")
    result = await bench.push()
    assert result.skipped == ("pipe: a FIFO",)
    assert snapshot(bench.remote) == {"file": (0o644, b"x")}


async def test_a_file_that_changes_after_the_scan_goes_as_it_is(bench: Bench) -> None:
    write(bench.local / "a", "scanned")
    write(bench.local / "b", "scanned and gone")
    tree = await scan_tree(bench.local, bench.index)
    write(bench.local / "a", "changed since")
    (bench.local / "b").unlink()
    result = await bench.push(tree=tree)
    assert result.skipped == ("b: No such file or directory",)
    assert snapshot(bench.remote) == {"a": (0o644, b"changed since")}
    await bench.push()
    same(bench)


class _Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def drain(self) -> None:
        return


async def test_progress_reaches_its_total(bench: Bench) -> None:
    write(bench.local / "big", random.Random(3).randbytes(3 << 20))
    sink = _Sink()
    tree = await scan_tree(bench.local, bench.index)
    await bench.push(tree=tree, sink=sink)
    steps = [event for event in sink.events if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[-1].done, steps[-1].total, steps[-1].is_done) == (3 << 20, 3 << 20, True)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3, 5, 8])
async def test_a_cancelled_sync_changes_nothing_and_leaves_nothing(bench: Bench, stop_after: int) -> None:
    write(bench.local / "a", "first")
    await bench.push()
    before = await to_thread.run_sync(snapshot, bench.remote)
    write(bench.local / "a", "second")
    for number in range(8):
        write(bench.local / f"big{number}", random.Random(number).randbytes(1 << 20))
    tree = await scan_tree(bench.local, bench.index)
    with anyio.CancelScope() as scope:
        await bench.push(_Cancelling(bench, scope, stop_after).node, tree=tree)
    assert scope.cancelled_caught

    def receivers() -> list[str]:
        return processes_with("receive", home=bench.home)

    await to_thread.run_sync(partial(until, lambda: not receivers(), what="the receiver's end"))
    assert await to_thread.run_sync(snapshot, bench.remote) == before
    assert all(len(name) == 64 for name in staged(bench)), "only whole contents, by their hash"
    await bench.push()
    await to_thread.run_sync(same, bench)

    def beside() -> list[str]:
        return [path.name for path in (bench.home / "chisel").iterdir()]

    # What was staged goes when the client has its answer already.
    await to_thread.run_sync(partial(until, lambda: beside() == ["tree-1"], what="the stage to go"))


def staged(bench: Bench) -> list[str]:
    """Name what lies beside the working copy."""
    return [path.name for place in (bench.home / "chisel").glob(".chisel-stage-*") for path in place.iterdir()]


class _Cancelling:
    """A connection whose channel cancels a scope once it has sent so many frames."""

    def __init__(self, bench: Bench, scope: anyio.CancelScope, after: int) -> None:
        self.host = bench.connection.host
        self._bench = bench
        self._scope = scope
        self._left = after

    def node(self, role: str, request: dict[str, object]) -> object:
        opened = self._bench.connection.node(role, request)
        outer = self

        class Opened:
            async def __aenter__(self) -> object:
                channel = await opened.__aenter__()
                send = channel.send

                async def counted(kind: int, payload: bytes = b"") -> None:
                    if outer._left == 0:
                        outer._scope.cancel()
                    outer._left -= 1
                    await send(kind, payload)

                channel.send = counted  # type: ignore[method-assign]
                return channel

            async def __aexit__(self, *error: object) -> object:
                return await opened.__aexit__(*error)  # type: ignore[arg-type]

        return Opened()


async def test_two_syncs_at_once_end_whole(bench: Bench) -> None:
    for number in range(40):
        write(bench.local / f"f{number}", random.Random(number).randbytes(20_000))
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(bench.push)
    same(bench)


async def test_a_busy_working_copy_says_so(bench: Bench) -> None:
    request = {"root": str(REMOTE), "owner": "me", "tree": "x"}
    async with bench.connection.node("receive", request) as holder:
        assert (await holder.receive())[0].kind == Kind.REPLY
        with anyio.move_on_after(0.5):
            await bench.push()
            pytest.fail("two hold the lock")


async def test_a_root_that_is_a_link_is_refused(bench: Bench, tmp_path: Path) -> None:
    write(bench.local / "a", "a")
    bench.remote.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    bench.remote.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RemoteError, match="symbolic link"):
        await bench.push()
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_lost_droplet_is_unreachable(bench: Bench) -> None:
    write(bench.local / "a", "a")
    bench.connection.abort()
    with pytest.raises(HostUnreachable):
        await bench.push()


def test_roots_of_the_same_name_have_different_places() -> None:
    one, two = remote_root_for(Path("/a/kernels")), remote_root_for(Path("/b/kernels"))
    assert one != two
    assert str(one).startswith("~/chisel/kernels-")
    assert str(remote_root_for(Path("/a/wéird näme!"))).isascii()
    assert str(remote_root_for(Path("/"))).startswith("~/chisel/tree-")


async def test_what_is_gone_from_a_renamed_directory_goes_there_too(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        write(bench.local / "old" / "deep" / name, f"content of {name}")
    await bench.push()
    (bench.local / "old").rename(bench.local / "new")
    (bench.local / "new" / "deep" / "b").unlink()
    result = await bench.push()
    assert (result.moved_files, result.deleted_files) == (3, 1)
    same(bench)
