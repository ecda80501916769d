"""Drive Debian's Chromium, headless, over the DevTools protocol: just enough of it for our pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--mute-audio", "--remote-debugging-port=0", "--no-proxy-server"),
]
START_DEADLINE_S = 30.0


class WebSocket:
    """A client's end of RFC 6455, text messages only."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._reader = BufferedByteReceiveStream(stream)

    @classmethod
    async def connect(cls, port: int, path: str) -> WebSocket:
        stream = await anyio.connect_tcp("127.0.0.1", port)
        key = base64.b64encode(os.urandom(16)).decode()
        await stream.send(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self = cls(stream)
        head = await self._reader.receive_until(b"\r\n\r\n", 1 << 14)
        assert head.startswith(b"HTTP/1.1 101"), head
        return self

    async def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        if len(data) > 0xFFFF:
            size = b"\xff" + struct.pack(">Q", len(data))
        long_mask = int.from_bytes((mask * (len(data) // 4 + 1))[: len(data)], "big")
        masked = (int.from_bytes(data, "big") ^ long_mask).to_bytes(len(data), "big")
        await self._stream.send(b"\x81" + size + mask + masked)

    async def receive(self) -> str:
        message = b""
        while True:
            first, second = await self._reader.receive_exactly(2)
            size = second & 0x7F
            if size > 125:
                wide = await self._reader.receive_exactly(2 if size == 126 else 8)
                size = int.from_bytes(wide, "big")
            message += await self._reader.receive_exactly(size) if size else b""
            assert first & 0x0F in (0, 1), f"no text frame: {first}"
            if first & 0x80:
                return message.decode()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Tab:
    """One tab of a browser: what it logged (`console`), what it asked the network for (`requests`)."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session
        self.console: list[str] = []
        self.requests: list[str] = []
        self.worlds: dict[int, str] = {}

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.browser.call(method, parameters, self.session)

    async def evaluate(self, expression: str, **more: Any) -> Any:
        """Evaluate JavaScript in the page (a promise is awaited) and return its value."""
        options = {"awaitPromise": True, "returnByValue": True, **more}
        found = await self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str, deadline_s: float = 20.0, **more: Any) -> Any:
        """Evaluate until the value is true, and return it."""
        with anyio.fail_after(deadline_s):
            while not (value := await self.evaluate(expression, **more)):  # noqa: ASYNC110 - no event says so
                await anyio.sleep(0.05)
        return value

    async def size(self, width: int, height: int, *, is_dark: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, *, whole: bool = False) -> bytes:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    async def close(self) -> None:
        await self.browser.call("Target.closeTarget", {"targetId": self.target})

    def hear(self, method: str, given: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            words = [str(one.get("value", one.get("description", ""))) for one in given["args"]]
            self.console.append(f"{given['type']}: {' '.join(words)}")
        elif method == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.console.append(f"exception: {details.get('exception', {}).get('description') or details['text']}")
        elif method == "Log.entryAdded":
            entry = given["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Runtime.executionContextCreated":
            self.worlds[given["context"]["id"]] = given["context"]["origin"]
        elif method == "Runtime.executionContextDestroyed":
            self.worlds.pop(given["executionContextId"], None)
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])


class Browser:
    """A running browser, spoken to over one WebSocket."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, tuple[anyio.Event, dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def call(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        number, answer = self._number, dict[str, Any]()
        self._waiting[number] = (anyio.Event(), answer)
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send(json.dumps({**message, "sessionId": session} if session else message))
        with anyio.fail_after(60):
            await self._waiting[number][0].wait()
        del self._waiting[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    async def listen(self) -> None:
        while True:
            message = json.loads(await self._socket.receive())
            if "id" in message:
                event, answer = self._waiting[message["id"]]
                answer.update(message)
                event.set()
            elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
                tab.hear(message["method"], message["params"])

    async def open(self, url: str, *, width: int = 1280, height: int = 900) -> Tab:
        """Open a tab, watch it from its first request on, and go to `url`."""
        target = (await self.call("Target.createTarget", {"url": "about:blank"}))["targetId"]
        tab = await self.attach(target)
        await tab.size(width, height)
        await tab.call("Page.navigate", url=url)
        return tab

    async def attach(self, target: str) -> Tab:
        """Watch a tab that is open."""
        attached = await self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = self._tabs[attached["sessionId"]] = Tab(self, target, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.call(f"{domain}.enable")
        return tab

    async def popup(self, opener: Tab, deadline_s: float = 10.0) -> Tab:
        """Wait for the window that a page opened, and watch it."""
        with anyio.fail_after(deadline_s):
            while True:
                targets = (await self.call("Target.getTargets", {}))["targetInfos"]
                for one in targets:
                    if one.get("openerId") == opener.target:
                        return await self.attach(one["targetId"])
                await anyio.sleep(0.05)


@asynccontextmanager
async def chromium(directory: Path) -> AsyncIterator[Browser]:
    """Run a browser with an empty profile in `directory`; it and its children are gone afterwards."""
    program = shutil.which("chromium")
    assert program is not None
    command = [program, *FLAGS, f"--user-data-dir={directory}", "about:blank"]
    # A home of its own: crash handler and font cache write there whatever the profile's directory is.
    env = {**os.environ, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "XDG_CACHE_HOME": str(directory)}
    async with await anyio.open_process(
        command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env=env, start_new_session=True
    ) as process:
        try:
            port, path = await _address(directory / "DevToolsActivePort")
            socket = await WebSocket.connect(port, path)
            browser = Browser(socket)
            failure = None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(browser.listen)
                try:
                    yield browser
                except Exception as error:  # noqa: BLE001 - raised below, out of the group, so that it stays one
                    failure = error
                tasks.cancel_scope.cancel()
            await socket.aclose()
            if failure is not None:
                raise failure
        finally:
            with anyio.CancelScope(shield=True):
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _address(file: Path) -> tuple[int, str]:
    """Wait until the browser has written where it listens."""
    with anyio.fail_after(START_DEADLINE_S):
        while True:
            lines = file.read_text().split("\n") if file.exists() else []
            if len(lines) >= 2 and lines[1]:
                return int(lines[0]), lines[1]
            await anyio.sleep(0.05)
