"""Lay out results as rich tables. Remote text enters as cleaned `Text`, never as markup."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from chisel.model import (
    DropletStatus,
    KernelStats,
    PoolStatus,
    ProfileResult,
    RunResult,
    SweepItem,
)
from chisel.render import words
from chisel.render.clean import clean

_SHOWN_NAME_LENGTH = 200


def to_text(renderable: RenderableType, *, width: int, colour: bool) -> str:
    """Render to a string of at most `width` columns, with ANSI colours only when asked for."""
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    numbers = set(right)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def _safe(text: str, style: str = "") -> Text:
    return Text(clean(text), style=style)


def runs(results: Sequence[RunResult]) -> Table:
    """Show how a command ended on each droplet of a pool."""
    table = _table(
        "droplet", "status", "seconds", "output", "peak memory", "why", right=("status", "seconds", "output")
    )
    for one in sorted(results, key=lambda result: result.host):
        table.add_row(
            _safe(one.host),
            Text(str(one.status), style="green" if one.status == 0 else "red"),
            f"{one.seconds:.2f}",
            words.size(one.stdout_bytes + one.stderr_bytes),
            words.size(one.peak_rss_bytes) if one.peak_rss_bytes else "-",
            _safe(one.error or (f"signal {one.signal}" if one.signal else "")),
        )
    return table


def kernels(result: ProfileResult, top: int) -> RenderableType:
    """Show the hottest kernels, pseudo rows below them and apart."""
    table = _table(
        "#",
        "kernel",
        "calls",
        "total",
        "mean",
        "p50",
        "p99",
        "share",
        right=("#", "calls", "total", "mean", "p50", "p99", "share"),
    )
    for rank, kernel in enumerate(result.kernels[:top], 1):
        table.add_row(str(rank), *_kernel_cells(kernel))
    for kernel in result.pseudo:
        table.add_row("-", *_kernel_cells(kernel), style="dim")
    rest = len(result.kernels) - top
    title = Text(f"{clean(result.host)}: hottest kernels by total time ({clean(result.tool)})")
    return Group(title, table, Text(f"and {words.count(rest, 'kernel')} more") if rest > 0 else Text(""))


def _kernel_cells(kernel: KernelStats) -> tuple[RenderableType, ...]:
    name = kernel.name if len(kernel.name) <= _SHOWN_NAME_LENGTH else kernel.name[:_SHOWN_NAME_LENGTH] + "…"
    quantiles = (kernel.p50_ns, kernel.p99_ns)
    return (
        _safe(name),
        f"{kernel.calls:,}",
        words.nanoseconds(kernel.total_ns),
        words.nanoseconds(kernel.mean_ns),
        *(words.nanoseconds(value) if value else "-" for value in quantiles),
        f"{100 * kernel.share:.1f} %",
    )


def pools(reported: Sequence[PoolStatus]) -> RenderableType:
    """Show every pool with its droplets, what runs there, what it costs."""
    if not reported:
        return Text("Nothing is up.")
    return Group(*(part for pool in reported for part in _pool(pool)))


def _pool(pool: PoolStatus) -> tuple[RenderableType, ...]:
    table = _table(
        "droplet", "id", "cloud", "answers", "region", "size", "up for", "idle", "cost", "per hour", "runs",
        right=("id", "up for", "idle", "cost", "per hour"),
    )  # fmt: skip
    for droplet in pool.droplets:
        table.add_row(*_droplet_cells(droplet))
    return (
        Text(f"pool {clean(pool.name)} · self-destruct: {clean(pool.self_destruct)}", style="bold"),
        table,
        Text(""),
    )


def _droplet_cells(droplet: DropletStatus) -> tuple[RenderableType, ...]:
    running = [run for run in droplet.runs if run.is_running]
    return (
        _safe(droplet.host),
        str(droplet.droplet_id),
        _safe(droplet.cloud_status),
        Text("yes", style="green") if droplet.is_reachable else Text("no", style="red"),
        _safe(droplet.region),
        _safe(droplet.size),
        words.duration(droplet.age_s),
        "-" if droplet.idle_s is None else words.duration(droplet.idle_s),
        words.usd(droplet.usd_so_far),
        words.usd(droplet.usd_per_hour),
        _safe("; ".join(run.line for run in running)[:80]),
    )


def sweep(items: Sequence[SweepItem]) -> RenderableType:
    """Show every droplet of ours and others that `sweep` saw, and which it would destroy."""
    if not items:
        return Text("No droplet with chisel's tag is up.")
    table = _table("", "droplet", "id", "pool", "owner", "up for", "cost", "reason", right=("id", "up for", "cost"))
    for item in items:
        table.add_row(
            Text("destroy" if item.is_selected else "leave", style="red" if item.is_selected else ""),
            _safe(item.name),
            str(item.droplet_id),
            _safe(item.pool),
            _safe(item.owner),
            words.duration(item.age_s),
            words.usd(item.usd_so_far),
            _safe(item.reason),
        )
    return table


def facts(title: str, labelled: Mapping[str, Any]) -> RenderableType:
    """Show labelled facts, one a line."""
    grid = Table.grid(padding=(0, 2))
    for label, value in labelled.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        grid.add_row(_safe(label, "dim"), _safe(text))
    return Group(Text(clean(title), style="bold"), grid)
