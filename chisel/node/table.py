"""Make a table of what was counted: kernels in rank order, pseudo rows apart, processes, GPUs, copies.

Standard library only, Python 3.10.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from . import halves, statistics
from .names import Demangler, is_pseudo, normalise
from .statistics import Series
from .tally import Counted, FormatError, Kernel, Shape, Sums, Tally

DETAILED = 32
"""For how many of the hottest kernels the distribution and the drift over the run are told."""

_MANY = 1_000_000
_HOTTEST_IN_PART = 8
_MOST_PARTS = 128
_MOST_COPIES = 64
_MOST_NOTES = 100
_MOST_COUNTERS = 256


class Wishes(NamedTuple):
    """What is to be counted: kernels whose name matches, dispatches behind the first of each kernel and process."""

    kernel: str | None = None
    skip_warmup: int = 0

    def pattern(self) -> re.Pattern[str] | None:
        """Return the compiled expression; raises FormatError for one that is none."""
        if not self.kernel:
            return None
        try:
            return re.compile(self.kernel)
        except re.error as error:
            raise FormatError(f"`{self.kernel[:200]}` is no regular expression: {error}") from error


class _Entry:
    """One kernel under the name it is shown by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts: dict[tuple[str, str], Series] = {}
        self.sums: Sums | None = None
        self.shapes: dict[Shape, int] = {}
        self.counters: dict[str, list[Counted]] = {}
        self.left_out = 0

    @property
    def calls(self) -> int:
        return sum(map(len, self.parts.values())) + (self.sums.calls if self.sums else 0)

    @property
    def total_ns(self) -> int:
        return sum(part.total_ns for part in self.parts.values()) + (self.sums.total_ns if self.sums else 0)

    def skip(self, count: int) -> None:
        """Leave the first dispatches of every process out."""
        for process in {process for process, _ in self.parts}:
            keys = [key for key in self.parts if key[0] == process]
            chosen = [self.parts[key] for key in keys]
            left = statistics.without_first(chosen, count)
            self.left_out += sum(map(len, chosen)) - sum(map(len, left))
            self.parts.update(zip(keys, left, strict=True))


def make_table(tally: Tally, wishes: Wishes, *, may_fork: bool = False) -> dict[str, Any]:
    """Return the whole figures; the tally is used up. `may_fork` where memory may be counted twice.

    `kernels` and `pseudo` are in rank order; `parts` name kernels by their index among them. `filtered` counts the
    dispatches that the wishes left out. Raises FormatError for a bad expression.
    """
    pattern = wishes.pattern()
    entries = _entries(tally)
    real = [entry for entry in entries if not is_pseudo(entry.name)]
    filtered = 0
    if pattern:
        filtered = sum(entry.calls for entry in real if not pattern.search(entry.name))
        real = [entry for entry in real if pattern.search(entry.name)]
    if wishes.skip_warmup > 0:
        for entry in real:
            entry.skip(wishes.skip_warmup)
        filtered += sum(entry.left_out for entry in real)
    ranked = _ranked(real)
    parts = _parts(ranked)
    kernels = _all_figures(ranked, wishes.skip_warmup, may_fork=may_fork)
    return {
        "dispatches": sum(one["calls"] for one in kernels),
        "filtered": filtered,
        "kernels": kernels,
        "pseudo": [_figures(entry, False, 0) for entry in _ranked(entry for entry in entries if is_pseudo(entry.name))],
        "parts": parts,
        "copies": _copies(tally.copies),
    }


def _ranked(entries: Iterable[_Entry]) -> list[_Entry]:
    sized = [(-entry.total_ns, entry.name, entry) for entry in entries if entry.calls]
    return [entry for _, _, entry in sorted(sized, key=lambda one: one[:2])]


def _entries(tally: Tally) -> list[_Entry]:
    """Return what was counted by kernel: names made readable, those that only look alike told apart by symbol."""
    demangler = Demangler()
    whole = {*(key[0] for key in tally.series), *tally.sums, *tally.shapes, *(key[0] for key in tally.counters)}
    identity = {kernel: _identity(kernel, demangler) for kernel in whole}
    symbols: dict[str, set[str]] = {}
    for name, symbol in identity.values():
        symbols.setdefault(name, set()).add(symbol)
    entries: dict[tuple[str, str], _Entry] = {}

    def entry_of(kernel: Kernel) -> _Entry:
        name, symbol = identity[kernel]
        found = entries.get((name, symbol))
        if found is None:
            is_alone = len(symbols[name]) == 1 or not symbol
            found = entries[name, symbol] = _Entry(name if is_alone else f"{name} [{symbol}]")
        return found

    while tally.series:
        (kernel, process, gpu), series = tally.series.popitem()
        known = entry_of(kernel).parts.setdefault((process, gpu), series)
        if known is not series:
            known.extend(series)
    for kernel, sums in tally.sums.items():
        entry = entry_of(kernel)
        if entry.sums:
            entry.sums.add(sums)
        else:
            entry.sums = sums
    for kernel, shapes in tally.shapes.items():
        into = entry_of(kernel).shapes
        for shape, count in shapes.items():
            into[shape] = into.get(shape, 0) + count
    for (kernel, _, counter), counted in tally.counters.items():
        entry_of(kernel).counters.setdefault(counter, []).append(counted)
    return list(entries.values())


