"""Play the `rocpd` tool: convert databases to Perfetto traces and CSV, from what the databases hold.

Options and names are those of ROCm/rocm-systems, projects/rocprofiler-sdk/source/lib/python/rocpd (`__main__.py`,
`output_config.py`, `csv.py`; 2026). The CSV has the columns that differ from rocprofv3's own: `Guid` first, `Duration`.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from .identity import MARK, NOTICE, PROFILER_VERSION, ROCM_VERSION, leave_note, note, say
from .perfetto import PerfettoWriter, Slice

_KERNEL_COLUMNS = (
    "Guid", "Kind", "Agent_Id", "Queue_Id", "Stream_Id", "Thread_Id", "Dispatch_Id", "Kernel_Id", "Kernel_Name",
    "Correlation_Id", "Start_Timestamp", "End_Timestamp", "Duration", "Lds_Block_Size", "Scratch_Size", "Vgpr_Count",
    "Accum_Vgpr_Count", "Sgpr_Count", "Workgroup_Size_X", "Workgroup_Size_Y", "Workgroup_Size_Z", "Grid_Size_X",
    "Grid_Size_Y", "Grid_Size_Z",
)  # fmt: skip
_KERNEL_QUERY = """
    SELECT D.guid, 'KERNEL_DISPATCH', 'Agent ' || D.agent_id, D.queue_id, D.stream_id, D.tid, D.dispatch_id,
        D.kernel_id, S.display_name, E.stack_id, D.start, D."end", D."end" - D.start, D.group_segment_size,
        D.private_segment_size, S.arch_vgpr_count, S.accum_vgpr_count, S.sgpr_count, D.workgroup_size_x,
        D.workgroup_size_y, D.workgroup_size_z, D.grid_size_x, D.grid_size_y, D.grid_size_z
    FROM rocpd_kernel_dispatch D JOIN rocpd_info_kernel_symbol S ON (S.guid, S.id) = (D.guid, D.kernel_id)
        LEFT JOIN rocpd_event E ON (E.guid, E.id) = (D.guid, D.event_id)
    ORDER BY D.guid, D.start
"""
_COPY_COLUMNS = (
    "Guid", "Kind", "Direction", "Stream_Id", "Source_Agent_Id", "Destination_Agent_Id", "Correlation_Id",
    "Start_Timestamp", "End_Timestamp",
)  # fmt: skip
_COPY_QUERY = """
    SELECT C.guid, 'MEMORY_COPY', N.string, C.stream_id, 'Agent ' || C.src_agent_id, 'Agent ' || C.dst_agent_id,
        E.stack_id, C.start, C."end"
    FROM rocpd_memory_copy C JOIN rocpd_string N ON (N.guid, N.id) = (C.guid, C.name_id)
        LEFT JOIN rocpd_event E ON (E.guid, E.id) = (C.guid, C.event_id)
    ORDER BY C.guid, C.start
