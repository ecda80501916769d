"""Cut a droplet's output into whole lines and put its name before each, never tearing a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

LONGEST_LINE = 1 << 20


def as_it_is(lines: bytes) -> bytes:
    """Return the lines unchanged."""
    return lines


class LinePrefixer:
    """Prefix one stream of one droplet.

    Holds back the unfinished last line until its end comes, at most `LONGEST_LINE` bytes of it: a longer line is
    broken there, so that memory stays bounded.
    """

    def __init__(self, prefix: bytes, make_harmless: Callable[[bytes], bytes] = as_it_is) -> None:
        self._prefix = prefix
        self._between = b"\n" + prefix
        self._make_harmless = make_harmless
        self._tail = b""

    @property
    def tail(self) -> bytes:
        """Return what is held back."""
        return self._tail

    def hold(self, tail: bytes) -> None:
        """Begin with what another has held back."""
        self._tail = tail

    def feed(self, data: bytes) -> bytes:
        """Take a chunk and return the whole lines it completes, prefixed; empty when it completes none."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._tail += data
            return self.finish() if len(self._tail) > LONGEST_LINE else b""
        lines = self._tail + data[:cut] if self._tail else data[:cut]
        self._tail = data[cut:]
        return self._dress(lines[:-1])

    def feed_all(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Dress a whole stream, piece by piece."""
        for piece in pieces:
            yield self.feed(piece)
        yield self.finish()

    def finish(self) -> bytes:
        """Return what is held back as a line of its own; empty when nothing is."""
        lines, self._tail = self._tail, b""
        return self._dress(lines) if lines else b""

    def _dress(self, lines: bytes) -> bytes:
        return self._prefix + self._make_harmless(lines).replace(b"\n", self._between) + b"\n"
