"""Write files as the profilers do: the same columns and tables, with dispatches of the test's own."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

GUID = "_0000b0b6_5fa8_7fbd_9e18_d8f0b2d8e2b5"
V70 = [
    *("Kind", "Agent_Id", "Queue_Id", "Stream_Id", "Thread_Id", "Dispatch_Id", "Kernel_Id", "Kernel_Name"),
    *("Correlation_Id", "Start_Timestamp", "End_Timestamp", "LDS_Block_Size", "Scratch_Size", "VGPR_Count"),
]
V62 = ["Kind", "Agent_Id", "Queue_Id", "Kernel_Id", "Kernel_Name", "Correlation_Id", "Start_Timestamp", "End_Timestamp"]
CONVERTED = ["Guid", *V70[:7], "Kernel_Name", "Correlation_Id", "START_TIMESTAMP", "End_Timestamp", "Duration"]

Dispatches = Sequence[tuple[str, int]]


def kernel_trace(
    path: Path,
    dispatches: Dispatches,
    *,
    columns: Sequence[str] = V70,
    end: str = "\n",
    bom: bool = False,
    quoted: bool = True,
) -> None:
    """Write one `*_kernel_trace.csv` of (name, duration in ns)."""
    lines = [",".join(f'"{name}"' if quoted else name for name in columns)]
    now = 8_819_330_200_067_564
    for number, (name, took) in enumerate(dispatches, 1):
        text = {"kind": "KERNEL_DISPATCH", "agent_id": "Agent 4", "kernel_name": name, "guid": "b0b6"}
        places = {"start_timestamp": now, "end_timestamp": now + took, "duration": took}
        fields = [text.get(column.lower(), str(places.get(column.lower(), number))) for column in columns]
        always = {"kernel_name"}
        lines.append(
            ",".join(
                f'"{value}"' if quoted or column.lower() in always else value
                for column, value in zip(columns, fields, strict=True)
            )
        )
        now += took + 100
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + (end.join(lines) + end).encode())


def rocpd(
    path: Path,
    dispatches: Dispatches,
    *,
    environment: Mapping[str, str] | None = None,
    symbols: Sequence[tuple[str, str]] = (),
    guid: str = GUID,
    pid: int = 7,
    gpus: int = 1,
    counters: Sequence[str] = (),
    command: str = "./app",
) -> None:
    """Write one rocpd database, schema 3; `symbols` are (kernel_name, display_name), else made from the dispatches.

    Dispatches go round the GPUs. Each of `counters` has two instances in every dispatch, of its number and of 10.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = list(symbols) or [(symbol_of(name), name) for name in dict.fromkeys(name for name, _ in dispatches)]
    shown = {display: number for number, (_, display) in enumerate(known, 1)}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(_SCHEMA.replace("GUID", guid))
        put = Put(database, guid)
        for number, text in enumerate(("hipLaunchKernel", "MEMORY_COPY_HOST_TO_DEVICE"), 1):
            put("string", id=number, guid="x", string=text)
        put("memory_copy", id=1, name_id=2, dst_agent_id=1, start=500, end=900, size=4096)
        put("region", id=1, name_id=1, pid=1, tid=1, start=100, end=1400)
        put("info_thread", id=1, tid=8)
        stored = json.dumps(dict(environment or {"PATH": "/bin"}))
        put("info_process", id=1, guid="x", pid=pid, command=command, environment=stored)
        put("info_agent", id=0, type="CPU", type_index=0, name="EPYC")
        for number in range(gpus):
            put("info_agent", id=number + 1, type="GPU", type_index=number, name="gfx942")
        for number, (name, display) in enumerate(known, 1):
            put("info_kernel_symbol", id=number, guid="x", kernel_name=name, display_name=display, sgpr_count=112,
                arch_vgpr_count=32, accum_vgpr_count=4)  # fmt: skip
        for number, name in enumerate(counters, 1):
            put("info_pmc", id=number, symbol=name, name=name)
        now = 1000
        for number, (name, took) in enumerate(dispatches, 1):
            put("kernel_dispatch", id=number, guid="x", pid=1, agent_id=1 + number % gpus, queue_id=2, start=now,
                kernel_id=shown.get(name, 0), end=now + took, extra_of_a_newer_schema="", event_id=100 + number,
                workgroup_size_x=256, workgroup_size_y=1, workgroup_size_z=1, grid_size_x=1024 * (1 + number % 2),
                grid_size_y=2, grid_size_z=1, group_segment_size=512, private_segment_size=16)  # fmt: skip
            for which, _ in enumerate(counters, 1):
                put("pmc_event", event_id=100 + number, pmc_id=which, value=float(number))
                put("pmc_event", event_id=100 + number, pmc_id=which, value=10.0)
            now += took + 100
        put("metadata", id=1, tag="schema_version", value="3")
        database.commit()


