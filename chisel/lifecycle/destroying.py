"""Destroy droplets, by id only, after reading each again, until the API says that it is gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

import anyio

from chisel import guard
from chisel.errors import ChiselError, CloudError, GuardrailError, NotFoundError
from chisel.lifecycle.desk import FIRST_POLL_S, SLOWEST_POLL_S, Desk
from chisel.lifecycle.records import bill_for
from chisel.model import Bill, Droplet, DropletId, SweepItem
from chisel.state import DropletRecord

GONE_DEADLINE_S = 180.0
READ_SINGLY = 48
"""Of more droplets one listing is read just before: four requests for each would pass the limit of 250 a minute."""


class Destroyer:
    """Destroy what is provably ours, confirm it, and forget it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def down(self, records: Sequence[DropletRecord]) -> list[Bill]:
        """Destroy droplets, confirm that each is gone, forget it, and say what it cost.

        One droplet's failure is the `error` of its bill. Cancelled, it leaves those not confirmed in the state.
        """
        owner = (await self._desk.store.read()).owner
        bills: dict[DropletId, Bill] = {}
        orphans: dict[str, str] = {}
        listed = await self._desk.cloud.list_droplets(tag=guard.TAG) if len(records) > READ_SINGLY else []
        read = {one.id: one for one in listed}

        async def one(record: DropletRecord) -> None:
            bills[record.id] = await self._destroy(record, owner, orphans, read.get(record.id))

        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(one, record)
        await self._drop_tags(orphans, [id for id, bill in bills.items() if bill.error is None])
        return [bills[record.id] for record in records]

    async def _destroy(
        self, record: DropletRecord, owner: str, orphans: dict[str, str], read: Droplet | None = None
    ) -> Bill:
        """Destroy one droplet and forget it; the tags that only it carried come to `orphans`, with its name.

        `read` is the droplet as it was just read, if it was.
        """
        desk, tags = self._desk, tuple[str, ...]()
        try:
            droplet = read or await self.found(record)
            tags = droplet.tags
            refusal = guard.refusal_to_destroy(
                droplet, id=record.id, name=record.name, owner=owner, attempt=record.attempt
            )
            if refusal:
                raise GuardrailError(f"droplet {record.id} is not destroyed: {refusal}", hint="chisel sweep")
            desk.stage(record.name, "destroying", "", record)
            await self.destroy_and_confirm(record.id)
        except NotFoundError:
            desk.stage(record.name, "gone", "it no longer exists", record)
        except ChiselError as error:
            return desk.billed(bill_for(record, desk.now(), error=error.message))
        await desk.forget(record)
        orphans.update(dict.fromkeys(guard.attempt_tags(tags, record.attempt), record.name))
        return desk.billed(bill_for(record, desk.now()))

    async def _drop_tags(self, orphans: Mapping[str, str], gone: Collection[DropletId]) -> None:
        """Delete the tags of droplets that are gone, but none that another droplet carries: it would lose it.

        They outlive their droplets at no cost, so a failure is no error.
        """
        if not orphans:
            return
        try:
            others = [one for one in await self._desk.cloud.list_droplets() if one.id not in gone]
            carried = {tag for one in others for tag in one.tags}
            for tag in orphans.keys() - carried:
                await self._desk.cloud.delete_tag(tag)
        except CloudError as error:
            names = ", ".join(sorted(set(orphans.values())))
            self._desk.say(f"tags are left of {names}: {error.message}")

    async def found(self, record: DropletRecord) -> Droplet:
        """Return a droplet; raises NotFoundError when it is gone: a young one may not be visible yet."""
        pause = FIRST_POLL_S
        while True:
            try:
                return await self._desk.cloud.get_droplet(record.id)
            except NotFoundError:
                if not self._desk.is_young(record):
                    raise
            await anyio.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_POLL_S)

    async def destroy_swept(self, items: Sequence[SweepItem]) -> list[Bill]:
        """Destroy what a sweep selected, each re-read first: its tags and name must still be what was judged."""
        bills: dict[DropletId, Bill] = {}
        orphans: dict[str, str] = {}

        async def one(item: SweepItem) -> None:
            bills[item.droplet_id] = self._desk.billed(await self._destroy_item(item, orphans))

        async with anyio.create_task_group() as tasks:
            for item in items:
                tasks.start_soon(one, item)
        await self._drop_tags(orphans, [id for id, bill in bills.items() if bill.error is None])
        return [bills[item.droplet_id] for item in items]

    async def _destroy_item(self, item: SweepItem, orphans: dict[str, str]) -> Bill:
        desk = self._desk
        bill = Bill(
            host=item.name,
            droplet_id=item.droplet_id,
            seconds=item.age_s,
            usd_per_hour=item.usd_per_hour,
            usd=item.usd_so_far,
        )
        tags = tuple[str, ...]()
        try:
            droplet = await desk.cloud.get_droplet(item.droplet_id)
            tags = droplet.tags
            refusal = guard.refusal_to_sweep(droplet, item)
            if refusal:
                raise GuardrailError(f"droplet {item.droplet_id} is not destroyed: {refusal}")
            await self.destroy_and_confirm(item.droplet_id)
        except NotFoundError:
            desk.stage(item.name, "gone", "it no longer exists")
        except ChiselError as error:
            return replace(bill, usd=Decimal(0), error=error.message)
        for pool in (await desk.mine()).pools.values():
            for record in pool.values():
                if record.id == item.droplet_id:
                    await desk.forget(record)
        orphans.update(dict.fromkeys(guard.attempt_tags(tags, guard.read_label(tags).attempt), item.name))
        return bill

    async def destroy_and_confirm(self, id: DropletId) -> None:
        """Send the DELETE and wait until the API says 404; raises CloudError after `GONE_DEADLINE_S`."""
        pause = FIRST_POLL_S
        with anyio.move_on_after(GONE_DEADLINE_S):
            try:
                await self._desk.cloud.destroy_droplet(id)
                while True:
                    await self._desk.cloud.get_droplet(id)
                    await anyio.sleep(pause)
                    pause = min(pause * 1.5, SLOWEST_POLL_S)
            except NotFoundError:
                return
        raise CloudError(
            f"droplet {id} still exists {GONE_DEADLINE_S:.0f} s after its destruction was asked for",
            hint="chisel down again; it bills until it is gone",
        )
