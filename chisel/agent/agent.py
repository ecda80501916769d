"""Be the agent: take the socket, keep connections warm, serve callers, end when nobody has called for long."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import anyio

import chisel
from chisel.agent import wire
from chisel.agent.life import Log, Sources, detach, forbid_core_dumps, raise_limits
from chisel.agent.reaper import Reaper
from chisel.agent.server import Caller, Server, bind
from chisel.agent.start import LOG_NAME
from chisel.agent.warm import Warm, open_warm
from chisel.config import Config, load_config
from chisel.paths import Paths, resolve_paths

CommandLine = Callable[[Caller, Warm], Awaitable[int | None]]
"""Run a caller's command line over warm connections; None leaves it to the caller."""

_LOOK_S = 1.0


def paths_of(environ: dict[str, str]) -> Paths:
    """Return where an agent with this environment keeps what it keeps."""
    return resolve_paths(environ, Path(environ.get("HOME") or "/"))


def decoded(environ: dict[bytes, bytes]) -> dict[str, str]:
    """Return an environment as text."""
    return {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}


def run(command_line: CommandLine, lock: int, environ: dict[bytes, bytes]) -> None:
    """Serve until it is time to end; `lock` is the descriptor that says that this is the only agent."""
    detach(lock)
    forbid_core_dumps()
    raise_limits()
    paths = paths_of(decoded(environ))
    log = Log(paths.cache_dir / LOG_NAME)
    anyio.run(partial(_Agent(paths, log, command_line, lock, environ).live), backend="asyncio")


class _Agent:
    """One agent's life."""

    def __init__(
        self, paths: Paths, log: Log, command_line: CommandLine, lock: int, environ: dict[bytes, bytes]
    ) -> None:
        self._environ = environ
        self._paths = paths
        self._log = log
        self._command_line = command_line
        self._lock = lock
        self._began_at = datetime.now(UTC)
        self._sources = Sources([paths.client_key])
        self._path = wire.place_of(environ)[1]
        self._warm: Warm | None = None
        self._reaper: Reaper | None = None
        self._is_warm = anyio.Event()
        self._server: Server | None = None

    async def live(self) -> None:
        self._log(f"chisel {chisel.__version__} begins")
        listener = bind(self._path)
        mine = os.stat(self._path)
        server = self._server = Server(self._greeting, self._handle, self._facts, self._log)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_warm)
                tasks.start_soon(self._end_when_idle, server, mine)
                tasks.start_soon(self._make_room, server, mine)
                await server.listen(listener)
                tasks.cancel_scope.cancel()
        finally:
            self._leave_place(mine)
            self._log(f"ends; {server.served} commands were served")

    # -- what it says of itself

    def _greeting(self, state: bytes) -> list[bytes]:
        if state == wire.READY and self._sources.have_changed():
            state = wire.FINISHING
        return wire.greeting(self._environ, state)

    def _facts(self) -> bytes:
        assert self._server is not None
        warm = self._warm
        facts = {
            "pid": os.getpid(),
            "version": chisel.__version__,
            "began_at": self._began_at.isoformat(),
            "running": self._server.under_way,
            "served": self._server.served,
            "idle_s": 0.0 if self._server.under_way else anyio.current_time() - self._server.last_at,
            "connected": sorted(name for name in warm.hosts if name not in warm.lost) if warm else [],
            "lost": sorted(warm.lost) if warm else [],
            "looks": self._reaper.looks if self._reaper else 0,
        }
        return json.dumps(facts).encode()

    # -- what it does

    async def _handle(self, caller: Caller) -> int | None:
        await self._is_warm.wait()
        assert self._warm is not None
        assert self._reaper is not None
        self._warm.notice_sleep()
        caller.notices = self._reaper.take_notices()
        status = await self._command_line(caller, self._warm)
        if status is None:
            self._reaper.notices += caller.notices
        return status

    async def _keep_warm(self) -> None:
        look_s = (await self._config()).agent_look.total_seconds()
        async with open_warm(self._paths, self._log) as warm:
            self._warm, self._reaper = warm, Reaper(warm, decoded(self._environ), look_s, self._log)
            self._is_warm.set()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._reaper.look_after)
                await warm.keep()

    async def _end_when_idle(self, server: Server, mine: os.stat_result) -> None:
        idle_s = (await self._config()).agent_idle.total_seconds()
        while server.under_way or self._has_charge or anyio.current_time() - server.last_at < idle_s:
            await anyio.sleep(min(_LOOK_S * 10, idle_s / 10))
            if not self._has_place(mine):
                self._log("its socket is gone")
                break
        server.finishing.set()

    async def _make_room(self, server: Server, mine: os.stat_result) -> None:
        """Once it is to finish, let another agent take its place while this one serves its last callers."""
        await server.finishing.wait()
        self._log(f"finishes; {server.under_way} commands are under way")
        self._leave_place(mine)

    async def _config(self) -> Config:
        return await anyio.to_thread.run_sync(load_config, self._paths, decoded(self._environ))

    @property
    def _has_charge(self) -> bool:
        return self._reaper is not None and self._reaper.has_charge

    def _has_place(self, mine: os.stat_result) -> bool:
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return (found.st_ino, found.st_dev) == (mine.st_ino, mine.st_dev)

    def _leave_place(self, mine: os.stat_result) -> None:
        """Give up the socket's path and the lock, once."""
        if self._lock < 0:
            return
        if self._has_place(mine):
            with suppress(OSError):
                os.unlink(self._path)
        os.close(self._lock)
        self._lock = -1
