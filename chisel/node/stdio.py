"""Carry frames over standard input and output, blocking: for roles that do one thing at a time."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from typing import Any

from . import frames

_CHUNK = 1 << 16


class Refused(Exception):
    """A request that this role will not serve: `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Channel:
    """Send and receive frames; `fileno_in` and `fileno_out` are for a role that polls by itself."""

    def __init__(self, fileno_in: int = 0, fileno_out: int = 1) -> None:
        self.fileno_in = fileno_in
        self.fileno_out = fileno_out
        self.decoder = frames.Decoder()
        self.waiting: deque[frames.Frame] = deque()

    def send(self, kind: int, payload: bytes | memoryview = b"") -> None:
        """Send one frame, waiting while the channel is full; raises BrokenPipeError when nobody reads any more."""
        self.write(frames.encode(kind, payload))

    def send_json(self, kind: int, obj: Any) -> None:
        """Send an object."""
        self.write(frames.encode_json(kind, obj))

    def write(self, data: bytes) -> None:
        """Write whole frames."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fileno_out, view) :]

    def receive(self, timeout_s: float | None = None) -> frames.Frame | None:
        """Return the next frame, None at the end of input; raises TimeoutError after `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.waiting:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self.fileno_in], [], [], left)[0]:
                raise TimeoutError(f"no frame within {timeout_s} s")
            data = os.read(self.fileno_in, _CHUNK)
            if not data:
                if self.decoder.has_rest:
                    raise Refused("cut", "the input ends within a frame")
                return None
            self.waiting.extend(self.decoder.feed(data))
        return self.waiting.popleft()
