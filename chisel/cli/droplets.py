"""The droplets: up, down, status, sweep."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncclick as click

from chisel.cli.options import Duration, output_options, pool_option, target_options
from chisel.cli.session import Session, choose

if TYPE_CHECKING:
    from chisel.client import Pool


@click.command()
@pool_option
@click.option("-n", "--count", type=click.IntRange(1, 500), default=1, show_default=True, help="How many droplets.")
@click.option("--size", metavar="SLUG", help="Droplet size (default: one MI300X).")
@click.option("--region", metavar="SLUG", help="Region (default: the first that offers the size).")
@click.option("--image", metavar="SLUG", help="Image (default: AMD's GPU image).")
@click.option("--ttl", type=Duration(), help="Lifetime after which `chisel sweep` selects the droplets, such as 8h.")
@output_options
async def up(
    session: Session, pool: str | None, count: int, size: str | None, region: str | None, image: str | None,
    ttl: timedelta | None,
) -> None:  # fmt: skip
    """Bring droplets up: reuse what exists, create what is missing, return when every one truly answers.

    Billing starts with each droplet's creation and ends with `chisel down`. Nothing is ever destroyed here.
    """
    async with session.open() as client:
        await client.up(pool, count=count, size=size, region=region, image=image, ttl=ttl)


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_options
async def down(session: Session, pool: str | None, everywhere: bool, on: str | None, yes: bool) -> None:
    """Destroy the droplets, confirm that they are gone, show what they cost.

    A powered-off droplet bills in full, so `down` destroys. It asks first on a terminal; elsewhere it needs --yes.
    """
    async with session.open() as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        await _agree(session, target, client.where.project.name, yes=yes)
        bills = await target.down()
        if any(bill.error for bill in bills):
            session.status = 4


async def _agree(session: Session, target: Pool, project: str, *, yes: bool) -> None:
    from chisel.errors import GuardrailError

    if yes:
        return
    what = f"{len(target)} droplet{'s' if len(target) > 1 else ''} of pool `{target.name}` (project `{project}`)"
    if not session.may_ask:
        raise GuardrailError(f"{what} would be destroyed, and nobody can be asked", hint="chisel down --yes")
    if not await session.confirms(f"Destroy {what}: {', '.join(target.names)}?"):
        raise GuardrailError("nothing was destroyed")


@click.command()
@output_options
async def status(session: Session) -> None:
    """Show what is up, what runs there, since when it is idle, what it costs."""
    async with session.open() as client:
        await client.status()


@click.command()
@click.argument("names", nargs=-1)
@click.option("-y", "--yes", is_flag=True, help="Destroy what is selected. Without it nothing is destroyed.")
@output_options
async def sweep(session: Session, names: tuple[str, ...], yes: bool) -> None:
    """Show every droplet with chisel's tag, and with --yes destroy those that are selected.

    Selected are yours that are past their limit or half made, and yours that are NAMED. Others are left alone.
    """
    async with session.open() as client:
        items = await client.sweep(names=names)
        selected = [item for item in items if item.is_selected]
        if not selected:
            return
        if yes or (session.may_ask and await session.confirms(f"Destroy the {len(selected)} selected?")):
            bills = await client.destroy_swept(selected)
            if any(bill.error for bill in bills):
                session.status = 4
