"""Profile over sessions, sides and droplets, take everything together, and lay it out in one directory.

A plain `profile` is one session of one side on one droplet. `--sessions N` repeats it, `--ab` takes two sides in turns
on the same droplet, a pool does it on every droplet at once. Files are brought of each side's first session on each
droplet; the figures of all sessions are kept in `profile.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from chisel.errors import ChiselError
from chisel.events import Compared, Notice, ProfileSaved, ProfileSummed, Progress, Sink
from chisel.figures import Comparison, ProfileReport, ProfileResult, Ranking, Spread
from chisel.profile.archive import check_out, lay_out, put_in_place, staging_for
from chisel.profile.compare import compare, session_of, slower_than
from chisel.profile.engine import PFTRACE, build, profile_once
from chisel.profile.local import Window, write_local_trace
from chisel.profile.order import Bench, ProfileOrder
from chisel.profile.saved import Saved, check_comparable, save
from chisel.profile.spread import merged, spread
from chisel.profile.telemetry import cause_of_slowness
from chisel.runner import describe

TRACE = "trace.json.gz"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a `profile` is to do: `sides` are one order, or A's and B's, with their `labels`.

    The figures of this time are compared with `baseline`, and kept as `save_as` (directory and name).
    `fail_if_slower` is in per cent. `title` heads the report.
    """

    sides: tuple[ProfileOrder, ...]
    labels: tuple[str, ...]
    out: Path
    sessions: int = 1
    baseline: Saved | None = None
    save_as: tuple[Path, str] | None = None
    fail_if_slower: float | None = None
    title: str = ""

    @property
    def is_single(self) -> bool:
        """Say whether each droplet is profiled once."""
        return self.sessions == 1 and len(self.sides) == 1


@dataclass
class _Leg:
    """One side on one droplet: its sessions so far, and where its files are while they are being brought."""

    side: int
    host: str
    place: Path
    results: list[ProfileResult] = field(default_factory=list)


async def profile(benches: Sequence[Bench], plan: Plan, sink: Sink) -> ProfileReport:
    """Profile on all droplets at once and return everything; the files arrive in `plan.out`, whole or not at all.

    A droplet's failure is the `error` of its result. Raises UsageError when `plan.out` holds other things, or when the
    baseline was made by another profiler; OSError-free: what cannot be written is a ChiselError. Cancelled, it ends the
    commands, and leaves no directory on a droplet nor half a one here.
    """
    await to_thread.run_sync(check_out, plan.out)
    staging = await to_thread.run_sync(staging_for, plan.out)
    try:
        legs = _legs(benches, plan, staging)
        async with anyio.create_task_group() as tasks:
            for bench in benches:
                mine = [leg for leg in legs if leg.host == bench.host]
                tasks.start_soon(_on_one, bench, plan, mine, len(benches) > 1)
        report = await summarise(legs_to_report(legs), plan, sink)
        report = await _write(report, legs, plan, staging, sink)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, staging, ignore_errors=True))
    return report


def _legs(benches: Sequence[Bench], plan: Plan, staging: Path) -> list[_Leg]:
    """Return a leg for each side and droplet, each with a directory of its own where there are several."""
    legs = []
    for bench in benches:
        for side in range(len(plan.sides)):
            place = staging / "ab"[side] if len(plan.sides) > 1 else staging
            legs.append(_Leg(side, bench.host, place / bench.host if len(benches) > 1 else place))
    return legs


async def _on_one(bench: Bench, plan: Plan, legs: Sequence[_Leg], is_pool: bool) -> None:
    """Go through all sessions of one droplet; its failure is a result, and ends them."""
    leg = legs[0]
    try:
        for leg in legs:
            ended = await build(bench, plan.sides[leg.side])
            if ended is not None and ended.status:
                said = ended.error or f"`{plan.sides[leg.side].build}` failed with status {ended.status}"
                leg.results.append(ProfileResult(host=bench.host, status=ended.status, run=ended, error=said))
                return
        for number in range(plan.sessions):
            # A B B A: what grows steadily, such as heat, then falls on both sides alike.
            for leg in legs if number % 2 == 0 else reversed(legs):
                if number and bench.was_interrupted():
                    return
                result = await profile_once(
                    bench,
                    plan.sides[leg.side],
                    into=leg.place if number == 0 else None,
                    is_part=is_pool or not plan.is_single,
                )
                leg.results.append(result)
                if not result.kernels:
                    return
            if not plan.is_single:
                done = Progress(
                    host=bench.host, task="sessions", done=number + 1, total=plan.sessions, unit="steps",
                    is_done=number + 1 == plan.sessions,
                )  # fmt: skip
                bench.sink.emit(done)
    except ChiselError as error:
        lost = ProfileResult(host=bench.host, status=error.exit_status, error=describe(error))
        leg.results.append(lost)
        bench.sink.emit(Notice(host=bench.host, message=describe(error), level="error"))


