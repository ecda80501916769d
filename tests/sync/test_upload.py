"""A push puts data on every droplet once, whole, and goes on wherever it was cut."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel.errors import HostUnreachable, UsageError
from chisel.events import Event, NullSink, Progress
from chisel.model import Host, PushResult
from chisel.node import contents, pushed, stdio
from chisel.sync.sources import gather
from chisel.sync.throttle import Throttle
from chisel.sync.upload import upload
from tests.support import processes_with, until
from tests.sync.conftest import Bench
from tests.sync.test_push import snapshot, write

pytestmark = pytest.mark.timeout(90)
MB = 1 << 20


class Pusher:
    """Push with one bench's droplet, or a connection that stands before it."""

    def __init__(self, bench: Bench, state: Path) -> None:
        self.bench, self.state = bench, state

    async def __call__(
        self, *named: Path, to: str = "~/data", connections: Sequence[Any] = (), sink: Any = None
    ) -> Any:
        sources = await to_thread.run_sync(gather, list(named))
        results = await upload(
            list(connections) or [self.bench.connection],
            sources,
            to,
            sink=sink or NullSink(),
            digests_file=self.state / "pushed",
        )
        return results if connections else results[0]


@pytest.fixture
def push(bench: Bench, tmp_path: Path) -> Pusher:
    return Pusher(bench, tmp_path / "state")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write(tmp_path / "here" / "weights.bin", random.Random(1).randbytes(12 * MB + 345), 0o640)


def data_of(bench: Bench) -> Path:
    return bench.home / "data"


async def test_a_file_arrives_whole_and_is_not_sent_twice(bench: Bench, push: Pusher, weights: Path) -> None:
    first: PushResult = await push(weights)
    there = data_of(bench) / "weights.bin"
    assert (first.error, first.files, first.unchanged, first.skipped) == (None, 1, 0, ())
    assert there.read_bytes() == weights.read_bytes()
    assert (stat.S_IMODE(there.stat().st_mode), there.stat().st_mtime_ns) == (0o640, weights.stat().st_mtime_ns)
    assert os.listdir(data_of(bench)) == ["weights.bin"]
    before = there.stat()
    second: PushResult = await push(weights)
    assert (second.files, second.unchanged, second.sent_bytes) == (0, 1, 0)
    assert there.stat().st_ino == before.st_ino


async def test_what_is_there_is_found_without_notes(bench: Bench, push: Pusher, weights: Path) -> None:
    write(data_of(bench) / "weights.bin", weights.read_bytes())
    result: PushResult = await push(weights)
    assert (result.files, result.unchanged) == (0, 1)
    assert result.sent_bytes < 200
    (bench.home / ".chisel" / "store" / "index").unlink()
    assert (await push(weights)).unchanged == 1


@pytest.mark.parametrize("is_edited_here", [True, False])
async def test_of_a_changed_file_only_blocks_go(
    bench: Bench, push: Pusher, weights: Path, is_edited_here: bool
) -> None:
    await push(weights)
    with (weights if is_edited_here else data_of(bench) / "weights.bin").open("r+b") as out:
        out.seek(5 * MB)
        out.write(b"changed")
    result: PushResult = await push(weights)
    assert (result.files, result.error) == (1, None)
    assert result.sent_bytes < 200_000
    assert (data_of(bench) / "weights.bin").read_bytes() == weights.read_bytes()


async def test_directories_go_with_all_they_hold(bench: Bench, push: Pusher, tmp_path: Path) -> None:
    tree = tmp_path / "set"
    for number in range(30):
        write(tree / f"d{number % 4}" / f"f{number}", b"line\n" * number * 100)
    write(tree / os.fsdecode(b"latin-\xe9\n"), "x", 0o755)
    write(tree / "empty")
    (tree / "nothing").mkdir()
    (tree / "link").symlink_to("d1/f1")
    (tree / "out").symlink_to("/etc/passwd")
    result: PushResult = await push(tree)
    (tree / "out").unlink()
    assert snapshot(data_of(bench) / "set") == snapshot(tree)
    assert (result.files, result.error) == (32, None)
    assert result.skipped == ("set/out: a link that leads out of what is pushed, to `/etc/passwd`",)
    assert result.sent_bytes < result.bytes / 4
    write(data_of(bench) / "set" / "own", "made there")
    again: PushResult = await push(tree)
    assert (again.files, again.unchanged) == (0, 32)
    assert (data_of(bench) / "set" / "own").exists()


