"""Keep the embedded cloud: its droplets through their lives, keys, tags, actions, and the bill.

Every method may be called from any thread. Droplets are started and stopped by whoever runs the event loop: this
module only asks for it and never waits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from chisel.sandbox.base import DropletSpec
from chisel.sandbox.catalog import Json, find_image, find_region, find_size, is_gpu
from chisel.sandbox.clock import Clock
from chisel.sandbox.userdata import MAX_BYTES, read_user_data

MAX_NAMES = 10
_NAME = re.compile(r"[a-zA-Z0-9]?[a-z0-9A-Z.\-]*[a-z0-9A-Z]")
_TAG = re.compile(r"[A-Za-z0-9_:\-]{1,255}")
_FIRST_ID = 400_000_000


@dataclass(frozen=True, slots=True)
class Knobs:
    """How this cloud behaves; times in seconds. Each misbehaviour has a name here and none is on by default.

    `active_after_s`: from the create to `active`; `address_after_s`: from there to the public address, which an
    `active` droplet may lack. `list_lag_s`: how long lists miss a fresh droplet. `minimum_billed_s`: what the shortest
    life costs.
    """

    active_after_s: float = 0.15
    address_after_s: float = 0.1
    list_lag_s: float = 0.0
    minimum_billed_s: float = 60.0
    droplet_limit: int = 100


class Refused(Exception):
    """A request that the API answers with an error: `status` is HTTP's, `id` the API's word for it."""

    def __init__(self, status: int, id: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.id = id


def unprocessable(message: str) -> Refused:
    """Return a 422."""
    return Refused(422, "unprocessable_entity", message)


def not_found() -> Refused:
    """Return a 404."""
    return Refused(404, "not_found", "The resource you requested could not be found.")


@dataclass(slots=True)
class Droplet:
    """One droplet's life; times are the cloud's own, in seconds since the epoch."""

    id: int
    name: str
    region: str
    size: Json
    image: Json
    tags: list[str]
    created_at: float
    vpc_uuid: str
    is_off: bool = False
    destroyed_at: float | None = None
    port: int | None = None
    has_failed: bool = False

    def hourly(self) -> Decimal:
        """Return the price in dollars an hour."""
        return Decimal(str(self.size["price_hourly"]))


@dataclass(slots=True)
class Action:
    """Something that was asked of a droplet."""

    id: int
    kind: str
    droplet_id: int
    region: str
    started_at: float


@dataclass(slots=True)
class Key:
    """A public key of the account."""

    id: int
    name: str
    public_key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Machines:
    """Whoever starts and stops droplets: both return at once; `started` is told the port, or None for a failure."""

    start: Callable[[DropletSpec, Callable[[int | None], None]], None]
    stop: Callable[[int], None]
    root_of: Callable[[int], Path]


@dataclass(slots=True)
class Cloud:
    """One account's cloud."""

    machines: Machines
    clock: Clock = field(default_factory=Clock)
    knobs: Knobs = field(default_factory=Knobs)
    lock: threading.RLock = field(default_factory=threading.RLock)
    droplets: dict[int, Droplet] = field(default_factory=dict)
    destroyed: list[Droplet] = field(default_factory=list)
    actions: dict[int, Action] = field(default_factory=dict)
    keys: dict[int, Key] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    _last_id: int = _FIRST_ID

    # -- droplets

    def create(self, body: Json) -> tuple[list[Droplet], list[Action]]:
        """Create one droplet (`name`) or several (`names`); raises Refused before anything exists."""
        names = _names(body)
        with self.lock:
            size, region, image = self._check_create(body, names)
            keys = [self._key_for(wanted) for wanted in _listed(body, "ssh_keys")]
            tags = self._check_tags(body.get("tags"))
            made = [self._create_one(name, region, size, image, tags) for name in names]
            actions = [self._act("create", droplet) for droplet in made]
        told = read_user_data(body.get("user_data"))
        for droplet in made:
            spec = DropletSpec(
                id=droplet.id,
                name=droplet.name,
                root=self.machines.root_of(droplet.id),
                authorized_keys=tuple(key.public_key for key in keys),
                host_private_key=told.host_private_key,
                write_files=told.write_files,
            )
            self.machines.start(spec, lambda port, id=droplet.id: self._started(id, port))  # type: ignore[misc]
        return made, actions

    def _create_one(self, name: str, region: Json, size: Json, image: Json, tags: Sequence[str]) -> Droplet:
        droplet = Droplet(
            id=self._next_id(),
            name=name,
            region=region["slug"],
            size=size,
            image=image,
            tags=list(tags),
            created_at=self.clock.now(),
            vpc_uuid=f"00000000-0000-4000-8000-{int.from_bytes(region['slug'].encode(), 'big'):012x}"[:36],
        )
        self.droplets[droplet.id] = droplet
        self.tags.update(tags)
        return droplet

    def _check_create(self, body: Json, names: Sequence[str]) -> tuple[Json, Json, Json]:
        size, image = find_size(body.get("size")), find_image(body.get("image"))
        if size is None:
            raise unprocessable("You specified an invalid size for Droplet creation.")
        if image is None:
            raise unprocessable("You specified an invalid image for Droplet creation.")
        wanted = body.get("region") or next(iter(size["regions"]), None)
        region = find_region(wanted)
        if region is None and wanted is not None:
            raise unprocessable("You specified an invalid region for Droplet creation.")
        if region is None or region["slug"] not in size["regions"]:
            raise unprocessable("Size is not available in this region.")
        user_data = body.get("user_data")
        if user_data is not None and (not isinstance(user_data, str) or len(user_data.encode()) > MAX_BYTES):
            raise unprocessable("User data must be a string of at most 64 KiB.")
        if len(self.droplets) + len(names) > self.knobs.droplet_limit:
            raise unprocessable("creating this/these droplet(s) will exceed your droplet limit")
        return size, region, image

    def _check_tags(self, tags: object) -> list[str]:
        if tags is None:
            return []
        if not isinstance(tags, list) or not all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags):
            raise unprocessable("Tags may contain letters, numbers, colons, dashes, and underscores.")
        return list(dict.fromkeys(tags))

    def _started(self, id: int, port: int | None) -> None:
        with self.lock:
            droplet = self.droplets.get(id)
            if droplet is not None:
                droplet.port, droplet.has_failed = port, port is None

    def status_of(self, droplet: Droplet) -> str:
        """Return the droplet's status now."""
        if droplet.is_off:
            return "off"
        is_young = self.clock.now() < droplet.created_at + self.knobs.active_after_s
        return "new" if is_young or droplet.has_failed else "active"

    def port_of(self, droplet: Droplet) -> int | None:
        """Return the port of its SSH server once the droplet has an address."""
        since = droplet.created_at + self.knobs.active_after_s + self.knobs.address_after_s
        return droplet.port if self.clock.now() >= since else None

    def get(self, id: int) -> Droplet:
        """Return a droplet; raises Refused (404)."""
        with self.lock:
            found = self.droplets.get(id)
        if found is None:
            raise not_found()
        return found

    def list(self, *, tag: str | None = None, name: str | None = None, gpus: bool = False) -> list[Droplet]:
        """Return droplets as a list request would: GPU droplets only when asked for, or by tag."""
        with self.lock:
            visible = [
                droplet
                for droplet in self.droplets.values()
                if self.clock.now() >= droplet.created_at + self.knobs.list_lag_s
            ]
        if tag is not None:
            return [droplet for droplet in visible if tag in droplet.tags]
        chosen = [droplet for droplet in visible if is_gpu(droplet.size) == gpus]
        return [droplet for droplet in chosen if name is None or droplet.name.lower() == name.lower()]

    def destroy(self, id: int) -> None:
        """Destroy a droplet: it bills until now and is gone; raises Refused (404)."""
        with self.lock:
            droplet = self.get(id)
            del self.droplets[id]
            droplet.destroyed_at = self.clock.now()
            self.destroyed.append(droplet)
        self.machines.stop(id)

    def destroy_tagged(self, tag: str) -> None:
        """Destroy every droplet with a tag; raises Refused (404) for a tag that does not exist."""
        if tag not in self.tags:
            raise not_found()
        for droplet in self.list(tag=tag):
            self.destroy(droplet.id)

    def power(self, id: int, kind: str) -> Action:
        """Switch a droplet off or on; off, it bills in full all the same."""
        with self.lock:
            droplet = self.get(id)
            if kind not in {"power_off", "power_on", "shutdown", "reboot"}:
                raise unprocessable(f"the sandbox does not know the action `{kind[:40]}`")
            if kind != "reboot":
                droplet.is_off = kind != "power_on"
            return self._act(kind, droplet)

    # -- keys

    def add_key(self, name: object, public_key: object) -> Key:
        """Register a public key; raises Refused for one that is none, or is there already."""
        if not isinstance(name, str) or not isinstance(public_key, str):
            raise unprocessable("Name and public key are required.")
        fingerprint = md5_fingerprint(public_key)
        with self.lock:
            if any(key.fingerprint == fingerprint for key in self.keys.values()):
                raise unprocessable("SSH Key is already in use on your account")
            key = Key(self._next_id(), name, public_key, fingerprint)
            self.keys[key.id] = key
            return key

    def key(self, wanted: str) -> Key:
        """Return a key by id or fingerprint; raises Refused (404)."""
        found = self._find_key(wanted)
        if found is None:
            raise not_found()
        return found

    def _key_for(self, wanted: object) -> Key:
        found = self._find_key(wanted)
        if found is None:
            raise unprocessable(f"{wanted} are invalid key identifiers for Droplet creation.")
        return found

    def _find_key(self, wanted: object) -> Key | None:
        with self.lock:
            return next((key for key in self.keys.values() if str(wanted) in (str(key.id), key.fingerprint)), None)

    # -- tags, actions, money

    def add_tag(self, name: object) -> str:
        """Create a tag; one that exists is the same tag."""
        (tag,) = self._check_tags([name])
        self.tags.add(tag)
        return tag

    def delete_tag(self, name: str) -> None:
        """Delete a tag and take it off every droplet; raises Refused (404)."""
        with self.lock:
            if name not in self.tags:
                raise not_found()
            self.tags.discard(name)
            for droplet in self.droplets.values():
                droplet.tags = [tag for tag in droplet.tags if tag != name]

    def action(self, id: int) -> Action:
        """Return an action; raises Refused (404)."""
        found = self.actions.get(id)
        if found is None:
            raise not_found()
        return found

    def cost_of(self, droplet: Droplet) -> Decimal:
        """Return what a droplet has cost, exactly, in dollars: by the second, with a minimum."""
        until = droplet.destroyed_at if droplet.destroyed_at is not None else self.clock.now()
        seconds = max(self.knobs.minimum_billed_s, until - droplet.created_at)
        return droplet.hourly() * Decimal(repr(seconds)) / 3600

    def bill(self) -> dict[str, Any]:
        """Return what everything has cost so far, in dollars and cents as text."""
        with self.lock:
            every = [*self.destroyed, *self.droplets.values()]
            total = sum((self.cost_of(droplet) for droplet in every), Decimal(0))
            return {
                "droplets_total": len(every),
                "droplets_alive": len(self.droplets),
                "usd": str(total.quantize(Decimal("0.01"), ROUND_HALF_UP)),
            }

    def _act(self, kind: str, droplet: Droplet) -> Action:
        action = Action(self._next_id(), kind, droplet.id, droplet.region, self.clock.now())
        self.actions[action.id] = action
        return action

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id


def _listed(body: Json, field: str) -> list[Any]:
    values = body.get(field)
    if not isinstance(values, list | None):
        raise unprocessable(f"{field} must be a list.")
    return values or []


def _names(body: Json) -> list[str]:
    names = body["names"] if "names" in body else [body.get("name")]
    if not isinstance(names, list) or not 0 < len(names) <= MAX_NAMES:
        raise unprocessable(f"You can create up to {MAX_NAMES} droplets at a time.")
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 255:
            raise unprocessable("Name Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)")
    return names


def md5_fingerprint(public_key: str) -> str:
    """Return DigitalOcean's fingerprint of a public key; raises Refused for a text that is none."""
    try:
        algorithm, blob = public_key.split()[:2]
        data = base64.b64decode(blob, validate=True)
    except (ValueError, binascii.Error):
        raise unprocessable("Key invalid, key should be of the format `ssh-rsa AAAA... user@host`") from None
    if algorithm.encode() not in data[: 4 + len(algorithm)]:
        raise unprocessable("Key invalid, key should be of the format `ssh-rsa AAAA... user@host`")
    return hashlib.md5(data, usedforsecurity=False).digest().hex(":")
