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
    PoolStatus,
    RunResult,
    SweepItem,
)
from chisel.render import summary, words
from chisel.render.clean import clean

_WIDTH_FOR_IDS = 100
_BETWEEN_COLUMNS = 3


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
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip("\n") + "\n"


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    numbers = set(right)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def _safe(text: str, style: str = "") -> Text:
    return Text(clean(text), style=style)


def runs(results: Sequence[RunResult]) -> Table:
    """Show how a command ended on each droplet of a pool (see `chisel.render.summary`)."""
    table = _table(*summary.COLUMNS, right=summary.RIGHT)
    for one in sorted(results, key=lambda result: result.host):
        host, status, seconds, output, memory, why = summary.cells(one)
        table.add_row(_safe(host), Text(status, style=summary.style_of(one)), seconds, output, memory, _safe(why))
    return table


def pools(reported: Sequence[PoolStatus], *, width: int) -> RenderableType:
    """Show every pool with its droplets, what runs there, what it costs; ids only where they fit into `width`."""
    if not reported:
        return Text("Nothing is up.")
    return Group(*(part for pool in reported for part in _pool(pool, width)))


def _pool(pool: PoolStatus, width: int) -> tuple[RenderableType, ...]:
    """Show one pool: what all its droplets share stands in the title, what differs in a column of its own."""
    kinds = {_kind(droplet) for droplet in pool.droplets}
    title = [f"pool {pool.name}", f"self-destruct: {pool.self_destruct}"]
    ends = [droplet.ends_in_s for droplet in pool.droplets if droplet.ends_in_s is not None]
    if ends:
        title.append(f"unused it ends in {words.duration(min(ends))}")
    if len(kinds) == 1:
        title.insert(1, f"{len(pool.droplets)} of {kinds.pop()}")
    names = [
        "droplet",
        *(["id"] if width >= _WIDTH_FOR_IDS else []),
        "cloud",
        "answers",
        "up for",
        "idle",
        *(["ends in"] if width >= _WIDTH_FOR_IDS else []),
        "cost",
    ]
    names += ["kind"] if kinds else []
    rows = [_droplet_cells(droplet) for droplet in pool.droplets]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    left = width
    for name in names:
        needed = max(len(name), *(cells[name].cell_len for cells in rows))
        left -= needed + _BETWEEN_COLUMNS
        is_number = name in {"id", "up for", "idle", "ends in", "cost"}
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True, min_width=needed)
    table.add_column("runs", no_wrap=True, overflow="ellipsis", max_width=max(left, len("runs")))
    for cells in rows:
        table.add_row(*(cells[name] for name in [*names, "runs"]))
    return (_safe(" · ".join(title), "bold"), table, Text(""))


def _kind(droplet: DropletStatus) -> str:
    return f"{droplet.size} in {droplet.region}, {words.usd(droplet.usd_per_hour)} per hour"


def _droplet_cells(droplet: DropletStatus) -> dict[str, Text]:
    running = [run for run in droplet.runs if run.is_running]
    return {
        "droplet": _safe(droplet.host),
        "id": Text(str(droplet.droplet_id)),
        "cloud": _safe(droplet.cloud_status),
        "answers": Text("yes", style="green") if droplet.is_reachable else Text("no", style="red"),
        "up for": Text(words.duration(droplet.age_s)),
        "idle": Text("-" if droplet.idle_s is None else words.duration(droplet.idle_s)),
        "ends in": Text("-" if droplet.ends_in_s is None else words.duration(droplet.ends_in_s)),
        "cost": Text(words.usd(droplet.usd_so_far)),
        "kind": _safe(_kind(droplet)),
        "runs": _safe("; ".join(run.line.replace("\n", " ") for run in running)),
    }


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
