"""The loop around `run`: sync, pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    on: str | None, bring_up: bool, to: str | None, bytes_per_s: float | None, **flags: Any,
) -> None:  # fmt: skip
    """Make the droplets' working copy equal to the local tree, sending only what changed.

    PATH is the tree (default: the synced one around the current directory, else the project's root). What was pushed
    before and is gone here is removed there; what the droplets made themselves stays.
    """
    if explained:
        from chisel.client.explaining import explain

        async with session.open() as client:
            await explain(client, explained, root=path)
        return
    async with session.open() as client:
        from chisel.client.syncing import SyncOptions

        target = await target_of(client, session, pool, everywhere, on, bring_up)
        results = await target.sync(path, to=to, options=SyncOptions(**flags), bytes_per_s=bytes_per_s)
        status_of_sync(session, results)


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