def legs_to_report(legs: Sequence[_Leg]) -> ProfileReport:
    """Return the sessions of side A as `before` where there are two sides, those of the other as `results`."""
    last = max(leg.side for leg in legs)
    results = tuple(result for leg in legs if leg.side == last for result in leg.results)
    before = tuple(result for leg in legs if leg.side != last for result in leg.results)
    if not results:  # side A failed before B's turn came
        results, before = before, ()
    return ProfileReport(results=results, before=before)


async def summarise(report: ProfileReport, plan: Plan, sink: Sink, *, sessions: Saved | None = None) -> ProfileReport:
    """Take sessions and droplets together, compare what is to be compared, and tell the user.

    `sessions` stands for the report's own results in a comparison: what is known of them from an earlier time. Raises
    UsageError when what is to be compared was measured by different profilers.
    """
    good = [result for result in report.results if result.kernels]
    ranking = good[0].ranking if len(good) == 1 else merged(good) if good else Ranking()
    report = replace(report, ranking=ranking, spreads=_spreads(good))
    if len(report.results) > 1 and good and not report.before:
        hosts = tuple(dict.fromkeys(result.host for result in good))
        summed = ProfileSummed(
            ranking=ranking, spreads=report.spreads, hosts=hosts, sessions=plan.sessions, tool=good[0].tool,
            top=plan.sides[-1].top, is_partial=any(result.is_partial for result in good),
        )  # fmt: skip
        sink.emit(summed)
    comparison = await _comparison(report, plan, sink, sessions) if good else None
    if comparison is None:
        return report
    sink.emit(Compared(comparison=comparison, top=plan.sides[-1].top))
    regressions = slower_than(comparison, plan.fail_if_slower) if plan.fail_if_slower is not None else ()
    return replace(report, comparison=comparison, regressions=tuple(regressions))


def _spreads(results: Sequence[ProfileResult]) -> tuple[Spread, ...]:
    """Compare the droplets, each with all its sessions."""
    by_host: dict[str, list[ProfileResult]] = {}
    for result in results:
        by_host.setdefault(result.host, []).append(result)
    if len(by_host) < 2:
        return ()
    together = [
        replace(mine[0], ranking=mine[0].ranking if len(mine) == 1 else merged(mine)) for mine in by_host.values()
    ]
    telemetry = {result.host: result.telemetry for result in together}

    def cause(host: str) -> str | None:
        return cause_of_slowness(telemetry[host], [other for name, other in telemetry.items() if name != host])

    return spread(together, cause=cause)


async def _comparison(report: ProfileReport, plan: Plan, sink: Sink, sessions: Saved | None) -> Comparison | None:
    """Compare side B with A, paired session by session, or this time with the baseline; it takes a second or two."""
    if report.before:
        pairs = _pairs(report)
        if not pairs:
            return None
        before, now = (saved_of(side, label) for side, label in zip(zip(*pairs, strict=True), plan.labels, strict=True))
    elif plan.baseline is not None:
        before, now = plan.baseline, sessions or saved_of(report.results, plan.labels[-1])
    else:
        return None
    for warning in check_comparable(before, now):
        sink.emit(Notice(message=warning, level="warning"))
    chosen = partial(
        compare, before.sessions, now.sessions, label_a=before.label, label_b=now.label, paired=bool(report.before),
        host=now.host,
    )  # fmt: skip
    return await to_thread.run_sync(chosen)


def _pairs(report: ProfileReport) -> list[tuple[ProfileResult, ProfileResult]]:
    """Return the sessions of A and B that were measured one after the other, on each droplet."""
    pairs: list[tuple[ProfileResult, ProfileResult]] = []
    for host in dict.fromkeys(result.host for result in report.results):
        sides = ([one for one in side if one.host == host and one.kernels] for side in (report.before, report.results))
        pairs += zip(*sides, strict=False)
    return pairs


