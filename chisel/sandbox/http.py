"""Serve the API over HTTP with the standard library's server, on loopback only, to whoever has the token."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from chisel.sandbox.api import Answer, Request, answer
from chisel.sandbox.cloud import Cloud, Refused

MAX_BODY_BYTES = 1 << 20
_HOURLY_LIMIT = 5000
_HOUR_S = 3600
_SLICE_S = 0.05


class Server(ThreadingHTTPServer):
    """An HTTP server that knows its cloud and its token."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, cloud: Cloud, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cloud = cloud
        self.token = token
        self.served = 0

    @property
    def url(self) -> str:
        """Return the address that stands for `https://api.digitalocean.com`."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


@contextmanager
def serving(cloud: Cloud) -> Iterator[Server]:
    """Serve in threads until the block ends, with a new random token."""
    server = Server(cloud, f"sandbox_v1_{secrets.token_hex(24)}")
    thread = threading.Thread(target=server.serve_forever, args=(_SLICE_S,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    server: Server
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

    def do_GET(self) -> None:
        """Serve a GET."""
        self._serve()

    def do_POST(self) -> None:
        """Serve a POST."""
        self._serve()

    def do_DELETE(self) -> None:
        """Serve a DELETE."""
        self._serve()

    def do_PUT(self) -> None:
        """Serve a PUT: nothing of it is played."""
        self._serve()

    def _serve(self) -> None:
        self.server.served += 1
        try:
            body = self._body()
            self._check_token()
            found = self._answer(body)
        except Refused as refusal:
            error = {"id": refusal.id, "message": str(refusal), "request_id": secrets.token_hex(16)}
            found = Answer(refusal.status, error)
        self._send(found)

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            raise Refused(401, "Unauthorized", "Unable to authenticate you")

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

    def _answer(self, body: Any) -> Answer:
        split = urlsplit(self.path)
        cloud, path = self.server.cloud, unquote(split.path)
        if path == "/sandbox/bill" and self.command == "GET":
            return Answer(200, cloud.bill())
        if path == "/sandbox/clock" and self.command == "POST":
            return self._advance(body)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        return answer(cloud, Request(self.command, path, query, body, self.server.url))

    def _advance(self, body: Any) -> Answer:
        try:
            self.server.cloud.clock.advance(float(body["advance_s"]))
        except (TypeError, KeyError, ValueError) as error:
            raise Refused(422, "unprocessable_entity", f"advance_s: {error}") from None
        return Answer(200, {"now": self.server.cloud.clock.now()})

    def _send(self, found: Answer) -> None:
        data = b"" if found.body is None else json.dumps(found.body).encode()
        self.send_response(found.status)
        self.send_header("ratelimit-limit", str(_HOURLY_LIMIT))
        self.send_header("ratelimit-remaining", str(max(0, _HOURLY_LIMIT - self.server.served)))
        self.send_header("ratelimit-reset", str(int(self.server.cloud.clock.now()) + _HOUR_S))
        self.send_header("x-request-id", secrets.token_hex(16))
        if found.status != 204:
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
