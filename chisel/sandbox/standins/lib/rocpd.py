"""Write rocpd databases as rocprofv3 of ROCm 7.1 does: schema version 3, tables with a GUID suffix, views without.

Columns and units are those read off a real MI300X database; the rows are made up, and a metadata row says so.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from .agents import agents
from .collection import Collected, Dispatch
from .counters import Filter, counter_value, description
from .identity import ARCHITECTURE, NOTICE, PROFILER_VERSION, ROCM_VERSION

_INFO = "id INTEGER PRIMARY KEY AUTOINCREMENT, guid TEXT NOT NULL"
_OWNED = f"{_INFO}, nid INTEGER NOT NULL, pid INTEGER NOT NULL"
_EXTRA = "extdata JSONB DEFAULT '{}' NOT NULL"
_SPAN = 'start BIGINT NOT NULL, "end" BIGINT NOT NULL'

TABLES = {
    "metadata": "id INTEGER PRIMARY KEY AUTOINCREMENT, tag TEXT NOT NULL, value TEXT NOT NULL",
    "string": f"{_INFO}, string TEXT NOT NULL UNIQUE",
    "info_node": f"{_INFO}, hash BIGINT NOT NULL UNIQUE, machine_id TEXT NOT NULL UNIQUE, system_name TEXT, "
    "hostname TEXT, release TEXT, version TEXT, hardware_name TEXT, domain_name TEXT",
    "info_process": f"{_INFO}, nid INTEGER NOT NULL, ppid INTEGER, pid INTEGER NOT NULL, init BIGINT, fini BIGINT, "
    f"start BIGINT, \"end\" BIGINT, command TEXT, environment JSONB DEFAULT '{{}}' NOT NULL, {_EXTRA}",
    "info_thread": f"{_INFO}, nid INTEGER NOT NULL, ppid INTEGER, pid INTEGER NOT NULL, tid INTEGER NOT NULL, "
    f'name TEXT, start BIGINT, "end" BIGINT, {_EXTRA}',
    "info_agent": f"{_OWNED}, type TEXT, absolute_index INTEGER, "
    "logical_index INTEGER, type_index INTEGER, uuid INTEGER, name TEXT, model_name TEXT, vendor_name TEXT, "
    f"product_name TEXT, user_name TEXT, {_EXTRA}",
    "info_queue": f"{_OWNED}, name TEXT, {_EXTRA}",
    "info_stream": f"{_OWNED}, name TEXT, {_EXTRA}",
    "info_pmc": f"{_OWNED}, agent_id INTEGER, target_arch TEXT, event_code INT, instance_id INTEGER, "
    "name TEXT NOT NULL, symbol TEXT NOT NULL, description TEXT, long_description TEXT DEFAULT '', component TEXT, "
    "units TEXT DEFAULT '', value_type TEXT, block TEXT, expression TEXT, is_constant INTEGER, is_derived INTEGER, "
    f"{_EXTRA}",
    "info_code_object": f"{_OWNED}, agent_id INTEGER, uri TEXT, load_base BIGINT, load_size BIGINT, "
    f"load_delta BIGINT, storage_type TEXT, {_EXTRA}",
    "info_kernel_symbol": f"{_OWNED}, code_object_id INTEGER NOT NULL, kernel_name TEXT, display_name TEXT, "
    "kernel_object INTEGER, kernarg_segment_size INTEGER, kernarg_segment_alignment INTEGER, "
    "group_segment_size INTEGER, private_segment_size INTEGER, sgpr_count INTEGER, arch_vgpr_count INTEGER, "
    f"accum_vgpr_count INTEGER, {_EXTRA}",
    "track": f"{_INFO}, nid INTEGER NOT NULL, pid INTEGER, tid INTEGER, name_id INTEGER, {_EXTRA}",
    "event": f"{_INFO}, category_id INTEGER, stack_id INTEGER, parent_stack_id INTEGER, correlation_id INTEGER, "
    f"call_stack JSONB DEFAULT '{{}}' NOT NULL, line_info JSONB DEFAULT '{{}}' NOT NULL, {_EXTRA}",
    "arg": f"{_INFO}, event_id INTEGER NOT NULL, position INTEGER NOT NULL, type TEXT NOT NULL, name TEXT NOT NULL, "
    f"value TEXT, {_EXTRA}",
    "pmc_event": f"{_INFO}, event_id INTEGER, pmc_id INTEGER NOT NULL, value REAL DEFAULT 0.0, extdata JSONB",
    "region": f"{_OWNED}, tid INTEGER NOT NULL, {_SPAN}, name_id INTEGER NOT NULL, event_id INTEGER, {_EXTRA}",
    "sample": f"{_INFO}, track_id INTEGER NOT NULL, timestamp BIGINT NOT NULL, event_id INTEGER, {_EXTRA}",
    "kernel_dispatch": f"{_OWNED}, tid INTEGER, agent_id INTEGER NOT NULL, kernel_id INTEGER NOT NULL, "
    f"dispatch_id INTEGER NOT NULL, queue_id INTEGER NOT NULL, stream_id INTEGER NOT NULL, {_SPAN}, "
    "private_segment_size INTEGER, group_segment_size INTEGER, workgroup_size_x INTEGER NOT NULL, "
    "workgroup_size_y INTEGER NOT NULL, workgroup_size_z INTEGER NOT NULL, grid_size_x INTEGER NOT NULL, "
    "grid_size_y INTEGER NOT NULL, grid_size_z INTEGER NOT NULL, region_name_id INTEGER, event_id INTEGER, "
    f"{_EXTRA}",
    "memory_copy": f"{_OWNED}, tid INTEGER, {_SPAN}, name_id INTEGER NOT NULL, dst_agent_id INTEGER, "
    "dst_address INTEGER, src_agent_id INTEGER, src_address INTEGER, size INTEGER NOT NULL, queue_id INTEGER, "
    f"stream_id INTEGER, region_name_id INTEGER, event_id INTEGER, {_EXTRA}",
    "memory_allocate": f"{_OWNED}, tid INTEGER, agent_id INTEGER, type TEXT, level TEXT, {_SPAN}, address INTEGER, "
    f"size INTEGER NOT NULL, queue_id INTEGER, stream_id INTEGER, event_id INTEGER, {_EXTRA}",
}

# Views over the views above, with those columns of the real ones that readers use.
VIEWS = {
    "kernels": """
        SELECT D.id, D.guid, D.tid, symbols.display_name AS name, D.nid, processes.pid, D.kernel_id, D.dispatch_id,
            D.queue_id, D.stream_id, D.start, D."end", D."end" - D.start AS duration,
            D.workgroup_size_x AS workgroup_x, D.workgroup_size_y AS workgroup_y, D.workgroup_size_z AS workgroup_z,
            D.grid_size_x AS grid_x, D.grid_size_y AS grid_y, D.grid_size_z AS grid_z,
            D.group_segment_size AS lds_size, D.private_segment_size AS scratch_size
        FROM rocpd_kernel_dispatch D, rocpd_info_kernel_symbol symbols, rocpd_info_process processes
        WHERE (symbols.guid, symbols.id) = (D.guid, D.kernel_id) AND (processes.guid, processes.id) = (D.guid, D.pid)
    """,
    "memory_copies": """
        SELECT C.id, C.guid, C.tid, directions.string AS name, C.start, C."end", C."end" - C.start AS duration, C.size
        FROM rocpd_memory_copy C, rocpd_string directions
        WHERE (directions.guid, directions.id) = (C.guid, C.name_id)
    """,
    "regions": """
        SELECT R.id, R.guid, R.tid, calls.string AS name, R.start, R."end", R."end" - R.start AS duration, R.event_id
        FROM rocpd_region R, rocpd_string calls
        WHERE (calls.guid, calls.id) = (R.guid, R.name_id)
    """,
    "counters_collection": """
        SELECT P.id, P.guid, K.dispatch_id, K.kernel_id, P.event_id, K.start, K."end", pmc.name AS counter_name, P.value
        FROM rocpd_pmc_event P, rocpd_info_pmc pmc, rocpd_kernel_dispatch K
        WHERE (pmc.guid, pmc.id) = (P.guid, P.pmc_id) AND (K.guid, K.event_id) = (P.guid, P.event_id)
    """,
    # In microseconds, by integer division, as the real one.
    "top_kernels": """
        WITH spent AS (SELECT name, count(*) AS calls, sum(duration) AS ns FROM kernels GROUP BY name)
        SELECT name, calls AS total_calls, ns / 1000 AS total_duration, ns / calls / 1000 AS average,
            100.0 * ns / (SELECT sum(ns) FROM spent) AS percentage
        FROM spent ORDER BY ns DESC
    """,
}

_REGIONS = {
    "hip": ("a", "HIP_RUNTIME_API"),
    "hsa": ("h", "HSA_CORE_API"),
    "marker": ("m", "MARKER_CORE_RANGE_API"),
}
_NODE = 1


def write_database(path: str, found: Collected, traces: set[str], counters: Sequence[str], takes: Filter) -> None:
    """Write one process's records of the domains asked for (`kernel`, `memory_copy`, `hip`, `hsa`, `marker`) to `path`.

    Counters bring the dispatches that they belong to with them. A database that stood there is replaced, as happens to
    several processes that share one name.
    """
    if os.path.exists(path):
        os.unlink(path)
    connection = sqlite3.connect(path)
    try:
        with connection:
            _Database(connection, found, counters, takes).write(traces)
    finally:
        connection.close()


class _Database:
    """Fill one database: `guid` names this process's run in it."""

    def __init__(
        self, connection: sqlite3.Connection, found: Collected, counters: Sequence[str], takes: Filter
    ) -> None:
        self._connection = connection
        self._found = found
        self._counters = counters
        self._takes = takes
        self._pid = found.process.pid
        self._guid = str(uuid.uuid4())
        self._suffix = "_" + self._guid.replace("-", "_")
        self._strings: dict[str, int] = {}
        self._events = 0

    def write(self, traces: set[str]) -> None:
        self._make_tables()
        self._write_metadata()
        self._write_process()
        self._write_kernel_symbols()
        self._write_counters()
        if "kernel" in traces or self._counters:
            self._insert_all("kernel_dispatch", self._dispatches())
        if "memory_copy" in traces:
            self._insert_all("memory_copy", self._copies())
        for trace, (kind, category) in _REGIONS.items():
            if trace in traces:
                self._insert_all("region", self._regions(kind, category))

    def _make_tables(self) -> None:
        for name, columns in TABLES.items():
            table = f"rocpd_{name}{self._suffix}"
            self._connection.execute(f'CREATE TABLE "{table}" ({columns})')
            self._connection.execute(f'CREATE VIEW rocpd_{name} AS SELECT * FROM "{table}"')
        for name, query in VIEWS.items():
            self._connection.execute(f"CREATE VIEW {name} AS {query}")

    def _insert(self, table: str, **values: Any) -> int:
        if table != "metadata":
            values["guid"] = self._guid
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join("?" * len(values))
        statement = f'INSERT INTO "rocpd_{table}{self._suffix}" ({names}) VALUES ({marks})'
        return int(self._connection.execute(statement, list(values.values())).lastrowid or 0)

    def _insert_all(self, table: str, rows: Iterator[dict[str, Any]]) -> None:
        for row in rows:
            self._insert(table, **row)

    def _string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = self._insert("string", string=text)
        return self._strings[text]

    def _write_metadata(self) -> None:
        tags = {"schema_version": "3", "uuid": self._suffix, "guid": self._guid}
        marks = {"stand-in": NOTICE, "tool": f"rocprofv3 {PROFILER_VERSION}", "rocm": ROCM_VERSION}
        for tag, value in {**tags, **marks}.items():
            self._insert("metadata", tag=tag, value=value)
        self._string("")

    def _write_process(self) -> None:
        process, system = self._found.process, platform.uname()
        self._insert(
            "info_node", id=_NODE, hash=zlib.crc32(system.node.encode()), machine_id=f"stand-in-{system.node}",
            system_name=system.system, hostname=system.node, release=system.release, version=system.version,
            hardware_name=system.machine, domain_name="(none)",
        )  # fmt: skip
        self._insert(
            "info_process", id=process.pid, nid=_NODE, ppid=process.ppid, pid=process.pid, init=process.start_ns,
            fini=process.end_ns, start=process.start_ns, end=process.end_ns, command=" ".join(process.command),
            environment=json.dumps(process.environment), extdata=json.dumps({"stand-in": NOTICE}),
        )  # fmt: skip
        owner = {"nid": _NODE, "pid": process.pid}
        self._insert("info_thread", id=process.pid, ppid=process.ppid, tid=process.pid, **owner)
        self._insert("info_stream", id=0, name="Default Stream", **owner)
        for index, agent in enumerate(agents(self._found.gpus)):
            self._write_agent(index, agent)
            if index:
                self._insert("info_queue", id=index, name=f"Queue {index - 1}", **owner)

    def _write_agent(self, index: int, agent: dict[str, Any]) -> None:
        self._insert(
            "info_agent", id=index, nid=_NODE, pid=self._pid, type=agent["Agent_Type"], absolute_index=index,
            logical_index=index, type_index=max(index - 1, 0), uuid=agent.get("Device_Id", 0), name=agent["Name"],
            model_name=agent["Model_Name"], vendor_name=agent["Vendor_Name"], product_name=agent["Product_Name"],
            user_name=agent["Product_Name"], extdata=json.dumps({"stand-in": NOTICE}),
        )  # fmt: skip

    def _write_kernel_symbols(self) -> None:
        if not self._found.kernels:
            return
        owner = {"nid": _NODE, "pid": self._pid}
        self._insert("info_code_object", id=1, agent_id=1, uri=f"stand-in://{self._pid}", load_base=0, load_size=0,
                     load_delta=0, storage_type="MEMORY", **owner)  # fmt: skip
        for number, kernel in enumerate(self._found.kernels, 1):
            self._insert(
                "info_kernel_symbol", id=number, code_object_id=1, kernel_name=kernel["symbol"],
                display_name=kernel["display"], kernel_object=0, kernarg_segment_size=32 + 8 * kernel["pointers"],
                kernarg_segment_alignment=16, group_segment_size=0, private_segment_size=0, sgpr_count=32,
                arch_vgpr_count=12, accum_vgpr_count=4, **owner,
            )  # fmt: skip

    def _event(self, category: str, correlation: int) -> int:
        return self._insert(
            "event", category_id=self._string(category), stack_id=correlation, parent_stack_id=correlation,
            correlation_id=0,
        )  # fmt: skip

    def _write_counters(self) -> None:
        for number, name in enumerate(self._counters, 1):
            self._insert(
                "info_pmc", id=number, nid=_NODE, pid=self._pid, agent_id=1, target_arch=ARCHITECTURE, name=name,
                symbol=name, description=description(name), component="SQ", units="", value_type="ABS", block="SQ",
                expression="", is_constant=0, is_derived=0, extdata=json.dumps({"stand-in": NOTICE}),
            )  # fmt: skip

    def _dispatches(self) -> Iterator[dict[str, Any]]:
        for one in self._found.dispatches():
            sizes = {f"workgroup_size_{axis}": size for axis, size in zip("xyz", one.block, strict=True)}
            sizes |= {f"grid_size_{axis}": size for axis, size in zip("xyz", one.grid, strict=True)}
            event = self._event("KERNEL_DISPATCH", one.correlation)
            yield {
                "nid": _NODE, "pid": self._pid, "tid": self._pid, "agent_id": one.gpu + 1, "kernel_id": one.kernel + 1,
                "dispatch_id": one.number, "queue_id": one.gpu + 1, "stream_id": 0, "start": one.start_ns,
                "end": one.end_ns, "private_segment_size": 0, "group_segment_size": 0, **sizes,
                "region_name_id": self._string(""), "event_id": event,
            }  # fmt: skip
            if self._counters and self._takes.takes(self._found, one):
                self._count(one, event)

    def _count(self, one: Dispatch, event: int) -> None:
        kernel = self._found.kernels[one.kernel]["display"]
        for number, name in enumerate(self._counters, 1):
            self._insert("pmc_event", event_id=event, pmc_id=number, value=counter_value(name, kernel, one))

    def _copies(self) -> Iterator[dict[str, Any]]:
        for record in self._found.records("c"):
            direction, size = record.what
            target, source = (1, 0) if direction.endswith("TO_DEVICE") else (0, 1)
            yield {
                "nid": _NODE, "pid": self._pid, "tid": self._pid, "start": record.start_ns, "end": record.end_ns,
                "name_id": self._string(direction), "dst_agent_id": target, "src_agent_id": source, "size": size,
                "stream_id": 0, "event_id": self._event("MEMORY_COPY", record.correlation),
            }  # fmt: skip

    def _regions(self, kind: str, category: str) -> Iterator[dict[str, Any]]:
        for record in self._found.records(kind):
            yield {
                "nid": _NODE, "pid": self._pid, "tid": self._pid, "start": record.start_ns, "end": record.end_ns,
                "name_id": self._string(record.what), "event_id": self._event(category, record.correlation),
            }  # fmt: skip
