"""Write a report's tables of kernels, and what is told of each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from chisel.figures import Copies, KernelStats, Launch, Part, ProfileResult, Ranking
from chisel.profile.report import amounts, charts, shapes
from chisel.profile.report.escape import SHOWN_NAME, brief, fitted
from chisel.profile.report.markup import Inside, Markup, join, raw, tag

MOST_BYTES_OF_NAMES = 160_000
"""Whole names are kept while they fit in this, in rank order: hostile ones have no end."""
MOST_BYTES_OF_CARDS = 1_040_000
"""Kernels are drawn, in rank order, until their cards take this much; those behind get their figures alone."""
_LEAST_BYTES = 200
_NAME_BYTES = SHOWN_NAME * 3 // 2
_HOTTEST = 10
_OPEN = 3
_MOST_PARTS = 64

Column = tuple[str, str]


def hottest(ranking: Ranking) -> Markup:
    """Draw the hottest kernels as bars, their times beside them."""
    rows = [_bar(place, kernel) for place, kernel in enumerate(ranking.kernels[:_HOTTEST])]
    behind = sum(kernel.share for kernel in ranking.kernels[_HOTTEST:])
    more = None
    if len(ranking.kernels) > _HOTTEST:
        others = len(ranking.kernels) - _HOTTEST
        more = tag("p", f"{amounts.count(others)} more kernels take {amounts.share(behind)}.", class_="quiet")
    return section("hottest", "Hottest kernels", tag("ol", *rows, class_="bars"), more)


def _bar(place: int, kernel: KernelStats) -> Markup:
    width = 100 * min(max(kernel.share, 0.0), 1.0)
    bar = tag(
        "svg",
        tag("rect", class_="track", width=100, height=6),
        tag("rect", class_="fill", width=width, height=6),
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    figures = (
        f"{amounts.time(kernel.total_ns)} in {amounts.count(kernel.calls)} calls · mean {amounts.time(kernel.mean_ns)}"
        f" · p50 {amounts.time(kernel.p50_ns)} · p99 {amounts.time(kernel.p99_ns)}"
    )
    launch = launch_words(kernel.launch)
    return tag(
        "li",
        tag(
            "div", tag("a", _name(kernel.name), href=f"#k{place}"), tag("b", amounts.share(kernel.share)), class_="head"
        ),
        bar,
        tag("small", figures, tag("span", launch, class_="launch") if launch else None),
    )


def launch_words(launch: Launch | None) -> str:
    """Say a launch's shape and what it takes of a compute unit; empty where nothing is known."""
    if launch is None:
        return ""
    said = []
    if launch.grid is not None:
        other = f" (1 of {launch.grids} grids)" if launch.grids > 1 else ""
        said.append(f"grid {_shape(launch.grid)}{other}")
    if launch.workgroup is not None:
        said.append(f"workgroup {_shape(launch.workgroup)}")
    for value, unit in ((launch.vgprs, "VGPRs"), (launch.agprs, "AGPRs"), (launch.sgprs, "SGPRs")):
        if value is not None and (value or unit != "AGPRs"):
            said.append(f"{amounts.count(value)} {unit}")
    for value, unit in ((launch.lds_bytes, "LDS"), (launch.scratch_bytes, "scratch")):
        if value:
            said.append(f"{amounts.binary(value)} {unit}")
    return " · ".join(said)


def _shape(shape: tuple[int, int, int]) -> str:
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return " \N{MULTIPLICATION SIGN} ".join(amounts.count(one) for one in kept)


def _name(name: str) -> Markup:
    """Show a name as code, at most `SHOWN_NAME` characters of it; the whole name is on its kernel's card."""
    shown = brief(name, SHOWN_NAME) or "(no name)"
    return tag("code", raw(fitted(shown, _NAME_BYTES)))


def all_kernels(ranking: Ranking, curves: Mapping[str, charts.Curves]) -> Markup:
    """Write the table of all kernels; a header's button sorts it where scripts run."""
    head = [("#", "n"), ("Kernel", "t"), ("Share", "n"), ("Total", "n"), ("Calls", "n"), ("Mean", "n"), ("p50", "n")]
    head += [("p99", "n"), ("Min", "n"), ("Max", "n"), ("Shape", "t")]
    rows = [_row(place, kernel, _first(curves.get(kernel.name))) for place, kernel in enumerate(ranking.kernels)]
    body = [*rows, *_rest(ranking, len(head))]
    note = tag(
        "label", "Find ", tag("input", type="search", id="find", autocomplete="off"), class_="scripted", hidden=True
    )
    return section("kernels", "All kernels", note, table("All kernels, by total time", head, body, id_="all"))


def _first(curves: charts.Curves | None) -> Sequence[float]:
    return curves[0][1] if curves else ()


