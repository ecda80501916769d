"""Run a command over a pool: all droplets at once, each failure a value, one table of how it ended.

A droplet's failure is a value in its result (status 255, `source="chisel"`), never an exception that hides the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio

from chisel.errors import ChiselError, HostKeyMismatch, HostUnreachable, NotReady, RemoteError
from chisel.events import Notice, RunEnded, Sink
from chisel.model import Host, RunId, RunResult
from chisel.runner.feed import Feed
from chisel.runner.order import Control, Order, Resumption
from chisel.runner.run import Connector, Run, describe, new_run_id

LOST = 255
_WINDOWS_BYTES = 12 << 20
_SMALLEST_WINDOW, _LARGEST_WINDOW = 256 << 10, 2 << 20
_RETRY_WAIT_S = 1.0

Source = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a pool's run is over before its time, and how often a droplet's own failure is tried again.

    After `max_fail` failures (a status other than 0, whoever's) the commands of the others are ended; None: never.
    """

    max_fail: int | None = None
    retries: int = 0


def window_for(count: int) -> int:
    """Return the receive window of a session in bytes: what may arrive unread, divided between droplets."""
    return max(_SMALLEST_WINDOW, min(_LARGEST_WINDOW, _WINDOWS_BYTES // max(1, count)))


async def run_pool(
    connector: Connector,
    hosts: Sequence[Host],
    order: Order,
    sink: Sink,
    *,
    control: Control | None = None,
    limits: Limits | None = None,
    source: Source | None = None,
    attached: Mapping[str, RunId] | None = None,
    on_taken: Callable[[int], None] | None = None,
    family: RunId | None = None,
    resumed: Resumption | None = None,
) -> list[RunResult]:
    """Run on all hosts at once and return one result each, in the order of `hosts`.

    `source` gives the standard input piece by piece, an empty piece at its end; every command gets all of it.
    `attached` names the run of each host that it becomes the client of, in place of the one before, instead of starting
    one: what its droplet keeps of its output comes first. `family` is the id to give to the runs (default: a new one),
    `resumed` what another process knew of them, which they go on from; `source` gives what it has not taken, and
    `on_taken` is told how far the input has been taken. Cancelled, it ends every command under way (TERM, then KILL),
    but for one that was detached, before it leaves, in some seconds at most.
    """
    names, start = [host.name for host in hosts], resumed.input_at if resumed is not None else 0
    feed = Feed(source, names, start=start, on_taken=on_taken) if source is not None else None
    family = resumed.family if resumed is not None else family or new_run_id()
    crew = _Crew(
        connector,
        order,
        sink,
        control or Control(),
        limits or Limits(),
        feed,
        window_for(len(hosts)),
        is_attached=attached is not None,
        family=family,
        resumed=resumed,
    )
    ids = attached or _ids(family, hosts)
    async with anyio.create_task_group() as tasks:
        if feed is not None:
            tasks.start_soon(feed.pump)
        async with anyio.create_task_group() as runs:
            for host in hosts:
                runs.start_soon(crew.one, host, ids[host.name])
        tasks.cancel_scope.cancel()
    return [crew.results[host.name] for host in hosts]


def _ids(family: RunId, hosts: Sequence[Host]) -> dict[str, RunId]:
    """Return an id for each host's run: hosts may share a home, and one id finds them all (`belongs`)."""
    if len(hosts) == 1:
        return {hosts[0].name: family}
    return {host.name: RunId(f"{family}-{number}") for number, host in enumerate(hosts, 1)}


def belongs(run_id: str, family: str) -> bool:
    """Say whether a run is the one meant, a pool's run on one of its droplets, or a further attempt of it."""
    return run_id == family or run_id.startswith(f"{family}-")


class _Crew:
    """The runs of one command over a pool."""

    def __init__(
        self,
        connector: Connector,
        order: Order,
        sink: Sink,
        control: Control,
        limits: Limits,
        feed: Feed | None,
        window: int,
        *,
        is_attached: bool,
        family: RunId,
        resumed: Resumption | None,
    ) -> None:
        self._connector = connector
        self._order = order
        self._sink = sink
        self._control = control
        self._limits = limits
        self._feed = feed
        self._window = window
        self._is_attached = is_attached
        self._family = family
        self._resumed = resumed
        self._under_way: dict[str, Run] = {}
        self._failed: list[str] = []
        self._stopped_by: str | None = None
        self.results: dict[str, RunResult] = {}

    async def one(self, host: Host, run_id: RunId) -> None:
        if self._resumed is not None and host.name in self._resumed.ended:
            self.results[host.name] = self._resumed.ended[host.name]
            return
        result = await self._with_retries(host, run_id)
        if self._feed is not None:
            self._feed.leave(host.name)
        self.results[host.name] = result
        self._sink.emit(RunEnded(host=host.name, result=result))
        if result.status and not result.was_stopped:
            self._failed.append(host.name)
            self._stop_if_enough()
        await self._sink.drain()

    async def _with_retries(self, host: Host, run_id: RunId) -> RunResult:
        identity, attempt = run_id, 0
        while True:
            run = Run(
                host,
                self._order,
                self._sink,
                run_id=identity,
                feed=self._feed,
                window=self._window,
                is_attached=self._is_attached,
                family=self._family,
            )
            if self._resumed is not None and not attempt:
                run.take_up(self._resumed.places.get(host.name))
            run.heed(self._control)
            self._under_way[host.name] = run
            if self._stopped_by is not None:
                return _lost(host, identity, self._stopped_by, was_stopped=True)
            try:
                return await run.follow(self._connector)
            except ChiselError as error:
                attempt += 1
                if attempt > self._limits.retries or not _is_the_droplets(error) or self._control.was_used:
                    return _lost(host, run.watch.run_id, describe(error))
                said = f"{error.message}; trying again ({attempt} of {self._limits.retries})"
                self._sink.emit(Notice(host=host.name, level="warning", message=said))
                await anyio.sleep(_RETRY_WAIT_S)
                if run.watch.has_started or (isinstance(error, HostUnreachable) and error.was_asked):
                    await self._make_sure_it_ended(host, run)
                identity = RunId(f"{run_id}-r{attempt}")
            finally:
                self._under_way.pop(host.name, None)

    async def _make_sure_it_ended(self, host: Host, run: Run) -> None:
        """End what may be left of an attempt, before the next one: never two of them at once."""
        with suppress(ChiselError):
            await self._connector.ask(host, "kill", {"run_id": run.watch.run_id, "forbids": True})

    def _stop_if_enough(self) -> None:
        most = self._limits.max_fail
        if most is None or len(self._failed) < most or self._stopped_by is not None:
            return
        self._stopped_by = f"stopped because {_names(self._failed)} failed"
        for run in self._under_way.values():
            run.stop(self._stopped_by)


def _lost(host: Host, run_id: RunId, why: str, *, was_stopped: bool = False) -> RunResult:
    return RunResult(host=host.name, run_id=run_id, status=LOST, source="chisel", error=why, was_stopped=was_stopped)


def _is_the_droplets(error: ChiselError) -> bool:
    """Say whether a failure is the droplet's, so that another attempt may do better."""
    if isinstance(error, RemoteError):
        return error.code == "died"
    return isinstance(error, HostUnreachable | NotReady) and not isinstance(error, HostKeyMismatch)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


async def run_one(
    connector: Connector, host: Host, order: Order, sink: Sink, *, run_id: RunId, control: Control | None = None
) -> RunResult:
    """Run on one droplet; raises HostUnreachable or RemoteError where `run_pool` gives a value."""
    run = Run(host, order, sink, run_id=run_id)
    run.heed(control or Control())
    return await run.follow(connector)
