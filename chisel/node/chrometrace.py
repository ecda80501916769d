"""Write spans as a Chrome trace (JSON, gzip), which Perfetto and chrome://tracing open.

rocprofv3's own JSON is none: Perfetto loads it with no slices. Standard library only, Python 3.10.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from .names import Demangler

Span = tuple[str, str, str, int, int]
"""Group (a GPU, a process), lane (a queue, a thread), name, start and end in ns."""

HEADER = '{"displayTimeUnit":"ns","traceEvents":[\n'
"""What chisel's own traces begin with: they are for viewers, never ranked."""

_LONGEST_NAME = 16_384
_CHUNK = 1 << 16
_MOST_LANES = 64


class Written(NamedTuple):
    """What a trace holds: spans, those of GPUs among them, and the longest of the kernel that was looked for, in ns."""

    spans: int
    dispatches: int
    start: int | None
    end: int | None


class Track(NamedTuple):
    """One droplet's spans; `first` is when its first span began: several tracks are laid side by side there."""

    name: str
    spans: Callable[[], Iterable[Span]]
    first: int


def write_trace(tracks: Iterable[Track], path: str, find: str | None = None) -> Written:
    """Write every span of every track; the file appears whole. A track's name stands before its groups' names.

    `find` is a kernel's name as it is ranked. Times stay those of the profiler for a single track; several begin at
    the same time, 0. Raises OSError.
    """
    listed = list(tracks)
    groups: dict[tuple[int, str], int] = {}
    lanes: dict[tuple[int, str, str], int] = {}
    writer = _Writer(find)
    with gzip.open(path + ".new", "wt", encoding="ascii", compresslevel=1) as out:
        out.write(HEADER)
        for index, track in enumerate(listed):
            shift = track.first if len(listed) > 1 else 0
            for group, lane, name, start, end in _laid_out(track.spans()):
                process = groups.setdefault((index, group), len(groups) + 1)
                thread = lanes.setdefault((index, group, lane), len(lanes) + 1)
                out.write(
                    writer.line(process, thread, name, start - shift, max(end - start, 0), group.startswith("GPU"))
                )
        for (index, group), process in groups.items():
            out.write(_label("process_name", process, 0, f"{listed[index].name} {group}".strip()) + ",\n")
            out.write(_sort_index(process, index, group) + ",\n")
        for (index, group, lane), thread in lanes.items():
            out.write(_label("thread_name", groups[index, group], thread, lane) + ",\n")
        out.write(_label("trace_writer", 0, 0, "chisel") + "\n]}\n")
    os.replace(path + ".new", path)
    return Written(writer.count, writer.dispatches, writer.start, writer.end)


def _laid_out(spans: Iterable[Span]) -> Iterator[Span]:
    """Give spans so that no two cross in a lane: a viewer drops those that begin within another and end behind it.

    What runs at the same time in one queue gets a lane of its own beside it; calls may lie within calls.
    """
    source = iter(spans)
    lanes: dict[tuple[str, str], list[list[int]]] = {}
    while chunk := list(islice(source, _CHUNK)):
        chunk.sort(key=lambda span: (span[3], -span[4]))
        for group, lane, name, start, end in chunk:
            ends = lanes.setdefault((group, lane), [])
            number = _lane(ends, start, max(start, end), may_nest=group.startswith("process"))
            yield group, lane if number == 0 else f"{lane} ({number + 1})", name, start, end


def _lane(lanes: list[list[int]], start: int, end: int, *, may_nest: bool) -> int:
    """Return the first lane in which a span fits, and note its end there; each lane holds the ends of open spans."""
    for number, open_ends in enumerate(lanes):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        if not open_ends or (may_nest and end <= open_ends[-1]):
            open_ends.append(end)
            return number
    if len(lanes) < _MOST_LANES:
        lanes.append([end])
    return len(lanes) - 1


class _Writer:
    """Write spans as lines, and keep the longest of one kernel."""

    def __init__(self, find: str | None) -> None:
        self.count = self.dispatches = 0
        self.start: int | None = None
        self.end: int | None = None
        self._longest = -1
        self._find = find
        self._names: dict[str, tuple[str, str]] = {}
        self._demangler = Demangler()

    def line(self, process: int, thread: int, name: str, start: int, took: int, is_dispatch: bool) -> str:
        """Return one span's line."""
        known = self._names.get(name)
        if known is None:
            shown = self._demangler.readable(name)[:_LONGEST_NAME] if is_dispatch else name[:_LONGEST_NAME]
            known = self._names[name] = (shown, json.dumps(shown))
            if len(self._names) > 1 << 16:
                self._names.clear()
        self.count += 1
        self.dispatches += is_dispatch
        if is_dispatch and took > self._longest and self._find is not None and _is(known[0], self._find):
            self._longest, self.start, self.end = took, start, start + took
        times = f'"ts":{_micro(start)},"dur":{_micro(took)}'
        return f'{{"ph":"X","pid":{process},"tid":{thread},{times},"name":{known[1]}}},\n'


def _is(name: str, wanted: str) -> bool:
    """Say whether a span is of the kernel that is ranked as `wanted`: there its symbol may stand behind its name."""
    return name == wanted or (wanted.startswith(name) and wanted[len(name) : len(name) + 2] == " [")


def first_start(spans: Iterable[Span]) -> int:
    """Return when the first of some spans began, 0 without any."""
    return min((start for _, _, _, start, _ in spans), default=0)


def _micro(ns: int) -> str:
    """Return nanoseconds as microseconds, exactly: as a float the last digits would go."""
    if ns < 0:
        return "-" + _micro(-ns)
    return f"{ns // 1000}.{ns % 1000:03d}"


def _label(kind: str, process: int, thread: int, name: str) -> str:
    return json.dumps({"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}})


def _sort_index(process: int, track: int, group: str) -> str:
    """Order groups by droplet, GPUs first."""
    order: Mapping[str, int] = {"GPU": 0, "mem": 1}
    index = track * 10 + order.get(group[:3], 2)
    return json.dumps(
        {"ph": "M", "pid": process, "tid": 0, "name": "process_sort_index", "args": {"sort_index": index}}
    )
