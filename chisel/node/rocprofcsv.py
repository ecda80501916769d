"""Read the CSV files of rocprofv3, rocprofv2 and rocprof v1, which are not quite CSV.

Names hold commas, are quoted or not, and quotes inside them are not escaped: a line is cut from both ends, where the
numbers are, and what remains is the name. Columns are found by name, whatever their case and order, because every
release has added some (6.2, 6.3, 7.0, `rocpd convert`). Line ends may be CRLF, a BOM may stand first.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Sequence

from . import columns, halves
from .columns import Layout
from .plainfile import count_lines, lines_between, offset_of, opened, size_of
from .statistics import LONGEST_SHORT_NS, Series
from .tally import FormatError, Kernel, Sums, Tally, cut_note, direction_name

_LONGEST_HEADER = 1 << 16
_BOM = b"\xef\xbb\xbf"


def read_layout(path: str) -> tuple[Layout, int]:
    """Return the columns of a file and where its rows begin. Raises FormatError, OSError."""
    with opened(path) as source:
        header = source.readline(_LONGEST_HEADER)
    text = header.removeprefix(_BOM)
    if not text.strip():
        raise FormatError(f"`{os.path.basename(path)}` is empty")
    return Layout(text, os.path.basename(path)), len(header)


# -- dispatches


class _Bin:
    """The dispatches of one kernel in one place; `shapes` counts the rest of the lines, which says the launch."""

    __slots__ = ("add_duration", "add_start", "series", "shapes")

    def __init__(self) -> None:
        self.series = Series(durations=array("I"))  # half the memory: few last above 4 s
        self.add_start = self.series.starts.append
        self.add_duration = self.series.durations.append
        self.shapes: dict[bytes, int] = {}

    def add(self, began: int, took: int) -> None:
        """Add one dispatch, however long it took."""
        if not 0 <= took <= LONGEST_SHORT_NS and self.series.durations.typecode == "I":
            self.series.widen()
            self.add_duration = self.series.durations.append
        self.add_start(began)
        self.add_duration(max(took, 0))


class _Trace:
    """Read the lines of a trace; a bin for each kernel (as it is written) in each place (process and GPU)."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.start, self.end = layout.place(*columns.START), layout.place(*columns.END)
        self.bins: dict[tuple[bytes, bytes], _Bin] = {}
        self.damaged: list[bytes] = []
        self._known: dict[tuple[bytes, bytes, bytes], tuple[bytes, int, _Bin]] = {}
        self._is_quoted = False
        self._where = [layout.place(*names) for names in columns.WHERE if layout.has(*names)]
        self._shape = layout.shape_places()

    def take(self, lines: Sequence[bytes]) -> None:
        """Take in whole lines."""
        if self.layout.is_plain and len(self._where) <= 2 and all(place[0] for place in self._where):
            self._take_plain(lines)
        else:
            for line in lines:
                self._take_one(line)

    def _take_plain(self, lines: Sequence[bytes]) -> None:
        """Take lines as rocprofv3 writes them: what precedes the name cut at commas, the name recognised by its id.

        A name is 400 bytes and more; comparing it with the one its id had before is cheaper than to cut it out.
        """
        before, identity = self.layout.before, self.layout.at("kernel_id")
        agent, process = ([place[1] for place in self._where] + [identity] * 2)[:2]
        width, first, known = self.end[1] + 1, self.start[1], self._known
        edge = 1 if self._is_quoted else 0
        for line in lines:
            head = line.split(b",", before)
            try:
                rest = head[before]
                text, length, bin = known[head[identity], head[agent], head[process]]
                if not rest.startswith(text):
                    raise KeyError(text)
                tail = rest[length:].split(b",", width)
                if edge:
                    began = int(tail[first][1:-1])
                    took = int(tail[first + 1][1:-1]) - began
                else:
                    began = int(tail[first])
                    took = int(tail[first + 1]) - began
                if not 0 <= took <= LONGEST_SHORT_NS:
                    raise OverflowError
                bin.shapes[tail[width]] += 1
            except (KeyError, IndexError, ValueError, OverflowError):
                found = self._take_one(line)
                if found:
                    text = found[0] + b","
                    known[head[identity], head[agent], head[process]] = (text, len(text), found[1])
                continue
            bin.add_start(began)
            bin.add_duration(took)

    def _take_one(self, line: bytes) -> tuple[bytes, _Bin] | None:
        """Take one line, cut from both ends; return its name as it is written and its bin, None for no whole line."""
        fields = self.layout.cut(line)
        if fields is None:
            if line.strip():
                self.damaged.append(line)
            return None
        try:
            began, ended = fields.number(self.start), fields.number(self.end)
        except ValueError:
            self.damaged.append(line)
            return None
        self._is_quoted = fields.raw(self.start).startswith(b'"')
        where = b",".join([fields.raw(place) for place in self._where])
        bin = self.bins.get((fields.text, where))
        if bin is None:
            bin = self.bins[fields.text, where] = _Bin()
        bin.add(began, ended - began)
        rest = fields.after_end(self.end) if self.layout.is_plain else fields.joined(self._shape)
        bin.shapes[rest] = bin.shapes.get(rest, 0) + 1
        if len(bin.shapes) > columns.MOST_SHAPES:
            bin.shapes.clear()  # hardly a shape: a column that differs in every line
        return fields.text, bin

    def put_into(self, tally: Tally, default_process: str) -> None:
        """Add everything that was read to a tally."""
        has_guid, has_process = (self.layout.has(*names) for names in columns.WHERE[:2])
        for (text, where), bin in self.bins.items():
            kernel = Kernel(name_of(text))
            parts = [columns.unquoted(part).decode("utf-8", "replace") for part in where.split(b",")]
            guid = parts.pop(0) if has_guid else ""
            process = f"process {parts.pop(0)}" if has_process else f"process {guid}" if guid else default_process
            gpu = columns.gpu_name(parts[0]) if parts and parts[0] else ""
            tally.add_series(kernel, process, gpu, bin.series)
            for rest, count in bin.shapes.items():
                tally.add_launches(kernel, self.layout.shape(rest), count)


