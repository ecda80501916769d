"""Turn the state into JSON and back, strictly. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import orjson

from chisel.errors import StateError
from chisel.model import DropletId, GitFacts
from chisel.state.records import VERSION, CloudState, DropletRecord, Intent, ProjectState, State

_OWNER = re.compile(r"[0-9a-f]{16}")
_ESCAPED = "\0"

T = TypeVar("T")


class NotStateError(ValueError):
    """The bytes are no state of any version."""


def encode(state: State) -> bytes:
    """Return a state as JSON; raises StateError for values that JSON has no form for."""
    tree = {
        "version": VERSION,
        "owner": state.owner,
        "clouds": {url: _cloud_tree(cloud) for url, cloud in state.clouds.items()},
        "projects": {key: _plain(project) for key, project in state.projects.items()},
    }
    try:
        data = orjson.dumps(tree, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        if b'"\\u0000' in data:  # our own mark begins some text: escape it as well
            data = orjson.dumps(_escape(tree), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    except TypeError:
        # A file name that is not UTF-8 reaches us with lone surrogates, which JSON cannot carry.
        try:
            data = orjson.dumps(_escape(tree), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        except TypeError as error:
            raise StateError(f"a value cannot be kept in the state: {error}") from error
    return data + b"\n"


def decode(data: bytes, file: Path) -> State:
    """Return the state that JSON bytes hold; raises StateError when a newer chisel wrote them, else ValueError."""
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotStateError(str(error)) from error
    if not isinstance(tree, dict) or type(version := tree.get("version")) is not int or version < 1:
        raise NotStateError("no version")
    if version > VERSION:
        raise StateError(
            f"`{file}` was written by a newer chisel (format {version}, this one knows {VERSION})",
            hint="upgrade chisel: pip install --upgrade chisel-gpu",
        )
    if b'"\\u0000' in data:
        tree = _unescape(tree)
    return _state(tree)


def _cloud_tree(cloud: CloudState) -> dict[str, Any]:
    return {
        "pools": {
            pool: {name: _plain(record) for name, record in records.items()} for pool, records in cloud.pools.items()
        },
        "intents": {attempt: _plain(intent) for attempt, intent in cloud.intents.items()},
    }


def _plain(value: DropletRecord | Intent | ProjectState) -> dict[str, Any]:
    """Return a record's fields, money and instants as text."""
    return {name: _plain_value(getattr(value, name)) for name in value.__slots__}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _escape(value: Any) -> Any:
    """Mark and spell in hex every text that JSON could not carry, or that looks as if marked."""
    if isinstance(value, str):
        is_plain = not value.startswith(_ESCAPED) and value.encode("utf-8", "ignore").decode() == value
        return value if is_plain else _ESCAPED + value.encode("utf-8", "surrogatepass").hex()
    if isinstance(value, dict):
        return {_escape(key): _escape(inner) for key, inner in value.items()}
    return [_escape(inner) for inner in value] if isinstance(value, list | tuple) else value


def _unescape(value: Any) -> Any:
    if isinstance(value, str):
        return _spelled_out(value) if value.startswith(_ESCAPED) else value
    if isinstance(value, dict):
        return {_unescape(key): _unescape(inner) for key, inner in value.items()}
    return [_unescape(inner) for inner in value] if isinstance(value, list) else value


def _spelled_out(text: str) -> str:
    try:
        return bytes.fromhex(text[1:]).decode("utf-8", "surrogatepass")
    except ValueError as error:
        raise NotStateError("a marked text is not hex") from error


# -- decoding, strictly


def _state(tree: Mapping[str, Any]) -> State:
    owner = _get(tree, "owner", str)
    if not _OWNER.fullmatch(owner):
        raise NotStateError("owner")
    return State(
        owner=owner,
        clouds={url: _cloud(_is(cloud, dict)) for url, cloud in _get(tree, "clouds", dict).items()},
        projects={key: _project(_is(project, dict)) for key, project in _get(tree, "projects", dict).items()},
    )