def symbol_of(name: str) -> str:
    """Make a symbol up: the same for a name with and without a tool's ending."""
    return f"_ZN{sum(map(ord, name.partition('.kd')[0].partition(' [clone')[0]))}E.kd"


_SCHEMA = """
CREATE TABLE "rocpd_metadataGUID" (id INTEGER, tag TEXT, value TEXT);
CREATE TABLE "rocpd_stringGUID" (id INTEGER, guid TEXT, string TEXT);
CREATE TABLE "rocpd_info_processGUID" (id INTEGER, guid TEXT, pid INTEGER, command TEXT, environment JSONB);
CREATE TABLE "rocpd_info_threadGUID" (id INTEGER, tid INTEGER);
CREATE TABLE "rocpd_info_agentGUID" (id INTEGER, type TEXT, type_index INTEGER, name TEXT);
CREATE TABLE "rocpd_info_kernel_symbolGUID" (id INTEGER, guid TEXT, kernel_name TEXT, display_name TEXT,
    sgpr_count INTEGER, arch_vgpr_count INTEGER, accum_vgpr_count INTEGER);
CREATE TABLE "rocpd_info_pmcGUID" (id INTEGER, symbol TEXT, name TEXT);
CREATE TABLE "rocpd_pmc_eventGUID" (event_id INTEGER, pmc_id INTEGER, value REAL);
CREATE TABLE "rocpd_kernel_dispatchGUID" (id INTEGER, guid TEXT, pid INTEGER, agent_id INTEGER,
    kernel_id INTEGER, queue_id INTEGER, start BIGINT, "end" BIGINT, extra_of_a_newer_schema TEXT, event_id INTEGER,
    workgroup_size_x INTEGER, workgroup_size_y INTEGER, workgroup_size_z INTEGER, grid_size_x INTEGER,
    grid_size_y INTEGER, grid_size_z INTEGER, group_segment_size INTEGER, private_segment_size INTEGER);
CREATE TABLE "rocpd_memory_copyGUID" (id INTEGER, name_id INTEGER, dst_agent_id INTEGER, start BIGINT,
    "end" BIGINT, size INTEGER);
CREATE TABLE "rocpd_regionGUID" (id INTEGER, name_id INTEGER, pid INTEGER, tid INTEGER, start BIGINT, "end" BIGINT);
CREATE VIEW IF NOT EXISTS rocpd_kernel_dispatch AS SELECT * FROM "rocpd_kernel_dispatchGUID";
"""


class Put:
    """Insert rows into the tables of one GUID."""

    def __init__(self, database: sqlite3.Connection, guid: str) -> None:
        self._database = database
        self._guid = guid

    def __call__(self, table: str, **row: Any) -> None:
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join("?" * len(row))
        self._database.execute(
            f'INSERT INTO "rocpd_{table}{self._guid}" ({names}) VALUES ({marks})', tuple(row.values())
        )


# -- rocprof v1


def v1_json(path: Path, dispatches: Dispatches, *, older: bool = False, end: str = "]", pid: int = 19) -> None:
    """Write one `results.json`; `older` as of 2021: numbers as strings, `proc-id`."""

    def number(value: int) -> str:
        return f'"{value}"' if older else str(value)

    head = ["{}"]
    for at, label in ((2, "CPU HIP API"), (1, "COPY"), (6, "GPU0"), (518, "GPU Barriers0")):
        head.append(f'{{"args":{{"name":"{label}"}},"ph":"M","pid":{at},"name":"process_name","sort_index":0}}')
    events = [_v1_event("hipLaunchKernel", number(2), 10, 400, f'"pid":"{pid}","args":"kernel(a, b)"')]
    events.append(_v1_event("CopyHostToDevice", number(1), 20, 90, f'"dev-id":"0","pid":"{pid}"'))
    now = 704_649_223_497_252
    for name, took in dispatches:
        where = f'"dev-id":"0","pid":"6","proc-id":"{pid}"' if older else f'"dev-id":"0","pid":"{pid}"'
        events.append(_v1_event(name, number(6), now, now + took, where))
        now += took + 100
    body = "\n,".join([*head, *events])
    text = f'{{ "traceEvents":[{body}\n{end}' + (',\n"otherData": {\n    "CU": "304"\n  }\n}' if end == "]" else "")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _v1_event(name: str, pid: str, start: int, end: int, more: str) -> str:
    return (
        f'{{"ph":"X","name":"{name}","pid":{pid},"tid":{pid},"ts":"{start // 1000}","dur":"{(end - start) // 1000}",\n'
        f'  "args":{{\n    "BeginNs":"{start}",\n    "EndNs":"{end}",\n    "Name":"{name}",\n    {more}\n  }}\n}}'
    )


