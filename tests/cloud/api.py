"""Play as much of DigitalOcean's API as the adapter's tests need: on loopback, stateful, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REGION = {
    "name": "Atlanta 1",
    "slug": "atl1",
    "features": ["metadata"],
    "available": True,
    "sizes": ["gpu-mi300x1-192gb"],
}
SIZES: list[dict[str, Any]] = [
    {
        "slug": "gpu-mi300x1-192gb",
        "memory": 196608,
        "vcpus": 20,
        "disk": 720,
        "transfer": 15.0,
        "price_monthly": 1480.56,
        "price_hourly": 1.99,
        "regions": ["atl1"],
        "available": True,
        "description": "AMD MI300X GPU - 1X",
        "gpu_info": {"count": 1, "model": "amd_mi300x", "vram": {"amount": 192, "unit": "gib"}},
    },
    {
        "slug": "s-1vcpu-1gb",
        "memory": 1024,
        "vcpus": 1,
        "disk": 25,
        "transfer": 1.0,
        "price_monthly": 5.0,
        "price_hourly": 0.00743999984115362,
        "regions": [],
        "available": True,
        "description": "Basic",
    },
]
ACCOUNT = {
    "droplet_limit": 25,
    "floating_ip_limit": 5,
    "email": "sammy@digitalocean.com",
    "name": "Sammy the Shark",
    "uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef",
    "email_verified": True,
    "status": "active",
    "status_message": " ",
    "team": {"uuid": "5df3e3004a17e242b7c20ca6c9fc25b701a47ece", "name": "My Team"},
}
NOT_FOUND = {"id": "not_found", "message": "The resource you requested could not be found.", "request_id": "req-404"}

Fault = Callable[["Handler"], None]


def droplet(id: int, name: str, *, size: str = "gpu-mi300x1-192gb", tags: list[str] | None = None) -> dict[str, Any]:
    sold = next(one for one in SIZES if one["slug"] == size)
    made = {
        "id": id,
        "name": name,
        "memory": sold["memory"],
        "vcpus": sold["vcpus"],
        "disk": sold["disk"],
        "locked": False,
        "status": "active",
        "created_at": "2026-10-21T18:37:44Z",
        "features": ["private_networking"],
        "backup_ids": [],
        "next_backup_window": None,
        "snapshot_ids": [],
        "image": {"id": 7555620, "name": "AMD AI/ML Ready", "slug": "gpu-amd-base", "type": "base"},
        "volume_ids": [],
        "size": sold,
        "size_slug": size,
        "networks": {
            "v4": [
                {"ip_address": "10.1.0.2", "netmask": "255.255.0.0", "gateway": "nil", "type": "private"},
                {"ip_address": "203.0.113.7", "netmask": "255.255.240.0", "gateway": "203.0.113.1", "type": "public"},
            ],
            "v6": [],
        },
        "region": REGION,
        "tags": tags or [],
        "vpc_uuid": "760e09ef-dc84-11e8-981e-3cfdfeaae000",
    }
    del made["next_backup_window"]  # nullable only in practice
    return made | {"next_backup_window": {"start": "2026-10-22T00:00:00Z", "end": "2026-10-22T23:00:00Z"}}


@dataclass
class Seen:
    """One request as it arrived."""

    line: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Api:
    """The state of the played API; `faults` are taken in turn by the requests whose method and path they name."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    droplets: dict[int, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    page_size: int | None = None
    tag_listing_has_gpus: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most_running: int = 0

    def fail(self, line: str, *faults: Fault) -> None:
        self.faults += [(line, fault) for fault in faults]

    def lines(self) -> list[str]:
        return [one.line for one in self.seen]

    def take_fault(self, line: str) -> Fault | None:
        for index, (wanted, fault) in enumerate(self.faults):
            if wanted == line:
                del self.faults[index]
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Answer one connection's requests."""

    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        line = f"{self.command} {unquote(parts.path)}"
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self.api.lock:
            self.api.seen.append(Seen(line, parse_qs(parts.query), dict(self.headers.items()), body))
            fault = self.api.take_fault(line)
            self.api.running += 1
            self.api.most_running = max(self.api.most_running, self.api.running)
        try:
            if fault is not None:
                fault(self)
            else:
                self.answer_properly(line, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.api.lock:
                self.api.running -= 1

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the base class's names

    def answer_properly(self, line: str, body: Any) -> None:
        method, _, path = line.partition(" ")
        words = path.strip("/").split("/")[1:]
        handler = getattr(self, f"_{method.lower()}_{'_'.join(word for word in words[:2] if not word.isdigit())}", None)
        if handler is None:
            self.send(404, NOT_FOUND)
        else:
            handler(words, body)

    # -- the API

    def _get_account(self, words: list[str], _body: Any) -> None:
        self.send(200, {"account": ACCOUNT})

    def _get_sizes(self, words: list[str], _body: Any) -> None:
        self.send_page("sizes", SIZES)

    def _get_droplets(self, words: list[str], _body: Any) -> None:
        if len(words) == 2:
            found = self.api.droplets.get(int(words[1]))
            self.send(200, {"droplet": found}) if found else self.send(404, NOT_FOUND)
            return
        assert not ("type" in self.query and "tag_name" in self.query)
        tag, gpus = self.query.get("tag_name"), self.query.get("type") == "gpus"
        chosen = []
        for one in self.api.droplets.values():
            is_gpu = one["size_slug"].startswith("gpu-")
            if tag is not None:
                fits = tag in one["tags"] and (self.api.tag_listing_has_gpus or not is_gpu)
            else:
                fits = is_gpu == gpus
            if fits:
                chosen.append(one)
        self.send_page("droplets", chosen)

    def _post_droplets(self, words: list[str], body: Any) -> None:
        if len(words) == 3:
            self._act(int(words[1]), body)
            return
        self.send(202, self.create(body))

    def create(self, body: Any) -> dict[str, Any]:
        id = 1000 + len(self.api.droplets)
        made = droplet(id, body["name"], size=body["size"], tags=body["tags"])
        made |= {"status": "new", "networks": {"v4": [], "v6": []}}
        self.api.droplets[id] = made
        return {
            "droplet": made,
            "links": {"actions": [{"id": 7, "rel": "create", "href": f"{self.api.url}/v2/actions/7"}]},
        }

    def _act(self, id: int, body: Any) -> None:
        if id not in self.api.droplets:
            self.send(404, NOT_FOUND)
            return
        action = {"id": 8, "status": "in-progress", "type": body["type"], "started_at": "2026-10-21T18:37:44Z"}
        self.send(201, {"action": action | {"resource_id": id, "resource_type": "droplet", "region_slug": "atl1"}})

    def _delete_droplets(self, words: list[str], _body: Any) -> None:
        gone = self.api.droplets.pop(int(words[1]), None)
        self.send(204) if gone else self.send(404, NOT_FOUND)

    def _get_account_keys(self, words: list[str], _body: Any) -> None:
        found = self.api.keys.get(words[2])
        self.send(200, {"ssh_key": found}) if found else self.send(404, NOT_FOUND)

    def _post_account_keys(self, words: list[str], body: Any) -> None:
        fingerprint = hashlib.md5(base64.b64decode(body["public_key"].split()[1])).digest().hex(":")
        if fingerprint in self.api.keys:
            text = "SSH Key is already in use on your account"
            self.send(422, {"id": "unprocessable_entity", "message": text, "request_id": "req-422"})
            return
        self.api.keys[fingerprint] = {"id": 289794, "fingerprint": fingerprint} | body
        self.send(201, {"ssh_key": self.api.keys[fingerprint]})

    def _delete_tags(self, words: list[str], _body: Any) -> None:
        self.send(404, NOT_FOUND)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_delete_tags_"):
            return self._delete_tag
        raise AttributeError(name)

    def _delete_tag(self, words: list[str], _body: Any) -> None:
        if words[1] in self.api.tags:
            self.api.tags.discard(words[1])
            self.send(204)
        else:
            self.send(404, NOT_FOUND)

    # -- the wire

    def send_page(self, name: str, entries: list[dict[str, Any]]) -> None:
        size = self.api.page_size or int(self.query.get("per_page", 20))
        page = int(self.query.get("page", 1))
        links: dict[str, Any] = {}
        if page * size < len(entries):
            path = urlsplit(self.path).path
            links = {"pages": {"next": f"{self.api.url}{path}?page={page + 1}", "last": f"{self.api.url}{path}?page=9"}}
        shown = entries[(page - 1) * size : page * size]
        self.send(200, {name: shown, "links": links, "meta": {"total": len(entries)}})

    def send(self, status: int, body: Any = None, **headers: str) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_raw(status, data, "application/json", **headers)

    def send_raw(self, status: int, data: bytes, content_type: str, **headers: str) -> None:
        self.send_response(status)
        everything = {
            "Content-Type": content_type,
            "Content-Length": str(len(data)),
            "ratelimit-limit": "5000",
            "ratelimit-remaining": "4999",
            "ratelimit-reset": "1792608000",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if status == 204:
            del everything["Content-Length"]
        for name, value in everything.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


# -- faults


def refuses(status: int, id: str, message: str, **headers: str) -> Fault:
    return lambda handler: handler.send(status, {"id": id, "message": message, "request_id": "req-1"}, **headers)


def shows_html(status: int, text: str = "<html><h1>Bad Gateway</h1></html>") -> Fault:
    return lambda handler: handler.send_raw(status, text.encode(), "text/html")


def echoes_headers(status: int, content_type: str = "application/json") -> Fault:
    """Answer with the request's own headers, as some servers do on their error pages."""

    def fault(handler: Handler) -> None:
        text = f"bad request: {handler.headers}"
        body = json.dumps({"id": "bad", "message": text}) if content_type == "application/json" else text
        handler.send_raw(status, body.encode(), content_type)

    return fault


def hangs(handler: Handler) -> None:
    handler.api.over.wait(60)
    handler.close_connection = True


def drips(handler: Handler) -> None:
    """Send a proper beginning, then a byte at a time, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.api.over.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def resets(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def truncates(handler: Handler) -> None:
    handler.send_response(202)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"droplet": {"id": 3164')
    handler.close_connection = True


def moves(handler: Handler) -> None:
    handler.send(301, {"id": "moved", "message": "moved"}, Location="https://api.elsewhere.example/v2/account")


def creates_then(fault: Fault) -> Fault:
    """Do create the droplet, then misbehave."""

    def both(handler: Handler) -> None:
        handler.create(handler.api.seen[-1].body)
        fault(handler)

    return both


def destroys_then(fault: Fault) -> Fault:
    def both(handler: Handler) -> None:
        handler.api.droplets.clear()
        fault(handler)

    return both


@contextmanager
def running_api() -> Iterator[Api]:
    api = Api()
    handler = type("BoundHandler", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # noqa: TID251 - a server of http.server
    thread.start()
    try:
        yield api
    finally:
        api.over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
