"""Serve the API over HTTP with the standard library's server, on loopback only, to whoever has the token."""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from chisel.sandbox.api import Answer, Request, answer
from chisel.sandbox.cloud import Cloud
from chisel.sandbox.control import control, metadata
from chisel.sandbox.faults import Fault, Schedule
from chisel.sandbox.limits import Rates
from chisel.sandbox.refused import Refused

MAX_BODY_BYTES = 1 << 20
_HOUR_S = 3600
_SLICE_S = 0.05
_HANG_S = 3600.0
_DRIP_EVERY_S = 0.2
_SPOILT = {
    "html": (b"<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html"),
    "garbage": (b"\x00{]", "application/json"),
}


class Server(ThreadingHTTPServer):
    """An HTTP server that knows its cloud and its token."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, cloud: Cloud, token: str, schedule: Schedule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cloud = cloud
        self.token = token
        self.schedule = schedule
        self.served: list[tuple[str, str]] = []
        self.ending = threading.Event()
        self._scopes: dict[str, frozenset[str] | None] = {token: None}
        self._rates: dict[str, Rates] = {token: Rates()}

    @property
    def url(self) -> str:
        """Return the address that stands for `https://api.digitalocean.com`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_token(self, scopes: frozenset[str]) -> str:
        """Return a new token that may do no more than `scopes` (`droplet:delete`, ...)."""
        token = f"sandbox_v1_{secrets.token_hex(24)}"
        self._scopes[token], self._rates[token] = scopes, Rates()
        return token

    def revoke(self, token: str) -> None:
        """Let a token open nothing from now on."""
        self._scopes.pop(token, None)

    def known(self, authorization: str) -> tuple[frozenset[str] | None, Rates]:
        """Return what the bearer may do, and the count of the requests; raises Refused (401) for a stranger."""
        for token, scopes in list(self._scopes.items()):
            if hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
                return scopes, self._rates[token]
        raise Refused(401, "Unauthorized", "Unable to authenticate you")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


@contextmanager
def serving(cloud: Cloud, schedule: Schedule | None = None) -> Iterator[Server]:
    """Serve in threads until the block ends, with a new random token."""
    server = Server(cloud, f"sandbox_v1_{secrets.token_hex(24)}", schedule or Schedule())
    thread = threading.Thread(target=server.serve_forever, args=(_SLICE_S,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    _remaining = 0
    _retry_after_s: int | None = None
    protocol_version = "HTTP/1.1"
    server_version = "chisel-sandbox"
    sys_version = ""
    timeout = 60

    def setup(self) -> None:
        super().setup()
        # Head and body of an answer go out apart; without this the client waits 40 ms for the second.
        self.connection.setsockopt(6, 1, 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: requests carry user data and keys."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the cloud's own time, for the header that says it."""
        cloud = self.server.cloud
        return super().date_time_string(timestamp or cloud.clock.now() - cloud.knobs.clock_behind_s)

    def do_GET(self) -> None:
        """Serve a GET."""
        self._serve()

    def do_POST(self) -> None:
        """Serve a POST."""
        self._serve()

    def do_DELETE(self) -> None:
        """Serve a DELETE."""
        self._serve()

    def __getattr__(self, name: str) -> Any:
        """Serve every other method, known or not: nothing of it is played, which is a 405."""
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.served.append((self.command, path))
        fault = None if path.startswith("/sandbox/") else self.server.schedule.strike(self.command, path)
        self._remaining, self._retry_after_s = self.server.cloud.knobs.per_hour, None
        try:
            body = self._body()
            if fault is not None and not fault.is_late:
                self._misbehave(fault, None)
                return
            found = self._answer(path, body)
        except Refused as refusal:
            found = _error(refusal.status, refusal.id, str(refusal))
        if fault is not None:
            self._misbehave(fault, found)
        else:
            self._send(found)

    def _misbehave(self, fault: Fault, found: Answer | None) -> None:
        """Answer as the fault wants it; `found` is the true answer of a request that took effect."""
        if fault.how.isdigit():
            self._retry_after_s = fault.retry_after_s
            id = "too_many_requests" if fault.how == "429" else "server_error"
            self._send(_error(int(fault.how), id, "Server Error"))
            return
        self.close_connection = True
        if fault.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault.how == "hang":
            self.server.ending.wait(_HANG_S)
        elif fault.how == "drip":
            self._start_raw(502, "application/json", 1 << 20)
            with contextlib.suppress(OSError):
                while not self.server.ending.wait(_DRIP_EVERY_S):
                    self.wfile.write(b" ")
        else:
            data = b"" if found is None or found.body is None else json.dumps(found.body).encode()
            shown, kind = _SPOILT.get(fault.how, (data[: len(data) // 2], "application/json"))
            status = 502 if fault.how == "html" else found.status if found is not None else 200
            self._start_raw(status, kind, len(data) + 2 if fault.how == "truncate" else len(shown))
            self.wfile.write(shown)

    def _start_raw(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(413, "payload_too_large", "The request body is too large.")
        data = self.rfile.read(int(length))
        if not data:
            return None
        try:
            body = json.loads(data)
            json.dumps(body, ensure_ascii=False).encode()  # escapes can spell text that is no Unicode
        except (ValueError, RecursionError):
            raise Refused(400, "bad_request", "The request body is not valid JSON.") from None
        return body

    def _answer(self, path: str, body: Any) -> Answer:
        split = urlsplit(self.path)
        if path.startswith("/sandbox/metadata/"):
            return metadata(self.server.cloud, path.removeprefix("/sandbox/metadata/"))
        scopes, rates = self.server.known(self.headers.get("Authorization", ""))
        if path.startswith("/sandbox/"):
            if scopes is not None:
                raise Refused(403, "forbidden", "You are not authorized to perform this operation")
            return control(self.server, self.command, path, body)
        self._count(rates, path)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        return answer(self.server.cloud, Request(self.command, path, query, body, self.server.url), scopes)

    def _count(self, rates: Rates, path: str) -> None:
        knobs, now = self.server.cloud.knobs, self.server.cloud.clock.now()
        self._remaining, wait_s = rates.take(now, per_hour=knobs.per_hour, per_minute=knobs.per_minute)
        if wait_s is None and path == "/v2/account/keys" and self.command == "GET":
            wait_s = rates.take_key_list(now, per_minute=knobs.key_lists_per_minute)
        if wait_s is not None:
            # Only the burst limit says how long to wait; who used up the hour has to know (API reference, 2026-08).
            self._retry_after_s = math.ceil(wait_s) if self._remaining else None
            raise Refused(429, "too_many_requests", "API Rate limit exceeded.")

    def _send(self, found: Answer) -> None:
        data = b"" if found.body is None else json.dumps(found.body).encode()
        self.send_response(found.status)
        self.send_header("ratelimit-limit", str(self.server.cloud.knobs.per_hour))
        self.send_header("ratelimit-remaining", str(self._remaining))
        self.send_header("ratelimit-reset", str(int(self.server.cloud.clock.now()) + _HOUR_S))
        self.send_header("x-request-id", secrets.token_hex(16))
        if self._retry_after_s is not None:
            self.send_header("Retry-After", str(self._retry_after_s))
        if found.status != 204:
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _error(status: int, id: str, message: str) -> Answer:
    # The description of tags wants another form for a 400 (`error`, `root_causes`); both together fit everywhere.
    other = {"error": message, "messages": [message], "root_causes": []} if status == 400 else {}
    return Answer(status, {"id": id, "message": message, "request_id": secrets.token_hex(16), **other})
