"""Say what a GPU did as rocprof v1 sees it: kernels, copies, and the barrier packets in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .collection import Collected
from .faults import BARRIER

_COPIES = {
    "MEMORY_COPY_HOST_TO_DEVICE": "CopyHostToDevice",
    "MEMORY_COPY_DEVICE_TO_HOST": "CopyDeviceToHost",
    "MEMORY_COPY_DEVICE_TO_DEVICE": "CopyDeviceToDevice",
}
_BARRIER_SHARE = 0.6


@dataclass(frozen=True)
class Operation:
    """One thing on the GPU's queues; `stream` is its lane in the trace."""

    name: str
    start_ns: int
    end_ns: int
    gpu: int
    queue: int
    correlation: int
    is_copy: bool = False
    stream: int = 1


def operations(found: Collected) -> Iterator[Operation]:
    """Yield kernels, then barriers, then copies.

    One barrier packet stands for the wait at the end of the dispatches. It takes long, as real ones do (35.8 % of a
    real MI300X file, rank 1): whoever ranks it among the kernels ranks it first.
    """
    first, last, spent, correlation = 0, 0, 0, 0
    for one in found.dispatches():
        yield Operation(
            found.kernels[one.kernel]["display"], one.start_ns, one.end_ns, one.gpu, one.gpu, one.correlation
        )
        first, last, spent = first or one.start_ns, one.end_ns, spent + one.end_ns - one.start_ns
        correlation = one.correlation
    if last:
        took = max(int(spent * _BARRIER_SHARE), 1)
        yield Operation(BARRIER, last + 100, last + 100 + took, 0, 0, correlation + 1)
    for record in found.records("c"):
        direction, _ = record.what
        name = _COPIES.get(direction, direction)
        yield Operation(name, record.start_ns, record.end_ns, 0, 0, record.correlation, is_copy=True, stream=0)
