"""Lay out what profiles found: hottest kernels, a pool's spread, comparisons. Names stand last and get what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chisel import events
from chisel.figures import Comparison, KernelStats, KernelVerdict, Launch, ProfileResult, Ranking, Spread
from chisel.render import words
from chisel.render.clean import clean
from chisel.render.kernelnames import shorten_all

_BETWEEN = 3
_NARROWEST_NAME = 16
_SHOWN_PARTS = 8
_STYLES = {"faster": "green", "slower": "red", "can't tell": "dim"}


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of figures; one that is `optional_below` a width is left out there."""

    title: str
    cells: Sequence[str]
    optional_below: int = 0
    style: str = ""


def kernels(result: ProfileResult, top: int, *, width: int) -> RenderableType:
    """Show one droplet's hottest kernels, rows that are none below them, processes and GPUs where there are several."""
    of_whom = f"{clean(result.host)}: " if result.host else ""
    title = f"{of_whom}hottest kernels by total time ({clean(result.tool)})"
    parts: list[RenderableType] = [Text(title, style="bold")]
    if result.status:
        parts.append(Text(f"the command ended with status {result.status}", style="yellow"))
    if result.is_partial:
        parts.append(Text("PARTIAL: the command was interrupted; this is what the profiler had", style="yellow"))
    return Group(*parts, *_ranking(result.ranking, top, width))


def summed(event: events.ProfileSummed, *, width: int) -> RenderableType:
    """Show droplets and sessions as one ranking, and how far the droplets lie apart."""
    over = [words.count(event.sessions, "session")] if event.sessions > 1 else []
    over += [words.count(len(event.hosts), "droplet")] if len(event.hosts) > 1 else []
    parts: list[RenderableType] = [
        Text(f"hottest kernels over {' on '.join(over) or 'all'} ({clean(event.tool)})", style="bold")
    ]
    if event.is_partial:
        parts.append(Text("PARTIAL: the command was interrupted; this is what the profilers had", style="yellow"))
    if event.spreads:
        parts += _spreads(event.spreads[: event.top], width)
    else:
        parts += _ranking(event.ranking, event.top, width)
    return Group(*parts)


def compared(comparison: Comparison, top: int, *, width: int) -> RenderableType:
    """Show how each kernel's time changed, how sure that is, and what could have been seen."""
    sessions = f"{comparison.sessions_a} and {comparison.sessions_b} sessions"
    title = f"{clean(comparison.label_b)} against {clean(comparison.label_a)}, medians of {sessions}"
    shown = comparison.verdicts[: top + 1]
    columns = [
        _Column("verdict", [one.verdict for one in shown]),
        _Column("change", [_change(one.ratio) for one in shown]),
        _Column("interval", [_interval(one) for one in shown], optional_below=72),
        _Column("visible from", [_percent(one.detectable) for one in shown], optional_below=90),
        _Column(clean(comparison.label_a)[:12], [_ns(one.p50_a_ns) for one in shown], optional_below=100),
        _Column(clean(comparison.label_b)[:12], [_ns(one.p50_b_ns) for one in shown], optional_below=110),
    ]
    styles = [_STYLES[one.verdict] for one in shown]
    names = [one.name if one.missing is None else f"{one.name} (not in {one.missing.upper()})" for one in shown]
    table = _table(columns, "kernel", names, ["" for _ in shown], width, styles)
    notes = [Text(clean(note), style="dim") for note in comparison.notes]
    return Group(Text(title, style="bold"), table, *notes)


def _ranking(ranking: Ranking, top: int, width: int) -> list[RenderableType]:
    shown = [*ranking.kernels[:top], *ranking.pseudo]
    real = len(ranking.kernels[:top])
    numbers = [str(number) for number in range(1, real + 1)] + ["-"] * len(ranking.pseudo)
    columns = [
        _Column("#", numbers),
        _Column("share", [f"{100 * one.share:.1f} %" if index < real else "-" for index, one in enumerate(shown)]),
        _Column("total", [words.nanoseconds(one.total_ns) for one in shown]),
        _Column("calls", [f"{one.calls:,}" for one in shown], optional_below=52),
        _Column("mean", [words.nanoseconds(one.mean_ns) for one in shown], optional_below=96),
        _Column("p50", [_ns(one.p50_ns) for one in shown], optional_below=56),
        _Column("p99", [_ns(one.p99_ns) for one in shown], optional_below=92),
        _Column("sd", [_ns(one.std_ns) for one in shown], optional_below=130),
        *_launches(shown),
    ]
    styles = [""] * real + ["dim"] * len(ranking.pseudo)
    table = _table(columns, "kernel", [one.name for one in shown], [_mark(one) for one in shown], width, styles)
    rest = max(0, len(ranking.kernels) - top) + ranking.rest
    more = [Text(f"and {words.count(rest, 'kernel')} more", style="dim")] if rest else []
    return [table, *more, *_parts(ranking), *_copies(ranking)]


def _launches(shown: Sequence[KernelStats]) -> list[_Column]:
    """Show registers and launch shapes where the format has them and the terminal has room."""
    launches = [one.launch or Launch() for one in shown]
    columns = [
        _Column("vgpr", [_number(one.vgprs) for one in launches], optional_below=150),
        _Column("sgpr", [_number(one.sgprs) for one in launches], optional_below=170),
        _Column("lds", [_number(one.lds_bytes) for one in launches], optional_below=150),
        _Column("scratch", [_number(one.scratch_bytes) for one in launches], optional_below=170),
        _Column("grid", [_size(one.grid) for one in launches], optional_below=150),
    ]
    return [column for column in columns if any(cell != "-" for cell in column.cells)]


