"""One reading and one compression serve every droplet, each at its own pace, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import anyio
import pytest

from chisel.node.frames import Kind
from chisel.node.stage import Stage
from chisel.node.tree import Directories
from chisel.sync import cast as casting
from chisel.sync.cast import Cast, all_of
from chisel.sync.codec import choose_codec
from chisel.sync.index import Index
from chisel.sync.plan import Here, Present, make_plan
from chisel.sync.scan import scan
from chisel.sync.stream import Stream
from tests.sync.test_push import write

pytestmark = pytest.mark.blocking_allowed  # a cast is made of files here


def a_cast(place: Path, files: int = 40, size: int = 100_000) -> Cast:
    for number in range(files):
        write(place / "tree" / f"f{number}", random.Random(number).randbytes(size))
    index = Index.load(place / "index")
    local = scan(place / "tree", index)
    return Cast(Stream(local, index, make_plan(Here(local.items), Present({}))), "zstd", 0.0)


async def test_all_get_the_same_and_it_is_made_once(tmp_path: Path) -> None:
    cast = a_cast(tmp_path)
    found: list[bytes] = []

    async def take() -> None:
        found.append(b"".join(piece.payload for piece in await all_of(cast)))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(take)
    assert len(set(found)) == 1
    assert 4_000_000 <= cast.sent_bytes <= len(found[0]) <= 4_100_000
    assert cast.outcome is not None
    assert len(cast.outcome.final) == 40


async def test_a_droplet_works_on_a_large_file_while_it_is_read_here(tmp_path: Path) -> None:
    """What it holds of the file already grows with every piece of the stream, with the codec that zstd comes before."""
    size, offered = 40 << 20, ("zstd", "lzma", "zlib")
    file, there = tmp_path / "tree" / "large", tmp_path / "there"
    write(file, random.Random(3).randbytes(size))
    shutil.copytree(file.parent, there)
    index = Index.load(tmp_path / "index")
    old = scan(file.parent, index).items
    with file.open("r+b") as out:
        out.seek(size // 2)
        out.write(b"new")
    local = scan(file.parent, index)
    plan = make_plan(Here(local.items), Present(old, patchable={old["large"].digest}))
    pieces = await all_of(Cast(Stream(local, index, plan), choose_codec(offered, 0.0, plan.content_bytes), 0.0))
    handle, sizes = os.open(there, os.O_RDONLY), list[int]()
    stage = Stage(str(tmp_path / "stage"), Directories(handle))
    try:
        stage.expect(json.loads(pieces[0].payload)["codec"])
        for piece in pieces[1:-1]:
            stage.feed(piece.payload)
            sizes += [found.stat().st_size for found in Path(stage.path).glob("incoming")]
        stage.end()
        assert [found.read_bytes() for found in Path(stage.path).iterdir()] == [file.read_bytes()]
    finally:
        stage.close()
        os.close(handle)
    assert len(set(sizes)) >= 4
    assert sizes[0] < size // 2


def test_zstd_is_for_what_is_worth_it() -> None:
    offered = ("zstd", "lzma", "zlib")
    assert [choose_codec(offered, 0.0, size) for size in (0, 1 << 20, 1 << 21)] == ["zlib", "zlib", "zstd"]
    assert choose_codec(("lzma", "zlib"), 1e6, 1 << 21) == "lzma"
    assert choose_codec(("lzma", "zlib"), 1e8, 1 << 21) == "zlib"


async def test_who_comes_late_gets_everything(tmp_path: Path) -> None:
    cast = a_cast(tmp_path)
    first = await all_of(cast)
    assert cast.can_be_joined
    assert await all_of(cast) == first
    assert first[0].kind == Kind.PROGRESS
    assert first[-1].kind == Kind.DATA_END


async def test_a_slow_one_holds_nobody_up_until_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casting, "LAG_BYTES", 1 << 20)
    monkeypatch.setattr(casting, "KEPT_BYTES", 1 << 18)
    cast = a_cast(tmp_path)
    fast: list[int] = []
    async with cast.joined() as slow, anyio.create_task_group() as tasks:
        assert (await anext(slow)).kind == Kind.PROGRESS

        async def hurry() -> None:
            async with cast.joined() as pieces:
                async for piece in pieces:
                    fast.append(len(piece.payload))  # noqa: PERF401 - each is to be seen as it comes

        tasks.start_soon(hurry)
        with anyio.fail_after(20):
            while sum(fast) < (1 << 20) - (1 << 18):
                await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0.3):
            await anyio.sleep_forever()
        assert sum(fast) < 2 << 20, "it ran ahead without bound"
        rest = [len(piece.payload) async for piece in slow]
    assert sum(rest) > 4_000_000
    assert sum(fast) >= sum(rest)


async def test_a_cancelled_one_takes_nothing_from_the_others(tmp_path: Path) -> None:
    cast = a_cast(tmp_path)
    async with cast.joined() as pieces:
        await anext(pieces)
        for _ in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await all_of(cast)
        rest = [piece async for piece in pieces]
    assert rest[-1].kind == Kind.DATA_END
    assert sum(len(piece.payload) for piece in rest) > 4_000_000
