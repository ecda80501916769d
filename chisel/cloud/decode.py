"""Turn the API's JSON into model types, strictly: what does not fit is a CloudError that names the field. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from chisel.errors import CloudError, ConfigError
from chisel.model import Account, Droplet, DropletId, Size, Snapshot, SshKey

T = TypeVar("T")

SSH_PORT = 22
_STATUSES = ("new", "active", "off", "archive")
_PRICE_DIGITS = Decimal("0.000001")


def account(body: Any) -> Account:
    """Decode the answer of `GET /v2/account`; `team` is empty outside a team."""
    entry = _field(body, "account", dict)
    team = _optional(entry, "team", dict, "account")
    return Account(
        email=_field(entry, "email", str, "account"),
        uuid=_field(entry, "uuid", str, "account"),
        team=(_optional(team, "name", str, "account.team") if team else None) or "",
        status=_field(entry, "status", str, "account"),
        status_message=_field(entry, "status_message", str, "account").strip(),
        droplet_limit=_field(entry, "droplet_limit", int, "account"),
    )


def size(entry: Any, path: str) -> Size:
    """Decode one entry of `GET /v2/sizes`; no `gpu_info` means no GPU."""
    gpu = _optional(entry, "gpu_info", dict, path) or {}
    return Size(
        slug=_field(entry, "slug", str, path),
        usd_per_hour=_price(entry, path),
        regions=_texts(entry, "regions", path),
        is_available=_field(entry, "available", bool, path),
        gpu_model=_optional(gpu, "model", str, f"{path}.gpu_info"),
        gpu_count=_optional(gpu, "count", int, f"{path}.gpu_info") or 0,
        vram_gib=_vram(gpu, f"{path}.gpu_info"),
    )


def _vram(gpu: Mapping[str, Any], path: str) -> int:
    vram = _optional(gpu, "vram", dict, path) or {}
    amount = _optional(vram, "amount", int, f"{path}.vram") or 0
    return amount if (_optional(vram, "unit", str, f"{path}.vram") or "gib").lower() == "gib" else 0


def snapshot(entry: Any, path: str) -> Snapshot | None:
    """Decode one entry of `GET /v2/images` that is a droplet's snapshot; None for another kind of image."""
    if _field(entry, "type", str, path) != "snapshot":
        return None
    size = entry.get("size_gigabytes")
    return Snapshot(
        id=_field(entry, "id", int, path),
        name=_field(entry, "name", str, path),
        size_gib=Decimal(str(size)) if isinstance(size, int | float) else Decimal(0),
        created_at=_instant(entry, "created_at", path),
    )


def action(body: Any) -> tuple[int, str]:
    """Decode an action's answer: its id and its status."""
    entry = _field(body, "action", dict)
    status = _one_of(_field(entry, "status", str, "action"), ("in-progress", "completed", "errored"), "action.status")
    return _field(entry, "id", int, "action"), status


def droplet(entry: Any, path: str = "droplet") -> Droplet:
    """Decode one droplet; its image is empty when the token may not see images, its address None when there is none."""
    name = _field(entry, "name", str, path)
    networks = _field(entry, "networks", dict, path)
    address, port = _address(networks, f"{path}.networks")
    return Droplet(
        id=DropletId(_field(entry, "id", int, path)),
        name=name,
        status=_one_of(_field(entry, "status", str, path), _STATUSES, f"{path}.status"),
        created_at=_instant(entry, "created_at", path),
        region=_field(_field(entry, "region", dict, path), "slug", str, f"{path}.region"),
        size=_field(entry, "size_slug", str, path),
        image=_image(_optional(entry, "image", dict, path) or {}, f"{path}.image"),
        usd_per_hour=_price(_field(entry, "size", dict, path), f"{path}.size"),
        tags=_texts(entry, "tags", path),
        address=address,
        port=port,
        private_address=_private_address(networks, f"{path}.networks"),
    )


def _image(image: Mapping[str, Any], path: str) -> str:
    """Return the image's slug, or its number where it has none (snapshots)."""
    number = _optional(image, "id", int, path)
    return _optional(image, "slug", str, path) or ("" if number is None else str(number))


def _address(networks: Mapping[str, Any], path: str) -> tuple[str | None, int]:
    """Return the first public IPv4 address and its SSH port: 22, but for a sandbox's droplets on this machine."""
    for index, entry in enumerate(_optional(networks, "v4", list, path) or []):
        here = f"{path}.v4[{index}]"
        if _field(entry, "type", str, here) == "public":
            address = _ipv4(_field(entry, "ip_address", str, here), here)
            return str(address), _port(entry, here) if address.is_loopback else SSH_PORT
    return None, SSH_PORT


def _private_address(networks: Mapping[str, Any], path: str) -> str | None:
    for index, entry in enumerate(_optional(networks, "v4", list, path) or []):
        here = f"{path}.v4[{index}]"
        if _field(entry, "type", str, here) == "private":
            return str(_ipv4(_field(entry, "ip_address", str, here), here))
    return None


