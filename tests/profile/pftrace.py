"""Write spans as a Perfetto trace, by hand: the dozen fields of its protobuf that a slice needs.

Field numbers are those of perfetto.protos (trace_packet.proto, track_event.proto, track_descriptor.proto), v52.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chisel.node.chrometrace import Span

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
