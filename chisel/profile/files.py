"""Rank, compare and show files that a profiler wrote and that are here already."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from chisel.errors import ChiselError
from chisel.events import Notice, ProfileRanked, ProfileSaved, Sink
from chisel.figures import Fingerprint, ProfileReport, ProfileResult
from chisel.profile.archive import check_out, lay_out, put_in_place, staging_for
from chisel.profile.campaign import TRACE, Plan, as_bounds, saved_of, summarise
from chisel.profile.engine import PFTRACE, RAW
from chisel.profile.local import rank_local, write_local_trace
from chisel.profile.order import ProfileOrder
from chisel.profile.rank import Facts, diagnosis
from chisel.profile.saved import Saved, load, save

_GENERATIONS = {
    "rocpd": "rocprofv3/rocpd",
    "trace": "rocprofv3/csv",
    "stats": "rocprofv3/csv",
    "v3-json": "rocprofv3/json",
    "rpd": "rpd",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Files to rank: a file, a directory, or one that `profile` made; `plan.out` is only written when `keeps`."""

    path: Path
    plan: Plan
    keeps: bool = False


async def profile_files(source: Source, sink: Sink) -> ProfileReport:
    """Rank what is there, compare it where the plan says so, and lay it out in `plan.out` when the source `keeps`.

    Raises UsageError for files that are no profiler's, missing or unreadable, ChiselError when nothing can be written.
    """
    plan, order = source.plan, source.plan.sides[-1]
    if source.keeps:
        await to_thread.run_sync(check_out, plan.out)
    known = await to_thread.run_sync(_known, source.path)
    ranking = await rank_local(source.path, top=order.top, kernel=order.kernel, skip_warmup=order.skip_warmup)
    generation = _GENERATIONS.get(ranking.source or "", "rocprof v1")
    tool = known.tool if known is not None else f"{generation}, {source.path.name}"
    result = ProfileResult(
        host="",
        status=0,
        ranking=ranking,
        tool=f"{tool}; {ranking.stand_in}" if ranking.stand_in and ranking.stand_in not in tool else tool,
        generation=known.generation if known is not None else generation,
        fingerprint=known.fingerprint if known is not None else Fingerprint({"files": str(source.path)}),
        error=diagnosis(ranking, 0, Facts("", order.kernel, order.skip_warmup)),
    )
    sink.emit(ProfileRanked(result=result, top=order.top))
    for note in ranking.notes if ranking.kernels else ():
        sink.emit(Notice(message=note, level="warning"))
    report = await summarise(ProfileReport(results=(result,)), plan, sink, sessions=_sessions(known, order))
    if plan.save_as is not None and result.kernels:
        directory, name = plan.save_as
        kept = await to_thread.run_sync(save, directory, name, replace(saved_of(report.results, "now"), label=name))
        sink.emit(Notice(message=f"saved as `{name}`: {kept}"))
    return await _keep(report, source, sink) if source.keeps else report


def _known(path: Path) -> Saved | None:
    """Return what `profile` wrote down about a directory of its own, None for others."""
    if not (path / "profile.json").is_file():
        return None
    try:
        return load(path.parent, str(path))
    except ChiselError:
        return None


def _sessions(known: Saved | None, order: ProfileOrder) -> Saved | None:
    """Return all sessions of a profile, where nothing is left out of it that was in them."""
    return known if known is not None and order.kernel is None and not order.skip_warmup else None


async def _keep(report: ProfileReport, source: Source, sink: Sink) -> ProfileReport:
    plan = source.plan
    staging = await to_thread.run_sync(staging_for, plan.out)
    try:
        raw = source.path / "raw" if (source.path / "raw").is_dir() else source.path
        hottest = report.ranking.kernels[0].name if report.ranking.kernels else None
        window = await write_local_trace({source.path.name: raw}, staging / TRACE, find=hottest)
        saved = saved_of(report.results, "now") if report.results[0].kernels else None
        await to_thread.run_sync(partial(lay_out, staging, report, saved=saved, title=str(source.path)))
        await to_thread.run_sync(_bring, raw, staging / RAW)
        shown = TRACE
        if (source.path / PFTRACE).is_file():
            shown = PFTRACE
            await to_thread.run_sync(shutil.copyfile, source.path / PFTRACE, staging / PFTRACE)
        await to_thread.run_sync(put_in_place, staging, plan.out)
    except OSError as error:
        raise ChiselError(f"cannot write `{plan.out}`: {error.strerror}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, staging, ignore_errors=True))
    sink.emit(ProfileSaved(out=plan.out))
    return replace(report, out=plan.out, trace=plan.out / shown, window_ns=as_bounds(window))


def _bring(source: Path, target: Path) -> None:
    """Have a file, or the plain files of a directory, below `target`: the same files where the file system lets it."""
    files = [source] if source.is_file() else [path for path in sorted(source.rglob("*")) if path.is_file()]
    base = source.parent if source.is_file() else source
    for path in files:
        if path.is_symlink() or target.parent in path.parents:
            continue
        place = target / path.relative_to(base)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)
