"""Read the SQLite databases (rocpd) that rocprofv3 writes since ROCm 7.0.

Tables carry a GUID at the end of their names, several in a merged file, and newer schemas add columns: both are looked
up, never assumed. The view `top_kernels` is in microseconds and divides whole numbers; dispatches are read from their
own table instead. Read: schema 3 (ROCm 7.1) to 3.0.5; 4 keeps times elsewhere (`rocpd_timestamp`) and is refused.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from . import bulk, halves, sqlitefile
from .sqlitefile import bin_rows, columns, quoted, text, whole
from .statistics import Series
from .tally import FormatError, Kernel, Loads, Shape, Tally, direction_name

DISPATCH = "rocpd_kernel_dispatch"
_SYMBOL = "rocpd_info_kernel_symbol"
_PROCESS = "rocpd_info_process"
_AGENT = "rocpd_info_agent"
_STRING = "rocpd_string"
_COPY = "rocpd_memory_copy"
_NEEDED = ("kernel_id", "start", "end")
_SHAPE = (
    *("workgroup_size_x", "workgroup_size_y", "workgroup_size_z", "grid_size_x", "grid_size_y", "grid_size_z"),
    *("group_segment_size", "private_segment_size"),
)
_KEY = ("kernel_id", "agent_id", "pid", *_SHAPE)
_LARGE = 200_000


def read(path: str, tally: Tally, loads: Loads = json.loads) -> None:
    """Add everything of one database. Raises FormatError for what is no rocpd database, or is of another schema."""
    with sqlitefile.opened(path) as database:
        for suffix in suffixes(database, path):
            session = _Session(database, suffix, path, loads)
            session.read_dispatches(tally)
            session.read_copies(tally)
            session.read_counters(tally)


def suffixes(database: sqlite3.Connection, path: str) -> list[str]:
    """Return the GUID part of every table of dispatches; raises FormatError when there is none we can read."""
    found = [name[len(DISPATCH) :] for name in sqlitefile.tables(database) if name.startswith(DISPATCH)]
    name = os.path.basename(path)
    if not found:
        raise FormatError(
            f"`{name}` is no rocpd database that chisel knows: {_version(database)}, no `{DISPATCH}` table"
        )
    for suffix in found:
        lacking = [column for column in _NEEDED if column not in columns(database, DISPATCH + suffix)]
        if lacking:
            raise FormatError(
                f"`{name}` is of a newer schema than chisel reads (3 to 3.0.5): {_version(database)}, `{DISPATCH}` has "
                f"no column `{lacking[0]}`; update chisel, or convert it: rocpd convert -i {name} -f csv"
            )
    return found


def _version(database: sqlite3.Connection) -> str:
    for table in sqlitefile.tables(database):
        if table.startswith("rocpd_metadata") and {"tag", "value"} <= columns(database, table):
            found = database.execute(f"SELECT value FROM {quoted(table)} WHERE tag = 'schema_version'").fetchone()
            if found:
                return f"its schema is {text(found[0])[:40]}"
    return "it does not name its schema"


class _Session:
    """The tables of one GUID: one process, as rocprofv3 writes them."""

    def __init__(self, database: sqlite3.Connection, suffix: str, path: str, loads: Loads = json.loads) -> None:
        self._loads = loads
        self._database = database
        self._suffix = suffix
        self._path = path
        self._dispatch = quoted(DISPATCH + suffix)
        self._has = columns(database, DISPATCH + suffix)
        self.kernels, self._registers = self._read_symbols()
        self.processes = self._read_processes()
        self.gpus = self._read_agents()

    # -- what ids stand for

    def rows(self, table: str, wanted: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """Give some columns of a table, None for those it lacks."""
        known = columns(self._database, table + self._suffix)
        if "id" in known:
            chosen = ", ".join(quoted(name) if name in known else "NULL" for name in wanted)
            yield from self._database.execute(f"SELECT {chosen} FROM {quoted(table + self._suffix)}")

    def _read_symbols(self) -> tuple[dict[int, Kernel], dict[int, tuple[int | None, ...]]]:
        kernels, registers = {}, {}
        wanted = ("id", "display_name", "kernel_name", "arch_vgpr_count", "accum_vgpr_count", "sgpr_count")
        for id, shown, name, *counts in self.rows(_SYMBOL, wanted):
            kernels[id] = Kernel(text(shown) or text(name), text(name))
            registers[id] = tuple(map(whole, counts))
        return kernels, registers

    def _read_processes(self) -> dict[int, str]:
        return {id: f"process {pid}" for id, pid in self.rows(_PROCESS, ("id", "pid")) if pid is not None}

    def _read_agents(self) -> dict[int, str]:
        wanted = ("id", "type", "type_index", "name")
        return {
            id: f"GPU {number} ({text(name)})" if text(name) else f"GPU {number}"
            for id, kind, number, name in self.rows(_AGENT, wanted)
            if text(kind).upper() == "GPU" and number is not None
        }

    def strings(self) -> dict[int, str]:
        """Return every text by its id."""
        return {id: text(found) for id, found in self.rows(_STRING, ("id", "string"))}

    def process(self, id: object) -> str:
        """Name a process by what a row says of it."""
        found = self.processes.get(id) if isinstance(id, int) else None
        if id is None and len(self.processes) == 1:
            return next(iter(self.processes.values()))
        return found or (f"process {id}" if id is not None else "process")

    def gpu(self, id: object) -> str:
        """Name a GPU by what a row says of it."""
        found = self.gpus.get(id) if isinstance(id, int) else None
        return found or (f"GPU agent {id}" if id is not None else "")

    def kernel(self, id: object) -> Kernel:
        """Return the kernel a row names; one without a symbol is known by its number in this session."""
        found = self.kernels.get(id) if isinstance(id, int) else None
        return found if found and found.name else Kernel(f"kernel {id}", f"kernel {id}{self._suffix}")

    # -- dispatches

    def read_dispatches(self, tally: Tally) -> None:
        """Add every dispatch that has ended; a large table is read by two processes."""
        bounds = self._database.execute(f"SELECT min(rowid), max(rowid) FROM {self._dispatch}").fetchone()
        if bounds[0] is None:
            return
        low, high = bounds
        middle = (low + high + 1) // 2
        is_dense = bulk.is_dense(self._path, low, high)
        if high - low < _LARGE:
            self._read_range(self._database, low, high, tally)
            return

        def half(index: int, into: Tally) -> None:
            # A connection must not be carried through a fork: each half opens its own.
            with sqlitefile.opened(self._path) as database:
                bounds = (low, middle - 1) if index == 0 else (middle, high)
                if tally.needs_exact_order or not is_dense:
                    self._read_range(database, *bounds, into)
                else:
                    self._read_bulk(database, *bounds, into)

        halves.read_halves(half, tally)

    def _read_bulk(self, database: sqlite3.Connection, low: int, high: int, tally: Tally) -> None:
        def put(key: tuple[Any, ...], series: Series) -> None:
            tally.add_series(self.kernel(key[0]), self.process(key[2]), self.gpu(key[1]), series)

        def count(key: tuple[Any, ...], calls: int) -> None:
            tally.add_launches(self.kernel(key[0]), self._shape(key), calls)

        useless = {"pid"} if len(self.processes) == 1 else set()
        names = [name if name in self._has - useless else "NULL" for name in _KEY]
        bulk.Bulk(self._dispatch, names, put, count).read(database, low, high, self._loads)

    def _read_range(self, database: sqlite3.Connection, low: int, high: int, tally: Tally) -> None:
        """Add the dispatches of some rows: one bin for each kernel, GPU, process and launch."""
        chosen = ", ".join(name if name in self._has else "NULL" for name in _KEY)
        query = f'SELECT start, "end" - start, {chosen} FROM {self._dispatch} WHERE rowid BETWEEN ? AND ?'
        bin_rows(database.execute(query, (low, high)), lambda key, series: self._put(key, series, tally))

    def _put(self, key: tuple[Any, ...], series: Series, tally: Tally) -> None:
        kernel = self.kernel(key[0])
        tally.add_series(kernel, self.process(key[2]), self.gpu(key[1]), series)
        tally.add_launches(kernel, self._shape(key), len(series))

    def _shape(self, key: tuple[Any, ...]) -> Shape:
        wx, wy, wz, gx, gy, gz, lds, scratch = map(whole, key[3:])
        vgprs, agprs, sgprs = self._registers.get(key[0], (None, None, None))
        workgroup = (wx, wy, wz) if wx is not None and wy is not None and wz is not None else None
        grid = (gx, gy, gz) if gx is not None and gy is not None and gz is not None else None
        return Shape(workgroup, grid, vgprs, agprs, sgprs, lds, scratch)

    # -- copies and counters

    def read_copies(self, tally: Tally) -> None:
        """Add memory copies by direction."""
        known = columns(self._database, _COPY + self._suffix)
        if not {"name_id", "start", "end"} <= known:
            return
        size = "sum(size)" if "size" in known else "NULL"
        query = f'SELECT name_id, count(*), sum("end" - start), {size} FROM {quoted(_COPY + self._suffix)} GROUP BY 1'
        strings = self.strings()
        for name, calls, total, bytes in self._database.execute(query):
            tally.add_copies(direction_name(strings.get(name, "copy")), calls, int(total or 0), whole(bytes))

    def read_counters(self, tally: Tally) -> None:
        """Add hardware counters (`--pmc`): their instances of one dispatch are summed, as the tool's own views do."""
        events, infos = "rocpd_pmc_event" + self._suffix, "rocpd_info_pmc" + self._suffix
        if not {"event_id", "pmc_id", "value"} <= columns(self._database, events) or "event_id" not in self._has:
            return
        known = columns(self._database, infos)
        name = next((column for column in ("symbol", "name") if column in known), None)
        if name is None:
            return
        pid = "d.pid" if "pid" in self._has else "NULL"
        query = (
            f"SELECT d.kernel_id, {pid}, p.{name}, d.start, d.rowid, e.value FROM {quoted(events)} e "
            f"JOIN {self._dispatch} d ON d.event_id = e.event_id JOIN {quoted(infos)} p ON p.id = e.pmc_id"
        )
        for kernel, process, counter, start, row, value in self._database.execute(query):
            if isinstance(value, (int, float)) and isinstance(start, int):
                place = (start << 32) + row
                tally.add_counter(self.kernel(kernel), self.process(process), text(counter), place, value)


