"""Hold output back until a droplet's command has ended: whole, or folded where several gave the same.

What is held lies in temporary files beyond a megabyte, so that memory stays bounded.
"""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO

from chisel.events import Stream

HELD_IN_MEMORY_BYTES = 1 << 20
PIECE_BYTES = 1 << 18
LONGEST_DIFF_LINES = 20_000
STREAMS: tuple[Stream, Stream] = ("stdout", "stderr")


class Held:
    """One droplet's output."""

    def __init__(self, files: ExitStack) -> None:
        self._files: dict[Stream, IO[bytes]] = {
            stream: files.enter_context(tempfile.SpooledTemporaryFile(max_size=HELD_IN_MEMORY_BYTES))  # noqa: SIM115
            for stream in STREAMS
        }
        self._digests = {stream: hashlib.sha256() for stream in STREAMS}

    def add(self, stream: Stream, data: bytes) -> None:
        """Keep a piece."""
        self._files[stream].write(data)
        self._digests[stream].update(data)

    @property
    def key(self) -> tuple[bytes, ...]:
        """Return what equal outputs share, and different ones do not."""
        return tuple(self._digests[stream].digest() for stream in STREAMS)

    def pieces(self, stream: Stream) -> Iterator[bytes]:
        """Give a stream's bytes from its start."""
        source = self._files[stream]
        source.seek(0)
        while piece := source.read(PIECE_BYTES):
            yield piece
        source.seek(0, 2)

    def lines(self, stream: Stream) -> list[str]:
        """Return a stream's lines as text."""
        return b"".join(self.pieces(stream)).decode("utf-8", "replace").splitlines()


class Collector:
    """Every droplet's output of one command."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._held: dict[str, Held] = {}

    def add(self, host: str, stream: Stream, data: bytes) -> None:
        """Keep a piece of a droplet's output."""
        self.of(host).add(stream, data)

    def of(self, host: str) -> Held:
        """Return what a droplet has given so far."""
        if host not in self._held:
            self._held[host] = Held(self._files)
        return self._held[host]

    def folded(self, statuses: Sequence[tuple[str, int]]) -> list[tuple[list[str], Held]]:
        """Return droplets with equal output and status together, the largest group first."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for host, status in statuses:
            groups.setdefault((self.of(host).key, status), []).append(host)
        ordered = sorted(groups.values(), key=lambda hosts: -len(hosts))
        return [(hosts, self.of(hosts[0])) for hosts in ordered]

    def closing(self) -> Iterator[bytes]:
        """Give nothing, and let the files go when asked for it: after what was to be read from them."""
        self._files.close()
        yield b""


def differences(base: Held, other: Held, base_name: str, other_name: str) -> list[str]:
    """Return a unified diff of two outputs, stream by stream; of very long ones only where they begin to differ."""
    found: list[str] = []
    for stream in STREAMS:
        one, two = base.lines(stream), other.lines(stream)
        if one == two:
            continue
        names = f"{base_name} ({stream})", f"{other_name} ({stream})"
        if max(len(one), len(two)) > LONGEST_DIFF_LINES:
            at = next((index for index, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
            line = (min(len(one), len(two)) if at is None else at) + 1
            found += [
                f"--- {names[0]}",
                f"+++ {names[1]}",
                f"@@ too long to compare; they differ from line {line:,} on @@",
            ]
        else:
            found += difflib.unified_diff(one, two, *names, lineterm="")
    return found
