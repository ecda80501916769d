"""Give the spans of a run for a trace viewer, out of its best source. Standard library only, Python 3.10."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from . import columns, rocpd, rocprofcsv, rocprofjson, rocprofv1, rpd
from .chrometrace import Span
from .formats import Kind
from .ranking import Files
from .tally import FormatError, Loads, direction_name

Reader = Callable[[str, Loads], Iterator[Span]]


def _kernels(path: str, _: Loads) -> Iterator[Span]:
    lanes = (columns.AGENT, ("queue_id", "queue-id", "stream_id"), columns.PROCESS)
    for name, (agent, queue, _process), start, end in rocprofcsv.spans(path, lanes):
        yield columns.gpu_name(agent) if agent else "GPU", f"queue {queue}", name, start, end


def _copies(path: str, _: Loads) -> Iterator[Span]:
    for name, (agent,), start, end in rocprofcsv.spans(path, [("destination_agent_id",)]):
        yield "memory copies", f"to {columns.gpu_name(agent)}", direction_name(name), start, end


def _calls(path: str, _: Loads) -> Iterator[Span]:
    for name, (process, thread), start, end in rocprofcsv.spans(path, [columns.PROCESS, ("thread_id", "tid")]):
        yield f"process {process}", f"thread {thread}", name, start, end


_READERS: tuple[tuple[tuple[Kind, Reader], ...], ...] = (
    (("rocpd", lambda path, _: rocpd.spans(path)),),
    (("json", rocprofjson.spans),),
    (("trace", _kernels), ("copies", _copies), ("calls", _calls)),
    (("rpd", lambda path, _: rpd.spans(path)),),
    (("v1-db", lambda path, _: rocprofv1.database_spans(path)),),
    (("v1-json", rocprofv1.json_spans),),
    (("v1-csv", _kernels), ("copies", _copies), ("calls", _calls)),
)


def spans_of(place: str, loads: Loads = json.loads) -> Iterator[Span]:
    """Give group, lane, name, start and end in ns of everything below a directory; damaged files end early.

    Raises OSError.
    """
    files = Files(place)
    for readers in _READERS:
        if not files.by_kind.get(readers[0][0]):
            continue
        for kind, reader in readers:
            passes = files.passes(kind)
            for path in next(iter(passes.values()), []):
                try:
                    yield from reader(path, loads)
                except (FormatError, ValueError):
                    continue  # ranking has said so
        return