def _identity(kernel: Kernel, demangler: Demangler) -> tuple[str, str]:
    plain, symbol = normalise(kernel.name), normalise(kernel.symbol) if kernel.symbol else ""
    readable = demangler.readable(plain)
    return readable, symbol or (plain if readable != plain else "")


def _all_figures(ranked: list[_Entry], skip: int, *, may_fork: bool) -> list[dict[str, Any]]:
    """Return the figures of every kernel; of many dispatches a fork takes every other kernel."""

    def some(index: int) -> list[dict[str, Any]]:
        """Return the figures of every other kernel, from the first or the second on; let go of all dispatches."""
        found = []
        for rank, entry in enumerate(ranked):
            if rank % 2 == index:
                found.append(_figures(entry, rank < DETAILED, skip))
            else:
                entry.parts.clear()
        return found

    if not may_fork or sum(entry.calls for entry in ranked) < _MANY:
        return [_figures(entry, rank < DETAILED, skip) for rank, entry in enumerate(ranked)]
    even, odd = halves.both(some)
    return [figures for pair in zip_longest(even, odd) for figures in pair if figures is not None]


def _figures(entry: _Entry, detailed: bool, skip: int) -> dict[str, Any]:
    """Return one kernel's figures; its dispatches are let go of."""
    if entry.parts:
        parts = [entry.parts[key] for key in sorted(entry.parts)]
        entry.parts.clear()
        found = statistics.figures_of(parts, detailed=detailed)
        if detailed:
            found["drift"] = statistics.drift_of(parts)
    else:
        found = _of_sums(entry.sums)
    if entry.shapes:
        found["launch"] = _launch(entry.shapes)
    counters = {name: _mean(counted, skip) for name, counted in sorted(entry.counters.items())[:_MOST_COUNTERS]}
    if counters:
        found["counters"] = {name: mean for name, mean in counters.items() if mean is not None}
    return {"name": entry.name, **found}


def _of_sums(sums: Sums | None) -> dict[str, Any]:
    if sums is None:
        return statistics.figures_of([Series(array("q", [0]), array("q", [0]))])
    return {
        "calls": sums.calls,
        "total_ns": sums.total_ns,
        "mean_ns": sums.total_ns / sums.calls,
        "p50_ns": None,
        "p99_ns": None,
        "min_ns": sums.least_ns,
        "max_ns": sums.most_ns,
    }


def _mean(counted: list[Counted], skip: int) -> float | None:
    means = [(one.mean(skip), max(len(one.places) - skip, 0)) for one in counted]
    count = sum(number for _, number in means)
    return sum(mean * number for mean, number in means if mean is not None) / count if count else None


def _launch(shapes: Mapping[Shape, int]) -> dict[str, Any]:
    """Return the most frequent launch; of several equally frequent ones always the same."""
    shape = max(shapes, key=lambda one: (shapes[one], repr(one)))
    grids = len({one.grid for one in shapes if one.grid is not None})
    return {name: value for name, value in {**shape._asdict(), "grids": grids}.items() if value is not None}


def _parts(ranked: list[_Entry]) -> list[dict[str, Any]]:
    """Return what each process and each GPU spent, where there are several of them."""
    found = []
    for kind, at in (("process", 0), ("gpu", 1)):
        names: dict[str, list[tuple[int, int, int]]] = {}
        for index, entry in enumerate(ranked):
            by_name: dict[str, list[int]] = {}
            for key, series in entry.parts.items():
                sums = by_name.setdefault(key[at], [0, 0])
                sums[0] += len(series)
                sums[1] += series.total_ns
            for name, (calls, total) in by_name.items():
                if calls:
                    names.setdefault(name, []).append((index, calls, total))
        if len(names) > 1:
            found += sorted((_part(kind, name, rows) for name, rows in names.items()), key=_hottest)[:_MOST_PARTS]
    return found


def _hottest(part: dict[str, Any]) -> tuple[int, str]:
    return -part["total_ns"], part["name"]


def _part(kind: str, name: str, rows: list[tuple[int, int, int]]) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name or "unknown",
        "calls": sum(calls for _, calls, _ in rows),
        "total_ns": sum(total for _, _, total in rows),
        "kernels": sorted(rows, key=lambda row: (-row[2], row[0]))[:_HOTTEST_IN_PART],
    }


def _copies(copies: Mapping[str, list[int | None]]) -> list[dict[str, Any]]:
    found = [
        {"name": name[:200], "calls": calls or 0, "total_ns": total or 0, "bytes": size}
        for name, (calls, total, size) in copies.items()
    ]
    return sorted(found, key=lambda one: (-int(one["total_ns"] or 0), str(one["name"])))[:_MOST_COPIES]


def first_part(figures: dict[str, Any], top: int, *, detailed: int = DETAILED) -> dict[str, Any]:
    """Return the table of the first `top` kernels; `rest` and `rest_ns` tell of those behind them."""
    kernels = figures["kernels"]
    shown = [
        one if rank < detailed else {key: value for key, value in one.items() if key not in {"quantiles", "drift"}}
        for rank, one in enumerate(kernels[:top])
    ]
    behind = kernels[top:]
    parts = [
        {**part, "kernels": [row if row[0] < top else (kernels[row[0]]["name"], *row[1:]) for row in part["kernels"]]}
        for part in figures["parts"]
    ]
    return {
        **figures,
        "kernels": shown,
        "parts": parts,
        "notes": figures["notes"][:_MOST_NOTES],
        "rest": len(behind),
        "rest_ns": sum(one["total_ns"] for one in behind),
    }
