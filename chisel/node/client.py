"""Speak with the client of a run without ever waiting for it: what is to be sent is queued, what came is cut up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from . import frames
from .stdio import Channel

if TYPE_CHECKING:
    from .listener import Visitor
    from .spool import Spool

_BLOCK = 256 << 10
_READ = 1 << 16
_AT_ONCE = 64


class Client:
    """One session's channel. `last_heard` is when it said something last, by the monotonic clock."""

    def __init__(self, channel: Channel, visitor: Visitor | None = None) -> None:
        self.fileno_in = channel.fileno_in
        self.fileno_out = channel.fileno_out
        self._channel = channel
        self._visitor = visitor
        self._told: list[bytes] = []
        self._out: list[bytes | memoryview] = []
        self.has_told_end = False
        self.has_left = False
        self.last_heard = time.monotonic()
        for descriptor in (self.fileno_in, self.fileno_out):
            os.set_blocking(descriptor, False)

    @classmethod
    def over(cls, visitor: Visitor) -> Client:
        """Return the client whose descriptors a visitor has handed over."""
        return cls(Channel(*visitor.descriptors), visitor)

    @property
    def has_unsent(self) -> bool:
        """Say whether something is queued."""
        return bool(self._out or self._told)

    def early(self) -> Iterator[frames.Frame]:
        """Give the frames that came with the request."""
        while self._channel.waiting:
            yield self._channel.waiting.popleft()

    def tell(self, frame: bytes) -> None:
        """Queue a frame ahead of output."""
        self._told.append(frame)

    def receive(self) -> list[frames.Frame] | None:
        """Return the frames at hand; None when the channel has ended or speaks nonsense."""
        try:
            data = os.read(self.fileno_in, _READ)
            if not data:
                return None
            self.last_heard = time.monotonic()
            return self._channel.decoder.feed(data)
        except BlockingIOError:
            return []
        except (OSError, frames.FrameError):
            return None

    def flush(self, spool: Spool, end: bytes | None) -> bool:
        """Send what is queued, then output, then how it ended, as much as the channel takes; False when it is gone."""
        while True:
            if not self._out:
                self._fill(spool, end)
            if not self._out:
                return True
            try:
                written = os.writev(self.fileno_out, self._out[:_AT_ONCE])
            except BlockingIOError:
                return True
            except OSError:
                return False
            done = 0
            while done < len(self._out) and written >= len(self._out[done]):
                written -= len(self._out[done])
                done += 1
            del self._out[:done]
            if written:
                self._out[0] = memoryview(self._out[0])[written:]

    def _fill(self, spool: Spool, end: bytes | None) -> None:
        self._out += self._told
        self._told.clear()
        if spool.has_more:
            self._out += spool.next(_BLOCK)
        elif end is not None and not self.has_told_end:
            self.has_told_end = True
            self._out.append(end)

    def refuse(self, code: str, message: str) -> None:
        """Say why this is the end, if the channel takes it at once, and close it."""
        if not self._out:
            frame = frames.encode_json(frames.Kind.ERROR, {"code": code, "message": message})
            with suppress(OSError):
                os.write(self.fileno_out, frame)
        self.close()

    def close(self) -> None:
        """Let the descriptors go; the standard ones stay taken, so that no other file gets their numbers."""
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in {self.fileno_in, self.fileno_out}:
            if descriptor <= 2:
                os.dup2(nowhere, descriptor)
            else:
                os.close(descriptor)
        os.close(nowhere)
        if self._visitor is not None:
            self._visitor.close()
