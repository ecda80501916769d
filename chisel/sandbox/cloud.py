"""Keep the embedded cloud: its droplets through their lives, keys, tags, actions, and the bill.

Every method may be called from any thread. Droplets are started and stopped by whoever runs the event loop: this
module only asks for it and never waits.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from chisel.sandbox.base import DropletSpec
from chisel.sandbox.catalog import Json, find_image, find_region, find_size, is_gpu, snapshot_image
from chisel.sandbox.clock import Clock, as_text
from chisel.sandbox.refused import Refused, md5_fingerprint, not_found, unprocessable
from chisel.sandbox.standins import DEFAULT_GENERATION, GENERATIONS
from chisel.sandbox.userdata import MAX_BYTES, read_user_data

MAX_NAMES = 10
_NAME = re.compile(r"[a-zA-Z0-9]?[a-z0-9A-Z.\-]*[a-z0-9A-Z]")
_TAG = re.compile(r"[A-Za-z0-9_:\-]{1,255}")
_FIRST_ID = 400_000_000


@dataclass(frozen=True, slots=True)
class Knobs:
    """How this cloud behaves; times in seconds. Each misbehaviour has a name here and none is on by default.

    `active_after_s`: from the create to `active`; `address_after_s`: from there to the public address, which an
    `active` droplet may lack. `list_lag_s`, `get_lag_s`: how long lists, and reads by id, miss a fresh droplet.
    `delete_lag_s`: how long a destroyed droplet stays visible (it bills no longer). `vanishing`: which creates, counted
    from 1, are accepted and come to nothing when they should become active. `capacity`: how many GPU droplets there
    is room for, whatever the sizes say; `sold_out`: `size@region` pairs that are offered and refused. `gpu_quota` and
    `droplet_limit`: what the account may have. `reclaim_after_s`: after which the provider takes a droplet away.
    `banner_s`: how long a first boot answers every command with a banner and status 0 before its sshd restarts.
    `reuses_addresses`: a new droplet gets the address of a destroyed one. Without `has_private_network` droplets have
    public addresses only; with `closes_private_network` nobody can reach the private ones.
    `minimum_billed_s`: what the shortest life costs. `per_minute`, `per_hour`, `key_lists_per_minute`: the limits of
    requests. `page_size`: the longest page. `clock_behind_s`: by how much the time that its answers tell (`Date`,
    a droplet's birth) is behind: what a laptop sees whose own clock is ahead.
    `rocm`: what new droplets play, 7.2, 6.4 or 5.7 (`chisel.sandbox.standins`): it decides which profilers they have.
    """

    active_after_s: float = 0.15
    address_after_s: float = 0.1
    list_lag_s: float = 0.0
    get_lag_s: float = 0.0
    delete_lag_s: float = 0.0
    vanishing: tuple[int, ...] = ()
    capacity: int | None = None
    sold_out: tuple[str, ...] = ()
    gpu_quota: int | None = None
    droplet_limit: int = 100
    account_status: str = "active"
    reclaim_after_s: float | None = None
    banner_s: float = 0.0
    reuses_addresses: bool = False
    has_private_network: bool = True
    closes_private_network: bool = False
    minimum_billed_s: float = 60.0
    per_minute: int = 250
    per_hour: int = 5000
    key_lists_per_minute: int = 10
    page_size: int = 200
    clock_behind_s: float = 0.0
    rocm: str = DEFAULT_GENERATION

    def changed(self, wanted: Json) -> Knobs:
        """Return these knobs with some turned; raises ValueError for a name or a value that is none."""
        values: Json = {}
        kinds = {field.name: field.type for field in fields(self)}
        for name, value in wanted.items():
            if name not in kinds:
                raise ValueError(f"`{name}` is no knob: {', '.join(kinds)}")
            values[name] = _knob_value(name, str(kinds[name]), value)
        return replace(self, **values)


def _knob_value(name: str, kind: str, value: object) -> object:
    """Check one knob's value, which came as JSON."""
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        wanted = int if "int" in kind else str
        if all(type(item) is wanted for item in value):
            return tuple(value)
    if kind.startswith("bool") and isinstance(value, bool):
        return value
    if name == "rocm" and str(value) in GENERATIONS:
        return str(value)  # `--knob rocm=6.4` is a number in JSON
    if kind.startswith("str") and isinstance(value, str) and name != "rocm":
        return value
    if kind.startswith("int") and type(value) is int and value >= 0:
        return value
    if kind.startswith("float") and type(value) in (int, float) and 0 <= float(str(value)) < 1e9:
        return float(str(value))
    takes = ", ".join(GENERATIONS) if name == "rocm" else kind
    raise ValueError(f"`{name}` takes {takes}, not {value!r}")


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
    number: int = 0
    user_data: str = ""
    keys: tuple[str, ...] = ()
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
    """Whoever starts and stops droplets: both return at once; `started` is told the port, or None for a failure.

    `copy` makes the disk of an image of a droplet's.
    """

    start: Callable[[DropletSpec, Callable[[int | None], None]], None]
    stop: Callable[[int], None]
    root_of: Callable[[int], Path]
    copy: Callable[[int, int], None] = lambda droplet, image: None


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
    creates: int = 0
    reclaimed: list[int] = field(default_factory=list)
    failed: list[Droplet] = field(default_factory=list)
    images: list[Json] = field(default_factory=list)
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
            for droplet in made:
                droplet.user_data = body.get("user_data") or ""
                droplet.keys = tuple(key.public_key for key in keys)
        for droplet in made:
            if droplet.number not in self.knobs.vanishing:
                self._start(droplet)
        return made, actions

    def _start(self, droplet: Droplet) -> None:
        told = read_user_data(droplet.user_data)
        spec = DropletSpec(
            id=droplet.id,
            name=droplet.name,
            root=self.machines.root_of(droplet.id),
            authorized_keys=droplet.keys,
            host_private_key=told.host_private_key,
            copy_of=self.machines.root_of(droplet.image["id"]) if droplet.image["type"] == "snapshot" else None,
            write_files=told.write_files,
            port=self._free_port() if self.knobs.reuses_addresses else 0,
            banner_s=self.knobs.banner_s,
            rocm=self.knobs.rocm,
        )
        self.machines.start(spec, lambda port: self._started(droplet.id, port))

    def _free_port(self) -> int:
        """Return the address of the droplet that was destroyed last and whose address is free, 0 without one."""
        with self.lock:
            taken = {one.port for one in self.droplets.values()}
            return next((one.port for one in reversed(self.destroyed) if one.port and one.port not in taken), 0)

    def _create_one(self, name: str, region: Json, size: Json, image: Json, tags: Sequence[str]) -> Droplet:
        self.creates += 1
        droplet = Droplet(
            number=self.creates,
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
        size, image = find_size(body.get("size")), find_image(body.get("image"), self.images)
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
        self._check_room(size, region, len(names))
        return size, region, image

    def _check_room(self, size: Json, region: Json, count: int) -> None:
        if self.knobs.account_status == "locked":
            raise Refused(403, "forbidden", "You are not authorized to perform this operation")
        gpus = sum(is_gpu(one.size) for one in self.droplets.values()) + count
        is_over = is_gpu(size) and self.knobs.gpu_quota is not None and gpus > self.knobs.gpu_quota
        if is_over or len(self.droplets) + count > self.knobs.droplet_limit:
            raise unprocessable("creating this/these droplet(s) will exceed your droplet limit")
        is_full = is_gpu(size) and self.knobs.capacity is not None and gpus > self.knobs.capacity
        if is_full or f"{size['slug']}@{region['slug']}" in self.knobs.sold_out:
            raise unprocessable("Size is not available in this region.")

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

    def seen(self, id: int) -> Droplet:
        """Return a droplet as a read by id shows it: a fresh one late, a destroyed one for a while; raises Refused."""
        now = self.clock.now()
        with self.lock:
            if id in self.droplets and now >= self.droplets[id].created_at + self.knobs.get_lag_s:
                return self.droplets[id]
            lingering = next((one for one in self._lingering(now) if one.id == id), None)
        if lingering is None:
            raise not_found()
        return lingering

    def _lingering(self, now: float) -> list[Droplet]:
        lag_s = self.knobs.delete_lag_s
        return [one for one in self.destroyed if one.destroyed_at is not None and now < one.destroyed_at + lag_s]

    def pass_time(self) -> None:
        """Do what was due meanwhile: creates that come to nothing, droplets that the provider takes away."""
        now = self.clock.now()
        with self.lock:
            for droplet in list(self.droplets.values()):
                age_s = now - droplet.created_at
                if droplet.number in self.knobs.vanishing and age_s >= self.knobs.active_after_s:
                    droplet.has_failed = True
                    droplet.destroyed_at = droplet.created_at
                    del self.droplets[droplet.id]
                    self.failed.append(droplet)
                elif self.knobs.reclaim_after_s is not None and age_s >= self.knobs.reclaim_after_s:
                    self.reclaimed.append(droplet.id)
                    self.destroy(droplet.id)

    def list(self, *, tag: str | None = None, name: str | None = None, gpus: bool = False) -> list[Droplet]:
        """Return droplets as a list request would: GPU droplets only when asked for, or by tag."""
        with self.lock:
            now = self.clock.now()
            visible = [one for one in self.droplets.values() if now >= one.created_at + self.knobs.list_lag_s]
            visible += self._lingering(now)
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

    def take_snapshot(self, id: int, name: object) -> Action:
        """Make an image of a droplet's disk; it bills by the month, which the bill here leaves out."""
        if not isinstance(name, str) or not name:
            raise unprocessable("Name can't be blank")
        with self.lock:
            droplet = self.get(id)
            image = snapshot_image(self._next_id(), name, droplet.region, as_text(self.clock.now()))
            self.machines.copy(id, image["id"])
            self.images.append(image)
            return self._act("snapshot", droplet)

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

    def mark(self, tag: str, ids: Sequence[int], *, is_on: bool) -> None:
        """Put a tag on droplets, or take it off; raises Refused (404) for a tag or a droplet that does not exist."""
        with self.lock:
            if tag not in self.tags:
                raise not_found()
            for droplet in [self.get(id) for id in ids]:
                droplet.tags = [one for one in droplet.tags if one != tag] + ([tag] if is_on else [])

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
        if droplet in self.failed:
            return Decimal(0)
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
                "usd_exactly": str(total),
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
