"""Count what the files of one kind say: dispatches by kernel, process and GPU, launches, counters, copies.

A kernel is known by what is displayed of it and by its symbol, so that two which only look alike stay apart.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .statistics import Series

Loads = Callable[[bytes], Any]
"""Decodes JSON: `json.loads`, or a faster one where there is one; raises ValueError."""

MOST_SHAPES = 1 << 14
"""How many different launches of all kernels are told apart; more are counted, not kept."""


class FormatError(ValueError):
    """A file is not what it seems to be; the message names it and says where."""


class Kernel(NamedTuple):
    """A kernel's displayed name and its symbol, which is empty where the format has none."""

    name: str
    symbol: str = ""


class Shape(NamedTuple):
    """What one launch asked for; None where the format does not say."""

    workgroup: tuple[int, int, int] | None = None
    grid: tuple[int, int, int] | None = None
    vgprs: int | None = None
    agprs: int | None = None
    sgprs: int | None = None
    lds_bytes: int | None = None
    scratch_bytes: int | None = None


_UNKNOWN = Shape()


class Sums:
    """What a file of statistics says of one kernel; least and most are None where it does not say."""

    __slots__ = ("calls", "least_ns", "most_ns", "total_ns")

    def __init__(self, calls: int, total_ns: int, least_ns: float | None, most_ns: float | None) -> None:
        self.calls = calls
        self.total_ns = total_ns
        self.least_ns = least_ns
        self.most_ns = most_ns

    def add(self, other: Sums) -> None:
        """Take in another file's sums for the same kernel."""
        self.calls += other.calls
        self.total_ns += other.total_ns
        self.least_ns = _both(min, self.least_ns, other.least_ns)
        self.most_ns = _both(max, self.most_ns, other.most_ns)


def _both(choose: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else choose(one, other)


class Counted:
    """One counter of one kernel in one process: its value by dispatch; `places` tell the order of launches."""

    __slots__ = ("places", "values")

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.values: array[float] = array("d")

    def add(self, place: int, value: float) -> None:
        """Add one value; several of one dispatch (a counter has instances) make a sum."""
        at = self.places.setdefault(place, len(self.values))
        if at == len(self.values):
            self.values.append(value)
        else:
            self.values[at] += value

    def mean(self, skip: int) -> float | None:
        """Return the mean per dispatch without the first `skip`, None when none is left."""
        chosen = [self.values[self.places[place]] for place in sorted(self.places)[skip:]]
        return sum(chosen) / len(chosen) if chosen else None


class Tally:
    """Everything that was read of one kind of source; `notes` say what was wrong with which file."""

    def __init__(self) -> None:
        self.series: dict[tuple[Kernel, str, str], Series] = {}
        self.shapes: dict[Kernel, dict[Shape, int]] = {}
        self.counters: dict[tuple[Kernel, str, str], Counted] = {}
        self.sums: dict[Kernel, Sums] = {}
        self.copies: dict[str, list[int | None]] = {}
        self.notes: list[str] = []
        self.marks: list[int] = []
        self.needs_exact_order = False

    @property
    def calls(self) -> int:
        """Return how many dispatches there are, pseudo rows among them."""
        return sum(map(len, self.series.values())) + sum(one.calls for one in self.sums.values())

    def series_of(self, kernel: Kernel, process: str, gpu: str) -> Series:
        """Return where a kernel's dispatches in a process on a GPU are kept."""
        key = (kernel, process, gpu)
        found = self.series.get(key)
        if found is None:
            found = self.series[key] = Series()
        return found

    def add_series(self, kernel: Kernel, process: str, gpu: str, series: Series) -> None:
        """Add dispatches of a kernel in a process on a GPU; the series is the tally's from then on."""
        known = self.series.setdefault((kernel, process, gpu), series)
        if known is not series:
            known.extend(series)

    def add_launches(self, kernel: Kernel, shape: Shape, count: int) -> None:
        """Count launches of one shape; one of which nothing is known is not counted."""
        if shape == _UNKNOWN:
            return
        known = self.shapes.setdefault(kernel, {})
        if shape in known or len(known) < MOST_SHAPES:
            known[shape] = known.get(shape, 0) + count

    def add_counter(self, kernel: Kernel, process: str, counter: str, place: int, value: float) -> None:
        """Add one hardware counter's value of one dispatch; `place` identifies and orders dispatches in a process."""
        key = (kernel, process, counter)
        found = self.counters.get(key)
        if found is None:
            found = self.counters[key] = Counted()
        found.add(place, value)

    def add_sums(self, kernel: Kernel, sums: Sums) -> None:
        """Add what a file of statistics says of a kernel."""
        known = self.sums.get(kernel)
        if known is None:
            self.sums[kernel] = sums
        else:
            known.add(sums)

    def add_copies(self, direction: str, calls: int, total_ns: int, size: int | None) -> None:
        """Add memory copies in one direction; `size` in bytes, None where the format does not say."""
        known = self.copies.setdefault(direction, [0, 0, 0])
        known[0] = (known[0] or 0) + calls
        known[1] = (known[1] or 0) + max(total_ns, 0)
        known[2] = None if known[2] is None or size is None else known[2] + size

    def add(self, other: Tally) -> None:
        """Take in another tally, of other files or of the other half of one."""
        for key, series in other.series.items():
            self.add_series(*key, series)
        for kernel, shapes in other.shapes.items():
            for shape, count in shapes.items():
                self.add_launches(kernel, shape, count)
        for (kernel, process, counter), counted in other.counters.items():
            for place, at in counted.places.items():
                self.add_counter(kernel, process, counter, place, counted.values[at])
        for kernel, sums in other.sums.items():
            self.add_sums(kernel, sums)
        for direction, (calls, total, size) in other.copies.items():
            self.add_copies(direction, calls or 0, total or 0, size)
        self.notes += other.notes
        self.marks += other.marks


def cut_note(path: str, lines: Iterable[int]) -> list[str]:
    """Say that lines of a text file were left out, and where the first is; nothing when there were none."""
    numbers = list(lines)
    if not numbers:
        return []
    count = f"{len(numbers)} lines are" if len(numbers) > 1 else "1 line is"
    return [f"`{os.path.basename(path)}`: {count} damaged or cut, first line {min(numbers)}, and left out"]


def direction_name(text: str) -> str:
    """Return the direction of a copy as all formats are shown: `host to device`.

    rocprofv3 says `MEMORY_COPY_HOST_TO_DEVICE`, rocprof v1 `CopyHostToDevice`.
    """
    words = text.strip().strip('"')
    if words.startswith("MEMORY_COPY_") or "_TO_" in words:
        return words.removeprefix("MEMORY_COPY_").replace("_", " ").lower()
    for prefix in ("Copy", "Memcpy"):
        if words.startswith(prefix) and "To" in words:
            return words.removeprefix(prefix).replace("To", " to ").replace("Device", "device").replace("Host", "host")
    return words or "copy"
