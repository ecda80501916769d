"""Decide when a viewer's server has done its work. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

End = Literal["closed", "nobody came", "time is up"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound a server's life, in seconds: until somebody comes, over all, and without an open page.

    `absent_s` lets a page be loaded anew, and covers the time from its first byte until its script runs. `head_s` is
    what a peer may take to say what it wants; `answer_s` what the UI may take to answer our page.
    """

    first_visit_s: float = 60.0
    most_s: float = 8 * 3600.0
    absent_s: float = 10.0
    head_s: float = 10.0
    answer_s: float = 30.0


@dataclass(slots=True)
class Life:
    """Follow who has come: instants on one clock, in seconds; `pages` are open now."""

    started_at: float
    seen_at: float | None = None
    pages: int = 0


def ends_at(life: Life, limits: Limits) -> tuple[float, End]:
    """Return when the server ends if nothing else happens, and why."""
    last = life.started_at + limits.most_s
    if life.seen_at is None:
        due, why = life.started_at + limits.first_visit_s, "nobody came"
    elif life.pages:
        return last, "time is up"
    else:
        due, why = life.seen_at + limits.absent_s, "closed"
    return (due, why) if due < last else (last, "time is up")  # type: ignore[return-value] # literals, both of them
