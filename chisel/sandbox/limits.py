"""Count requests as DigitalOcean does: a sliding hour, a sliding minute, and a narrower one for the list of keys.

The documented limits (API reference, 2026-08): 5,000 an hour and 250 a minute for each token, 10 key listings a minute.
"""

from __future__ import annotations

import threading
from collections import deque

HOUR_S, MINUTE_S = 3600.0, 60.0


class Rates:
    """One token's requests in the windows that count; may be asked from any thread. Times in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[float] = deque()
        self._key_lists: deque[float] = deque()

    def take(self, now: float, *, per_hour: int, per_minute: int) -> tuple[int, float | None]:
        """Count a request at `now`: how many the hour has left, and the wait in s when this one is too many."""
        with self._lock:
            _forget(self._recent, now - HOUR_S)
            in_minute = [at for at in self._recent if at > now - MINUTE_S] if len(self._recent) >= per_minute else []
            if len(in_minute) >= per_minute:
                return max(0, per_hour - len(self._recent)), in_minute[-per_minute] + MINUTE_S - now
            if len(self._recent) >= per_hour:
                return 0, self._recent[0] + HOUR_S - now
            self._recent.append(now)
            return per_hour - len(self._recent), None

    def take_key_list(self, now: float, *, per_minute: int) -> float | None:
        """Count a listing of keys; returns the wait in s when it is one too many."""
        with self._lock:
            _forget(self._key_lists, now - MINUTE_S)
            if len(self._key_lists) >= per_minute:
                return self._key_lists[0] + MINUTE_S - now
            self._key_lists.append(now)
            return None


def _forget(times: deque[float], before: float) -> None:
    while times and times[0] <= before:
        times.popleft()
