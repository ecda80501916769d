"""Run a whole embedded cloud: the API in threads, the droplets on an event loop, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chisel.sandbox.base import DropletServer, DropletSpec, Kind, banner_file
from chisel.sandbox.cloud import Cloud, Knobs, Machines
from chisel.sandbox.droplets import start_droplet
from chisel.sandbox.faults import Fault, Schedule
from chisel.sandbox.http import Server, serving
from chisel.sandbox.processes import end_processes
from chisel.sandbox.timers import run_timer, timers_of

_LOG = logging.getLogger(__name__)
_ADDRESS_DEADLINE_S = 5.0
_LOOK_AGAIN_S = 0.02
_PARENT_POLL_S = 0.25
_ENDPOINT = "endpoint.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve: droplets live below `directory`; with `parent`, until that process is gone too."""

    directory: Path
    kind: Kind = "asyncssh"
    knobs: Knobs = field(default_factory=Knobs)
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    parent: int | None = None
    removes_directory: bool = False


class Park:
    """Start and stop droplets on the running event loop, on behalf of other threads."""

    def __init__(self, directory: Path, kind: Kind) -> None:
        self._directory = directory
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._servers: dict[int, DropletServer] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._timers: dict[int, list[asyncio.Task[None]]] = {}
        self._stopping: set[asyncio.Task[None]] = set()

    def machines(self) -> Machines:
        """Return what the cloud calls, from any thread."""
        return Machines(start=self._start, stop=self._stop, root_of=self.root_of, copy=self._copy)

    def root_of(self, id: int) -> Path:
        """Return the directory that is a droplet."""
        return self._directory / str(id)

    def _copy(self, droplet: int, image: int) -> None:
        """Copy a droplet's disk as it is: what runs there meanwhile may be caught in the middle, as on a real one."""
        shutil.copytree(
            self.root_of(droplet), self.root_of(image), symlinks=True, ignore=shutil.ignore_patterns("tmp", "run"),
            ignore_dangling_symlinks=True,
        )  # fmt: skip

    def _start(self, spec: DropletSpec, told: Callable[[int | None], None]) -> None:
        self._loop.call_soon_threadsafe(self._start_here, spec, told)

    def _stop(self, id: int) -> None:
        self._loop.call_soon_threadsafe(self._stop_here, id)

    def _start_here(self, spec: DropletSpec, told: Callable[[int | None], None]) -> None:
        self._tasks[spec.id] = self._loop.create_task(self._run(spec, told))

    def _stop_here(self, id: int) -> None:
        task = self._loop.create_task(self._end(id))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _run(self, spec: DropletSpec, told: Callable[[int | None], None]) -> None:
        try:
            server = await self._started(spec)
        except (OSError, ValueError, RuntimeError) as error:
            _LOG.error("droplet %d does not start: %s", spec.id, error)
            told(None)
            return
        self._servers[spec.id] = server
        timers = [self._loop.create_task(run_timer(spec, timer)) for timer in timers_of(spec.write_files)]
        self._timers[spec.id] = timers
        told(server.port)
        if spec.banner_s > 0:
            self._loop.call_later(spec.banner_s, self._end_first_boot, spec)

    async def _started(self, spec: DropletSpec) -> DropletServer:
        """Start a droplet; the address it takes over may still be its predecessor's for a moment."""
        give_up_at = self._loop.time() + _ADDRESS_DEADLINE_S
        while True:
            try:
                return await start_droplet(spec, self._kind)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or self._loop.time() > give_up_at:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _end_first_boot(self, spec: DropletSpec) -> None:
        """End the first boot: commands run from now on, and the sshd restarts."""
        banner_file(spec.root).unlink(missing_ok=True)
        server = self._servers.get(spec.id)
        if server is not None:
            server.drop_connections()

    async def _end(self, id: int) -> None:
        task = self._tasks.pop(id, None)
        if task is not None:
            await asyncio.wait([task])
        for timer in self._timers.pop(id, []):
            timer.cancel()
        server = self._servers.pop(id, None)
        if server is not None:
            await server.close()
        await asyncio.to_thread(shutil.rmtree, self.root_of(id), ignore_errors=True)

    async def close(self) -> None:
        """End every droplet and every process that belongs to one."""
        ids = {*self._tasks, *self._servers}
        await asyncio.gather(*(self._end(id) for id in ids), *self._stopping, return_exceptions=True)
        roots = [self.root_of(id) for id in ids]
        if roots:
            await asyncio.to_thread(end_processes, roots)


@asynccontextmanager
async def running_cloud(settings: Settings) -> AsyncIterator[Server]:
    """Give a cloud that serves; leaving ends every droplet and leaves no process."""
    droplets = settings.directory / "droplets"
    await asyncio.to_thread(droplets.mkdir, parents=True, exist_ok=True)
    park = Park(droplets, settings.kind)
    cloud = Cloud(park.machines(), knobs=settings.knobs)
    try:
        with serving(cloud, Schedule(settings.faults, settings.seed)) as server:
            yield server
    finally:
        await park.close()
        await asyncio.to_thread(shutil.rmtree, droplets, ignore_errors=True)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT, SIGHUP, or the parent's end; the endpoint file says where, and goes at the end."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, over.set)
    endpoint = settings.directory / _ENDPOINT
    try:
        async with running_cloud(settings) as server:
            _announce(endpoint, server)
            if settings.parent is not None:
                _watch_parent(settings.parent, lambda: loop.call_soon_threadsafe(over.set))
            await over.wait()
    finally:
        with contextlib.suppress(FileNotFoundError):
            endpoint.unlink()
        if settings.removes_directory:
            await asyncio.to_thread(shutil.rmtree, settings.directory, ignore_errors=True)


def _announce(endpoint: Path, server: Server) -> None:
    """Write where and with which token to ask, for this user only, at once or not at all."""
    text = json.dumps({"url": server.url, "token": server.token, "pid": os.getpid()})
    temporary = endpoint.with_name(f".{endpoint.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    temporary.replace(endpoint)


def _watch_parent(pid: int, gone: Callable[[], object]) -> None:
    """Call `gone` when a process has ended: nobody would stop this cloud then."""

    def watch() -> None:
        waiting = threading.Event()
        while _is_alive(pid):
            waiting.wait(_PARENT_POLL_S)
        with contextlib.suppress(RuntimeError):  # the loop may have ended first
            gone()

    threading.Thread(target=watch, daemon=True).start()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
