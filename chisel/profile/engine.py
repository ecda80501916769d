"""Profile one command on one droplet: run, rank there, show, bring the files, leave nothing behind."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import anyio
from anyio import to_thread

from chisel.errors import ChiselError, HostUnreachable, RemoteError
from chisel.events import Notice, ProfileRanked, ProfileSaved, Progress, Sink
from chisel.figures import ProfileResult, Ranking
from chisel.model import Host, PullResult, RunResult
from chisel.node.frames import Frame, Kind
from chisel.profile.archive import check_out, put_in_place, staging_for, write_table
from chisel.profile.drivers import check_traces, choose_driver, command_line
from chisel.profile.rank import decode_ranking, diagnosis
from chisel.ssh.refusal import remote_error

AGGREGATE_DEADLINE_S = 600.0
"""How long a droplet may take to rank a profile: about 1 s per million dispatches, and as much again for the trace."""
_REMOVE_DEADLINE_S = 20.0
_REMOVE_ON_CANCEL_S = 3.0
_LARGEST_ANSWER_BYTES = 64 << 20
_PARTS = ("raw", "trace.json.gz")

Execute = Callable[[Any, str, str, Mapping[str, str]], Awaitable[RunResult]]
Fetch = Callable[[Any, PurePosixPath, Sequence[str], Path], Awaitable[PullResult]]


class Connection(Protocol):
    """What profiling needs of a connection."""

    @property
    def host(self) -> Host:
        """The droplet it leads to."""

    def node(self, role: str, request: dict[str, Any]) -> Any:
        """Start a role of the node program."""

    async def shell(self, line: str, *, timeout_s: float) -> Any:
        """Run a line in the remote shell and return its status and output."""


async def profile(
    connection: Any,
    line: str,
    *,
    cwd: str,
    env: Mapping[str, str],
    traces: Sequence[str] | None,
    out: Path,
    top: int,
    execute: Execute,
    fetch: Fetch,
    probe: Mapping[str, Any],
    run_id: str,
    sink: Sink,
) -> ProfileResult:
    """Run `line` under the droplet's profiler and return its kernels in rank order; the files arrive in `out`.

    The table comes first (a ProfileRanked event, after kilobytes), the files second, beside `out` and then renamed
    into it. The program's own status is the result's. No kernels is an `error` with a diagnosis, and the files come all
    the same. `probe` is what the droplet's probe found. Raises ConfigError without a profiler, UsageError for an
    unknown trace or an `out` that holds other things, HostUnreachable, RemoteError. Cancelled, it ends the command and
    leaves neither a directory on the droplet nor half a one here.
    """
    driver, wanted = choose_driver(probe), check_traces(traces)
    await to_thread.run_sync(check_out, out)
    remote = f"~/.chisel/profiles/{run_id}"
    async with _removed_afterwards(connection, remote):
        run = await execute(connection, command_line(driver, line, wanted, remote), cwd, env)
        result = ProfileResult(host=connection.host.name, status=run.status, tool=driver.title(), run=run)
        try:
            return await _bring(connection, PurePosixPath(remote), result, out, top, fetch, sink)
        except ChiselError as error:
            result = replace(result, status=run.status or error.exit_status, error=error.message)
            sink.emit(ProfileRanked(host=result.host, result=result, top=top))
            return result


async def _bring(
    connection: Any, remote: PurePosixPath, result: ProfileResult, out: Path, top: int, fetch: Fetch, sink: Sink
) -> ProfileResult:
    async with (
        connection.node("aggregate", {"directory": str(remote)}) as channel,
        aclosing(_frames(channel, result.host)) as frames,
    ):
        ranking = await _ranking(frames, result.host)
        result = replace(
            result,
            ranking=ranking,
            tool=f"{result.tool}; {ranking.stand_in}" if ranking.stand_in else result.tool,
            out=out,
            error=diagnosis(ranking, result.status),
        )
        sink.emit(ProfileRanked(host=result.host, result=result, top=top))
        await sink.drain()
        for note in ranking.notes if ranking.kernels else ():
            sink.emit(Notice(host=result.host, message=note, level="warning"))
        sink.emit(Progress(host=result.host, task="trace", done=0, unit="steps"))
        answer = await _ready_to_leave(frames, result.host)
        sink.emit(Progress(host=result.host, task="trace", done=1, unit="steps", is_done=True))
    for note in answer.get("withheld") or ():
        sink.emit(Notice(host=result.host, message=str(note), level="warning"))
    await _fetch_into(connection, remote, out, ranking, fetch)
    sink.emit(ProfileSaved(host=result.host, out=out))
    return result


async def _fetch_into(connection: Any, remote: PurePosixPath, out: Path, ranking: Ranking, fetch: Fetch) -> None:
    staging = await to_thread.run_sync(staging_for, out)
    try:
        fetched = await fetch(connection, remote, _PARTS, staging)
        if fetched.error:
            raise RemoteError(
                f"the profile's files did not come: {fetched.error}", host=connection.host.name, code="no-files"
            )
        await to_thread.run_sync(write_table, staging, ranking.kernels, ranking.pseudo)
        await to_thread.run_sync(put_in_place, staging, out)
    except OSError as error:
        raise ChiselError(f"cannot write `{out}`: {error.strerror}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(partial(shutil.rmtree, staging, ignore_errors=True))


async def _ranking(frames: AsyncGenerator[Frame, None], host: str) -> Ranking:
    data = bytearray()
    async for frame in frames:
        if frame.kind == Kind.DATA:
            data += frame.payload
            if len(data) > _LARGEST_ANSWER_BYTES:
                break
        elif frame.kind == Kind.DATA_END:
            try:
                return decode_ranking(bytes(data))
            except ValueError as error:
                raise RemoteError(
                    f"`{host}` sends something that is no ranking: {error}", host=host, code="bad-stream"
                ) from error
    raise RemoteError(f"`{host}` sends something that is no ranking", host=host, code="bad-stream")


async def _ready_to_leave(frames: AsyncGenerator[Frame, None], host: str) -> dict[str, Any]:
    async for frame in frames:
        if frame.kind == Kind.REPLY:
            answer: dict[str, Any] = frame.json()
            return answer
    raise RemoteError(f"`{host}` did not say that its profile is ready", host=host, code="bad-stream")


async def _frames(channel: Any, host: str) -> AsyncGenerator[Frame, None]:
    """Give every frame; one generator for the whole answer, because frames arrive in bunches."""
    while True:
        try:
            with anyio.fail_after(AGGREGATE_DEADLINE_S):
                found = await channel.receive()
        except TimeoutError as error:
            raise HostUnreachable(f"`{host}` did not rank the profile in time", host=host) from error
        if not found:
            raise HostUnreachable(f"`{host}` ended the session while it ranked the profile", host=host)
        for frame in found:
            if frame.kind == Kind.ERROR:
                raise remote_error(frame, host)
            yield frame


@asynccontextmanager
async def _removed_afterwards(connection: Connection, remote: str) -> AsyncIterator[None]:
    """Remove a directory on the droplet at the end, also of a cancellation; a lost droplet keeps it."""
    limit_s = _REMOVE_ON_CANCEL_S
    try:
        yield
        limit_s = _REMOVE_DEADLINE_S
    finally:
        with anyio.move_on_after(limit_s, shield=True):
            with suppress(ChiselError):
                await connection.shell(f'rm -rf "$HOME"/{shlex.quote(remote[2:])}', timeout_s=limit_s)
