"""The droplets: up, down, status, sweep."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncclick as click

from chisel.cli.options import Dollars, Duration, output_options, pool_option, target_options
from chisel.cli.session import Session, choose

if TYPE_CHECKING:
    from chisel.client import Client, Pool


@click.command()
@pool_option
@click.option("-n", "--count", type=click.IntRange(1, 500), default=1, show_default=True, help="How many droplets.")
@click.option("--size", metavar="SLUG", help="Droplet size (default: one MI300X).")
@click.option("--region", metavar="SLUG", help="Region (default: the first that offers the size).")
@click.option("--image", metavar="SLUG", help="Image, by slug or id (default: AMD's GPU image).")
@click.option("--snapshot", metavar="NAME", help="Begin with the snapshot that `chisel down --snapshot NAME` made.")
@click.option(
    "--idle", type=Duration(), default="15m", show_default=True, help="Idle time that ends them; 0: none does."
)
@click.option("--ttl", type=Duration(), help="Age that ends them, such as 8h.")
@click.option("--end-running", is_flag=True, help="End them at --ttl or --max-usd even while a command runs.")
@click.option("--max-usd", type=Dollars(), metavar="USD", help="What the pool may cost; then it is past its limit.")
@click.option(
    "--any", "takes_any", is_flag=True, help="Take another size of the same architecture where there is room."
)
@click.option("--wait", type=Duration(), default="0s", help="How long to hunt for capacity, such as 30m.")
@output_options
async def up(
    session: Session, pool: str | None, count: int, size: str | None, region: str | None, image: str | None,
    snapshot: str | None, idle: timedelta, ttl: timedelta | None, end_running: bool, max_usd: Decimal | None,
    takes_any: bool, wait: timedelta,
) -> None:  # fmt: skip
    """Bring droplets up: reuse what exists, create what is missing, return when every one truly answers.

    Billing starts with each droplet's creation and ends with `chisel down`. Nothing is ever destroyed here. New
    droplets end themselves when nobody has asked anything of them for --idle, if `chisel auth` was given a
    self-destruct token; otherwise any chisel command on this machine ends them then.
    """
    async with session.open(cares=False) as client:
        await client.up(
            pool, count=count, size=size, region=region, image=image, snapshot=snapshot, idle=idle, ttl=ttl,
            max_usd=max_usd, ends_busy=end_running, takes_any=takes_any, wait=wait,
        )  # fmt: skip


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--power-off", is_flag=True, help="Cut the power instead: billing goes on in full.")
@click.option("--pull", "wanted", multiple=True, metavar="PATH", help="Bring this back first; may be repeated.")
@click.option("--snapshot", metavar="NAME", help="Make a snapshot of the droplet first; it bills by the month.")
@output_options
async def down(
    session: Session, pool: str | None, everywhere: bool, on: str | None, yes: bool, power_off: bool,
    wanted: tuple[str, ...], snapshot: str | None,
) -> None:  # fmt: skip
    """Destroy the droplets, confirm that they are gone, show what they cost.

    A powered-off droplet bills in full, so `down` destroys. It asks first on a terminal; elsewhere it needs --yes.
    """
    from chisel.errors import GuardrailError, UsageError
    from chisel.events import Notice

    async with session.open(cares=False) as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        if snapshot is not None and len(target) != 1:
            raise UsageError("a snapshot is of one droplet", hint=f"--on {target.names[0]}")
        if power_off:
            await target.power_off()
            client.sink.emit(
                Notice(level="warning", message="powered off, and billing in full all the same", hint="chisel down")
            )
            return
        if wanted and any(result.error or result.skipped for result in await target.pull(wanted)):
            raise GuardrailError("not everything could be pulled: nothing was destroyed", hint="chisel pull, then down")
        await _say_what_runs(client, target)
        await _say_what_is_only_there(client, target)
        await _agree(session, target, client.where.project.name, yes=yes)
        if snapshot is not None:
            made, usd = await target.snapshot(snapshot)
            said = f"snapshot `{made.name}` ({made.size_gib} GiB) costs about ${usd} a month until it is deleted"
            client.sink.emit(Notice(message=said, hint=f"chisel up --snapshot {made.name}"))
        bills = await target.down()
        if any(bill.error for bill in bills):
            session.status = 4


async def _say_what_runs(client: Client, target: Pool) -> None:
    """Name the commands that would be lost."""
    from chisel.events import Notice

    for host, runs in (await client.running_on(target)).items():
        for run in runs:
            client.sink.emit(Notice(host=host, level="warning", message=f"still runs there: {run.line}"))


async def _say_what_is_only_there(client: Client, target: Pool) -> None:
    """Name the files that would be lost: made on the droplets, and not pulled as they are now."""
    from chisel.events import Notice

    for host, copies in sorted((await target.only_there()).items()):
        for copy in copies:
            files, newest = int(copy["files"]), ", ".join(copy["newest"][:3])
            rest = f", and {files - 3} more" if files > 3 else ""
            message = f"only there, in {copy['root']}: {newest}{rest}"
            client.sink.emit(Notice(host=host, level="warning", message=message, hint="chisel down --pull PATH"))


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
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--every", type=Duration(), default="5s", show_default=True, help="How often --watch looks.")
@output_options
async def status(session: Session, watch: bool, every: timedelta) -> None:
    """Show what is up, what runs there, since when it is idle, when it ends, what it costs."""
    import anyio

    from chisel.errors import CloudError
    from chisel.events import Notice

    pause_s = max(1.0, every.total_seconds())  # two requests each: 250 a minute are allowed
    async with session.open() as client:
        await client.status()
        while watch:
            await client.sink.drain()
            await anyio.sleep(pause_s)
            try:
                await client.status(is_again=True)
            except CloudError as error:
                client.sink.emit(Notice(level="warning", message=error.message))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--expired", is_flag=True, help="Also other owners' droplets that are past the limit they were given.")
@click.option("--older-than", type=Duration(), help="Also yours of that age, such as 8h.")
@click.option("--unknown", is_flag=True, help="Also droplets this machine does not know; asks for their number.")
@click.option("-y", "--yes", is_flag=True, help="Destroy what is selected. Without it nothing is destroyed.")
@output_options
async def sweep(
    session: Session, names: tuple[str, ...], expired: bool, older_than: timedelta | None, unknown: bool, yes: bool
) -> None:
    """Show every droplet with chisel's tag, and with --yes destroy those that are selected.

    Selected are yours that are past their limit or half made, and those NAMED: yours by name, anybody's by id. --yes
    adds nothing to the selection.
    """
    from chisel.guard import Choice

    async with session.open(cares=False) as client:
        choice = Choice(named=names, expired=expired, unknown=unknown, older_than=older_than)
        selected = [item for item in await client.sweep(choice) if item.is_selected]
        if not selected or not await _may_sweep(session, len(selected), yes=yes, counts=unknown):
            return
        bills = await client.destroy_swept(selected)
        if any(bill.error for bill in bills):
            session.status = 4


async def _may_sweep(session: Session, number: int, *, yes: bool, counts: bool) -> bool:
    """Ask for what --yes does not answer: for droplets nobody here knows their number has to be typed."""
    from chisel.errors import GuardrailError

    if not counts:
        return yes or (session.may_ask and await session.confirms(f"Destroy the {number} selected?"))
    if not session.may_ask:
        raise GuardrailError("--unknown needs somebody at a terminal who types the number of droplets")
    answer = await session.ask(f"{number} droplets would be destroyed, others' among them. Type their number:")
    if answer != str(number):
        raise GuardrailError("nothing was destroyed")
    return True


@click.command()
@click.argument("by", type=Duration())
@target_options
@output_options
async def keep(session: Session, by: timedelta, pool: str | None, everywhere: bool, on: str | None) -> None:
    """Let droplets live until BY (such as 2h) from now at least."""
    from chisel.events import Notice

    async with session.open(cares=False) as client:
        target = await choose(client, session, pool=pool, everywhere=everywhere, on=on)
        for name, until in sorted((await target.keep(by)).items()):
            client.sink.emit(Notice(host=name, message=f"lives until {until:%Y-%m-%d %H:%M} UTC"))


@click.command()
@click.option("--owner", metavar="TAG", help="Whose droplets, when the state that knew it is lost.")
@output_options
async def recover(session: Session, owner: str | None) -> None:
    """Rebuild a lost state from the droplets' tags."""
    from chisel.events import Notice

    async with session.open(cares=False, mends=False) as client:
        found = await client.recover(owner)
        for record in found:
            client.sink.emit(Notice(host=record.name, message=f"recovered: droplet {record.id} of pool {record.pool}"))
        if not found:
            client.sink.emit(Notice(message="nothing was missing"))
