"""Destroy this droplet when its time is over: one tick of a timer looks, judges, remembers, and may send one DELETE.

Runs from `/opt/chisel` as root, started by systemd, with what the droplet was created with: nothing else has to work.
A DELETE that fails is sent again by the next tick, for as long as it takes. It never powers off: a droplet that is off
bills in full and cannot try again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from . import activity, env, idlerule

CONFIG = "/etc/chisel/self-destruct.json"
PLACE = "/var/lib/chisel"
MEMORY, LIMITS, STATE = "memory.json", "limits.json", "state.json"
TICK_DEADLINE_S = 100
_HTTP_TIMEOUT_S = 20.0
_METADATA_ID = "http://169.254.169.254/metadata/v1/id"
_INSTANCE_ID = "/var/lib/cloud/data/instance-id"
_LONGEST_ID = 18


class NotNow(Exception):
    """The droplet could not be destroyed; the message says why, the next tick tries again."""


def tick() -> int:
    """Look once and act; return 0 when all is well, 1 when the droplet should be gone and is not."""
    config = load(env.system_path(CONFIG))
    if not isinstance(config, dict):
        return 0
    os.makedirs(env.system_path(PLACE), mode=0o700, exist_ok=True)
    descriptor = os.open(_file("lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return 0
    signal.alarm(TICK_DEADLINE_S)  # a server that drips must not keep the next tick from coming
    try:
        return _tick(config)
    finally:
        signal.alarm(0)
        os.close(descriptor)


def _tick(config: dict[str, Any]) -> int:
    memory = remembered(config)
    memory, verdict = idlerule.judge(memory, look(), limits(config))
    try:
        memory = replace(memory, droplet_id=confirmed_id(memory.droplet_id))
    except NotNow as refusal:
        save(MEMORY, asdict(memory))
        save(STATE, _state("disarmed", config, memory, verdict, str(refusal)))
        return 0
    save(MEMORY, asdict(memory))
    if not verdict.is_over:
        save(STATE, _state("on", config, memory, verdict))
        return 0
    save(STATE, _state("destroying", config, memory, verdict))
    _say(f"droplet {memory.droplet_id} destroys itself: {verdict.reason}")
    try:
        destroy(config, memory.droplet_id)
    except NotNow as trouble:
        save(STATE, _state("failing", config, memory, verdict, str(trouble)))
        _say(f"droplet {memory.droplet_id} could not destroy itself, and bills on: {trouble}")
        return 1
    return 0


def look() -> idlerule.Sight:
    """Look at the droplet as it is now."""
    return idlerule.Sight(
        boot_id=activity.boot_id(),
        on_s=activity.on_s(),
        marks=activity.marks(),
        busy=activity.busy(),
        is_first_boot=activity.is_first_boot(),
    )


def remembered(config: dict[str, Any]) -> idlerule.Memory:
    """Return what earlier ticks left; what another droplet's left, whose snapshot this was made from, is nothing."""
    memory = idlerule.read_memory(load(_file(MEMORY)))
    attempt = str(config.get("attempt", ""))
    return memory if memory.attempt == attempt else idlerule.Memory(attempt=attempt)


def limits(config: dict[str, Any]) -> idlerule.Limits:
    """Return the limits that hold: those of the creation, or what `chisel keep` made of them."""
    default = idlerule.Limits(
        idle_s=float(config.get("idle_s", 0)),
        ttl_s=float(config.get("ttl_s", 0)),
        ends_busy=bool(config.get("ends_busy", False)),
    )
    found = load(_file(LIMITS))
    is_mine = isinstance(found, dict) and found.get("attempt") == config.get("attempt")
    return idlerule.read_limits(found, default) if is_mine else default


def keep(by_s: float) -> dict[str, Any]:
    """Let this droplet live for `by_s` seconds from now at least; return the limits that hold from now on."""
    config = load(env.system_path(CONFIG))
    if not isinstance(config, dict):
        return {}
    held = idlerule.extended(remembered(config), limits(config), now_on_s=activity.on_s(), by_s=by_s)
    os.makedirs(env.system_path(PLACE), mode=0o700, exist_ok=True)
    save(LIMITS, {**asdict(held), "attempt": config.get("attempt")})
    return asdict(held)


