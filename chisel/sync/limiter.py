"""Hold what is sent to a rate, over all droplets together."""

from __future__ import annotations

import time

import anyio


class Limiter:
    """Let `bytes_per_s` pass, with bursts of a tenth of a second. Calls may overlap."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()

    async def take(self, count: int) -> None:
        """Wait until so many bytes may be sent."""
        now = time.monotonic()
        begins_at = max(self._free_at, now - 0.1)
        self._free_at = begins_at + count / self._bytes_per_s
        if begins_at > now:
            await anyio.sleep(begins_at - now)
