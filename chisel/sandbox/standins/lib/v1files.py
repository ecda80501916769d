"""Write the results of rocprof v1: SQLite first, then statistics and Chrome JSON out of it, as its tblextr.py does.

Tables, columns and texts are those of ROCm/rocprofiler (bin/tblextr.py, sqlitedb.py, dform.py; October 2024) and of
real files of ROCm 4: numbers in the JSON are texts, ts and dur whole microseconds, the exact ns in `args`. Slices of
barriers lie among the GPU's own, by their name; `GPU Barriers0` is a process without slices (its section number is not
what the slices are drawn by).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from .collection import Collected, Dispatch
from .counters import counter_value
from .faults import BARRIER
from .identity import ARCHITECTURE, DEVICE, NOTICE, ROCM_VERSION
from .v1ops import operations

_EXT_PID, _COPY_PID, _HIP_PID, _HSA_PID, _GPU_PID, _BARRIERS = 0, 1, 2, 3, 6, 512
_SPAN = '"BeginNs" INTEGER, "EndNs" INTEGER'
_API = f'({_SPAN}, "pid" INTEGER, "tid" INTEGER, "Name" TEXT, "args" TEXT, "Index" INTEGER, "Data" TEXT'
_OPS = f'({_SPAN}, "dev-id" INTEGER, "queue-id" INTEGER, "Name" TEXT, "pid" INTEGER, "tid" INTEGER'
_TAIL = ', "__section" INTEGER, "__lane" INTEGER)'
_TABLES = {
    "rocTX": f'({_SPAN}, "pid" INTEGER, "tid" INTEGER, "Name" TEXT, "Index" INTEGER{_TAIL}',
    "HIP": _API + _TAIL,
    "HSA": _API + _TAIL,
    "OPS": f'{_OPS}, "roctx-range" TEXT, "stream-id" INTEGER, "Index" INTEGER, "Data" TEXT{_TAIL}',
    "COPY": f'{_OPS}, "roctx-range" TEXT, "stream-id" INTEGER, "Index" INTEGER, "Data" TEXT{_TAIL}',
}
_KERNEL_NUMBERS = (
    "gpu-id", "queue-id", "queue-index", "pid", "tid", "grd", "wgp", "lds", "scr", "arch_vgpr", "accum_vgpr", "sgpr",
    "wave_size",
)  # fmt: skip
_TIMES = ("DispatchNs", "BeginNs", "EndNs", "CompleteNs")
_STATS = """
    SELECT Name, Calls, TotalDurationNs, TotalDurationNs / Calls AS AverageNs,
        TotalDurationNs * 100.0 / (SELECT sum("EndNs" - "BeginNs") FROM {table}) AS Percentage
    FROM (SELECT {name} AS Name, count(*) AS Calls, sum("EndNs" - "BeginNs") AS TotalDurationNs FROM {table}
        GROUP BY {name}) ORDER BY TotalDurationNs DESC
"""


def write_results(
    prefix: str, found: list[Collected], traces: set[str], counters: Sequence[str], *, has_stats: bool,
    has_timestamps: bool,
) -> list[str]:  # fmt: skip
    """Write `<prefix>.csv`, or with statistics `.db`, `.json`, `.stats.csv` and their like; return their paths."""
    if not has_stats:
        with open(f"{prefix}.csv", "w", encoding="utf-8") as file:
            columns = ["Index", "KernelName", *_KERNEL_NUMBERS, "sig", "obj", *counters]
            file.write(",".join([*columns, *(_TIMES if has_timestamps else ())]) + "\n")
            for row in _kernel_rows(found, counters, has_timestamps=has_timestamps):
                file.write(",".join(f'"{value}"' if n == 1 else str(value) for n, value in enumerate(row)) + "\n")
        return [f"{prefix}.csv"]
    write_sysinfo(f"{prefix}.sysinfo.txt")
    database = sqlite3.connect(f"{prefix}.db")
    try:
        with database:
            return [f"{prefix}.db", *_Results(prefix, found, database, traces, counters).write()]
    finally:
        database.close()


def write_sysinfo(path: str) -> None:
    """Write what rocminfo says, below the command that says it."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in ("CMD: rocminfo", *_sysinfo()))


def _sysinfo() -> list[str]:
    return [
        f"HSA System Attributes: {NOTICE}", f"Runtime Version: {ROCM_VERSION}", f"Name: {ARCHITECTURE}",
        f"Marketing Name: {DEVICE}",
    ]  # fmt: skip