def _ipv4(text: str, path: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise _unfit(f"{path}.ip_address", f"is `{_short(text)}`, which is no IPv4 address") from None


def _port(entry: Mapping[str, Any], path: str) -> int:
    port = _optional(entry, "ssh_port", int, path)
    if port is not None and not 0 < port < 1 << 16:
        raise _unfit(f"{path}.ssh_port", f"is `{port}`")
    return SSH_PORT if port is None else port


def ssh_key(body: Any) -> SshKey:
    """Decode the answer that holds one public key."""
    entry = _field(body, "ssh_key", dict)
    return SshKey(
        id=_field(entry, "id", int, "ssh_key"),
        fingerprint=_field(entry, "fingerprint", str, "ssh_key"),
        name=_field(entry, "name", str, "ssh_key"),
    )


def droplet_of(body: Any) -> Droplet:
    """Decode the answer that holds one droplet."""
    return droplet(_field(body, "droplet", dict))


def listed(body: Any, name: str, item: Callable[[Any, str], T]) -> list[T]:
    """Decode every entry of one page of a listing."""
    return [item(entry, f"{name}[{index}]") for index, entry in enumerate(_field(body, name, list))]


def next_page(body: Any, page: int, seen: int) -> int | None:
    """Return the number of the page after this one, None when all `seen` entries are all there are.

    `links` may be missing, empty, or hold empty `pages` on the last page (the specification's own examples differ);
    `meta.total` is asked as well, so that a listing is never cut short. Raises CloudError for pages that go in circles.
    """
    links = _optional(body, "links", dict) or {}
    url = _optional(_optional(links, "pages", dict, "links") or {}, "next", str, "links.pages")
    if url is not None:
        number = parse_qs(urlsplit(url).query).get("page", [""])[0]
        if not number.isdecimal() or int(number) != page + 1:
            raise _unfit("links.pages.next", f"leads from page {page} to page `{_short(number)}`")
        return page + 1
    total = _optional(_optional(body, "meta", dict) or {}, "total", int, "meta")
    return page + 1 if total is not None and total > seen else None


def fingerprint_md5(public_openssh: str) -> str:
    """Return a public key's fingerprint as DigitalOcean writes it, `aa:bb:..`; raises ConfigError for no such key."""
    words = public_openssh.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error):
        raise ConfigError("the public SSH key is not in OpenSSH's form") from None
    return hashlib.md5(blob, usedforsecurity=False).digest().hex(":")


# -- one field


def _field(entry: Any, key: str, kind: type[T], path: str = "") -> T:
    """Return a field that must be there, of exactly this type (a bool is no int)."""
    value = _optional(entry, key, kind, path)
    if value is None:
        hint = "the token may lack the scope `tag:read`" if key == "tags" else None
        raise _unfit(_join(path, key), "is missing", hint=hint)
    return value


def _optional(entry: Any, key: str, kind: type[T], path: str = "") -> T | None:
    if not isinstance(entry, dict):
        raise _unfit(path or "body", f"is {_kind(entry)} instead of an object")
    value = entry.get(key)
    if value is not None and type(value) is not kind:
        raise _unfit(_join(path, key), f"is {_kind(value)} instead of {kind.__name__}")
    return value


def _texts(entry: Mapping[str, Any], key: str, path: str) -> tuple[str, ...]:
    values = _field(entry, key, list, path)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise _unfit(f"{_join(path, key)}[{index}]", f"is {_kind(value)} instead of str")
    return tuple(values)


def _price(entry: Any, path: str) -> Decimal:
    """Return dollars per hour; DigitalOcean sends 32-bit floats, so digits after the sixth are noise."""
    if not isinstance(entry, dict):
        raise _unfit(path, f"is {_kind(entry)} instead of an object")
    value = entry.get("price_hourly")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unfit(f"{path}.price_hourly", "is missing" if value is None else f"is {_kind(value)}")
    price = Decimal(str(value))
    if not price.is_finite() or price < 0 or price > 1_000_000:
        raise _unfit(f"{path}.price_hourly", f"is `{value}`")
    exponent = price.as_tuple().exponent
    return price.quantize(_PRICE_DIGITS) if isinstance(exponent, int) and exponent < -6 else price


def _instant(entry: Mapping[str, Any], key: str, path: str) -> datetime:
    text = _field(entry, key, str, path)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise _unfit(_join(path, key), f"is `{_short(text)}`, which is no date and time") from None
    if instant.tzinfo is None:
        raise _unfit(_join(path, key), f"is `{_short(text)}`, without a time zone")
    return instant.astimezone(UTC)


def _one_of(text: str, known: tuple[str, ...], path: str) -> str:
    if text not in known:
        raise _unfit(path, f"is `{_short(text)}`, not one of {', '.join(known)}")
    return text


def _unfit(path: str, trouble: str, *, hint: str | None = None) -> CloudError:
    return CloudError(f"the API's answer does not fit: `{path}` {trouble}", hint=hint)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."
