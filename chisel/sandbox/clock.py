"""Tell the embedded cloud's time, which can be moved forward: a bill of a week takes no week to test."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """Wall-clock time plus what it was advanced by; never goes back. May be read from any thread."""

    def __init__(self) -> None:
        self._began_at = time.time()
        self._mark = time.monotonic()
        self._advanced_s = 0.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._began_at + time.monotonic() - self._mark + self._advanced_s

    def advance(self, seconds: float) -> None:
        """Move the time forward; raises ValueError for a step back."""
        if not 0 <= seconds < 1e9:
            raise ValueError(f"the clock cannot move by {seconds} s")
        self._advanced_s += seconds


def as_text(seconds: float) -> str:
    """Return an instant as DigitalOcean writes it: whole seconds, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
