"""Draw a kernel's figures as SVG: shape of the distribution, drift over the run. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chisel.figures import KernelStats
from chisel.profile.report import amounts, shapes
from chisel.profile.report.markup import Inside, Markup, join, number, raw, tag
from chisel.profile.report.shapes import Scale

WIDTH, HEIGHT = 420, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 10.0, 410.0, 14.0, 124.0
_DRIFT_LEFT = 54.0
_BINS = 40
_FAR = 2.0
"""The 99th percentile is drawn as well where it lies within this many times the 98th."""
_SPARK_BINS, _SPARK_WIDTH, _SPARK_HEIGHT = 24, 96, 22

Curves = Sequence[tuple[str, Sequence[float]]]


def figure(title: str, said: str, width: float, height: float, *inside: Inside, class_: str = "chart") -> Markup:
    """Return a picture with a name and a sentence for those who do not see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", said),
        *inside,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        class_=class_,
    )


def line(points: Sequence[tuple[float, float]]) -> str:
    """Return a path through points, to the pixel across: hundreds of them make most of a report's size."""
    return "M" + "L".join(f"{round(x)} {number(y)}" for x, y in points)


def distribution(rank: int, kernel: KernelStats, curves: Curves) -> Markup | None:
    """Draw how a kernel's durations are spread: one as a density, several (droplets) as what share is done by when."""
    drawn = [(host, quantiles) for host, quantiles in curves if shapes.usable(quantiles)]
    if not drawn:
        return None
    ends = [shapes.bounds(quantiles) for _, quantiles in drawn]
    high = max(high for _, high in ends)
    if kernel.p99_ns is not None and high < kernel.p99_ns < high * _FAR:
        high = kernel.p99_ns * 1.01
    across = Scale(min(low for low, _ in ends), high, _LEFT, _RIGHT)
    body = _density(drawn[0][1], across) if len(drawn) == 1 else _cumulated(drawn, across)
    said = f"p50 {amounts.time(kernel.p50_ns)}, p99 {amounts.time(kernel.p99_ns)}"
    marks = [
        _mark(across, kernel.p50_ns, "p50"),
        _mark(across, kernel.mean_ns, "mean"),
        _mark(across, kernel.p99_ns, "p99"),
    ]
    return figure(f"Durations of kernel {rank}", said, WIDTH, HEIGHT, body, *marks, _time_axis(across))


def _density(quantiles: Sequence[float], across: Scale) -> Markup:
    parts = shapes.histogram(quantiles, _BINS, across.low, across.high)
    up = Scale(0, max(parts) or 1, _BOTTOM, _TOP + 12)
    width = (_RIGHT - _LEFT) / _BINS
    steps = "".join(f"V{round(up.at(part))}h{number(width)}" for part in parts)
    return tag("path", class_="area", d=f"M{number(_LEFT)} {number(_BOTTOM)}{steps}V{number(_BOTTOM)}Z")


def _cumulated(curves: Curves, across: Scale) -> Markup:
    up = Scale(0, 1, _BOTTOM, _TOP + 12)
    drawn = []
    for place, (host, quantiles) in enumerate(curves):
        last = len(quantiles) - 1
        kept = [*range(0, last, 4), last]
        points = [(across.at(quantiles[i]), up.at(i / last)) for i in kept]
        drawn.append(tag("path", tag("title", host), class_=f"curve c{place % 8}", d=line(points)))
    return join(*drawn)


def _mark(across: Scale, value: float | None, name: str) -> Markup | None:
    if value is None or not across.low <= value <= across.high:
        return None
    x = across.at(value)
    anchor = "e" if x > (_LEFT + _RIGHT) / 2 else None
    shown = _TOP + (8 if name == "mean" else -3)
    stroke = tag("path", class_=f"mark {name}", d=f"M{number(x)} {number(_TOP)}V{number(_BOTTOM)}")
    return join(stroke, tag("text", name, x=x + (-3 if anchor else 3), y=shown, class_=anchor))


def _time_axis(across: Scale) -> Markup:
    unit, factor = amounts.time_unit(across.high)
    return axis(across, shapes.ticks(across.low, across.high, 5), lambda value: f"{value / factor:g} {unit}", _BOTTOM)


def axis(across: Scale, places: Sequence[float], said: Callable[[float], str], y: float) -> Markup:
    """Draw a horizontal axis with labels below."""
    base = tag("path", class_="axis", d=f"M{number(across.start)} {number(y)}H{number(across.end)}")
    labels = []
    for place in places:
        x = across.at(place)
        anchor = None if x < across.start + 18 else "e" if x > across.end - 18 else "m"
        labels.append(tag("path", class_="axis", d=f"M{number(x)} {number(y)}v4"))
        labels.append(tag("text", said(float(f"{place:.6g}")), x=x, y=y + 16, class_=anchor))
    return join(base, *labels)


def drift(rank: int, slices: Sequence[tuple[int, float]]) -> Markup | None:
    """Draw the medians of a kernel's dispatches in the order they were launched."""
    values = [median for _, median in slices]
    if len(values) < 2 or (not shapes.usable(sorted(values)) and len(set(values)) > 2):
        return None
    low, high = min(values), max(values)
    room = max((high - low) * 0.15, abs(high) * 0.02, 0.5)
    up = Scale(max(low - room, 0), high + room, _BOTTOM, _TOP)
    across = Scale(0, len(values) - 1, _DRIFT_LEFT, _RIGHT)
    unit, factor = amounts.time_unit(high)
    grid = []
    for place in shapes.ticks(up.low, up.high, 4):
        y = up.at(place)
        grid.append(tag("path", class_="grid", d=f"M{number(_DRIFT_LEFT)} {number(y)}H{number(_RIGHT)}"))
        grid.append(tag("text", f"{float(f'{place / factor:.4g}'):g} {unit}", x=_DRIFT_LEFT - 5, y=y + 4, class_="e"))
    points = [(across.at(place), up.at(value)) for place, value in enumerate(values)]
    ends = join(
        tag("text", "first dispatch", x=_DRIFT_LEFT, y=_BOTTOM + 16),
        tag("text", "last", x=_RIGHT, y=_BOTTOM + 16, class_="e"),
    )
    said = f"{len(values)} parts of the run, medians from {amounts.time(low)} to {amounts.time(high)}"
    dot = tag("circle", class_="dot", cx=points[-1][0], cy=points[-1][1], r=2.5)
    return figure(
        f"Drift of kernel {rank}", said, WIDTH, HEIGHT, *grid, tag("path", class_="curve c0", d=line(points)), dot, ends
    )


def spark(kernel: KernelStats, quantiles: Sequence[float]) -> Markup | None:
    """Draw a distribution small enough for a table's cell; the cells beside it say the figures."""
    if not shapes.usable(quantiles):
        return None
    low, high = shapes.bounds(quantiles)
    parts = shapes.histogram(quantiles, _SPARK_BINS, low, high)
    up = Scale(0, max(parts) or 1, _SPARK_HEIGHT, 1)
    width = _SPARK_WIDTH / _SPARK_BINS
    steps = "".join(f"V{number(up.at(part))}h{number(width)}" for part in parts)
    return tag(
        "svg",
        raw(f'<path class="area" d="M0 {_SPARK_HEIGHT}{steps}V{_SPARK_HEIGHT}Z"/>'.replace("/>", "></path>")),
        viewBox=f"0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}",
        class_="spark",
        aria_hidden="true",
    )
