"""Rank what a profiler wrote, on the droplet, before anything is sent: the `aggregate` role.

The conversation: REQUEST `{"directory"}`; DATA frames, one zlib stream of a JSON object (`rank` below gives it);
DATA_END; then, when the files are fit to leave the droplet (environments blanked, trace written), REPLY.
Standard library only, Python 3.10.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from . import chrometrace, env, frames, rocpd, rocprofcsv
from .names import is_pseudo, normalise
from .rocprofcsv import FormatError
from .statistics import Kernel, add_sums, ranked
from .stdio import Channel, Refused

TRACE_FILE = "trace.json.gz"
RAW_DIRECTORY = "raw"
_STAND_IN_NOTE = "SANDBOX-STAND-IN.txt"
_CHUNK = 1 << 18
_API_TRACES = ("hip_api_trace.csv", "hsa_api_trace.csv", "marker_api_trace.csv")

Reader = Callable[[str, dict[str, Kernel]], list[str]]


def main(channel: Channel, request: dict[str, Any]) -> int:
    """Serve one profile: its figures first, then its files made ready; return 0."""
    directory = env.expand(str(request.get("directory") or ""))
    raw = os.path.join(directory, RAW_DIRECTORY)
    if not os.path.isdir(raw):
        raise Refused("no-profile", f"there is no profile in `{request.get('directory')}`")
    figures = rank(raw)
    data = zlib.compress(json.dumps(figures).encode("ascii"), 6)
    for start in range(0, len(data), _CHUNK):
        channel.send(frames.Kind.DATA, data[start : start + _CHUNK])
    channel.send(frames.Kind.DATA_END)
    withheld = make_fit_to_leave(raw)
    spans = write_trace(raw, os.path.join(directory, TRACE_FILE))
    channel.send_json(frames.Kind.REPLY, {"spans": spans, "withheld": withheld})
    return 0


def rank(raw: str) -> dict[str, Any]:
    """Rank every kernel of the files below a directory: the best source there is, all its processes together.

    The object: `source` (`rocpd`, `trace`, `stats` or None), `files`, `dispatches`, `kernels` and `pseudo` (figures in
    rank order, see `statistics`), `notes` (what was wrong with which file) and `stand_in` (what a player says of
    itself, None for a real profiler).
    """
    paths = list(files_below(raw))
    notes: list[str] = []
    for source, ending, reader in _SOURCES:
        chosen = [path for path in paths if path.endswith(ending)]
        kernels = _read(chosen, reader, notes)
        if kernels:
            return _figures(source, chosen, kernels, notes, _stand_in(paths))
    return _figures(None, [path for path in paths if path.endswith((".db", ".csv"))], {}, notes, _stand_in(paths))


_SOURCES: tuple[tuple[str, str, Reader], ...] = (
    ("rocpd", ".db", rocpd.read_dispatches),
    ("trace", "kernel_trace.csv", rocprofcsv.read_trace),
    ("stats", "kernel_stats.csv", rocprofcsv.read_stats),
)


def _read(paths: list[str], reader: Reader, notes: list[str]) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {}
    for path in paths:
        try:
            notes += reader(path, kernels)
        except (FormatError, OSError) as error:
            notes.append(str(error))
    return kernels


def _figures(
    source: str | None, paths: list[str], kernels: dict[str, Kernel], notes: list[str], stand_in: str | None
) -> dict[str, Any]:
    real, pseudo = _by_normal_name(kernels)
    found = ranked(real)
    return {
        "source": source,
        "files": len(paths),
        "dispatches": sum(one["calls"] for one in found),
        "kernels": found,
        "pseudo": ranked(pseudo),
        "notes": notes,
        "stand_in": stand_in,
    }


def _by_normal_name(kernels: dict[str, Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    """Return real kernels and pseudo rows; names that differ only in their endings are one kernel."""
    real: dict[str, Kernel] = {}
    pseudo: list[Kernel] = []
    for name, kernel in kernels.items():
        if is_pseudo(name):
            pseudo.append(kernel)
            continue
        short = normalise(name)
        known = real.setdefault(short, kernel)
        kernel.name = short
        if known is not kernel:
            _merge(known, kernel)
    return list(real.values()), pseudo


def _merge(into: Kernel, other: Kernel) -> None:
    into.durations.extend(other.durations)
    if other.summed is not None:
        into.summed = add_sums(into.summed, other.summed)


def files_below(directory: str) -> Iterator[str]:
    """Give every plain file below a directory, in order of their paths; links are not followed."""
    for place, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def _stand_in(paths: list[str]) -> str | None:
    for path in paths:
        if os.path.basename(path) == _STAND_IN_NOTE:
            with open(path, encoding="utf-8", errors="replace") as note:
                line = note.readline(300).strip().rstrip(".")
                return line.partition(": ")[2] or line
    return None


def make_fit_to_leave(raw: str) -> list[str]:
    """Blank the environments in every database; one in which that fails is removed. Return what was withheld."""
    withheld = []
    for path in files_below(raw):
        if path.endswith(("-journal", "-wal", "-shm")):
            os.unlink(path)  # the rest of a killed writer: it may hold what was just blanked
            continue
        if not path.endswith(".db"):
            continue
        try:
            rocpd.scrub(path)
        except (FormatError, OSError) as error:
            os.unlink(path)
            withheld.append(f"{error}; it was not brought, because it may hold the values of environment variables")
    return withheld


def write_trace(raw: str, path: str) -> int:
    """Write what the files hold as one trace for a viewer; return the number of its spans."""
    return chrometrace.write_trace(_spans(raw), path)


def _spans(raw: str) -> Iterator[chrometrace.Span]:
    paths = list(files_below(raw))
    databases = [path for path in paths if path.endswith(".db")]
    for path in databases:
        try:
            yield from rocpd.spans(path)
        except FormatError:
            continue  # ranking has said so
    if not databases:
        for path in paths:
            try:
                yield from _csv_spans(path)
            except (FormatError, OSError):
                continue


def _csv_spans(path: str) -> Iterator[chrometrace.Span]:
    if path.endswith("kernel_trace.csv"):
        for name, lane, start, end in rocprofcsv.spans(path, "kernel_name", ("agent_id", "queue_id")):
            yield f"GPU {lane[0]}", f"queue {lane[-1]}", name, start, end
    elif path.endswith("memory_copy_trace.csv"):
        for name, lane, start, end in rocprofcsv.spans(path, "direction", ("destination_agent_id",)):
            yield "memory copies", " ".join(lane), name, start, end
    elif path.endswith(_API_TRACES):
        for name, lane, start, end in rocprofcsv.spans(path, "function", ("process_id", "thread_id")):
            yield f"process {lane[0]}", f"thread {lane[-1]}", name, start, end
