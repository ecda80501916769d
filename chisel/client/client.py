"""Compose the engines into the public async API: `chisel.open()`, `Client`, `Pool`.

>>> async with chisel.open() as c:
...     pool = await c.up("bench", count=4)
...     await pool.sync(".")
...     results = await pool.run("make bench")
...     await pool.down()

Connections to the cloud and to droplets are opened when first needed and closed with the client. Nothing is printed:
hand in a `Sink` to see events.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from chisel import guard
from chisel.client.pool import Pool, by_number
from chisel.client.protection import DEFAULT_IDLE, protection_notice
from chisel.config import Config, Project, find_project, load_config, save_token
from chisel.errors import ConfigError, UsageError
from chisel.events import Facts, Notice, NullSink, Sink, StatusReported, SweepReported
from chisel.model import (
    Bill,
    GitFacts,
    Host,
    PoolStatus,
    RunningCommand,
    Secret,
    SweepItem,
    SyncResult,
)
from chisel.paths import Paths, resolve_paths
from chisel.state import CloudState, DropletRecord, ProjectState, State, StateStore

if TYPE_CHECKING:
    from chisel.client.trees import Trees
    from chisel.cloud.base import Cloud
    from chisel.figures import ProfileReport
    from chisel.lifecycle import Lifecycle
    from chisel.profile.viewer import View
    from chisel.ssh.connector import Connector
    from chisel.ssh.early import Departures


@dataclass(frozen=True, slots=True)
class Where:
    """Where the user stands: the project, the current directory, and the variables that its chisel.toml names.

    `place` is the current directory with no link in its path. `environ` is the user's whole environment: what git is to
    see of it.
    """

    project: Project
    cwd: Path
    place: Path
    env: Mapping[str, str] = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)


@asynccontextmanager
async def open(
    *,
    sink: Sink | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    home: Path | None = None,
    api_url: str | None = None,
    departures: Departures | None = None,
    connector: Connector | None = None,
    store: StateStore | None = None,
    trees: Trees | None = None,
    reserve: Mapping[str, int] | None = None,
) -> AsyncIterator[Client]:
    """Open a client from configuration and environment; both are read here and nowhere below.

    `environ` defaults to the process's own (`CHISEL_DO_TOKEN`, `CHISEL_DO_API_URL`, XDG variables), `cwd` to the
    current directory. `departures` are connections that are on their way; the client uses and closes them. A
    `connector` that is handed in is used and left open, so are a `store` and `trees`. Raises ConfigError for unusable
    files. Leaving closes every other connection, in bounded time. With a `reserve` every connection keeps so many
    sessions of a role ready (`{"receive": 1}` for a sync); `Client.connector` is to be called by the same task first.
    """
    environ = os.environ if environ is None else environ
    paths = resolve_paths(environ, home or Path(environ.get("HOME") or Path.home()))
    here = Path(cwd) if cwd is not None else Path.cwd()

    def read() -> tuple[Config, Project, Path]:
        return load_config(paths, environ, api_url=api_url), find_project(here), here.resolve()

    config, project, place = await to_thread.run_sync(read)
    named = {name: environ[name] for name in project.settings.env if name in environ}
    async with AsyncExitStack() as stack:
        where, used = Where(project, here, place, named, environ), store or StateStore(paths.state_file)
        yield Client(config, paths, where, sink or NullSink(), stack, used, departures, connector, trees, reserve)


class Client:
    """One user's view of their pools. Calls may overlap within one event loop."""

    def __init__(
        self,
        config: Config,
        paths: Paths,
        where: Where,
        sink: Sink,
        stack: AsyncExitStack,
        store: StateStore,
        departures: Departures | None = None,
        connector: Connector | None = None,
        trees: Trees | None = None,
        reserve: Mapping[str, int] | None = None,
    ) -> None:
        self.config = config
        self.paths = paths
        self.where = where
        self.sink = sink
        self.store = store
        self._stack = stack
        self._departures = departures
        self._opening = anyio.Lock()
        self._cloud: Cloud | None = None
        self._connector: Connector | None = connector
        self._trees = trees
        self._reserve = reserve

    @property
    def has_connected(self) -> bool:
        """Say whether droplets were connected to."""
        return self._connector is not None

    # -- what is opened late

    @property
    def trees(self) -> Trees:
        """Return what is kept of local trees, warm for as long as the client lives."""
        if self._trees is None:
            from chisel.client.trees import Trees

            self._trees = Trees()
        return self._trees

    async def cloud(self) -> Cloud:
        """Return the connection to the cloud's API; raises ConfigError without a token."""
        async with self._opening:
            if self._cloud is None:
                from chisel.cloud.digitalocean import open_digitalocean

                if self.config.token is None:
                    raise ConfigError("no DigitalOcean token is known", hint="chisel auth, or set CHISEL_DO_TOKEN")
                self._cloud = await self._stack.enter_async_context(
                    open_digitalocean(self.config.token, api_url=self.config.api_url, sink=self.sink)
                )
            return self._cloud

    async def connector(self, hosts: Sequence[Host] = ()) -> Connector:
        """Return the keeper of warm SSH connections, with chisel's own key.

        `hosts` are those that will be connected to at once: the first time, that begins while the keeper is made.
        """
        async with self._opening:
            if self._connector is None:
                from chisel.client.connections import make_connector

                self._connector = await make_connector(
                    self._stack, self.paths, self.store, self.config.api_url, hosts, self._departures, self._reserve
                )
            return self._connector

    def connector_to(self, hosts: Sequence[Host]) -> Connector | None:
        """Return the keeper of connections where it is connected to all of these hosts by now."""
        kept = self._connector
        return kept if kept is not None and all(map(kept.is_connected, hosts)) else None

    async def lifecycle(self) -> Lifecycle:
        """Return the engine that creates and destroys, on this account's cloud."""
        from chisel.lifecycle import Lifecycle
        from chisel.ssh.keys import load_or_create_client_key

        key = await to_thread.run_sync(load_or_create_client_key, self.paths.client_key)
        return Lifecycle(
            await self.cloud(),
            self.store,
            await self.connector(),
            self.sink,
            api_url=self.config.api_url,
            public_key=key.public_openssh,
        )

    # -- pools

    async def up(
        self,
        pool: str | None = None,
        *,
        count: int = 1,
        size: str | None = None,
        region: str | None = None,
        image: str | None = None,
        snapshot: str | None = None,
        idle: timedelta = DEFAULT_IDLE,
        ttl: timedelta | None = None,
        max_usd: Decimal | None = None,
        ends_busy: bool = False,
        takes_any: bool = False,
        wait: timedelta = timedelta(0),
    ) -> Pool:
        """Return a pool of at least `count` ready droplets, reusing what exists and creating what is missing.

        Never destroys. Billing starts with each creation. New droplets are destroyed after `idle` without a request
        (zero: never), and `ttl` and `max_usd` (dollars for the whole pool) limit their time; a command that still runs
        then is ended only with `ends_busy`. With a self-destruct token they do that themselves, else whichever chisel
        on this machine notices. `snapshot` is the name of one to begin with, `takes_any` allows other sizes of the same
        architecture, `wait` is how long to hunt for room. Raises CloudError (CapacityError when there is no room),
        ConfigError, UsageError; cancelled, it leaves every created droplet recorded, where `down` finds it.
        """
        from chisel.lifecycle import Wish

        if count < 1:
            raise UsageError(f"a pool of `{count}` droplets makes no sense")
        name, settings = self.pool_name(pool), self.where.project.settings
        lifecycle = await self.lifecycle()
        if snapshot is not None:
            image = str((await lifecycle.find_snapshot(snapshot)).id)
        chosen = size or settings.size
        wish = Wish(
            pool=name,
            count=count,
            project=self.where.project.id,
            sizes=(chosen,) if chosen else self.config.sizes,
            region=region or settings.region or self.config.region,
            image=image or settings.image or self.config.image,
            ttl=ttl,
            max_usd=max_usd,
            idle_s=math.ceil(idle.total_seconds()),
            self_destruct_token=self.config.self_destruct_token,
            ends_busy=ends_busy,
            takes_any=takes_any,
            wait_s=wait.total_seconds(),
        )
        records = await lifecycle.up(wish)
        self.sink.emit(protection_notice(records))
        return Pool(self, name, tuple(sorted(records, key=by_number)))

    async def pool(self, name: str | None = None) -> Pool:
        """Return a pool that is already up, from the state alone; raises ConfigError when there is none."""
        name = self.pool_name(name)
        mine = await self._mine()
        records = mine.pools.get(name, {})
        if not records:
            known = ", ".join(sorted(mine.pools))
            raise ConfigError(
                f"pool `{name}` is not up" + (f"; up: {known}" if known else ""),
                hint="chisel up" if name == self.config.pool else f"chisel up --pool {name}",
            )
        return Pool(self, name, tuple(sorted(records.values(), key=by_number)))

    def pool_name(self, name: str | None) -> str:
        """Return the pool's name: the given one, the project's, or the configured default."""
        return guard.check_pool_name(name or self.where.project.settings.pool or self.config.pool)

    def command_env(self, env: Mapping[str, str] | None) -> dict[str, str]:
        """Return the variables a command gets from here: those the project names, then the given ones."""
        return {**self.where.env, **(env or {})}

    async def recorded(self) -> dict[str, list[DropletRecord]]:
        """Return what the state knows of every pool of this account, by name: nobody is asked."""
        return {name: list(records.values()) for name, records in (await self._mine()).pools.items()}

    async def _mine(self) -> CloudState:
        return (await self.store.read()).clouds.get(self.config.api_url) or CloudState()

    async def status(self, *, is_again: bool = False) -> list[PoolStatus]:
        """Ask the cloud and every droplet how they are; a droplet that does not answer is shown as such.

        `is_again` says that the report takes the place of the one before.
        """
        from chisel.client.asking import ask_everybody

        reported = await ask_everybody(self)
        self.sink.emit(StatusReported(pools=tuple(reported), is_again=is_again))
        return reported

    async def begin(self, *, mends: bool = True, warns: bool = True) -> None:
        """Look at the state as a command begins, once: rebuild one that cannot be read, warn of forgotten droplets.

        `mends` rebuilds from the droplets' tags what could not be read (the file is kept and named); `warns` says once
        of each pool that has been up for long how old it is and what it cost. Nobody is asked while nothing is wrong.
        """
        state = await self.store.read()
        if mends and state.recovered_from is not None:
            await self._rebuild(state)
            state = await self.store.read()
        if warns:
            from chisel.client.care import warn

            mine = state.clouds.get(self.config.api_url) or CloudState()
            await warn(self, {name: list(records.values()) for name, records in mine.pools.items()})

    async def _rebuild(self, state: State) -> None:
        said = f"the state could not be read and is kept as `{state.recovered_from}`"
        self.sink.emit(Notice(level="warning", message=f"{said}: it is rebuilt from the droplets' tags"))
        if self.config.token is None:
            raise ConfigError("no DigitalOcean token is known to rebuild it with", hint="chisel auth; chisel recover")
        for record in await self.recover():
            self.sink.emit(Notice(host=record.name, message=f"recovered: droplet {record.id} of pool {record.pool}"))

    async def end_what_is_over(self, *, only_warns: bool = False) -> None:
        """Destroy droplets whose time is over and where nothing runs; nothing raises, what fails is said.

        With `only_warns` nothing is destroyed: those whose time is soon over are named.
        """
        from chisel.client.care import end_what_is_over, warn_of_ends

        if only_warns:
            warn_of_ends(self, [record for pool in (await self.recorded()).values() for record in pool])
        else:
            await end_what_is_over(self)

    async def refresh_ssh_config(self) -> None:
        """Bring the Host blocks that `chisel ssh --config` wrote up to date, where there are some; nothing raises."""
        from chisel.client.openssh import refresh

        await refresh(self)

    async def ask(self, record: DropletRecord, *, looks_at_gpus: bool = False) -> dict[str, Any] | None:
        """Ask a droplet what runs there and how idle it is, for 8 s at most; None when it does not answer.

        It looks for commands and logins of others too; at its GPUs only when told so, which takes it some seconds.
        """
        from chisel.client.asking import ask

        return await ask(self, record, looks_at_gpus)

    async def running_on(self, pool: Pool) -> dict[str, tuple[RunningCommand, ...]]:
        """Ask droplets which commands run there, by droplet; one that does not answer is left out."""
        from chisel.client.asking import running_on

        return await running_on(self, pool)

    async def sweep(self, choice: guard.Choice = guard.NOTHING_MORE) -> list[SweepItem]:
        """List every droplet with chisel's tag and judge it; nothing is destroyed (that is `destroy_swept`).

        Selected are this owner's droplets that are past their limits or half-made, and what `choice` adds. Raises
        CloudError.
        """
        lifecycle = await self.lifecycle()
        await lifecycle.settle()
        await lifecycle.prune()
        cloud = await self.cloud()
        state = await self.store.read()
        records = [record for pool in (await self._mine()).pools.values() for record in pool.values()]
        known = {one.id: guard.Known(one.name, one.attempt, one.is_ready) for one in records}
        droplets = await cloud.list_droplets(tag=guard.TAG)
        items = guard.sweep_items(droplets, known, owner=state.owner, now=lifecycle.now(), choice=choice)
        self.sink.emit(SweepReported(items=tuple(items)))
        return items

    async def destroy_swept(self, items: Sequence[SweepItem]) -> list[Bill]:
        """Destroy what a sweep selected, each re-read first and destroyed only when it is still what was judged."""
        return await (await self.lifecycle()).destroy_swept(items)

    async def recover(self, owner: str | None = None) -> list[DropletRecord]:
        """Write droplets of this owner that the state has lost into it, from their tags; returns them.

        A state that was lost as a whole has lost its owner as well: `owner` names it, or it is taken when all droplets
        with chisel's tag have the same one. Raises CloudError, and ConfigError when it cannot be told whose they are.
        """
        lifecycle, state = await self.lifecycle(), await self.store.read()
        owners = await lifecycle.owners()
        has_records = any(cloud.pools or cloud.intents for cloud in state.clouds.values())
        if owner is None and state.owner not in owners and not has_records:
            named = sorted(name for name in owners if name)
            if len(named) > 1:
                raise ConfigError(
                    f"the droplets belong to several owners: {', '.join(f'`{name}`' for name in named)}",
                    hint=f"chisel recover --owner {named[0]}",
                )
            owner = named[0] if named else None
        return await lifecycle.recover(owner)

    async def authenticate(
        self,
        token: str | None,
        *,
        self_destruct_token: str | None = None,
        takes_broad_token: bool = False,
        api_url: str | None = None,
    ) -> Facts:
        """Verify tokens with the cloud, store new ones, and return what the account and they may do.

        `token` None means the one at hand. What droplets get to destroy themselves, `self_destruct_token`, must be able
        to delete and, without `takes_broad_token`, unable to create. Raises ConfigError without any token,
        CredentialsRefused when the cloud refuses one, GuardrailError for a second one that may do too much or too
        little; nothing is stored then.
        """
        from chisel.client.account import authenticate

        facts = await authenticate(
            self.config, token, self_destruct_token, api_url=api_url, takes_broad=takes_broad_token, sink=self.sink
        )
        if token or self_destruct_token:
            main, second = (Secret(text) if text else None for text in (token, self_destruct_token))
            store = partial(save_token, self.paths, main, self_destruct=second, api_url=api_url)
            await to_thread.run_sync(store)
        return facts

    # -- profiles that are here

    async def profile_files(self, path: Path | str, **wishes: Any) -> ProfileReport:
        """Rank what a profiler wrote, of whichever kind: a file, a directory, or one that `Pool.profile` made.

        `wishes` are `top`, `kernel`, `skip_warmup`, `out`, `against`, `save_as` and `fail_if_slower` of `Pool.profile`,
        and `opens`, which writes a trace even without `out`. Raises UsageError for what is no profile.
        """
        from chisel.client.lines import check_pattern
        from chisel.client.profiling import profile_files

        check_pattern(wishes.get("kernel"))
        return await profile_files(self, path, **wishes)

    def view(
        self, trace: Path, title: str, window_ns: tuple[int, int] | None = None
    ) -> AbstractAsyncContextManager[View]:
        """Serve a trace to this machine's browsers at an address nobody can guess: see `chisel.profile.viewer`."""
        from chisel.client.profiling import view

        return view(trace, title, window_ns)

    # -- the project's trees

    async def project_state(self) -> ProjectState | None:
        """Return what the state remembers of this project, None before its first sync."""
        return (await self.store.read()).projects.get(self.where.project.id)

    async def last_tree(self) -> tuple[str, GitFacts | None]:
        """Return the hash of the tree that was synced last, empty for none, and what it was checked out from."""
        known = await self.project_state()
        return (known.tree_hash, known.git) if known is not None else ("", None)

    async def remote_cwd(self) -> str:
        """Return where commands run: the tree synced last, in the subdirectory that matches the local one."""
        known = await self.project_state()
        if known is None or known.last_root is None:
            return "~"
        return self.remote_place(Path(known.last_root), known.synced_roots[known.last_root])

    def remote_place(self, root: Path, remote: str) -> str:
        """Return the directory of a working copy that matches the current one, its top where none does."""
        here = self.where.place
        if here == root or root not in here.parents:
            return remote
        return str(PurePosixPath(remote) / here.relative_to(root).as_posix())

    async def root_to_sync(self, path: Path | str | None) -> Path:
        """Return the local tree that `sync` means: the given one, or the synced one around, or the project's root."""
        if path is not None:
            root = Path(await anyio.Path(self.where.place, path).resolve())
            if not await anyio.Path(root).is_dir():
                raise UsageError(f"`{path}` is not a directory here")
            return root
        known = await self.project_state()
        here = self.where.place
        around = [Path(root) for root in (known.synced_roots if known else {}) if Path(root) in (here, *here.parents)]
        return max(around, key=lambda root: len(root.parts)) if around else self.where.project.root

    async def remember_sync(self, root: Path, remote: str, result: SyncResult) -> None:
        """Record that this tree was synced last, and what the droplets have of it."""
        project = self.where.project

        def change(state: State) -> State:
            known = state.projects.get(project.id)
            roots = {**(known.synced_roots if known else {}), str(root): remote}
            entry = ProjectState(
                id=project.id,
                root=str(project.root),
                pool=self.pool_name(None),
                synced_roots=roots,
                last_root=str(root),
                tree_hash=result.tree_hash,
                git=result.git,
            )
            return replace(state, projects={**state.projects, project.id: entry})

        await self.store.update(change)
