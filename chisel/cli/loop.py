"""The loop around `run`: sync, pull."""

from __future__ import annotations

from pathlib import Path

import asyncclick as click

from chisel.cli.options import output_options, target_options
from chisel.cli.session import Session, choose
from chisel.cli.target import bring_up_option, status_of_errors, status_of_sync, target_of


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@target_options
@bring_up_option
@output_options
async def sync(
    session: Session, path: Path | None, pool: str | None, everywhere: bool, on: str | None, bring_up: bool
) -> None:
    """Make the droplets' working copy equal to the local tree, sending only what changed.

    PATH is the tree (default: the synced one around the current directory, else the project's root).
    """
    async with session.open() as client:
        target = await target_of(client, session, pool, everywhere, on, bring_up)
        status_of_sync(session, await target.sync(path))


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
