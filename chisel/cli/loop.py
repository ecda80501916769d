"""The loop around `run`: sync, profile, pull."""

from __future__ import annotations

import os
from pathlib import Path

import asyncclick as click

from chisel.cli.options import WORDS, Size, environment, output_options, target_options
from chisel.cli.run import interruptible
from chisel.cli.session import Session, choose
from chisel.cli.target import bring_up_option, env_option, status_of_errors, status_of_sync, target_of
from chisel.sync.wanted import Caps


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


@click.command(context_settings=WORDS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@target_options
@bring_up_option
@env_option
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
        target = await target_of(client, session, pool, everywhere, on, bring_up)
        async with interruptible(session, client) as control:
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
@click.option("--flat", is_flag=True, help="Put all droplets' files into one directory; refused where names collide.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be written.")
@click.option("--bwlimit", type=Size(), metavar="RATE", help="At most so much a second, in all: 500k, 20M.")
@click.option("--max-files", type=click.IntRange(1), default=Caps().files, show_default=True, help="Most files taken.")
@click.option("--max-bytes", type=Size(), default=Caps().bytes, help="Most bytes taken (default: 1Ti).")
@click.option(
    "--max-depth", type=click.IntRange(1), default=Caps().depth, show_default=True, help="Deepest path taken."
)
@output_options
async def pull(
    session: Session, paths: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, to: Path | None,
    flat: bool, dry_run: bool, bwlimit: int | None, max_files: int, max_bytes: int, max_depth: int,
) -> None:  # fmt: skip
    """Bring files, directories and globs of the working copy back: only what changed.

    chisel pull out/ writes ./out; several droplets write into one directory each. What was interrupted goes on where
    it was. A path from / or ~/ arrives under its last component.
    """
    async with session.open() as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        results = await target.pull(
            list(paths), to, is_flat=flat, is_dry=dry_run, bwlimit=bwlimit, caps=Caps(max_files, max_bytes, max_depth)
        )
        status_of_errors(session, [result.error for result in results])
