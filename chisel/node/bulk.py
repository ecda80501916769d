"""Read millions of dispatches out of a SQLite table faster than row by row.

SQLite joins a column of a block of rows to one text, which is decoded as a JSON list: that costs a third of what a row
as a Python object does. All columns that tell a launch are summed up to one number per row, each by a factor of its
own; what a number stands for is looked up once, in the first block that has it. (Two launches could have the same
number only where their sizes differ by multiples of these factors: no GPU takes such.)
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
SAMPLED = 8
"""How frequent a launch is, is told by every eighth dispatch; which launches there are, by all."""

_SMALLEST_ROW_BYTES = 24
_MOST_SHAPES = 1 << 16
# Primes above what a size can be, so that sums stay below 2**63: grids reach 2**32, workgroups 1,024.
_FACTORS = (
    *(4_294_967_311, 1_099_511_627_791, 3, 17_592_186_044_423, 8_796_093_022_237, 4_398_046_511_119, 1),
    *(8_589_934_609, 17_179_869_209, 34_359_738_421, 68_719_476_767),
)

Key = tuple[Any, ...]


def _slow_call(function: Callable[[int], None], value: int) -> None:
    function(value)


_call: Callable[[Callable[[int], None], int], None] = getattr(operator, "call", _slow_call)  # since Python 3.11


def is_dense(path: str, low: int, high: int) -> bool:
    """Say whether row numbers from `low` to `high` can be gone through: they might be few, and far apart."""
    return low >= 0 and high - low < os.path.getsize(path) // _SMALLEST_ROW_BYTES


class Bulk:
    """Read ranges of one table: `put` gets the first three columns, which tell kernel, GPU and process, and the series.

    `count` gets a whole key (all `names`) and how often it was seen. Starts are those of a block's first row: enough
    to put the dispatches of several GPUs into the order of their launches, which within a GPU is the order of rows.
    """

    def __init__(
        self, table: str, names: Sequence[str], put: Callable[[Key, Series], None], count: Callable[[Key, int], None]
    ) -> None:
        self._put = put
        self._count = count
        chosen = ", ".join(names)
        terms = [f"{name}*{factor}" for name, factor in zip(names, _FACTORS, strict=True) if name != "NULL"]
        where = f"FROM {table} WHERE rowid BETWEEN ? AND ?"
        self._rows = f'SELECT start, "end" - start, {chosen} {where}'
        self._blocks = f'SELECT group_concat({"+".join(terms)}), group_concat("end" - start), count(*) {where}'
        self._first = f"SELECT start FROM {table} WHERE rowid BETWEEN ? AND ? LIMIT 1"
        self._keys: dict[int, Key] = {}
        self._appends: dict[int, Callable[[int], None]] = {}
        self._series: dict[Key, Series] = {}
        self._seen: Counter[int] = Counter()

    def read(self, database: sqlite3.Connection, low: int, high: int, loads: Loads) -> None:
        """Read the rows from `low` to `high`."""
        for start in range(low, high + 1, BLOCK_ROWS):
            bounds = (start, min(start + BLOCK_ROWS - 1, high))
            if len(self._keys) > _MOST_SHAPES or not self._read_block(database, bounds, loads):
                self._read_rows(database, bounds)
        for key, series in self._series.items():
            if series:
                _no_less_than_zero(series.durations)
                self._put(key, series)
        for number, key in self._keys.items():
            self._count(key, self._seen[number] * SAMPLED)

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
        self._seen.update(numbers[::SAMPLED])
        self._fill_starts(database, bounds)
        return True

    def _append(self, numbers: list[int], took: list[int]) -> bool:
        """Append every duration where it belongs, in a loop without Python's own steps; return False when one cannot be.

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
        new = set(numbers).difference(self._keys)
        if not all(type(number) is int for number in new):
            return False
        for number, row in zip(numbers, database.execute(self._rows, bounds), strict=True):
            if number in new:
                new.remove(number)
                key = tuple(row[2:])
                self._keys[number] = key
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
            self._count(key, len(series))

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
