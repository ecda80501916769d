"""Write the CSV files of rocprofv3 as ROCm 7.0 does: the same columns, strings quoted, inner quotes not escaped.

The columns leave no room to say that this is a stand-in: `*_agent_info.csv` says it, and a note beside the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from .agents import COLUMNS, CPU, GPU
from .collection import Collected

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
    "Workgroup_Size_X",
    "Workgroup_Size_Y",
    "Workgroup_Size_Z",
    "Grid_Size_X",
    "Grid_Size_Y",
    "Grid_Size_Z",
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
API_TRACE = ["Domain", "Function", "Process_Id", "Thread_Id", "Correlation_Id", "Start_Timestamp", "End_Timestamp"]
STATS = ["Name", "Calls", "TotalDurationNs", "AverageNs", "Percentage", "MinNs", "MaxNs", "StdDev"]

Durations = Mapping[str, Sequence[int]]


def write_csv_files(prefix: str, found: Collected, *, traces: set[str], has_stats: bool) -> None:
    """Write `<prefix>_agent_info.csv` and one trace (and its statistics) for each domain asked for that has rows."""
    _write(f"{prefix}_agent_info.csv", COLUMNS, [[agent.get(name, 0) for name in COLUMNS] for agent in (CPU, GPU)])
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


def _kernels(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    by_name: dict[str, list[int]] = {}
    rows = _kernel_rows(found, by_name)
    return ("KERNEL_DISPATCH", by_name) if _write_some(f"{prefix}_kernel_trace.csv", KERNEL_TRACE, rows) else None


def _kernel_rows(found: Collected, by_name: dict[str, list[int]]) -> Iterable[list[Any]]:
    pid = found.process.pid
    for number, record in enumerate(found.records("k"), 1):
        launch = found.launches[record.what]
        name = found.kernels[launch["kernel"]]["display"]
        by_name.setdefault(name, []).append(record.end_ns - record.start_ns)
        ids = ["KERNEL_DISPATCH", "Agent 1", 1, 0, pid, number, launch["kernel"] + 1, name, record.correlation]
        yield [*ids, record.start_ns, record.end_ns, 0, 0, 12, 4, 32, *launch["block"], *launch["grid"]]


def _copies(prefix: str, found: Collected) -> tuple[str, Durations] | None:
    by_name: dict[str, list[int]] = {}
    rows = []
    for record in found.records("c"):
        direction, _ = record.what
        ends = ["Agent 0", "Agent 1"] if direction.endswith("TO_DEVICE") else ["Agent 1", "Agent 0"]
        by_name.setdefault(direction, []).append(record.end_ns - record.start_ns)
        rows.append(["MEMORY_COPY", direction, 0, *ends, record.correlation, record.start_ns, record.end_ns])
    wrote = _write_some(f"{prefix}_memory_copy_trace.csv", MEMORY_COPY_TRACE, rows)
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
