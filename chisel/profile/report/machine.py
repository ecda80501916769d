"""Write a report's head, banners, environment, telemetry, pool and comparison. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import datetime

from chisel.figures import Comparison, KernelVerdict, ProfileResult, Ranking, Sample, Spread, Telemetry
from chisel.profile.report import amounts, intervals, strips
from chisel.profile.report.escape import brief
from chisel.profile.report.kernels import figure_cell, section, table
from chisel.profile.report.markup import Inside, Markup, tag

MOST_POINTS = 12_000
"""So many points of telemetry are drawn in all, shared out among the curves."""
_CURVES = 4
_LEAST_POINTS, _MOST_POINTS = 24, 400
_MOST_ROWS = 200
_MOST_SPREADS = 100
_MOST_NOTES = 100
_AT_THE_CAP = 0.98
_BEYOND_ALL = 1e9


def where(result: ProfileResult) -> str:
    """Name a result's droplet; files that were ranked on this machine have none."""
    return result.host or "local files"


def banners(results: Sequence[ProfileResult], merged: Ranking) -> Markup | None:
    """Say what a reader must not miss: figures that are made up, and a part that is not the whole."""
    said: list[Markup] = []
    stand_ins = _distinct(one for one in (merged.stand_in, *(result.ranking.stand_in for result in results)) if one)
    if stand_ins:
        what = "Sandbox stand-in: all figures here are made up. No GPU was measured."
        said.append(_banner("made-up", what, "; ".join(stand_ins)))
    partial = [where(result) for result in results if result.is_partial]
    if partial:
        what = "Partial: the command was interrupted. What ran before that is in here, and nothing after it."
        said.append(_banner("partial", what, _hosts(partial, results)))
    return tag("div", *said, class_="banners") if said else None


def failures(results: Sequence[ProfileResult]) -> Markup | None:
    """Say which droplets have no profile, or a command that failed."""
    said: list[Markup] = []
    for result in results[:_MOST_ROWS]:
        if result.error:
            said.append(_banner("failed", f"{where(result)}: no complete profile.", result.error))
        elif result.status and not result.is_partial:
            said.append(_banner("failed", f"The command ended with status {result.status} on {where(result)}.", ""))
    return tag("div", *said) if said else None


def _banner(kind: str, what: str, more: str) -> Markup:
    return tag("p", tag("strong", what), f" {more}" if more else None, class_=f"banner {kind}", role="note")


def _hosts(names: Sequence[str], results: Sequence[ProfileResult]) -> str:
    return "" if len(results) == 1 else ", ".join(names)


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def head(results: Sequence[ProfileResult], merged: Ranking, title: str, created_at: datetime) -> Markup:
    """Write the title and the figures that sum the run up."""
    hosts = _distinct(where(result) for result in results)
    total = sum(kernel.total_ns for kernel in merged.kernels) + merged.rest_ns
    dispatches = merged.dispatches or sum(kernel.calls for kernel in merged.kernels)
    tiles = [
        ("GPU time in kernels", amounts.time(total)),
        ("dispatches", amounts.count(dispatches)),
        ("kernels", amounts.count(len(merged.kernels) + merged.rest)),
        ("hottest takes", amounts.share(merged.kernels[0].share) if merged.kernels else amounts.NOTHING),
    ]
    if len(hosts) > 1:
        tiles.append(("droplets", amounts.count(len(hosts))))
    tiles += _clock_tiles(results)
    on = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
    tools = _distinct(result.tool for result in results if result.tool)
    said = f"{created_at:%Y-%m-%d %H:%M:%S %Z} · {on}".replace("  ", " ") + (
        f" · {'; '.join(tools[:3])}" if tools else ""
    )
    return tag(
        "header",
        tag("p", "chisel profile", class_="brand"),
        tag("h1", brief(title, 400)),
        tag("p", said, class_="quiet"),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="tiles"),
    )


def _clock_tiles(results: Sequence[ProfileResult]) -> list[tuple[str, str]]:
    known = _sane(one.sclk_mhz for result in results for one in result.telemetry.samples if _is_busy(one))
    watts = _sane(one.power_w for result in results for one in result.telemetry.samples)
    tiles = []
    if known:
        tiles.append(("mean clock, busy", amounts.plain(round(sum(known) / len(known)), "MHz")))
    if watts:
        tiles.append(("peak power", amounts.plain(round(max(watts)), "W")))
    return tiles