async def test_what_is_in_the_way_is_said_and_the_rest_goes(bench: Bench, push: Pusher, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, name * 100)
    (data_of(bench) / "b").mkdir(parents=True)
    result: PushResult = await push(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert (result.files, result.error) == (2, None)
    assert [line.partition(":")[0] for line in result.skipped] == ["b"]


async def test_links_there_are_not_followed(bench: Bench, push: Pusher, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write(tmp_path / "set" / "inner" / "x", "x")
    (data_of(bench) / "set").mkdir(parents=True)
    (data_of(bench) / "set" / "inner").symlink_to(outside)
    result: PushResult = await push(tmp_path / "set")
    assert list(outside.iterdir()) == []
    assert result.skipped


def test_names_that_meet_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x")
    write(tmp_path / "b" / "x")
    with pytest.raises(UsageError, match="both become `x`"):
        gather([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    with pytest.raises(UsageError, match="No such file"):
        gather([tmp_path / "nothing"])


async def test_sparse_files_arrive_sparse(bench: Bench, push: Pusher, tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        out.truncate(2 << 30)
        out.seek(1 << 30)
        out.write(b"mid" * 1000)
    result: PushResult = await push(file)
    there = (data_of(bench) / "sparse").stat()
    assert (there.st_size, result.bytes, result.error) == (2 << 30, 2 << 30, None)
    assert there.st_blocks * 512 < 2 * MB
    assert result.sent_bytes < 2 * MB
    with (data_of(bench) / "sparse").open("rb") as found:
        found.seek(1 << 30)
        assert found.read(3000) == b"mid" * 1000


class CutAfter:
    """A connection whose link is lost when so many bytes of contents have left."""

    def __init__(self, connection: Any, count: int) -> None:
        self._connection, self.left = connection, count
        self.host: Host = connection.host

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> AsyncIterator[Any]:
        async with self._connection.node(role, request) as channel:
            send_raw = channel.send_raw

            async def cut(data: bytes) -> None:
                await send_raw(data[: self.left])
                self.left -= len(data)
                if self.left <= 0:
                    raise HostUnreachable("the link is cut", host=self.host.name)

            channel.send_raw = cut
            yield channel


class Elsewhere:
    """A connection to the same droplet that puts everything somewhere else: it stands for a second one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.host: Host = connection.host

    def node(self, role: str, request: dict[str, Any]) -> Any:
        return self._connection.node(role, {**request, "to": "~/elsewhere"})


async def test_a_cut_at_any_byte_costs_one_block(bench: Bench, push: Pusher, weights: Path) -> None:
    chance = random.Random(2)
    content, block = weights.read_bytes(), contents.block_size(weights.stat().st_size)
    whole = 0
    for _ in range(4):
        count = chance.randrange(1000, 5 * MB)
        (result,) = await push(weights, connections=[CutAfter(bench.connection, count)])
        assert result.error is not None
        whole += (count - count // block * 6 - 100) // block
    assert not (data_of(bench) / "weights.bin").exists()
    journal = next((bench.home / ".chisel" / "store").glob("[0-9a-f]*[0-9a-f]"))
    have = (journal.stat().st_size - len(journal.read_bytes().split(b"\n")[0]) - 1) // 32
    last: PushResult = await push(weights)
    assert (last.error, last.files) == (None, 1)
    overhead = len(content) // block * 16 + 1000
    assert last.sent_bytes <= len(content) - have * block + overhead
    assert have >= whole > 30
    assert (data_of(bench) / "weights.bin").read_bytes() == content
    assert os.listdir(data_of(bench)) == ["weights.bin"]


async def test_a_part_that_was_damaged_is_not_believed(bench: Bench, push: Pusher, weights: Path) -> None:
    (result,) = await push(weights, connections=[CutAfter(bench.connection, 8 * MB)])
    assert result.error is not None
    (part,) = data_of(bench).glob(".chisel-part-*")
    with part.open("r+b") as out:
        out.seek(2 * MB)
        out.write(b"damage")
    assert (await push(weights)).error is None
    assert (data_of(bench) / "weights.bin").read_bytes() == weights.read_bytes()


@pytest.mark.blocking_allowed("the writer at work is the test itself")
async def test_a_file_that_changes_meanwhile_never_arrives_torn(
    bench: Bench, push: Pusher, weights: Path, tmp_path: Path
) -> None:
    def scribble() -> None:
        with weights.open("r+b") as out:
            out.write(os.urandom(64))

    class Scribble(NullSink):
        count = 0

        def emit(self, event: Event) -> None:
            if isinstance(event, Progress) and 4 * MB < event.done < 8 * MB and self.count < self.most:
                self.count += 1
                scribble()

        def __init__(self, most: int) -> None:
            self.most = most

    result: PushResult = await push(weights, sink=Scribble(1))
    assert (result.files, result.skipped) == (1, ())
    assert (data_of(bench) / "weights.bin").read_bytes() == weights.read_bytes()
    before = (data_of(bench) / "weights.bin").read_bytes()
    scribble()
    result = await push(weights, sink=Scribble(10**6))
    assert result.skipped == ("weights.bin: it changed while it was read: push it again",)
    assert (data_of(bench) / "weights.bin").read_bytes() == before
    result = await push(weights)
    assert (data_of(bench) / "weights.bin").read_bytes() == weights.read_bytes()


async def test_a_failing_droplet_does_not_keep_the_others(bench: Bench, push: Pusher, weights: Path) -> None:
    bad = CutAfter(bench.connection, 3 * MB)
    first, second = await push(weights, connections=[bad, Elsewhere(bench.connection)])
    assert (first.error, second.error) == ("the link is cut", None)
    assert (bench.home / "elsewhere" / "weights.bin").read_bytes() == weights.read_bytes()
    assert not (data_of(bench) / "weights.bin").exists()


async def test_no_room_is_said_before_anything_is_sent(bench: Bench, push: Pusher, tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as out:
        out.truncate(1 << 43)
    result: PushResult = await push(file)
    assert result.error is not None
    assert "are free" in result.error
    assert result.sent_bytes == 0


async def test_a_cancelled_push_leaves_nothing_running(bench: Bench, push: Pusher, weights: Path) -> None:
    with anyio.CancelScope() as scope:

        class Cancel(NullSink):
            def emit(self, event: Event) -> None:
                if isinstance(event, Progress) and event.done > 4 * MB:
                    scope.cancel()

        await push(weights, sink=Cancel())
    assert scope.cancelled_caught
    await to_thread.run_sync(lambda: until(lambda: not processes_with(str(bench.home)), what="the role to end"))
    assert not (data_of(bench) / "weights.bin").exists()
    assert (await push(weights)).error is None


async def test_relative_and_absolute_places(bench: Bench, push: Pusher, weights: Path, tmp_path: Path) -> None:
    await push(weights, to="models/one")
    assert (bench.home / "models" / "one" / "weights.bin").exists()
    await push(weights, to=str(tmp_path / "abs"))
    assert (tmp_path / "abs" / "weights.bin").exists()
    chosen: PushResult = await push(weights, to="")
    assert chosen.target.endswith("/scratch")


async def test_a_rate_is_kept(bench: Bench, weights: Path, tmp_path: Path) -> None:
    sources = await to_thread.run_sync(gather, [weights])
    throttle = Throttle(8e6)
    (result,) = await upload(
        [bench.connection], sources, "", sink=NullSink(), digests_file=tmp_path / "p", throttle=throttle
    )
    assert 1.2 < result.seconds < 4


def test_another_push_of_a_file_waits_or_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pushed, "BUSY_S", 0.3)
    first = pushed.Journal("/data/x", 5 * MB)
    with pytest.raises(stdio.Refused, match="another push"):
        pushed.Journal("/data/x", 5 * MB)
    first.add([b"a" * 32, b"b" * 32])
    first.close()
    again = pushed.Journal("/data/x", 5 * MB)
    assert again.blocks == [b"a" * 32, b"b" * 32]
    again.close()
    other = pushed.Journal("/data/x", 1 << 40)
    assert other.blocks == []
    other.close(is_done=True)
    assert not pushed.has_journal("/data/x")


def test_the_index_is_what_the_file_looked_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(tmp_path / "x", "content")
    index = pushed.Index()
    for number in range(1200):
        index.add(str(file), file.stat(), f"{number:064}")
    reread: Callable[[], str] = lambda: pushed.Index().digest(str(file), file.stat())  # noqa: E731
    assert reread() == f"{1199:064}"
    pushed.Index()
    assert len((tmp_path / ".chisel/store/index").read_text().splitlines()) == 1
    assert reread() == f"{1199:064}"
    file.write_text("another")
    assert reread() == ""
