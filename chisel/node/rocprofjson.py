"""Read rocprofv3's own JSON (`*_results.json`), which is no Chrome trace.

Read off generateJSON.cpp and serialization.hpp of ROCm/rocprofiler-sdk (October 2024) and the documentation of 7.x:
`{"rocprofiler-sdk-tool": [{metadata, agents, counters, strings, kernel_symbols, callback_records, buffer_records}]}`.
The tool was one object in early releases, symbols are a list or an object, names may hold bytes that are no UTF-8.
The whole file is decoded at once. Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from .plainfile import opened
from .tally import FormatError, Kernel, Loads, Shape, Tally, direction_name

KEY = b'"rocprofiler-sdk-tool"'
LARGEST_BYTES = 4 << 30
_GPU_TYPE = 2
_CALLS = ("hip_api", "hsa_api", "marker_api", "rccl_api")


def read(path: str, tally: Tally, loads: Loads = json.loads) -> None:
    """Add everything of one file. Raises FormatError, OSError."""
    for tool in tools(path, loads):
        _Tool(tool).read(tally)


def tools(path: str, loads: Loads) -> list[dict[str, Any]]:
    """Return the processes of a file. Raises FormatError, OSError."""
    with opened(path) as source:
        data = source.read(LARGEST_BYTES + 1)
    name = os.path.basename(path)
    if len(data) > LARGEST_BYTES:
        raise FormatError(f"`{name}` is above 4 GB; rank the run's rocpd database or CSV files instead")
    try:
        whole = loads(data)
    except ValueError as first:
        try:  # names are what the program's symbols are: not always UTF-8
            whole = loads(data.decode("utf-8", "replace").encode())
        except ValueError:
            cut = "" if data.rstrip().endswith(b"}") else f": it is cut at byte {len(data)}"
            raise FormatError(f"`{name}` is no whole JSON{cut}: {str(first)[:200]}") from first
    found = whole.get("rocprofiler-sdk-tool") if isinstance(whole, dict) else None
    listed: list[Any] = found if isinstance(found, list) else [found]
    processes = [one for one in listed if isinstance(one, dict)]
    if len(processes) < len(listed):
        raise FormatError(f"`{name}` has no `rocprofiler-sdk-tool` as rocprofv3 writes it")
    return processes


def _objects(found: object) -> Iterator[dict[str, Any]]:
    """Give the objects of a list, or of an object's values."""
    values = list(found.values()) if isinstance(found, dict) else found
    for one in values if isinstance(values, list) else ():
        if isinstance(one, dict):
            yield one


