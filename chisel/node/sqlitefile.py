"""Open SQLite files that other programs wrote, and look their tables up. Standard library only, Python 3.10."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from .statistics import Series
from .tally import FormatError

MAGIC = b"SQLite format 3\0"
_MOST_BINS = 1 << 13


@contextmanager
def opened(path: str, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a database for reading; whatever SQLite says of it becomes a FormatError that names the file."""
    uri = "file:" + os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    # A file nobody writes any more is read without locks: it may lie in a directory that cannot be written.
    mode = "mode=rw" if writable else "mode=ro" if _has_journal(path) else "mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"{uri}?{mode}", uri=True)) as database:
            database.text_factory = lambda data: data.decode("utf-8", "replace")
            yield database
    except sqlite3.Error as error:
        doing = "scrubbed" if writable else "read as a database"
        raise FormatError(f"`{os.path.basename(path)}` cannot be {doing}: {error}{_cut(path)}") from error


def _has_journal(path: str) -> bool:
    return any(os.path.exists(path + ending) for ending in ("-journal", "-wal"))


def _cut(path: str) -> str:
    """Say where a database ends too early: its header knows its pages (SQLite's file format, 1.3.8)."""
    try:
        with open(path, "rb") as source:
            header = source.read(100)
        size = os.path.getsize(path)
    except OSError:
        return ""
    page = int.from_bytes(header[16:18], "big")
    whole = (page if page > 1 else 65536) * int.from_bytes(header[28:32], "big")
    if not header.startswith(MAGIC) or size >= whole:
        return ""
    return f"; it ends at byte {size} of {whole}: its writer was killed, or the copy is cut"


def tables(database: sqlite3.Connection) -> list[str]:
    """Return the names of all tables."""
    rows: list[tuple[Any]] = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return sorted(str(name) for (name,) in rows)


def columns(database: sqlite3.Connection, table: str) -> set[str]:
    """Return the columns of a table, none when there is no such table."""
    rows: list[Any] = database.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
    return {str(name) for (name,) in rows}


def quoted(name: str) -> str:
    """Return a name as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: object) -> str:
    """Return a stored value as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value is not None else ""


def whole(value: object) -> int | None:
    """Return a stored value when it is a whole number."""
    return value if isinstance(value, int) else None


def bin_rows(rows: Iterable[tuple[Any, ...]], put: Callable[[tuple[Any, ...], Series], None]) -> None:
    """Collect rows of start, duration and a key of some columns; `put` gets each key with its dispatches.

    A key may come again, when there were very many. Rows whose times are no numbers (a dispatch that never ended) are
    left out; a negative duration counts as none.
    """
    bins: dict[tuple[Any, ...], Series] = {}
    appends: dict[tuple[Any, ...], tuple[Any, Any]] = {}
    for row in rows:
        try:
            start, duration = appends[row[2:]]
        except KeyError:
            if len(bins) >= _MOST_BINS:
                _put_all(bins, put)
                bins, appends = {}, {}
            series = bins[row[2:]] = Series()
            start, duration = appends[row[2:]] = (series.starts.append, series.durations.append)
        try:
            start(row[0])
            duration(row[1])
        except TypeError:
            del bins[row[2:]].starts[len(bins[row[2:]].durations) :]
    _put_all(bins, put)


def _put_all(bins: dict[tuple[Any, ...], Series], put: Callable[[tuple[Any, ...], Series], None]) -> None:
    while bins:
        key, series = bins.popitem()
        if not series:
            continue
        if min(series.durations) < 0:
            for at, took in enumerate(series.durations):
                series.durations[at] = max(took, 0)
        put(key, series)
