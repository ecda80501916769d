"""A pull brings what changed and nothing else, goes on where it was cut, and is never fooled by a clock."""

from __future__ import annotations

import os
import random
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from chisel.events import Event, NullSink, Progress
from chisel.model import PullResult
from chisel.sync.pull import PullOptions, pull
from chisel.sync.pulled import name_of, pulled_paths
from chisel.sync.stage import Stage
from chisel.sync.throttle import Throttle
from tests.sync.conftest import REMOTE, Bench
from tests.sync.test_push import snapshot, write

pytestmark = pytest.mark.timeout(90)
MB = 1 << 20


@pytest.fixture
def remote(bench: Bench) -> Path:
    chance = random.Random(3)
    for number in range(40):
        write(bench.remote / "out" / f"d{number % 5}" / f"f{number}", chance.randbytes(chance.randrange(3000)))
    write(bench.remote / "out" / "weights.bin", chance.randbytes(8 * MB))
    return bench.remote


@pytest.fixture
def options(tmp_path: Path) -> PullOptions:
    return PullOptions(notes=tmp_path / "notes")


def settled(root: Path) -> None:
    for place, _, names in os.walk(root):
        for name in names:
            os.utime(os.path.join(place, name), ns=(10**18, 10**18))


async def test_a_second_pull_brings_nothing(bench: Bench, remote: Path, options: PullOptions, tmp_path: Path) -> None:
    here = tmp_path / "here"
    settled(remote)
    await anyio.sleep(0.06)  # the droplet's clock has to move on before looks are relied on
    first = await bench.pull("out", to=here, options=options)
    assert (first.files, first.unchanged) == (41, 0)
    await anyio.sleep(0.06)
    second = await bench.pull("out", to=here, options=options)
    assert (second.files, second.unchanged, second.bytes) == (0, 41, 0)
    assert second.wire_bytes < 4000
    assert snapshot(here / "out") == snapshot(remote / "out")
    assert not (here / ".chisel-pull").exists()


async def test_one_edit_brings_one_file(bench: Bench, remote: Path, options: PullOptions, tmp_path: Path) -> None:
    here = tmp_path / "here"
    await bench.pull("out", to=here, options=options)
    write(remote / "out" / "d1" / "f1", "new", 0o755)
    write(remote / "out" / "new" / "file", "also new")
    result = await bench.pull("out", to=here, options=options)
    assert (result.files, result.unchanged) == (2, 40)
    assert snapshot(here / "out") == snapshot(remote / "out")