def _sane(values: Iterable[float | None]) -> list[float]:
    """Return the values that can have been measured."""
    return [value for value in values if value is not None and math.isfinite(value) and abs(value) < _BEYOND_ALL]


def _is_busy(sample: Sample) -> bool:
    """Say whether a GPU worked at a sample; where the tool does not tell, it counts as such."""
    return sample.busy is None or sample.busy > 0


def environment(results: Sequence[ProfileResult]) -> Markup | None:
    """Write what the figures depend on, a column per droplet where droplets differ; None when nothing is known."""
    told = [
        (result, dict(result.fingerprint.facts) | ({"Profiler": result.tool} if _lacks_tool(result) else {}))
        for result in results
    ]
    labels = _distinct(label for _, facts in told for label in facts)[:_MOST_ROWS]
    if not labels:
        return None
    alike = all(len({facts.get(label, "") for _, facts in told}) == 1 for label in labels)
    columns = told[:1] if alike else told[:16]
    heads = [("Fact", "t")] + [("Value", "t") if alike else (brief(where(result), 40), "t") for result, _ in columns]
    rows = []
    for label in labels:
        differs = len({facts.get(label, "") for _, facts in told}) > 1
        cells = [tag("td", tag("code", facts[label]) if facts.get(label) else amounts.NOTHING) for _, facts in columns]
        name = tag("th", label, " (differs)" if differs else None, scope="row")
        rows.append(tag("tr", name, *cells, class_="differs" if differs else None))
    said = "What these figures depend on." if len(results) == 1 else "The same on all droplets." if alike else None
    note = tag("p", said, class_="quiet") if said else None
    return section("environment", "Environment", note, table("What the figures depend on", heads, rows))


def _lacks_tool(result: ProfileResult) -> bool:
    return bool(result.tool) and not any("profiler" in label.lower() for label in result.fingerprint.facts)


