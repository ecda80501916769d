"""Read what rocprof v1 writes beside its CSV: Chrome JSON (`results.json`) and SQLite (`results.db`).

Read off bin/tblextr.py, dform.py and sqlitedb.py of ROCm/rocprofiler (October 2024) and real files of 2021: every event
starts at a line `,{`; the first is empty; numbers are strings in older releases; `ts` and `dur` are whole microseconds,
exact times stand in `args`; texts are not escaped. GPU processes are labelled `GPU0`, barriers `GPU Barriers0`.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from . import halves, sqlitefile
from .plainfile import BLOCK, opened, size_of
from .sqlitefile import bin_rows, columns, quoted, text, whole
from .statistics import Series
from .tally import FormatError, Kernel, Loads, Shape, Tally, direction_name

_SEPARATOR = b"\n,{"
_PID = re.compile(rb'"pid":\s*"?(\d+)')
_LABEL = re.compile(rb'"args":\s*\{\s*"name":\s*"([^"]{0,200})"\s*\}\s*,\s*"ph":\s*"M"\s*,\s*"pid":\s*"?(\d+)')
_GPU = re.compile(r"GPU\s?(\d+)")
_BARRIERS = re.compile(r"GPU Barriers\s?\d+")
_SALVAGE = re.compile(rb'"(BeginNs|EndNs|dev-id|gpu-id|proc-id)":"?(\d+)"?')
_NAME = re.compile(rb'"(?:Kernel)?Name":"(.*?)"\s*(?:,\n\s*"|\n?\s*\})', re.DOTALL)
_LONGEST_EVENT = 16 << 20
_HEAD = 1 << 18
_LARGEST_REFORMATTED = 1 << 30
_MOST_KNOWN = 1 << 14
BARRIER = "<barrier packet>"


# -- Chrome JSON


def pieces(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Give the offset and the bytes of each event (with its brace) of a range that begins at a separator or at 0."""
    with opened(path) as source:
        source.seek(start)
        offset, rest, left = start, b"", None if end is None else end - start
        while left is None or left > 0:
            data = source.read(BLOCK if left is None else min(BLOCK, left))
            if not data:
                break
            left = None if left is None else left - len(data)
            found = (rest + data).split(_SEPARATOR)
            rest = found.pop()
            if len(rest) > _LONGEST_EVENT:
                raise FormatError(f"`{os.path.basename(path)}`: no event of rocprof's ends within 16 MB, byte {offset}")
            for piece in found:
                yield offset, piece
                offset += len(piece) + len(_SEPARATOR)
        yield offset, rest