def _cloud(tree: Mapping[str, Any]) -> CloudState:
    return CloudState(
        pools={
            pool: {name: _record(_is(record, dict)) for name, record in _is(records, dict).items()}
            for pool, records in _get(tree, "pools", dict).items()
        },
        intents={attempt: _intent(_is(intent, dict)) for attempt, intent in _get(tree, "intents", dict).items()},
    )


def _record(tree: Mapping[str, Any]) -> DropletRecord:
    return DropletRecord(
        id=DropletId(_get(tree, "id", int)),
        name=_get(tree, "name", str),
        pool=_get(tree, "pool", str),
        address=_text_or_none(tree, "address"),
        port=_get(tree, "port", int),
        host_key=_get(tree, "host_key", str),
        region=_get(tree, "region", str),
        size=_get(tree, "size", str),
        image=_get(tree, "image", str),
        usd_per_hour=_money(tree, "usd_per_hour"),
        created_at=_instant(tree, "created_at"),
        attempt=_get(tree, "attempt", str),
        is_ready=_get(tree, "is_ready", bool),
        facts=_get(tree, "facts", dict),
        next_host_key=_text_or_none(tree, "next_host_key"),
        is_rotated=_get(tree, "is_rotated", bool),
        until=_instant_or_none(tree, "until"),
        idle_s=_get(tree, "idle_s", int),
        is_armed=_get(tree, "is_armed", bool),
        ends_busy=_get(tree, "ends_busy", bool),
        kept_until=_instant_or_none(tree, "kept_until"),
        pipelines=_get(tree, "pipelines", bool),
        private_address=_text_or_none(tree, "private_address"),  # not in states of earlier chisels
    )


def _intent(tree: Mapping[str, Any]) -> Intent:
    return Intent(
        attempt=_get(tree, "attempt", str),
        pool=_get(tree, "pool", str),
        name=_get(tree, "name", str),
        size=_get(tree, "size", str),
        region=_get(tree, "region", str),
        image=_get(tree, "image", str),
        started_at=_instant(tree, "started_at"),
        host_key=_get(tree, "host_key", str),
        next_host_key=_get(tree, "next_host_key", str),
        usd_per_hour=_money(tree, "usd_per_hour"),
        until=_instant_or_none(tree, "until"),
        idle_s=_get(tree, "idle_s", int),
        is_armed=_get(tree, "is_armed", bool),
        ends_busy=_get(tree, "ends_busy", bool),
    )


def _project(tree: Mapping[str, Any]) -> ProjectState:
    roots = _get(tree, "synced_roots", dict)
    last_root = _text_or_none(tree, "last_root")
    if last_root is not None and last_root not in roots:
        raise NotStateError("last_root")
    return ProjectState(
        id=_get(tree, "id", str),
        root=_get(tree, "root", str),
        pool=_text_or_none(tree, "pool"),
        synced_roots={local: _is(remote, str) for local, remote in roots.items()},
        last_root=last_root,
        tree_hash=_text_or_none(tree, "tree_hash") or "",
        git=GitFacts.read(tree.get("git")),
    )


def _is(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise NotStateError(f"{kind.__name__} expected")
    return value


def _get(tree: Mapping[str, Any], key: str, kind: type[T]) -> T:
    return _is(tree.get(key), kind)


def _text_or_none(tree: Mapping[str, Any], key: str) -> str | None:
    return None if tree.get(key) is None else _get(tree, key, str)


def _money(tree: Mapping[str, Any], key: str) -> Decimal:
    try:
        amount = Decimal(_get(tree, key, str))
    except InvalidOperation as error:
        raise NotStateError(key) from error
    if not amount.is_finite():
        raise NotStateError(key)
    return amount


def _instant_or_none(tree: Mapping[str, Any], key: str) -> datetime | None:
    return None if tree.get(key) is None else _instant(tree, key)


def _instant(tree: Mapping[str, Any], key: str) -> datetime:
    try:
        instant = datetime.fromisoformat(_get(tree, key, str))
    except ValueError as error:
        raise NotStateError(key) from error
    if instant.tzinfo is None:
        raise NotStateError(key)
    return instant
