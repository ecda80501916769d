"""Compose a sync: the local tree scanned while the droplets are connected to, one part for each of them."""

from __future__ import annotations

import getpass
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from chisel.client.trees import Tree
from chisel.errors import ChiselError, RemoteError, UsageError
from chisel.events import Notice, SyncEnded
from chisel.model import GitFacts, Host, RunResult, SyncResult
from chisel.runner import Order, describe
from chisel.sync.beside import beside
from chisel.sync.ignore import git_facts, surroundings_of
from chisel.sync.job import Job
from chisel.sync.job import Options as SyncOptions
from chisel.sync.push import push, remote_root_for
from chisel.sync.scan import LocalTree, scan_tree
from chisel.sync.throttle import Throttle

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.client.pool import Pool
    from chisel.ssh.connector import Connector

__all__ = ["SyncOptions", "run_synced", "sync", "syncing"]

_REMEMBER_S = 5.0
_GIT_S = 0.5
"""How long a record waits for what git says once all else is there."""
_FEW_FILES, _SOON_S = 2000, 0.05
"""A tree of fewer files is scanned sooner than the answer to a login comes: then one message says all."""


@asynccontextmanager
async def syncing(
    client: Client,
    local: LocalTree | None,
    tree: Tree,
    remote: PurePosixPath,
    *,
    options: SyncOptions | None = None,
    bytes_per_s: float | None = None,
    **more: Any,
) -> AsyncIterator[Job]:
    """Give the job of bringing a scanned tree to droplets; nothing of it is left open."""
    job = Job(
        local,
        tree.index,
        tree.known,
        remote,
        owner=(await client.store.read()).owner,
        owner_name=await to_thread.run_sync(_owner_name),
        sink=client.sink,
        options=options,
        throttle=Throttle(bytes_per_s),
        **more,
    )
    try:
        yield job
    finally:
        job.close()


def lent(client: Client, root: Path) -> AbstractAsyncContextManager[Tree]:
    """Give what is known of a tree, for as long as a sync of it takes."""
    return client.trees.lent(client.paths.index_dir, root)


class _Git:
    """What git says of a tree, asked while it is scanned and sent: a remark, for which nobody waits long.

    `known` is what it has said so far.
    """

    def __init__(self) -> None:
        self.known: GitFacts | None = None
        self._has_said = anyio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    async def ask(self, client: Client, root: Path) -> None:
        """Ask; cancelled, it ends git."""
        try:
            surroundings = await to_thread.run_sync(surroundings_of, client.where.environ)
            ask = partial(git_facts, root, surroundings, started=self._started)
            self.known = await to_thread.run_sync(ask, abandon_on_cancel=True)
        finally:
            self._has_said.set()
            self._is_over = True
            if self._process is not None:
                self._process.kill()

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self._is_over:  # it asks in a thread, and twice
            process.kill()

    async def facts(self) -> GitFacts | None:
        """Return them, None where it takes too long."""
        with anyio.move_on_after(_GIT_S):
            await self._has_said.wait()
        return self.known


async def scanned(client: Client, root: Path, tree: Tree, options: SyncOptions | None = None) -> LocalTree:
    """Scan a tree; the user is told when it is larger than anybody means it to be."""
    surroundings = await to_thread.run_sync(surroundings_of, client.where.environ)
    is_thorough = options is not None and options.checks
    local = await scan_tree(root, tree.index, is_thorough=is_thorough, surroundings=surroundings)
    if local.warning is not None:
        client.sink.emit(local.warning)
    return local


async def sync(
    pool: Pool,
    client: Client,
    path: Path | str | None,
    *,
    to: str | None,
    options: SyncOptions | None,
    bytes_per_s: float | None,
    tell: Callable[[SyncResult], None] | None = None,
) -> list[SyncResult]:
    """Sync a pool: see `Pool.sync`. `tell` takes each droplet's result as it comes (default: an event)."""
    tell = tell or (lambda result: client.sink.emit(SyncEnded(host=result.host, result=result)))
    root = await client.root_to_sync(path)
    remote = PurePosixPath(to) if to else remote_root_for(root)
    if to and not to.startswith(("/", "~/")):
        raise UsageError(f"`{to}` is neither an absolute path on the droplet nor one below its home", hint="--to ~/DIR")
    hosts, results = pool.hosts(), dict[str, SyncResult]()

    async def one(host: Host, connector: Connector, job: Job) -> None:
        try:
            result = replace(await push(partial(connector.node, host), host, job), git=await git.facts())
        except ChiselError as error:
            result = SyncResult(host=host.name, root=str(remote), error=describe(error))
        results[host.name] = result
        tell(result)

    git = _Git()
    async with (
        beside(git.ask, client, root),
        _sending(client, root, remote, hosts, options, bytes_per_s=bytes_per_s) as (connector, job),
        anyio.create_task_group() as tasks,
    ):
        for host in hosts:
            tasks.start_soon(one, host, connector, job)
    is_dry = options is not None and options.is_dry
    good = [result for result in results.values() if result.error is None]
    if good and not is_dry:
        await client.remember_sync(root, str(remote), good[0])
        await _set_up(client, hosts, root, remote, results)
    return [results[name] for name in pool.names]


