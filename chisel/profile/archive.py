"""Lay a profile's directory out: kernels.csv, profile.json, report.html and a .gitignore beside the trace and raw/.

Nothing half-written stays: a directory is filled beside its place and then renamed into it.

Blocking: call it in a thread.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from chisel.errors import UsageError
from chisel.figures import KernelStats, Launch, ProfileReport
from chisel.profile.report import report_html
from chisel.profile.saved import Saved, save

TABLE = "kernels.csv"
REPORT = "report.html"
_IGNORE = ".gitignore"
_LAUNCH = ("workgroup", "grid", "vgprs", "agprs", "sgprs", "lds_bytes", "scratch_bytes")
_COLUMNS = ("name", "calls", "total_ns", "mean_ns", "p50_ns", "p99_ns", "min_ns", "max_ns", "share", "std_ns")
_NAME_LENGTH = 32


def default_out(directory: Path, line: str, now: datetime) -> Path:
    """Return `<directory>/<time>-<command>`; the command's first word that names a program, made a file name."""
    words = [word for word in line.split() if not re.fullmatch(r"\w+=.*|sudo|env|exec|time", word)]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(words[0]).name if words else "").strip("-.")[:_NAME_LENGTH]
    return directory / f"{now:%Y%m%d-%H%M%S}-{name or 'command'}"


def check_out(out: Path) -> None:
    """Raise UsageError when `out` holds something that is no profile of chisel's: it would be replaced."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"`{out}` is not a directory", hint="choose another --out")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise UsageError(f"`{out}` already holds other files", hint="choose another --out")


def _is_ours(out: Path) -> bool:
    return (out / TABLE).is_file() and (out / _IGNORE).is_file()


def staging_for(out: Path) -> Path:
    """Return an empty directory beside `out` to fill; a rest of a killed run goes."""
    staging = out.with_name(f".{out.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def put_in_place(staging: Path, out: Path) -> None:
    """Make a filled directory `out`, in place of an older profile; raises OSError."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.is_dir():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def lay_out(directory: Path, report: ProfileReport, *, saved: Saved | None, title: str = "") -> None:
    """Write what goes beside the trace and the raw files; with a `title` the report as well. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    write_table(directory, report.ranking.kernels, report.ranking.pseudo)
    if saved is not None:
        save(directory, "profile", saved)
    if title:
        html = report_html(
            [*report.before, *report.results],
            merged=report.ranking,
            spreads=report.spreads,
            comparison=report.comparison,
            title=title,
            created_at=datetime.now(UTC),
        )
        (directory / REPORT).write_text(html, encoding="utf-8", errors="replace")


def write_table(directory: Path, kernels: Sequence[KernelStats], pseudo: Sequence[KernelStats]) -> None:
    """Write kernels.csv (times in ns, share from 0 to 1) and the .gitignore; pseudo rows say so in `kind`."""
    (directory / _IGNORE).write_text("*\n")
    counters = sorted({name for kernel in kernels for name in kernel.counters})
    with (directory / TABLE).open("w", newline="", encoding="utf-8", errors="replace") as out:
        table = csv.writer(out)
        table.writerow(["rank", "kind", *_COLUMNS, *_LAUNCH, *counters])
        for rank, kernel in enumerate(kernels, 1):
            table.writerow([rank, "kernel", *_row(kernel), *(kernel.counters.get(name, "") for name in counters)])
        for row in pseudo:
            table.writerow(["", "pseudo", *_row(row), *("" for _ in counters)])


def _row(kernel: KernelStats) -> list[object]:
    launch = kernel.launch or Launch()
    shape = ["x".join(map(str, size)) if size else "" for size in (launch.workgroup, launch.grid)]
    registers = [getattr(launch, name) for name in _LAUNCH[2:]]
    return [*(getattr(kernel, name) for name in _COLUMNS), *shape, *registers]
