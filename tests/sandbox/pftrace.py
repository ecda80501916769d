"""Read Perfetto traces as far as tests need: the wire format of protobuf, tracks, and slices on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

PACKET, TIMESTAMP, TRACK_EVENT, TRACK_DESCRIPTOR = 1, 8, 11, 60
BEGIN, END = 1, 2


@dataclass
class Track:
    """A track with its slices as (name, start, end), in ns."""

    name: str
    parent: int | None
    slices: list[tuple[str, int, int]] = field(default_factory=list)
    open: list[tuple[str, int]] = field(default_factory=list)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give each field's number and value: a number, or bytes."""
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        if key & 7 == 0:
            value, position = varint(data, position)
            yield key >> 3, value
        else:
            assert key & 7 == 2, f"wire type {key & 7} at {position}"
            length, position = varint(data, position)
            assert position + length <= len(data), "cut"
            yield key >> 3, data[position : position + length]
            position += length


def varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def tracks_of(data: bytes) -> dict[int, Track]:
    """Return the tracks with their slices; asserts that every slice lies on a described track and ends."""
    tracks: dict[int, Track] = {}
    for number, packet in fields(data):
        assert number == PACKET
        assert isinstance(packet, bytes)
        parts = dict(fields(packet))
        if TRACK_DESCRIPTOR in parts:
            described = dict(fields(bytes(parts[TRACK_DESCRIPTOR])))  # type: ignore[arg-type]
            process = dict(fields(bytes(described.get(3, b""))))  # type: ignore[arg-type]
            name = bytes(described.get(2) or process[6]).decode()  # type: ignore[arg-type]
            tracks[int(described[1])] = Track(name, described.get(5))  # type: ignore[arg-type]
        else:
            event = dict(fields(bytes(parts[TRACK_EVENT])))  # type: ignore[arg-type]
            track, at = tracks[int(event[11])], int(parts[TIMESTAMP])
            if event[9] == BEGIN:
                track.open.append((bytes(event[23]).decode(), at))  # type: ignore[arg-type]
            else:
                name, start = track.open.pop()
                track.slices.append((name, start, at))
    assert not [track for track in tracks.values() if track.open]
    return tracks
