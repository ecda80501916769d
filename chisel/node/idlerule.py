"""Decide when a droplet's time is over. Pure: what was seen comes in, what to remember and to do goes out.

All times are seconds that the machine was on, added up from tick to tick: neither a clock that is set nor a reboot
changes them. Time that a droplet was off does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

FIRST_BOOT_S = 3600.0
"""A first boot counts as a use of the droplet for so long: apt may take its time, but not for ever."""


@dataclass(frozen=True)
class Limits:
    """When time is over: after `idle_s` without a request, at the age `ttl_s` (0: never, for either).

    Until the age `kept_until_s` idleness does not count (`chisel keep`). A command that runs is ended only with
    `ends_busy`.
    """

    idle_s: float = 0.0
    ttl_s: float = 0.0
    kept_until_s: float = 0.0
    ends_busy: bool = False


@dataclass(frozen=True)
class Sight:
    """What one look at the droplet found.

    `boot_id` names the boot, `on_s` is how long ago that was. `marks` are stamps of activity, whose change is a
    request; `busy` says in words what is under way.
    """

    boot_id: str
    on_s: float
    marks: Mapping[str, str] = field(default_factory=dict)
    busy: tuple[str, ...] = ()
    is_first_boot: bool = False


@dataclass(frozen=True)
class Memory:
    """What is remembered from tick to tick: how old the droplet is and for how long it has been idle."""

    attempt: str = ""
    droplet_id: int = 0
    boot_id: str = ""
    on_s: float = 0.0
    age_s: float = 0.0
    idle_s: float = 0.0
    marks: Mapping[str, str] = field(default_factory=dict)
    ticks: int = 0


@dataclass(frozen=True)
class Verdict:
    """What follows: `is_over` says that the droplet must go, `reason` why or why not.

    `left_s` is how long it has from now without another request, None without a limit.
    """

    is_over: bool
    reason: str
    left_s: float | None = None


def judge(memory: Memory, sight: Sight, limits: Limits) -> tuple[Memory, Verdict]:
    """Return what to remember and what to do."""
    is_first = not memory.ticks  # or its memory was lost: how long it has been on says nothing then
    passed = sight.on_s - memory.on_s if sight.boot_id == memory.boot_id else sight.on_s
    passed = 0.0 if is_first else max(0.0, passed)
    age = memory.age_s + passed
    is_booting = sight.is_first_boot and age < FIRST_BOOT_S
    was_used = bool(sight.busy) or is_booting or dict(sight.marks) != dict(memory.marks)
    after = replace(
        memory,
        boot_id=sight.boot_id,
        on_s=sight.on_s,
        age_s=age,
        idle_s=0.0 if was_used else memory.idle_s + passed,
        marks=dict(sight.marks),
        ticks=memory.ticks + 1,
    )
    return after, _verdict(after, sight, limits, is_booting=is_booting)


def _verdict(memory: Memory, sight: Sight, limits: Limits, *, is_booting: bool) -> Verdict:
    if limits.ttl_s and memory.age_s >= limits.ttl_s:
        if not sight.busy or limits.ends_busy:
            return Verdict(is_over=True, reason=f"its time of {limits.ttl_s:.0f} s is over", left_s=0.0)
        return Verdict(is_over=False, reason=f"its time is over, but {sight.busy[0]}", left_s=0.0)
    ends = [limits.ttl_s - memory.age_s] if limits.ttl_s else []
    if limits.idle_s:
        kept_s = limits.kept_until_s - memory.age_s
        idle_left = max(limits.idle_s - memory.idle_s, kept_s)
        if idle_left <= 0:
            return Verdict(is_over=True, reason=f"nothing was asked of it for {memory.idle_s:.0f} s", left_s=0.0)
        if not sight.busy and not is_booting:
            ends.append(idle_left)
    reason = sight.busy[0] if sight.busy else "the first boot" if is_booting else f"idle for {memory.idle_s:.0f} s"
    return Verdict(is_over=False, reason=reason, left_s=min(ends, default=None))


def extended(memory: Memory, limits: Limits, *, now_on_s: float, by_s: float) -> Limits:
    """Return the limits of a droplet that is to live for `by_s` from now at least; nothing gets shorter."""
    until = memory.age_s + max(0.0, now_on_s - memory.on_s) + by_s
    return replace(
        limits,
        ttl_s=max(limits.ttl_s, until) if limits.ttl_s else 0.0,
        kept_until_s=max(limits.kept_until_s, until),
    )


def read_memory(found: Any) -> Memory:
    """Return what a file's JSON remembers, nothing where it does not fit."""
    fields = found if isinstance(found, dict) else {}
    marks = fields.get("marks")
    try:
        return Memory(
            attempt=str(fields.get("attempt", "")),
            droplet_id=int(fields.get("droplet_id", 0)),
            boot_id=str(fields.get("boot_id", "")),
            on_s=float(fields.get("on_s", 0.0)),
            age_s=float(fields.get("age_s", 0.0)),
            idle_s=float(fields.get("idle_s", 0.0)),
            marks={str(key): str(value) for key, value in marks.items()} if isinstance(marks, dict) else {},
            ticks=int(fields.get("ticks", 0)),
        )
    except (TypeError, ValueError):
        return Memory()


def read_limits(found: Any, default: Limits) -> Limits:
    """Return the limits in a file's JSON, the default where it does not fit."""
    if not isinstance(found, dict):
        return default
    try:
        return Limits(
            idle_s=float(found["idle_s"]),
            ttl_s=float(found["ttl_s"]),
            kept_until_s=float(found["kept_until_s"]),
            ends_busy=bool(found["ends_busy"]),
        )
    except (KeyError, TypeError, ValueError):
        return default
