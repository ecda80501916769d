"""Put data outside the working copy."""

from __future__ import annotations

from pathlib import Path

import asyncclick as click

from chisel.cli.options import bandwidth_option, output_options, relay_option, target_options
from chisel.cli.session import Session, choose
from chisel.cli.target import status_of_errors
from chisel.model import Relay


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@target_options
@click.option("--to", metavar="DIR", help="The directory there (default: /scratch where there is one, else ~/data).")
@bandwidth_option
@relay_option
@output_options
async def push(
    session: Session, files: tuple[Path, ...], pool: str | None, everywhere: bool, on: str | None, to: str | None,
    bytes_per_s: float | None, relay: Relay,
) -> None:  # fmt: skip
    """Put data sets and weights on the droplets, outside the working copy.

    Files and directories go to all droplets at once, are left out where they are already, and go on where an earlier
    push was cut. Nothing there is deleted.
    """
    async with session.open() as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        results = await target.push(list(files), to, bytes_per_s=bytes_per_s, relay=relay)
        status_of_errors(session, [result.error for result in results])