@asynccontextmanager
async def _sending(
    client: Client, root: Path, remote: PurePosixPath, hosts: list[Host], options: SyncOptions | None, **more: Any
) -> AsyncIterator[tuple[Connector, Job]]:
    """Give a keeper of connections and the job, for the droplets' parts of it.

    The tree is scanned meanwhile: the droplets look at their working copies at the same time. Raises what the scan
    raises, with the block cancelled.
    """
    trouble: ChiselError | None = None
    async with (
        lent(client, root) as tree,
        syncing(client, None, tree, remote, options=options, droplets=len(hosts), **more) as job,
    ):

        async def scan(scope: anyio.CancelScope) -> None:
            nonlocal trouble
            try:
                job.scanned(await scanned(client, root, tree, options))
            except ChiselError as error:
                trouble = error
                scope.cancel()

        with anyio.CancelScope() as scope:
            async with beside(scan, scope):
                connector = client.connector_to(hosts)
                if connector is None:
                    connector = await client.connector(hosts)
                    if len(tree.index.files) < _FEW_FILES:
                        with anyio.move_on_after(_SOON_S):
                            await job.wait_scanned()
                yield connector, job
    if trouble is not None:
        raise trouble


async def run_synced(
    pool: Pool,
    client: Client,
    order: Order,
    follow: Callable[..., Awaitable[list[RunResult]]],
    options: SyncOptions | None,
    where: Callable[[str], str],
) -> list[RunResult]:
    """Run a command with a sync ahead of it in the same message; `where` says in which directory, given the copy's.

    A project with a setup script is synced before, because the script has to run in between.
    """
    root = await client.root_to_sync(None)
    remote = remote_root_for(root)
    cwd = where(client.remote_place(root, str(remote)))
    if client.where.project.settings.setup is not None:
        results = await sync(pool, client, None, to=None, options=options, bytes_per_s=None)
        failed = [result for result in results if result.error is not None]
        if failed:
            raise RemoteError(failed[0].error or "", host=failed[0].host, code="sync")
        order = replace(order, cwd=cwd, tree_hash=results[0].tree_hash, git=results[0].git)
        return await follow(await client.connector(pool.hosts()), order=order)
    ended: list[SyncResult] = []
    ran: list[RunResult] = []
    git = _Git()

    def on_end(result: SyncResult) -> None:
        ended.append(replace(result, git=git.known))
        client.sink.emit(SyncEnded(host=result.host, result=ended[-1]))

    more = {"on_end": on_end, "goes_ahead": True, "git": git.facts}
    try:
        async with (
            beside(git.ask, client, root),
            _sending(client, root, remote, pool.hosts(), options, **more) as (connector, job),
        ):
            ran = await follow(connector, order=replace(order, cwd=cwd, sync=job))
    finally:
        if ended:
            with anyio.move_on_after(_REMEMBER_S, shield=True):
                await client.remember_sync(root, str(remote), ended[0])
    return ran


async def _set_up(
    client: Client, hosts: list[Host], root: Path, remote: PurePosixPath, results: dict[str, SyncResult]
) -> None:
    from chisel.client.setup import set_up

    synced = [host for host in hosts if results[host.name].error is None]
    for name, trouble in (await set_up(client, synced, root, remote)).items():
        results[name] = replace(results[name], error=f"setup: {trouble}", setup_error=trouble)
        client.sink.emit(Notice(host=name, level="error", message=f"setup: {trouble}"))


def _owner_name() -> str:
    """Return who this is, for the owner of another machine to read."""
    name = "somebody"
    with suppress(OSError, KeyError, ImportError):
        name = getpass.getuser()
    return f"{name}@{socket.gethostname()}"[:100]
