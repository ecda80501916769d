"""Remember droplets, intents and projects between commands: one JSON file, many processes at once.

The file is a cache: the cloud is the truth, and losing it costs time. It never holds a token. Everything of a cloud is
kept under its API's address, so that a sandbox and the real cloud never mix.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import anyio
import orjson
from anyio import to_thread

from chisel.errors import StateError
from chisel.model import DropletId
from chisel.paths import PRIVATE_FILE, make_private_directory, write_private_file

VERSION = 1
_OWNER = re.compile(r"[0-9a-f]{16}")
_SALVAGE_OWNER = re.compile(rb'"owner":\s*"([0-9a-f]{16})"')
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.002, 0.05
_ESCAPED = "\0"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DropletRecord:
    """What chisel knows of a droplet it made; `attempt` is its tag's unique part, `host_key` the pinned public key.

    While the first boot's key is being replaced `next_host_key` is accepted as well; `is_rotated` says that it was.
    `until` is the end of its time, None for no limit; after `idle_s` of idleness it destroys itself (0: never).

    `address` is None until the cloud has given one, `is_ready` says that it once answered, `facts` is what its probe
    found then (JSON values). `created_at` is aware UTC.
    """

    id: DropletId
    name: str
    pool: str
    address: str | None
    port: int
    host_key: str
    region: str
    size: str
    image: str
    usd_per_hour: Decimal
    created_at: datetime
    attempt: str
    is_ready: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    next_host_key: str | None = None
    is_rotated: bool = False
    until: datetime | None = None
    idle_s: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    """A create request that is about to be sent, or whose answer is not recorded.

    `host_key` is the public half of the first boot's key, `next_host_key` of the one that replaces it.
    """

    attempt: str
    pool: str
    name: str
    size: str
    region: str
    image: str
    started_at: datetime
    host_key: str
    next_host_key: str
    usd_per_hour: Decimal
    until: datetime | None = None
    idle_s: int = 0


@dataclass(frozen=True, slots=True)
class CloudState:
    """One account's part: pool name to droplet name to record, attempt to intent."""

    pools: dict[str, dict[str, DropletRecord]] = field(default_factory=dict)
    intents: dict[str, Intent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProjectState:
    """What was synced of one project: local root to the droplets' path of its working copy, and the latest root."""

    id: str
    root: str
    pool: str | None = None
    synced_roots: dict[str, str] = field(default_factory=dict)
    last_root: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Everything remembered; `owner` is random, made once, and tells this user's droplets from others'.

    `recovered_from` is not stored: it names the unreadable file that was set aside in favour of this state.
    """

    owner: str = field(default_factory=lambda: secrets.token_hex(8))
    clouds: dict[str, CloudState] = field(default_factory=dict)
    projects: dict[str, ProjectState] = field(default_factory=dict)
    version: int = VERSION
    recovered_from: Path | None = field(default=None, compare=False)


class StateStore:
    """Read and change the state file. Calls may overlap, in one process and between many.

    Raises StateError when the file cannot be read, locked or written (nothing is lost then), or when a newer chisel
    wrote it (it is then left alone). A file that is not valid state is set aside as `state.json.corrupt-<n>`, and the
    state returned names it in `recovered_from`.
    """

    def __init__(self, file: Path, *, lock_deadline_s: float = 10.0) -> None:
        self.file = file
        self._lock_file = file.with_name(file.name + ".lock")
        self._lock_deadline_s = lock_deadline_s
        self._threads = anyio.CapacityLimiter(1)

    async def read(self) -> State:
        """Return what is on disk; without a file, an empty state with an owner that only `update` makes last."""
        try:
            return await to_thread.run_sync(self._load, limiter=self._threads)
        except _NotStateError:
            return await self._when_locked(self._set_aside)

    async def update(self, change: Callable[[State], State]) -> State:
        """Replace the state by `change(state)` and return it; nobody else changes it in between.

        `change` runs in a thread and must be pure. Cancelled, the change has happened completely or not at all.
        """

        def apply() -> State:
            state = self._set_aside()
            changed = change(state)
            if changed != state or not self.file.exists():
                self._save(changed)
            return changed

        return await self._when_locked(apply)

    # -- the lock

    @asynccontextmanager
    async def locked(self, name: str, *, deadline_s: float) -> AsyncIterator[None]:
        """Hold a lock of its own beside the state, across processes, while the block runs; a dead process holds none.

        Raises StateError when it is not free within `deadline_s` seconds, or cannot be made.
        """
        file, ends_at, wait_s = (
            self.file.with_name(f"{self.file.name}.{name}.lock"),
            anyio.current_time(),
            _FIRST_WAIT_S,
        )
        ends_at += deadline_s
        descriptor = await to_thread.run_sync(self._open_lock, file)
        try:
            while not _try_flock(descriptor):
                if anyio.current_time() >= ends_at:
                    raise StateError(
                        f"`{file}` has been locked by another chisel for {deadline_s:g} s", hint="try again"
                    )
                await anyio.sleep(wait_s)
                wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
            yield
        finally:
            os.close(descriptor)

    async def _when_locked(self, action: Callable[[], T]) -> T:
        """Do a thing in a thread that holds the lock: the lock never outlives the thread's call.

        Waiting happens here, not in the thread, so that a cancelled caller is freed at once.
        """
        ends_at = anyio.current_time() + self._lock_deadline_s
        wait_s = _FIRST_WAIT_S
        while True:
            done, result = await to_thread.run_sync(self._try_locked, action, limiter=self._threads)
            if done:
                return result[0]
            if anyio.current_time() >= ends_at:
                holder = await to_thread.run_sync(self._holder, limiter=self._threads)
                raise StateError(
                    f"`{self.file}` has been locked for {self._lock_deadline_s:g} s by process `{holder}`",
                    hint=f"look at it with: ps -p {holder}" if holder.isdigit() else "try again",
                )
            await anyio.sleep(wait_s * random.uniform(0.5, 1.5))
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)

    def _try_locked(self, action: Callable[[], T]) -> tuple[bool, tuple[T, ...]]:
        descriptor = self._open_lock(self._lock_file)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False, ()
            except OSError as error:
                raise self._trouble("lock", error) from error
            with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not forbid reading
                os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
            try:
                return True, (action(),)
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may still hold the descriptor
        finally:
            os.close(descriptor)

    def _open_lock(self, file: Path) -> int:
        try:
            make_private_directory(self.file.parent)
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
        except OSError as error:
            raise self._trouble("lock", error) from error

    def _holder(self) -> str:
        try:
            text = self._lock_file.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return "unknown"
        return text if text.isdigit() else "unknown"

    # -- the file, in a thread

    def _load(self) -> State:
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return State()
        except OSError as error:
            raise self._trouble("read", error) from error
        return decode(data, self.file)

    def _set_aside(self) -> State:
        """Return the state on disk; what is not valid state is kept under another name, its owner is saved."""
        try:
            return self._load()
        except _NotStateError:
            kept = self._keep_corrupt()
        found = _SALVAGE_OWNER.search(kept.read_bytes())
        state = State(owner=found[1].decode(), recovered_from=kept) if found else State(recovered_from=kept)
        self._save(state)
        return state

    def _keep_corrupt(self) -> Path:
        """Give the file a second name that is free; its first one goes when the fresh state replaces it."""
        number = 0
        while True:
            number += 1
            kept = self.file.with_name(f"{self.file.name}.corrupt-{number}")
            try:
                os.link(self.file, kept)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise self._trouble("set aside", error) from error
                self._move(kept)  # a file system without hard links
            return kept

    def _move(self, kept: Path) -> None:
        try:
            self.file.rename(kept)
        except OSError as error:
            raise self._trouble("set aside", error) from error

    def _save(self, state: State) -> None:
        data = encode(state)
        try:
            write_private_file(self.file, data)
        except OSError as error:
            raise self._trouble("write", error) from error

    def _trouble(self, what: str, error: OSError) -> StateError:
        hints = {
            errno.ENOSPC: "make room on that disk; nothing was lost",
            errno.EDQUOT: "make room within your quota; nothing was lost",
            errno.EROFS: "that disk is read-only: point XDG_CACHE_HOME to a folder you may write",
        }
        hint = hints.get(error.errno or 0, "see who owns it, or point XDG_CACHE_HOME to a folder you may write")
        return StateError(f"cannot {what} `{self.file}`: {error.strerror or error}", hint=hint)


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- the form on disk


class _NotStateError(ValueError):
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
        raise _NotStateError(str(error)) from error
    if not isinstance(tree, dict) or type(version := tree.get("version")) is not int or version < 1:
        raise _NotStateError("no version")
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
        raise _NotStateError("a marked text is not hex") from error


# -- decoding, strictly


def _state(tree: Mapping[str, Any]) -> State:
    owner = _get(tree, "owner", str)
    if not _OWNER.fullmatch(owner):
        raise _NotStateError("owner")
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
    )


def _project(tree: Mapping[str, Any]) -> ProjectState:
    roots = _get(tree, "synced_roots", dict)
    last_root = _text_or_none(tree, "last_root")
    if last_root is not None and last_root not in roots:
        raise _NotStateError("last_root")
    return ProjectState(
        id=_get(tree, "id", str),
        root=_get(tree, "root", str),
        pool=_text_or_none(tree, "pool"),
        synced_roots={local: _is(remote, str) for local, remote in roots.items()},
        last_root=last_root,
    )


def _is(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise _NotStateError(f"{kind.__name__} expected")
    return value


def _get(tree: Mapping[str, Any], key: str, kind: type[T]) -> T:
    return _is(tree.get(key), kind)


def _text_or_none(tree: Mapping[str, Any], key: str) -> str | None:
    return None if tree.get(key) is None else _get(tree, key, str)


def _money(tree: Mapping[str, Any], key: str) -> Decimal:
    try:
        amount = Decimal(_get(tree, key, str))
    except InvalidOperation as error:
        raise _NotStateError(key) from error
    if not amount.is_finite():
        raise _NotStateError(key)
    return amount


def _instant_or_none(tree: Mapping[str, Any], key: str) -> datetime | None:
    return None if tree.get(key) is None else _instant(tree, key)


def _instant(tree: Mapping[str, Any], key: str) -> datetime:
    try:
        instant = datetime.fromisoformat(_get(tree, key, str))
    except ValueError as error:
        raise _NotStateError(key) from error
    if instant.tzinfo is None:
        raise _NotStateError(key)
    return instant
