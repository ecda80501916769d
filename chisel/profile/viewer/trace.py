"""Tell whether a file is a trace that Perfetto shows, before it is handed over."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Literal

from chisel.errors import UsageError

Form = Literal["chrome", "perfetto"]

HEAD_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 31
_JSON = re.compile(rb'\s*(?:\{\s*(?:"|\}|$)|\[\s*(?:\{|\]|$))')
_OWN_JSON = re.compile(rb'\s*\{\s*"rocprofiler-sdk-tool"')
_EVENTS = re.compile(rb'"traceEvents"\s*:')
_PACKET = 0x0A  # field 1 (`packet`), length-delimited, of perfetto.protos.Trace: every pftrace begins with it


def trace_form(head: bytes) -> Form:
    """Say what kind of trace begins with `head` (gzip or plain); ValueError says why it is none. Pure.

    rocprofv3's own JSON is none: Perfetto opens it without a word and with no slices (seen in v52).
    """
    if head.startswith(_GZIP):
        head = _unpacked(head)
    if not head:
        raise ValueError("it is empty")
    if head.startswith(b"SQLite format 3\0"):
        raise ValueError("it is a database, which Perfetto does not open")
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _OWN_JSON.match(text):
        raise ValueError("it is rocprofv3's own JSON, which Perfetto opens with no slices at all")
    if _JSON.match(text):
        if text.lstrip().startswith(b"{") and not _EVENTS.search(text):
            raise ValueError("it is JSON without `traceEvents`, not a Chrome trace")
        return "chrome"
    if head[0] == _PACKET:
        return "perfetto"
    raise ValueError("it is neither a Chrome trace (.json, .json.gz) nor a Perfetto trace (.pftrace)")


def check_trace(path: Path) -> Form:
    """Return what kind of trace a file is; UsageError names what cannot be shown. Blocking."""
    try:
        with path.open("rb") as file:
            return trace_form(file.read(HEAD_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read the trace `{path}`: {error.strerror}") from error
    except ValueError as error:
        hint = "open the trace.json.gz beside it: `chisel profile --from PATH --open`"
        raise UsageError(f"`{path}` cannot be shown: {error}", hint=hint) from error


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(_GZIP_WINDOW).decompress(head, HEAD_BYTES)
    except zlib.error as error:
        raise ValueError(f"its compression is broken ({error})") from error
