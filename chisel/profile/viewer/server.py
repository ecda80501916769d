"""Serve one trace on loopback to one page of our own, until that page is closed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

import anyio
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.stapled import MultiListener

from chisel.errors import ChiselError, UsageError
from chisel.profile.viewer.http import MAX_HEAD_BYTES, Refused, Request, answer_head, parse, path_for
from chisel.profile.viewer.life import End, Life, Limits, ends_at
from chisel.profile.viewer.pages import PAGE, UI_POLICY, own_files, page, page_policy
from chisel.profile.viewer.trace import check_trace
from chisel.profile.viewer.ui import Ui, content_type, ui_files

MOST_CONNECTIONS = 64
_SEND_DEADLINE_S = 300.0
_BEAT_EVERY_S = 15.0
_CHUNK_BYTES = 1 << 20
_SECRET_BYTES = 24
_FAILURES = {
    "told/no-trace": "the browser did not get the whole trace",
    "told/no-ui": "the Perfetto UI did not answer in the browser",
}
_UNLOADED: Mapping[End, str] = {
    "closed": "the page was closed before",
    "nobody came": "no browser came to its page",
    "time is up": "its time is up",
}
_LINGER_S = 1.0
_LINGER_READS = 64
_EVENTS_HEAD = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


@dataclass(slots=True)
class View:
    """One trace on show: open `url` in a browser; it holds until the page there is closed."""

    url: str
    _loaded: anyio.Event = field(default_factory=anyio.Event)
    _ended: anyio.Event = field(default_factory=anyio.Event)
    _end: End | None = None
    _trouble: str | None = None

    def _hear(self, path: str) -> None:
        """Take what the page tells of itself; words that are not known change nothing."""
        if path == "told/loaded" or path in _FAILURES:
            self._trouble = _FAILURES.get(path)
            self._loaded.set()

    def _finish(self, end: End) -> None:
        if not self._loaded.is_set():
            self._trouble = _UNLOADED[end]
            self._loaded.set()
        self._end = end
        self._ended.set()

    async def loaded(self) -> None:
        """Wait until the page says that the UI has taken the trace.

        With the offline UI: until the trace stands in it. Raises ChiselError when the page says that it went wrong, or
        the server ends before.
        """
        await self._loaded.wait()
        if self._trouble is not None:
            raise ChiselError(f"the trace is not shown: {self._trouble}", hint=f"open {self.url} again")

    async def closed(self) -> End:
        """Wait until the server has ended by itself, and return why: the page was closed, nobody came, time is up."""
        await self._ended.wait()
        assert self._end is not None
        return self._end


@asynccontextmanager
async def serving(
    trace: Path,
    *,
    title: str,
    window_ns: tuple[int, int] | None,
    ui: Ui,
    limits: Limits | None = None,
) -> AsyncIterator[View]:
    """Serve `trace` on a free port of 127.0.0.1, under a path that nobody can guess, to a page that shows it.

    `window_ns` is what the UI shows first, in ns of the trace's own clock; None shows all of it. Nothing is opened
    here: hand `View.url` to a browser. The block may go on after the server has ended by itself (`View.closed`); when
    the block ends or is cancelled, so does the server, at once, and no task or socket stays. Raises UsageError for a
    file that Perfetto would not show, ChiselError where no port can be had. Any number may run at once.
    """
    form = await to_thread.run_sync(check_trace, trace)
    if window_ns is not None and not 0 <= window_ns[0] < window_ns[1]:
        raise UsageError(f"`{window_ns}` is no window of time")
    files = await to_thread.run_sync(ui_files, ui.directory) if ui.directory is not None else {}
    own = await to_thread.run_sync(own_files)
    try:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    except OSError as error:
        raise ChiselError(f"cannot listen on 127.0.0.1: {error.strerror}") from error
    async with listener:
        port: int = listener.extra(SocketAttribute.local_port)
        limits = limits or Limits()
        own[PAGE] = page(own[PAGE], trace.name, title, window_ns, form, ui, limits.answer_s)
        server = _Server(port, trace, files, own, page_policy(ui), limits)
        failure: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.live, listener)
            try:
                yield server.view
            except BaseException as error:  # noqa: BLE001 - raised again below, out of the group, so that it stays one
                failure = error
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Server:
    """Answer the page's requests, and follow its life."""

    def __init__(
        self,
        port: int,
        trace: Path,
        files: Mapping[str, Path],
        own: Mapping[str, bytes],
        policy: str,
        limits: Limits,
    ) -> None:
        self._port = port
        self._secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._trace = trace
        self._files = files
        self._own = own
        self._policy = policy
        self._limits = limits
        self._life = Life(anyio.current_time())
        self._changed = anyio.Event()
        self._open = 0
        self.view = View(f"http://127.0.0.1:{port}/{self._secret}/")

    async def live(self, listener: MultiListener[SocketStream]) -> None:
        """Answer until the life is over; then the port is free again and the view has ended."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._connection, tasks)
            end = await self._over()
            tasks.cancel_scope.cancel()
        await listener.aclose()
        self.view._finish(end)  # noqa: SLF001 - two classes of one module

    async def _over(self) -> End:
        while True:
            due, why = ends_at(self._life, self._limits)
            left = due - anyio.current_time()
            if left <= 0:
                return why
            self._changed = anyio.Event()
            with anyio.move_on_after(left):
                await self._changed.wait()

    def _seen(self, pages: int = 0) -> None:
        """Note that our page was here; `pages` says how many more of it are open."""
        self._life.seen_at = anyio.current_time()
        self._life.pages += pages
        self._changed.set()

    async def _connection(self, stream: SocketStream) -> None:
        """Answer one request; a peer that leaves or dawdles ends it, as does a disk that fails."""
        async with stream:
            if self._open >= MOST_CONNECTIONS:
                return
            self._open += 1
            try:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError):
                    await self._answer(stream)
            finally:
                self._open -= 1

    async def _answer(self, stream: SocketStream) -> None:
        try:
            request = parse(await _head(stream, self._limits.head_s))
            path = path_for(request, port=self._port, secret=self._secret)
            self._seen()
            await self._serve(stream, request, path)
        except Refused as refusal:
            await _send(stream, answer_head(refusal.status, {"Content-Length": "0"}))
            await _drain(stream)

    async def _serve(self, stream: SocketStream, request: Request, path: str) -> None:
        wants_body = request.method == "GET"
        if path == "alive" and wants_body:
            await self._stay(stream)
        elif path == "trace":
            await _send_file(stream, self._trace, {"Content-Type": "application/octet-stream"}, wants_body=wants_body)
        elif path.startswith("told/") and wants_body:
            self.view._hear(path)  # noqa: SLF001 - two classes of one module
            await _send(stream, answer_head(HTTPStatus.NO_CONTENT, {}))
        elif path.startswith("ui/") and (name := unquote(path[3:])) in self._files:
            headers = {"Content-Type": content_type(name), "Content-Security-Policy": UI_POLICY}
            await _send_file(stream, self._files[name], headers, wants_body=wants_body)
        elif (name := path or PAGE) in self._own:
            headers = {"Content-Type": content_type(name), "Content-Security-Policy": self._policy}
            await _send_bytes(stream, self._own[name], headers, wants_body=wants_body)
        else:
            raise Refused(HTTPStatus.NOT_FOUND)

    async def _stay(self, stream: SocketStream) -> None:
        """Hold a page's event stream: as long as it stands, the page is open."""
        await _send(stream, answer_head(HTTPStatus.OK, _EVENTS_HEAD))
        self._seen(1)
        try:
            while True:
                with anyio.move_on_after(_BEAT_EVERY_S):
                    await stream.receive(1)
                    return
                await _send(stream, b":\n\n")
        finally:
            self._seen(-1)


