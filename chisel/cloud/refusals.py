"""Turn the API's refusals into typed errors that say what to do next. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from chisel.cloud.headers import retry_after_s
from chisel.errors import CapacityError, ChiselError, CloudError, CredentialsRefused, NotFoundError, RateLimited

_LONGEST_TEXT = 300
_HINTS_422 = (
    ("droplet limit", "chisel status; or ask DigitalOcean for a higher limit"),
    ("not available in this region", "choose another: chisel up --region R, or --size S (chisel auth shows where)"),
    ("size is unavailable", "choose another: chisel up --size S"),
    ("invalid image", "choose another: chisel up --image I"),
    ("pending event", "try again in a moment"),
)
# Said of a size that `/v2/sizes` still offers: capacity went between the two requests.
_NO_ROOM = ("not available in this region", "size is unavailable")


def refusal(what: str, status: int, headers: Mapping[str, str], text: str) -> ChiselError:
    """Return the error for an answer that is no success; `what` names the call, `text` is the answer's body."""
    body = _envelope(text)
    if 300 <= status < 400:
        return _moved(what, status, headers)
    if body is None:
        return CloudError(
            f"{what}: the API answered {status} with {_looks_like(text)}, not with JSON",
            hint="a proxy on the way, or an outage: https://status.digitalocean.com",
            status=status,
            request_id=headers.get("x-request-id"),
        )
    message = f"{what}: {_said(body)} ({status})"
    if status == 429:
        return RateLimited(message, retry_after_s=retry_after_s(headers), hint="other programs use this token as well?")
    kind, hint = _kind_of(status, str(body.get("message", "")))
    return kind(
        message,
        hint=hint,
        status=status,
        error_id=_text(body.get("id")),
        request_id=_text(body.get("request_id")) or headers.get("x-request-id"),
    )


def is_clear(status: int, text: str) -> bool:
    """Say whether an answer proves that a request was refused and changed nothing.

    A server's own failure (5xx) does not, nor does a page from something in between; 408 means that it gave up waiting.
    """
    return 300 <= status < 400 or (400 <= status < 500 and status != 408 and _envelope(text) is not None)


def _kind_of(status: int, message: str) -> tuple[type[CloudError], str | None]:
    if status == 401:
        return CredentialsRefused, "chisel auth"
    if status == 403:
        return CredentialsRefused, "the token lacks a scope for this: make one with those that `chisel auth` names"
    if status == 404:
        return NotFoundError, None
    if status >= 500:
        return CloudError, "an outage? https://status.digitalocean.com"
    hint = next((hint for part, hint in _HINTS_422 if part in message.lower()), None)
    has_no_room = status == 422 and any(part in message.lower() for part in _NO_ROOM)
    return CapacityError if has_no_room else CloudError, hint


def _moved(what: str, status: int, headers: Mapping[str, str]) -> CloudError:
    target = urlsplit(headers.get("location", ""))
    host = f"{target.scheme}://{target.netloc}" if target.scheme and target.netloc else None
    return CloudError(
        f"{what}: the API has moved{f' to `{_short(host)}`' if host else ''} ({status}); the token was not sent there",
        hint=f"when you trust that address: chisel auth --api-url {_short(host)}"
        if host
        else "chisel auth --api-url U",
        status=status,
    )


def _envelope(text: str) -> Mapping[str, Any] | None:
    """Return the API's own form of an error (`id`, `message`), None when the body is anything else."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) and isinstance(body.get("message"), str) else None


def _said(body: Mapping[str, Any]) -> str:
    said = _short(str(body["message"]).strip()) or "no reason given"
    regions = body.get("error_attributes", {})
    offered = regions.get("available_regions") if isinstance(regions, dict) else None
    return f"{said} Available in: {_short(', '.join(map(str, offered)))}." if isinstance(offered, list) else said


def _looks_like(text: str) -> str:
    start = text.lstrip()[:200].lower()
    if not start:
        return "an empty body"
    return "a web page" if start.startswith("<") else "something else"


def _text(value: object) -> str | None:
    return _short(value) if isinstance(value, str) and value else None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
