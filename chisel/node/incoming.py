"""Take a stream from the client, or from a neighbour to which the client has given it; pass it on to other neighbours.

RELAY frames on the client's SSH session set that up. From the client: `{"listen": private address, "certificate",
"key"}` (this droplet is to get its stream from a neighbour), `{"feed": [[address, port]], "certificate", "key"}` (pass
the stream on to these), `{"promised": [[number, digest]]}` (what the files of a push are), `{"give_up": true}` (the
neighbour will not do it). From the droplet: `{"port"}`, and
`{"lost": why, "staged": [...]}`: it has not come that way, the client is to send what is still missing itself.

A neighbour is believed nothing: a stream that it forwarded counts when the client has said over SSH what the sha256 of
all its frames is, and the hash of the tree that it makes. Standard library only, Python 3.10.
"""

from __future__ import annotations

import hashlib
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from . import frames, stdio
from .frames import Frame, Kind

if TYPE_CHECKING:
    from .links import Credentials, Downstream, Listener, Upstream

LINK_S = 10.0
"""How long a droplet listens for its neighbour."""
SILENCE_S = 20.0
"""How long a neighbour may be silent, who says every other second that it lives."""
_LOOK_S = 1.0
_STREAM = frozenset({Kind.PROGRESS, Kind.DATA, Kind.DATA_END})


class LostError(Exception):
    """The stream does not come whole from the neighbour: the message says why."""


