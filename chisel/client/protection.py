"""Say in words what ends a pool that everybody forgot: its own watchdog, this machine, or nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from chisel.events import Notice
from chisel.state import DropletRecord

DEFAULT_IDLE = timedelta(minutes=15)


def protection(records: Iterable[DropletRecord], said: Mapping[str, str | None] | None = None) -> str:
    """Return which protection holds for all of these droplets: the weakest counts.

    `said` is what droplets themselves say of their watchdog, by name.
    """
    records = list(records)
    limited = [record.idle_s or record.until is not None for record in records]
    armed = [record.is_armed for record in records]
    if all(armed):
        wrong = sorted(f"{name}: {text}" for name, text in (said or {}).items() if text not in {None, "on"})
        return f"on, but {'; '.join(wrong)}" if wrong else "on"
    return "off while this laptop is off" if all(limited) else "off"


def protection_notice(records: Iterable[DropletRecord]) -> Notice:
    """Return what `up` says of it, with what it costs when there is none."""
    records = list(records)
    state, price = protection(records), sum(record.usd_per_hour for record in records)
    idle = {record.idle_s for record in records}
    after = f"after {_minutes(min(idle))} without a request" if len(idle) == 1 and all(idle) else "at its limits"
    if state == "on":
        return Notice(message=f"self-destruct: on, {after}")
    if state == "off":
        message = f"self-destruct: off: nothing ends this pool but you, at ${24 * price:.2f} a day"
        return Notice(level="warning", message=message, hint="chisel down")
    return Notice(
        level="warning",
        message=f"self-destruct: off while this laptop is off; any chisel command here ends the pool {after}",
        hint="chisel auth --self-destruct-token",
    )


def ends_in_s(record: DropletRecord, now: datetime, idle_s: float | None) -> float | None:
    """Return how long a droplet has, in seconds, if nobody asks anything more of it; None for no limit.

    `idle_s` None says that its idleness is not known, or does not count now.
    """
    ends = [(record.until - now).total_seconds()] if record.until is not None else []
    if record.idle_s and idle_s is not None:
        kept_s = (record.kept_until - now).total_seconds() if record.kept_until is not None else 0.0
        ends.append(max(record.idle_s - idle_s, kept_s))
    return max(0.0, min(ends)) if ends else None


def _minutes(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"


def self_destruct_of(record: DropletRecord, answer: Mapping[str, Any] | None) -> str | None:
    """Return what a droplet itself says of its watchdog; None for one that was made without."""
    if not record.is_armed:
        return None
    if answer is None:
        return "unknown: it does not answer"
    said = answer.get("self_destruct")
    if not said:
        return "not started yet"
    return str(said["state"]) + (f": {said['error']}" if said.get("error") else "")
