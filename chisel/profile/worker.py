"""Rank files and write traces in a process of its own: the event loop stays free, and memory is given back.

One JSON request on standard input, one JSON answer on standard output: `{"figures"}`, `{"written"}`, or `{"error"}`
with `kind` (`usage` or `failed`), `message` and `hint`. Started by `profile.local` only. Single-threaded, so that
large files can be read by a fork as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import orjson

from chisel.node import chrometrace, formats, ranking, spans
from chisel.node.table import Wishes, first_part
from chisel.node.tally import FormatError

_TAKES = "--from takes what rocprofv3, rocprof or rpd wrote: a file, a directory of them, or a profile of chisel's"
_NEXT_STEPS = {
    "other-stats": "it holds sums of API calls or copies; give the directory, or its kernel_stats.csv or stats.csv",
    "calls": "it holds API calls or markers; give the directory, or its kernel_trace.csv",
    "copies": "it holds memory copies; give the directory, or its kernel_trace.csv",
}


class Trouble(Exception):
    """Something that cannot be ranked: what it is, and what to do next."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.answer = {"error": {"kind": kind, "message": message, "hint": hint}}


def main() -> int:
    """Serve one request; return 0 whenever an answer was given."""
    request = orjson.loads(sys.stdin.buffer.read())
    try:
        answer = _SERVICES[request["do"]](request)
    except Trouble as trouble:
        answer = trouble.answer
    except FormatError as error:
        answer = Trouble("failed", str(error), _TAKES).answer
    except OSError as error:
        where = f"`{error.filename}` " if error.filename else ""
        answer = Trouble("failed", f"{where}cannot be read or written: {error.strerror or error}", _TAKES).answer
    except MemoryError:
        answer = Trouble("failed", "the files are too large for this machine's memory", _TAKES).answer
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 0


def _rank(request: dict[str, Any]) -> dict[str, Any]:
    path = os.path.abspath(request["path"])
    _check(path)
    wishes = Wishes(request.get("kernel"), int(request.get("skip_warmup") or 0))
    try:
        wishes.pattern()
    except FormatError as error:
        raise Trouble("usage", str(error), "quote it for the shell: --kernel 'gemm|softmax'") from error
    place = _raw_of(path)
    figures = ranking.rank(place, wishes, orjson.loads)
    if not figures["kernels"] and not figures["pseudo"] and not figures["filtered"]:
        _explain(path, place, figures)
    return {"figures": first_part(figures, max(int(request.get("top") or 0), len(figures["kernels"])))}


def _raw_of(path: str) -> str:
    """Return where a profile of chisel's has its files; any other path itself."""
    raw = os.path.join(path, "raw")
    return raw if os.path.isdir(raw) else path


def _check(path: str) -> None:
    if not os.path.exists(path):
        raise Trouble("usage", f"`{path}` does not exist", _TAKES)
    if os.path.isdir(path):
        os.listdir(path)  # says now what it cannot do
    elif os.path.isfile(path):
        with open(path, "rb"):
            return
    else:
        raise Trouble("usage", f"`{path}` is neither a file nor a directory", _TAKES)


def _explain(path: str, place: str, figures: dict[str, Any]) -> None:
    """Raise Trouble for a file that holds no dispatch, and for a directory without any file of a profiler."""
    if figures["notes"] and (os.path.isfile(path) or not figures["files"]):
        raise Trouble("failed", "; ".join(figures["notes"]), _TAKES)
    if os.path.isfile(path):
        kind = formats.kind_of(path)
        name = os.path.basename(path)
        if kind == "unknown":
            raise Trouble("usage", f"`{path}` is of no format that chisel ranks{_looks_like(path)}", _TAKES)
        if kind in _NEXT_STEPS:
            raise Trouble("usage", f"`{name}` holds no kernels", _NEXT_STEPS[kind])
        if kind == "counters":
            raise Trouble("usage", f"`{name}` holds counters without times", "give the directory it lies in")
        raise Trouble("failed", f"`{name}` holds no dispatch of a kernel", "was the program run with --kernel-trace?")
    if not figures["files"]:
        raise Trouble("usage", f"`{place}` holds no file of a profiler", _TAKES)


def _looks_like(path: str) -> str:
    with open(path, "rb") as source:
        head = source.read(64)
    if path.endswith(".pftrace"):
        return ": it is a Perfetto trace, open it with `--open` or in ui.perfetto.dev"
    if os.path.basename(path) == "trace.json.gz" or head.startswith(formats.OWN_TRACE[:20]):
        return ": it is chisel's trace for viewers, rank the directory it lies in"
    return ": it is empty" if not head else ""


def _write_trace(request: dict[str, Any]) -> dict[str, Any]:
    tracks = [_track(name, path, len(request["tracks"]) > 1) for name, path in request["tracks"]]
    written = chrometrace.write_trace(tracks, request["out"], request.get("find"))
    return {"written": written._asdict()}


def _track(name: str, path: str, is_one_of_several: bool) -> chrometrace.Track:
    place = os.path.abspath(path)
    _check(place)
    give: Callable[[], Iterable[chrometrace.Span]] = partial(spans.spans_of, _raw_of(place), orjson.loads)
    if not is_one_of_several:
        return chrometrace.Track("", give, 0)
    return chrometrace.Track(name, give, chrometrace.first_start(give()))


_SERVICES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"rank": _rank, "trace": _write_trace}

if __name__ == "__main__":
    sys.exit(main())
