"""Read the CSV files of rocprofv3 and rocprof v1, which are not quite CSV.

Names hold commas, are quoted or not, and quotes inside them are not escaped: a line is cut from both ends, where the
numbers are, and what remains is the name. Columns are found by name, whatever their case and order, because every
release has added some (6.2, 6.3, 7.0, `rocpd convert`). Line ends may be CRLF, a BOM may stand first.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from .statistics import Kernel, add_sums

_BOM = b"\xef\xbb\xbf"
_LONGEST_HEADER = 1 << 16


class FormatError(ValueError):
    """A file is not what its name says; the message says where."""


class Table:
    """One file's rows, cut at the columns around the one that holds free text."""

    def __init__(self, source: BinaryIO, path: str, text_column: str) -> None:
        header = source.readline(_LONGEST_HEADER).removeprefix(_BOM)
        self.columns = [_unquoted(word).decode("utf-8", "replace").lower() for word in header.strip().split(b",")]
        self._source = source
        self._path = path
        self.is_empty = not header.strip()
        if not self.is_empty and text_column not in self.columns:
            raise FormatError(
                f"`{os.path.basename(path)}` has no column `{text_column}`: {', '.join(self.columns)}"[:300]
            )
        self._before = 0 if self.is_empty else self.columns.index(text_column)
        self._after = 0 if self.is_empty else len(self.columns) - self._before - 1
        self.cut_lines: list[int] = []

    def rows(self) -> Iterator[tuple[list[bytes], bytes, list[bytes]]]:
        """Give the fields before the text, the text, and the fields after it; lines that lack some are counted."""
        before, after = self._before, self._after
        for number, line in enumerate(self._source, 2):
            line = line.rstrip(b"\r\n")
            if not line:
                continue
            head = line.split(b",", before)
            tail = head.pop().rsplit(b",", after)
            if len(head) < before or len(tail) <= after:
                self.cut_lines.append(number)
                continue
            yield head, tail[0], tail[1:]

    def place(self, *names: str) -> tuple[bool, int]:
        """Return where a column is: before the text or not, and its index there; raises FormatError without it."""
        for name in names:
            if name in self.columns:
                index = self.columns.index(name)
                return index < self._before, index if index < self._before else index - self._before - 1
        raise FormatError(f"`{os.path.basename(self._path)}` has no column `{names[0]}`")

    def has(self, name: str) -> bool:
        """Say whether there is such a column."""
        return name in self.columns


def read_trace(path: str, kernels: dict[str, Kernel]) -> list[str]:
    """Add every dispatch of a `*_kernel_trace.csv`; return what was wrong. Raises FormatError, OSError."""
    with open(path, "rb") as source:
        table = Table(source, path, "kernel_name")
        if table.is_empty:
            return [f"`{os.path.basename(path)}` is empty"]
        start, end = table.place("start_timestamp"), table.place("end_timestamp")
        durations: dict[bytes, array[int]] = {}
        for head, text, tail in table.rows():
            try:
                took = int(_field(end, head, tail)) - int(_field(start, head, tail))
            except ValueError:
                table.cut_lines.append(0)
                continue
            known = durations.get(text)
            if known is None:
                known = durations[text] = array("q")
            known.append(max(took, 0))
        for text, found in durations.items():
            name = name_of(text)
            kernels.setdefault(name, Kernel(name)).durations.extend(found)
        return _cut(path, table)


def read_stats(path: str, kernels: dict[str, Kernel]) -> list[str]:
    """Add the sums of a `*_stats.csv` (rocprofv3 or v1); return what was wrong. Raises FormatError, OSError."""
    with open(path, "rb") as source:
        table = Table(source, path, "name")
        if table.is_empty:
            return [f"`{os.path.basename(path)}` is empty"]
        calls, total = table.place("calls"), table.place("totaldurationns")
        least = table.place("minns") if table.has("minns") else None
        most = table.place("maxns") if table.has("maxns") else None
        for head, text, tail in table.rows():
            try:
                sums = _sums(
                    int(_number(calls, head, tail)),
                    int(_number(total, head, tail)),
                    _number(least, head, tail) if least else None,
                    _number(most, head, tail) if most else None,
                )
            except (ValueError, OverflowError):
                table.cut_lines.append(0)
                continue
            name = name_of(text)
            kernel = kernels.setdefault(name, Kernel(name))
            kernel.summed = add_sums(kernel.summed, sums)
        return _cut(path, table)


def _sums(calls: int, total_ns: int, least_ns: float | None, most_ns: float | None) -> dict[str, Any]:
    if calls <= 0:
        raise ValueError("no calls")
    mean = total_ns / calls
    return {
        "calls": calls,
        "total_ns": total_ns,
        "mean_ns": mean,
        "p50_ns": None,
        "p99_ns": None,
        "min_ns": least_ns,
        "max_ns": most_ns,
    }


def spans(path: str, text_column: str, lane_columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...], int, int]]:
    """Give name, lane, start and end in ns of every whole row of a trace. Raises FormatError, OSError."""
    with open(path, "rb") as source:
        table = Table(source, path, text_column)
        if table.is_empty:
            return
        start, end = table.place("start_timestamp"), table.place("end_timestamp")
        lanes = [table.place(name) for name in lane_columns if table.has(name)]
        for head, text, tail in table.rows():
            try:
                began, ended = int(_field(start, head, tail)), int(_field(end, head, tail))
            except ValueError:
                continue
            lane = tuple(_unquoted(_raw(one, head, tail)).decode("utf-8", "replace") for one in lanes)
            yield name_of(text), lane, began, ended


def name_of(text: bytes) -> str:
    """Return the name a field holds: without its outer quotes, quotes that were doubled inside made single."""
    inner = _unquoted(text)
    if inner is not text:
        inner = inner.replace(b'""', b'"')
    return inner.decode("utf-8", "replace")


def _unquoted(text: bytes) -> bytes:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[:1] == text[-1:] == b'"' else text


def _raw(place: tuple[bool, int], head: Sequence[bytes], tail: Sequence[bytes]) -> bytes:
    return head[place[1]] if place[0] else tail[place[1]]


def _field(place: tuple[bool, int], head: Sequence[bytes], tail: Sequence[bytes]) -> bytes:
    """Return a field that holds a number, quoted as some releases do."""
    return (head[place[1]] if place[0] else tail[place[1]]).strip(b'"')


def _number(place: tuple[bool, int], head: Sequence[bytes], tail: Sequence[bytes]) -> float:
    """Return a number as it is, whole ones exactly; small ones are written in scientific form."""
    text = _field(place, head, tail)
    return int(text) if text.isdigit() else float(text)


def _cut(path: str, table: Table) -> list[str]:
    if not table.cut_lines:
        return []
    where = next((f", first line {number}" for number in table.cut_lines if number), "")
    return [f"`{os.path.basename(path)}`: {len(table.cut_lines)} lines are damaged or cut{where}, and left out"]