"""


def main(argv: Sequence[str]) -> int:
    """Convert as asked; 0, 1 for a database that cannot be read, 2 for a wrong command line."""
    parser = _parser()
    options = parser.parse_args(list(argv[1:]))
    if options.version:
        for name, value in (("version", PROFILER_VERSION), ("git_revision", NOTICE), ("rocm_version", ROCM_VERSION)):
            say(f"    {name:>16}: {value}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    note("rocpd", NOTICE)
    try:
        for format in options.output_format:
            say(f"Converting database(s) to {format} format: {MARK}")
            _convert(format, options)
    except (sqlite3.Error, OSError) as error:
        sys.stderr.write(f"rocpd: cannot convert: {error} {MARK}\n")
        return 1
    say(f"Done. Exiting... {MARK}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rocpd", description=f"Convert profiles: {NOTICE}.", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="store_true", help="print versions")
    verbs = parser.add_subparsers(dest="command")
    convert = verbs.add_parser("convert", allow_abbrev=False, description=NOTICE)
    convert.add_argument("-i", "--input", required=True, nargs="+", type=_existing)
    convert.add_argument(
        "-f", "--output-format", required=True, nargs="+", choices=("csv", "pftrace", "otf2"), type=_format
    )
    convert.add_argument("-o", "--output-file", default=os.environ.get("ROCPD_OUTPUT_NAME", "out"))
    convert.add_argument("-d", "--output-path", default=os.environ.get("ROCPD_OUTPUT_PATH", "./rocpd-output-data"))
    convert.add_argument("--kernel-rename", action="store_true")
    convert.add_argument("--agent-index-value", choices=("absolute", "relative", "type-relative"), default="relative")
    return parser


def _existing(path: str) -> str:
    if not os.path.exists(path):
        raise argparse.ArgumentTypeError(f"File '{path}' does not exist.")
    return path


def _format(text: str) -> str:
    return text.lower().replace("perfetto", "pftrace")


def _convert(format: str, options: argparse.Namespace) -> None:
    os.makedirs(options.output_path, exist_ok=True)
    leave_note(options.output_path, "rocpd convert")
    prefix = os.path.join(options.output_path, options.output_file)
    if format == "otf2":
        raise OSError("the stand-in writes no otf2")
    if format == "pftrace":
        _write_pftrace(f"{prefix}_results.pftrace", options.input)
        return
    _write_csv(f"{prefix}_kernel_trace.csv", _KERNEL_COLUMNS, _rows(options.input, _KERNEL_QUERY))
    _write_csv(f"{prefix}_memory_copy_trace.csv", _COPY_COLUMNS, _rows(options.input, _COPY_QUERY))


def _rows(paths: Sequence[str], query: str) -> Iterator[tuple[Any, ...]]:
    for path in paths:
        with closing(_open(path)) as database:
            yield from database.execute(query)


def _open(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{os.path.abspath(path)}?mode=ro", uri=True)


def _write_csv(path: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    first = next(rows, None)
    if first is None:
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(f'"{name}"' for name in columns) + "\n")
        for row in (first, *rows):
            file.write(",".join(_quoted(value) for value in row) + "\n")


def _quoted(value: Any) -> str:
    return '"' + value.replace('"', '""') + '"' if isinstance(value, str) else "" if value is None else str(value)


def _write_pftrace(path: str, databases: Sequence[str]) -> None:
    with open(path, "wb") as file:
        writer = PerfettoWriter(file)
        for path in databases:
            with closing(_open(path)) as database:
                _write_processes(writer, database)


def _write_processes(writer: PerfettoWriter, database: sqlite3.Connection) -> None:
    for guid, pid, command in database.execute("SELECT guid, pid, command FROM rocpd_info_process").fetchall():
        process = writer.process(pid, f"{command} ({NOTICE})")
        lanes = database.execute(
            "SELECT DISTINCT agent_id, queue_id FROM rocpd_kernel_dispatch WHERE guid = ?", (guid,)
        )
        for agent, queue in lanes.fetchall():
            track = writer.track(process, f"COMPUTE AGENT [{agent}] QUEUE [{queue}]")
            writer.slices(track, "kernel_dispatch", _kernels(database, guid, agent, queue))
        for table, category, name in (("memory_copy", "memory_copy", "COPY"), ("region", "region", "THREAD REGIONS")):
            for domain in _categories(database, table, guid):
                track = writer.track(process, f"{name} {domain}")
                writer.slices(track, category, _named(database, table, guid, domain))


def _kernels(database: sqlite3.Connection, guid: str, agent: int, queue: int) -> Iterator[Slice]:
    yield from database.execute(
        'SELECT S.display_name, D.start, D."end" FROM rocpd_kernel_dispatch D JOIN rocpd_info_kernel_symbol S '
        "ON (S.guid, S.id) = (D.guid, D.kernel_id) WHERE (D.guid, D.agent_id, D.queue_id) = (?, ?, ?) ORDER BY D.start",
        (guid, agent, queue),
    )


_OF_EVENT = (
    " FROM rocpd_{table} T JOIN rocpd_event E ON (E.guid, E.id) = (T.guid, T.event_id)"
    " JOIN rocpd_string C ON (C.guid, C.id) = (E.guid, E.category_id)"
)


def _categories(database: sqlite3.Connection, table: str, guid: str) -> list[str]:
    query = "SELECT DISTINCT C.string" + _OF_EVENT.format(table=table) + " WHERE T.guid = ?"
    return [text for (text,) in database.execute(query, (guid,))]


def _named(database: sqlite3.Connection, table: str, guid: str, category: str) -> Iterator[Slice]:
    joined = _OF_EVENT.format(table=table) + " JOIN rocpd_string N ON (N.guid, N.id) = (T.guid, T.name_id)"
    query = f'SELECT N.string, T.start, T."end"{joined} WHERE (T.guid, C.string) = (?, ?) ORDER BY T.start'
    yield from database.execute(query, (guid, category))