async def test_without_notes_contents_are_compared(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    await bench.pull("out", to=here)
    settled(remote)
    result = await bench.pull("out", to=here)
    assert (result.files, result.unchanged) == (0, 41)
    assert result.wire_bytes < 20_000


async def test_edits_that_leave_size_and_time_are_seen(
    bench: Bench, remote: Path, options: PullOptions, tmp_path: Path
) -> None:
    here, file = tmp_path / "here", remote / "out" / "d0" / "same"
    for number in range(30):
        write(file, f"{number:04}")
        os.utime(file, ns=(10**18, 10**18))
        await bench.pull("out/d0/same", to=here, options=options)
        assert (here / "out/d0/same").read_text() == f"{number:04}"


async def test_what_was_changed_here_is_brought_again(
    bench: Bench, remote: Path, options: PullOptions, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    await bench.pull("out", to=here, options=options)
    mine = here / "out" / "d2" / "f2"
    before = mine.stat()
    mine.write_bytes(b"x" * before.st_size)
    os.utime(mine, ns=(before.st_mtime_ns, before.st_mtime_ns))
    (here / "out" / "d3" / "f3").unlink()
    await bench.pull("out", to=here, options=options)
    assert snapshot(here / "out") == snapshot(remote / "out")


async def test_equal_content_keeps_its_time_here(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    await bench.pull("out/d1", to=here)
    before = (here / "out/d1/f1").stat().st_mtime_ns
    os.utime(remote / "out" / "d1" / "f1")
    (remote / "out" / "d1" / "f1").chmod(0o755)
    await bench.pull("out/d1", to=here)
    after = (here / "out/d1/f1").stat()
    assert (after.st_mtime_ns, stat.S_IMODE(after.st_mode)) == (before, 0o755)


def changed(content: bytes, kind: str) -> bytes:
    fresh = random.Random(9).randbytes(300_000)
    middle = 3 * MB + 4711
    return {
        "in place": content[:middle] + fresh + content[middle + len(fresh) :],
        "inserted": content[:middle] + fresh + content[middle:],
        "removed": content[:middle] + content[middle + 300_000 :],
        "appended": content + fresh,
        "cut": content[:middle],
        "front": fresh + content,
        "nothing": content,
        "all": random.Random(10).randbytes(len(content)),
    }[kind]


@pytest.mark.parametrize("kind", ["in place", "inserted", "removed", "appended", "cut", "front", "nothing", "all"])
async def test_a_large_file_goes_as_changed_blocks(
    bench: Bench, remote: Path, options: PullOptions, tmp_path: Path, kind: str
) -> None:
    here, file = tmp_path / "here", remote / "out" / "weights.bin"
    await bench.pull("out/weights.bin", to=here, options=options)
    new = changed(file.read_bytes(), kind)
    write(file, new)
    result = await bench.pull("out/weights.bin", to=here, options=options)
    assert (result.error, result.skipped) == (None, ())
    assert (here / "out/weights.bin").read_bytes() == new
    assert result.wire_bytes < (9 * MB if kind == "all" else 500_000)


class CancelAfter(NullSink):
    def __init__(self, scope: anyio.CancelScope, count: int) -> None:
        self._scope, self._count = scope, count

    def emit(self, event: Event) -> None:
        if isinstance(event, Progress) and event.done >= self._count:
            self._scope.cancel()


async def test_an_interrupted_pull_goes_on_where_it_was(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here, content = tmp_path / "here", random.Random(4).randbytes(40 * MB)
    write(remote / "big", content)
    with anyio.CancelScope() as scope:
        await pull(bench.connection, REMOTE, ["big"], here, sink=CancelAfter(scope, 20 * MB))
    assert scope.cancelled_caught
    assert not (here / "big").exists()
    kept = sum(file.stat().st_size for file in (here / ".chisel-pull").glob("part*"))
    assert kept >= 20 * MB
    result = await bench.pull("big", to=here)
    assert (here / "big").read_bytes() == content
    assert result.wire_bytes < len(content) - kept + (1 << 18)
    assert [path.name for path in here.iterdir()] == ["big"]


async def test_what_is_kept_is_of_no_use_when_the_file_changed(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    write(remote / "big", random.Random(4).randbytes(20 * MB))
    with anyio.CancelScope() as scope:
        await pull(bench.connection, REMOTE, ["big"], here, sink=CancelAfter(scope, 9 * MB))
    assert scope.cancelled_caught
    other = random.Random(5).randbytes(5 * MB)
    write(remote / "big", other)
    await bench.pull("big", to=here)
    assert (here / "big").read_bytes() == other
    assert [path.name for path in here.iterdir()] == ["big"]


async def test_sparse_files_arrive_sparse(bench: Bench, remote: Path, options: PullOptions, tmp_path: Path) -> None:
    here, file = tmp_path / "here", remote / "sparse"
    with file.open("wb") as out:
        out.truncate(300 * MB)
        out.seek(128 * MB + 5)
        out.write(b"mid")
        out.seek(290 * MB)
        out.write(b"late" * 1000)
    result = await bench.pull("sparse", to=here, options=options)
    found = (here / "sparse").stat()
    assert (found.st_size, result.bytes) == (300 * MB, 300 * MB)
    assert found.st_blocks * 512 < MB
    assert result.wire_bytes < 10_000
    with file.open("r+b") as out:
        out.seek(40 * MB)
        out.write(b"new")
    await bench.pull("sparse", to=here, options=options)
    same = await to_thread.run_sync(lambda: (here / "sparse").read_bytes() == file.read_bytes())
    assert same


async def test_hard_links_arrive_as_copies(bench: Bench, remote: Path, tmp_path: Path) -> None:
    write(remote / "one", "content")
    os.link(remote / "one", remote / "two")
    await bench.pull("one", "two", to=tmp_path / "here")
    assert {(tmp_path / "here" / name).stat().st_nlink for name in ("one", "two")} == {1}


async def test_a_dry_run_says_what_would_come(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    dry = PullOptions(is_dry=True)
    all_of_it = await bench.pull("out", to=here, options=dry)
    assert len(all_of_it.would) == 41
    assert list(here.iterdir()) == []
    await bench.pull("out", to=here)
    write(remote / "out" / "d1" / "f1", "new")
    settled(remote)
    before = snapshot(here)
    result = await bench.pull("out", to=here, options=dry)
    assert result.would == (("out/d1/f1", 3),)
    assert (result.is_dry, result.files, result.unchanged) == (True, 0, 40)
    assert snapshot(here) == before


async def test_near_names_are_offered(bench: Bench, remote: Path, tmp_path: Path) -> None:
    result = await bench.pull("out/weigths.bin", "Out", "nothing-like-it", to=tmp_path / "here")
    assert result.error is not None
    assert "`out/weights.bin`" in result.error
    assert "`out`" in result.error


async def test_globs_outside_keep_what_tells_them_apart(bench: Bench, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(bench.home / "runs" / name / "log", name)
    write(bench.remote / "x")
    result = await bench.pull("~/runs/*/log", to=tmp_path / "here")
    assert result.files == 2
    assert snapshot(tmp_path / "here") == {
        "a": "directory",
        "a/log": (0o644, b"a"),
        "b": "directory",
        "b/log": (0o644, b"b"),
    }


@pytest.mark.blocking_allowed("it reads the notes itself")
async def test_what_a_sync_must_not_send_back_is_remembered(
    bench: Bench, remote: Path, options: PullOptions, tmp_path: Path
) -> None:
    root, notes = tmp_path / "project", options.notes
    assert notes is not None
    await bench.pull("out/d1", to=root / "results", options=options)
    found = pulled_paths(notes, root)
    assert set(found) == {f"results/out/d1/{file.name}" for file in (remote / "out" / "d1").iterdir()}
    for path, one in found.items():
        status = (root / path).stat()
        assert (one.size, one.mtime_ns) == (status.st_size, status.st_mtime_ns)
        assert (one.host, one.was_own) == (name_of(bench.connection.host), False)
    assert set(pulled_paths(notes, root / "results" / "out")) == {path.removeprefix("results/out/") for path in found}
    assert pulled_paths(notes, tmp_path / "other") == {}
    (write(notes / "broken.pulled", "{")).touch()
    assert pulled_paths(notes, root) == found
    shutil.rmtree(root)
    await bench.pull("out/d2", to=tmp_path / "elsewhere", options=options)
    assert pulled_paths(notes, root) == {}


async def test_a_writer_at_work_is_named_and_what_it_had_arrives(bench: Bench, remote: Path, tmp_path: Path) -> None:
    log, stop = remote / "log", anyio.Event()
    write(log, "line\n" * 50_000)

    def append() -> None:
        with log.open("a") as out:
            out.write("line\n")

    async def keep_writing() -> None:
        while not stop.is_set():
            await to_thread.run_sync(append)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_writing)
        results: list[PullResult] = [await bench.pull("log", to=tmp_path / "here") for _ in range(10)]
        stop.set()
    text = (tmp_path / "here" / "log").read_text()
    assert text == "line\n" * (len(text) // 5)
    assert len(text) >= 250_000
    assert all(not one.skipped or "while it was read" in one.skipped[0] for one in results)


async def test_a_rate_is_kept(bench: Bench, remote: Path, options: PullOptions, tmp_path: Path) -> None:
    limited = replace(options, throttle=Throttle(4e6))
    result = await bench.pull("out/weights.bin", to=tmp_path / "here", options=limited)
    assert 8 * MB / 4e6 - 0.6 < result.seconds < 8 * MB / 4e6 + 2


async def test_two_pulls_into_one_directory_do_not_meet(bench: Bench, remote: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    async with anyio.create_task_group() as tasks:
        for name in ("out/d1", "out/d2", "out/weights.bin"):
            tasks.start_soon(lambda name=name: bench.pull(name, to=here))
    assert not [path.name for path in here.iterdir() if "chisel" in path.name]
    assert (here / "out/weights.bin").read_bytes() == (remote / "out/weights.bin").read_bytes()
    assert {"d1", "d2"} < {path.name for path in (here / "out").iterdir()}


def test_stages_of_many_pulls_at_once_are_never_taken_for_left_over(tmp_path: Path) -> None:
    """Each cleans up after those that were killed, and none of the others is: as often as they meet."""

    def pull_often() -> int:
        root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(200):
                stage = Stage(root)
                os.stat(stage.name, dir_fd=root)
                os.close(stage.open_part("small", 1))
                stage.close()
            return 1
        finally:
            os.close(root)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: pull_often(), range(4))) == 4
    assert list(tmp_path.iterdir()) == []
