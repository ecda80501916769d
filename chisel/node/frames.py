"""Speak in frames between laptop and droplet: one header, one payload, both ways over one SSH channel.

A frame is `kind` (u8), the payload's length (u32, big-endian) and the payload, at most `MAX_PAYLOAD` bytes. Output
frames (STDOUT, STDERR) begin with the u64 offset of their data in that stream and the u32 CRC-32 of the stream up to
the end of this frame, so that nothing lost or damaged goes unnoticed; STDIN begins with the u64 offset, ACK holds a u64
position, which counts the bytes of both output streams in the order they were read.
Standard library only, Python 3.10: the same module runs on the droplet and on the laptop.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

MAGIC = "chisel-node"
MAX_PAYLOAD = 1 << 20
HEADER = struct.Struct("!BI")
OFFSET = struct.Struct("!Q")
OUTPUT = struct.Struct("!QI")
TIME = struct.Struct("!d")

REQUEST_VARIABLE = "LC_CHISEL"
"""Holds the request where sshd passes it on (Debian's and Ubuntu's `AcceptEnv LANG LC_*`): it saves a round trip."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 0
    REQUEST = 1
    STDOUT = 2
    STDERR = 3
    STDIN = 4
    STDIN_EOF = 5
    SIGNAL = 6
    STARTED = 7
    EXIT = 8
    ERROR = 9
    HEARTBEAT = 10
    DATA = 11
    DATA_END = 12
    REPLY = 13
    PROGRESS = 14
    ACK = 15
    STDIN_ACK = 16
    END = 17
    LEAVE = 18
    SIZE = 19
    ATTACHED = 20
    TIME = 21
    RELAY = 22


_LAST_KIND = max(Kind)


class FrameError(ValueError):
    """The bytes are no frames: another program answered, or the stream is damaged."""


class Frame(NamedTuple):
    """One frame as it arrived."""

    kind: int
    payload: bytes

    def json(self) -> dict[str, Any]:
        """Return the payload as a JSON object; raises FrameError when it is none."""
        try:
            found = json.loads(self.payload)
        except ValueError as error:
            raise FrameError(f"frame {self.kind} holds no JSON") from error
        if not isinstance(found, dict):
            raise FrameError(f"frame {self.kind} holds no JSON object")
        return found


def encode(kind: int, payload: bytes | memoryview = b"") -> bytes:
    """Return one frame; raises FrameError for a payload above `MAX_PAYLOAD`."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a payload of {len(payload)} bytes does not fit into a frame")
    return HEADER.pack(kind, len(payload)) + payload


def encode_json(kind: int, obj: Any) -> bytes:
    r"""Return a frame holding an object; file names with surrogate escapes travel as `\udcXX`."""
    return encode(kind, as_json(obj))


def as_json(obj: Any) -> bytes:
    """Return an object as a frame holds it: ASCII without a line break or a NUL."""
    return json.dumps(obj, separators=(",", ":")).encode("ascii")


class Decoder:
    """Cut a byte stream into frames, whatever the chunks."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def has_rest(self) -> bool:
        """Say whether an unfinished frame is held: at the end of the stream it was cut."""
        return bool(self._rest)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Take a chunk and return the frames it completes; raises FrameError on what cannot be a frame."""
        rest = self._rest
        rest += data
        frames: list[Frame] = []
        position, end = 0, len(rest)
        while end - position >= HEADER.size:
            kind, length = HEADER.unpack_from(rest, position)
            if kind > _LAST_KIND or length > MAX_PAYLOAD:
                raise FrameError(f"no frame starts with {bytes(rest[position : position + 40])!r}")
            stop = position + HEADER.size + length
            if stop > end:
                break
            with memoryview(rest) as view:
                frames.append(Frame(kind, bytes(view[position + HEADER.size : stop])))
            position = stop
        del rest[:position]
        return frames
