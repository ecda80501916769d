"""Bring droplets up, destroy them, account for every one: no droplet is ever unrecorded.

An intent is on disk before each create request, with a tag that only this attempt carries. After any doubt the cloud
is asked for that tag until the doubt is settled: the droplet is adopted, or it never existed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio

from chisel import guard
from chisel.cloud.base import Cloud
from chisel.errors import CloudError, HostUnreachable
from chisel.events import Sink
from chisel.lifecycle.desk import Connector, Desk
from chisel.lifecycle.destroying import Destroyer
from chisel.lifecycle.making import Maker
from chisel.lifecycle.offer import Wish
from chisel.lifecycle.ready import Readier
from chisel.lifecycle.records import map_cloud, record_from_tags, with_record
from chisel.lifecycle.snapshots import find_snapshot, take_snapshot, usd_per_month
from chisel.model import Bill, Snapshot, SweepItem
from chisel.state import DropletRecord, State, StateStore, host_of

SETTLE_AFTER_S = 60.0
"""After so long a create request that shows no droplet made none: its own deadline (30 s), and the list's lag."""
_ROUNDS = 3
_TELL_DEADLINE_S = 30.0


class Lifecycle:
    """Bring up and destroy the droplets of one account (`api_url`), recording each in the state.

    Calls may overlap, also from several processes: the state decides who creates what.
    """

    def __init__(
        self,
        cloud: Cloud,
        store: StateStore,
        connector: Connector,
        sink: Sink,
        *,
        api_url: str,
        public_key: str,
        settle_after_s: float = SETTLE_AFTER_S,
    ) -> None:
        self._desk = Desk(cloud, store, connector, sink, api_url, settle_after_s)
        self._public_key = public_key
        self._maker = Maker(self._desk)
        self._readier = Readier(self._desk, self._maker.keys)
        self._destroyer = Destroyer(self._desk)

    # -- up

    async def up(self, wish: Wish) -> list[DropletRecord]:
        """Return the pool's ready droplets, at least `wish.count`: reuse what exists, create what is missing.

        Several at once, in one process or many, create no more than one of them would. A droplet that the cloud
        accepted and that came to nothing is made again, twice at most. Raises CloudError when the cloud refuses or the
        deadline passes (15 minutes, and `wish.wait_s`). Cancelled, it leaves every created droplet, and every request
        whose answer it does not know, recorded in the state, where `down` and the next `up` find it.
        """
        desk = self._desk
        guard.check_pool_name(wish.pool)
        await self.settle(wish.pool)
        records = await self._still_there(wish.pool)
        if len(records) > wish.count:
            desk.say(f"pool `{wish.pool}` has {len(records)} droplets, more than the {wish.count} asked for: all kept")
        for _ in range(_ROUNDS):
            if len(records) < wish.count:
                key = await desk.cloud.ensure_ssh_key(_key_name(self._public_key), self._public_key)
                await self._maker.create_missing(wish, key.fingerprint)
                await self.settle(wish.pool)
                records = await self._still_there(wish.pool)
            if len(records) >= wish.count:
                records = await self._readier.make_ready(records)
            if len(records) >= wish.count:
                return records
        raise CloudError(
            f"pool `{wish.pool}` has {len(records)} of {wish.count} droplets: others vanished or were destroyed",
            hint="chisel status",
        )

    async def settle(self, pool: str | None = None) -> None:
        """Find out what became of every create request whose answer is not recorded (of one pool), and record it."""
        await self._maker.settle(pool)

    async def _still_there(self, pool: str) -> list[DropletRecord]:
        """Return the recorded droplets that the cloud still has; forget those it confirms to be gone.

        A young droplet that the API does not know may just not be visible yet: it is kept.
        """
        desk = self._desk
        records = (await desk.mine()).pools.get(pool, {}).values()
        listed = {one.id: one for one in await desk.cloud.list_droplets(tag=guard.TAG)} if records else {}
        kept = []
        for record in records:
            if record.id in listed and listed[record.id].status == "off":
                record = replace(record, address=None)  # it may get another one when it starts
            if record.id in listed or desk.is_young(record) or await desk.exists(record.id):
                kept.append(record)
            else:
                desk.stage(record.name, "gone", "it no longer exists")
                await desk.forget(record)
        return kept

    async def prune(self) -> None:
        """Forget the recorded droplets of every pool that the cloud confirms to be gone. Raises CloudError."""
        for pool in (await self._desk.mine()).pools:
            await self._still_there(pool)

    # -- down

    async def down(self, records: Sequence[DropletRecord]) -> list[Bill]:
        """Destroy droplets, confirm that each is gone, forget it, and say what it cost.

        One droplet's failure is the `error` of its bill. Cancelled, it leaves those not confirmed in the state.
        """
        return await self._destroyer.down(records)

    async def power_off(self, records: Sequence[DropletRecord]) -> None:
        """Cut the power of droplets: they go on billing in full, and `up` starts them again. Raises CloudError."""
        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(self._desk.cloud.power_off, record.id)

    async def destroy_swept(self, items: Sequence[SweepItem]) -> list[Bill]:
        """Destroy what a sweep selected, each re-read first: its tags and name must still be what was judged."""
        return await self._destroyer.destroy_swept(items)

    # -- snapshots

    async def find_snapshot(self, name: str) -> Snapshot:
        """Return the newest snapshot of that name; raises ConfigError naming those that are there."""
        return await find_snapshot(self._desk, name)

    async def take_snapshot(self, record: DropletRecord, name: str) -> tuple[Snapshot, Decimal]:
        """Make a snapshot of a droplet's disk; returns it with what it costs a month, in dollars."""
        snapshot = await take_snapshot(self._desk, record, name)
        return snapshot, usd_per_month(snapshot)

    # -- limits and losses

    async def extend(self, records: Sequence[DropletRecord], by: timedelta) -> dict[str, datetime]:
        """Let droplets live until `by` from now at least; returns the ends by name.

        The droplets themselves are told, their tags and the state: idleness does not count until then, and an end that
        was set moves. The new limit is tagged before the old one goes, and of several the latest holds. Raises
        CloudError, and HostUnreachable when one that destroys itself could not be told.
        """
        desk = self._desk
        ends: dict[str, datetime] = {}

        async def one(record: DropletRecord) -> None:
            droplet = await desk.cloud.get_droplet(record.id)
            known, until = guard.read_label(droplet.tags).until, desk.now() + by
            ends[record.name] = end = max(until, known or until, record.kept_until or until)
            if record.is_armed:
                await _tell(desk, record, by)
            if known is not None:
                await self._retag(record, guard.until_tag(end), guard.limit_tags(droplet.tags))
            if record.idle_s and not record.is_armed:  # it cannot say so itself to whoever would end it
                await self._retag(record, guard.kept_tag(end), guard.kept_tags(droplet.tags))
            await desk.revise(record, until=end if known is not None else None, kept_until=end)

        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(one, record)
        return ends

    async def _retag(self, record: DropletRecord, tag: str, before: Iterable[str]) -> None:
        """Put a tag in the place of others: at no moment there is none."""
        await self._desk.cloud.tag_droplet(tag, record.id)
        for old in before:
            if old != tag:
                await self._desk.cloud.untag_droplet(old, record.id)

    async def not_kept(self, records: Sequence[DropletRecord]) -> list[DropletRecord]:
        """Return those of the records whose tags do not give them more time than the state knows of.

        Somebody on another machine may have (`extend`): the state learns it then. Nor is one returned whose time is
        over by this machine's clock only. Asks once; raises CloudError.
        """
        desk = self._desk
        labels = {one.id: guard.read_label(one.tags) for one in await desk.cloud.list_droplets(tag=guard.TAG)}
        now, now_here = desk.now(), datetime.now(UTC)
        rest = []
        for record in records:
            label = labels.get(record.id)
            times = (label.until, label.kept_until) if label is not None else (None, None)
            until, kept_until = (_later(*pair) for pair in zip((record.until, record.kept_until), times, strict=True))
            if (until, kept_until) != (record.until, record.kept_until):
                await desk.revise(record, until=until, kept_until=kept_until)
            is_past = until is not None and until <= now
            is_past_before = record.until is not None and record.until <= now_here
            is_kept = kept_until is not None and kept_until > now
            if is_past == is_past_before and (is_past or not is_kept):
                rest.append(record)
        return rest

    async def recover(self, owner: str | None = None) -> list[DropletRecord]:
        """Write droplets of ours that the state lacks into it, from their tags; returns them.

        Ours are those of `owner`: the state's own, or, for a state that was lost with it, the one given, which becomes
        the state's. Droplets that are on record are left as they are. Raises CloudError.
        """
        desk = self._desk
        droplets = await desk.cloud.list_droplets(tag=guard.TAG)
        found = [(one, guard.read_label(one.tags)) for one in droplets]
        added: list[DropletRecord] = []

        def change(state: State) -> State:
            added.clear()
            mine, me = desk.part_of(state), owner or state.owner
            known = {record.id for pool in mine.pools.values() for record in pool.values()}
            for droplet, label in found:
                is_whole = label.owner == me and label.pool and label.attempt
                taken = droplet.name in mine.pools.get(label.pool, {})
                if is_whole and droplet.id not in known and label.attempt not in mine.intents and not taken:
                    added.append(record_from_tags(droplet))
                    mine = with_record(mine, added[-1])
            changed = map_cloud(state, desk.api_url, lambda _: mine)
            return replace(changed, owner=me)

        await desk.store.update(change)
        return list(added)

    def now(self) -> datetime:
        """Return the time by the cloud's clock, where it has said it."""
        return self._desk.now()

    async def owners(self) -> Mapping[str, int]:
        """Count the droplets with chisel's tag by their owner tag. Raises CloudError."""
        counted: dict[str, int] = {}
        for droplet in await self._desk.cloud.list_droplets(tag=guard.TAG):
            owner = guard.read_label(droplet.tags).owner
            counted[owner] = counted.get(owner, 0) + 1
        return counted


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    """Return the later of what is given of two instants."""
    return max((instant for instant in (one, other) if instant is not None), default=None)


async def _tell(desk: Desk, record: DropletRecord, by: timedelta) -> None:
    """Tell a droplet that destroys itself to live for `by` from now at least; raises HostUnreachable."""
    with anyio.move_on_after(_TELL_DEADLINE_S):
        connection = await desk.connector.connect(host_of(record))
        await connection.ask("limits", {"keep_s": by.total_seconds()})
        return
    raise HostUnreachable(f"`{record.name}` destroys itself and could not be told to stay", host=record.name)


def _key_name(public_key: str) -> str:
    return "chisel-" + hashlib.sha256(public_key.encode()).hexdigest()[:12]