# -- spans, for a trace viewer


def spans(path: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns: dispatches and copies by GPU and queue, calls by thread."""
    with sqlitefile.opened(path) as database:
        for suffix in suffixes(database, path):
            session = _Session(database, suffix, path)
            yield from _gpu_spans(database, suffix, session)
            yield from _copy_spans(database, suffix, session)
            yield from _call_spans(database, suffix, session)


def _gpu_spans(
    database: sqlite3.Connection, suffix: str, session: _Session
) -> Iterator[tuple[str, str, str, int, int]]:
    known = columns(database, DISPATCH + suffix)
    chosen = ", ".join(name if name in known else "NULL" for name in ("agent_id", "queue_id", "stream_id"))
    query = f'SELECT kernel_id, {chosen}, start, "end" FROM {quoted(DISPATCH + suffix)}'
    for kernel, agent, queue, stream, start, end in database.execute(query):
        if isinstance(start, int) and isinstance(end, int):
            lane = f"queue {queue}" if queue is not None else f"stream {stream}"
            yield session.gpu(agent), lane, session.kernel(kernel).name, start, end


def _copy_spans(
    database: sqlite3.Connection, suffix: str, session: _Session
) -> Iterator[tuple[str, str, str, int, int]]:
    if not {"name_id", "dst_agent_id", "start", "end"} <= columns(database, _COPY + suffix):
        return
    texts = session.strings()
    query = f'SELECT name_id, dst_agent_id, start, "end" FROM {quoted(_COPY + suffix)}'
    for name, agent, start, end in database.execute(query):
        if isinstance(start, int) and isinstance(end, int):
            lane = "to " + (session.gpus.get(agent) or f"agent {agent}")
            yield "memory copies", lane, direction_name(texts.get(name, "copy")), start, end


def _call_spans(
    database: sqlite3.Connection, suffix: str, session: _Session
) -> Iterator[tuple[str, str, str, int, int]]:
    known = columns(database, "rocpd_region" + suffix)
    if not {"name_id", "start", "end"} <= known:
        return
    texts = session.strings()
    chosen = ", ".join(name if name in known else "NULL" for name in ("pid", "tid"))
    threads = dict(session.rows("rocpd_info_thread", ("id", "tid")))
    query = f'SELECT name_id, {chosen}, start, "end" FROM {quoted("rocpd_region" + suffix)}'
    for name, process, thread, start, end in database.execute(query):
        if isinstance(start, int) and isinstance(end, int):
            yield session.process(process), f"thread {threads.get(thread, thread)}", texts.get(name, "call"), start, end
