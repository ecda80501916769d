"""Act on a pool: sync, run, profile, pull and destroy, on all its droplets at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import anyio

from chisel.client.lines import check_pattern, shell_line
from chisel.errors import ChiselError, UsageError
from chisel.model import (
    Bill,
    Host,
    PullResult,
    PushResult,
    Relay,
    RunId,
    RunResult,
    Snapshot,
    SyncResult,
)
from chisel.runner import (
    Control,
    Limits,
    Order,
    Resumption,
    Source,
    Terminal,
    belongs,
    end_run,
    run_pool,
    runs_of,
    show_logs,
)
from chisel.runner.feed import giving
from chisel.runner.order import PATIENCE
from chisel.state import DropletRecord, host_of

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.client.syncing import SyncOptions
    from chisel.client.watching import Run, Stop
    from chisel.figures import ProfileReport
    from chisel.sync.wanted import Caps

GRACE = timedelta(seconds=5)
_LOOK_TIMEOUT_S = 8.0


class Pool:
    """A named set of ready droplets; every call acts on all of them at once, each failure a value in its result."""

    def __init__(self, client: Client, name: str, records: tuple[DropletRecord, ...]) -> None:
        self._client = client
        self._records = records
        self.name = name

    @property
    def names(self) -> tuple[str, ...]:
        """Name the droplets, in their order."""
        return tuple(record.name for record in self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self.each())

    def each(self) -> list[Pool]:
        """Return one pool of one droplet each."""
        return [Pool(self._client, self.name, (record,)) for record in self._records]

    def on(self, *names: str) -> Pool:
        """Return the part of the pool that is named; raises UsageError for a name it does not have."""
        wanted = {name if name.startswith(f"{self.name}-") else f"{self.name}-{name}" for name in names}
        unknown = wanted - set(self.names)
        if unknown:
            raise UsageError(f"pool `{self.name}` has no `{'`, `'.join(sorted(unknown))}`: {', '.join(self.names)}")
        return Pool(self._client, self.name, tuple(one for one in self._records if one.name in wanted))

    def __getitem__(self, name: str) -> Pool:
        return self.on(name)

    @property
    def records(self) -> tuple[DropletRecord, ...]:
        """Return what the state knows of the droplets."""
        return self._records

    def hosts(self) -> list[Host]:
        """Return the droplets as SSH sees them."""
        return [host_of(record) for record in self._records]

    async def sync(
        self,
        path: Path | str | None = None,
        *,
        to: str | None = None,
        options: SyncOptions | None = None,
        bytes_per_s: float | None = None,
    ) -> list[SyncResult]:
        """Make the working copies equal to the local tree, sending only what changed.

        Scans, hashes and compresses once for all droplets, which pass on to each other what all of them need where that
        clearly pays (`options.relay`). `to` is a directory on the droplets (default: one of the
        tree's own, below `~/chisel`), `bytes_per_s` bounds what all of them are sent together. After the project's own
        root its `setup` script (chisel.toml) runs where its text has not run yet. Raises UsageError when `path` is no
        directory or cannot be read. A droplet's failure is the `error` of its result.
        """
        from chisel.client.syncing import sync

        return await sync(self, self._client, path, to=to, options=options, bytes_per_s=bytes_per_s)

    async def watch(
        self,
        path: Path | str | None = None,
        *,
        to: str | None = None,
        options: SyncOptions | None = None,
        bytes_per_s: float | None = None,
        run: Run | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Sync at once and after every change of the tree, and then call `run`, until it is cancelled or stopped.

        `run` is called after each sync that worked, with a `Control` to hand to `Pool.run`: before the next sync the
        command gets SIGINT through it, SIGKILL after five seconds. A sync that failed is told and tried again. Events:
        a `SyncEnded` for the first sync and for each that changed something. Only the first sync checks everything,
        takes over, and deletes what was never pushed. Cancelled, it ends what runs; `stop` ends the watch in order.
        """
        from chisel.client.watching import watch

        await watch(self, self._client, path, to=to, options=options, bytes_per_s=bytes_per_s, run=run, stop=stop)

    async def run(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        capture: bool = True,
        control: Control | None = None,
        stdin: Source | bytes | None = None,
        terminal: Terminal | None = None,
        timeout: timedelta | None = None,
        max_fail: int | None = None,
        retries: int = 0,
        detaches: bool = False,
        patience: timedelta = PATIENCE,
        orphan: timedelta | None = None,
        user: str | None = None,
        venv: str | None = None,
        gpus: str | None = None,
        container: str | None = None,
        on_taken: Callable[[int], None] | None = None,
        family: RunId | None = None,
        resumed: Resumption | None = None,
        sync: SyncOptions | bool = False,
    ) -> list[RunResult]:
        """Run a command on every droplet at once and return one result each.

        A string is a shell line for bash, a sequence means exactly those words. `cwd` is a path on the droplet
        (default: the working copy synced last). `stdin` is what every command reads: bytes, or a function that gives
        piece after piece and an empty one at the end. `timeout` ends the commands (status 124). After `max_fail`
        failures the others are ended; a droplet's own failure is tried again `retries` times. With `detaches` the
        commands are started and left: `logs`, `attach` and `kill` take the results' `run_id`.

        A lost link is opened again for `patience` (zero: its loss is the end, status 255); meanwhile the command runs
        on, and its output goes on at the byte where it stopped. A command without a client for `orphan` (2 h) is ended.
        `user` runs it as somebody else, `venv` in a virtual environment, `gpus` with these devices only (`"0,3"`),
        `container` inside an image. With `sync` the tree that `Pool.sync()` means goes ahead in the same message, and
        the command runs in its working copy. `on_taken`, `family` and `resumed` let another process go on with it: see
        `chisel.runner.run_pool`. Cancelled, it ends the commands there before it leaves.
        """
        tree_hash, git = await self._client.last_tree()
        order = Order(
            line=shell_line(command),
            cwd=self._where(cwd, await self._client.remote_cwd()),
            tree_hash=tree_hash,
            git=git,
            env=self._client.command_env(env),
            owner=(await self._client.store.read()).owner,
            capture=capture,
            terminal=terminal,
            timeout_s=timeout.total_seconds() if timeout is not None else None,
            detaches=detaches,
            patience_s=patience.total_seconds(),
            orphan_s=orphan.total_seconds() if orphan is not None else None,
            user=user,
            venv=venv,
            gpus=gpus,
            container=container,
        )
        source = giving(stdin) if isinstance(stdin, bytes) else stdin
        follow = partial(
            run_pool, hosts=self.hosts(), sink=self._client.sink, control=control, limits=Limits(max_fail, retries),
            source=source, on_taken=on_taken, family=family, resumed=resumed,
        )  # fmt: skip
        if sync:
            from chisel.client.syncing import run_synced

            options = None if isinstance(sync, bool) else sync
            return await run_synced(self, self._client, order, follow, options, lambda remote: self._where(cwd, remote))
        return await follow(await self._client.connector(self.hosts()), order=order)

    @staticmethod
    def _where(cwd: str | None, remote: str) -> str:
        """Return the directory meant: a relative one lies in the working copy."""
        if cwd is None or cwd.startswith(("/", "~")):
            return cwd or remote
        return str(PurePosixPath(remote) / cwd)

    async def attach(
        self,
        run: str | Mapping[str, RunId],
        *,
        capture: bool = True,
        control: Control | None = None,
        stdin: Source | None = None,
        terminal: Terminal | None = None,
        resumed: Resumption | None = None,
    ) -> list[RunResult]:
        """Become the client of a run (see `find`), in place of the one before, and follow it to its end.

        What a droplet still keeps of its output comes first. Raises UsageError where no droplet knows it.
        Cancelled, it leaves a detached command alone and ends one that is not.
        """
        order, ids = Order(line="", capture=capture, terminal=terminal), await self._ids(run)
        return await run_pool(
            await self._client.connector(self.hosts()),
            self._hosts_of(ids),
            order,
            self._client.sink,
            control=control,
            source=stdin,
            attached=ids,
            resumed=resumed,
        )

    async def logs(
        self,
        run: str | Mapping[str, RunId],
        *,
        follow: bool = False,
        since: datetime | None = None,
        resumed: Resumption | None = None,
    ) -> dict[str, RunResult | None]:
        """Emit what the droplets keep of a run's output, written at `since` or later; with `follow` until it ends.

        Returns how it ended by droplet, None where it still runs. Raises HostUnreachable, RemoteError.
        """
        ids, connector = await self._ids(run), await self._client.connector(self.hosts())
        found: dict[str, RunResult | None] = {}
        began = since.timestamp() if since is not None else 0.0

        async def one(host: Host) -> None:
            kept = resumed.places.get(host.name) if resumed is not None else None
            found[host.name] = await show_logs(
                connector, host, ids[host.name], self._client.sink, follow=follow, since=began, kept=kept
            )

        await self._on_hosts(one, ids)
        return found

    async def kill(
        self, run: str | Mapping[str, RunId], *, signal: int | None = None, grace: timedelta = GRACE
    ) -> dict[str, Any]:
        """Send a run a signal, or end it (TERM, KILL after `grace`) and wait for its end; by droplet what became of it.

        `was_running`, `running` and `status` are in each answer. Raises HostUnreachable, RemoteError.
        """
        ids, connector = await self._ids(run), await self._client.connector(self.hosts())
        found: dict[str, Any] = {}

        async def one(host: Host) -> None:
            found[host.name] = await end_run(
                connector, host, ids[host.name], signal=signal, grace_s=grace.total_seconds()
            )

        await self._on_hosts(one, ids)
        return found

    async def find(self, run_id: str | None = None) -> dict[str, RunId]:
        """Return a run's id on each droplet that knows it; default: the newest run.

        The id that `run --detach` prints finds it on all droplets of the pool. Raises UsageError for an unknown one.
        """
        connector, found = await self._client.connector(self.hosts()), dict[str, list[dict[str, Any]]]()

        async def one(host: Host) -> None:
            found[host.name] = await runs_of(connector, host, timeout_s=_LOOK_TIMEOUT_S)

        await self._on_hosts(one)
        runs = sorted((run for some in found.values() for run in some), key=lambda run: float(run["started_at"]))
        wanted = run_id or (str(runs[-1]["run_id"]) if runs else "")
        matching = {
            name: RunId(str(run["run_id"]))
            for name, some in found.items()
            for run in sorted(some, key=lambda run: float(run["started_at"]))
            if belongs(str(run["run_id"]), wanted)
        }
        if not matching:
            known = ", ".join(str(run["run_id"]) for run in runs[-8:])
            said = f"there is no run `{wanted}` in" if run_id else "nothing was run in"
            raise UsageError(f"{said} pool `{self.name}`", hint=f"known: {known}" if known else "chisel run COMMAND")
        return {name: matching[name] for name in self.names if name in matching}

    async def _ids(self, run: str | Mapping[str, RunId]) -> Mapping[str, RunId]:
        return await self.find(run) if isinstance(run, str) else run

    def _hosts_of(self, names: Iterable[str]) -> list[Host]:
        wanted = set(names)
        return [host for host in self.hosts() if host.name in wanted]

    async def pull(
        self,
        paths: Sequence[str] | str,
        to: Path | str | None = None,
        *,
        is_flat: bool = False,
        is_dry: bool = False,
        bytes_per_s: float | None = None,
        caps: Caps | None = None,
    ) -> list[PullResult]:
        """Bring files, directories and globs of the working copy back, below `to` (default: the current directory).

        Several droplets write below `to/<droplet>/`, or with `is_flat` all into `to`: a UsageError when two have the
        same name. `is_dry` writes nothing and says what it would. `bytes_per_s` is in bytes a second, for all together;
        `caps` bound what a droplet may send. A droplet's failure is the `error` of its result.
        """
        from chisel.client.transfers import pull_all

        patterns = [paths] if isinstance(paths, str) else list(paths)
        target = self._client.where.cwd / (to or ".")
        return await pull_all(
            self._client,
            self.hosts(),
            patterns,
            target,
            is_flat=is_flat,
            is_dry=is_dry,
            bytes_per_s=bytes_per_s,
            caps=caps,
        )

    async def push(
        self,
        files: Sequence[Path | str] | Path | str,
        to: str | None = None,
        *,
        bytes_per_s: float | None = None,
        relay: Relay = "auto",
    ) -> list[PushResult]:
        """Put data sets and weights on every droplet, outside the working copy: below `to` there.

        `to` defaults to `/scratch` where the droplet has one, else to `~/data`. Directories go with all they hold.
        Each file is read and hashed once for all droplets, is passed on by them (`relay`) as in `sync`,
        goes on where an earlier push was cut, is left out where it is already, and appears whole. Nothing is deleted.
        Raises UsageError for what is not here. A droplet's failure is the `error` of its result.
        """
        from chisel.client.transfers import push_all

        named = [files] if isinstance(files, Path | str) else list(files)
        sources = [self._client.where.cwd / file for file in named]
        return await push_all(self._client, self.hosts(), sources, to, bytes_per_s=bytes_per_s, relay=relay)

    async def only_there(self) -> dict[str, list[dict[str, Any]]]:
        """Say what each droplet's working copies hold that is nowhere else: made there, and not pulled since.

        By droplet a list of `root`, `files`, `bytes` and the `newest` paths; one that does not answer is left out.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        connector = await self._client.connector(self.hosts())

        async def one(host: Host) -> None:
            with anyio.move_on_after(_LOOK_TIMEOUT_S), suppress(ChiselError):
                copies = (await connector.ask(host, "results", {}))["copies"]
                if copies:
                    found[host.name] = copies

        async with anyio.create_task_group() as tasks:
            for record in self._records:
                if record.is_ready and record.address is not None:
                    tasks.start_soon(one, self[record.name].hosts()[0])
        return found

    async def profile(
        self,
        command: str | Sequence[str],
        *,
        versus: str | Sequence[str] | None = None,
        traces: Sequence[str] | None = None,
        counters: Sequence[str] = (),
        kernel: str | None = None,
        skip_warmup: int = 0,
        profiler_args: Sequence[str] = (),
        driver: str | None = None,
        build: str | None = None,
        out: Path | str | None = None,
        top: int = 10,
        sessions: int = 1,
        against: str | None = None,
        save_as: str | None = None,
        fail_if_slower: float | None = None,
        converts: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: timedelta | None = None,
        venv: str | None = None,
        gpus: str | None = None,
        control: Control | None = None,
    ) -> ProfileReport:
        """Run a command under the droplets' profiler, rank the hottest kernels, bring the files below `out`.

        `out` defaults to `./chisel-profile/<time>-<command>/`. `traces` are taken besides kernels (default: memory and
        hip; see `chisel.profile.drivers`), `counters` are hardware counters. `kernel` (a regular expression) keeps
        those that match, the first `skip_warmup` dispatches of each are left out. `build` runs first, outside the
        profiler. `driver` forces one of `rocpd`, `csv`, `v1`.

        `versus` is a second command, B, profiled in turn with the first, A, on the same droplet; `against` names a
        profile kept by `save_as` to compare with. A comparison needs several `sessions`. Regressions by more than
        `fail_if_slower` per cent are in the report. With `converts` a droplet that can writes Perfetto's own format.

        A droplet's failure is the `error` of its result. Raises UsageError for wishes that make no sense, before
        anything runs. Cancelled, it ends the commands, and leaves neither a directory there nor half a one here.
        """
        from chisel.client.profiling import make_orders, make_plan, profile_pool

        variables = self._client.command_env(env)
        orders = make_orders(
            [command] if versus is None else [command, versus], traces, counters, profiler_args, build, variables,
            kernel=check_pattern(kernel), skip_warmup=skip_warmup, top=top, driver=driver, converts=converts,
        )  # fmt: skip
        plan = await make_plan(
            self._client, orders, out=out, sessions=sessions, against=against, save_as=save_as,
            fail_if_slower=fail_if_slower,
        )  # fmt: skip
        run = Order(
            line="",
            cwd=self._where(cwd, await self._client.remote_cwd()),
            env=variables,
            owner=(await self._client.store.read()).owner,
            timeout_s=timeout.total_seconds() if timeout is not None else None,
            venv=venv,
            gpus=gpus,
        )
        await self._client.connector(self.hosts())
        return await profile_pool(self._client, list(zip(self._records, self.hosts(), strict=True)), plan, run, control)

    async def down(self) -> list[Bill]:
        """Destroy the pool's droplets, confirm that they are gone, and return what each cost."""
        lifecycle = await self._client.lifecycle()
        await lifecycle.settle()
        return await lifecycle.down(self._records)

    async def snapshot(self, name: str) -> tuple[Snapshot, Decimal]:
        """Make a snapshot of the pool's one droplet; returns it with its price a month, in dollars.

        The droplet goes on running, and no longer destroys itself. Raises UsageError for several droplets, CloudError.
        """
        if len(self) != 1:
            raise UsageError("a snapshot is of one droplet", hint=f"--on {self.names[0]}")
        return await (await self._client.lifecycle()).take_snapshot(self._records[0], name)

    async def power_off(self) -> None:
        """Cut the power of the pool's droplets: they go on billing in full. `Client.up` starts them again."""
        await (await self._client.lifecycle()).power_off(self._records)

    async def keep(self, by: timedelta) -> dict[str, datetime]:
        """Let the pool's droplets live until `by` from now at least; returns the ends of their time by name."""
        return await (await self._client.lifecycle()).extend(self._records, by)

    async def _on_hosts(self, one: Any, names: Iterable[str] | None = None) -> None:
        async with anyio.create_task_group() as tasks:
            for host in self.hosts() if names is None else self._hosts_of(names):
                tasks.start_soon(one, host)


def by_number(record: DropletRecord) -> tuple[int, str]:
    """Return what droplets are ordered by: the number at the end of the name."""
    number = record.name.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0, record.name)
