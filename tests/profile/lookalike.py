"""Write files as the profilers do: the same columns and tables, with dispatches of the test's own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

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
) -> None:
    """Write one rocpd database, schema 3; `symbols` are (kernel_name, display_name), else made from the dispatches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = list(symbols) or [
        (f"_Z{number}", name) for number, name in enumerate(dict.fromkeys(n for n, _ in dispatches))
    ]
    shown = {display: number for number, (_, display) in enumerate(known, 1)}
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            f"""
            CREATE TABLE "rocpd_string{guid}" (id INTEGER, guid TEXT, string TEXT);
            CREATE TABLE "rocpd_info_process{guid}" (id INTEGER, guid TEXT, pid INTEGER, command TEXT,
                environment JSONB);
            CREATE TABLE "rocpd_info_kernel_symbol{guid}" (id INTEGER, guid TEXT, kernel_name TEXT, display_name TEXT);
            CREATE TABLE "rocpd_kernel_dispatch{guid}" (id INTEGER, guid TEXT, pid INTEGER, agent_id INTEGER,
                kernel_id INTEGER, queue_id INTEGER, start BIGINT, "end" BIGINT, extra_of_a_newer_schema TEXT);
            CREATE TABLE "rocpd_memory_copy{guid}" (id INTEGER, name_id INTEGER, dst_agent_id INTEGER, start BIGINT,
                "end" BIGINT);
            CREATE TABLE "rocpd_region{guid}" (id INTEGER, name_id INTEGER, pid INTEGER, tid INTEGER, start BIGINT,
                "end" BIGINT);
            CREATE VIEW rocpd_kernel_dispatch AS SELECT * FROM "rocpd_kernel_dispatch{guid}";
            INSERT INTO "rocpd_string{guid}" VALUES (1, 'x', 'hipLaunchKernel'), (2, 'x', 'MEMORY_COPY_HOST_TO_DEVICE');
            INSERT INTO "rocpd_memory_copy{guid}" VALUES (1, 2, 1, 500, 900);
            INSERT INTO "rocpd_region{guid}" VALUES (1, 1, 7, 8, 100, 1400);
            """
        )
        stored = json.dumps(dict(environment or {"PATH": "/bin"}))
        database.execute(f'INSERT INTO "rocpd_info_process{guid}" VALUES (1, ?, 7, ?, ?)', ("x", "./app", stored))
        for number, (name, display) in enumerate(known, 1):
            database.execute(
                f'INSERT INTO "rocpd_info_kernel_symbol{guid}" VALUES (?, ?, ?, ?)', (number, "x", name, display)
            )
        now = 1000
        for number, (name, took) in enumerate(dispatches, 1):
            row = (number, "x", 7, 1, shown.get(name, 0), 2, now, now + took, "")
            database.execute(f'INSERT INTO "rocpd_kernel_dispatch{guid}" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)', row)
            now += took + 100
        database.commit()
