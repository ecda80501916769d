"""Read the head of an HTTP/1.1 request, and judge whether it comes from our own page. Pure."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 16 << 10
_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~\t\x80-\xff]*?)[ \t]*")
_ONCE = ("host", "origin", "referer", "sec-fetch-site")
_OWN_SITE = {"same-origin", "none"}
"""What a browser says of a request of our page, and of an address typed or handed over by another program."""


@dataclass(frozen=True, slots=True)
class Request:
    """Hold what a request asks for; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The request is not answered; `status` says why to whoever asked."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def parse(head: bytes) -> Request:
    """Parse a request's head without the empty line that ends it; raises Refused (400) for anything unusual."""
    first, *lines = head.split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise Refused(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for one in lines:
        found = _HEADER.fullmatch(one)
        name = found[1].decode().lower() if found else ""
        if found is None or (name in headers and name in _ONCE):
            raise Refused(HTTPStatus.BAD_REQUEST)
        headers[name] = found[2].decode("latin-1")
    return Request(line[1].decode(), line[2].decode(), headers)


def path_for(request: Request, *, port: int, secret: str) -> str:
    """Return which of our pages is wanted, as a path below the secret one; raises Refused for anybody else.

    A page of another site may make a browser ask us, under any name that it has pointed at loopback (DNS rebinding):
    such a request carries a foreign Host, Origin or Referer, or says that it crosses sites.
    """
    if request.method not in ("GET", "HEAD"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    if "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0":
        raise Refused(HTTPStatus.BAD_REQUEST)
    if not _is_ours(request.headers, port):
        raise Refused(HTTPStatus.FORBIDDEN)
    given, slash, rest = request.target[1:].partition("/")
    if not slash or not hmac.compare_digest(given.encode(), secret.encode()):
        raise Refused(HTTPStatus.NOT_FOUND)
    return rest.partition("?")[0]


def _is_ours(headers: Mapping[str, str], port: int) -> bool:
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    host = headers.get("host", "")
    origins = {f"http://{name}" for name in hosts if name == host}
    if host not in hosts or not (headers.get("sec-fetch-site", "none") in _OWN_SITE or _is_navigation(headers)):
        return False
    if headers.get("origin", f"http://{host}") not in origins:
        return False
    return _origin(headers.get("referer", f"http://{host}/")) in origins


def _is_navigation(headers: Mapping[str, str]) -> bool:
    """Say whether a tab goes to our page from elsewhere: a link in a terminal that is itself a web page."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _origin(address: str) -> str:
    try:
        split = urlsplit(address)
    except ValueError:
        return ""
    return f"{split.scheme}://{split.netloc}"


def answer_head(status: HTTPStatus, headers: Mapping[str, str]) -> bytes:
    """Return the head of an answer, with what every answer of ours says."""
    said = {
        "Connection": "close",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        **headers,
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in said.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
