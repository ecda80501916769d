"""Write events as JSON lines, one object each, versioned: the machine's view of a command.

Every object has `v` (1), `event`, `at` (seconds, monotonic) and `host` (null when it concerns no single droplet);
output carries `text` where it is valid UTF-8, else `base64`. Money is a decimal in a string.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import orjson

from chisel import events
from chisel.model import RunResult
from chisel.render.writer import Writer

if TYPE_CHECKING:
    from chisel.figures import ProfileResult

VERSION = 1
_STDOUT = 1


class JsonLines:
    """Render events as JSON lines on stdout (a sink)."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def expect(self, hosts: Sequence[str]) -> None:
        """Need no names: each event carries its own."""

    def take_up(self, tails: Mapping[str, Mapping[events.Stream, bytes]], results: Sequence[RunResult]) -> None:
        """Need nothing of what was written before."""

    def tails(self, host: str) -> dict[events.Stream, bytes]:
        """Hold nothing back."""
        return {}

    def emit(self, event: events.Event) -> None:
        """Write one object; never blocks."""
        self._writer.write(_STDOUT, encode(event))

    def end(self, status: int, source: str, outcome: Mapping[str, Any] | None = None) -> None:
        """Write the last object of a command that was not refused: its status, whose that is, what came out."""
        self._writer.write(_STDOUT, line("ended", status=status, source=source, **(outcome or {})))

    async def drain(self) -> None:
        """Wait until the reader keeps up."""
        await self._writer.drain()

    async def tick(self) -> None:
        """Draw nothing."""

    def finish(self) -> None:
        """Hold nothing back."""


def encode(event: events.Event) -> bytes:
    """Return the event as one line of JSON, line feed included."""
    facts: dict[str, Any] = {"v": VERSION, "event": event.kind, "at": round(event.at, 6), "host": event.host}
    for field in fields(event):
        if field.name not in facts:
            facts[field.name] = getattr(event, field.name)
    if isinstance(event, events.Output):
        data = facts.pop("data")
        facts.update(_payload(data))
    if isinstance(event, events.ProfileRanked):
        facts["result"] = _profile(event.result)
    return _dump(facts)


def _profile(result: ProfileResult) -> dict[str, Any]:
    """Return a profile with its kernels beside its other facts, not below them: they are what is read."""
    facts: dict[str, Any] = _plain(result)
    return {**facts, **{name: facts["ranking"].pop(name) for name in ("kernels", "pseudo")}}


def _payload(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _dump(facts: dict[str, Any]) -> bytes:
    return orjson.dumps(_plain(facts), option=orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows; strings with lone surrogates (file names) are escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, bytes):
        return _payload(value)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return _plain(str(value))
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def line(kind: str, **facts: Any) -> bytes:
    """Return an object that is no engine's event as one line: an error, the end of a command."""
    return _dump({"v": VERSION, "event": kind, **facts})
