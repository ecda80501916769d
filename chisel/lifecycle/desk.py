"""Hold what every part of the lifecycle works with: the cloud, the state of one account, connections, the sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from chisel.cloud.base import Cloud, exists
from chisel.events import Billed, DropletStage, Level, Notice, Sink, Stage
from chisel.lifecycle.records import map_cloud, with_changes, without_record
from chisel.model import Bill, DropletId, Host
from chisel.state import CloudState, DropletRecord, State, StateStore, host_of

FIRST_POLL_S, SLOWEST_POLL_S = 0.25, 5.0


class Connector(Protocol):
    """Whoever keeps the connections."""

    async def connect(self, host: Host) -> Any:
        """Return the connection to a host; raises HostUnreachable."""

    def forget(self, host: Host) -> None:
        """Close and drop the connection to a host."""


@dataclass(frozen=True, slots=True)
class Desk:
    """One account's (`api_url`) tools; `settle_after_s` is the age from which the API's 404 about a droplet is true."""

    cloud: Cloud
    store: StateStore
    connector: Connector
    sink: Sink
    api_url: str
    settle_after_s: float

    async def mine(self) -> CloudState:
        """Return this account's part of the state."""
        return (await self.store.read()).clouds.get(self.api_url) or CloudState()

    async def change(self, change: Callable[[CloudState], CloudState]) -> State:
        """Change this account's part of the state; `change` must be pure."""
        return await self.store.update(lambda state: map_cloud(state, self.api_url, change))

    async def revise(self, record: DropletRecord, **changes: Any) -> DropletRecord:
        """Change some fields of a droplet's record and return the record as it is then.

        What others changed meanwhile stays; a record that others dropped stays dropped.
        """
        state = await self.change(lambda mine: with_changes(mine, record, changes))
        known = self.part_of(state).pools.get(record.pool, {}).get(record.name)
        return known if known is not None and known.id == record.id else replace(record, **changes)

    async def latest(self, record: DropletRecord) -> DropletRecord:
        """Return a droplet's record as it is in the state now; the given one when it is no longer there."""
        known = (await self.mine()).pools.get(record.pool, {}).get(record.name)
        return known if known is not None and known.id == record.id else record

    def part_of(self, state: State) -> CloudState:
        """Return this account's part of a state."""
        return state.clouds.get(self.api_url) or CloudState()

    async def forget(self, record: DropletRecord) -> None:
        """Drop a droplet that is gone from the state, and the connection to it."""
        if record.address is not None:
            self.connector.forget(host_of(record))
        await self.change(lambda mine: without_record(mine, record))

    def now(self) -> datetime:
        """Return the time by the cloud's clock, where it has said it: a laptop's may be days off.

        What ends droplets goes by it.
        """
        return datetime.now(UTC) + self.cloud.ahead

    def is_young(self, record: DropletRecord) -> bool:
        """Say whether the API may not know the droplet yet (its reads lag behind a create)."""
        return (self.now() - record.created_at).total_seconds() < self.settle_after_s

    async def exists(self, id: DropletId) -> bool:
        """Ask for one droplet by itself: that a list lacks it proves nothing."""
        return await exists(self.cloud, id)

    def say(self, message: str, *, host: str | None = None, level: Level = "info", hint: str | None = None) -> None:
        """Tell the user something."""
        self.sink.emit(Notice(message=message, host=host, level=level, hint=hint))

    def stage(self, host: str, stage: Stage, detail: str = "", record: DropletRecord | None = None) -> None:
        """Tell how far a droplet is, with its price where it starts to matter."""
        price: Decimal | None = None
        if record is not None and stage in {"booting", "ready", "reused"}:
            price = record.usd_per_hour
        droplet_id = record.id if record is not None else None
        self.sink.emit(DropletStage(host=host, stage=stage, detail=detail, droplet_id=droplet_id, usd_per_hour=price))

    def billed(self, bill: Bill) -> Bill:
        """Tell what a destroyed droplet cost."""
        self.sink.emit(Billed(host=bill.host, bill=bill))
        return bill
