"""Rank what profilers wrote: find the best source among the files of a run, read it, make its table.

Standard library only, Python 3.10: runs on the droplet and, for files that were brought, on the laptop.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from . import formats, rocpd, rocprofcsv, rocprofjson, rocprofv1, rpd
from .formats import Kind
from .table import Wishes, make_table
from .tally import FormatError, Loads, Tally

STAND_IN_NOTE = "SANDBOX-STAND-IN.txt"
_PASS = re.compile(r"(?:^|/)(?:pass|pmc)_(\d+)(?=/)")
_LEFT_OVER = ("-journal", "-wal", "-shm")
_MOST_FILES = 100_000

Reader = Callable[[str, Tally, Loads], None]
_SOURCES: tuple[tuple[Kind, str, Reader], ...] = (
    ("rocpd", "rocpd", rocpd.read),
    ("json", "json", rocprofjson.read),
    ("trace", "trace", lambda path, tally, loads: rocprofcsv.read_trace(path, tally)),
    ("rpd", "rpd", lambda path, tally, loads: rpd.read(path, tally)),
    ("v1-db", "v1 db", lambda path, tally, loads: rocprofv1.read_database(path, tally)),
    ("v1-json", "v1 json", rocprofv1.read_json),
    ("v1-csv", "v1 csv", lambda path, tally, loads: rocprofcsv.read_trace(path, tally)),
    ("counters", "counters", lambda path, tally, loads: rocprofcsv.read_counters(path, tally)),
    ("stats", "stats", lambda path, tally, loads: rocprofcsv.read_stats(path, tally)),
)
"""Kinds of files, the best first: times of every dispatch, then of those that counters were read for, then sums."""


class Files:
    """The files of a run by kind and by pass.

    `notes` say what cannot be read, `unfinished` what a killed writer left.
    """

    def __init__(self, place: str) -> None:
        self.by_kind: dict[Kind, list[str]] = {}
        self.notes: list[str] = []
        self.unfinished: list[str] = []
        self.broken = 0
        self.stand_in: str | None = None
        self.place = place
        for path in files_below(place):
            self._sort_in(path)
        if os.path.basename(os.path.normpath(place)) == "raw":
            scratch = os.path.join(os.path.dirname(os.path.normpath(place)), "tmp")
            self.unfinished += [os.path.basename(path) for path in files_below(scratch) if os.path.getsize(path)]

    def _sort_in(self, path: str) -> None:
        name = os.path.basename(path)
        if name == STAND_IN_NOTE:
            self.stand_in = _first_line(path)
        if name.endswith(_LEFT_OVER) or "/.rocprofv3/" in path:
            if os.path.getsize(path):
                self.unfinished.append(name)
            return
        try:
            kind = formats.kind_of(path)
        except (FormatError, OSError) as error:
            self.notes.append(_said(error, path))
            self.broken += 1
            if "killed" in str(error):
                self.unfinished.append(name)
            return
        self.by_kind.setdefault(kind, []).append(path)

    def passes(self, kind: Kind) -> dict[int, list[str]]:
        """Return the files of a kind by pass: hardware counters are read in several runs of the program."""
        found: dict[int, list[str]] = {}
        for path in self.by_kind.get(kind, []):
            number = _PASS.search(path[len(self.place) :])
            found.setdefault(int(number[1]) if number else 0, []).append(path)
        return dict(sorted(found.items()))


def rank(place: str, wishes: Wishes | None = None, loads: Loads = json.loads) -> dict[str, Any]:
    """Return the figures of a file or of everything below a directory: the best source there is, nothing twice.

    The object is `table.make_table`'s with `source` (None when nothing holds a kernel), `files`, `notes`, `unfinished`
    and `stand_in` (what a player says of itself, None for a real profiler). Raises FormatError for a bad expression,
    OSError when the place cannot be looked at.
    """
    wanted = wishes or Wishes()
    wanted.pattern()
    files = Files(place)
    source, count, tally = _best(files, loads, wanted)
    # A trace as text is held in 150 MB: there a fork would count, though its pages are the same.
    figures = make_table(tally, wanted, may_fork=source not in {"trace", "v1 csv", "v1 json"})
    return {
        "source": source,
        "files": count,
        **figures,
        "notes": [*files.notes, *tally.notes],
        "unfinished": files.unfinished,
        "stand_in": files.stand_in,
    }


def _best(files: Files, loads: Loads, wishes: Wishes) -> tuple[str | None, int, Tally]:
    """Read the best source; notes of those that held nothing are kept."""
    notes: list[str] = []
    candidates = 0
    for kind, title, reader in _SOURCES:
        passes = files.passes(kind)
        candidates += sum(map(len, passes.values()))
        for number, paths in passes.items():
            tally = _read(paths, reader, loads, needs_exact_order=wishes.skip_warmup > 0)
            notes += tally.notes
            if tally.calls:
                _complete(files, kind, reader, loads, tally, number)
                tally.notes = list(notes)
                instead = _sums_instead(files, kind, number, tally, loads)
                if instead:
                    instead.notes = [*notes, *instead.notes]
                    return "stats", len(files.passes("stats")[number]), instead
                if len(passes) > 1:
                    tally.notes.append(f"{len(passes)} passes: times are of pass {number}, counters of all")
                return title, len(paths), tally
    empty = Tally()
    empty.notes = notes
    return None, candidates + files.broken, empty


def _read(paths: list[str], reader: Reader, loads: Loads, *, needs_exact_order: bool = False) -> Tally:
    tally = Tally()
    tally.needs_exact_order = needs_exact_order
    for path in paths:
        try:
            reader(path, tally, loads)
        except (FormatError, OSError) as error:
            tally.notes.append(_said(error, path))
    return tally


def _said(error: Exception, path: str) -> str:
    if isinstance(error, OSError):
        return f"`{os.path.basename(path)}` cannot be read: {error.strerror or error}"
    return str(error)


def _complete(files: Files, kind: Kind, reader: Reader, loads: Loads, tally: Tally, number: int) -> None:
    """Add what other files say of the same run: copies, hardware counters, also those of further passes."""
    if not tally.copies:
        paths = files.passes("copies").get(number, [])
        tally.copies = _read(paths, lambda path, into, _: rocprofcsv.read_copies(path, into), loads).copies
    if kind not in {"trace", "stats"}:
        for other, paths in files.passes(kind).items():
            if other != number:
                _add_counters(tally, _read(paths, reader, loads), other)
    if kind != "counters" and not tally.counters:
        for other, paths in files.passes("counters").items():
            read = _read(paths, lambda path, into, _: rocprofcsv.read_counters(path, into), loads)
            _add_counters(tally, read, other)


def _add_counters(tally: Tally, other: Tally, number: int) -> None:
    """Take over the counters of a pass, and what launches asked for where nothing else says it.

    The same dispatch has the same number in every pass: passes stay apart as processes do.
    """
    for (kernel, process, counter), counted in other.counters.items():
        tally.counters[kernel, f"pass {number}, {process}", counter] = counted
    for kernel, shapes in other.shapes.items():
        tally.shapes.setdefault(kernel, shapes)


def _sums_instead(files: Files, kind: Kind, number: int, tally: Tally, loads: Loads) -> Tally | None:
    """Return the sums where they count more dispatches than a cut trace holds; a file of sums can be cut as well."""
    paths = files.passes("stats").get(number, [])
    if kind in {"stats", "counters", "rocpd"} or not paths:
        return None
    sums = _read(paths, lambda path, into, _: rocprofcsv.read_stats(path, into), loads)
    if sums.calls <= tally.calls:
        return None
    sums.shapes, sums.counters, sums.copies = tally.shapes, tally.counters, tally.copies
    sums.notes.append(
        f"the trace holds {tally.calls} of the {sums.calls} dispatches that `{os.path.basename(paths[0])}` counts: its "
        "sums are shown, without quantiles"
    )
    return sums


def files_below(place: str) -> Iterator[str]:
    """Give every plain file below a directory (or the file itself), in order; links are not followed."""
    if os.path.isfile(place):
        yield place
        return
    count = 0
    for directory, directories, names in os.walk(place):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path) and count < _MOST_FILES:
                count += 1
                yield path


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as note:
        line = note.readline(300).strip().rstrip(".")
    return line.partition(": ")[2] or line