def _row(place: int, kernel: KernelStats, quantiles: Sequence[float]) -> Markup:
    times = (kernel.mean_ns, kernel.p50_ns, kernel.p99_ns, kernel.min_ns, kernel.max_ns)
    return tag(
        "tr",
        figure_cell(str(place + 1), place + 1),
        tag("th", tag("a", _name(kernel.name), href=f"#k{place}"), scope="row"),
        figure_cell(amounts.share(kernel.share), kernel.share),
        figure_cell(amounts.time(kernel.total_ns), kernel.total_ns),
        figure_cell(amounts.count(kernel.calls), kernel.calls),
        *(figure_cell(amounts.time(value), value) for value in times),
        tag("td", charts.spark(kernel, quantiles)),
    )


def _rest(ranking: Ranking, columns: int) -> list[Markup]:
    if not ranking.rest:
        return []
    said = f"{amounts.count(ranking.rest)} kernels rank behind these and took {amounts.time(ranking.rest_ns)} in all."
    return [tag("tr", tag("td", said, colspan=columns, class_="quiet"), class_="last")]


def figure_cell(shown: str, value: float | None) -> Markup:
    """Return a table's cell with a number, and the number that it is sorted by."""
    return tag("td", shown, class_="n", data_v=f"{value:.7g}" if value is not None and isfinite(value) else None)


def table(caption: str, head: Sequence[Column], rows: Sequence[Markup], *, id_: str | None = None) -> Markup:
    """Return a table that scrolls by itself where it is too wide; columns are (title, `n` for numbers or `t`)."""
    titles = [tag("th", title, scope="col", class_=kind) for title, kind in head]
    inside = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *titles)),
        tag("tbody", *rows),
        id=id_,
    )
    return tag("div", inside, class_="wide", tabindex="0", role="region", aria_label=caption)


def section(name: str, title: str, *inside: Inside) -> Markup:
    """Return a part of the report under a heading."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *inside, id=name, aria_labelledby=f"{name}-title")


def curves_of(results: Sequence[ProfileResult], merged: Ranking) -> dict[str, charts.Curves]:
    """Return the quantiles to draw by kernel: those of all droplets together, else one curve for each droplet."""
    found: dict[str, charts.Curves] = {one.name: [("", one.quantiles)] for one in merged.kernels if one.quantiles}
    apart: dict[str, list[tuple[str, Sequence[float]]]] = {}
    for result in results:
        for kernel in result.kernels:
            if kernel.quantiles and kernel.name not in found:
                apart.setdefault(kernel.name, []).append((result.host, kernel.quantiles))
    return {**apart, **found}


def drifts_of(results: Sequence[ProfileResult], merged: Ranking) -> dict[str, Sequence[tuple[int, float]]]:
    """Return the drift to draw by kernel: of all together, else of the first droplet that tells one."""
    found = {one.name: one.drift for result in reversed(results) for one in result.kernels if one.drift}
    return {**found, **{one.name: one.drift for one in merged.kernels if one.drift}}


def details(
    ranking: Ranking, curves: Mapping[str, charts.Curves], drifts: Mapping[str, Sequence[tuple[int, float]]]
) -> Markup:
    """Write a card for each kernel: whole name, launch, figures, distribution, drift, counters."""
    left = MOST_BYTES_OF_NAMES
    cards: list[Markup] = []
    taken = 0
    for place, kernel in enumerate(ranking.kernels):
        room = max(left, _LEAST_BYTES)
        whole = fitted(brief(kernel.name, room), room)
        left -= len(whole.encode())
        is_drawn = taken < MOST_BYTES_OF_CARDS
        shown, course = (curves.get(kernel.name, ()), drifts.get(kernel.name, ())) if is_drawn else ((), ())
        cards.append(_card(place, kernel, raw(whole), shown, course))
        taken += len(cards[-1])
    said = (
        "First picture: how long the dispatches took, to the 99th percentile or so. Second: their medians over the "
        "run, in the order of launch."
    )
    return section("details", "Kernel by kernel", tag("p", said, class_="quiet"), *cards)


def _card(
    place: int, kernel: KernelStats, whole: Markup, curves: charts.Curves, drift: Sequence[tuple[int, float]]
) -> Markup:
    spread = charts.distribution(place + 1, kernel, curves)
    course = charts.drift(place + 1, drift)
    summary = tag(
        "summary", tag("span", f"{place + 1}", class_="rank"), _name(kernel.name), tag("b", amounts.share(kernel.share))
    )
    pictures = tag(
        "div",
        _captioned(spread, _spread_words(curves)) if spread else None,
        _captioned(course, _drift_words(drift)) if course else None,
        class_="pair",
    )
    is_shown = whole == fitted(brief(kernel.name, SHOWN_NAME), _NAME_BYTES) and len(whole) <= SHOWN_NAME
    told = None if is_shown else tag("p", tag("code", whole, class_="whole"), class_="name")
    launch = launch_words(kernel.launch)
    return tag(
        "details",
        summary,
        told,
        tag("p", launch, class_="quiet") if launch else None,
        _figures(kernel),
        pictures if spread or course else None,
        id=f"k{place}",
        open=place < _OPEN,
    )


def _captioned(picture: Markup, said: str | None) -> Markup:
    return tag("figure", picture, tag("figcaption", said) if said else None)


def _spread_words(curves: charts.Curves) -> str | None:
    if len(curves) == 1:
        return None
    return f"Share of dispatches done by then, on {len(curves)} droplets: " + ", ".join(
        brief(host, 24) for host, _ in curves[:8]
    )


def _drift_words(drift: Sequence[tuple[int, float]]) -> str | None:
    ratio = shapes.trend(drift)
    if ratio is None:
        return None
    return f"Last quarter {amounts.change(ratio)} against the first"


def _figures(kernel: KernelStats) -> Markup:
    """List a kernel's figures as pairs."""
    pairs = [
        ("total", amounts.time(kernel.total_ns)),
        ("calls", amounts.count(kernel.calls)),
        ("mean", amounts.time(kernel.mean_ns)),
        ("standard deviation", amounts.time(kernel.std_ns)),
        ("minimum", amounts.time(kernel.min_ns)),
        ("p50", amounts.time(kernel.p50_ns)),
        ("p99", amounts.time(kernel.p99_ns)),
        ("maximum", amounts.time(kernel.max_ns)),
        *((name, amounts.plain(value)) for name, value in sorted(kernel.counters.items())[:40]),
    ]
    told = [(name, said) for name, said in pairs if said not in ("", amounts.NOTHING)]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", said)) for name, said in told), class_="figures")


