"""Find the droplets that a command of the loop is meant for, and turn what became of them into a status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncclick as click

from chisel.cli.session import Session, choose

if TYPE_CHECKING:
    from chisel.client import Client, Pool
    from chisel.model import SyncResult

LOST = 255
bring_up_option = click.option("--up", "bring_up", is_flag=True, help="Bring the pool up first when there is none.")
env_option = click.option(
    "-e", "--env", "pairs", multiple=True, metavar="K[=V]", help="Set K there (without =V: as it is here)."
)


async def target_of(
    client: Client, session: Session, pool: str | None, everywhere: bool, on: str | None, bring_up: bool
) -> Pool:
    """Return the droplets meant, bringing a missing pool up when told or allowed to."""
    from chisel.errors import ConfigError

    try:
        return await choose(client, session, pool=pool, everywhere=everywhere, on=on)
    except ConfigError as error:
        session.around.decline()  # bringing a pool up, or asking whether to, is not for the agent
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


def status_of_sync(session: Session, results: Sequence[SyncResult]) -> None:
    """Leave with 1 when nothing but setup scripts failed, with 255 for a droplet that was not reached."""
    failed = [result for result in results if result.error]
    if failed:
        session.status = 1 if all(result.setup_error for result in failed) else LOST


def status_of_errors(session: Session, errors: Sequence[str | None]) -> None:
    """Leave with 255 for a droplet that was not reached."""
    if any(errors):
        session.status = LOST
