"""A pull brings what is asked for, writes nowhere else, and never shows half a file."""

from __future__ import annotations

import hashlib
import os
import random
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel.errors import ChiselError, HostUnreachable, RemoteError
from chisel.events import NullSink
from chisel.model import DropletId, Host
from chisel.node import frames, tree
from chisel.node.frames import Kind
from chisel.node.offer import Entry
from chisel.sync.pull import PullOptions, pull
from chisel.sync.wanted import Caps
from chisel.sync.writer import Writer
from tests.sync.conftest import Bench
from tests.sync.test_push import snapshot, write

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def remote(bench: Bench) -> Path:
    write(bench.remote / "out" / "results.csv", "1,2\n")
    write(bench.remote / "out" / "deep" / "blob", random.Random(5).randbytes(3 << 20), 0o755)
    write(bench.remote / "out" / "empty")
    write(bench.remote / "log.txt", "log")
    write(bench.remote / "log2.txt", "log two")
    write(bench.remote / "out" / os.fsdecode(b"latin-\xe9\n"), "name")
    (bench.remote / "out" / "inner").symlink_to("deep/blob")
    (bench.remote / "out" / "nothing").mkdir()
    return bench.remote


async def test_a_directory_arrives_with_its_path(bench: Bench, remote: Path, tmp_path: Path) -> None:
    result = await bench.pull("out/", to=tmp_path / "here")
    assert (result.error, result.skipped) == (None, ())
    assert snapshot(tmp_path / "here" / "out") == snapshot(remote / "out")
    assert (result.files, result.bytes) == (5, (3 << 20) + 4 + 4)
    assert os.stat(tmp_path / "here/out/empty").st_mtime_ns == os.stat(remote / "out/empty").st_mtime_ns


async def test_patterns_are_globs_and_name_each_file_once(bench: Bench, remote: Path, tmp_path: Path) -> None:
    result = await bench.pull("*.txt", "log.txt", "out/*.csv", "./log2.txt", to=tmp_path / "here")
    assert result.files == 3
    assert set(snapshot(tmp_path / "here")) == {"log.txt", "log2.txt", "out", "out/results.csv"}


async def test_everything_is_a_pattern_too(bench: Bench, remote: Path, tmp_path: Path) -> None:
    await bench.pull(".", to=tmp_path / "here")
    assert snapshot(tmp_path / "here") == snapshot(remote)


async def test_paths_outside_the_working_copy_arrive_by_name(bench: Bench, remote: Path, tmp_path: Path) -> None:
    write(bench.home / "data" / "x", "x")
    result = await bench.pull("~/data", str(bench.home / "data" / "x"), to=tmp_path / "here")
    assert set(snapshot(tmp_path / "here")) == {"data", "data/x"}
    assert result.error is None
    with pytest.raises(RemoteError, match="leads out of the working copy"):
        await bench.pull("../../data", to=tmp_path / "here")


async def test_what_is_not_there_is_an_error_and_the_rest_arrives(bench: Bench, remote: Path, tmp_path: Path) -> None:
    result = await bench.pull("log.txt", "nosuch", "*.none", to=tmp_path / "here")
    assert result.error == "`nosuch`, `*.none` is not there on `one`"
    assert result.files == 1