def _kernel_rows(found: list[Collected], counters: Sequence[str], *, has_timestamps: bool) -> Iterator[list[Any]]:
    index = 0
    for process in found:
        for one in process.dispatches():
            yield _kernel_row(index, process, one, counters, has_timestamps=has_timestamps)
            index += 1


def _kernel_row(
    index: int, process: Collected, one: Dispatch, counters: Sequence[str], *, has_timestamps: bool
) -> list[Any]:
    kernel = process.kernels[one.kernel]
    pid = process.process.pid
    numbers = [one.gpu, 0, index, pid, pid, math.prod(one.grid), math.prod(one.block), 0, 0, 12, 4, 32, 64]
    values = [int(counter_value(name, kernel["display"], one)) for name in counters]
    times = [one.start_ns - 900, one.start_ns, one.end_ns, one.end_ns + 300] if has_timestamps else []
    return [index, kernel["display"], *numbers, "0x0", "0x0", *values, *times]


class _Results:
    """Fill the database, and write what is made out of it."""

    def __init__(
        self, prefix: str, found: list[Collected], database: sqlite3.Connection, traces: set[str],
        counters: Sequence[str],
    ) -> None:  # fmt: skip
        self._prefix = prefix
        self._found = found
        self._database = database
        self._traces = traces
        self._counters = counters
        self._start_ns = min((one.process.start_ns for one in found), default=0)
        self._gpus = max((one.gpus for one in found), default=0)
        self._written: list[str] = []

    def write(self) -> list[str]:
        self._fill()
        with open(f"{self._prefix}.json", "w", encoding="utf-8") as out:
            self._write_json(out)
        return [*self._written, f"{self._prefix}.json"]

    def _fill(self) -> None:
        has_api = bool(self._traces & {"hip", "hsa"})
        if "marker" in self._traces:
            self._table("rocTX", _TABLES["rocTX"], self._markers())
        if "hsa" in self._traces:
            self._table("HSA", _TABLES["HSA"], self._calls("h", _HSA_PID))
        if "hip" in self._traces:
            self._table("HIP", _TABLES["HIP"], self._calls("a", _HIP_PID))
        if has_api:
            self._table("OPS", _TABLES["OPS"], self._operations(copies=False))
            self._table("COPY", _TABLES["COPY"], self._operations(copies=True))
        self._fill_kernels(is_empty=bool(self._traces))

    def _fill_kernels(self, *, is_empty: bool) -> None:
        """Fill the table of kernels, which has rows only when nothing else is traced."""
        columns = ["Index", "KernelName"]
        if not is_empty:
            columns += [*_KERNEL_NUMBERS, "sig", "obj", *self._counters, *_TIMES]
        texts = {"KernelName", "sig", "obj"}
        declared = ", ".join(f'"{name}" {"TEXT" if name in texts else "INTEGER"}' for name in columns)
        rows = iter(()) if is_empty else _kernel_rows(self._found, self._counters, has_timestamps=True)
        self._table("KERN", f"({declared})", rows)

    def _table(self, name: str, columns: str, rows: Iterator[Sequence[Any]]) -> None:
        self._database.execute(f"CREATE TABLE {name} {columns}")
        marks = ",".join("?" * (columns.count(" INTEGER") + columns.count(" TEXT")))
        self._database.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        if "BeginNs" in columns and name != "rocTX":
            self._database.execute(f'ALTER TABLE {name} ADD COLUMN "DurationNs" INTEGER')
            self._database.execute(f'UPDATE {name} SET "DurationNs" = "EndNs" - "BeginNs"')

    def _markers(self) -> Iterator[Sequence[Any]]:
        for process in self._found:
            pid = process.process.pid
            for number, record in enumerate(process.records("m")):
                name = f'"{record.what}"'
                yield record.start_ns, record.end_ns, _EXT_PID, pid, name, number, _EXT_PID, pid

    def _calls(self, kind: str, section: int) -> Iterator[Sequence[Any]]:
        for process in self._found:
            pid = process.process.pid
            for number, record in enumerate(process.records(kind), 1):
                yield (
                    record.start_ns, record.end_ns, pid, pid, record.what, f"( {NOTICE} )", number, "", section, pid,
                )  # fmt: skip

    def _operations(self, *, copies: bool) -> Iterator[Sequence[Any]]:
        for process in self._found:
            pid = process.process.pid
            for op in operations(process):
                if op.is_copy == copies:
                    name = f'"{op.name}"' if op.name.startswith("<") else op.name
                    section = _COPY_PID if copies else _GPU_PID + op.gpu + _BARRIERS * (op.name == BARRIER)
                    yield (
                        op.start_ns, op.end_ns, op.gpu, op.queue, name, pid, pid, "", op.stream, op.correlation, "",
                        section, op.stream,
                    )  # fmt: skip

    def _write_json(self, out: TextIO) -> None:
        out.write('{ "traceEvents":[{}\n')
        labels = {"marker": (_EXT_PID, "Markers and Ranges"), "hip": (_HIP_PID, "CPU HIP API")}
        labels["hsa"] = (_HSA_PID, "CPU HSA API")
        shown = [label for trace, label in labels.items() if trace in self._traces] + [(_COPY_PID, "COPY")]
        for gpu in range(self._gpus):
            shown += [(_GPU_PID + gpu, f"GPU{gpu}"), (_GPU_PID + _BARRIERS + gpu, f"GPU Barriers{gpu}")]
        for number, (pid, label) in enumerate(shown):
            out.write(
                f',{{"args":{{"name":"{label}"}},"ph":"M","pid":{pid},"name":"process_name","sort_index":{number}}}\n'
            )
        if "marker" in self._traces:
            self._slices(out, "rocTX")
        if not self._traces:
            self._write_kernels(out)
        for table, file in (("HSA", "hsa_stats"), ("COPY", "copy_stats"), ("HIP", "hip_stats"), ("OPS", "stats")):
            if self._has(table):
                self._stats(f"{self._prefix}.{file}.csv", table, '"Name"')
                self._slices(out, table, **({"pid": f'"dev-id" + {_GPU_PID}'} if table == "OPS" else {}))
        out.write('],\n"otherData": {\n    "CMD": "rocminfo",\n')
        lines = [line.partition(": ") for line in _sysinfo()]
        out.write(",\n".join(f'    "{key}": "{value}"' for key, _, value in lines) + "\n  }\n}")

    def _has(self, table: str) -> bool:
        known = self._database.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        return bool(known and self._database.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0])

    def _write_kernels(self, out: TextIO) -> None:
        if not self._has("KERN"):
            return
        cursor = self._database.execute("SELECT * FROM KERN")
        self._csv(f"{self._prefix}.csv", [column[0] for column in cursor.description], cursor)
        self._stats(f"{self._prefix}.stats.csv", "KERN", '"KernelName"')
        self._slices(out, "KERN", name="KernelName", pid='"gpu-id" + 6', lane='"tid"')

    def _stats(self, path: str, table: str, name: str) -> None:
        cursor = self._database.execute(_STATS.format(table=table, name=name))
        self._csv(path, [column[0] for column in cursor.description], cursor)

    def _csv(self, path: str, columns: Sequence[str], rows: sqlite3.Cursor) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(",".join(f'"{name}"' for name in columns) + "\n")
            for row in rows:
                file.write(",".join(_csv_value(value) for value in row) + "\n")
        self._written.append(path)

    def _slices(
        self, out: TextIO, table: str, *, name: str = "Name", pid: str = '"__section"', lane: str = '"__lane"'
    ) -> None:
        shown = f'SELECT "{name}", {pid}, {lane}, * FROM {table}'
        cursor = self._database.execute(shown)
        columns = [column[0] for column in cursor.description][3:]
        begin, end = columns.index("BeginNs"), columns.index("EndNs")
        for slice_name, slice_pid, slice_lane, *values in cursor:
            ts = (values[begin] - self._start_ns) // 1000
            dur = (values[end] - values[begin]) // 1000 or 1
            head = f'"ph":"X","name":"{_json_text(slice_name)}","pid":"{slice_pid}","tid":"{slice_lane}"'
            out.write(f',{{{head},"ts":"{ts}","dur":"{dur}",\n  "args":{{\n    ')
            pairs = [
                f'"{column}":"{_json_text(value)}"'
                for column, value in zip(columns, values, strict=True)
                if not column.startswith("__") and column not in ("Index", "roctx-range")
            ]
            out.write(",\n    ".join(pairs) + "\n  }\n}\n")


def _json_text(value: object) -> str:
    """Write a value as the real script does: outer quotes dropped, inner ones not escaped, which breaks the JSON."""
    text = str(value)
    return text[1:-1] if text.startswith('"') and text.endswith('"') and len(text) > 1 else text


def _csv_value(value: object) -> str:
    if not isinstance(value, str):
        return str(value)
    is_quoted = value.startswith('"') and value.endswith('"')
    return value if is_quoted else f'"{value}"'