def read_trace(path: str, tally: Tally) -> None:
    """Add every dispatch of a trace: rocprofv3's, rocprofv2's, `rocpd convert`'s, or v1's with times.

    Raises FormatError, OSError.
    """
    layout, begin = read_layout(path)
    layout.place("kernel_name", "kernelname")
    process = process_of(path)

    def part(start: int, end: int | None, into: Tally) -> list[int]:
        trace, damaged = _Trace(layout), []
        for offset, block in lines_between(path, start, end):
            lines = block.split(b"\n")
            trace.take(lines)
            damaged += [offset + offset_of(block, line) for line in trace.damaged]
            trace.damaged.clear()
        trace.put_into(into, process)
        return damaged

    _Trace(layout)  # says now which column is missing
    damaged = _in_halves(path, begin, part, tally)
    tally.notes += cut_note(path, (count_lines(path, offset) + 1 for offset in damaged))
    read_wide_counters(path, layout, begin, tally)


def _in_halves(path: str, begin: int, part: columns.RangePart, tally: Tally) -> list[int]:
    """Call a part for the whole file, or for each half of a large one; return where lines were damaged."""
    size = size_of(path)
    if size is None or size < halves.SMALLEST:
        return part(begin, None, tally)
    middle = columns.next_line(path, (begin + size) // 2)
    damaged: list[int] = []

    def half(index: int, into: Tally) -> None:
        found = part(begin, middle, into) if index == 0 else part(middle, None, into)
        into.marks += found

    halves.read_halves(half, tally)
    damaged, tally.marks = tally.marks, []
    return damaged


# -- sums


def read_stats(path: str, tally: Tally) -> None:
    """Add the sums of a `*_stats.csv` (rocprofv3 or v1). Raises FormatError, OSError."""
    layout, begin = read_layout(path)
    calls, total = layout.place("calls", "totalcalls"), layout.place("totaldurationns")
    least = layout.place("minns") if layout.has("minns") else None
    most = layout.place("maxns") if layout.has("maxns") else None
    damaged = []
    for offset, block in lines_between(path, begin, None):
        for line in block.split(b"\n"):
            if not line.strip():
                continue
            fields = layout.cut(line)
            try:
                if fields is None or fields.number(calls) <= 0:
                    raise ValueError(line)
                sums = Sums(
                    fields.number(calls),
                    int(fields.real(total)),
                    fields.real(least) if least else None,
                    fields.real(most) if most else None,
                )
            except (ValueError, OverflowError):
                damaged.append(offset + offset_of(block, line))
                continue
            tally.add_sums(Kernel(name_of(fields.text)), sums)
    tally.notes += cut_note(path, (count_lines(path, at) + 1 for at in damaged))


# -- copies, counters


def read_copies(path: str, tally: Tally) -> None:
    """Add a `*_memory_copy_trace.csv` by direction, or v1's `copy_stats.csv`. Raises FormatError, OSError."""
    layout, begin = read_layout(path)
    if layout.has("totaldurationns"):
        sums = Tally()
        read_stats(path, sums)
        for kernel, one in sums.sums.items():
            tally.add_copies(direction_name(kernel.name), one.calls, one.total_ns, None)
        return
    start, end = layout.place(*columns.START), layout.place(*columns.END)
    size = layout.place("size", "bytes") if layout.has("size", "bytes") else None
    for _, block in lines_between(path, begin, None):
        for line in block.split(b"\n"):
            fields = layout.cut(line)
            if fields is None:
                continue
            try:
                took = fields.number(end) - fields.number(start)
                count = fields.number(size) if size else None
            except ValueError:
                continue
            tally.add_copies(direction_name(name_of(fields.text)), 1, took, count)


def read_counters(path: str, tally: Tally) -> None:
    """Add a rocprofv3 `*_counter_collection.csv`: one line for each dispatch and counter. Raises FormatError, OSError.

    Newer ones hold times as well: where the tally has no dispatches of a trace, those are taken, once each.
    """
    layout, begin = read_layout(path)
    if not layout.has("counter_name"):
        read_wide_counters(path, layout, begin, tally)
        return
    counter, value = layout.place("counter_name"), layout.place("counter_value")
    dispatch, agent = layout.place("dispatch_id", "correlation_id"), layout.place(*columns.AGENT)
    process = layout.place(*columns.PROCESS) if layout.has(*columns.PROCESS) else None
    times = (
        (layout.place(*columns.START), layout.place(*columns.END))
        if layout.has(*columns.START) and layout.has(*columns.END)
        else None
    )
    shape, seen, damaged = layout.shape_places(), set(), []
    for offset, block in lines_between(path, begin, None):
        for line in block.split(b"\n"):
            fields = layout.cut(line)
            try:
                if fields is None:
                    raise ValueError(line)
                place, amount = fields.number(dispatch), fields.real(value)
                took = (fields.number(times[0]), fields.number(times[1])) if times else None
            except ValueError:
                if line.strip():
                    damaged.append(offset + offset_of(block, line))
                continue
            kernel = Kernel(name_of(fields.text))
            name = f"process {fields.word(process)}" if process else process_of(path)
            tally.add_counter(kernel, name, fields.word(counter)[: columns.LONGEST_COUNTER], place, amount)
            if (name, place) not in seen:
                seen.add((name, place))
                tally.add_launches(kernel, layout.shape(fields.joined(shape)), 1)
                if took:
                    series = tally.series_of(kernel, name, columns.gpu_name(fields.word(agent)))
                    series.starts.append(took[0])
                    series.durations.append(max(took[1] - took[0], 0))
    tally.notes += cut_note(path, (count_lines(path, at) + 1 for at in damaged))


def read_wide_counters(path: str, layout: Layout, begin: int, tally: Tally) -> None:
    """Add the counters of a v1 or v2 file, which has a column for each; other files have no such columns."""
    found = layout.counter_places()
    if not found:
        return
    process = layout.place(*columns.PROCESS) if layout.has(*columns.PROCESS) else None
    number = 0
    for _, block in lines_between(path, begin, None):
        for line in block.split(b"\n"):
            fields = layout.cut(line)
            if fields is None:
                continue
            number += 1
            kernel = Kernel(name_of(fields.text))
            name = f"process {fields.word(process)}" if process else process_of(path)
            for counter, place in found:
                try:
                    tally.add_counter(kernel, name, counter, number, fields.real(place))
                except ValueError:
                    continue  # `None` where another pass counted


# -- spans, for a trace viewer


def spans(path: str, lanes: Sequence[Sequence[str]]) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
    """Give name, lane, start and end in ns of every whole row; a lane has a word for each list of column names."""
    layout, begin = read_layout(path)
    start, end = layout.place(*columns.START), layout.place(*columns.END)
    places = [layout.place(*names) if layout.has(*names) else None for names in lanes]
    for _, block in lines_between(path, begin, None):
        for line in block.split(b"\n"):
            fields = layout.cut(line)
            if fields is None:
                continue
            try:
                began, ended = fields.number(start), fields.number(end)
            except ValueError:
                continue
            yield name_of(fields.text), tuple(fields.word(at) if at else "" for at in places), began, ended


def name_of(text: bytes) -> str:
    """Return the name a field holds: without its outer quotes, quotes that were doubled inside made single."""
    inner = columns.unquoted(text)
    if inner is not text:
        inner = inner.replace(b'""', b'"')
    return inner.decode("utf-8", "replace")


def process_of(path: str) -> str:
    """Name the process a file belongs to: `-o %pid%` puts its number first."""
    name = os.path.basename(path)
    number = re.match(r"(\d+)_", name)
    if number:
        return f"process {number[1]}"
    stem = re.sub(r"_?(kernel_trace|counter_collection|kernel_stats|results|stats|\.)*(csv|json|db|gz)*$", "", name)
    return stem or os.path.basename(os.path.dirname(path))