def telemetry(results: Sequence[ProfileResult]) -> Markup | None:
    """Draw every GPU's clock, power and temperature; None when no tool answered."""
    gpus = [(result, gpu) for result in results for gpu in sorted({one.gpu for one in result.telemetry.samples})]
    if not gpus:
        return None
    most = min(max(MOST_POINTS // (_CURVES * len(gpus)), _LEAST_POINTS), _MOST_POINTS)
    drawn: list[Inside] = []
    for result, gpu in gpus[:_MOST_ROWS]:
        picture = strips.telemetry(brief(where(result), 40), gpu, result.telemetry, most)
        if picture is not None:
            words = _clock_words(result.telemetry, gpu)
            name = f"{where(result)}, GPU {gpu}" + (f": {words}" if words else "")
            drawn.append(tag("figure", picture, tag("figcaption", name)))
    notes = [
        tag("li", f"{where(result)}: {note}") for result in results for note in result.telemetry.notes[:_MOST_NOTES]
    ]
    sources = _distinct(result.telemetry.source for result in results if result.telemetry.source)
    said = tag("p", f"Sampled during the run by {', '.join(sources)}.", class_="quiet") if sources else None
    listed = tag("ul", *notes[:_MOST_NOTES]) if notes else None
    return section("telemetry", "Clock, power, temperature", said, tag("div", *drawn, class_="strips"), listed)


def _clock_words(told: Telemetry, gpu: int) -> str:
    """Say where the clock stood and how long the GPU was at its power cap."""
    samples = [one for one in told.samples if one.gpu == gpu]
    clocks = _sane(one.sclk_mhz for one in samples if _is_busy(one))
    powers = _sane(one.power_w for one in samples)
    said, top, cap = [], told.sclk_max_mhz.get(gpu), told.power_cap_w.get(gpu)
    if clocks:
        of = f" of {amounts.plain(top)}" if top else ""
        said.append(f"mean clock {amounts.plain(round(sum(clocks) / len(clocks)))}{of} MHz")
    if powers and cap:
        capped = sum(value >= _AT_THE_CAP * cap for value in powers) / len(powers)
        said.append(f"at its power cap in {amounts.share(capped)} of the samples")
    return ", ".join(said)


def pool(spreads: Sequence[Spread]) -> Markup | None:
    """Write how the droplets of a pool differ, kernel by kernel; None with nothing to compare."""
    if not spreads:
        return None
    rows = [_spread_row(one) for one in spreads[:_MOST_SPREADS]]
    head_ = [("Kernel", "t"), ("Spread", "n"), ("Fastest", "t"), ("Slowest", "t"), ("Outlier", "t"), ("Cause", "t")]
    return section(
        "pool",
        "Droplet against droplet",
        tag("p", "Medians. The spread is the slowest droplet's over the fastest's, less one.", class_="quiet"),
        _rows(intervals.dots(spreads)),
        table("Spread between droplets, by kernel", head_, rows),
    )


def _rows(picture: Markup | None) -> Markup | None:
    return tag("div", picture, class_="wide", tabindex="0") if picture is not None else None


def _spread_row(one: Spread) -> Markup:
    ordered = sorted(one.p50_ns.items(), key=lambda found: found[1])
    ends = [f"{brief(host, 40)} {amounts.time(value)}" for host, value in (ordered[:1] + ordered[-1:])]
    fastest, slowest = ends if len(ends) == 2 else (amounts.NOTHING, amounts.NOTHING)
    return tag(
        "tr",
        tag("th", tag("code", brief(one.name, 80)), scope="row"),
        figure_cell(amounts.share(one.spread), one.spread),
        tag("td", fastest),
        tag("td", slowest),
        tag("td", tag("b", one.outlier) if one.outlier else amounts.NOTHING),
        tag("td", one.cause or amounts.NOTHING),
        class_="outlying" if one.outlier else None,
    )


def verdicts(comparison: Comparison | None) -> Markup | None:
    """Write a comparison's verdicts with their intervals; None without one."""
    if comparison is None:
        return None
    sessions = f"{comparison.sessions_b} sessions of it against {comparison.sessions_a}"
    on = f" on {comparison.host}" if comparison.host else ""
    said = (
        f"{comparison.label_b} against {comparison.label_a}: {sessions}{on}. Lines are intervals; in the grey band "
        "nothing can be told with so many sessions."
    )
    head_ = [("Kernel", "t"), ("Verdict", "t"), ("Change", "n"), ("Interval", "n"), ("Smallest change to be seen", "n")]
    head_ += [(f"p50 {brief(side, 24)}", "n") for side in (comparison.label_a, comparison.label_b)]
    return section(
        "comparison",
        "Faster or slower",
        tag("p", said),
        _rows(intervals.forest(comparison)),
        table("Verdict by kernel", head_, [_verdict_row(one) for one in comparison.verdicts[:_MOST_ROWS]]),
        tag("ul", *(tag("li", note) for note in comparison.notes[:_MOST_NOTES])) if comparison.notes else None,
    )


def _verdict_row(one: KernelVerdict) -> Markup:
    kind = {"faster": "faster", "slower": "slower"}.get(one.verdict, "unsure")
    word = one.verdict if one.missing is None else f"only in {'B' if one.missing == 'a' else 'A'}"
    least = f"±{amounts.share(one.detectable)}" if one.detectable is not None else amounts.NOTHING
    between = amounts.NOTHING
    if one.low is not None and one.high is not None:
        between = f"{amounts.change(one.low)} to {amounts.change(one.high)}"
    return tag(
        "tr",
        tag("th", tag("code", brief(one.name, 80)), scope="row"),
        tag("td", tag("span", word, class_=f"verdict {kind}")),
        figure_cell(amounts.change(one.ratio), one.ratio),
        tag("td", between, class_="n"),
        figure_cell(least, one.detectable),
        figure_cell(amounts.time(one.p50_a_ns), one.p50_a_ns),
        figure_cell(amounts.time(one.p50_b_ns), one.p50_b_ns),
    )


def notes(results: Sequence[ProfileResult], merged: Ranking) -> Markup | None:
    """List what was wrong with which file; None when nothing was."""
    several = len(results) > 1
    said = _distinct(
        [
            *(f"{where(one)}: {note}" if several else note for one in results for note in one.ranking.notes),
            *(note for note in merged.notes if not several),
        ]
    )
    if not said:
        return None
    return section("notes", "Notes", tag("ul", *(tag("li", note) for note in said[:_MOST_NOTES])))
