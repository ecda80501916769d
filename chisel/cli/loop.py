"""The loop: sync, run, profile, pull."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncclick as click

from chisel.cli.options import WORDS, environment, output_options, target_options
from chisel.cli.session import Session, choose

if TYPE_CHECKING:
    from chisel.client import Client, Pool
    from chisel.model import SyncResult
    from chisel.runner import Control

LOST = 255
_UP = click.option("--up", "bring_up", is_flag=True, help="Bring the pool up first when there is none.")
_ENV = click.option(
    "-e", "--env", "pairs", multiple=True, metavar="K[=V]", help="Set K there (without =V: as it is here)."
)


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@target_options
@_UP
@output_options
async def sync(
    session: Session, path: Path | None, pool: str | None, everywhere: bool, on: str | None, bring_up: bool
) -> None:
    """Make the droplets' working copy equal to the local tree, sending only what changed.

    PATH is the tree (default: the synced one around the current directory, else the project's root).
    """
    async with session.open() as client:
        target = await _target(client, session, pool, everywhere, on, bring_up)
        _status_of_sync(session, await target.sync(path))


@click.command(context_settings=WORDS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@target_options
@_UP
@_ENV
@click.option("-s", "--sync", "sync_first", is_flag=True, help="Sync first.")
@click.option(
    "--prefix", type=click.Choice(["auto", "name", "none"]), default="auto", help="Names before output lines."
)
@output_options
async def run(
    session: Session, command: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, bring_up: bool,
    pairs: tuple[str, ...], sync_first: bool, prefix: str,
) -> None:  # fmt: skip
    """Run COMMAND on the droplets: live output, the command's own exit status.

    Several words mean exactly those words; one single word is a shell line: chisel run 'make && ./bench.sh'.
    Options of chisel end where COMMAND begins. Ctrl-C interrupts the command there, a second one kills it.
    """
    session.prefix = prefix
    env = environment(pairs, os.environ)
    async with session.open() as client:
        target = await _target(client, session, pool, everywhere, on, bring_up)
        if sync_first:
            _status_of_sync(session, await target.sync())
            if session.status:
                return
        async with _interruptible(session, client) as control:
            results = await target.run(list(command), env=env, capture=False, control=control)
        worst = max(results, key=lambda result: result.status)
        session.status, session.source = worst.status, worst.source


@click.command(context_settings=WORDS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@target_options
@_UP
@_ENV
@click.option("--trace", metavar="hip,hsa,roctx", help="What to trace besides kernels (default: hip; hsa is huge).")
@click.option("--out", type=click.Path(path_type=Path), help="Where the files go (default: ./chisel-profile/...).")
@click.option("--top", type=click.IntRange(1, 10000), default=10, show_default=True, help="How many kernels to show.")
@output_options
async def profile(
    session: Session, command: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, bring_up: bool,
    pairs: tuple[str, ...], trace: str | None, out: Path | None, top: int,
) -> None:  # fmt: skip
    """Run COMMAND under the droplets' profiler, rank the hottest kernels, bring the files.

    The directory holds kernels.csv, trace.json.gz and the profiler's raw files. The exit status is the program's own.
    """
    env = environment(pairs, os.environ)
    traces = [name.strip() for name in trace.split(",") if name.strip()] if trace is not None else None
    async with session.open() as client:
        target = await _target(client, session, pool, everywhere, on, bring_up)
        async with _interruptible(session, client) as control:
            results = await target.profile(list(command), traces=traces, out=out, top=top, env=env, control=control)
        worst = max(results, key=lambda result: result.status)
        session.status = worst.status
        session.source = worst.run.source if worst.run else "chisel"
        if session.status == 0 and any(result.error for result in results):
            session.status, session.source = 1, "chisel"


@click.command()
@click.argument("paths", nargs=-1, required=True)
@target_options
@click.option("--to", type=click.Path(path_type=Path), help="Where to put them (default: the current directory).")
@output_options
async def pull(
    session: Session, paths: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, to: Path | None
) -> None:
    """Bring files, directories and globs of the working copy back.

    chisel pull out/ writes ./out; several droplets write into one directory each.
    """
    async with session.open() as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        _status_of_errors(session, [result.error for result in await target.pull(list(paths), to)])


async def _target(
    client: Client, session: Session, pool: str | None, everywhere: bool, on: str | None, bring_up: bool
) -> Pool:
    """Return the droplets meant, bringing a missing pool up when told or allowed to."""
    from chisel.errors import ConfigError

    try:
        return await choose(client, session, pool=pool, everywhere=everywhere, on=on)
    except ConfigError as error:
        name = client.pool_name(pool)
        if not bring_up and not (session.may_ask and await session.confirms(await _offer(client, name))):
            raise ConfigError(error.message, hint=f"{error.hint}, or --up") from error
    await client.up(name)
    return await choose(client, session, pool=pool, everywhere=everywhere, on=on)


async def _offer(client: Client, name: str) -> str:
    """Word the question whether to bring a pool up, with the price the cloud asks now."""
    wanted = set(client.config.sizes)
    prices = [size for size in await (await client.cloud()).sizes() if size.slug in wanted]
    price = f" ({prices[0].slug}, ${prices[0].usd_per_hour} per hour)" if prices else ""
    return f"Pool `{name}` is not up. Bring one droplet up{price}?"


@asynccontextmanager
async def _interruptible(session: Session, client: Client) -> AsyncIterator[Control]:
    """Turn Ctrl-C into SIGINT for the remote process groups, a second one into SIGKILL, a third into leaving."""
    from chisel.events import Notice
    from chisel.runner import Control

    control = Control()
    steps = iter([int(signal.SIGINT), int(signal.SIGKILL)])

    def take(number: int) -> bool:
        step = next(steps, None) if number == signal.SIGINT else None
        if step is None:
            return False
        control.signal(step)
        said = "interrupted there; Ctrl-C again kills" if step == signal.SIGINT else "killed there"
        client.sink.emit(Notice(message=said))
        return True

    session.hand_signals_to(take)
    try:
        yield control
    finally:
        session.hand_signals_to(None)


def _status_of_sync(session: Session, results: Sequence[SyncResult]) -> None:
    """Leave with 1 when nothing but setup scripts failed, with 255 for a droplet that was not reached."""
    failed = [result for result in results if result.error]
    if failed:
        session.status = 1 if all(result.setup_error for result in failed) else LOST


def _status_of_errors(session: Session, errors: Sequence[str | None]) -> None:
    """Leave with 255 for a droplet that was not reached."""
    if any(errors):
        session.status = LOST
