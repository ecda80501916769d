"""Write Perfetto traces by hand: what rocprofv3's `pftrace` and `rocpd convert` hold, slices on named tracks.

Field numbers are those of perfetto's protos/perfetto/trace (trace_packet.proto, track_event.proto,
track_descriptor.proto, debug_annotation.proto; stable by protobuf's rules, seen in v52).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from .collection import Collected
from .identity import NOTICE

_SEQUENCE = 1
_CLEARED = 1  # SEQ_INCREMENTAL_STATE_CLEARED
_BEGIN, _END = 1, 2

Slice = tuple[str, int, int]
"""What happened, from when to when, in ns."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8", "replace"))


class PerfettoWriter:
    """Write one trace to a file: tracks are named once, slices on one track must nest."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_first = True

    def process(self, pid: int, name: str) -> int:
        """Describe a process; returns its track's id."""
        uuid = _uuid(f"process/{pid}")
        described = _number(1, pid) + _text(6, name)
        self._packet(_bytes(60, _number(1, uuid) + _bytes(3, described)))
        return uuid

    def track(self, parent: int, name: str) -> int:
        """Describe a track below a process; returns its id."""
        uuid = _uuid(f"{parent}/{name}")
        self._packet(_bytes(60, _number(1, uuid) + _text(2, name) + _number(5, parent)))
        return uuid

    def slices(self, track: int, category: str, slices: Iterable[Slice]) -> None:
        """Write slices, each with its exact bounds as annotations, and where it comes from."""
        for name, start_ns, end_ns in slices:
            notes = b"".join(
                _bytes(4, _text(10, key) + value)
                for key, value in (
                    ("begin_ns", _number(3, start_ns)),
                    ("end_ns", _number(3, end_ns)),
                    ("delta_ns", _number(4, end_ns - start_ns)),
                    ("source", _text(6, NOTICE)),
                )
            )
            begin = _number(9, _BEGIN) + _number(11, track) + _text(22, category) + _text(23, name) + notes
            self._packet(_number(8, start_ns) + _bytes(11, begin))
            self._packet(_number(8, end_ns) + _bytes(11, _number(9, _END) + _number(11, track)))

    def _packet(self, content: bytes) -> None:
        flags = _number(13, _CLEARED) if self._is_first else b""
        self._is_first = False
        self._file.write(_bytes(1, content + _number(10, _SEQUENCE) + flags))


def _uuid(text: str) -> int:
    """Return an id that fits into 63 bits and is the same for the same thing."""
    return zlib.crc32(text.encode()) << 31 | zlib.crc32(text[::-1].encode()) >> 1


def write_process(path: str, found: Collected, traces: set[str]) -> None:
    """Write what one process recorded of the domains asked for."""
    with open(path, "wb") as file:
        writer = PerfettoWriter(file)
        pid = found.process.pid
        process = writer.process(pid, f"{' '.join(found.process.command)} ({NOTICE})")
        if "kernel" in traces:
            for gpu in range(found.gpus):
                track = writer.track(process, f"COMPUTE AGENT [{gpu + 1}] QUEUE [{gpu}]")
                writer.slices(track, "kernel_dispatch", _kernels(found, gpu))
        for trace, kind, name in (
            ("memory_copy", "c", "COPY to/from AGENT [1]"),
            ("hip", "a", f"THREAD {pid} HIP"),
            ("hsa", "h", f"THREAD {pid} HSA"),
            ("marker", "m", f"THREAD {pid} MARKERS"),
        ):
            if trace in traces:
                writer.slices(writer.track(process, name), trace, _records(found, kind))


def _kernels(found: Collected, gpu: int) -> Iterator[Slice]:
    for one in found.dispatches():
        if one.gpu == gpu:
            yield found.kernels[one.kernel]["display"], one.start_ns, one.end_ns


def _records(found: Collected, kind: str) -> Iterator[Slice]:
    for record in found.records(kind):
        yield record.what if isinstance(record.what, str) else record.what[0], record.start_ns, record.end_ns
