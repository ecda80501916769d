"""Read what stand-in programs recorded for the stand-in profilers, one file per process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .identity import gpu_count

# What a HIP call does below itself, for traces of the HSA layer.
_BELOW = {
    "hipLaunchKernel": "hsa_signal_store_screlease",
    "hipMemcpy": "hsa_signal_wait_scacquire",
    "hipDeviceSynchronize": "hsa_signal_wait_scacquire",
}


@dataclass(frozen=True)
class Process:
    """Who ran: `environment` is the whole of it, as the real profiler stores it; instants are ns since boot."""

    pid: int
    ppid: int
    command: list[str]
    environment: dict[str, str]
    start_ns: int
    end_ns: int = 0


@dataclass(frozen=True)
class Record:
    """One thing that happened: a dispatch (k), a copy (c), a HIP call (a), an HSA call (h), or a marker (m)."""

    kind: str
    what: Any
    start_ns: int
    end_ns: int
    correlation: int


@dataclass(frozen=True)
class Dispatch:
    """One launch of a kernel: `number` counts from 1, `kernel` and `gpu` from 0; `grid` counts work-items."""

    number: int
    kernel: int
    gpu: int
    block: list[int]
    grid: list[int]
    start_ns: int
    end_ns: int
    correlation: int


@dataclass
class Collected:
    """Everything one process recorded; `records()` reads the file anew each time, so it may be large."""

    process: Process
    kernels: list[dict[str, Any]] = field(default_factory=list)
    launches: list[dict[str, Any]] = field(default_factory=list)
    path: str | None = None
    more_markers: list[str] = field(default_factory=list)

    @property
    def gpus(self) -> int:
        """Return how many GPUs the process used: its dispatches alternate over them."""
        return gpu_count(self.process.environment)

    def records(self, kinds: str) -> Iterator[Record]:
        """Yield the records of the given kinds in the order they were written."""
        if "m" in kinds:
            for text in self.more_markers:
                yield Record("m", text, self.process.start_ns, self.process.end_ns, 0)
        if self.path is None:
            return
        correlation = 0
        with open(self.path, encoding="utf-8") as file:
            next(file)
            for line in file:
                kind, what, start_ns, end_ns = json.loads(line)
                correlation += kind == "a"
                if kind in kinds:
                    yield Record(kind, what, start_ns, end_ns, correlation)
                if kind == "a" and "h" in kinds and what in _BELOW:
                    yield Record("h", _BELOW[what], start_ns + 200, end_ns - 200, correlation)

    def dispatches(self) -> Iterator[Dispatch]:
        """Yield every kernel launch in order."""
        gpus = self.gpus
        for number, record in enumerate(self.records("k"), 1):
            launch = self.launches[record.what]
            yield Dispatch(
                number, launch["kernel"], (number - 1) % gpus, launch["block"], launch["grid"], record.start_ns,
                record.end_ns, record.correlation,
            )  # fmt: skip


def collected(directory: str) -> list[Collected]:
    """Read the headers of all complete files, in the order the processes started."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(".jsonl"))
    found = [_read(os.path.join(directory, name)) for name in names]
    return sorted(found, key=lambda one: one.process.start_ns)


def _read(path: str) -> Collected:
    with open(path, encoding="utf-8") as file:
        header = json.loads(next(file))
        last = ""
        for line in file:
            last = line
    end_ns = json.loads(last)[3] if last else header["process"]["start_ns"]
    process = Process(**header["process"], end_ns=end_ns)
    return Collected(process, header["kernels"], header["launches"], path)
