"""Bring droplets up, destroy them, account for every one: no droplet is ever unrecorded.

An intent is on disk before each create request, with a tag that only this attempt carries. After any doubt the cloud
is asked for that tag until the doubt is settled: the droplet is adopted, or it never existed.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

import anyio

from chisel import guard
from chisel.cloud.base import Cloud
from chisel.errors import (
    ChiselError,
    CloudError,
    GuardrailError,
    HostKeyMismatch,
    HostUnreachable,
    NotFoundError,
    OutcomeUnknown,
)
from chisel.events import Billed, DropletStage, Notice, Sink, Stage
from chisel.lifecycle.offer import Wish, choose_offer
from chisel.lifecycle.readiness import Addresses, computes_nonce, probe, summary
from chisel.lifecycle.records import (
    bill_for,
    create_request,
    host_of,
    map_cloud,
    record_of,
    settled,
    with_intents,
    with_record,
    without_intent,
    without_record,
)
from chisel.model import Bill, CreateRequest, Droplet, DropletId, Host, SweepItem
from chisel.ssh.keys import generate_keypair
from chisel.state import CloudState, DropletRecord, Intent, State, StateStore

SETTLE_AFTER_S = 60.0
"""After so long a create request that shows no droplet made none: its own deadline (30 s), and the list's lag."""
UP_DEADLINE_S = 900.0
GONE_DEADLINE_S = 180.0
_FIRST_POLL_S, _SLOWEST_POLL_S = 0.25, 5.0
_FIRST_RETRY_S, _SLOWEST_RETRY_S = 0.2, 3.0
_ROUNDS = 3


