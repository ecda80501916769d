"""Rank files that are here, and write traces of them, in a process of its own.

Files of profilers are large and foreign: the work is done by `profile.worker`, which is killed on cancellation.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import orjson
from anyio.abc import ByteReceiveStream, Process

from chisel.errors import ChiselError, UsageError
from chisel.figures import Ranking
from chisel.profile.rank import MAX_FIGURES_BYTES, decode_figures

DEADLINE_S = 3600.0
"""How long the worker may take: about 1 s for a million dispatches, so only a hung disk needs so much."""

_LONGEST_COMPLAINT_BYTES = 1 << 14
_HOME = Path(__file__).resolve().parents[2]
"""Where the package lies: the worker starts there, so that no module of the user's directory is taken for ours."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a trace, in ns of the trace's own clock."""

    start_ns: int
    end_ns: int


async def rank_local(path: Path, *, top: int, kernel: str | None = None, skip_warmup: int = 0) -> Ranking:
    """Rank a file, a directory, or a profile of chisel's (its `raw`), from any format; all kernels are listed.

    Raises UsageError for a path that does not exist or is of no known format and for a bad expression, ChiselError for
    a file that cannot be read, is damaged or of a newer schema. A directory whose files hold no kernel gives a ranking
    without any: `profile.rank.diagnosis` explains it. Cancelled, nothing is left running. Calls may overlap.
    """
    where = await anyio.Path(path).absolute()
    answer = await _ask({"do": "rank", "path": str(where), "top": top, "kernel": kernel, "skip_warmup": skip_warmup})
    try:
        return decode_figures(answer.get("figures"))
    except ValueError as error:
        raise ChiselError(f"cannot rank `{path}`: {error}") from error


async def write_local_trace(tracks: Mapping[str, Path], out: Path, *, find: str | None = None) -> Window | None:
    """Write a Chrome trace (JSON, gzip) of the runs in some raw directories; it appears whole.

    `tracks` maps what a run is called (a droplet's name) to its directory: several are laid side by side at their
    first event, and the name stands before their groups'. Returns where the longest dispatch of the kernel that is
    ranked as `find` lies, None without `find` or such a dispatch. Raises UsageError, ChiselError. Cancelled, it leaves
    nothing.
    """
    named = [(name, str(await anyio.Path(path).absolute())) for name, path in tracks.items()]
    target = await anyio.Path(out).absolute()
    try:
        answer = await _ask({"do": "trace", "tracks": named, "out": str(target), "find": find})
    finally:
        with anyio.CancelScope(shield=True), suppress(OSError):
            await anyio.Path(f"{target}.new").unlink(missing_ok=True)
    written = answer.get("written")
    found = written if isinstance(written, dict) else {}
    start, end = found.get("start"), found.get("end")
    return Window(start, end) if isinstance(start, int) and isinstance(end, int) else None


async def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Ask a worker and return its answer; raises what it says went wrong."""
    try:
        with anyio.fail_after(DEADLINE_S):
            data, complaint, status = await _run(orjson.dumps(request))
    except TimeoutError as error:
        raise ChiselError(f"ranking did not end within {DEADLINE_S:.0f} s") from error
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        said = f": {last[0]}" if last else ""
        raise ChiselError(f"the process that ranks ended with status {status}{said}") from error
    trouble = answer.get("error") if isinstance(answer, dict) else {"message": "the process that ranks said nothing"}
    if trouble:
        kind = UsageError if trouble.get("kind") == "usage" else ChiselError
        raise kind(str(trouble.get("message")), hint=trouble.get("hint"))
    return dict(answer)


async def _run(request: bytes) -> tuple[bytes, bytes, int]:
    """Run a worker and return its output, the end of its complaints and its status; cancelled, it is killed.

    It has a session of its own: a Ctrl-C is ours to take, and its fork goes with it.
    """
    process = await anyio.open_process(
        [sys.executable, "-m", "chisel.profile.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=_HOME,
        start_new_session=True,
    )
    output, complaint = bytearray(), bytearray()
    try:
        async with anyio.create_task_group() as tasks:
            assert process.stdout
            assert process.stderr
            tasks.start_soon(_collect, process.stdout, output, MAX_FIGURES_BYTES)
            tasks.start_soon(_collect, process.stderr, complaint, _LONGEST_COMPLAINT_BYTES)
            await _send(process, request)
            await process.wait()
        return bytes(output), bytes(complaint), process.returncode or 0
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.aclose()


async def _send(process: Process, request: bytes) -> None:
    assert process.stdin
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.send(request)
        await process.stdin.aclose()


async def _collect(stream: ByteReceiveStream, into: bytearray, most: int) -> None:
    """Take everything a stream gives, and keep the first `most` bytes."""
    async for chunk in stream:
        into += chunk[: max(most - len(into), 0)]
