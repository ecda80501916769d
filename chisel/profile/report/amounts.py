"""Say a report's amounts: times, shares, counts, bytes. Pure."""

from __future__ import annotations

import math

_TIMES = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
NOTHING = "\N{EN DASH}"


def time_unit(time_ns: float) -> tuple[str, float]:
    """Return the unit that leaves one to three digits before the point, and its length in ns."""
    found = _TIMES[0]
    for unit in _TIMES:
        if abs(time_ns) >= unit[1]:
            found = unit
    return found


def time(time_ns: float | None) -> str:
    """Say a time with three or four figures: `850 ns`, `12.3 µs`, `1.204 s`."""
    if time_ns is None or not math.isfinite(time_ns):
        return NOTHING
    unit, factor = time_unit(time_ns)
    value = time_ns / factor
    digits = 0 if factor == 1 and value == round(value) else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def binary(value: int) -> str:
    """Say bytes of on-chip memory, which comes in powers of two: `64 KiB`."""
    return f"{value / 1024:g} KiB" if value >= 1024 else f"{value} B"


def tick(ratio: float) -> str:
    """Say a ratio beside an axis: as a change, without decimals that are none."""
    return f"{round((ratio - 1) * 100, 6):+g} %".replace("-", "\N{MINUS SIGN}") if abs(ratio - 1) > 1e-9 else "0 %"


def share(value: float) -> str:
    """Say a share (0 to 1) in per cent."""
    return f"{value * 100:.1f} %" if math.isfinite(value) else NOTHING


def change(ratio: float | None) -> str:
    """Say a ratio as a change: 1.05 is `+5.0 %`."""
    if ratio is None or not math.isfinite(ratio):
        return NOTHING
    return f"{(ratio - 1) * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")


def count(value: int) -> str:
    """Say a count with separators between thousands."""
    return f"{value:,}"


def size(value: float | None) -> str:
    """Say bytes with a decimal unit."""
    if value is None or not math.isfinite(value):
        return NOTHING
    step = 0
    while abs(value) >= 999.5 and step < len(_BYTES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.0f} {_BYTES[step]}" if step == 0 or value >= 99.5 else f"{value:.1f} {_BYTES[step]}"


def plain(value: float | None, unit: str = "") -> str:
    """Say a measured number, whole from 100 on."""
    if value is None or not math.isfinite(value):
        return NOTHING
    said = f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.1f}"
    return f"{said} {unit}".rstrip()