def pseudo(ranking: Ranking) -> Markup | None:
    """Write what the profiler lists among kernels and is none; None when there is nothing."""
    if not ranking.pseudo:
        return None
    rows = [
        tag(
            "tr",
            tag("th", _name(one.name), scope="row"),
            figure_cell(amounts.time(one.total_ns), one.total_ns),
            figure_cell(amounts.count(one.calls), one.calls),
            figure_cell(amounts.time(one.mean_ns), one.mean_ns),
        )
        for one in ranking.pseudo[:_MOST_PARTS]
    ]
    said = tag("p", "Rows of the profiler that are no kernels. They count in no share above.", class_="quiet")
    head = [("Row", "t"), ("Total", "n"), ("Calls", "n"), ("Mean", "n")]
    return section("pseudo", "Not kernels", said, table("Rows that are no kernels", head, rows))


def copies(found: Sequence[Copies]) -> Markup | None:
    """Write the memory copies by direction; None when there are none."""
    if not found:
        return None
    rows = [
        tag(
            "tr",
            tag("th", _name(one.name), scope="row"),
            figure_cell(amounts.time(one.total_ns), one.total_ns),
            figure_cell(amounts.count(one.calls), one.calls),
            figure_cell(amounts.size(one.bytes), one.bytes),
            figure_cell(_rate(one), one.bytes / one.total_ns if one.bytes and one.total_ns else None),
        )
        for one in found[:_MOST_PARTS]
    ]
    head = [("Direction", "t"), ("Total", "n"), ("Calls", "n"), ("Bytes", "n"), ("Rate", "n")]
    return section("copies", "Memory copies", table("Memory copies by direction", head, rows))


def _rate(one: Copies) -> str:
    if not one.bytes or one.total_ns <= 0:
        return amounts.NOTHING
    return f"{amounts.size(one.bytes / one.total_ns * 1e9)}/s"


def parts(found: Sequence[Part]) -> Markup | None:
    """Write what each process and each GPU spent; None when there was only one."""
    if not found:
        return None
    whole = {kind: sum(one.total_ns for one in found if one.kind == kind) for kind in ("process", "gpu")}
    rows = [
        tag(
            "tr",
            tag("td", {"process": "process", "gpu": "GPU"}[one.kind]),
            tag("th", _name(one.name), scope="row"),
            figure_cell(amounts.share(one.total_ns / whole[one.kind] if whole[one.kind] else 0), one.total_ns),
            figure_cell(amounts.time(one.total_ns), one.total_ns),
            figure_cell(amounts.count(one.calls), one.calls),
            tag("td", join(*_hottest_of(one))),
        )
        for one in found[:_MOST_PARTS]
    ]
    head = [("Part", "t"), ("Name", "t"), ("Share", "n"), ("Total", "n"), ("Calls", "n"), ("Hottest there", "t")]
    return section("parts", "By process and by GPU", table("Time in kernels by process and by GPU", head, rows))


def _hottest_of(part: Part) -> list[Inside]:
    said: list[Inside] = []
    for name, _, total_ns in part.kernels[:3]:
        said += [tag("code", brief(name, 48)), f" {amounts.time(total_ns)}", tag("br")]
    return said[:-1]
