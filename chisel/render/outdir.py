"""Write each droplet's streams into files of their own, as they come."""

from __future__ import annotations

import os
from pathlib import Path

from chisel.events import Output
from chisel.render.writer import Writer


class OutDirectory:
    """The files `<droplet>.stdout` and `<droplet>.stderr` of one command, new ones: what lay there is replaced."""

    def __init__(self, place: Path, writer: Writer) -> None:
        self._place = place
        self._writer = writer
        self._open: dict[tuple[str, str], int] = {}

    def expect(self, hosts: tuple[str, ...]) -> None:
        """Make every droplet's files: empty ones say that nothing came. Raises OSError."""
        self._place.mkdir(parents=True, exist_ok=True)
        for host in hosts:
            for stream in ("stdout", "stderr"):
                flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
                self._open[host, stream] = os.open(self._place / f"{host}.{stream}", flags, 0o666)

    def take(self, event: Output) -> None:
        """Queue a piece for its file."""
        descriptor = self._open.get((event.host or "", event.stream))
        if descriptor is not None:
            self._writer.write(descriptor, event.data)