class Incoming:
    """The frames of one stream, wherever they come from."""

    def __init__(self, channel: stdio.Channel) -> None:
        self._channel = channel
        self._credentials: Credentials | None = None
        self._listener: Listener | None = None
        self._upstream: Upstream | None = None
        self._downstream: list[Downstream] = []
        self._waiting: deque[Frame] = deque()
        self._digest = hashlib.sha256()
        self._end: Frame | None = None
        self._verdict: Frame | None = None
        self._silent_at = 0.0
        self._promised: dict[int, str] = {}
        self.relayed_bytes = 0

    @property
    def is_relayed(self) -> bool:
        """Say whether the stream is to come from a neighbour."""
        return self._listener is not None or self._upstream is not None

    def receive(self, timeout_s: float) -> Frame | None:
        """Return the next frame, None when the client went away. Raises TimeoutError, LostError, OSError."""
        while True:
            if self.is_relayed:
                frame = self._receive_relayed(timeout_s)
            else:
                frame = self._channel.receive(timeout_s)
                if frame is not None and frame.kind in _STREAM:
                    self._pass_on(frame)
            if frame is None or frame.kind != Kind.RELAY:
                return frame
            self._obey(frame.json())

    def promised(self, number: int, timeout_s: float) -> str:
        """Wait for what the client promises of a file of a push that a neighbour forwards: its digest."""
        end = time.monotonic() + timeout_s
        while number not in self._promised:
            frame = self._channel.receive(max(0.0, end - time.monotonic()))
            if frame is None:
                raise LostError("the client went away")
            if frame.kind == Kind.RELAY:
                self._obey(frame.json())
            elif frame.kind == Kind.DATA_END:
                self._verdict = frame
        return self._promised.pop(number)

    def give_up(self, why: str, staged: list[str]) -> None:
        """Leave the neighbours, and have the client send what is still missing."""
        self.close()
        self._waiting.clear()
        self._end = self._verdict = None
        self._digest = hashlib.sha256()
        self._channel.send_json(Kind.RELAY, {"lost": why, "staged": staged})

    def close(self) -> None:
        """Leave the neighbours, wherever the stream is."""
        if self._listener is not None:
            self._listener.close()
        if self._upstream is not None:
            self._upstream.close()
        self._listener = self._upstream = None
        for one in self._downstream:
            one.cut()
        self._downstream.clear()

    # -- what the client orders

    def _obey(self, order: dict[str, Any]) -> None:
        from . import links  # it loads OpenSSL, which few streams need

        if order.get("give_up"):
            if self.is_relayed:
                raise LostError("the client gave it up")
            return
        try:
            if "certificate" in order:
                self._credentials = links.Credentials(str(order["certificate"]), str(order["key"]))
            if "listen" in order and self._credentials is not None:
                self._listener = links.Listener(str(order["listen"]), self._credentials)
        except OSError as error:
            if "listen" not in order:
                return  # whom it should have fed waits in vain, and says so
            raise LostError(f"cannot listen on the private network: {error.strerror}") from error
        for number, digest in order.get("promised", ()):
            self._promised[int(number)] = str(digest)
        if "listen" in order and self._listener is not None:
            self._silent_at = time.monotonic() + LINK_S
            self._channel.send_json(Kind.RELAY, {"port": self._listener.port})
        if self._credentials is not None:
            for address, port in order.get("feed", ()):
                self._downstream.append(links.Downstream(str(address), int(port), self._credentials))

    # -- what a neighbour forwards

    def _receive_relayed(self, timeout_s: float) -> Frame | None:
        heard_by = time.monotonic() + timeout_s
        while True:
            if self._waiting:
                frame: Frame | None = self._counted(self._waiting.popleft())
                if frame is not None:
                    return frame
            elif self._end is not None and self._verdict is not None:
                return self._judged(self._verdict)
            elif self._is_said():
                frame = self._channel.receive(0)
                if frame is None or frame.kind != Kind.DATA_END:
                    return frame
                self._verdict = frame
            elif self._end is None:
                if not self._look() and time.monotonic() > self._silent_at:
                    raise LostError("no neighbour came" if self._upstream is None else "the neighbour fell silent")
            elif time.monotonic() > heard_by:
                raise TimeoutError(f"no frame within {timeout_s} s")
            else:
                select.select([self._channel.fileno_in], [], [], _LOOK_S)

    def _is_said(self) -> bool:
        """Say whether the client said something."""
        return bool(self._channel.waiting or select.select([self._channel.fileno_in], [], [], 0)[0])

    def _look(self) -> bool:
        """Wait for the client or the neighbour, and take what the neighbour has; False when it has nothing."""
        source = self._upstream or self._listener
        assert source is not None
        if (self._upstream is None or not self._upstream.has_more) and source not in select.select(
            [self._channel.fileno_in, source], [], [], _LOOK_S
        )[0]:
            return False
        if self._upstream is not None:
            self._read(self._upstream)
        elif self._listener is not None:
            self._upstream = self._listener.accept()
            if self._upstream is None:
                return False
            self._listener.close()
            self._listener = None
            self._silent_at = time.monotonic() + SILENCE_S
        return True

    def _read(self, upstream: Upstream) -> None:
        try:
            found = upstream.read()
        except (OSError, frames.FrameError) as error:
            raise LostError(f"the link to the neighbour broke: {error}") from error
        if found is None:
            raise LostError("the neighbour ended the stream too early")
        self._silent_at = time.monotonic() + SILENCE_S
        for frame in found:
            if frame.kind in _STREAM:
                self._waiting.append(frame)
            elif frame.kind != Kind.HEARTBEAT:
                raise LostError(f"the neighbour sent frame {frame.kind}")

    def _counted(self, frame: Frame) -> Frame | None:
        """Take a forwarded frame into account; the last one, None, waits for what the client says of it."""
        self._digest.update(frames.encode(frame.kind, frame.payload))
        self.relayed_bytes += len(frame.payload) if frame.kind == Kind.DATA else 0
        self._pass_on(frame)
        if not _is_last(frame):
            return frame
        self._end = frame
        return None

    def _judged(self, verdict: Frame) -> Frame:
        if verdict.json().get("digest") != self._digest.hexdigest():
            raise LostError("the neighbour forwarded something else")
        self.close()
        return verdict

    def _pass_on(self, frame: Frame) -> None:
        if not self._downstream:
            return
        data = frames.encode(frame.kind, frame.payload)
        for one in self._downstream:
            one.put(data)
        if _is_last(frame):
            for one in self._downstream:
                one.put(None)
            for one in self._downstream:
                one.join()
            self._downstream.clear()


def _is_last(frame: Frame) -> bool:
    return frame.kind == Kind.DATA_END and (not frame.payload or frame.json().get("next") is None)
