"""One message is enough, nothing is sent twice, and what the droplet made or somebody changed there is respected."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel.errors import HostUnreachable, RemoteError
from chisel.events import Event, Notice, NullSink
from chisel.model import DropletId, SyncResult
from chisel.node import locks
from chisel.node.frames import Frame, Kind
from chisel.ssh.connector import open_connector
from chisel.sync.index import Index
from chisel.sync.job import Job, Options
from chisel.sync.pull import PullOptions
from chisel.sync.push import push
from chisel.sync.scan import scan_tree
from chisel.sync.there import Known
from chisel.sync.throttle import Throttle
from tests.support import until
from tests.sync.conftest import REMOTE, Bench
from tests.sync.test_push import same, snapshot, staged, write

pytestmark = pytest.mark.timeout(90)


class Heard:
    """A connection that counts what it is sent and what it is asked."""

    def __init__(self, bench: Bench, *, cut_after: int | None = None) -> None:
        self._bench = bench
        self._left = cut_after
        self.requests: list[dict[str, Any]] = []
        self.sent: list[int] = []
        self.sent_bytes = 0

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        async with self._bench.connection.node(role, request) as channel:
            send = channel.send

            async def counted(kind: int, payload: bytes = b"") -> None:
                self.sent.append(kind)
                self.sent_bytes += len(payload)
                await send(kind, payload)
                if self._left is not None:
                    self._left -= len(payload)
                    if self._left <= 0:
                        arrived = partial(until, lambda: len(staged(self._bench)) > 5, what="some files to arrive")
                        await to_thread.run_sync(arrived)
                        self._bench.connection.abort()

            channel.send = counted
            yield channel


def sizes(bench: Bench, count: int, size: int) -> None:
    for number in range(count):
        write(bench.local / f"f{number}", random.Random(number).randbytes(size))


async def test_nothing_changed_and_one_edit_are_one_message(bench: Bench) -> None:
    sizes(bench, 20, 5000)
    await bench.push()
    heard = Heard(bench)
    await bench.push(heard.node)
    write(bench.local / "f3", "edited")
    await bench.push(heard.node)
    (bench.local / "f3").rename(bench.local / "other")
    result = await bench.push(heard.node)
    assert heard.sent == [], "all was in the requests"
    assert ["stream" in request for request in heard.requests] == [False, True, True]
    assert result.moved_files == 1
    same(bench)


async def test_drift_costs_one_more_and_is_named(bench: Bench) -> None:
    sizes(bench, 5, 5000)
    await bench.push()
    write(bench.remote / "f1", "edited there")
    (bench.remote / "f2").unlink()
    (bench.remote / "f3").chmod(0o600)
    write(bench.local / "f4", "edited here")
    heard = Heard(bench)
    result = await bench.push(heard.node)
    assert result.repaired == ("f1", "f2", "f3")
    assert len(heard.requests) == 1
    same(bench)
    assert (await bench.push()).repaired == ()


async def test_an_edit_there_with_the_same_size_and_time_is_found(bench: Bench) -> None:
    write(bench.local / "a", "one")
    await bench.push()
    before = os.stat(bench.remote / "a")
    write(bench.remote / "a", "two")
    os.utime(bench.remote / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await bench.push()).repaired == ("a",)


async def test_drift_can_be_kept_for_as_long_as_one_likes(bench: Bench) -> None:
    for name in ("a", "dir/b", "c"):
        write(bench.local / name, name)
    await bench.push()
    write(bench.remote / "a", "theirs")
    write(bench.remote / "dir" / "b", "theirs too")
    write(bench.local / "a", "edited here as well")
    shutil.rmtree(bench.local / "dir")
    write(bench.local / "c", "new c")
    for _ in range(2):
        result = await bench.push(options=Options(keeps=True))
        assert result.kept == ("a", "dir/b")
        assert result.repaired == ()
        assert (bench.remote / "a").read_text() == "theirs"
        assert (bench.remote / "dir" / "b").read_text() == "theirs too"
        assert (bench.remote / "c").read_text() == "new c"
    await bench.push()
    same(bench)


async def test_what_arrived_before_a_cut_is_not_sent_again(bench: Bench) -> None:
    await bench.push()
    sizes(bench, 30, 200_000)
    heard = Heard(bench, cut_after=3_000_000)
    with pytest.raises(HostUnreachable):
        await bench.push(heard.node)
    await to_thread.run_sync(partial(_until_settled, bench))
    held = len(staged(bench))
    assert 4 < held < 30  # one of those that were seen may have been half a file
    assert snapshot(bench.remote) == {}
    await bench.reconnect()
    again = Heard(bench)
    result = await bench.push(again.node)
    same(bench)
    assert result.sent_files == 30
    assert again.sent_bytes <= (30 - held + 1) * 201_000
    await to_thread.run_sync(partial(until, lambda: staged(bench) == [], what="no stage left"))


def _until_settled(bench: Bench) -> None:
    seen: list[int] = []

    def settled() -> bool:
        with locks.syncing(_directory(bench), 10):
            seen.append(len(staged(bench)))
        return len(seen) > 2 and seen[-1] == seen[-2]

    until(settled, what="the receiver's end")


def _directory(bench: Bench) -> str:
    key = hashlib.sha256(os.fsencode(bench.remote)).hexdigest()[:16]
    return str(bench.home / ".chisel" / "sync" / key)


async def test_a_large_file_goes_as_what_changed_of_it(bench: Bench) -> None:
    data = random.Random(1).randbytes(8 << 20)
    write(bench.local / "weights", data)
    await bench.push()
    changed = data[: 4 << 20] + b"inserted" + data[4 << 20 :]
    write(bench.local / "weights", changed)
    heard = Heard(bench)
    result = await bench.push(heard.node)
    assert result.sent_files == 1
    assert heard.sent_bytes < 300_000
    same(bench)
    assert (await bench.push()).tree_hash == result.tree_hash


async def test_a_large_file_that_is_not_there_any_more_as_it_was_goes_whole(bench: Bench) -> None:
    data = random.Random(1).randbytes(8 << 20)
    write(bench.local / "weights", data)
    await bench.push()
    write(bench.remote / "weights", data[::-1])
    write(bench.local / "weights", data[: 4 << 20] + b"!" + data[4 << 20 :])
    await bench.push()
    same(bench)


async def test_a_small_edit_sends_little_of_a_file(bench: Bench) -> None:
    lines = [f"float x{number} = {random.Random(number).random()};" for number in range(2000)]
    write(bench.local / "a.cpp", "\n".join(lines))
    await bench.push()
    lines[700] = "float y = 1;"
    write(bench.local / "a.cpp", "\n".join(lines))
    result = await bench.push()
    assert result.sent_bytes < 2000
    same(bench)


async def test_equal_contents_are_sent_once(bench: Bench) -> None:
    data = random.Random(1).randbytes(400_000)
    for name in ("a", "b/c", "b/d", "e"):
        write(bench.local / name, data)
    first = await bench.push()
    assert first.sent_bytes < 450_000
    write(bench.local / "f" / "g", data)
    assert (await bench.push()).sent_bytes < 300
    same(bench)


@pytest.mark.parametrize("codec", ["zstd", "lzma", "zlib"])
async def test_whatever_the_droplet_can_decompress_is_used(
    bench: Bench, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []

    def choose(offered: Any, rate: float, size: int) -> str:
        del rate, size
        assert codec in offered
        chosen.append(codec)
        return codec

    monkeypatch.setattr("chisel.sync.part.codec.choose_codec", choose)
    for number in range(40):
        write(bench.local / f"text{number}", f"line {number}\n" * 9000)
    write(bench.local / "random", random.Random(2).randbytes(1 << 20))
    await bench.push()
    assert chosen
    same(bench)


async def test_two_owners_meet(bench: Bench) -> None:
    write(bench.local / "a", "mine")
    await bench.push(owner="me", owner_name="me@laptop")
    with pytest.raises(RemoteError, match="belongs to me@laptop") as caught:
        await bench.push(owner="you", owner_name="you@desk")
    assert caught.value.code == "owned"
    assert caught.value.hint is not None
    assert "--take-over" in caught.value.hint
    await bench.push(owner="you", owner_name="you@desk", options=Options(takes_over=True))
    with pytest.raises(RemoteError, match="belongs to you@desk"):
        await bench.push(owner="me")


async def test_a_dry_run_says_why_and_changes_nothing(bench: Bench) -> None:
    sizes(bench, 4, 3000)
    write(bench.local / "old" / "a", "content of a")
    await bench.push()
    before = snapshot(bench.remote)
    write(bench.remote / "f0", "edited there")
    write(bench.local / "f1", "edited here")
    (bench.local / "f2").unlink()
    (bench.local / "f3").chmod(0o755)
    (bench.local / "old").rename(bench.local / "new")
    write(bench.local / "fresh")
    result = await bench.push(options=Options(is_dry=True))
    assert result.is_dry
    assert result.reasons == {
        "f0": "repaired: it was changed on the droplet",
        "f1": "changed",
        "f2": "deleted: it is gone here",
        "f3": "mode 755",
        "new": "moved from old",
        "fresh": "new",
    }
    assert snapshot(bench.remote) == {**before, "f0": (0o644, b"edited there")}


async def test_extra_files_go_only_when_told_and_are_named_first(bench: Bench) -> None:
    write(bench.local / "src" / "a.c", "a")
    await bench.push()
    write(bench.remote / "build" / "deep" / "a.o", "object")
    write(bench.remote / "src" / "a.o", "object")
    (bench.remote / "link").symlink_to("/etc")
    await bench.push()
    assert (bench.remote / "src" / "a.o").exists()
    sink = Sink()
    await bench.push(options=Options(deletes_extra=True), sink=sink)
    same(bench)
    assert os.listdir("/etc")
    told = [event.message for event in sink.events if isinstance(event, Notice)]
    assert {"build", "src/a.o", "link"} == {message.split()[1].rstrip(",") for message in told}


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []

        self._news = anyio.Event()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()
        self._news = anyio.Event()

    async def drain(self) -> None:
        return

    async def told(self, word: str) -> None:
        """Wait for a notice that holds a word."""
        with anyio.fail_after(20):
            while not any(isinstance(event, Notice) and word in event.message for event in self.events):
                await self._news.wait()


async def test_what_was_pulled_belongs_to_the_droplet_until_it_is_edited(bench: Bench) -> None:
    write(bench.local / "results.csv", "pushed once")
    write(bench.local / "a.c", "a")
    await bench.push()
    write(bench.remote / "results.csv", "1,2\n")
    write(bench.remote / "out" / "more.csv", "3,4\n")
    options = PullOptions(notes=bench.index.parent)
    pulled = await bench.pull("results.csv", "out", "a.c", to=bench.local, options=options)
    assert (pulled.files, pulled.unchanged) == (2, 1)
    (bench.remote / "out" / "more.csv").unlink()
    write(bench.remote / "results.csv", "1,2\n5,6\n")
    result = await bench.push()
    assert result.repaired == ()
    assert (bench.remote / "results.csv").read_text() == "1,2\n5,6\n"
    assert not (bench.remote / "out" / "more.csv").exists()
    await bench.push()
    (bench.local / "results.csv").unlink()
    await bench.push()
    assert (bench.remote / "results.csv").read_text() == "1,2\n5,6\n", "it was not ours any more"
    write(bench.local / "out" / "more.csv", "edited here")
    await bench.push()
    assert (bench.remote / "out" / "more.csv").read_text() == "edited here"
    (bench.local / "a.c").unlink()
    await bench.push()
    assert not (bench.remote / "a.c").exists(), "a pull found it here: it stays ours"


async def test_what_was_pulled_over_ones_own_file_goes_to_other_droplets(bench: Bench) -> None:
    write(bench.local / "a.c", "as written here")
    await bench.push()
    write(bench.remote / "a.c", "as formatted there")
    write(bench.remote / "out", "a result")
    await bench.pull("a.c", "out", to=bench.local, options=PullOptions(notes=bench.index.parent))
    write(bench.remote / "a.c", "as formatted there once more")
    result = await bench.push()
    assert (bench.remote / "a.c").read_text() == "as formatted there once more", "it is that droplet's"
    assert result.repaired == ()
    # Another droplet, which the same tree goes to: here the same one under another id, in another place.
    other = replace(bench.connection.host, droplet_id=DropletId(2))
    await bench.push(host=other, remote=PurePosixPath("~/other"))
    assert snapshot(bench.home / "other") == {"a.c": (0o644, b"as formatted there")}
    write(bench.local / "b.c", "b")
    await bench.push()
    await bench.push(host=other, remote=PurePosixPath("~/other"))
    assert (bench.remote / "a.c").read_text() == "as formatted there once more"
    assert (bench.home / "other" / "b.c").read_text() == "b"
    write(bench.home / "other" / "a.c", "changed on the other")
    result = await bench.push(host=other, remote=PurePosixPath("~/other"))
    assert result.repaired == ("a.c",)
    assert (bench.home / "other" / "a.c").read_text() == "as formatted there"


async def test_droplets_of_one_sync_each_get_what_is_not_their_own(bench: Bench) -> None:
    write(bench.local / "a.c", "as written here")
    await bench.push()
    write(bench.remote / "a.c", "as formatted there")
    await bench.pull("a.c", to=bench.local, options=PullOptions(notes=bench.index.parent))
    write(bench.remote / "a.c", "newer")
    index, known = await to_thread.run_sync(Index.load, bench.index), Known(bench.index)
    tree = await scan_tree(bench.local, index)
    host = bench.connection.host
    job = Job(tree, index, known, REMOTE, owner="me", sink=Sink())
    assert tree.kept_from(host) == {"a.c"}
    assert tree.kept_from(replace(host, droplet_id=DropletId(2))) == frozenset()
    first = await job.part(host)
    second = await job.part(replace(host, droplet_id=DropletId(2)))
    assert first.request().get("stream") is not None, "it is told to keep its file as its own"
    assert second.request()["asks"], "nothing is known of it: it is sent all that it lacks"
    job.close()


class Announced:
    """A connection over which a tree is announced before it is scanned, and whose second word can be lost."""

    def __init__(self, bench: Bench, *, loses_request: bool = False) -> None:
        self._bench = bench
        self._loses_request = loses_request
        self.frames: list[dict[str, Any]] = []

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> Any:
        assert request["waits"]
        async with self._bench.connection.node(role, request) as channel:
            send, receive = channel.send, channel.receive

            async def sent(kind: int, payload: bytes = b"") -> None:
                if kind != Kind.REQUEST or not self._loses_request:
                    await send(kind, payload)

            async def received() -> list[Frame]:
                found = await receive()
                self.frames += [frame.json() for frame in found if frame.kind == Kind.REPLY]
                return found

            channel.send, channel.receive = sent, received
            yield channel

    async def push(self) -> SyncResult:
        """Sync with the droplet told before the scan begins."""
        bench, found = self._bench, list[SyncResult]()
        index, known = await to_thread.run_sync(Index.load, bench.index), Known(bench.index)
        job = Job(None, index, known, REMOTE, owner="me", sink=NullSink())

        async def one() -> None:
            found.append(await push(self.node, bench.connection.host, job))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            job.scanned(await scan_tree(bench.local, index))
        job.close()
        return found[0]


async def test_what_the_droplet_has_seen_is_enough_where_nothing_changed(bench: Bench) -> None:
    """Its first word settles it: the second half of the request never arrives, and nobody waits for the answer."""
    sizes(bench, 20, 500)
    first = await bench.push()
    announced = Announced(bench, loses_request=True)
    result = await announced.push()
    assert (result.sent_files, result.total_files, result.tree_hash) == (0, 20, first.tree_hash)
    assert [frame.get("seen") for frame in announced.frames] == [True]
    write(bench.local / "f3", "edited")
    assert (await Announced(bench).push()).sent_files == 1, "the droplet was left ready for the next"
    await to_thread.run_sync(same, bench)


async def test_what_the_droplet_has_seen_settles_nothing_where_something_changed(bench: Bench) -> None:
    sizes(bench, 5, 500)
    await bench.push()
    write(bench.remote / "f1", "meddled")
    announced = Announced(bench)
    assert (await announced.push()).repaired == ("f1",)
    assert not any(frame.get("seen") for frame in announced.frames), "what differs there is not passed over"
    write(bench.local / "f2", "edited")
    announced = Announced(bench)
    assert (await announced.push()).sent_files == 1
    assert [frame.get("seen", False) for frame in announced.frames] == [True, False]
    await to_thread.run_sync(same, bench)


async def test_read_only_directories_and_files_follow(bench: Bench) -> None:
    write(bench.local / "ro" / "a", "a", 0o444)
    (bench.local / "ro").chmod(0o555)
    await bench.push()
    assert os.stat(bench.remote / "ro").st_mode & 0o777 == 0o555
    (bench.local / "ro").chmod(0o755)
    write(bench.local / "ro" / "b", "b")
    (bench.local / "ro" / "a").unlink()
    (bench.local / "ro").chmod(0o555)
    await bench.push()
    assert snapshot(bench.remote / "ro") == {"b": (0o644, b"b")}
    assert os.stat(bench.remote / "ro").st_mode & 0o777 == 0o555
    for place in (bench.local, bench.remote):
        (place / "ro").chmod(0o755)


async def test_holes_stay_holes(bench: Bench) -> None:
    _write_sparse(bench.local / "sparse")
    result = await bench.push()
    assert result.sent_bytes < 100_000
    status = os.stat(bench.remote / "sparse")
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 < 1 << 20
    same(bench)


def _write_sparse(path: Path) -> None:
    with open(path, "wb") as out:
        out.truncate(64 << 20)
        out.seek(32 << 20)
        out.write(b"middle")


async def test_chisels_own_files_are_never_a_working_copy(bench: Bench) -> None:
    write(bench.local / "a", "a")
    for place in ("~", "~/", "/", "~/.chisel", "~/.chisel/../"):
        with pytest.raises(RemoteError, match="chisel's own files"):
            await bench.push(remote=PurePosixPath(place))


async def test_hard_links_are_said(bench: Bench) -> None:
    write(bench.local / "a", "a")
    os.link(bench.local / "a", bench.local / "b")
    assert (await bench.push()).notes == ("2 hard links are sent as files of their own",)
    same(bench)


async def test_a_file_of_the_droplets_own_is_named_when_it_is_replaced(bench: Bench) -> None:
    await bench.push()
    write(bench.remote / "a", "made there")
    write(bench.remote / "equal", "equal")
    before = os.stat(bench.remote / "equal").st_mtime_ns
    write(bench.local / "a", "from here")
    write(bench.local / "equal", "equal")
    result = await bench.push()
    assert result.skipped == ("a: the droplet's own file was replaced",)
    assert os.stat(bench.remote / "equal").st_mtime_ns == before, "what is equal keeps its time"
    same(bench)


async def test_a_lost_manifest_deletes_nothing_and_touches_nothing(bench: Bench) -> None:
    sizes(bench, 5, 50_000)
    await bench.push()
    shutil.rmtree(bench.home / ".chisel" / "sync")
    write(bench.remote / "result", "theirs")
    times = {path.name: path.stat().st_mtime_ns for path in bench.remote.iterdir()}
    result = await bench.push()
    assert (bench.remote / "result").read_text() == "theirs"
    assert {path.name: path.stat().st_mtime_ns for path in bench.remote.iterdir()} == times
    assert result.tree_hash


async def test_a_command_and_a_switch_exclude_each_other(bench: Bench) -> None:
    write(bench.local / "a", "old")
    await bench.push()
    request = {"run_id": "holder-1", "line": "read x; cat a", "cwd": str(REMOTE), "stdin": True, "owner": "me"}
    async with bench.connection.node("supervise", request) as channel:
        while Kind.STARTED not in [frame.kind for frame in await channel.receive()]:
            pass
        write(bench.local / "a", "new")
        sink = Sink()
        ended: list[str] = []

        async def sync() -> None:
            await bench.push(sink=sink)
            ended.append("sync")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sync)
            await sink.told("holder-1")
            assert (bench.remote / "a").read_text() == "old"
            assert not ended
            await channel.send(Kind.STDIN, bytes(8) + b"go\n")
            out = b""
            while not out.endswith(b"old"):
                out += b"".join(frame.payload for frame in await channel.receive() if frame.kind == Kind.STDOUT)
        assert (bench.remote / "a").read_text() == "new"


async def test_now_does_not_wait(bench: Bench) -> None:
    write(bench.local / "a", "old")
    await bench.push()
    request = {"run_id": "holder-2", "line": "read x", "cwd": str(REMOTE), "stdin": True, "owner": "me"}
    async with bench.connection.node("supervise", request) as channel:
        while Kind.STARTED not in [frame.kind for frame in await channel.receive()]:
            pass
        write(bench.local / "a", "new")
        with anyio.fail_after(20):
            await bench.push(options=Options(is_now=True))
        assert (bench.remote / "a").read_text() == "new"


async def test_a_sync_is_given_up_while_it_waits(bench: Bench) -> None:
    write(bench.local / "a", "old")
    await bench.push()
    request = {"run_id": "holder-3", "line": "read x", "cwd": str(REMOTE), "stdin": True, "owner": "me"}
    async with bench.connection.node("supervise", request) as channel:
        while Kind.STARTED not in [frame.kind for frame in await channel.receive()]:
            pass
        write(bench.local / "a", "new")
        sink = Sink()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(bench.push, sink=sink))
            await sink.told("holder-3")
            tasks.cancel_scope.cancel()
        assert (bench.remote / "a").read_text() == "old"
    await bench.push()
    same(bench)


async def test_an_announced_sync_is_the_same(bench: Bench) -> None:
    sizes(bench, 10, 5000)
    for _ in range(3):
        index, known = await to_thread.run_sync(Index.load, bench.index), Known(bench.index)
        job = Job(None, index, known, REMOTE, owner="me", sink=Sink())

        async def scan(job: Job = job, index: Index = index) -> None:
            job.scanned(await scan_tree(bench.local, index))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scan)
            result = await push(bench.connection.node, bench.connection.host, job)
        job.close()
        assert result.error is None
        same(bench)
        write(bench.local / "f4", os.urandom(2000))


async def test_an_announced_sync_that_is_refused_says_why(bench: Bench) -> None:
    write(bench.local / "a", "mine")
    await bench.push()
    index, known = await to_thread.run_sync(Index.load, bench.index), Known(bench.index)
    job = Job(None, index, known, REMOTE, owner="somebody else", sink=Sink())
    opened: list[Any] = []

    @asynccontextmanager
    async def node(role: str, request: dict[str, Any]) -> AsyncIterator[Any]:
        async with bench.connection.node(role, request) as channel:
            opened.append(channel)
            yield channel

    async def scan() -> None:
        while not opened or not opened[0].is_over:  # the refusal is there first  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)
        job.scanned(await scan_tree(bench.local, index))

    said = ""
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scan)
            try:
                await push(node, bench.connection.host, job)
            except RemoteError as error:
                said = error.message
    job.close()
    assert "belongs to" in said


@pytest.mark.parametrize("changed", [3, 1500])  # noted in the journal, or in a new snapshot
async def test_a_session_that_waited_knows_what_others_did_meanwhile(bench: Bench, changed: int) -> None:
    for number in range(1600):
        write(bench.local / f"n{number}", str(number))
    await bench.push()
    host = bench.connection.host
    async with open_connector(bench.key, reserve={"receive": 1}) as connector:
        connection = await connector.connect(host)
        connection.fill_reserve()
        with anyio.fail_after(20):
            while not connector.is_warm(host):  # noqa: ASYNC110 - a process there tells nobody
                await anyio.sleep(0.01)
        for number in range(changed):
            write(bench.local / f"n{number}", "new")
        await bench.push()
        write(bench.local / "n1599", "newer")
        result = await bench.push(opens=connection.node)
    assert (result.sent_files, result.repaired) == (1, ())
    same(bench)


async def test_a_limit_is_held(bench: Bench) -> None:
    write(bench.local / "random", random.Random(1).randbytes(600_000))
    began_at = anyio.current_time()
    await bench.push(throttle=Throttle(400_000))
    assert 1.0 < anyio.current_time() - began_at < 30
    same(bench)


async def test_what_a_droplet_has_is_remembered_as_a_difference_by_another_process_too(bench: Bench) -> None:
    """Each command without an agent is one: what it scans are new objects, which are equal all the same."""
    for number in range(400):
        (bench.local / f"file-{number}").write_text(f"content {number}")
    await bench.push()
    places = [Path(f"{bench.index}.trees"), Path(f"{bench.index}.trees.log")]
    before = sum(place.stat().st_size for place in places if place.exists())
    (bench.local / "file-7").write_text("another content")
    await bench.push()
    assert 0 < sum(place.stat().st_size for place in places if place.exists()) - before < 2000


@pytest.fixture(autouse=True)
def no_stage_is_left(bench: Bench) -> Iterator[None]:
    yield
    # What was replaced goes once the client has been answered: to free a large file takes its time.
    until(lambda: all(len(name) == 64 for name in staged(bench)), what="the stage's end")