class _Events:
    """Read the events of one file, for ranking: those of GPUs and copies alone are decoded."""

    def __init__(self, path: str, loads: Loads, known: dict[bytes, str] | None = None) -> None:
        self._loads = loads
        self.labels = labels(path) if known is None else known
        self.operations = Tally()
        self.kernels = Tally()  # of `--timestamp on`: the same dispatches once more where operations are traced too
        self.damaged: list[int] = []
        self._is_wanted: dict[bytes, bool] = {}
        self._known: dict[tuple[Any, ...], Series] = {}

    def take(self, offset: int, piece: bytes) -> None:
        """Take in one event."""
        found = _PID.search(piece)
        if found is None:
            return
        pid = found[1]
        is_wanted = self._is_wanted.get(pid)
        if is_wanted is None:
            is_wanted = self._is_wanted[pid] = self._kind(pid) is not None
        if not is_wanted:
            return
        try:  # what most events are: another dispatch of a kernel that is known
            event = self._loads(b"{" + piece)
            arguments = event["args"]
            start, end = int(arguments["BeginNs"]), int(arguments["EndNs"])
            series = self._known[_key(event, arguments)]
        except (KeyError, TypeError, ValueError):
            self._take_first(offset, piece, pid)
            return
        series.starts.append(start)
        series.durations.append(end - start if end > start else 0)

    def _take_first(self, offset: int, piece: bytes, pid: bytes) -> None:
        """Take in an event that is odd, no dispatch, or the first of its kernel."""
        if b'"ph":"X"' not in piece[:4096]:
            return
        event = decoded(piece, self._loads)
        if event is None:
            self.damaged.append(offset)
            return
        series = self._count(event, self.labels.get(pid, ""))
        if series is not None and len(self._known) < _MOST_KNOWN:
            self._known[_key(event, event["args"])] = series

    def take_decoded(self, event: dict[str, Any]) -> None:
        """Take in one event of a file that was decoded as a whole."""
        pid = str(event.get("pid")).encode()
        try:
            if pid.isdigit() and self._kind(pid) is not None:
                self._count(event, self.labels.get(pid, ""))
        except (KeyError, TypeError, ValueError):
            self.damaged.append(0)

    def put_into(self, tally: Tally) -> None:
        """Add what was read; kernels that were timed twice are counted once."""
        chosen = self.operations if self.operations.series or not self.kernels.series else self.kernels
        chosen.copies = self.operations.copies
        tally.add(chosen)

    def _kind(self, pid: bytes) -> str | None:
        label = self.labels.get(pid, "")
        if label == "COPY" or _GPU.fullmatch(label) or _BARRIERS.fullmatch(label):
            return label
        return "GPU" if not self.labels and int(pid) >= 6 else None

    def _count(self, event: dict[str, Any], label: str) -> Series | None:
        """Count one event; return where its like are kept, None for a copy."""
        name, start, end, arguments = facts(event)
        if label == "COPY":
            self.operations.add_copies(direction_name(name), 1, end - start, None)
            return None
        if _BARRIERS.fullmatch(label):
            name = BARRIER
        device = arguments.get("dev-id", arguments.get("gpu-id"))
        gpu = _GPU.fullmatch(label)
        into = self.kernels if "KernelName" in arguments else self.operations
        where = f"GPU {device}" if device is not None else f"GPU {gpu[1]}" if gpu else ""
        series = into.series_of(Kernel(name), _process(event, arguments), where)
        series.starts.append(start)
        series.durations.append(max(end - start, 0))
        return series if "args" in event else None


