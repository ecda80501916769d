"""Make spans of a run, and write them as a Perfetto trace by hand: the dozen fields of its protobuf that a slice needs.

Field numbers are those of perfetto.protos (trace_packet.proto, track_event.proto, track_descriptor.proto), v52.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from chisel.node.chrometrace import Span, Track, write_trace

UPTIME_NS = 8_819_330_200_067_564  # a machine's clock after 102 days: where doubles have lost the single nanosecond
DISPATCHES, CALLS = 300, 40
HOT_NS = 123_457


def spans(dispatches: int = DISPATCHES, calls: int = CALLS, *, hot_at: int | None = None) -> tuple[list[Span], Span]:
    """Return kernels and calls, and the kernel that took far longest (by default, in the middle)."""
    chance = random.Random(dispatches)
    hot_at = dispatches // 2 if hot_at is None else hot_at
    now, made = UPTIME_NS, []
    for number in range(dispatches):
        took = HOT_NS if number == hot_at else chance.randrange(1000, 9000)
        name = "void gemm<float, 128>(float const*)" if number == hot_at or number % 3 else "reduce_kernel"
        made.append(("GPU 0", "queue 1", name, now, now + took))
        now += took + chance.randrange(100, 900)
    host = [
        ("process 7", "thread 8", "hipLaunchKernel", UPTIME_NS + i * 900, UPTIME_NS + i * 900 + 400)
        for i in range(calls)
    ]
    return made + host, made[hot_at]


def write_chrome(spans: Sequence[Span], path: Path) -> int:
    """Write a Chrome trace as chisel does; return how many spans it holds."""
    return write_trace([Track("", lambda: spans, 0)], str(path)).spans


def window_of(span: Span) -> tuple[int, int]:
    return span[3], span[4]


SLICE_BEGIN, SLICE_END = 1, 2
SEQUENCE = 7


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def packet(*fields: bytes) -> bytes:
    return field(1, b"".join([*fields, field(10, SEQUENCE)]))


def write_pftrace(spans: Sequence[Span], path: Path) -> None:
    """Write every span as a slice on a track named for its group and lane."""
    tracks = {lane: number for number, lane in enumerate(dict.fromkeys((one[0], one[1]) for one in spans), 1)}
    out = [packet(field(60, field(1, number) + field(2, " ".join(lane)))) for lane, number in tracks.items()]
    for group, lane, name, start, end in spans:
        on = field(11, tracks[group, lane])
        out.append(packet(field(8, start), field(11, field(9, SLICE_BEGIN) + on + field(23, name))))
        out.append(packet(field(8, end), field(11, field(9, SLICE_END) + on)))
    path.write_bytes(b"".join(out))
