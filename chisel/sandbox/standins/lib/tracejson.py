"""Write rocprofv3's JSON: `{"rocprofiler-sdk-tool": [{...}]}`, kinds and operations as numbers into tables of names.

The layout is that of ROCm/rocm-systems, projects/rocprofiler-sdk/source/lib/output/generateJSON.cpp and
include/rocprofiler-sdk/cxx/serialization.hpp (2024 and 2026). Since ROCm 7 the metadata holds the environment too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from .agents import agents
from .collection import Collected, Dispatch
from .counters import Filter, counter_value, description
from .identity import GENERATION, NOTICE, PROFILER_VERSION, ROCM_VERSION

_AGENT_BASE = 53061
_CPU, _GPU = 1, 2


class _Names:
    """Give names numbers, kind by kind, as `strings.buffer_records` holds them."""

    def __init__(self) -> None:
        self.kinds: list[dict[str, Any]] = [{"kind": "NONE", "operations": []}]

    def kind(self, name: str) -> int:
        for number, one in enumerate(self.kinds):
            if one["kind"] == name:
                return number
        self.kinds.append({"kind": name, "operations": []})
        return len(self.kinds) - 1

    def numbers(self, kind: str, operation: str) -> dict[str, int]:
        number = self.kind(kind)
        operations = self.kinds[number]["operations"]
        if operation not in operations:
            operations.append(operation)
        return {"kind": number, "operation": operations.index(operation)}


def write_json(path: str, found: Collected, traces: set[str], counters: Sequence[str], takes: Filter) -> None:
    """Write one process's file; records go out one by one, so that there may be many."""
    names = _Names()
    with open(path, "w", encoding="utf-8") as out:
        out.write('{"rocprofiler-sdk-tool": [{\n"metadata": ')
        json.dump(_metadata(found), out)
        for name, value in (
            ("agents", [_described(index, agent) for index, agent in enumerate(agents(found.gpus))]),
            ("counters", [_counter(number, name) for number, name in enumerate(counters, 1)]),
            ("code_objects", [{"size": 96, "code_object_id": 1, "uri": f"stand-in://{found.process.pid}"}]),
            ("kernel_symbols", [{"kernel_id": 0}, *(_symbol(n, one) for n, one in enumerate(found.kernels, 1))]),
            ("host_functions", []),
            ("summary", []),
        ):
            out.write(f',\n"{name}": ')
            json.dump(value, out)
        out.write(',\n"callback_records": {"counter_collection": [')
        if counters:
            _write_all(out, _counted(found, counters, takes))
        out.write(']},\n"buffer_records": {')
        _write_buffers(out, found, traces, names)
        out.write('},\n"strings": ')
        markers = [{"key": n, "value": record.what} for n, record in enumerate(found.records("m"))]
        texts = {"callback_records": [], "buffer_records": names.kinds, "marker_api": markers}
        json.dump({**texts, "correlation_id": {"external": []}, "counters": {"dimension_ids": []}}, out)
        out.write("\n}]}\n")


def write_config(path: str, found: Collected) -> None:
    """Write what `--output-config` asks for: the metadata alone."""
    with open(path, "w", encoding="utf-8") as out:
        json.dump({"rocprofiler-sdk-tool": [{"metadata": _metadata(found)}]}, out)


def _metadata(found: Collected) -> dict[str, Any]:
    process = found.process
    metadata: dict[str, Any] = {
        "stand-in": NOTICE,
        "pid": process.pid,
        "init_time": process.start_ns,
        "fini_time": process.end_ns,
        "command": process.command,
        "config": {"stand-in": NOTICE, "kernel_filter_include": ".*", "demangle": True},
    }
    if GENERATION == "7.2":
        metadata["build_spec"] = {"version": PROFILER_VERSION, "rocm": ROCM_VERSION}
        metadata["environment"] = process.environment
    return metadata


def _handle(value: int) -> dict[str, int]:
    return {"handle": value}


def _agent(index: int) -> dict[str, int]:
    return _handle(_AGENT_BASE + index)


def _described(index: int, agent: dict[str, Any]) -> dict[str, Any]:
    kind = _CPU if agent["Agent_Type"] == "CPU" else _GPU
    facts = {name.lower(): value for name, value in agent.items() if name != "Agent_Type"}
    return {"size": 304, "id": _agent(index), "type": kind, **facts, "node_id": index, "logical_node_id": index}


def _counter(number: int, name: str) -> dict[str, Any]:
    about = {"name": name, "description": description(name), "block": "SQ", "expression": ""}
    return {"id": _handle(number), "agent_id": _agent(1), "is_constant": 0, "is_derived": 0, **about}