# -- who this is


def confirmed_id(bound: int) -> int:
    """Return this droplet's id, on which everything that knows it agrees; raises NotNow where it cannot be known.

    A droplet made from another's snapshot carries its files: it must neither destroy that one nor itself.
    """
    found = {source: id for source, id in (("cloud-init", _cloud_init_id()), ("metadata", _metadata_id())) if id}
    if not found:
        raise NotNow("neither cloud-init nor the metadata service says which droplet this is")
    ids = {*found.values(), *([bound] if bound else [])}
    if len(ids) > 1:
        raise NotNow(f"this is no droplet that chisel made: its files are of {bound or sorted(ids)[0]}, it is {found}")
    return ids.pop()


def _cloud_init_id() -> int:
    try:
        with open(env.system_path(_INSTANCE_ID), encoding="ascii") as source:
            return _as_id(source.read())
    except (OSError, ValueError):
        return 0


def _metadata_id() -> int:
    if env.is_played():
        return 0
    try:
        with _opener().open(_METADATA_ID, timeout=3) as answer:
            return _as_id(answer.read(64).decode("ascii"))
    except (OSError, ValueError):
        return 0


def _as_id(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() and len(text) <= _LONGEST_ID else 0


# -- acting


def destroy(config: dict[str, Any], droplet_id: int) -> None:
    """Send one DELETE for one id; raises NotNow unless the API has taken it."""
    url = f"{str(config.get('api_url', '')).rstrip('/')}/v2/droplets/{droplet_id}"
    request = urllib.request.Request(url, method="DELETE")
    request.add_unredirected_header("Authorization", f"Bearer {config.get('token', '')}")
    try:
        with _opener().open(request, timeout=_HTTP_TIMEOUT_S) as answer:
            status = int(answer.status)
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        raise NotNow(f"the API does not answer ({type(error).__name__})") from error
    words = {401: "the token is not valid any more", 403: "the token may not delete", 404: "the token does not see it"}
    if status not in (202, 204):
        raise NotNow(f"the API answered {status}" + (f": {words[status]}" if status in words else ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow nothing: the token goes to the address that it was given for."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return


def _opener() -> Any:
    """Return what sends requests: no proxy of this machine's environment, no redirect."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def _say(message: str) -> None:
    """Tell the journal, and whoever is logged in."""
    print(message, flush=True)  # noqa: T201
    if not env.is_played():
        with os.popen("wall 2>/dev/null", "w") as wall:
            wall.write(f"chisel: {message}\n")


# -- files


def _state(
    state: str, config: dict[str, Any], memory: idlerule.Memory, verdict: idlerule.Verdict, error: str | None = None
) -> dict[str, Any]:
    held = limits(config)
    return {
        "state": state,
        "reason": verdict.reason,
        "left_s": verdict.left_s,
        "idle_s": memory.idle_s,
        "age_s": memory.age_s,
        "idle_limit_s": held.idle_s,
        "ttl_s": held.ttl_s,
        "error": error,
    }


def state() -> dict[str, Any] | None:
    """Return what the last tick found, None on a droplet that does not destroy itself."""
    found = load(_file(STATE))
    return found if isinstance(found, dict) and os.path.exists(env.system_path(CONFIG)) else None


def _file(name: str) -> str:
    return os.path.join(env.system_path(PLACE), name)


def load(path: str) -> Any:
    """Return a file's JSON, None where there is none."""
    try:
        with open(path, encoding="utf-8") as source:
            return json.load(source)
    except (OSError, ValueError):
        return None


def save(name: str, facts: dict[str, Any]) -> None:
    """Replace a file at once, on the disk before it has its name: a tick may be killed at any point."""
    path = _file(name)
    descriptor = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        json.dump(facts, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(path + ".new", path)


if __name__ == "__main__":
    _VERBS: dict[str, Callable[[], int]] = {"tick": tick}
    sys.exit(_VERBS[sys.argv[1]]())
