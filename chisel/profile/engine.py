"""Profile one command on one droplet, once: run, rank there, show, bring the files, leave nothing behind."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

import anyio

from chisel.errors import ChiselError, ConfigError, HostUnreachable, RemoteError
from chisel.events import Notice, ProfileRanked, Progress
from chisel.figures import Fingerprint, ProfileResult
from chisel.model import RunResult
from chisel.profile.answer import Ready, asking
from chisel.profile.drivers import Driver, choose_driver, command_line
from chisel.profile.order import Bench, ProfileOrder
from chisel.profile.rank import Facts, diagnosis
from chisel.profile.telemetry import Watch, watching

PFTRACE = "trace.pftrace"
RAW = "raw"
_REMOVE_DEADLINE_S = 20.0
_PROBE_DEADLINE_S = 90.0
_REMOVE_ON_CANCEL_S = 3.0
_LOOK_S = 0.5


async def profile_once(bench: Bench, order: ProfileOrder, *, into: Path | None, is_part: bool = False) -> ProfileResult:
    """Run a command under the droplet's profiler and return its kernels in rank order.

    The table comes first (a ProfileRanked event, after kilobytes), the files second, into the directory `into`: `raw/`
    and, where it was asked for and could be made, `trace.pftrace`; None leaves them. The program's own status is the
    result's. No kernels is an `error` with a diagnosis, and the files come all the same. Raises ConfigError without a
    profiler, HostUnreachable when the droplet is lost before the program has ended, RemoteError when it refuses.
    Cancelled, it ends the command and leaves no directory on the droplet.
    """
    driver = await _driver(bench, order)
    remote = f"~/.chisel/profiles/{bench.new_id()}"
    async with _removed_afterwards(bench, remote):
        result = await _run(bench, order, driver, remote)
        try:
            result, ready = await _rank(bench, order, result, remote, is_part)
            if into is not None:
                await _fetch(bench, remote, ready, into)
        except ChiselError as error:
            result = replace(result, status=result.status or error.exit_status, error=error.message)
            bench.sink.emit(ProfileRanked(host=result.host, result=result, top=order.top, is_part=is_part))
        return result


async def _driver(bench: Bench, order: ProfileOrder) -> Driver:
    """Choose by what the droplet's probe found; ask again where that will not do: it may have been installed since."""
    try:
        return choose_driver(bench.probe, order.driver)
    except ConfigError:
        try:
            with anyio.fail_after(_PROBE_DEADLINE_S):
                facts = await (await bench.connect()).ask("probe", {})
        except TimeoutError as error:
            raise HostUnreachable(f"`{bench.host}` does not say which profiler it has", host=bench.host) from error
        return choose_driver(facts, order.driver)


async def build(bench: Bench, order: ProfileOrder) -> RunResult | None:
    """Run what is to be built, outside the profiler; None when there is nothing to build."""
    return await bench.execute(order.build, order.build) if order.build else None


async def _run(bench: Bench, order: ProfileOrder, driver: Driver, remote: str) -> ProfileResult:
    line = command_line(driver, order.line, replace(order.asked, kernel=order.kernel), remote)
    run: RunResult | None = None
    trouble: ChiselError | None = None
    async with watching(await bench.connect(), raw=f"{remote}/{RAW}") as watch, anyio.create_task_group() as tasks:
        tasks.start_soon(_show_finalising, bench, watch)
        try:
            run = await bench.execute(line, order.line)
        except ChiselError as error:
            trouble = error
        tasks.cancel_scope.cancel()
    if run is None:
        raise trouble or RuntimeError("a command has neither ended nor failed")
    return ProfileResult(
        host=bench.host,
        status=run.status,
        tool=driver.title(),
        generation=driver.generation,
        telemetry=watch.telemetry(),
        fingerprint=Fingerprint(_facts(bench, order, driver, watch.fingerprint())),
        run=run,
        is_partial=bench.was_interrupted(),
    )


def _facts(bench: Bench, order: ProfileOrder, driver: Driver, found: Mapping[str, str]) -> dict[str, str]:
    return {"command": order.line, "profiler": driver.title(), **found, **bench.facts}


async def _show_finalising(bench: Bench, watch: Watch) -> None:
    """Show that an interrupted profiler still writes what it has: that can take it minutes."""
    while True:
        await anyio.sleep(_LOOK_S)
        if bench.was_interrupted():
            bench.sink.emit(Progress(host=bench.host, task="the profiler writes what it has", done=watch.raw_bytes))


async def _rank(
    bench: Bench, order: ProfileOrder, result: ProfileResult, remote: str, is_part: bool
) -> tuple[ProfileResult, Ready]:
    sink, host = bench.sink, result.host
    if result.is_partial:
        done = Progress(host=host, task="the profiler writes what it has", done=0, is_done=True)
        sink.emit(done)
    async with asking(await bench.connect(), remote, order) as answer:
        sink.emit(Progress(host=host, task="ranking", done=0, unit="steps"))
        table = await answer.table()
        sink.emit(Progress(host=host, task="ranking", done=1, unit="steps", is_done=True))
        result = replace(
            result,
            ranking=table,
            tool=f"{result.tool}; {table.stand_in}" if table.stand_in else result.tool,
            error=diagnosis(table, result.status, Facts(order.line, order.kernel, order.skip_warmup)),
        )
        sink.emit(ProfileRanked(host=host, result=result, top=order.top, is_part=is_part))
        await sink.drain()
        for note in table.notes if table.kernels else ():
            sink.emit(Notice(host=host, message=note, level="warning"))
        result = replace(result, ranking=await answer.whole())
        sink.emit(Progress(host=host, task="making the files fit to leave", done=0, unit="steps"))
        ready = await answer.ready()
        sink.emit(Progress(host=host, task="making the files fit to leave", done=1, unit="steps", is_done=True))
    for note in (*ready.withheld, *ready.notes):
        sink.emit(Notice(host=host, message=note, level="warning"))
    return result, ready


async def _fetch(bench: Bench, remote: str, ready: Ready, into: Path) -> None:
    parts = (RAW, PFTRACE) if ready.has_pftrace else (RAW,)
    fetched = await bench.fetch(await bench.connect(), PurePosixPath(remote), parts, into, ready.raw_bytes or None)
    if fetched.error:
        raise RemoteError(f"the profile's files did not come: {fetched.error}", host=bench.host, code="no-files")


@asynccontextmanager
async def _removed_afterwards(bench: Bench, remote: str) -> AsyncIterator[None]:
    """Remove a directory on the droplet at the end, also of a cancellation; a lost droplet keeps it."""
    limit_s = _REMOVE_ON_CANCEL_S
    try:
        yield
        limit_s = _REMOVE_DEADLINE_S
    finally:
        with anyio.move_on_after(limit_s, shield=True):
            with suppress(ChiselError):
                connection = await bench.connect()
                await connection.shell(f'rm -rf "$HOME"/{shlex.quote(remote[2:])}', timeout_s=limit_s)