def _key(event: dict[str, Any], arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Return everything that tells where an event is counted."""
    get = arguments.get
    name = get("KernelName") or get("Name") or event.get("name")
    return name, "KernelName" in arguments, event["pid"], get("dev-id"), get("gpu-id"), get("proc-id"), get("pid")


def _process(event: dict[str, Any], arguments: dict[str, Any]) -> str:
    """Name the process: `proc-id` in older files; in newer ones `pid` within the arguments, which was the group."""
    number = arguments.get("proc-id")
    if number is None and str(arguments.get("pid")) != str(event.get("pid")):
        number = arguments.get("pid")
    return f"process {number}" if number is not None else "process"


def facts(event: dict[str, Any]) -> tuple[str, int, int, dict[str, Any]]:
    """Return an event's name, start and end in ns, and its arguments; raises ValueError for one without times."""
    arguments = event.get("args")
    arguments = arguments if isinstance(arguments, dict) else {}
    name = arguments.get("KernelName") or arguments.get("Name") or event.get("name")
    if "BeginNs" in arguments:
        start, end = int(arguments["BeginNs"]), int(arguments["EndNs"])
    else:
        start = round(float(event["ts"]) * 1000)
        end = start + round(float(event["dur"]) * 1000)
    return str(name).strip('"'), start, end, arguments


def decoded(piece: bytes, loads: Loads) -> dict[str, Any] | None:
    """Return an event, None for what is none even when its unescaped quotes are allowed for."""
    whole_piece = piece if piece.startswith(b"{") and piece[1:2] != b" " else b"{" + piece
    try:
        found = loads(whole_piece)
    except ValueError:
        found = _first_object(whole_piece) or _salvaged(piece)
    if not isinstance(found, dict):
        return None
    try:
        facts(found)
    except (KeyError, TypeError, ValueError):
        return None
    return found


def _first_object(piece: bytes) -> object:
    """Return the object that a piece begins with: behind the last one the list ends, and the system's facts stand."""
    try:
        return json.JSONDecoder().raw_decode(piece.decode("utf-8", "replace"))[0]
    except ValueError:
        return None


def _salvaged(piece: bytes) -> dict[str, Any] | None:
    numbers = {key.decode(): int(value) for key, value in _SALVAGE.findall(piece)}
    name, pid = _NAME.search(piece), _PID.search(piece)
    if not name or not pid or "BeginNs" not in numbers or "EndNs" not in numbers:
        return None
    return {"pid": int(pid[1]), "args": {**numbers, "Name": name[1].decode("utf-8", "replace")}}


def labels(path: str) -> dict[bytes, str]:
    """Return what the file's head calls its processes, by their numbers."""
    with opened(path) as source:
        head = source.read(_HEAD)
    return {pid: label.decode("utf-8", "replace") for label, pid in _LABEL.findall(head)}


def read_json(path: str, tally: Tally, loads: Loads = json.loads) -> None:
    """Add the dispatches and copies of a `results.json`, plain or gzip. Raises FormatError, OSError.

    Memory stays small whatever its size. A file that ends too early keeps its whole events, and the note says where.
    """
    if not _is_as_written(path):
        _read_reformatted(path, tally, loads)
        return

    def part(start: int, end: int | None, into: Tally) -> None:
        events = _Events(path, loads)
        for offset, piece in pieces(path, start, end):
            events.take(offset, piece)
        into.marks += events.damaged
        events.put_into(into)

    size = size_of(path)
    if size is None or size < halves.SMALLEST:
        part(0, None, tally)
    else:
        middle = _next_event(path, size // 2)

        def half(index: int, into: Tally) -> None:
            part(0 if index == 0 else middle + len(_SEPARATOR), middle if index == 0 else None, into)

        halves.read_halves(half, tally)
    marks, tally.marks = tally.marks, []
    tally.notes += _end_notes(path, marks)


def _is_as_written(path: str) -> bool:
    with opened(path) as source:
        return _SEPARATOR in source.read(_HEAD)


def _read_reformatted(path: str, tally: Tally, loads: Loads) -> None:
    """Add a file that another program has laid out anew: it is decoded as a whole."""
    with opened(path) as source:
        data = source.read(_LARGEST_REFORMATTED + 1)
    if len(data) > _LARGEST_REFORMATTED:
        raise FormatError(
            f"`{os.path.basename(path)}` is not laid out as rocprof does, and too large to decode at once"
        )
    try:
        found = loads(data)
    except ValueError as error:
        raise FormatError(f"`{os.path.basename(path)}` is damaged or cut: {str(error)[:200]}") from error
    listed = found.get("traceEvents") if isinstance(found, dict) else None
    events = [event for event in listed or [] if isinstance(event, dict)]
    known = {
        str(event.get("pid")).encode(): str(event["args"].get("name"))
        for event in events
        if event.get("ph") == "M" and event.get("name") == "process_name" and isinstance(event.get("args"), dict)
    }
    reader = _Events(path, loads, known)
    for event in events:
        if event.get("ph") == "X":
            reader.take_decoded(event)
    reader.put_into(tally)


def _next_event(path: str, offset: int) -> int:
    """Return where the next separator begins; the file's end when there is none."""
    with opened(path) as source:
        source.seek(offset)
        rest = b""
        while data := source.read(BLOCK):
            at = (rest + data).find(_SEPARATOR)
            if at >= 0:
                return offset - len(rest) + at
            offset += len(data)
            rest = data[-len(_SEPARATOR) :]
        return offset


def _end_notes(path: str, damaged: list[int]) -> list[str]:
    name = os.path.basename(path)
    notes = []
    if damaged:
        count = f"{len(damaged)} events are" if len(damaged) > 1 else "1 event is"
        notes.append(f"`{name}`: {count} damaged or cut, first at byte {min(damaged)}, and left out")
    elif size_of(path) is not None:
        with open(path, "rb") as source:
            source.seek(max(0, os.path.getsize(path) - _HEAD))
            end = source.read().rstrip()
        if not end.endswith((b"}", b"]")) or b"]" not in end:
            notes.append(f"`{name}` is cut at byte {os.path.getsize(path)}: its list of events does not end")
    return notes


def json_spans(path: str, loads: Loads = json.loads) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns of every event."""
    known = labels(path)
    for _, piece in pieces(path):
        pid = _PID.search(piece)
        event = decoded(piece, loads) if pid and b'"ph":"X"' in piece[:4096] else None
        if event is None or pid is None:
            continue
        name, start, end, _ = facts(event)
        label = known.get(pid[1], f"process {pid[1].decode()}")
        gpu = _GPU.fullmatch(label)
        yield f"GPU {gpu[1]}" if gpu else label, f"thread {event.get('tid', 0)}", name, start, end


# -- SQLite

_OPERATIONS = "OPS"
_KERNELS = ("KERN", "A")  # the latter until 2021


def is_database(database: sqlite3.Connection) -> bool:
    """Say whether a database is rocprof v1's."""
    return any("BeginNs" in columns(database, table) for table in (_OPERATIONS, "COPY", "HIP", "HSA", *_KERNELS))


def read_database(path: str, tally: Tally) -> None:
    """Add the dispatches and copies of a `results.db`. Raises FormatError."""
    with sqlitefile.opened(path) as database:
        _read_table(database, _OPERATIONS, "Name", tally)
        for table in _KERNELS:
            if not tally.series:
                _read_table(database, table, "KernelName", tally)
        if {"Name", "BeginNs", "EndNs"} <= columns(database, "COPY"):
            query = "SELECT Name, count(*), sum(EndNs - BeginNs) FROM COPY GROUP BY Name"
            for name, calls, total in database.execute(query):
                tally.add_copies(direction_name(text(name)), calls, int(total or 0), None)


def _read_table(database: sqlite3.Connection, table: str, name: str, tally: Tally) -> None:
    known = columns(database, table)
    if not {name, "BeginNs", "EndNs"} <= known:
        return
    wanted = ("dev-id" if "dev-id" in known else "gpu-id", "proc-id" if "proc-id" in known else "pid")
    sizes = ("grd", "wgr", "arch_vgpr" if "arch_vgpr" in known else "vgpr", "accum_vgpr", "sgpr", "lds", "scr")
    chosen = ", ".join(quoted(column) if column in known else "NULL" for column in (*wanted, *sizes))

    def put(key: tuple[Any, ...], series: Any) -> None:
        kernel = Kernel(text(key[0]).strip('"'))
        process = f"process {key[2]}" if key[2] is not None else "process"
        tally.add_series(kernel, process, f"GPU {key[1]}" if key[1] is not None else "", series)
        grid, workgroup, vgprs, agprs, sgprs, lds, scratch = map(whole, key[3:])
        shape = Shape(
            None if workgroup is None else (workgroup, 1, 1), None if grid is None else (grid, 1, 1),
            vgprs, agprs, sgprs, lds, scratch,
        )  # fmt: skip
        tally.add_launches(kernel, shape, len(series))

    query = f"SELECT BeginNs, EndNs - BeginNs, {quoted(name)}, {chosen} FROM {quoted(table)}"
    bin_rows(database.execute(query), put)


def database_spans(path: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Give group, lane, name, start and end in ns of every operation, copy, call and marker."""
    with sqlitefile.opened(path) as database:
        for table, group in (
            (_OPERATIONS, None),
            ("COPY", "memory copies"),
            ("HIP", "HIP"),
            ("HSA", "HSA"),
            ("rocTX", "markers"),
        ):
            known = columns(database, table)
            if not {"Name", "BeginNs", "EndNs"} <= known:
                continue
            device = quoted("dev-id") if "dev-id" in known else "0"
            lane = quoted("queue-id" if group is None and "queue-id" in known else "tid") if "tid" in known else "0"
            query = f"SELECT {device}, {lane}, Name, BeginNs, EndNs FROM {quoted(table)}"
            word = "queue" if group is None else "thread"
            for gpu, thread, name, start, end in database.execute(query):
                if isinstance(start, int) and isinstance(end, int):
                    yield group or f"GPU {gpu}", f"{word} {thread}", text(name).strip('"'), start, end
