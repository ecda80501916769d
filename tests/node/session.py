"""Talk to a role of the packed node program over pipes, as sshd would run it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chisel.node import frames
from chisel.node.frames import Frame, Kind

DEADLINE_S = 20.0

RUN_1, RUN_2, RUN_3 = (f"r{number}-{os.getpid()}" for number in (1, 2, 3))
"""Runs of one name share a control group: those of another worker's tests have other names."""


class Session:
    """One role under way; reading stops when the test does not read."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._decoder = frames.Decoder()
        self._waiting: list[Frame] = []
        hello = self.next()
        assert hello is not None
        self.hello = hello.json()

    def send(self, kind: int, payload: bytes = b"") -> None:
        assert self.process.stdin
        self.process.stdin.write(frames.encode(kind, payload))
        self.process.stdin.flush()

    def send_json(self, kind: int, obj: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(frames.encode_json(kind, obj))
        self.process.stdin.flush()

    def next(self) -> Frame | None:
        """Return the next frame, None at the end."""
        assert self.process.stdout
        end = time.monotonic() + DEADLINE_S
        while not self._waiting:
            assert select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0], "nothing came"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                return None
            self._waiting = self._decoder.feed(data)
        return self._waiting.pop(0)

    def until(self, kind: Kind) -> Frame:
        """Return the next frame of a kind, dropping others."""
        while True:
            frame = self.next()
            assert frame is not None, f"the end came before {kind!r}"
            if frame.kind == kind:
                return frame

    def rest(self) -> tuple[bytes, bytes, dict[str, Any]]:
        """Follow a command to its end, checking that no offset has a gap; return stdout, stderr, the exit facts."""
        found = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
        while True:
            frame = self.next()
            assert frame is not None, "the end came before the exit"
            if frame.kind in found:
                into = found[Kind(frame.kind)]
                offset, crc32 = frames.OUTPUT.unpack_from(frame.payload)
                assert offset == len(into)
                into += frame.payload[frames.OUTPUT.size :]
                assert crc32 == zlib.crc32(into)
            elif frame.kind == Kind.EXIT:
                return bytes(found[Kind.STDOUT]), bytes(found[Kind.STDERR]), frame.json()
            else:
                assert frame.kind in {Kind.STARTED, Kind.TIME, Kind.STDIN_ACK, Kind.HEARTBEAT, Kind.ATTACHED}, frame


@contextmanager
def started(
    program: Path, role: str, request: Mapping[str, Any] | None, home: Path, python: str | None = None, **more: str
) -> Iterator[Session]:
    """Start a role with a home of its own, and `more` variables; leaving closes its input and waits for its end."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", **more}
    process = subprocess.Popen(
        [python or sys.executable, "-I", "-S", str(program), role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=home,
        env=environment,
    )
    assert process.stdin
    assert process.stdout
    try:
        session = Session(process)
        if request is not None:
            session.send_json(Kind.REQUEST, dict(request))
        yield session
        process.stdin.close()
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
