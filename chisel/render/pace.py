"""Say how far transfers are, how fast they go and when they will be done, each and all together."""

from __future__ import annotations

from collections import deque

from chisel.events import Progress
from chisel.render import words

_WINDOW_S = 5.0
_LEAST_S = 0.3


class Pace:
    """Watch the progress of tasks; rates are those of the last five seconds."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str | None, str], deque[tuple[float, int]]] = {}
        self._last: dict[tuple[str | None, str], Progress] = {}

    def take(self, event: Progress) -> None:
        """Learn how far a task is."""
        key = (event.host, event.task)
        if key in self._last and self._last[key].is_done:
            self._forget(key)
        seen = self._seen.setdefault(key, deque())
        seen.append((event.at, event.done))
        while len(seen) > 2 and seen[1][0] < event.at - _WINDOW_S:
            seen.popleft()
        self._last[key] = event

    def text(self, event: Progress) -> str:
        """Say how far one task is: `12 MB of 100 MB, 3 of 9 files, 5.2 MB/s, 17 s left`."""
        return _text(event, self._rate((event.host, event.task)))

    def sums(self) -> list[tuple[Progress, str]]:
        """Return what tasks under way on several droplets come to, those that have ended included."""
        found = []
        for task in dict.fromkeys(task for _, task in self._last):
            events = [event for (host, name), event in self._last.items() if name == task and host is not None]
            if len(events) < 2 or any(event.unit != "bytes" for event in events):
                continue
            if all(event.is_done for event in events):
                continue
            whole = Progress(
                at=max(event.at for event in events),
                task=task,
                done=sum(event.done for event in events),
                total=_sum([event.total for event in events]),
                done_files=sum(event.done_files or 0 for event in events),
                total_files=_sum([event.total_files for event in events]),
            )
            rate = sum(self._rate((event.host, task)) for event in events if not event.is_done)
            found.append((whole, _text(whole, rate)))
        return found

    def _forget(self, key: tuple[str | None, str]) -> None:
        """Begin anew with a task that is done again; with the last of several that were done, all of them."""
        others = [one for one in self._last if one[1] == key[1]]
        for one in others if all(self._last[one].is_done for one in others) else [key]:
            del self._last[one], self._seen[one]

    def _rate(self, key: tuple[str | None, str]) -> float:
        seen = self._seen.get(key)
        if not seen or seen[-1][0] - seen[0][0] < _LEAST_S:
            return 0.0
        return max(0.0, (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]))


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _text(event: Progress, rate: float) -> str:
    if event.unit != "bytes":
        done = f"{event.done:,} {event.unit}"
        return f"{done} of {event.total:,}" if event.total else done
    parts = [words.size(event.done) + (f" of {words.size(event.total)}" if event.total else "")]
    if event.total_files is not None and event.total_files > 1:
        parts.append(f"{event.done_files or 0:,} of {words.count(event.total_files, 'file')}")
    if rate > 0:
        parts.append(f"{words.size(rate)}/s")
        if event.total and event.done < event.total:
            parts.append(f"{words.duration((event.total - event.done) / rate)} left")
    return ", ".join(parts)