class Connector(Protocol):
    """Whoever keeps the connections."""

    async def connect(self, host: Host) -> Any:
        """Return the connection to a host; raises HostUnreachable."""

    def forget(self, host: Host) -> None:
        """Close and drop the connection to a host."""


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
        self._cloud = cloud
        self._store = store
        self._connector = connector
        self._sink = sink
        self._api_url = api_url
        self._public_key = public_key
        self._settle_after_s = settle_after_s

    # -- up

    async def up(self, wish: Wish) -> list[DropletRecord]:
        """Return the pool's ready droplets, at least `wish.count`: reuse what exists, create what is missing.

        Several at once, in one process or many, create no more than one of them would. Raises CloudError when the cloud
        refuses or `UP_DEADLINE_S` passes. Cancelled, it leaves every created droplet, and every request whose answer
        it does not know, recorded in the state, where `down` and the next `up` find it.
        """
        guard.check_pool_name(wish.pool)
        await self.settle(wish.pool)
        records = await self._still_there(wish.pool)
        if len(records) > wish.count:
            self._say(f"pool `{wish.pool}` has {len(records)} droplets, more than the {wish.count} asked for: all kept")
        for _ in range(_ROUNDS):
            if len(records) >= wish.count:
                return await self._make_ready(records)
            await self._create_missing(wish)
            await self.settle(wish.pool)
            records = await self._still_there(wish.pool)
        raise CloudError(
            f"pool `{wish.pool}` has {len(records)} of {wish.count} droplets: others were destroyed meanwhile",
            hint="chisel status",
        )

    async def settle(self, pool: str | None = None) -> None:
        """Find out what became of every create request whose answer is not recorded (of one pool), and record it."""
        intents = self._mine(await self._store.read()).intents.values()
        async with anyio.create_task_group() as tasks:
            for intent in intents:
                if pool is None or intent.pool == pool:
                    tasks.start_soon(self._settle_one, intent)

    async def _settle_one(self, intent: Intent) -> DropletRecord | None:
        """Ask for the attempt's tag until it shows, or until it would have; whoever sent the request may be faster."""
        pause = _FIRST_POLL_S
        while True:
            found = await self._cloud.list_droplets(tag=guard.attempt_tag(intent.attempt))
            if found:
                return await self._adopt(intent, found[0])
            mine = self._mine(await self._store.read())
            if intent.attempt not in mine.intents:
                return None
            if (datetime.now(UTC) - intent.started_at).total_seconds() > self._settle_after_s:
                await self._change(lambda mine: without_intent(mine, intent.attempt))
                return None
            await anyio.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_POLL_S)

    async def _adopt(self, intent: Intent, droplet: Droplet) -> DropletRecord:
        record = record_of(intent, droplet)
        before = self._mine(await self._store.read())
        await self._change(lambda mine: settled(mine, record))
        if intent.attempt in before.intents:
            self._say("found: another `chisel up`, or one that was cut short, had created it", host=droplet.name)
        return record

    async def _still_there(self, pool: str) -> list[DropletRecord]:
        """Return the recorded droplets that the cloud still has; forget those it confirms to be gone.

        A young droplet that the API does not know may just not be visible yet: it is kept.
        """
        records = self._mine(await self._store.read()).pools.get(pool, {}).values()
        listed = {droplet.id for droplet in await self._cloud.list_droplets(tag=guard.TAG)} if records else set()
        kept = []
        for record in records:
            if record.id in listed or self._is_young(record) or await self._exists(record.id):
                kept.append(record)
            else:
                self._stage(record.name, "gone", "it no longer exists")
                await self._forget(record)
        return kept

    async def _exists(self, id: DropletId) -> bool:
        """Ask for one droplet by itself: that a list lacks it proves nothing."""
        try:
            await self._cloud.get_droplet(id)
        except NotFoundError:
            return False
        return True

    def _is_young(self, record: DropletRecord) -> bool:
        return (datetime.now(UTC) - record.created_at).total_seconds() < self._settle_after_s

    async def _create_missing(self, wish: Wish) -> None:
        """Create as many droplets as records and intents lack; the state decides, so that two never do it twice."""
        size, region = choose_offer(await self._cloud.sizes(), wish)
        key = await self._cloud.ensure_ssh_key(_key_name(self._public_key), self._public_key)
        host_keys = {secrets.token_hex(8): generate_keypair("chisel") for _ in range(wish.count)}
        public = {attempt: pair.public_openssh for attempt, pair in host_keys.items()}
        state = await self._store.update(
            lambda state: map_cloud(state, self._api_url, lambda mine: with_intents(mine, wish, size, region, public))
        )
        mine = self._mine(state).intents
        troubles: list[ChiselError] = []

        async def one(intent: Intent) -> None:
            try:
                request = create_request(intent, wish, key.fingerprint, host_keys[intent.attempt], state.owner)
                await self._create(intent, request)
            except ChiselError as error:
                self._stage(intent.name, "failed", error.message)
                troubles.append(error)

        async with anyio.create_task_group() as tasks:
            for attempt in host_keys:
                if attempt in mine:
                    tasks.start_soon(one, mine[attempt])
        if troubles:
            raise troubles[0]

    async def _create(self, intent: Intent, request: CreateRequest) -> None:
        """Send one create request, once, and record its droplet; a cancellation waits for the answer first.

        That wait is bounded by the cloud adapter's deadline. Without a clear answer the intent stays until it is known
        what became of it, here or, when this is cancelled, by the next that settles.
        """
        self._stage(intent.name, "creating", f"{intent.size} in {intent.region}")
        doubt: OutcomeUnknown | None = None
        record: DropletRecord | None = None
        with anyio.CancelScope(shield=True):
            try:
                record = record_of(intent, await self._cloud.create_droplet(request))
            except OutcomeUnknown as unknown:
                doubt = unknown
            except CloudError:
                await self._change(lambda mine: without_intent(mine, intent.attempt))
                raise
            else:
                made = record
                await self._change(lambda mine: settled(mine, made))
        if doubt is not None:
            self._say(f"{doubt.message}; asking what became of it", host=intent.name)
            record = await self._settle_one(intent)
            if record is None:
                raise doubt
        self._stage(intent.name, "booting", "waits for the cloud", record)

    async def _make_ready(self, records: Sequence[DropletRecord]) -> list[DropletRecord]:
        """Wait until every droplet truly answers; the first failure is raised after all were tried."""
        ready: dict[str, DropletRecord] = {}
        troubles: list[ChiselError] = []
        addresses = Addresses(self._cloud, {record.id for record in records if record.address is None})

        async def one(record: DropletRecord) -> None:
            try:
                ready[record.name] = await self._make_one_ready(record, addresses)
            except ChiselError as error:
                self._stage(record.name, "failed", error.message)
                troubles.append(error)

        with anyio.move_on_after(UP_DEADLINE_S) as deadline:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(addresses.poll)
                for record in records:
                    tasks.start_soon(one, record)
        if troubles:
            raise troubles[0]
        if deadline.cancelled_caught:
            late = ", ".join(sorted(record.name for record in records if record.name not in ready))
            raise CloudError(f"not ready after {UP_DEADLINE_S:.0f} s: {late}", hint="chisel status, or chisel down")
        return [ready[record.name] for record in records]

    async def _make_one_ready(self, record: DropletRecord, addresses: Addresses) -> DropletRecord:
        if record.address is None:
            droplet = await addresses.wait(record.id)
            record = replace(record, address=droplet.address, port=droplet.port)
            await self._change(lambda mine: with_record(mine, record))
        self._stage(record.name, "connecting", "waits for the first verified answer", record)
        host = host_of(record)
        facts = await self._probe_until_ready(host)
        was_ready = record.is_ready
        record = replace(record, is_ready=True, facts=facts)
        if not was_ready or record.facts != facts:
            await self._change(lambda mine: with_record(mine, record))
        self._stage(record.name, "reused" if was_ready else "ready", summary(facts), record)
        return record

    async def _probe_until_ready(self, host: Host) -> dict[str, Any]:
        """Ask for a nonce that only a working remote shell can compute, then for the facts, until both come."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                connection = await self._connector.connect(host)
                if await computes_nonce(connection):
                    facts = await probe(connection, host)
                    if facts.get("cloud_init") in {"done", "absent"}:
                        return facts
                    self._stage(host.name, "preparing", f"cloud-init: {facts.get('cloud_init')}")
                else:
                    self._stage(host.name, "preparing", "answers, but does not run commands yet")
            except HostKeyMismatch:
                raise
            except HostUnreachable as error:
                self._stage(host.name, "connecting", error.message)
            await anyio.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_RETRY_S)

    # -- down

    async def down(self, records: Sequence[DropletRecord]) -> list[Bill]:
        """Destroy droplets, confirm that each is gone, forget it, and say what it cost.

        One droplet's failure is the `error` of its bill. Cancelled, it leaves those not confirmed in the state.
        """
        state = await self._store.read()
        bills: dict[DropletId, Bill] = {}

        async def one(record: DropletRecord) -> None:
            bills[record.id] = await self._destroy(record, state.owner)

        async with anyio.create_task_group() as tasks:
            for record in records:
                tasks.start_soon(one, record)
        return [bills[record.id] for record in records]

    async def _destroy(self, record: DropletRecord, owner: str) -> Bill:
        try:
            droplet = await self._found(record)
            refusal = guard.refusal_to_destroy(
                droplet, id=record.id, name=record.name, owner=owner, attempt=record.attempt
            )
            if refusal:
                raise GuardrailError(f"droplet {record.id} is not destroyed: {refusal}", hint="chisel sweep")
            self._stage(record.name, "destroying", "", record)
            await self.destroy_and_confirm(record.id)
        except NotFoundError:
            self._stage(record.name, "gone", "it no longer exists", record)
        except ChiselError as error:
            return self._billed(bill_for(record, error=error.message))
        await self._forget(record)
        return self._billed(bill_for(record))

    async def _found(self, record: DropletRecord) -> Droplet:
        """Return a droplet; raises NotFoundError when it is gone: a young one may not be visible yet."""
        pause = _FIRST_POLL_S
        while True:
            try:
                return await self._cloud.get_droplet(record.id)
            except NotFoundError:
                if not self._is_young(record):
                    raise
            await anyio.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_POLL_S)

    async def destroy_swept(self, items: Sequence[SweepItem]) -> list[Bill]:
        """Destroy what a sweep selected, each re-read first: it must still be ours and carry the judged name."""
        owner = (await self._store.read()).owner
        bills: dict[DropletId, Bill] = {}

        async def one(item: SweepItem) -> None:
            bills[item.droplet_id] = self._billed(await self._destroy_item(item, owner))

        async with anyio.create_task_group() as tasks:
            for item in items:
                tasks.start_soon(one, item)
        return [bills[item.droplet_id] for item in items]

    async def _destroy_item(self, item: SweepItem, owner: str) -> Bill:
        bill = Bill(
            host=item.name,
            droplet_id=item.droplet_id,
            seconds=item.age_s,
            usd_per_hour=item.usd_per_hour,
            usd=item.usd_so_far,
        )
        try:
            droplet = await self._cloud.get_droplet(item.droplet_id)
            attempt = guard.read_label(droplet.tags, droplet.created_at).attempt
            refusal = guard.refusal_to_destroy(
                droplet, id=item.droplet_id, name=item.name, owner=owner, attempt=attempt
            )
            if refusal:
                raise GuardrailError(f"droplet {item.droplet_id} is not destroyed: {refusal}")
            await self.destroy_and_confirm(item.droplet_id)
        except NotFoundError:
            self._stage(item.name, "gone", "it no longer exists")
        except ChiselError as error:
            return replace(bill, usd=Decimal(0), error=error.message)
        for pool in self._mine(await self._store.read()).pools.values():
            for record in pool.values():
                if record.id == item.droplet_id:
                    await self._forget(record)
        return bill

    async def destroy_and_confirm(self, id: DropletId) -> None:
        """Send the DELETE and wait until the API says 404; raises CloudError after `GONE_DEADLINE_S`."""
        pause = _FIRST_POLL_S
        with anyio.move_on_after(GONE_DEADLINE_S):
            try:
                await self._cloud.destroy_droplet(id)
                while True:
                    await self._cloud.get_droplet(id)
                    await anyio.sleep(pause)
                    pause = min(pause * 1.5, _SLOWEST_POLL_S)
            except NotFoundError:
                return
        raise CloudError(
            f"droplet {id} still exists {GONE_DEADLINE_S:.0f} s after its destruction was asked for",
            hint="chisel down again; it bills until it is gone",
        )

    async def _forget(self, record: DropletRecord) -> None:
        if record.address is not None:
            self._connector.forget(host_of(record))
        await self._change(lambda mine: without_record(mine, record))

    # -- small things

    def _mine(self, state: State) -> CloudState:
        return state.clouds.get(self._api_url) or CloudState()

    async def _change(self, change: Callable[[CloudState], CloudState]) -> State:
        return await self._store.update(lambda state: map_cloud(state, self._api_url, change))

    def _say(self, message: str, *, host: str | None = None) -> None:
        self._sink.emit(Notice(message=message, host=host))

    def _stage(self, host: str, stage: Stage, detail: str = "", record: DropletRecord | None = None) -> None:
        price = record.usd_per_hour if record is not None and stage in {"booting", "ready", "reused"} else None
        droplet_id = record.id if record is not None else None
        self._sink.emit(DropletStage(host=host, stage=stage, detail=detail, droplet_id=droplet_id, usd_per_hour=price))

    def _billed(self, bill: Bill) -> Bill:
        self._sink.emit(Billed(host=bill.host, bill=bill))
        return bill


def _key_name(public_key: str) -> str:
    return "chisel-" + hashlib.sha256(public_key.encode()).hexdigest()[:12]