def v1_database(path: Path, dispatches: Dispatches, *, table: str = "OPS", pid: int = 19) -> None:
    """Write one `results.db` as of October 2024; names keep the quotes that v1 puts around barriers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, device = ("Name", "dev-id") if table == "OPS" else ("KernelName", "gpu-id")
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            f'CREATE TABLE {table} ("BeginNs" INTEGER, "EndNs" INTEGER, "{device}" INTEGER, "{name}" TEXT, '
            '"pid" INTEGER, "tid" INTEGER, "grd" INTEGER, "wgr" INTEGER, "lds" INTEGER, "scr" INTEGER, '
            '"arch_vgpr" INTEGER, "sgpr" INTEGER)'
        )
        database.execute('CREATE TABLE COPY ("BeginNs" INTEGER, "EndNs" INTEGER, "Name" TEXT, "Data" TEXT)')
        database.execute("INSERT INTO COPY VALUES (20, 90, 'CopyHostToDevice', '')")
        now = 704_649_223_497_252
        for text, took in dispatches:
            stored = f'"{text}"' if text.startswith("<") or table != "OPS" else text
            row = (now, now + took, 0, stored, pid, 1, 4096, 256, 512, 0, 32, 112)
            database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
            now += took + 100
        database.commit()


V1_COLUMNS = (
    "Index,KernelName,gpu-id,queue-id,queue-index,pid,tid,grd,wgr,lds,scr,arch_vgpr,accum_vgpr,sgpr,wave_size,sig,obj,"
    "SQ_WAVES,DispatchNs,BeginNs,EndNs,CompleteNs"
)
V2_COLUMNS = (
    "Dispatch_ID,GPU_ID,Queue_ID,Queue_Index,PID,TID,GRD,WGR,LDS,SCR,Arch_VGPR,ACCUM_VGPR,SGPR,Wave_Size,SIG,OBJ,"
    "Kernel_Name,Start_Timestamp,End_Timestamp,Correlation_ID,SQ_WAVES"
)


def v1_csv(path: Path, dispatches: Dispatches, *, columns: str = V1_COLUMNS) -> None:
    """Write one `results.csv` with times (`--timestamp on`), or rocprofv2's."""
    lines, now = [columns], 8_819_330_200_067_564
    for number, (name, took) in enumerate(dispatches):
        known = {
            "index": number, "kernelname": f'"{name}"', "kernel_name": f'"{name}"', "gpu-id": 4, "gpu_id": 4, "pid": 19,
            "grd": 4096, "wgr": 256, "lds": 512, "scr": 0, "arch_vgpr": 32, "accum_vgpr": 4, "sgpr": 112,
            "beginns": now, "endns": now + took, "start_timestamp": now, "end_timestamp": now + took,
            "sq_waves": 100 + number, "sig": "0x0", "obj": "0x7f",
        }  # fmt: skip
        lines.append(",".join(str(known.get(column.lower(), number)) for column in columns.split(",")))
        now += took + 100
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


# -- rocprofv3's JSON


