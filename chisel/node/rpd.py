"""Read the older `.rpd` databases of RocmProfileData, rocpd's forerunner.

Read off rocpd_python/rocpd/schema_data/tableSchema.cmd and rpd_tracer of ROCm/rocmProfileData (schema 3, 2026): an
operation names its kernel in `description_id`, what it is in `opType_id`. Grids are left out: they count workgroups or
work-items, as the source of the moment had them. Standard library only, Python 3.10.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from . import sqlitefile
from .rocprofv1 import BARRIER
from .sqlitefile import bin_rows, columns, text, whole
from .tally import FormatError, Kernel, Shape, Tally, direction_name

_COPY = re.compile(r"copy|memcpy|^fill|memset", re.IGNORECASE)
_BARRIER = re.compile(r"barrier|marker", re.IGNORECASE)
_NEEDED = {"start", "end", "description_id", "opType_id"}


def is_database(tables: list[str]) -> bool:
    """Say whether a database with these tables is an `.rpd`."""
    return "rocpd_op" in tables and "rocpd_string" in tables


def read(path: str, tally: Tally) -> None:
    """Add the dispatches and copies of an `.rpd`. Raises FormatError."""
    with sqlitefile.opened(path) as database:
        lacking = sorted(_NEEDED - columns(database, "rocpd_op"))
        if lacking:
            raise FormatError(
                f"`{path.rpartition('/')[2]}` is no .rpd that chisel knows: `rocpd_op` has no `{lacking[0]}`"
            )
        strings = _strings(database)

        def put(key: tuple[Any, ...], series: Any) -> None:
            description, kind, gpu, pid, wx, wy, wz, lds, scratch = key
            what = text(strings.get(kind))
            name = text(strings.get(description)) or what
            if _COPY.search(what):
                tally.add_copies(direction_name(what), len(series), sum(series.durations), None)
                return
            kernel = Kernel(BARRIER if _BARRIER.search(what) and "Kernel" not in what else name)
            process = f"process {pid}" if pid is not None else "process"
            tally.add_series(kernel, process, f"GPU {gpu}" if gpu is not None else "", series)
            workgroup = (wx, wy, wz) if whole(wx) and whole(wy) and whole(wz) else None
            if workgroup:
                tally.add_launches(
                    kernel, Shape(workgroup, lds_bytes=whole(lds), scratch_bytes=whole(scratch)), len(series)
                )

        bin_rows(database.execute(_query(database)), put)


def _query(database: sqlite3.Connection) -> str:
    """Return the query for all operations, each with its first call where calls are recorded."""
    gpu = "o.gpuId" if "gpuId" in columns(database, "rocpd_op") else "NULL"
    select = f'SELECT o.start, o."end" - o.start, o.description_id, o.opType_id, {gpu}'
    if not {"op_id", "api_id"} <= columns(database, "rocpd_api_ops") or "pid" not in columns(database, "rocpd_api"):
        return f"{select}, NULL, NULL, NULL, NULL, NULL, NULL FROM rocpd_op o"
    known = columns(database, "rocpd_kernelapi")
    wanted = ("workgroupX", "workgroupY", "workgroupZ", "groupSegmentSize", "privateSegmentSize")
    has_kernels = {"api_ptr_id", *wanted} <= known
    shape = ", ".join(f"k.{name}" if has_kernels else "NULL" for name in wanted)
    kernels = "LEFT JOIN rocpd_kernelapi k ON k.api_ptr_id = x.api_id" if has_kernels else ""
    return (
        f"{select}, a.pid, {shape} FROM rocpd_op o "
        "LEFT JOIN (SELECT op_id, min(api_id) AS api_id FROM rocpd_api_ops GROUP BY op_id) x ON x.op_id = o.id "
        f"LEFT JOIN rocpd_api a ON a.id = x.api_id {kernels}"
    )


def _strings(database: sqlite3.Connection) -> dict[int, str]:
    return {id: text(found) for id, found in database.execute("SELECT id, string FROM rocpd_string")}


def spans(path: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns of every operation and call."""
    with sqlitefile.opened(path) as database:
        strings = _strings(database)
        known = columns(database, "rocpd_op")
        place = ", ".join(name if name in known else "0" for name in ("gpuId", "queueId"))
        query = f'SELECT {place}, description_id, opType_id, start, "end" FROM rocpd_op'
        for gpu, queue, description, kind, start, end in database.execute(query):
            name = text(strings.get(description)) or text(strings.get(kind))
            yield f"GPU {gpu}", f"queue {queue}", name, int(start), int(end)
        if {"pid", "tid", "start", "end", "apiName_id"} <= columns(database, "rocpd_api"):
            query = 'SELECT pid, tid, apiName_id, start, "end" FROM rocpd_api'
            for pid, tid, name_id, start, end in database.execute(query):
                yield f"process {pid}", f"thread {tid}", text(strings.get(name_id)), int(start), int(end)
