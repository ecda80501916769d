"""Make droplets ready: wait for an address, verify, replace the first boot's host key, see that everything is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from chisel import guard
from chisel.errors import ChiselError, CloudError, HostKeyMismatch, HostUnreachable, NotFoundError
from chisel.lifecycle.desk import Desk
from chisel.lifecycle.making import HostKeys
from chisel.lifecycle.readiness import (
    Addresses,
    computes_nonce,
    mend,
    missing_parts,
    parts_to_install,
    probe,
    summary,
)
from chisel.lifecycle.rotation import rotate
from chisel.model import Droplet, Host
from chisel.state import DropletRecord, host_of

UP_DEADLINE_S = 900.0
_FIRST_RETRY_S, _SLOWEST_RETRY_S = 0.2, 3.0
_ASK_CLOUD_EVERY = 5


@dataclass(slots=True)
class _Outcome:
    """What became of a pool's droplets, by name."""

    ready: dict[str, DropletRecord] = field(default_factory=dict)
    vanished: set[str] = field(default_factory=set)
    troubles: list[ChiselError] = field(default_factory=list)


class Readier:
    """Wait until droplets truly answer."""

    def __init__(self, desk: Desk, keys: HostKeys) -> None:
        self._desk = desk
        self._keys = keys

    async def make_ready(self, records: Sequence[DropletRecord]) -> list[DropletRecord]:
        """Return the ready droplets; those that vanished are forgotten and missing from the result.

        Raises the first failure after all were tried, and CloudError after `UP_DEADLINE_S`.
        """
        outcome = _Outcome()
        waiting = {record.id for record in records if record.address is None}
        addresses = Addresses(self._desk.cloud, waiting, settle_after_s=self._desk.settle_after_s)
        with anyio.move_on_after(UP_DEADLINE_S) as deadline:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(addresses.poll)
                for record in records:
                    tasks.start_soon(self._try_one, record, addresses, outcome)
        if outcome.troubles:
            raise outcome.troubles[0]
        if deadline.cancelled_caught:
            settled = outcome.ready.keys() | outcome.vanished
            late = ", ".join(sorted(record.name for record in records if record.name not in settled))
            raise CloudError(f"not ready after {UP_DEADLINE_S:.0f} s: {late}", hint="chisel status, or chisel down")
        return [outcome.ready[record.name] for record in records if record.name in outcome.ready]

    async def _try_one(self, record: DropletRecord, addresses: Addresses, outcome: _Outcome) -> None:
        try:
            outcome.ready[record.name] = await self._one(record, addresses)
        except NotFoundError:
            self._desk.stage(record.name, "gone", "it vanished before it was ready")
            await self._desk.forget(record)
            outcome.vanished.add(record.name)
        except ChiselError as error:
            self._desk.stage(record.name, "failed", error.message)
            outcome.troubles.append(error)

    async def _one(self, record: DropletRecord, addresses: Addresses) -> DropletRecord:
        desk = self._desk
        if record.address is None:
            droplet = await addresses.wait(record.id)
            record = await desk.revise(record, **_addresses(droplet))
        desk.stage(record.name, "connecting", "waits for the first verified answer", record)
        try:
            facts = await self._probe_until_ready(record)
        except HostKeyMismatch as mismatch:
            record = await self._where_it_is_now(record, mismatch)
            facts = await self._probe_until_ready(record)
        was_ready = record.is_ready
        record = await rotate(desk, record, self._keys.next.get(record.attempt))
        if not was_ready:
            facts = await self._examined(record)
        if not was_ready or record.facts != facts:
            record = await desk.revise(record, is_ready=True, facts=facts)
        self._say_what_is_wrong(record.name, facts)
        desk.stage(record.name, "reused" if was_ready else "ready", summary(facts), record)
        return record

    async def _examined(self, record: DropletRecord) -> dict[str, Any]:
        """Let the droplet compile a kernel, and apt mend what keeps it from that; returns the facts as they are then.

        Raises HostUnreachable.
        """
        connection = await self._desk.connector.connect(host_of(record))
        facts = await probe(connection, host_of(record), compiles=True)
        parts = parts_to_install(facts)
        if not parts or not facts.get("has_apt"):
            return facts
        self._desk.stage(record.name, "preparing", f"apt installs what is missing: {', '.join(parts)}")
        done = await mend(connection, parts)
        if done.get("error"):
            self._desk.say(f"apt could not mend it: {done['error']}", host=record.name, level="warning")
        return await probe(connection, host_of(record), compiles=True)

    def _say_what_is_wrong(self, name: str, facts: Mapping[str, Any]) -> None:
        desk = self._desk
        if facts.get("cloud_init") == "error":
            desk.say("cloud-init ended with errors there", host=name, level="warning", hint="cloud-init status --long")
        for part in missing_parts(facts):
            desk.say(f"{part} was not found there", host=name, level="warning")
        if facts.get("compile_error") and facts.get("hipcc"):
            desk.say(f"hipcc says: {facts['compile_error']}", host=name, level="warning")
        for holder in facts.get("gpu_held_by") or []:
            container = str(holder).rpartition(" in container ")[2] if " in container " in str(holder) else ""
            hint = f"chisel run --on {name} docker stop {container}" if container else None
            desk.say(f"the GPU is held by {holder}", host=name, level="warning", hint=hint)

    async def _where_it_is_now(self, record: DropletRecord, mismatch: HostKeyMismatch) -> DropletRecord:
        """Find out why another host key answers at a droplet's address; raises the mismatch when nothing explains it.

        Another chisel may just have replaced the key, or died over it. An address is used again soon: the droplet may
        be gone (NotFoundError), or have another address by now.
        """
        known = await self._desk.latest(record)
        if (known.host_key, known.next_host_key) != (record.host_key, record.next_host_key):
            return known
        droplet = await self._desk.cloud.get_droplet(record.id)
        tagged = [key for key in guard.read_label(droplet.tags).host_keys if key not in _keys_of(record)]
        if tagged and not record.is_rotated:  # who replaced the key died, and another had begun to replace it again
            return await self._desk.revise(record, host_key=tagged[0])
        if droplet.address is None or (droplet.address, droplet.port) == (record.address, record.port):
            raise mismatch
        self._desk.connector.forget(host_of(record))
        self._desk.say(f"its address is {droplet.address} now", host=record.name)
        return await self._desk.revise(record, **_addresses(droplet))

    async def _probe_until_ready(self, record: DropletRecord) -> dict[str, Any]:
        """Ask for a nonce that only a working remote shell can compute, then for the facts, until both come.

        Raises NotFoundError when the droplet is gone meanwhile.
        """
        host, pause, attempts = host_of(record), _FIRST_RETRY_S, 0
        while True:
            try:
                facts = await self._facts(host)
            except HostKeyMismatch:
                raise
            except HostUnreachable as error:
                facts = None
                self._desk.stage(host.name, "connecting", error.message)
            if facts is not None:
                return facts
            attempts += 1
            if attempts % _ASK_CLOUD_EVERY == 0 and not self._desk.is_young(record):
                await self._desk.cloud.get_droplet(record.id)
            await anyio.sleep(pause)
            pause = min(pause * 1.5, _SLOWEST_RETRY_S)

    async def _facts(self, host: Host) -> dict[str, Any] | None:
        """Return what the droplet has, None while it does not yet run commands or its first boot is not over."""
        connection = await self._desk.connector.connect(host)
        if not await computes_nonce(connection):
            self._desk.stage(host.name, "preparing", "answers, but does not run commands yet")
            return None
        facts = await probe(connection, host)
        if facts.get("cloud_init") in {"done", "absent", "error"}:
            return facts
        self._desk.stage(host.name, "preparing", f"cloud-init: {facts.get('cloud_init')}")
        return None


def _keys_of(record: DropletRecord) -> set[str]:
    """Return a record's keys without their comments."""
    return {" ".join(key.split()[:2]) for key in (record.host_key, record.next_host_key) if key}


def _addresses(droplet: Droplet) -> dict[str, Any]:
    """Return what a record holds of where a droplet is."""
    return {"address": droplet.address, "port": droplet.port, "private_address": droplet.private_address}