def _symbol(number: int, kernel: dict[str, Any]) -> dict[str, Any]:
    return {
        "size": 80, "kernel_id": number, "code_object_id": 1, "kernel_name": kernel["symbol"] + ".kd",
        "kernel_object": 0, "kernarg_segment_size": 32 + 8 * kernel["pointers"], "kernarg_segment_alignment": 16,
        "group_segment_size": 0, "private_segment_size": 0, "sgpr_count": 32, "arch_vgpr_count": 12,
        "accum_vgpr_count": 4, "formatted_kernel_name": kernel["display"], "demangled_kernel_name": kernel["display"],
        "truncated_kernel_name": kernel["name"],
    }  # fmt: skip


def _info(one: Dispatch) -> dict[str, Any]:
    return {
        "size": 88, "agent_id": _agent(one.gpu + 1), "queue_id": _handle(one.gpu + 1), "kernel_id": one.kernel + 1,
        "dispatch_id": one.number, "private_segment_size": 0, "group_segment_size": 0,
        "workgroup_size": dict(zip("xyz", one.block, strict=True)),
        "grid_size": dict(zip("xyz", one.grid, strict=True)),
    }  # fmt: skip


def _span(correlation: int, start_ns: int, end_ns: int, pid: int) -> dict[str, Any]:
    ids = {"correlation_id": {"internal": correlation, "external": 0}}
    return {**ids, "start_timestamp": start_ns, "end_timestamp": end_ns, "thread_id": pid}


def _counted(found: Collected, counters: Sequence[str], takes: Filter) -> Iterator[dict[str, Any]]:
    pid = found.process.pid
    for one in found.dispatches():
        if takes.takes(found, one):
            kernel = found.kernels[one.kernel]["display"]
            records = [
                {"counter_id": _handle(number), "value": counter_value(name, kernel, one)}
                for number, name in enumerate(counters, 1)
            ]
            span = _span(one.correlation, one.start_ns, one.end_ns, pid)
            yield {
                "thread_id": pid, "dispatch_data": {"size": 128, **span, "dispatch_info": _info(one)},
                "records": records, "arch_vgpr_count": 12, "sgpr_count": 32, "lds_block_size_v": 0,
            }  # fmt: skip


def _write_buffers(out: TextIO, found: Collected, traces: set[str], names: _Names) -> None:
    streams = {
        "kernel_dispatch": _dispatches(found, names) if "kernel" in traces else iter(()),
        "hip_api": _calls(found, names, "a", "HIP_RUNTIME_API") if "hip" in traces else iter(()),
        "hsa_api": _calls(found, names, "h", "HSA_CORE_API") if "hsa" in traces else iter(()),
        "marker_api": _markers(found, names) if "marker" in traces else iter(()),
        "memory_copy": _copies(found, names) if "memory_copy" in traces else iter(()),
    }
    for number, (name, records) in enumerate(streams.items()):
        out.write(f'{"," if number else ""}\n"{name}": [')
        _write_all(out, records)
        out.write("]")
    for name in ("rccl_api", "memory_allocation", "scratch_memory"):
        out.write(f',\n"{name}": []')


def _write_all(out: TextIO, records: Iterator[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        out.write(",\n" if number else "\n")
        json.dump(record, out)


def _dispatches(found: Collected, names: _Names) -> Iterator[dict[str, Any]]:
    for one in found.dispatches():
        kind = names.numbers("KERNEL_DISPATCH", "KERNEL_DISPATCH_COMPLETE")
        span = _span(one.correlation, one.start_ns, one.end_ns, found.process.pid)
        stream = {"stream_id": _handle(0)} if GENERATION == "7.2" else {}
        yield {"size": 152, **kind, **span, "dispatch_info": _info(one), **stream}


def _calls(found: Collected, names: _Names, kind: str, domain: str) -> Iterator[dict[str, Any]]:
    for record in found.records(kind):
        span = _span(record.correlation, record.start_ns, record.end_ns, found.process.pid)
        yield {"size": 56, **names.numbers(domain, record.what), **span}


def _markers(found: Collected, names: _Names) -> Iterator[dict[str, Any]]:
    """Give the markers; their texts stand in `strings.marker_api`, by correlation id."""
    for number, record in enumerate(found.records("m")):
        span = _span(number, record.start_ns, record.end_ns, found.process.pid)
        yield {"size": 56, **names.numbers("MARKER_CORE_API", "roctxRangePushA"), **span}


def _copies(found: Collected, names: _Names) -> Iterator[dict[str, Any]]:
    for record in found.records("c"):
        direction, size = record.what
        target, source = (1, 0) if direction.endswith("TO_DEVICE") else (0, 1)
        ends = {"dst_agent_id": _agent(target), "src_agent_id": _agent(source), "bytes": size}
        span = _span(record.correlation, record.start_ns, record.end_ns, found.process.pid)
        yield {"size": 88, **names.numbers("MEMORY_COPY", direction), **span, **ends}
