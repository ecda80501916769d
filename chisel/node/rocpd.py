"""Read the SQLite databases (rocpd) that rocprofv3 writes since ROCm 7.0, and take the secrets out of them.

Tables carry a GUID at the end of their names and newer schemas add columns: both are looked up, never assumed. The
view `top_kernels` is in microseconds and divides whole numbers; dispatches are read from their own table instead.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
import sqlite3
from array import array
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from .rocprofcsv import FormatError
from .statistics import Kernel

_DISPATCH = "rocpd_kernel_dispatch"
_SYMBOL = "rocpd_info_kernel_symbol"
_PROCESS = "rocpd_info_process"
_STRING = "rocpd_string"


def read_dispatches(path: str, kernels: dict[str, Kernel]) -> list[str]:
    """Add every dispatch of a database; return what was wrong. Raises FormatError for what is no rocpd database."""
    try:
        with closing(_open(path)) as database:
            suffixes = _suffixes(database, _DISPATCH, path)
            for suffix in suffixes:
                _read_one(database, suffix, kernels)
    except sqlite3.Error as error:
        raise FormatError(f"`{os.path.basename(path)}` cannot be read as a rocpd database: {error}") from error
    return []


def _read_one(database: sqlite3.Connection, suffix: str, kernels: dict[str, Kernel]) -> None:
    names = _kernel_names(database, suffix)
    durations: dict[int, array[int]] = {}
    for kernel_id, took in database.execute(f'SELECT kernel_id, "end" - start FROM {_table(_DISPATCH, suffix)}'):
        known = durations.get(kernel_id)
        if known is None:
            known = durations[kernel_id] = array("q")
        known.append(took if took is not None and took > 0 else 0)
    for kernel_id, found in durations.items():
        name = names.get(kernel_id, f"kernel {kernel_id}")
        kernels.setdefault(name, Kernel(name)).durations.extend(found)


def _kernel_names(database: sqlite3.Connection, suffix: str) -> dict[int, str]:
    """Return kernel id to name; kernels whose displayed names were cut to the same text get their full one as well."""
    table = _table(_SYMBOL, suffix)
    known = _columns(database, _SYMBOL + suffix)
    full = "kernel_name" if "kernel_name" in known else "NULL"
    shown = "display_name" if "display_name" in known else full
    rows = [(int(id), _text(short) or _text(name), _text(name)) for id, short, name in database.execute(
        f"SELECT id, {shown}, {full} FROM {table}"
    )]  # fmt: skip
    symbols: dict[str, set[str]] = {}
    for _, short, name in rows:
        symbols.setdefault(short, set()).add(name)
    return {id: short if len(symbols[short]) == 1 else f"{short} [{name}]" for id, short, name in rows}


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if value is not None else ""


# -- secrets


def scrub(path: str) -> None:
    """Blank every variable's value in a database, in place, so that no byte of them remains; names stay.

    rocpd stores the profiled process's whole environment. Raises FormatError when that cannot be done: such a file
    must not leave the droplet.
    """
    try:
        with closing(_open(path, writable=True)) as database:
            database.execute("PRAGMA secure_delete = ON")
            for suffix in _suffixes(database, _PROCESS, path):
                _scrub_one(database, suffix)
            database.commit()
            database.execute("PRAGMA journal_mode = DELETE")
            database.execute("VACUUM")
    except sqlite3.Error as error:
        raise FormatError(f"`{os.path.basename(path)}` cannot be scrubbed: {error}") from error


def _scrub_one(database: sqlite3.Connection, suffix: str) -> None:
    table = _table(_PROCESS, suffix)
    if "environment" not in _columns(database, _PROCESS + suffix):
        return
    for rowid, stored in database.execute(f"SELECT rowid, environment FROM {table}").fetchall():
        database.execute(f"UPDATE {table} SET environment = ? WHERE rowid = ?", (_names_alone(stored), rowid))


def _names_alone(stored: object) -> str:
    try:
        variables = json.loads(_text(stored) or "{}")
    except ValueError:
        variables = {}
    names = variables if isinstance(variables, dict) else {}
    return json.dumps({str(name): "" for name in names})


# -- spans, for a trace viewer


def spans(path: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns: dispatches and copies by GPU and queue, calls by thread."""
    try:
        with closing(_open(path)) as database:
            for suffix in _suffixes(database, _DISPATCH, path):
                yield from _gpu_spans(database, suffix)
                yield from _call_spans(database, suffix)
    except sqlite3.Error as error:
        raise FormatError(f"`{os.path.basename(path)}` cannot be read as a rocpd database: {error}") from error


def _gpu_spans(database: sqlite3.Connection, suffix: str) -> Iterator[tuple[str, str, str, int, int]]:
    names = _kernel_names(database, suffix)
    query = f'SELECT kernel_id, agent_id, queue_id, start, "end" FROM {_table(_DISPATCH, suffix)}'
    for kernel, agent, queue, start, end in database.execute(query):
        yield f"GPU agent {agent}", f"queue {queue}", names.get(kernel, f"kernel {kernel}"), start, end
    if not _columns(database, "rocpd_memory_copy" + suffix):
        return
    texts = _strings(database, suffix)
    query = f'SELECT name_id, dst_agent_id, start, "end" FROM {_table("rocpd_memory_copy", suffix)}'
    for name, agent, start, end in database.execute(query):
        yield "memory copies", f"to agent {agent}", texts.get(name, "copy"), start, end


def _call_spans(database: sqlite3.Connection, suffix: str) -> Iterator[tuple[str, str, str, int, int]]:
    if not _columns(database, "rocpd_region" + suffix):
        return
    texts = _strings(database, suffix)
    query = f'SELECT name_id, pid, tid, start, "end" FROM {_table("rocpd_region", suffix)}'
    for name, process, thread, start, end in database.execute(query):
        yield f"process {process}", f"thread {thread}", texts.get(name, "call"), start, end


def _strings(database: sqlite3.Connection, suffix: str) -> dict[int, str]:
    if not _columns(database, _STRING + suffix):
        return {}
    return {int(id): _text(text) for id, text in database.execute(f"SELECT id, string FROM {_table(_STRING, suffix)}")}


# -- tables


def _open(path: str, *, writable: bool = False) -> sqlite3.Connection:
    uri = "file:" + os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    database = sqlite3.connect(f"{uri}?mode={'rw' if writable else 'ro'}", uri=True)
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    return database


def _suffixes(database: sqlite3.Connection, table: str, path: str) -> list[str]:
    """Return the GUID part of every table of a kind; raises FormatError when there is none."""
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    found = [name[len(table) :] for (name,) in rows if name == table or name.startswith(table + "_")]
    if not found:
        raise FormatError(f"`{os.path.basename(path)}` is no rocpd database: it has no table `{table}`")
    return sorted(found)


def _table(name: str, suffix: str) -> str:
    return '"' + (name + suffix).replace('"', '""') + '"'


def _columns(database: sqlite3.Connection, table: str) -> set[str]:
    """Return the columns of a table, none when there is no such table."""
    rows: list[Any] = database.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
    return {str(name) for (name,) in rows}
