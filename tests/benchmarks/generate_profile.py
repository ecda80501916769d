"""Write large files as the profilers do, from a seed: rocpd, kernel_trace.csv, v1's results.json.

400 kernels whose names are a few hundred characters long, as templates make them; durations log-normal with a drift.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.profile.lookalike import V70

KERNELS = 400
_BATCH = 50_000
_SIZES = [f"{what}_Size_{axis}" for what in ("Workgroup", "Grid") for axis in "XYZ"]
_COLUMNS = [*V70, "Accum_VGPR_Count", "SGPR_Count", *_SIZES]
GUID = "_0000b0b6_5fa8_7fbd_9e18_d8f0b2d8e2b5"


def names(seed: int) -> list[str]:
    """Return kernel names of 200 to 480 characters, 350 on the average: 525 bytes a line, as real templates have."""
    draw = random.Random(seed)
    parts = [
        "float",
        "__half",
        "rocblas_gemm",
        "ck::tensor",
        "long",
        "(anonymous namespace)",
        "at::native",
        "Tile<128>",
    ]
    found = []
    for number in range(KERNELS):
        length = draw.randrange(200, 480)
        text = f"void kernel_{number}<"
        while len(text) < length:
            text += draw.choice(parts) + ", "
        found.append(text + f"{number}>(float const*, int)")
    return found


def dispatches(seed: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Give kernel, start, end and grid of each dispatch, in order of their starts."""
    draw = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(KERNELS)]
    now, base = 8_819_330_200_067_564, [draw.uniform(2_000, 200_000) for _ in range(KERNELS)]
    gauss, uniform = draw.gauss, draw.random
    done = 0
    while done < count:
        for kernel in draw.choices(range(KERNELS), weights, k=min(_BATCH, count - done)):
            took = int(base[kernel] * (1 + 0.1 * gauss(0, 1) + 0.05 * done / count)) + 100
            yield kernel, now, now + took, 1024 * (1 + int(3 * uniform()))
            now += took + 500
            done += 1


def write_csv(path: Path, count: int, seed: int) -> None:
    """Write a `kernel_trace.csv` of ROCm 7: about 525 bytes a line."""
    known = names(seed)
    with path.open("w") as out:
        out.write(",".join(f'"{name}"' for name in _COLUMNS) + "\n")
        for number, (kernel, start, end, grid) in enumerate(dispatches(seed, count), 1):
            out.write(
                f'"KERNEL_DISPATCH","Agent {4 + number % 2}",{1 + number % 4},0,2684120,{number},{kernel + 1},'
                f'"{known[kernel]}",{number},{start},{end},0,0,{8 * (kernel % 32)},0,128,256,1,1,{grid},1,1\n'
            )


def write_rocpd(path: Path, count: int, seed: int) -> None:
    """Write a rocpd database of schema 3, every column of the dispatches' table."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            f"""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE "rocpd_string{GUID}" (id INTEGER PRIMARY KEY, guid TEXT, string TEXT);
            CREATE TABLE "rocpd_info_process{GUID}" (id INTEGER PRIMARY KEY, guid TEXT, pid INTEGER, environment JSONB);
            CREATE TABLE "rocpd_info_agent{GUID}" (id INTEGER PRIMARY KEY, guid TEXT, type TEXT, type_index INTEGER,
                name TEXT);
            CREATE TABLE "rocpd_info_kernel_symbol{GUID}" (id INTEGER PRIMARY KEY, guid TEXT, kernel_name TEXT,
                display_name TEXT, sgpr_count INTEGER, arch_vgpr_count INTEGER, accum_vgpr_count INTEGER);
            CREATE TABLE "rocpd_kernel_dispatch{GUID}" (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
                guid TEXT DEFAULT 'x' NOT NULL, nid INTEGER, pid INTEGER, tid INTEGER, agent_id INTEGER,
                kernel_id INTEGER, dispatch_id INTEGER, queue_id INTEGER, stream_id INTEGER, start BIGINT, "end" BIGINT,
                private_segment_size INTEGER, group_segment_size INTEGER, workgroup_size_x INTEGER,
                workgroup_size_y INTEGER, workgroup_size_z INTEGER, grid_size_x INTEGER, grid_size_y INTEGER,
                grid_size_z INTEGER, region_name_id INTEGER, event_id INTEGER, extdata JSONB DEFAULT '{{}}');
            INSERT INTO "rocpd_info_process{GUID}" VALUES (1, 'x', 4242, '{{"PATH": "/bin"}}');
            INSERT INTO "rocpd_info_agent{GUID}" VALUES (4, 'x', 'GPU', 0, 'gfx942'), (5, 'x', 'GPU', 1, 'gfx942');
            """
        )
        for number, name in enumerate(names(seed), 1):
            database.execute(
                f'INSERT INTO "rocpd_info_kernel_symbol{GUID}" VALUES (?, ?, ?, ?, 112, 64, 0)',
                (number, GUID.strip("_"), f"_Z{number}x{number}.kd", name),
            )
        rows = (
            (
                number, GUID.strip("_").replace("_", "-"), 1, 1, 1, 4 + number % 2, kernel + 1, number, 1 + number % 4,
                0, start, end, 0, 512, 256, 1, 1, grid, 1, 1, 1, number, "{}",
            )
            for number, (kernel, start, end, grid) in enumerate(dispatches(seed, count), 1)
        )  # fmt: skip
        marks = ", ".join("?" * 23)
        database.executemany(f'INSERT INTO "rocpd_kernel_dispatch{GUID}" VALUES ({marks})', rows)
        database.commit()


def write_v1_json(path: Path, size_bytes: int, seed: int) -> None:
    """Write a `results.json` of rocprof v1: about half of its events are dispatches, the rest calls."""
    known, written, number = names(seed), 0, 0
    with path.open("w") as out:
        head = [
            f'{{"args":{{"name":"{label}"}},"ph":"M","pid":{pid},"name":"process_name","sort_index":0}}'
            for pid, label in ((2, "CPU HIP API"), (1, "COPY"), (6, "GPU0"), (518, "GPU Barriers0"))
        ]
        out.write('{ "traceEvents":[{}\n' + "".join(f",{line}\n" for line in head))
        for kernel, start, end, _ in dispatches(seed, size_bytes // 900):
            number += 1
            call = (
                f',{{"ph":"X","name":"hipLaunchKernel","pid":2,"tid":77,"ts":"{start // 1000}","dur":"4",\n'
                f'  "args":{{\n'
                f'    "BeginNs":"{start - 9000}",\n    "EndNs":"{start - 5000}",\n    "pid":"4242",\n    "tid":"77",\n'
                f'    "Name":"hipLaunchKernel",\n    "args":"( kernel({known[kernel][:40]}) stream(0))",\n'
                f'    "Data":"",\n    "DurationNs":"4000"\n  }}\n}}\n'
            )
            operation = (
                f',{{"ph":"X","name":"{known[kernel]}","pid":6,"tid":0,"ts":"{start // 1000}",'
                f'"dur":"{(end - start) // 1000}",\n'
                f'  "args":{{\n    "BeginNs":"{start}",\n    "EndNs":"{end}",\n    "dev-id":"0",\n    "queue-id":"0",\n'
                f'    "Name":"{known[kernel]}",\n    "pid":"4242",\n    "tid":"77",\n    "stream-id":"0",\n'
                f'    "Data":"",\n'
                f'    "DurationNs":"{end - start}"\n  }}\n}}\n'
            )
            out.write(call + operation)
            written += len(call) + len(operation)
            if written >= size_bytes:
                break
        out.write('],\n"otherData": {\n    "CU": "304"\n  }\n}')
