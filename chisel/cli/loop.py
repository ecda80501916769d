"""The loop around `run`: sync, pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncclick as click

from chisel.cli.options import Command, Rate, output_options, target_options
from chisel.cli.session import Session, choose
from chisel.cli.target import bring_up_option, status_of_errors, status_of_sync, target_of

_FLAG: dict[str, Any] = {"is_flag": True}
_SYNC_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--to", metavar="DIR", help="Into this directory of the droplets (default: one of the tree's own)."),
    click.option("--dry-run", "is_dry", **_FLAG, help="Change nothing: say what would be done, and why."),
    click.option("--checksum", "checks", **_FLAG, help="Read every file on both sides, trusting no time."),
    click.option("--keep-remote", "keeps", **_FLAG, help="Leave alone what was changed on the droplet."),
    click.option("--delete-extra", "deletes_extra", **_FLAG, help="Remove there what was never pushed, listing it."),
    click.option("--now", "is_now", **_FLAG, help="Do not wait for commands that run in the working copy."),
    click.option("--take-over", "takes_over", **_FLAG, help="Take a working copy from whoever synced it before."),
    click.option("--bwlimit", type=Rate(), metavar="RATE", help="Send at most 500k, 2M bytes a second in all."),
)


def _with_sync_options(command: Command) -> Command:
    for option in reversed(_SYNC_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--explain", "explained", metavar="PATH", multiple=True, help="Only say whether PATH is sent, and why. Repeatable."
)
@target_options
@bring_up_option
@_with_sync_options
@output_options
async def sync(
    session: Session, path: Path | None, explained: tuple[str, ...], pool: str | None, everywhere: bool,
    on: str | None, bring_up: bool, to: str | None, bwlimit: float | None, **flags: bool,
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
        results = await target.sync(path, to=to, options=SyncOptions(**flags), bytes_per_s=bwlimit)
        status_of_sync(session, results)


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
        status_of_errors(session, [result.error for result in await target.pull(list(paths), to)])