async def _head(stream: SocketStream, deadline_s: float) -> bytes:
    """Read a request's head, within bounds of size and time."""
    data = b""
    try:
        with anyio.fail_after(deadline_s):
            while b"\r\n\r\n" not in data:
                if len(data) > MAX_HEAD_BYTES:
                    raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
                data += await stream.receive(MAX_HEAD_BYTES)
    except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT) from None
    return data.partition(b"\r\n\r\n")[0]


async def _send(stream: SocketStream, data: bytes) -> None:
    with anyio.fail_after(_SEND_DEADLINE_S):
        await stream.send(data)


async def _drain(stream: SocketStream) -> None:
    """Let a refused peer read its answer: closing with unread data resets the connection."""
    await stream.send_eof()
    with anyio.move_on_after(_LINGER_S):
        for _ in range(_LINGER_READS):
            await stream.receive()


async def _send_bytes(stream: SocketStream, data: bytes, headers: Mapping[str, str], *, wants_body: bool) -> None:
    head = answer_head(HTTPStatus.OK, {**headers, "Content-Length": str(len(data))})
    await _send(stream, head + (data if wants_body else b""))


async def _send_file(stream: SocketStream, path: Path, headers: Mapping[str, str], *, wants_body: bool) -> None:
    """Stream a file in chunks; one that cannot be opened is a 404, one that got shorter ends the connection early."""
    try:
        file = await anyio.open_file(path, "rb")
    except OSError:
        raise Refused(HTTPStatus.NOT_FOUND) from None
    async with file:
        left = await file.seek(0, 2)
        await file.seek(0)
        await _send(stream, answer_head(HTTPStatus.OK, {**headers, "Content-Length": str(left)}))
        while wants_body and left > 0 and (chunk := await file.read(min(left, _CHUNK_BYTES))):
            await _send(stream, chunk)
            left -= len(chunk)
