"""Misbehave on schedule: the API's worst answers, each with a name, seeded and counted.

A fault is written `<what>[-then]-<how>[@FIRST][xTIMES][+RETRY_AFTER]`: `create-then-504` makes the droplet and answers
504, `list-503@2x3` fails the second to fourth listing, `get-hangx*` never answers a read, `list-429+2` asks for two
seconds' patience. Without `-then` the request has no effect.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

WHATS: dict[str, tuple[str, str]] = {
    "any": (".*", ".*"),
    "account": ("GET", "/v2/account"),
    "sizes": ("GET", "/v2/sizes"),
    "keys": (".*", "/v2/account/keys.*"),
    "list": ("GET", "/v2/droplets"),
    "get": ("GET", "/v2/droplets/[^/]+"),
    "create": ("POST", "/v2/droplets"),
    "destroy": ("DELETE", "/v2/droplets/[^/]+"),
    "tags": (".*", "/v2/tags.*"),
}
"""What a fault may strike: a method and a path, as patterns."""
HOWS = ("reset", "hang", "drip", "html", "truncate", "garbage")
"""How the answer may suffer, besides a status in three digits."""
_TEXT = re.compile(
    r"(?P<what>[a-z]+)(?P<then>-then)?-(?P<how>[45]\d\d|[a-z]+)"
    r"(?:@(?P<first>\d+))?(?:x(?P<times>\d+|\*))?(?:\+(?P<after>\d+))?(?:%(?P<chance>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One misbehaviour: of the requests that are `what`, those from the `first` on, `times` of them (None: for ever).

    `how` is a status in digits or one of `HOWS`; `is_late` faults let the request take effect first. `chance` in
    percent makes it strike at random, from the schedule's seed. `retry_after_s` goes along with a status.
    """

    what: str
    how: str
    is_late: bool = False
    first: int = 1
    times: int | None = 1
    retry_after_s: int | None = None
    chance: int = 100

    def matches(self, method: str, path: str) -> bool:
        """Say whether a request is what the fault is for."""
        wanted_method, wanted_path = WHATS[self.what]
        return bool(re.fullmatch(wanted_method, method) and re.fullmatch(wanted_path, path))


def read_fault(text: str) -> Fault:
    """Return the fault that a text names; raises ValueError for a text that names none."""
    found = _TEXT.fullmatch(text)
    if not found or found["what"] not in WHATS or not (found["how"].isdigit() or found["how"] in HOWS):
        whats, hows = ", ".join(WHATS), ", ".join(HOWS)
        raise ValueError(f"`{text}` is no fault: <{whats}>[-then]-<4xx, 5xx, {hows}>[@FIRST][xTIMES][+RETRY_AFTER]")
    times = found["times"] or "1"
    return Fault(
        what=found["what"],
        how=found["how"],
        is_late=bool(found["then"]),
        first=int(found["first"] or 1),
        times=None if times == "*" else int(times),
        retry_after_s=int(found["after"]) if found["after"] else None,
        chance=int(found["chance"] or 100),
    )


class Schedule:
    """Decide which request is struck; may be asked from any thread."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._faults = list(faults)
        self._seen = [0] * len(self._faults)
        self._struck = [0] * len(self._faults)

    def add(self, fault: Fault) -> None:
        """Add a fault; what came before does not count for it."""
        with self._lock:
            self._faults.append(fault)
            self._seen.append(0)
            self._struck.append(0)

    def clear(self) -> None:
        """Behave from now on."""
        with self._lock:
            self._faults, self._seen, self._struck = [], [], []

    def strike(self, method: str, path: str) -> Fault | None:
        """Return the first fault that strikes this request; every fault it matches counts it."""
        chosen: Fault | None = None
        with self._lock:
            for index, fault in enumerate(self._faults):
                if not fault.matches(method, path):
                    continue
                self._seen[index] += 1
                is_due = self._seen[index] >= fault.first
                is_left = fault.times is None or self._struck[index] < fault.times
                if chosen is None and is_due and is_left and self._random.randrange(100) < fault.chance:
                    self._struck[index] += 1
                    chosen = fault
        return chosen
