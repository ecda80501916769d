"""Keep the state's view of droplets and intents: pure changes from one state to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from chisel import guard
from chisel.cloud.cloudinit import user_data
from chisel.cloud.selfdestruct import SelfDestruct
from chisel.lifecycle.offer import Wish
from chisel.model import Bill, CreateRequest, Droplet, Size
from chisel.ssh.keys import KeyPair
from chisel.state import CloudState, DropletRecord, Intent, State


def create_request(
    intent: Intent,
    wish: Wish,
    fingerprint: str,
    host_key: KeyPair,
    owner: str,
    *,
    api_url: str,
    program: Mapping[str, str],
) -> CreateRequest:
    """Build the one request of an intent.

    User data carries the host key's private half to the droplet, and, where the wish has one, the token that can only
    delete droplets, with the watchdog's `program`.
    """
    return CreateRequest(
        name=intent.name,
        region=intent.region,
        size=intent.size,
        image=intent.image,
        ssh_keys=(fingerprint,),
        tags=guard.make_tags(
            owner=owner,
            pool=intent.pool,
            project=wish.project,
            attempt=intent.attempt,
            host_key=intent.next_host_key,
            until=intent.until,
            idle_s=intent.idle_s,
            is_armed=intent.is_armed,
        ),
        user_data=user_data(
            host_private_key=host_key.private_openssh,
            host_public_key=host_key.public_openssh,
            hostname=intent.name,
            self_destruct=_self_destruct(intent, wish, api_url, program),
        ),
    )


def _self_destruct(intent: Intent, wish: Wish, api_url: str, program: Mapping[str, str]) -> SelfDestruct | None:
    if not intent.is_armed or wish.self_destruct_token is None:
        return None
    ttl = intent.until - intent.started_at if intent.until is not None else timedelta(0)
    return SelfDestruct(
        token=wish.self_destruct_token,
        api_url=api_url,
        idle_s=intent.idle_s,
        ttl_s=math.ceil(ttl.total_seconds()),
        attempt=intent.attempt,
        program=program,
        ends_busy=intent.ends_busy,
    )


def with_intents(
    mine: CloudState, wish: Wish, size: Size, region: str, keys: Mapping[str, tuple[str, str]],
    ahead: timedelta = timedelta(0),
) -> CloudState:  # fmt: skip
    """Write an intent down, with a free name, for each droplet the wish still lacks.

    `keys` are public host keys by attempt: the first boot's, and the one that replaces it. `ahead` is how far the
    cloud's clock is ahead of this machine's: all instants are the cloud's.

    What is recorded or being created counts, whoever creates it.
    """
    taken = [*mine.pools.get(wish.pool, {}), *(one.name for one in mine.intents.values() if one.pool == wish.pool)]
    missing = max(0, wish.count - len(taken))
    intents = dict(mine.intents)
    now = datetime.now(UTC) + ahead
    for name, (attempt, (host_key, next_host_key)) in zip(
        guard.free_names(wish.pool, taken, missing), keys.items(), strict=False
    ):
        intents[attempt] = Intent(
            attempt=attempt,
            pool=wish.pool,
            name=name,
            size=size.slug,
            region=region,
            image=wish.image,
            started_at=now,
            host_key=host_key,
            next_host_key=next_host_key,
            usd_per_hour=size.usd_per_hour,
            until=wish.until(now, size.usd_per_hour),
            idle_s=wish.idle_s,
            is_armed=wish.is_armed,
            ends_busy=wish.ends_busy,
        )
    return replace(mine, intents=intents)


def record_of(intent: Intent, droplet: Droplet) -> DropletRecord:
    """Make the record of a droplet that an intent's request created."""
    return DropletRecord(
        id=droplet.id,
        name=droplet.name,
        pool=intent.pool,
        address=droplet.address,
        port=droplet.port,
        private_address=droplet.private_address,
        host_key=intent.host_key,
        region=intent.region,
        size=intent.size,
        image=intent.image,
        usd_per_hour=droplet.usd_per_hour or intent.usd_per_hour,
        created_at=droplet.created_at,
        attempt=intent.attempt,
        next_host_key=intent.next_host_key,
        until=intent.until,
        idle_s=intent.idle_s,
        is_armed=intent.is_armed,
        ends_busy=intent.ends_busy,
    )


def record_from_tags(droplet: Droplet) -> DropletRecord:
    """Make the record of a droplet of ours that the state does not know, from its tags.

    Its first boot's host key is lost: only a droplet that shows the key which its tag names can be verified.
    """
    label = guard.read_label(droplet.tags)
    keys = label.host_keys or ("",)
    return DropletRecord(
        id=droplet.id,
        name=droplet.name,
        pool=label.pool,
        address=droplet.address,
        port=droplet.port,
        private_address=droplet.private_address,
        host_key=keys[0],
        region=droplet.region,
        size=droplet.size,
        image=droplet.image,
        usd_per_hour=droplet.usd_per_hour,
        created_at=droplet.created_at,
        attempt=label.attempt,
        next_host_key=keys[1] if len(keys) > 1 else None,
        is_rotated=bool(label.host_keys),
        until=label.until,
        kept_until=label.kept_until,
        idle_s=label.idle_s,
        is_armed=label.is_armed,
    )


def bill_for(record: DropletRecord, now: datetime, *, error: str | None = None) -> Bill:
    """Work out what a droplet cost until `now`; an error leaves the cost at zero and says why."""
    seconds = (now - record.created_at).total_seconds()
    usd = guard.cost(record.usd_per_hour, seconds) if error is None else Decimal(0)
    return Bill(
        host=record.name, droplet_id=record.id, seconds=seconds, usd_per_hour=record.usd_per_hour, usd=usd, error=error
    )


def map_cloud(state: State, api_url: str, change: Callable[[CloudState], CloudState]) -> State:
    """Change one cloud's part of the state."""
    changed = change(state.clouds.get(api_url) or CloudState())
    return replace(state, clouds={**state.clouds, api_url: changed})


def without_intent(mine: CloudState, attempt: str) -> CloudState:
    """Drop an intent that is settled."""
    return replace(mine, intents={key: value for key, value in mine.intents.items() if key != attempt})


def with_record(mine: CloudState, record: DropletRecord) -> CloudState:
    """Put a droplet into its pool."""
    pool = {**mine.pools.get(record.pool, {}), record.name: record}
    return replace(mine, pools={**mine.pools, record.pool: pool})


def with_changes(mine: CloudState, record: DropletRecord, changes: Mapping[str, Any]) -> CloudState:
    """Change fields of a droplet's record, if it is still there."""
    known = mine.pools.get(record.pool, {}).get(record.name)
    return with_record(mine, replace(known, **changes)) if known is not None and known.id == record.id else mine


def settled(mine: CloudState, record: DropletRecord) -> CloudState:
    """Replace an intent by its droplet's record; a record that is there already, perhaps ready, stays.

    So does another droplet's under the same name: whoever settled this one first may have destroyed it since.
    """
    mine = without_intent(mine, record.attempt)
    known = mine.pools.get(record.pool, {}).get(record.name)
    return mine if known is not None else with_record(mine, record)


def without_record(mine: CloudState, record: DropletRecord) -> CloudState:
    """Drop a droplet, and its pool with the last one."""
    pool = {name: one for name, one in mine.pools.get(record.pool, {}).items() if one.id != record.id}
    pools = {**mine.pools, record.pool: pool}
    return replace(mine, pools={name: droplets for name, droplets in pools.items() if droplets})
