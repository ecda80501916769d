from __future__ import annotations

import itertools
import json
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel import events
from chisel.figures import ProfileResult
from chisel.model import (
    Bill,
    DropletId,
    DropletStatus,
    PoolStatus,
    PullResult,
    RunId,
    RunningCommand,
    RunResult,
    SyncResult,
)
from chisel.render import jsonl, open_sink, tables, words
from chisel.render.clean import clean, clean_lines
from chisel.render.prefix import LONGEST_LINE, LinePrefixer
from chisel.render.screen import Look, Screen
from chisel.render.writer import HIGH_WATER_BYTES, Writer, open_writer


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10))
def test_prefixed_lines_are_never_torn_however_the_chunks_fall(data: bytes, cuts: list[int]) -> None:
    prefixer = LinePrefixer(b"a | ")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    out = b"".join(prefixer.feed(data[start:end]) for start, end in itertools.pairwise(edges))
    out += prefixer.finish()
    lines = data.split(b"\n")
    expected = lines[:-1] if data.endswith(b"\n") or not data else lines
    assert out == b"".join(b"a | " + line + b"\n" for line in expected)


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    prefixer = LinePrefixer(b"")
    pieces = [prefixer.feed(b"x" * 65536) for _ in range(40)]
    assert max(map(len, pieces)) <= LONGEST_LINE + 65536 + 1
    assert any(pieces)


@given(st.text())
def test_clean_leaves_no_control_character(text: str) -> None:
    left = clean(text)
    assert not [
        c for c in left if (ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E
    ]
    left.encode("utf-8")


def test_clean_lines_shows_what_a_progress_bar_left_on_its_line() -> None:
    assert clean_lines(b"10%\r50%\r100%\ndone\r\n\x1b[31mred\xff") == "100%\ndone\n␛[31mred\ufffd".encode()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.duration(0.42), "0.4 s"),
        (words.duration(75), "1 min 15 s"),
        (words.duration(7500), "2 h 05 min"),
        (words.duration(90000), "1 d 1 h"),
        (words.size(999), "999 B"),
        (words.size(1500), "1.5 kB"),
        (words.size(999_700), "1.0 MB"),
        (words.usd(Decimal("0.0012")), "$0.0012"),
        (words.usd(Decimal("1.995")), "$2.00"),
        (words.count(1, "file"), "1 file"),
        (words.count(2000, "file"), "2,000 files"),
        (words.nanoseconds(1234), "1.23 us"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.timeout(20)
async def test_a_writer_that_is_cancelled_as_it_opens_ends() -> None:
    """A signal may come at any moment of a start."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with open_writer() as writer:
            assert not writer.is_broken
            await anyio.sleep(1)
    assert scope.cancelled_caught


async def shown(look: Look, hosts: list[str], happened: list[events.Event]) -> tuple[bytes, bytes]:
    """Render events into two real pipes and return what arrived in each."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    async with open_writer() as writer:
        screen = Screen(Redirected(writer, {1: out_write, 2: err_write}), look)  # type: ignore[arg-type]
        screen.expect(hosts)
        for event in happened:
            screen.emit(event)
            await screen.drain()
        screen.finish()
    os.close(out_write)
    os.close(err_write)
    return rest_of(out_read), rest_of(err_read)


def rest_of(descriptor: int) -> bytes:
    with open(descriptor, "rb") as source:
        return source.read()


class Redirected:
    """Send what is meant for descriptors 1 and 2 to other ones."""

    def __init__(self, writer: Writer, descriptors: dict[int, int]) -> None:
        self.writer = writer
        self.descriptors = descriptors

    def write(self, descriptor: int, data: bytes) -> None:
        self.writer.write(self.descriptors[descriptor], data)

    async def drain(self) -> None:
        await self.writer.drain()


def output(host: str, data: bytes, stream: events.Stream = "stdout") -> events.Output:
    return events.Output(host=host, stream=stream, data=data, offset=0)


async def test_one_droplet_gives_exact_bytes() -> None:
    data = b"[/path] [red]x\x1b[2J\xff\xfe\x00 no newline"
    out, err = await shown(Look(stdout_is_terminal=True), ["a"], [output("a", data), output("a", data, "stderr")])
    assert (out, err) == (data, data)


async def test_a_pool_gives_aligned_prefixes_and_exact_bytes_in_a_pipe() -> None:
    happened = [output("a-1", b"x\xff\x1b["), output("a-10", b"y\n"), output("a-1", b"z\n")]
    out, _ = await shown(Look(), ["a-1", "a-10"], happened)
    assert out == b"a-10 | y\na-1  | x\xff\x1b[z\n"


async def test_a_pool_on_a_terminal_is_made_harmless() -> None:
    out, _ = await shown(Look(stdout_is_terminal=True), ["a", "b"], [output("a", b"\x1b]0;owned\x07\n")])
    assert b"\x1b" not in out
    assert b"\x07" not in out


async def test_messages_of_a_droplet_are_not_read_as_markup() -> None:
    notice = events.Notice(message="kernel[/foo] [link=x]\x1b[31m", level="warning", hint="chisel up")
    _, err = await shown(Look(), [], [notice])
    assert err.decode() == "warning: kernel[/foo] [link=x]␛[31m\nhint: chisel up\n"


async def test_a_pool_ends_with_a_table_of_statuses() -> None:
    results = [
        RunResult(host="a-1", run_id=RunId("r"), status=0, seconds=1.5, stdout_bytes=10),
        RunResult(host="a-2", run_id=RunId("r"), status=255, source="chisel", error="gone [red]"),
    ]
    _, err = await shown(
        Look(width=100), ["a-1", "a-2"], [events.RunEnded(host=one.host, result=one) for one in results]
    )
    text = err.decode()
    assert "error: a-2: gone [red]" in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("a-")] == [["a-1", "0"], ["a-2", "255"]]