def saved_of(results: Sequence[ProfileResult], label: str) -> Saved:
    """Return what is kept of some sessions, of which one at least has kernels."""
    good = [result for result in results if result.kernels]
    hosts = list(dict.fromkeys(result.host for result in good))
    return Saved(
        label=label,
        tool=good[0].tool,
        generation=good[0].generation,
        sessions=tuple(session_of(result.ranking) for result in good),
        saved_at=datetime.now(UTC),
        fingerprint=good[0].fingerprint,
        host=", ".join(hosts),
    )


# -- files


async def _write(report: ProfileReport, legs: Sequence[_Leg], plan: Plan, staging: Path, sink: Sink) -> ProfileReport:
    """Fill the directory and put it in place; nothing to show is nothing written."""
    filled = await to_thread.run_sync(_filled, legs)
    if not filled:
        return report
    hottest = report.ranking.kernels[0].name if report.ranking.kernels else None
    try:
        shown, window = await _lay_out_legs(filled, plan, hottest, sink)
        if len(legs) > 1:
            shown = staging / TRACE
            window = await _trace({_name(leg, plan): leg.place / "raw" for leg in filled}, shown, hottest, sink)
        saved = _saved_or_none(report.results, plan.labels[-1])
        trace = plan.out / shown.relative_to(staging)
        report = replace(report, out=plan.out, trace=trace, window_ns=as_bounds(window))
        await to_thread.run_sync(partial(lay_out, staging, report, saved=saved, title=plan.title))
        await to_thread.run_sync(put_in_place, staging, plan.out)
        if plan.save_as is not None and saved is not None:
            directory, name = plan.save_as
            kept = await to_thread.run_sync(save, directory, name, replace(saved, label=name))
            sink.emit(Notice(message=f"saved as `{name}`: {kept}"))
    except OSError as error:
        raise ChiselError(f"cannot write `{plan.out}`: {error.strerror}") from error
    sink.emit(ProfileSaved(out=plan.out, host=legs[0].host if len(legs) == 1 else None))
    return report


def _filled(legs: Sequence[_Leg]) -> list[_Leg]:
    """Return the legs whose files were brought."""
    return [leg for leg in legs if (leg.place / "raw").is_dir()]


async def _lay_out_legs(
    legs: Sequence[_Leg], plan: Plan, hottest: str | None, sink: Sink
) -> tuple[Path, Window | None]:
    """Fill each leg's directory; return the trace of the last one, and where its hottest kernel is."""
    shown, window = legs[-1].place / TRACE, None
    for leg in legs:
        results = tuple(leg.results)
        window = await _trace({leg.host: leg.place / "raw"}, leg.place / TRACE, hottest, sink)
        one = ProfileReport(results=results, ranking=_ranking(results))
        saved = _saved_or_none(results, plan.labels[leg.side])
        await to_thread.run_sync(partial(lay_out, leg.place, one, saved=saved))
        native = leg.place / PFTRACE
        shown = native if await to_thread.run_sync(native.is_file) else leg.place / TRACE
    return shown, window


async def _trace(tracks: Mapping[str, Path], out: Path, find: str | None, sink: Sink) -> Window | None:
    """Write the trace; without one everything else is still worth having."""
    sink.emit(Progress(task="writing the trace", done=0, unit="steps"))
    try:
        return await write_local_trace(tracks, out, find=find)
    except ChiselError as error:
        sink.emit(Notice(message=f"no {TRACE}: {describe(error)}", level="warning"))
        return None
    finally:
        sink.emit(Progress(task="writing the trace", done=1, unit="steps", is_done=True))


def as_bounds(window: Window | None) -> tuple[int, int] | None:
    """Return where a window begins and ends, in ns."""
    return (window.start_ns, window.end_ns) if window is not None else None


def _ranking(results: Sequence[ProfileResult]) -> Ranking:
    good = [result for result in results if result.kernels]
    return merged(good) if len(good) > 1 else good[0].ranking if good else Ranking()


def _saved_or_none(results: Sequence[ProfileResult], label: str) -> Saved | None:
    return saved_of(results, label) if any(result.kernels for result in results) else None


def _name(leg: _Leg, plan: Plan) -> str:
    return f"{plan.labels[leg.side]}: {leg.host}" if len(plan.sides) > 1 else leg.host
