"""Read millions of dispatches out of a SQLite table faster than row by row.

SQLite joins a column of a block of rows to one text, which is decoded as a JSON list: that costs a third of what a row
as a Python object does. Kernel, GPU and process are told by one number per row; what a number stands for is looked up
in the first block that has it. Launches are looked at in the first rows of every block only.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import operator
import os
import sqlite3
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from .sqlitefile import bin_rows
from .statistics import Series
from .tally import Loads

BLOCK_ROWS = 20_000
SAMPLED = 16
"""Of so many dispatches one is looked at for what it asked of the GPU, evenly over the run."""

_SMALLEST_ROW_BYTES = 24
_MOST_KEYS = 1 << 16
_FACTORS = (1, 16_777_259, 1_099_511_627_791)
"""Primes above what the number before can be: kernels are below 2**24, GPUs below 2**16, processes below 2**22."""

Key = tuple[Any, ...]


def _slow_call(function: Callable[[int], None], value: int) -> None:
    function(value)


_call: Callable[[Callable[[int], None], int], None] = getattr(operator, "call", _slow_call)  # since Python 3.11


def is_dense(path: str, low: int, high: int) -> bool:
    """Say whether row numbers from `low` to `high` can be gone through: they might be few, and far apart."""
    return low >= 0 and high - low < os.path.getsize(path) // _SMALLEST_ROW_BYTES


class Bulk:
    """Read ranges of one table: `put` gets kernel, GPU and process (the first three `names`), and the series.

    `count` gets a whole key (all `names`) and about how often it was seen. Starts are those of a block's first row:
    enough to put the dispatches of several GPUs into the order of their launches, which within a GPU is that of rows.
    A name may be `NULL` for a column that is not there.
    """

    def __init__(
        self, table: str, names: Sequence[str], put: Callable[[Key, Series], None], count: Callable[[Key, int], None]
    ) -> None:
        self._put = put
        self._count = count
        chosen, where = ", ".join(names), f"FROM {table} WHERE rowid BETWEEN ? AND ?"
        terms = [f"{name}*{factor}" for name, factor in zip(names, _FACTORS, strict=False) if name != "NULL"]
        self._rows = f'SELECT start, "end" - start, {chosen} {where}'
        self._launches = f"SELECT {chosen} {where}"
        self._blocks = f'SELECT group_concat({"+".join(terms)}), group_concat("end" - start), count(*) {where}'
        self._first = f"SELECT start FROM {table} WHERE rowid BETWEEN ? AND ? LIMIT 1"
        self._appends: dict[int, Callable[[int], None]] = {}
        self._series: dict[Key, Series] = {}
        self._seen: Counter[Key] = Counter()
        self._firsts: dict[int, Key] = {}

    def read(self, database: sqlite3.Connection, low: int, high: int, loads: Loads) -> None:
        """Read the rows from `low` to `high`."""
        for start in range(low, high + 1, BLOCK_ROWS):
            bounds = (start, min(start + BLOCK_ROWS - 1, high))
            if len(self._appends) > _MOST_KEYS or not self._read_block(database, bounds, loads):
                self._read_rows(database, bounds)
            if len(self._seen) <= _MOST_KEYS:
                self._seen.update(database.execute(self._launches, (start, start + BLOCK_ROWS // SAMPLED - 1)))
        for key, series in self._series.items():
            if series:
                _no_less_than_zero(series.durations)
                self._put(key, series)
        for key, count in self._seen.items():
            self._count(key, count * SAMPLED)
        seen = {key[:3] for key in self._seen}
        for key in self._firsts.values():
            if key[:3] not in seen:
                self._count(key, 1)

    def _read_block(self, database: sqlite3.Connection, bounds: tuple[int, int], loads: Loads) -> bool:
        """Read one block; return whether that could be done: not where a value is missing or is no whole number."""
        joined, durations, count = database.execute(self._blocks, bounds).fetchone()
        if not count:
            return True
        numbers, took = _numbers(joined, loads), _numbers(durations, loads)
        if len(numbers) != count or len(took) != count:
            return False
        if not self._append(numbers, took):
            is_known = self._look_up(database, bounds, numbers) and self._append(numbers, took)
            if not is_known:
                return False
        self._fill_starts(database, bounds)
        return True

    def _append(self, numbers: list[int], took: list[int]) -> bool:
        """Append every duration where it belongs, in a loop without Python's steps; return False when one cannot be.

        Then nothing was: starts are filled in when a block is done, and tell what was appended before it.
        """
        try:
            deque(map(_call, map(self._appends.__getitem__, numbers), took), maxlen=0)
        except (KeyError, TypeError, OverflowError):
            for series in self._series.values():
                del series.durations[len(series.starts) :]
            return False
        return True

    def _look_up(self, database: sqlite3.Connection, bounds: tuple[int, int], numbers: list[int]) -> bool:
        """Learn what the new numbers of a block stand for; return False when a value is no whole number."""
        new = set(numbers).difference(self._appends)
        if not all(type(number) is int for number in new):
            return False
        for number, key in zip(numbers, database.execute(self._launches, bounds), strict=True):
            if number in new:
                new.remove(number)
                self._firsts[number] = key
                series = self._series.setdefault(key[:3], Series())
                self._appends[number] = series.durations.append
        return True

    def _fill_starts(self, database: sqlite3.Connection, bounds: tuple[int, int]) -> None:
        (first,) = database.execute(self._first, bounds).fetchone()
        one = array("q", [first if isinstance(first, int) else 0])
        for series in self._series.values():
            lacking = len(series.durations) - len(series.starts)
            if lacking:
                series.starts.extend(one * lacking)

    def _read_rows(self, database: sqlite3.Connection, bounds: tuple[int, int]) -> None:
        def put(key: Key, series: Series) -> None:
            self._series.setdefault(key[:3], Series()).extend(series)

        bin_rows(database.execute(self._rows, bounds), put)


def _numbers(joined: str | None, loads: Loads) -> list[int]:
    if joined is None:
        return []
    try:
        found = loads(f"[{joined}]".encode("ascii", "replace"))
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def _no_less_than_zero(durations: array[int]) -> None:
    if min(durations) < 0:
        for at, took in enumerate(durations):
            durations[at] = max(took, 0)
