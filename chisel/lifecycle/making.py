"""Make droplets: an intent on disk before each create, one request, and after any doubt the truth from the cloud."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
from anyio import to_thread

from chisel import guard
from chisel.cloud.selfdestruct import MODULES
from chisel.errors import CapacityError, ChiselError, CloudError, NotFoundError, OutcomeUnknown
from chisel.lifecycle.desk import FIRST_POLL_S, SLOWEST_POLL_S, Desk
from chisel.lifecycle.destroying import Destroyer
from chisel.lifecycle.offer import Wish, no_offer, offers
from chisel.lifecycle.records import (
    create_request,
    map_cloud,
    record_of,
    settled,
    with_intents,
    without_intent,
)
from chisel.model import CreateRequest, Droplet, Size
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.ssh.program import read_modules
from chisel.state import CloudState, DropletRecord, Intent

_GRACE_S = 0.7
_FIRST_HUNT_S, _SLOWEST_HUNT_S = 5.0, 30.0


@dataclass(slots=True)
class HostKeys:
    """The private host keys of droplets that this process creates: they are in memory only, and on the droplet."""

    first: dict[str, KeyPair] = field(default_factory=dict)
    next: dict[str, KeyPair] = field(default_factory=dict)

    def make(self, attempt: str) -> tuple[str, str]:
        """Make both pairs of an attempt; returns their public halves."""
        self.first[attempt], self.next[attempt] = generate_keypair("chisel"), generate_keypair("chisel")
        return self.first[attempt].public_openssh, self.next[attempt].public_openssh


class Maker:
    """Create what a pool lacks, and find out what became of requests without an answer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.keys = HostKeys()

    # -- creating

    async def create_missing(self, wish: Wish, fingerprint: str) -> None:
        """Create as many droplets as records and intents lack; the state decides, so that two never do it twice.

        Where there is no room the next offer is tried, and with `wish.wait_s` all of them again until that time is
        over. Raises CapacityError then, and the first other error of a create.
        """
        ends_at = anyio.current_time() + wish.wait_s
        pause, full = _FIRST_HUNT_S, set[tuple[str, str]]()
        while True:
            sizes = await self._desk.cloud.sizes()
            left = [(size, region) for size, region in offers(sizes, wish) if (size.slug, region) not in full]
            if left:
                refused = await self._create_in(wish, fingerprint, *left[0])
                if refused is None:
                    return
                full.add((left[0][0].slug, left[0][1]))
                self._desk.say(f"no room for {left[0][0].slug} in {left[0][1]}" + ("; trying on" if left[1:] else ""))
                continue
            if anyio.current_time() + pause > ends_at:
                raise no_offer(sizes, wish)
            self._desk.say(f"no room for {', '.join(wish.sizes)} anywhere; looking again in {pause:.0f} s")
            await anyio.sleep(pause)
            pause, full = min(pause * 1.5, _SLOWEST_HUNT_S), set()

    async def _create_in(self, wish: Wish, fingerprint: str, size: Size, region: str) -> CapacityError | None:
        """Create all that is missing of one size in one region; returns the refusal when there was no room."""
        desk = self._desk
        public = {attempt: self.keys.make(attempt) for attempt in (secrets.token_hex(8) for _ in range(wish.count))}
        ahead = desk.cloud.ahead

        def change(mine: CloudState) -> CloudState:
            return with_intents(mine, wish, size, region, public, ahead)

        state = await desk.store.update(lambda state: map_cloud(state, desk.api_url, change))
        intents = desk.part_of(state).intents
        program = await to_thread.run_sync(read_modules, MODULES) if wish.is_armed else {}
        troubles: list[ChiselError] = []

        async def one(intent: Intent) -> None:
            try:
                request = create_request(
                    intent, wish, fingerprint, self.keys.first[intent.attempt], state.owner, api_url=desk.api_url,
                    program=program,
                )  # fmt: skip
                await self._create(intent, request)
            except ChiselError as error:
                if not isinstance(error, CapacityError):
                    desk.stage(intent.name, "failed", error.message)
                troubles.append(error)

        async with anyio.create_task_group() as tasks:
            for attempt in public:
                if attempt in intents:
                    tasks.start_soon(one, intents[attempt])
        refused = [error for error in troubles if isinstance(error, CapacityError)]
        others = [error for error in troubles if not isinstance(error, CapacityError)]
        if others:
            raise others[0]
        return refused[0] if refused else None

    async def _create(self, intent: Intent, request: CreateRequest) -> None:
        """Send one create request, once, and record its droplet; a cancellation waits for an answer that comes soon.

        Without a clear answer the intent stays until it is known what became of it, here or, when this is cancelled, by
        the next that settles.
        """
        desk = self._desk
        desk.stage(intent.name, "creating", f"{intent.size} in {intent.region}")
        doubt, record = await self._send(intent, request)
        if doubt is not None:
            desk.say(f"{doubt.message}; asking what became of it", host=intent.name)
            record = await self._settle_one(intent)
            if record is None:
                raise doubt
        desk.stage(intent.name, "booting", "waits for the cloud", record)

    async def _send(self, intent: Intent, request: CreateRequest) -> tuple[OutcomeUnknown | None, DropletRecord | None]:
        """Return the doubt about a create, or its record; a refusal is raised when the intent is gone.

        Cancelled, it goes on for `_GRACE_S` at most; the request may then still reach the cloud: its intent is on disk.
        """
        outcome: list[OutcomeUnknown | DropletRecord | CloudError] = []
        grace, is_over = anyio.CancelScope(shield=True), anyio.Event()

        async def send() -> None:
            with grace:
                try:
                    record = record_of(intent, await self._desk.cloud.create_droplet(request))
                except OutcomeUnknown as unknown:
                    outcome.append(unknown)
                except CloudError as refused:
                    await self._desk.change(lambda mine: without_intent(mine, intent.attempt))
                    outcome.append(refused)
                else:
                    await self._record(record)
                    outcome.append(record)
            is_over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            try:
                await is_over.wait()
            finally:
                grace.deadline = anyio.current_time() + _GRACE_S
        (found,) = outcome
        if isinstance(found, OutcomeUnknown):
            return found, None
        if isinstance(found, CloudError):
            raise found
        return None, found

    # -- settling

    async def settle(self, pool: str | None = None) -> None:
        """Find out what became of every create request whose answer is not recorded (of one pool), and record it."""
        intents = (await self._desk.mine()).intents.values()
        async with anyio.create_task_group() as tasks:
            for intent in intents:
                if pool is None or intent.pool == pool:
                    tasks.start_soon(self._settle_one, intent)

    async def _settle_one(self, intent: Intent) -> DropletRecord | None:
        """Ask for the attempt's tag until it shows, or until it would have; whoever sent the request may be faster."""
        desk, pause = self._desk, FIRST_POLL_S
        while True:
            asked_at = datetime.now(UTC)
            found = await desk.cloud.list_droplets(tag=guard.attempt_tag(intent.attempt, intent.next_host_key))
            if found:
                return await self._adopt(intent, found)
            if intent.attempt not in (await desk.mine()).intents:
                return None
            # By the cloud's clock, which its answer has told: a laptop's may have jumped since.
            if (asked_at + desk.cloud.ahead - intent.started_at).total_seconds() > desk.settle_after_s:
                await desk.change(lambda mine: without_intent(mine, intent.attempt))
                return None
            await anyio.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_POLL_S)

    async def _adopt(self, intent: Intent, found: Sequence[Droplet]) -> DropletRecord:
        desk, record = self._desk, record_of(intent, found[0])
        is_news = intent.attempt in (await desk.mine()).intents
        await self._record(record)
        if is_news:
            desk.say("found: another `chisel up`, or one that was cut short, had created it", host=record.name)
        return record

    async def _record(self, record: DropletRecord) -> None:
        """Put a droplet on record in the place of its intent; one that finds its place taken is destroyed.

        That happens when others settled the intent, and filled the name anew, before a slow process came to it.
        """
        desk = self._desk
        state = await desk.change(lambda mine: settled(mine, record))
        holder = desk.part_of(state).pools[record.pool][record.name]
        if holder.id == record.id:
            return
        destroyer = Destroyer(desk)
        try:
            await destroyer.found(record)
            desk.say(f"droplet {record.id} is one too many of that name: it is destroyed", host=record.name)
            await destroyer.destroy_and_confirm(record.id)
        except NotFoundError:
            return