def _mark(kernel: KernelStats) -> str:
    """Tell kernels apart whose shortened names are alike."""
    launch = kernel.launch
    if launch is None or launch.grid is None:
        return ""
    registers = f", {launch.vgprs} vgpr" if launch.vgprs is not None else ""
    return f"[{_size(launch.grid)}{registers}]"


def _parts(ranking: Ranking) -> list[Text]:
    whole = sum(one.total_ns for one in ranking.kernels) + ranking.rest_ns
    lines = []
    for part in ranking.parts[:_SHOWN_PARTS]:
        share = f"{100 * part.total_ns / whole:.1f} %" if whole else "-"
        hottest = f", most of it in {clean(part.kernels[0][0])}" if part.kernels else ""
        name = f"{'GPU' if part.kind == 'gpu' else 'process'} {clean(part.name)}"
        line = f"{name}: {words.nanoseconds(part.total_ns)} ({share}) in {words.count(part.calls, 'call')}{hottest}"
        lines.append(Text(line, no_wrap=True, overflow="ellipsis"))
    rest = len(ranking.parts) - _SHOWN_PARTS
    return [*lines, *([Text(f"and {rest} more processes and GPUs", style="dim")] if rest > 0 else [])]


def _copies(ranking: Ranking) -> list[Text]:
    lines = []
    for one in ranking.copies:
        size = f", {words.size(one.bytes)}" if one.bytes is not None else ""
        said = f"copies {clean(one.name)}: {words.nanoseconds(one.total_ns)} in {words.count(one.calls, 'call')}{size}"
        lines.append(Text(said, style="dim", no_wrap=True, overflow="ellipsis"))
    return lines


def _spreads(spreads: Sequence[Spread], width: int) -> list[RenderableType]:
    fastest = [min(one.p50_ns.items(), key=lambda item: item[1], default=("-", 0.0)) for one in spreads]
    slowest = [max(one.p50_ns.items(), key=lambda item: item[1], default=("-", 0.0)) for one in spreads]
    columns = [
        _Column("#", [str(number) for number in range(1, len(spreads) + 1)]),
        _Column("share", [f"{100 * one.share:.1f} %" for one in spreads]),
        _Column("total", [words.nanoseconds(one.total_ns) for one in spreads]),
        _Column("calls", [f"{one.calls:,}" for one in spreads], optional_below=80),
        _Column("spread", [f"{100 * one.spread:.1f} %" for one in spreads]),
        _Column("fastest p50", [f"{words.nanoseconds(ns)} {clean(host)}" for host, ns in fastest], optional_below=120),
        _Column("slowest p50", [f"{words.nanoseconds(ns)} {clean(host)}" for host, ns in slowest], optional_below=96),
    ]
    table = _table(columns, "kernel", [one.name for one in spreads], ["" for _ in spreads], width, None)
    return [table, *_outliers(spreads)]


def _outliers(spreads: Sequence[Spread]) -> list[Text]:
    """Name each droplet that stands apart once, with its cause and the kernel where it shows most."""
    worst: dict[str, Spread] = {}
    for one in spreads:
        if one.outlier is not None and (one.outlier not in worst or one.spread > worst[one.outlier].spread):
            worst[one.outlier] = one
    lines = []
    for host, one in worst.items():
        cause = f": {clean(one.cause)}" if one.cause else "; its telemetry shows no cause"
        lines.append(Text(f"{clean(host)} stands apart by up to {100 * one.spread:.1f} %{cause}", style="yellow"))
    return lines


def _table(
    columns: Sequence[_Column],
    last: str,
    names: Sequence[str],
    marks: Sequence[str],
    width: int,
    styles: Sequence[str] | None,
) -> Table:
    """Show the columns that fit, and names, shortened to what is left, in the last one."""
    fitting = [column for column in columns if width >= column.optional_below]
    while fitting and width - _needed(fitting) < _NARROWEST_NAME and any(column.optional_below for column in fitting):
        fitting.remove(max(fitting, key=lambda column: column.optional_below))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in fitting:
        table.add_column(column.title, justify="right", no_wrap=True)
    left = max(width - _needed(fitting), _NARROWEST_NAME)
    table.add_column(last, no_wrap=True, overflow="ellipsis")
    shown = shorten_all([clean(name) for name in names], left, marks)
    for index, name in enumerate(shown):
        style = styles[index] if styles is not None else ""
        table.add_row(*(column.cells[index] for column in fitting), Text(name), style=style)
    return table


def _needed(columns: Sequence[_Column]) -> int:
    return sum(max(map(len, [column.title, *column.cells])) + _BETWEEN for column in columns)


def _ns(time_ns: float | None) -> str:
    return "-" if time_ns is None else words.nanoseconds(time_ns)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _size(size: tuple[int, int, int] | None) -> str:
    """Say a launch's size, without dimensions of one at its end: `1024`, `64x64`."""
    if size is None:
        return "-"
    kept = list(size)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return "x".join(map(str, kept))


def _change(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _interval(one: KernelVerdict) -> str:
    if one.low is None or one.high is None:
        return "-"
    return f"{100 * (one.low - 1):+.1f} .. {100 * (one.high - 1):+.1f} %"