def v3_json(path: Path, dispatches: Dispatches, *, environment: Any = None, older: bool = False) -> None:
    """Write one `*_results.json`; `older` as of ROCm 6.2: one object instead of a list, symbols by number."""
    names = list(dict.fromkeys(name for name, _ in dispatches))
    symbols = [
        {"kernel_id": at, "kernel_name": symbol_of(name), "formatted_kernel_name": name, "arch_vgpr_count": 32}
        for at, name in enumerate(names, 1)
    ]
    now, records = 1000, []
    for number, (name, took) in enumerate(dispatches, 1):
        size = {"x": 1024 * (1 + number % 2), "y": 2, "z": 1}
        info = {
            "agent_id": {"handle": 77}, "queue_id": {"handle": 3}, "kernel_id": names.index(name) + 1,
            "dispatch_id": number, "workgroup_size": {"x": 256, "y": 1, "z": 1}, "grid_size": size,
            "group_segment_size": 512, "private_segment_size": 16,
        }  # fmt: skip
        records.append({"start_timestamp": now, "end_timestamp": now + took, "dispatch_info": info, "thread_id": 8})
        now += took + 100
    copy = {"kind": 1, "operation": 0, "start_timestamp": 5, "end_timestamp": 405, "bytes": 4096, "dst_agent_id": 77}
    call = {"kind": 0, "operation": 0, "start_timestamp": 5, "end_timestamp": 9000, "thread_id": 8}
    counted = {
        "dispatch_data": {"dispatch_info": records[0]["dispatch_info"] if records else {}},
        "records": [{"counter_id": {"handle": 5}, "value": 64.0}, {"counter_id": {"handle": 5}, "value": 6.0}],
    }
    tool = {
        "metadata": {"pid": 7, "environment": environment or {}, "command": ["./app"]},
        "agents": [{"id": {"handle": 76}, "type": 1}, {"id": {"handle": 77}, "type": 2, "name": "gfx942"}],
        "counters": [{"id": {"handle": 5}, "name": "SQ_WAVES"}],
        "strings": {
            "buffer_records": [
                {"kind": "HIP_RUNTIME_API", "operations": ["hipLaunchKernel"]},
                {"kind": "MEMORY_COPY", "operations": ["MEMORY_COPY_HOST_TO_DEVICE"]},
            ]
        },
        "kernel_symbols": {str(one["kernel_id"]): one for one in symbols} if older else symbols,
        "callback_records": {"counter_collection": [counted] if records else []},
        "buffer_records": {"kernel_dispatch": records, "memory_copy": [copy], "hip_api": [call]},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rocprofiler-sdk-tool": tool if older else [tool]}, indent=1))


# -- .rpd


def rpd(path: Path, dispatches: Dispatches) -> None:
    """Write one `.rpd` of schema 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    strings = [
        "",
        "KernelExecution",
        "CopyHostToDevice",
        "Barrier",
        "hipLaunchKernel",
        *dict.fromkeys(n for n, _ in dispatches),
    ]
    number = {text: at for at, text in enumerate(strings, 1)}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            CREATE TABLE rocpd_metadata (id INTEGER PRIMARY KEY, tag TEXT, value TEXT);
            CREATE TABLE rocpd_string (id INTEGER PRIMARY KEY, string TEXT);
            CREATE TABLE rocpd_op (id INTEGER PRIMARY KEY, gpuId INTEGER, queueId INTEGER, sequenceId INTEGER,
                start INTEGER, "end" INTEGER, description_id BIGINT, opType_id BIGINT);
            CREATE TABLE rocpd_api (id INTEGER PRIMARY KEY, pid INTEGER, tid INTEGER, start INTEGER, "end" INTEGER,
                apiName_id BIGINT, args_id BIGINT);
            CREATE TABLE rocpd_api_ops (id INTEGER PRIMARY KEY, api_id BIGINT, op_id BIGINT);
            CREATE TABLE rocpd_kernelapi (api_ptr_id BIGINT PRIMARY KEY, gridX INTEGER, gridY INTEGER, gridZ INTEGER,
                workgroupX INTEGER, workgroupY INTEGER, workgroupZ INTEGER, groupSegmentSize INTEGER,
                privateSegmentSize INTEGER, kernelName_id BIGINT);
            """
        )
        database.executemany("INSERT INTO rocpd_string VALUES (?, ?)", enumerate(strings, 1))
        insert = "INSERT INTO rocpd_op VALUES (?, 0, 1, 0, ?, ?, ?, ?)"
        database.execute(insert, (1, 20, 90, number[""], number["CopyHostToDevice"]))
        now = 1000
        for at, (name, took) in enumerate(dispatches, 2):
            is_barrier = name == "<barrier packet>"
            kind = number["Barrier" if is_barrier else "KernelExecution"]
            database.execute(insert, (at, now, now + took, number["" if is_barrier else name], kind))
            database.execute(
                "INSERT INTO rocpd_api VALUES (?, 7, 8, ?, ?, ?, 1)", (at, now, now, number["hipLaunchKernel"])
            )
            database.execute("INSERT INTO rocpd_api_ops VALUES (?, ?, ?)", (at, at, at))
            database.execute(
                "INSERT INTO rocpd_kernelapi VALUES (?, 4, 1, 1, 256, 1, 1, 512, 16, ?)", (at, number[name])
            )
            now += took + 100
        database.commit()
