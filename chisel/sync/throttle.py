"""Keep transfers below a rate that the user names."""

from __future__ import annotations

import time

import anyio

_BURST_S = 0.25


class Throttle:
    """Let at most `bytes_per_s` through, over all that share it; None lets everything through."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = bytes_per_s
        self._free_at = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """Return the rate, None when there is no bound."""
        return self._rate

    @property
    def window(self) -> int | None:
        """Return how much may be under way unread (bytes), so that what arrives keeps the rate too."""
        return None if self._rate is None else max(1 << 15, min(1 << 20, int(self._rate * _BURST_S)))

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes are within the rate."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - _BURST_S) + count / self._rate
        if self._free_at > now:
            await anyio.sleep(self._free_at - now)
