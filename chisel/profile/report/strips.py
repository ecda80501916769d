"""Draw a GPU's clock, power and temperatures over a run as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeGuard

from chisel.figures import Sample, Telemetry
from chisel.profile.report import amounts, shapes
from chisel.profile.report.charts import axis, figure, line
from chisel.profile.report.markup import Markup, join, number, tag
from chisel.profile.report.shapes import Scale

_WIDTH, _LEFT, _RIGHT = 640.0, 92.0, 538.0
_STRIP, _GAP = 58.0, 12.0

Read = Callable[[Sample], float | None]


def telemetry(where: str, gpu: int, told: Telemetry, most: int) -> Markup | None:
    """Draw one GPU's clock, power and temperatures over the run, with the bounds it lived in; at most `most` points."""
    samples = [one for one in told.samples if one.gpu == gpu and math.isfinite(one.at_s)]
    cap, top = told.power_cap_w.get(gpu), told.sclk_max_mhz.get(gpu)
    strips: list[tuple[str, str, list[tuple[str, Read]], float | None, str]] = [
        ("clock", "MHz", [("sclk", lambda one: one.sclk_mhz)], top, "maximum"),
        ("power", "W", [("power", lambda one: one.power_w)], cap, "cap"),
        ("temp.", "°C", [("hotspot", lambda one: one.hotspot_c), ("memory", lambda one: one.memory_c)], None, ""),
    ]
    if len(samples) < 2:
        return None
    across = Scale(min(one.at_s for one in samples), max(one.at_s for one in samples), _LEFT, _RIGHT)
    drawn, y = [], 8.0
    for name, unit, reads, bound, bound_name in strips:
        one = _strip(name, unit, reads, bound, bound_name, samples, across, y, most)
        if one is not None:
            drawn.append(one)
            y += _STRIP + _GAP
    if not drawn:
        return None
    times = axis(across, shapes.ticks(across.low, across.high, 6), lambda value: f"{value:g} s", y - 4)
    said = f"{len(samples)} samples; power cap {amounts.plain(cap, 'W')}, highest clock {amounts.plain(top, 'MHz')}"
    return figure(
        f"GPU {gpu} of {where}: clock, power, temperature", said, _WIDTH, y + 20, *drawn, times, class_="strip"
    )


def _strip(
    name: str,
    unit: str,
    reads: Sequence[tuple[str, Read]],
    bound: float | None,
    bound_name: str,
    samples: Sequence[Sample],
    across: Scale,
    y: float,
    most: int,
) -> Markup | None:
    series = [(label, [(one.at_s, value) for one in samples if _is_told(value := read(one))]) for label, read in reads]
    series = [(label, points) for label, points in series if len(points) > 1]
    if not series:
        return None
    values = [value for _, points in series for _, value in points]
    shown = [*values, bound] if bound is not None and math.isfinite(bound) else values
    up = Scale(min(_floor(unit, bound), min(values) * 0.95), max(shown) * 1.06, y + _STRIP, y)
    pieces = [tag("rect", class_="ground", x=_LEFT, y=y, width=_RIGHT - _LEFT, height=_STRIP)]
    pieces += [tag("text", name, x=4, y=y + 14, class_="strong"), tag("text", unit, x=4, y=y + 30)]
    top = max(up.at(max(values)) + 4, y + 10)
    for value, place in ((max(values), top), (min(values), min(max(up.at(min(values)) + 4, top + 13), y + _STRIP))):
        pieces.append(tag("text", amounts.plain(round(value)), x=_LEFT - 5, y=place, class_="e"))
    if bound is not None and math.isfinite(bound):
        at = up.at(bound)
        pieces.append(tag("path", class_="bound", d=f"M{number(_LEFT)} {number(at)}H{number(_RIGHT)}"))
        pieces.append(tag("text", f"{bound_name} {amounts.plain(bound)}", x=_RIGHT + 5, y=max(at + 4, y + 9)))
    for place, (label, points) in enumerate(series):
        drawn = [(across.at(at), up.at(value)) for at, value in shapes.thinned(points, most)]
        pieces.append(tag("path", tag("title", label), class_=f"curve c{place}", d=line(drawn)))
        if len(series) > 1:
            pieces.append(tag("text", label, x=_RIGHT + 5, y=y + 14 + 16 * place, class_=f"label c{place}"))
    return join(*pieces)


def _floor(unit: str, bound: float | None) -> float:
    """Return where a strip begins: alike for all GPUs, so that they can be compared with the eye."""
    if unit == "W":
        return 0.0
    return bound / 2 if bound is not None and math.isfinite(bound) else 25.0


def _is_told(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
