"""Say amounts in words: durations, sizes, money, counts."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def duration(seconds: float) -> str:
    """Say a duration in at most two units: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `4 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: float) -> str:
    """Say a number of bytes with a decimal unit: `512 B`, `1.5 MB`."""
    step = 0
    while count >= 999.5 and step < len(_BYTE_UNITS) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.0f} {_BYTE_UNITS[step]}" if step == 0 or count >= 99.5 else f"{count:.1f} {_BYTE_UNITS[step]}"


def usd(amount: Decimal) -> str:
    """Say dollars: cents from one cent up, more digits below."""
    cent = Decimal("0.01")
    if amount and amount < cent:
        return f"${amount.quantize(Decimal('0.0001'), ROUND_HALF_UP)}"
    return f"${amount.quantize(cent, ROUND_HALF_UP)}"


def count(number: int, noun: str, nouns: str = "") -> str:
    """Say how many of something: `1 file`, `2 files`; `nouns` is a plural that takes more than an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {nouns or noun + 's'}"


def nanoseconds(time_ns: float) -> str:
    """Say a kernel's time in the unit that leaves one to four digits before the point."""
    for unit, factor in (("ns", 1), ("us", 1_000), ("ms", 1_000_000)):
        if time_ns < 1000 * factor:
            return f"{time_ns / factor:.0f} {unit}" if unit == "ns" else f"{time_ns / factor:.2f} {unit}"
    return f"{time_ns / 1e9:.2f} s"
