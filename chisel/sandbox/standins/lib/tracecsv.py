"""Write the CSV files of rocprofv3 as ROCm 7.0 does: the same columns, strings quoted, inner quotes not escaped.

When ROCm 6.4 is played the columns are those of 6.3 and 6.4: agents are numbers, there are no streams, sizes have other
names (rocprofiler-sdk, source/lib/rocprofiler-sdk-tool/generateCSV.cpp, October 2024; its documentation's examples).
The columns leave no room to say that this is a stand-in: `*_agent_info.csv` says it, and a note beside the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from .agents import COLUMNS, agents
from .collection import Collected, Dispatch
from .counters import Filter, counter_value
from .identity import GENERATION

_IS_OLD = GENERATION == "6.4"
_SIZES = ["Workgroup_Size_X", "Workgroup_Size_Y", "Workgroup_Size_Z", "Grid_Size_X", "Grid_Size_Y", "Grid_Size_Z"]
KERNEL_TRACE_6 = [
    "Kind",
    "Agent_Id",
    "Queue_Id",
    "Thread_Id",
    "Dispatch_Id",
    "Kernel_Id",
    "Kernel_Name",
    "Correlation_Id",
    "Start_Timestamp",
    "End_Timestamp",
    "Private_Segment_Size",
    "Group_Segment_Size",
    *_SIZES,
]
COUNTERS = [
    "Correlation_Id",
    "Dispatch_Id",
    "Agent_Id",
    "Queue_Id",
    "Process_Id",
    "Thread_Id",
    "Grid_Size",
    "Kernel_Id",
    "Kernel_Name",
    "Workgroup_Size",
    "LDS_Block_Size",
    "Scratch_Size",
    "VGPR_Count",
    "Accum_VGPR_Count",
    "SGPR_Count",
    "Counter_Name",
    "Counter_Value",
    "Start_Timestamp",
    "End_Timestamp",
]
KERNEL_TRACE = [
    "Kind",
    "Agent_Id",
    "Queue_Id",
    "Stream_Id",
    "Thread_Id",
    "Dispatch_Id",
    "Kernel_Id",
    "Kernel_Name",
    "Correlation_Id",
    "Start_Timestamp",
    "End_Timestamp",
    "LDS_Block_Size",
    "Scratch_Size",
    "VGPR_Count",
    "Accum_VGPR_Count",
    "SGPR_Count",
    *_SIZES,
]
MEMORY_COPY_TRACE = [
    "Kind",
    "Direction",
    "Stream_Id",
    "Source_Agent_Id",
    "Destination_Agent_Id",
    "Correlation_Id",
    "Start_Timestamp",
    "End_Timestamp",
]
MEMORY_COPY_TRACE_6 = [name for name in MEMORY_COPY_TRACE if name != "Stream_Id"]
API_TRACE = ["Domain", "Function", "Process_Id", "Thread_Id", "Correlation_Id", "Start_Timestamp", "End_Timestamp"]
STATS = ["Name", "Calls", "TotalDurationNs", "AverageNs", "Percentage", "MinNs", "MaxNs", "StdDev"]

Durations = Mapping[str, Sequence[int]]


def write_csv_files(
    prefix: str, found: Collected, *, traces: set[str], has_stats: bool, counters: Sequence[str], takes: Filter
) -> None:
    """Write `<prefix>_agent_info.csv` and one trace (and its statistics) for each domain asked for that has rows."""
    described = [[agent.get(name, 0) for name in COLUMNS] for agent in agents(found.gpus)]
    _write(f"{prefix}_agent_info.csv", COLUMNS, described)
    if counters:
        _write_some(f"{prefix}_counter_collection.csv", COUNTERS, _counter_rows(found, counters, takes))
    writers = {"kernel": _kernels, "memory_copy": _copies, "hip": _hip_calls, "hsa": _hsa_calls, "marker": _markers}
    domains: dict[str, list[int]] = {}
    for trace, writer in writers.items():
        if trace in traces:
            durations = writer(prefix, found)
            if durations:
                name, by_name = durations
                domains[name] = [ns for values in by_name.values() for ns in values]
                if has_stats:
                    _write_stats(f"{prefix}_{_STATS_FILES[trace]}_stats.csv", by_name)
    if has_stats and domains:
        _write_stats(f"{prefix}_domain_stats.csv", domains)


_STATS_FILES = {
    "kernel": "kernel",
    "memory_copy": "memory_copy",
    "hip": "hip_api",
    "hsa": "hsa_api",
    "marker": "marker_api",
}


def _agent(index: int) -> int | str:
    return index if _IS_OLD else f"Agent {index}"


def _kernels(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    by_name: dict[str, list[int]] = {}
    columns = KERNEL_TRACE_6 if _IS_OLD else KERNEL_TRACE
    rows = _kernel_rows(found, by_name)
    return ("KERNEL_DISPATCH", by_name) if _write_some(f"{prefix}_kernel_trace.csv", columns, rows) else None


def _kernel_rows(found: Collected, by_name: dict[str, list[int]]) -> Iterable[list[Any]]:
    pid = found.process.pid
    for one in found.dispatches():
        name = found.kernels[one.kernel]["display"]
        by_name.setdefault(name, []).append(one.end_ns - one.start_ns)
        stream = [] if _IS_OLD else [0]
        ids = ["KERNEL_DISPATCH", _agent(one.gpu + 1), one.gpu + 1, *stream, pid, one.number, one.kernel + 1, name]
        registers = [0, 0] if _IS_OLD else [0, 0, 12, 4, 32]
        yield [*ids, one.correlation, one.start_ns, one.end_ns, *registers, *one.block, *one.grid]


def _counter_rows(found: Collected, counters: Sequence[str], takes: Filter) -> Iterable[list[Any]]:
    pid = found.process.pid
    for one in found.dispatches():
        if takes.takes(found, one):
            for counter in counters:
                yield _counter_row(found, one, pid, counter)


def _counter_row(found: Collected, one: Dispatch, pid: int, counter: str) -> list[Any]:
    name = found.kernels[one.kernel]["display"]
    sizes = [math.prod(one.grid), one.kernel + 1, name, math.prod(one.block), 0, 0, 12, 4, 32]
    ids = [one.correlation, one.number, _agent(one.gpu + 1), one.gpu + 1, pid, pid]
    value = _Bare(f"{counter_value(counter, name, one):.6f}")
    return [*ids, *sizes, counter, value, one.start_ns, one.end_ns]


def _copies(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    by_name: dict[str, list[int]] = {}
    rows = []
    for record in found.records("c"):
        direction, _ = record.what
        ends = [_agent(0), _agent(1)] if direction.endswith("TO_DEVICE") else [_agent(1), _agent(0)]
        by_name.setdefault(direction, []).append(record.end_ns - record.start_ns)
        stream = [] if _IS_OLD else [0]
        rows.append(["MEMORY_COPY", direction, *stream, *ends, record.correlation, record.start_ns, record.end_ns])
    columns = MEMORY_COPY_TRACE_6 if _IS_OLD else MEMORY_COPY_TRACE
    wrote = _write_some(f"{prefix}_memory_copy_trace.csv", columns, rows)
    return ("MEMORY_COPY", by_name) if wrote else None


def _hip_calls(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    return _calls(prefix + "_hip_api_trace.csv", found, "a", "HIP_RUNTIME_API")


def _hsa_calls(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    return _calls(prefix + "_hsa_api_trace.csv", found, "h", "HSA_CORE_API")


def _markers(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    return _calls(prefix + "_marker_api_trace.csv", found, "m", "MARKER_CORE_RANGE_API")


def _calls(path: str, found: Collected, kind: str, domain: str) -> tuple[str, Durations] | None:
    by_name: dict[str, list[int]] = {}
    rows = _call_rows(found, kind, domain, by_name)
    return (domain, by_name) if _write_some(path, API_TRACE, rows) else None


def _call_rows(found: Collected, kind: str, domain: str, by_name: dict[str, list[int]]) -> Iterable[list[Any]]:
    pid = found.process.pid
    for record in found.records(kind):
        by_name.setdefault(record.what, []).append(record.end_ns - record.start_ns)
        yield [domain, record.what, pid, pid, record.correlation, record.start_ns, record.end_ns]


def _write_stats(path: str, by_name: Durations) -> None:
    total = sum(sum(values) for values in by_name.values()) or 1
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    _write(path, STATS, [_stats_row(name, values, total) for name, values in ranked])


def _stats_row(name: str, values: Sequence[int], total: int) -> list[Any]:
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
    share = _Bare(_percentage(100 * sum(values) / total))
    return [name, len(values), sum(values), _decimal(mean), share, min(values), max(values), _decimal(spread)]


class _Bare(str):
    """A number already in the writer's own form."""

    __slots__ = ()


def _decimal(value: float) -> _Bare:
    return _Bare(f"{value:.6f}" if value >= 1 else f"{value:.8e}")


def _percentage(value: float) -> str:
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}" if value >= 0.01 else f"{value:.3e}"


def _write_some(path: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bool:
    """Write a file if there is at least one row: the real writer makes no empty ones."""
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        return False
    with open(path, "w", encoding="utf-8") as file:
        _row(file, columns)
        _row(file, first)
        for row in iterator:
            _row(file, row)
    return True


def _write(path: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in (columns, *rows):
            _row(file, row)


def _row(file: TextIO, values: Sequence[Any]) -> None:
    file.write(",".join(f'"{v}"' if isinstance(v, str) and not isinstance(v, _Bare) else str(v) for v in values) + "\n")