def _object(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _handle(found: object) -> Any:
    """Return an id: `{"handle": 7}`, or 7."""
    return found.get("handle") if isinstance(found, dict) else found


def _volume(found: object) -> tuple[int, int, int] | None:
    if isinstance(found, dict) and all(type(found.get(axis)) is int for axis in "xyz"):
        return found["x"], found["y"], found["z"]
    return None


def _number(found: object) -> int | None:
    return found if type(found) is int else None


class _Tool:
    """One process of a file."""

    def __init__(self, tool: dict[str, Any]) -> None:
        self._tool = tool
        self._strings = _object(tool.get("strings"))
        self.records = _object(tool.get("buffer_records"))
        pid = _object(tool.get("metadata")).get("pid")
        self.process = f"process {pid}" if pid is not None else "process"
        self.symbols = {one.get("kernel_id"): one for one in _objects(tool.get("kernel_symbols"))}
        self.gpus = dict(self._named_agents())

    def _named_agents(self) -> Iterator[tuple[Any, str]]:
        number = 0
        for agent in _objects(self._tool.get("agents")):
            if agent.get("type") == _GPU_TYPE:
                index = agent.get("logical_node_type_id", number)
                yield (
                    _handle(agent.get("id")),
                    f"GPU {index} ({agent['name']})" if agent.get("name") else f"GPU {index}",
                )
                number += 1

    def kernel(self, id: object) -> Kernel:
        """Return the kernel of a number."""
        symbol = self.symbols.get(id, {})
        full = str(symbol.get("kernel_name") or "")
        shown = symbol.get("formatted_kernel_name") or symbol.get("demangled_kernel_name") or full
        return Kernel(str(shown), full) if shown else Kernel(f"kernel {id}", f"kernel {id} of {self.process}")

    def gpu(self, id: object) -> str:
        """Name a GPU by its agent's handle."""
        handle = _handle(id)
        return self.gpus.get(handle) or (f"GPU agent {handle}" if handle is not None else "")

    def read(self, tally: Tally) -> None:
        """Add dispatches, copies and counters."""
        dispatches = list(_objects(self.records.get("kernel_dispatch")))
        counted = list(_objects(_object(self._tool.get("callback_records")).get("counter_collection")))
        self._read_counters(counted, tally)
        if not dispatches:
            dispatches = [one["dispatch_data"] for one in counted if isinstance(one.get("dispatch_data"), dict)]
        bins: dict[tuple[Any, Any], tuple[Any, Any, dict[Any, int], Kernel]] = {}
        for record in dispatches:
            self._read_dispatch(record, bins, tally)
        for _, _, shapes, kernel in bins.values():
            for shape, count in shapes.items():
                tally.add_launches(kernel, self._shape(*shape), count)
        for record in _objects(self.records.get("memory_copy")):
            start, end = record.get("start_timestamp"), record.get("end_timestamp")
            if isinstance(start, int) and isinstance(end, int):
                tally.add_copies(direction_name(self.operation(record)), 1, end - start, _number(record.get("bytes")))

    def _read_dispatch(self, record: dict[str, Any], bins: dict[Any, Any], tally: Tally) -> None:
        info = record.get("dispatch_info")
        start, end = record.get("start_timestamp"), record.get("end_timestamp")
        if not isinstance(info, dict) or not isinstance(start, int) or not isinstance(end, int) or end == 0:
            return
        id, agent = info.get("kernel_id"), _handle(info.get("agent_id"))
        found = bins.get((id, agent))
        if found is None:
            kernel = self.kernel(id)
            series = tally.series_of(kernel, self.process, self.gpu(agent))
            counts: dict[Any, int] = {}
            found = bins[id, agent] = (series.starts.append, series.durations.append, counts, kernel)
        add_start, add_duration, shapes, _ = found
        add_start(start)
        add_duration(max(end - start, 0))
        shape: Any = (
            id, _volume(info.get("workgroup_size")), _volume(info.get("grid_size")),
            info.get("group_segment_size"), info.get("private_segment_size"),
        )  # fmt: skip
        shapes[shape] = shapes.get(shape, 0) + 1

    def _shape(
        self, id: object, workgroup: tuple[int, int, int] | None, grid: tuple[int, int, int] | None,
        lds: object, scratch: object,
    ) -> Shape:  # fmt: skip
        symbol = self.symbols.get(id, {})
        names = ("arch_vgpr_count", "accum_vgpr_count", "sgpr_count")
        vgprs, agprs, sgprs = (_number(symbol.get(name)) for name in names)
        return Shape(workgroup, grid, vgprs, agprs, sgprs, _number(lds), _number(scratch))

    def _read_counters(self, counted: list[dict[str, Any]], tally: Tally) -> None:
        names = {_handle(one.get("id")): str(one.get("name")) for one in _objects(self._tool.get("counters"))}
        for number, record in enumerate(counted):
            dispatch = record.get("dispatch_data")
            info = dispatch.get("dispatch_info") if isinstance(dispatch, dict) else None
            if not isinstance(info, dict):
                continue
            kernel = self.kernel(info.get("kernel_id"))
            place = info.get("dispatch_id")
            for one in _objects(record.get("records")):
                handle, value = _handle(one.get("counter_id")), one.get("value", one.get("counter_value"))
                if isinstance(value, (int, float)):
                    counter = names.get(handle, f"counter {handle}")
                    tally.add_counter(kernel, self.process, counter, place if isinstance(place, int) else number, value)

    def operation(self, record: dict[str, Any]) -> str:
        """Return what a record's operation is called."""
        kinds: Any = self._strings.get("buffer_records")
        kind, number = record.get("kind"), record.get("operation")
        try:
            return str(kinds[kind]["operations"][number])
        except (KeyError, IndexError, TypeError):
            return "copy" if "bytes" in record else f"operation {number}"

    def marker_texts(self) -> dict[Any, str]:
        """Return the texts of markers by correlation id."""
        found = self._strings.get("marker_api")
        if isinstance(found, dict):
            return {int(key): str(value) for key, value in found.items() if str(key).isdigit()}
        return {one.get("key"): str(one.get("value")) for one in _objects(found)}


# -- spans, for a trace viewer


def spans(path: str, loads: Loads = json.loads) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns of every dispatch, copy, call and marker."""
    for found in tools(path, loads):
        tool = _Tool(found)
        texts = tool.marker_texts()
        for record in _objects(tool.records.get("kernel_dispatch")):
            info = record.get("dispatch_info") or {}
            lane = f"queue {_handle(info.get('queue_id'))}"
            yield from _span(record, tool.gpu(info.get("agent_id")), lane, tool.kernel(info.get("kernel_id")).name)
        for record in _objects(tool.records.get("memory_copy")):
            to = tool.gpu(record.get("dst_agent_id"))
            yield from _span(record, "memory copies", f"to {to}", direction_name(tool.operation(record)))
        for kind in _CALLS:
            for record in _objects(tool.records.get(kind)):
                correlation = record.get("correlation_id")
                number = correlation.get("internal") if isinstance(correlation, dict) else correlation
                name = texts.get(number) or tool.operation(record)
                yield from _span(record, tool.process, f"thread {record.get('thread_id')}", name)


def _span(record: dict[str, Any], group: str, lane: str, name: str) -> Iterator[tuple[str, str, str, int, int]]:
    start, end = record.get("start_timestamp"), record.get("end_timestamp")
    if isinstance(start, int) and isinstance(end, int):
        yield group, lane, name, start, end
