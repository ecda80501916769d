"""The loop around `run`: sync, pull."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncclick as click

from chisel.cli.options import (
    Command,
    Size,
    bandwidth_option,
    output_options,
    relay_option,
    target_options,
    with_options,
)
from chisel.cli.session import Session, choose
from chisel.cli.target import bring_up_option, status_of_errors, status_of_sync, target_of
from chisel.sync.wanted import Caps

if TYPE_CHECKING:
    from chisel.client import Client, Pool
    from chisel.runner import Control

_READY = {"receive": 1, "supervise": 1}
_FLAG: dict[str, Any] = {"is_flag": True}
_SYNC_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--to", metavar="DIR", help="Into this directory of the droplets (default: one of the tree's own)."),
    click.option("--dry-run", "is_dry", **_FLAG, help="Change nothing: say what would be done, and why."),
    click.option("--checksum", "checks", **_FLAG, help="Read every file on both sides, trusting no time."),
    click.option("--keep-remote", "keeps", **_FLAG, help="Leave alone what was changed on the droplet."),
    click.option("--delete-extra", "deletes_extra", **_FLAG, help="Remove there what was never pushed, listing it."),
    click.option("--now", "is_now", **_FLAG, help="Do not wait for commands that run in the working copy."),
    click.option("--take-over", "takes_over", **_FLAG, help="Take a working copy from whoever synced it before."),
    bandwidth_option,
    relay_option,
    click.option("--watch", "watches", **_FLAG, help="Go on: sync again after every change, until Ctrl-C."),
    click.option("--run", "line", metavar="CMD", help="With --watch: run this after each sync, ending the one before."),
)


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--explain", "explained", metavar="PATH", multiple=True, help="Only say whether PATH is sent, and why. Repeatable."
)
@target_options
@bring_up_option
@with_options(_SYNC_OPTIONS)
@output_options
async def sync(
    session: Session, path: Path | None, explained: tuple[str, ...], pool: str | None, everywhere: bool,
    on: str | None, bring_up: bool, to: str | None, bytes_per_s: float | None, watches: bool, line: str | None,
    **flags: Any,
) -> None:  # fmt: skip
    """Make the droplets' working copy equal to the local tree, sending only what changed.

    PATH is the tree (default: the synced one around the current directory, else the project's root). What was pushed
    before and is gone here is removed there; what the droplets made themselves stays.
    """
    if line is not None and not watches:
        raise click.UsageError("--run goes with --watch; to sync and run once: chisel run -s CMD")
    if watches and (explained or flags["is_dry"]):
        raise click.UsageError("--watch goes with neither --explain nor --dry-run")
    if explained:
        from chisel.client.explaining import explain

        async with session.open() as client:
            await explain(client, explained, root=path)
        return
    if watches:
        session.around.decline()  # it stays as long as its user: it has connections of its own
        session.look["is_endless"] = True
    async with session.open(reserve=_READY if watches else None) as client:
        from chisel.client.syncing import SyncOptions

        target = await target_of(client, session, pool, everywhere, on, bring_up)
        more: dict[str, Any] = {"to": to, "options": SyncOptions(**flags), "bytes_per_s": bytes_per_s}
        if watches:
            await _watch(session, client, target, path, line, more)
            return
        status_of_sync(session, await target.sync(path, **more))


async def _watch(
    session: Session, client: Client, target: Pool, path: Path | None, line: str | None, more: dict[str, Any]
) -> None:
    """Follow the tree until Ctrl-C: the command that runs is interrupted then, by a second one killed."""
    from chisel.client.watching import Stop
    from chisel.events import Notice

    await client.connector(target.hosts())  # sessions in reserve are owned here, not by a sync
    stop, steps = Stop(), iter([signal.SIGINT, signal.SIGKILL])

    def take(number: int) -> bool:
        step = next(steps, None) if number == signal.SIGINT else None
        if step is None or not stop.ask(int(step)):
            return False  # nothing to end in order: what goes on, a sync perhaps, is cancelled
        session.status = 128 + signal.SIGINT
        return True

    async def run(control: Control) -> None:
        results = await target.run(line or "", cwd=more["to"], capture=False, control=control)
        for result in results if not control.was_used else ():
            client.sink.emit(Notice(host=result.host, message=f"ended with status {result.status}"))

    session.hand_signals_to(take)
    try:
        client.sink.emit(Notice(message="watching; Ctrl-C ends it"))
        await target.watch(path, run=run if line is not None else None, stop=stop, **more)
    finally:
        session.hand_signals_to(None)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@target_options
@click.option("--to", type=click.Path(path_type=Path), help="Where to put them (default: the current directory).")
@click.option("--flat", is_flag=True, help="Put all droplets' files into one directory; refused where names collide.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be written.")
@bandwidth_option
@click.option("--max-files", type=click.IntRange(1), default=Caps().files, show_default=True, help="Most files taken.")
@click.option("--max-bytes", type=Size(), default=Caps().bytes, help="Most bytes taken (default: 1Ti).")
@click.option(
    "--max-depth", type=click.IntRange(1), default=Caps().depth, show_default=True, help="Deepest path taken."
)
@output_options
async def pull(
    session: Session, paths: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, to: Path | None,
    flat: bool, dry_run: bool, bytes_per_s: float | None, max_files: int, max_bytes: int, max_depth: int,
) -> None:  # fmt: skip
    """Bring files, directories and globs of the working copy back: only what changed.

    chisel pull out/ writes ./out; several droplets write into one directory each. What was interrupted goes on where
    it was. A path from / or ~/ arrives under its last component.
    """
    async with session.open() as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        results = await target.pull(
            list(paths),
            to,
            is_flat=flat,
            is_dry=dry_run,
            bytes_per_s=bytes_per_s,
            caps=Caps(max_files, max_bytes, max_depth),
        )
        status_of_errors(session, [result.error for result in results])
