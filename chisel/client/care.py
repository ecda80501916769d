"""Take care of what the user may have forgotten: warn of droplets up for long, end those whose time is over.

Any command does this at its end, from the state alone unless something is due: a droplet that destroys itself needs
none of it, the others have nobody else while this machine is on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from chisel import guard
from chisel.errors import ChiselError, leaves
from chisel.events import Notice
from chisel.state import DropletRecord

if TYPE_CHECKING:
    from pathlib import Path

    from chisel.client.client import Client
    from chisel.lifecycle import Lifecycle

EVERY_S = 60.0
WARN_BEFORE = timedelta(minutes=15)
_DEADLINE_S = 60.0


async def warn(client: Client, pools: Mapping[str, Sequence[DropletRecord]]) -> None:
    """Warn once of each pool that has been up for longer than the configured time, with its age and cost so far."""
    now, limit = datetime.now(UTC), client.config.warn_after
    for name, records in sorted(pools.items()):
        old = [one for one in records if now - one.created_at >= limit]
        if old and limit:
            age = max(now - one.created_at for one in old)
            usd = sum((guard.cost(one.usd_per_hour, (now - one.created_at).total_seconds()) for one in old), Decimal(0))
            number = f"{len(old)} droplet{'s' if len(old) > 1 else ''}"
            client.sink.emit(
                Notice(
                    level="warning",
                    message=f"pool `{name}`: {number} up for {_hours(age)}, ${usd:.2f} so far",
                    hint=f"chisel down --pool {name}{' --all' if len(records) > 1 else ''}",
                )
            )


def _hours(age: timedelta) -> str:
    return f"{age.total_seconds() / 3600:.1f} h"


async def end_what_is_over(client: Client, *, asks_turn: bool = True) -> None:
    """Destroy recorded droplets whose time is over and where nothing runs; warn of those whose time is soon over.

    Looks at most once in `EVERY_S`, but where `asks_turn` is False.
    A droplet that cannot be asked is left, with a warning: something may run there.
    Nothing here raises but cancellation; what fails is said, and tried by the next command.
    """
    records = [record for pool in (await client.recorded()).values() for record in pool]
    now = datetime.now(UTC)
    warn_of_ends(client, records)
    if not any(is_due(record, now) for record in records):
        return
    if asks_turn and not await to_thread.run_sync(_is_turn, client.paths.cache_dir / "care"):
        return
    with anyio.move_on_after(_DEADLINE_S):
        over = await what_is_over(client)
        if over:
            try:
                lifecycle = await client.lifecycle()
                await lifecycle.down(await _not_kept(client, lifecycle, over))
            except* ChiselError as errors:
                said = f"past its limit, and not destroyed: {next(leaves(errors))}"
                client.sink.emit(Notice(level="warning", message=said))


async def _not_kept(client: Client, lifecycle: Lifecycle, over: list[DropletRecord]) -> list[DropletRecord]:
    """Return those that nobody has given more time from another machine; say of the others that they stay."""
    rest = await lifecycle.not_kept(over)
    for record in over:
        is_past = record.until is not None and record.until <= datetime.now(UTC)
        how = "it was given more time from elsewhere, and stays"
        if record in rest:
            how = "it is destroyed"
        elif record.until is not None and is_past and record.until > lifecycle.now():
            how = "but not by DigitalOcean's clock, and it stays: is this machine's right?"
        reason = "its time is over" if is_past else "it was idle for longer than its limit"
        client.sink.emit(Notice(host=record.name, level="warning", message=f"{reason}: {how}"))
    return rest


async def what_is_over(client: Client) -> list[DropletRecord]:
    """Return recorded droplets whose time is over and where nothing runs: those that may be are asked."""
    now, over = datetime.now(UTC), list[DropletRecord]()

    async def one(record: DropletRecord) -> None:
        if await _is_over(client, record):
            over.append(record)

    async with anyio.create_task_group() as tasks:
        for records in (await client.recorded()).values():
            for record in records:
                if is_due(record, now):
                    tasks.start_soon(one, record)
    return over


def needs_care(record: DropletRecord) -> bool:
    """Say whether a droplet may have to be ended from here: it has a limit, and does not end itself."""
    return (bool(record.idle_s) or record.until is not None) and not record.is_armed


def is_due(record: DropletRecord, now: datetime) -> bool:
    """Say whether a droplet's time may be over: past its end, or idle for too long with nobody else to see it."""
    if record.until is not None and record.until <= now:
        return True
    is_kept = record.kept_until is not None and record.kept_until > now
    has_age = (now - record.created_at).total_seconds() >= record.idle_s
    return bool(record.idle_s) and not record.is_armed and record.is_ready and has_age and not is_kept


def warn_of_ends(client: Client, records: Sequence[DropletRecord]) -> None:
    """Warn of droplets whose time is soon over."""
    now = datetime.now(UTC)
    for record in records:
        if record.until is not None and now < record.until <= now + WARN_BEFORE:
            minutes = (record.until - now).total_seconds() / 60
            client.sink.emit(
                Notice(
                    host=record.name,
                    level="warning",
                    message=f"its time is over in {minutes:.0f} min",
                    hint=f"chisel keep 2h --pool {record.pool}",
                )
            )


async def _is_over(client: Client, record: DropletRecord) -> bool:
    """Ask a droplet whether it is in use; say why it stays when it does.

    Logins, commands in its terminals and its GPUs' work are use like chisel's own commands; the GPUs take some seconds
    to look at, so they are looked at last, in the answer that decides.
    """
    is_past = record.until is not None and record.until <= datetime.now(UTC)
    answer = await client.ask(record)
    if answer is not None and not is_past and not _is_idle(record, answer):
        return False
    if answer is not None and not answer["busy"]:
        answer = await client.ask(record, looks_at_gpus=True)
    if answer is None:
        if is_past:
            _stays(client, record, "it does not answer: something may run there")
        return False
    busy = [f"`{run['line']}` runs there" for run in answer["runs"] if run["running"]] or list(answer["busy"])
    if is_past and busy and not record.ends_busy:
        _stays(client, record, busy[0])
        return False
    return is_past or _is_idle(record, answer)


def _is_idle(record: DropletRecord, answer: Mapping[str, Any]) -> bool:
    return bool(record.idle_s) and not answer["busy"] and float(answer["idle_s"]) >= record.idle_s


def _stays(client: Client, record: DropletRecord, reason: str) -> None:
    client.sink.emit(
        Notice(
            host=record.name,
            level="warning",
            message=f"past its limit, and left: {reason}",
            hint=f"chisel down --pool {record.pool}, or chisel keep 2h",
        )
    )


def _is_turn(mark: Path) -> bool:
    """Say whether nobody has looked for `EVERY_S`, and note that somebody does now."""
    now = datetime.now(UTC).timestamp()
    try:
        if 0 <= now - mark.stat().st_mtime < EVERY_S:
            return False
    except OSError:
        pass  # nobody has looked, or nobody can tell
    with suppress(OSError):  # where it cannot be noted, every command looks
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(mode=0o600)
        os.utime(mark)
    return True