async def test_without_a_working_copy_the_hint_is_sync(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        await bench.pull("x", to=tmp_path / "here")
    assert caught.value.hint == "chisel sync"


async def test_what_is_there_already_is_replaced(bench: Bench, remote: Path, tmp_path: Path) -> None:
    write(tmp_path / "here" / "log.txt", "old and longer than the new one", 0o600)
    await bench.pull("log.txt", to=tmp_path / "here")
    assert snapshot(tmp_path / "here") == {"log.txt": (0o644, b"log")}


async def test_nothing_goes_through_a_local_link(bench: Bench, remote: Path, tmp_path: Path) -> None:
    outside, here = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    here.mkdir()
    (here / "out").symlink_to(outside)
    (here / "log.txt").symlink_to(outside / "written")
    result = await bench.pull("out", "log.txt", to=here)
    assert list(outside.iterdir()) == []
    assert (here / "log.txt").read_text() == "log"
    assert all(" here" in reason or "leads out" in reason for reason in result.skipped)
    assert result.skipped


async def test_links_that_lead_out_are_left_out(bench: Bench, remote: Path, tmp_path: Path) -> None:
    for name, target in (("absolute", "/etc/passwd"), ("up", "../../../x"), ("fine", "out/results.csv")):
        (remote / name).symlink_to(target)
    result = await bench.pull("absolute", "up", "fine", to=tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["fine"]
    assert len(result.skipped) == 2


async def test_a_cancelled_pull_leaves_no_half_file(bench: Bench, remote: Path, tmp_path: Path) -> None:
    write(remote / "big", random.Random(6).randbytes(30 << 20))
    here = tmp_path / "here"
    with anyio.CancelScope() as scope:

        class Cancel(NullSink):
            def emit(self, event: object) -> None:
                del event
                scope.cancel()

        await pull(bench.connection, PurePosixPath("~/chisel/tree-1"), ["."], here, sink=Cancel())
    assert scope.cancelled_caught
    found = await to_thread.run_sync(snapshot, here)
    assert "big" not in found
    assert all(name.startswith(".chisel-pull") for name in found if "chisel" in name)


async def test_a_target_that_cannot_be_written_is_an_error(bench: Bench, remote: Path, tmp_path: Path) -> None:
    write(tmp_path / "here", "a file")
    with pytest.raises(ChiselError, match="cannot write below"):
        await bench.pull("log.txt", to=tmp_path / "here")


# -- a droplet that lies


class Liar:
    """A connection to a droplet that sends whatever it likes."""

    def __init__(self, records: Sequence[bytes], *, listing: Sequence[bytes] = (), is_cut: bool = False) -> None:
        self.host = Host("liar", DropletId(1), "127.0.0.1", 1, "root", "")
        self._parts = [zlib.compress(b"".join(records))]
        self._listing = zlib.compress(b"".join(listing))
        self._is_cut = is_cut

    @asynccontextmanager
    async def node(self, role: str, request: dict[str, Any]) -> AsyncIterator[Liar]:
        assert role == "send"
        if request["asks"]:
            self._parts.insert(0, self._listing)
        yield self

    async def receive(self) -> list[frames.Frame]:
        if self._is_cut or not self._parts:
            return []
        return [frames.Frame(Kind.DATA, self._parts.pop(0)), frames.Frame(Kind.DATA_END, b"")]

    async def send(self, kind: int, payload: bytes = b"") -> None:
        assert kind in {Kind.DATA, Kind.DATA_END}

    async def send_json(self, kind: int, obj: Any) -> None:
        assert kind == Kind.ACK

    def done(self) -> None:
        pass


def item(path: str, content: bytes = b"x", digest: str | None = None, **changes: Any) -> list[bytes]:
    one = Entry(path, 0o644, len(content), len(content), 1, 1, 1)._replace(**changes)
    end = hashlib.sha256(content).hexdigest() if digest is None else digest
    return [tree.pack(["file", *one]), tree.pack_bytes(content), tree.pack(["end", end, "", *one])]


async def pull_from(liar: Liar, to: Path, *patterns: str, caps: Caps | None = None) -> Any:
    options = PullOptions(caps=caps or Caps())
    return await pull(liar, PurePosixPath("~"), patterns or ["."], to, sink=NullSink(), options=options)


@pytest.mark.parametrize(
    "records",
    [
        item("../escaped"),
        item("/tmp/escaped-chisel"),
        item("a/../../escaped"),
        item("nul\0"),
        item("a//b"),
        item("x", digest="0" * 64),
        item("x", b"more", size=3),
        item("x", b"less", size=5),
        item("x")[:2],
        [tree.pack_bytes(b"no file")],
        [*item("x")[:1], *item("y")],
        [tree.pack(["strange", "x"])],
        [tree.pack(["file", "x", "0644", 1, 1, 1, 1, 1, False])],
        [tree.pack(["end", "0" * 64])],
    ],
    ids=range(14),
)
async def test_a_lying_droplet_is_refused_and_writes_nothing(records: list[bytes], tmp_path: Path) -> None:
    here = tmp_path / "in" / "here"
    with pytest.raises(RemoteError, match="no pull"):
        await pull_from(Liar(records), here)
    assert snapshot(tmp_path) == {"in": "directory", "in/here": "directory"}


async def test_a_link_cannot_be_used_to_get_out(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "l").symlink_to("../outside")
    links = [tree.pack(["link", path, target]) for path, target in (("sub/k", "../../outside"), ("sub/x", "."))]
    listing = [*links, item("sub/k/x")[0], item("l/y")[0]]
    result = await pull_from(Liar([*item("sub/k/x"), *item("l/y")], listing=listing), tmp_path / "here")
    assert list((tmp_path / "outside").iterdir()) == []
    assert any(reason.startswith("sub/k: a link that leads out") for reason in result.skipped)
    assert any(reason.startswith("l/y: ") for reason in result.skipped)
    assert os.readlink(tmp_path / "here" / "sub" / "x") == "."


async def test_setuid_never_arrives(tmp_path: Path) -> None:
    await pull_from(Liar(item("x", mode=0o6777)), tmp_path)
    assert os.stat(tmp_path / "x").st_mode & 0o7022 == 0


async def test_a_cut_pull_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match="in the middle"):
        await pull_from(Liar([], is_cut=True), tmp_path)


async def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    records = [*item("out/x"), *item("Makefile"), *item("out/.git/config"), *item(".chisel-pull/part")]
    result = await pull_from(Liar(records), tmp_path / "here", "out/")
    assert set(await to_thread.run_sync(snapshot, tmp_path / "here")) == {"out", "out/x"}
    assert [reason.partition(": ")[0] for reason in result.skipped] == [
        "Makefile",
        "out/.git/config",
        ".chisel-pull/part",
    ]


@pytest.mark.parametrize(
    ("caps", "option"),
    [(Caps(files=2), "--max-files"), (Caps(bytes=5), "--max-bytes"), (Caps(depth=2), "--max-depth")],
    ids=["files", "bytes", "depth"],
)
@pytest.mark.parametrize("asks", [False, True])
async def test_there_is_an_end_to_what_a_droplet_may_send(caps: Caps, option: str, asks: bool, tmp_path: Path) -> None:
    here = tmp_path / "here"
    if asks:
        write(here / "there", "x")
    names = ["one", "two", "a/b/three"]
    listing = [item(name, b"xx")[0] for name in names]
    liar = Liar([record for name in names for record in item(name, b"xx")], listing=listing)
    with pytest.raises(RemoteError) as caught:
        await pull_from(liar, here, caps=caps)
    assert (caught.value.code, caught.value.hint) == ("too-much", f"{option} allows more")
    assert "a" not in await to_thread.run_sync(snapshot, here)


async def test_holes_count_as_much_as_they_seem(tmp_path: Path) -> None:
    one = Entry("x", 0o644, 1 << 50, 0, 1, 1, 1)
    records = [tree.pack(["file", *one]), tree.pack(["hole", 1 << 50])]
    with pytest.raises(RemoteError, match="more than"):
        await pull_from(Liar(records), tmp_path)


async def test_a_path_that_comes_twice_is_said(tmp_path: Path) -> None:
    result = await pull_from(Liar([*item("x", b"one"), *item("x", b"two"), *item("x/y")]), tmp_path / "here")
    assert (tmp_path / "here" / "x").read_text() == "one"
    assert [reason.partition(": ")[0] for reason in result.skipped] == ["x", "x/y"]


async def test_what_needs_more_room_than_there_is_writes_nothing(tmp_path: Path) -> None:
    listing = [tree.pack(["total", 1, 1 << 39, 1 << 39])]
    with pytest.raises(ChiselError, match="no room"):
        await pull_from(Liar([*listing, *item("x")]), tmp_path / "here")
    assert await to_thread.run_sync(snapshot, tmp_path) == {"here": "directory"}


def test_names_that_a_file_system_takes_for_one_are_said(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "here", folds=True)
    names = ["Readme", "README", "caf\u00e9", "cafe\u0301", "Dir/x", "dir/y", "fine"]
    writer.feed(zlib.compress(b"".join(record for name in names for record in item(name))))
    writer.end()
    writer.close()
    assert writer.refused == ["README", "cafe\u0301", "dir/y"]
    assert set(snapshot(tmp_path / "here")) == {"Readme", "caf\u00e9", "Dir", "Dir/x", "fine"}


@pytest.mark.parametrize(
    ("links", "made"),
    [
        ([("p/q/r/d", "../../.."), ("e", "p/q/r/d/../..")], ["p/q/r/d"]),
        ([("a", "b"), ("b", "a")], ["a", "b"]),
        ([("a/b", "../c"), ("c", "..")], ["a/b"]),
        ([("a", "./././b/./c")], ["a"]),
        ([("a", "b/../c")], []),
        ([("a", "/")], []),
        ([("a/b", "..")], ["a/b"]),
        ([("a/b", "../..")], []),
    ],
)
async def test_links_stay_inside_even_through_each_other(
    links: list[tuple[str, str]], made: list[str], tmp_path: Path
) -> None:
    await pull_from(Liar([tree.pack(["link", *link]) for link in links]), tmp_path / "in" / "here")
    found = await to_thread.run_sync(snapshot, tmp_path / "in" / "here")
    assert sorted(name for name, what in found.items() if what != "directory") == made
