"""Write spans as a Chrome trace (JSON, gzip), which Perfetto and chrome://tracing open.

rocprofv3's own JSON is none: Perfetto loads it with no slices. Standard library only, Python 3.10.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable

Span = tuple[str, str, str, int, int]


def write_trace(spans: Iterable[Span], path: str) -> int:
    """Write group, lane, name, start and end (ns) of every span; return how many. The file appears whole."""
    groups: dict[str, int] = {}
    lanes: dict[tuple[str, str], int] = {}
    count = 0
    with gzip.open(path + ".new", "wt", encoding="ascii", compresslevel=1) as out:
        out.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        for group, lane, name, start, end in spans:
            process = groups.setdefault(group, len(groups) + 1)
            thread = lanes.setdefault((group, lane), len(lanes) + 1)
            took = max(end - start, 0)
            out.write(
                f'{{"ph":"X","pid":{process},"tid":{thread},"ts":{_micro(start)},"dur":{_micro(took)},'
                f'"name":{json.dumps(name)}}},\n'
            )
            count += 1
        for group, process in groups.items():
            out.write(_label("process_name", process, 0, group) + ",\n")
        labels = [_label("thread_name", groups[group], thread, lane) for (group, lane), thread in lanes.items()]
        out.write(",\n".join([*labels, _label("trace_writer", 0, 0, "chisel")]))
        out.write("\n]}\n")
    os.replace(path + ".new", path)
    return count


def _micro(ns: int) -> str:
    """Return nanoseconds as microseconds, exactly: as a float the last digits would go."""
    return f"{ns // 1000}.{ns % 1000:03d}"


def _label(kind: str, process: int, thread: int, name: str) -> str:
    return json.dumps({"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}})
