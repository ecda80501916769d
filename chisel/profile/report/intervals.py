"""Draw a comparison's intervals and a pool's spread, a row per kernel, as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chisel.figures import Comparison, KernelVerdict, Spread
from chisel.profile.report import amounts, shapes
from chisel.profile.report.charts import axis, figure
from chisel.profile.report.escape import brief
from chisel.profile.report.markup import Markup, join, number, tag
from chisel.profile.report.shapes import Scale

MOST_ROWS = 40
_WIDTH, _ROW = 760.0, 26.0
_LEFT, _RIGHT = 250.0, 640.0
_NAME = 33
_KINDS = {"faster": "faster", "slower": "slower", "can't tell": "unsure"}


def forest(comparison: Comparison) -> Markup | None:
    """Draw each kernel's change with its interval, around the line of no change; a band shows what could be seen."""
    rows = [one for one in comparison.verdicts if _finite(one.ratio, one.low, one.high)][:MOST_ROWS]
    if not rows:
        return None
    furthest = max(abs(value - 1) for one in rows for value in (one.ratio, one.low, one.high) if value is not None)
    reach = min(max(furthest * 1.1, 0.05), 4.0)
    across = Scale(max(1 - reach, 0), 1 + reach, _LEFT, _RIGHT)
    bottom = 10 + len(rows) * _ROW
    middle = number(across.at(1))
    none = tag("path", class_="bound", d=f"M{middle} 4V{number(bottom)}")
    drawn = [_interval(one, across, 10 + place * _ROW) for place, one in enumerate(rows)]
    below = axis(across, shapes.ticks(across.low, across.high, 6), amounts.tick, bottom)
    words = join(
        tag("text", "← faster", x=_LEFT, y=bottom + 34),
        tag("text", "slower →", x=_RIGHT, y=bottom + 34, class_="e"),
    )
    said = "; ".join(f"{_short(one.name)}: {one.verdict}, {amounts.change(one.ratio)}" for one in rows[:12])
    title = f"{comparison.label_b} against {comparison.label_a}"
    return figure(title, said, _WIDTH, bottom + 42, none, *drawn, below, words, class_="rows")


def _interval(one: KernelVerdict, across: Scale, y: float) -> Markup:
    middle, kind = y + _ROW / 2, _KINDS[one.verdict]
    ratio, low, high = across.at(one.ratio or 1), across.at(one.low or 1), across.at(one.high or 1)
    band = None
    if one.detectable is not None and math.isfinite(one.detectable):
        start, end = across.at(1 - one.detectable), across.at(1 + one.detectable)
        band = tag("rect", class_="band", x=start, y=y + 3, width=max(end - start, 0.0), height=_ROW - 6)
    ends = f"M{number(low)} {number(middle)}H{number(high)}"
    ends += "".join(f"M{number(x)} {number(middle - 4)}v8" for x in (low, high))
    return tag(
        "g",
        band,
        tag("text", tag("title", brief(one.name, 120)), _short(one.name), x=4, y=middle + 4, class_="row"),
        tag("path", class_="interval", d=ends),
        tag("circle", class_="dot", cx=ratio, cy=middle, r=4),
        tag("text", f"{one.verdict} {amounts.change(one.ratio)}", x=_RIGHT + 8, y=middle + 4, class_="strong"),
        class_=kind,
    )


def dots(spreads: Sequence[Spread]) -> Markup | None:
    """Draw each kernel's median per droplet over the middle of all droplets; an outlier is a diamond with its name."""
    rows = [one for one in spreads if _middle(one) is not None][:MOST_ROWS]
    if not rows:
        return None
    furthest = max(
        abs(value / (_middle(one) or 1) - 1) for one in rows for value in one.p50_ns.values() if _finite(value)
    )
    reach = min(max(furthest * 1.15, 0.02), 4.0)
    across = Scale(max(1 - reach, 0), 1 + reach, _LEFT, _RIGHT)
    bottom = 10 + len(rows) * _ROW
    none = tag("path", class_="bound", d=f"M{number(across.at(1))} 4V{number(bottom)}")
    drawn = [_dots(one, across, 10 + place * _ROW) for place, one in enumerate(rows)]
    below = axis(across, shapes.ticks(across.low, across.high, 6), amounts.tick, bottom)
    said = "; ".join(f"{_short(one.name)}: {amounts.share(one.spread)}" for one in rows[:12])
    return figure(
        "Medians by droplet, against the middle droplet", said, _WIDTH, bottom + 22, none, *drawn, below, class_="rows"
    )


def _dots(one: Spread, across: Scale, y: float) -> Markup:
    middle, at = _middle(one) or 1.0, y + _ROW / 2
    marks = []
    for host, value in sorted(one.p50_ns.items()):
        if not _finite(value):
            continue
        x = across.at(value / middle)
        said = tag("title", f"{host}: {amounts.time(value)}")
        if host == one.outlier:
            marks.append(tag("path", said, class_="outlier", d=f"M{number(x)} {number(at - 6)}l6 6l-6 6l-6 -6Z"))
        else:
            marks.append(tag("circle", said, class_="dot", cx=x, cy=at, r=4))
    return tag(
        "g",
        tag("path", class_="grid", d=f"M{number(_LEFT)} {number(at)}H{number(_RIGHT)}"),
        tag("text", tag("title", brief(one.name, 120)), _short(one.name), x=4, y=at + 4, class_="row"),
        *marks,
        tag("text", brief(one.outlier or "", 18), x=_RIGHT + 8, y=at + 4, class_="strong"),
    )


def _middle(one: Spread) -> float | None:
    values = sorted(value for value in one.p50_ns.values() if _finite(value) and value > 0)
    if len(values) < 2:
        return None
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _short(name: str) -> str:
    return brief(name, _NAME)
