"""Tell by its content what a profiler's file is: SQLite by its tables, JSON by its first keys, CSV by its columns.

Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Literal

from . import rocpd, rocprofv1, rpd, sqlitefile
from .chrometrace import HEADER
from .columns import END, START, unquoted
from .plainfile import opened
from .rocprofjson import KEY
from .tally import FormatError

# fmt: off
Kind = Literal[
    "rocpd", "json", "trace", "rpd", "v1-db", "v1-json", "v1-csv", "counters",
    "stats", "copies", "calls", "other-stats", "unknown",
]
# fmt: on
"""`calls` are traces of API calls and markers; `other-stats` the sums of such calls: never kernels."""

OWN_TRACE = HEADER.encode()
_HEAD = 1 << 18
_OTHER_STATS = re.compile(r"(hip|hsa|copy|marker|rccl|roctx|domain|memory|scratch|api)[a-z_]*stats?\.csv$|domain_stats")
_CALLS = re.compile(r"(hip|hsa|roctx)[A-Z_]|MEMORY_COPY|[A-Z]+_(API|DISPATCH)\b|Copy[A-Z]")


def kind_of(path: str) -> Kind:
    """Return what a file is. Raises FormatError for a database that cannot be read, OSError."""
    with open(path, "rb") as source:
        start = source.read(len(sqlitefile.MAGIC))
    if start == sqlitefile.MAGIC:
        return _database(path)
    name = os.path.basename(path)
    if name.endswith((".db", ".rpd")):
        said = "its writer was killed before it wrote" if not start else "it does not begin as SQLite does, byte 0"
        raise FormatError(f"`{name}` cannot be read as a database: {said}")
    with opened(path) as source:
        head = source.read(_HEAD)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text and name.endswith((".csv", ".json", ".gz")):
        raise FormatError(f"`{name}` is empty")
    if text[:1] in {b"{", b"["}:
        is_trace = b'"traceEvents"' in text and not text.startswith(OWN_TRACE)
        return "json" if KEY in text else "v1-json" if is_trace else "unknown"
    return _table(path, text)


def _database(path: str) -> Kind:
    with sqlitefile.opened(path) as database:
        found = sqlitefile.tables(database)
        if rpd.is_database(found) and not any(name.startswith(rocpd.DISPATCH) for name in found):
            return "rpd"
        if any(name.startswith(("rocpd_", "rocpd")) for name in found):
            return "rocpd"
        return "v1-db" if rocprofv1.is_database(database) else "unknown"


def _table(path: str, text: bytes) -> Kind:
    header, _, rest = text.partition(b"\n")
    columns = {unquoted(word).decode("utf-8", "replace").lower() for word in header.strip().split(b",")}
    if not header.isascii() or b"\0" in header:
        return _by_name(path)
    has_times = bool(columns & set(START)) and bool(columns & set(END))
    if {"counter_name", "counter_value", "kernel_name"} <= columns:
        return "counters"
    if columns & {"kernel_name", "kernelname"}:
        is_wide = bool(columns & {"kernelname", "grd", "wgr"})
        if has_times:
            return "v1-csv" if is_wide else "trace"
        return "counters" if is_wide else _by_name(path)
    if "direction" in columns:
        return "copies"
    if "function" in columns:
        return "calls"
    if {"name", "totaldurationns"} <= columns:
        return _stats(os.path.basename(path).lower(), rest)
    if has_times and "name" in columns:
        return "calls"
    return _by_name(path)


def _by_name(path: str) -> Kind:
    """Return what a file ought to be by its name: its reader says what it lacks."""
    return "trace" if path.endswith("kernel_trace.csv") else "stats" if path.endswith("kernel_stats.csv") else "unknown"


def _stats(name: str, rest: bytes) -> Kind:
    """Say whether sums are of kernels: files of calls have the same columns, and other names."""
    if "copy_stats" in name:
        return "copies"
    if _OTHER_STATS.search(name):
        return "other-stats"
    rows = [line.lstrip(b'"') for line in rest.splitlines()[:20] if line.strip()]
    is_call: Callable[[bytes], object] = lambda row: _CALLS.match(row.decode("utf-8", "replace"))  # noqa: E731
    return "other-stats" if rows and all(map(is_call, rows)) and "kernel" not in name else "stats"