async def test_a_slow_reader_holds_the_sink_back() -> None:
    reading, writing = os.pipe()
    chunk = b"x" * (1 << 16)
    async with anyio.create_task_group() as tasks:
        writer = Writer()
        tasks.start_soon(writer.run)
        for _ in range(2 * HIGH_WATER_BYTES // len(chunk)):
            writer.write(writing, chunk)
        with anyio.move_on_after(0.2) as waited:
            await writer.drain()
        assert waited.cancelled_caught
        tasks.start_soon(anyio.to_thread.run_sync, read_all, reading, 2 * HIGH_WATER_BYTES)
        with anyio.fail_after(5):
            await writer.flush()
        tasks.cancel_scope.cancel()
    os.close(reading)
    os.close(writing)


def read_all(descriptor: int, count: int) -> None:
    while count > 0:
        count -= len(os.read(descriptor, 1 << 16))


async def test_a_reader_that_went_away_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    async with open_writer() as writer:
        writer.write(writing, b"x")
        await writer.flush()
        assert writer.is_broken
    os.close(writing)


@given(st.binary(max_size=60))
def test_json_output_gives_the_bytes_back(data: bytes) -> None:
    import base64

    found = json.loads(jsonl.encode(output("a", data)))
    assert (found["text"].encode() if "text" in found else base64.b64decode(found["base64"])) == data
    assert found["v"] == 1


def test_every_event_has_a_json_form() -> None:
    bill = Bill(host="a", droplet_id=DropletId(1), seconds=1, usd_per_hour=Decimal("1.99"), usd=Decimal("0.03"))
    results = [
        events.Billed(host="a", bill=bill),
        events.SyncEnded(host="a", result=SyncResult(host="a", root="~/x", skipped=("\udcff",))),
        events.ProfileRanked(host="a", result=ProfileResult(host="a", status=0, out=Path("/x"))),
        events.ProfileSaved(host="a", out=Path("/x")),
        events.Progress(task="t", done=1),
        events.Facts(title="t", facts={"a": [1, "b"]}),
    ]
    for event in results:
        found = orjson.loads(jsonl.encode(event))
        assert found["event"] == event.kind
    assert orjson.loads(jsonl.encode(results[0]))["bill"]["usd"] == "0.03"


async def test_open_sink_gives_json_when_asked() -> None:
    async with open_sink(json=True, look=Look()) as sink:
        assert isinstance(sink, jsonl.JsonLines)


def droplet(number: int, region: str = "nyc2") -> DropletStatus:
    run = RunningCommand(RunId("r"), "make -j8 && ./bench.sh --all\n" * 9, datetime(2026, 1, 1, tzinfo=UTC), True)
    return DropletStatus(
        host=f"chisel-dev-{number}",
        droplet_id=DropletId(512345670 + number),
        cloud_status="active",
        region=region,
        size="gpu-mi300x1-192gb",
        usd_per_hour=Decimal("1.99"),
        usd_so_far=Decimal("123.45"),
        age_s=3 * 86400 + 7000.0,
        is_reachable=True,
        idle_s=3599.0,
        runs=(run,),
    )


@pytest.mark.parametrize(("width", "has_ids"), [(80, False), (120, True)])
def test_status_keeps_one_line_for_each_droplet(width: int, has_ids: bool) -> None:
    pool = PoolStatus("chisel-dev", (droplet(1), droplet(2)), "off")
    shown = tables.to_text(tables.pools([pool], width=width), width=width, colour=False).splitlines()
    assert max(map(len, shown)) <= width
    assert "2 of gpu-mi300x1-192gb in nyc2, $1.99 per hour" in " ".join(shown)
    rows = [line for line in shown if line.startswith("chisel-dev-")]
    assert len(rows) == 2
    assert all("3 d 1 h" in row and "$123.45" in row and "make -j8" in row for row in rows)
    assert ("512345671" in rows[0]) is has_ids


def test_status_of_a_mixed_pool_says_what_each_droplet_is() -> None:
    pool = PoolStatus("chisel-dev", (droplet(1), droplet(2, "atl1")), "off")
    shown = tables.to_text(tables.pools([pool], width=200), width=200, colour=False).splitlines()
    assert "gpu-mi300x1-192gb" not in shown[0]
    rows = [line for line in shown if line.startswith("chisel-dev-")]
    assert ["in nyc2" in row for row in rows] == [True, False]
    assert ["in atl1" in row for row in rows] == [False, True]


async def test_paths_below_the_current_directory_are_shown_as_they_are_typed() -> None:
    pulled = [
        events.PullEnded(host="a", result=PullResult(host="a", target=Path(target)))
        for target in ("/work", "/work/out", "/elsewhere")
    ]
    _, err = await shown(Look(cwd=Path("/work")), ["a"], pulled)
    shown_paths = [line.split(" into ")[1].split(",")[0] for line in err.decode().splitlines()[:3]]
    assert shown_paths == [".", "./out", "/elsewhere"]
    assert err.endswith(b"3 droplets: 0 files (0 B) in all\n")
