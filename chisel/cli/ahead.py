"""Open sockets to the droplets that a command line is about, before chisel itself is loaded.

To load chisel takes longer than to reach a droplet. This looks at the words and at the state only, and guesses: it
knows neither the configuration nor the project. A guess that is wrong costs a connection that says nothing; a droplet
that it misses is connected to as usual.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from chisel.ssh.sockets import Sockets, open_socket

_COMMANDS = frozenset({"run", "sync", "profile", "pull", "push", "logs", "attach", "kill"})
_MOST = 64
_LONGEST_STATE = 1 << 20


def open_sockets(arguments: Sequence[str], environ: Mapping[str, str]) -> Sockets:
    """Return sockets on their way to the droplets that are probably meant; nothing raises, nothing is waited for."""
    if not arguments or arguments[0] not in _COMMANDS:
        return {}
    words = arguments[1 : arguments.index("--")] if "--" in arguments else arguments[1:]
    if any(word in ("-h", "--help") for word in words):
        return {}
    try:
        found = _addresses(_state(environ), words)[:_MOST]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    opened = {place: open_socket(*place) for place in found}
    return {place: one for place, one in opened.items() if one is not None}


def _state(environ: Mapping[str, str]) -> Any:
    """Read the state, where `chisel.paths` says it is."""
    base = environ.get("XDG_CACHE_HOME", "")
    base = base if base.startswith("/") else os.path.join(os.path.expanduser("~"), ".cache")
    with open(os.path.join(base, "chisel", "state.json"), "rb") as source:
        return json.loads(source.read(_LONGEST_STATE))


def _addresses(state: Any, words: Sequence[str]) -> list[tuple[str, int]]:
    (cloud,) = state["clouds"].values()
    pool = _value(words, "--pool")
    if pool is None:
        ((pool, records),) = cloud["pools"].items()
    else:
        records = cloud["pools"][pool]
    on = _value(words, "--on")
    if on is not None:
        named = {name if name.startswith(f"{pool}-") else f"{pool}-{name}" for name in on.split(",")}
        records = {name: record for name, record in records.items() if name in named}
    elif len(records) > 1 and "--all" not in words:
        return []
    return [
        (str(record["address"]), int(record["port"]))
        for record in records.values()
        if record["address"] and record["pipelines"] and record["host_key"].startswith("ssh-ed25519 ")
    ]


def _value(words: Sequence[str], option: str) -> str | None:
    for index, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word[len(option) + 1 :]
        if word == option and index + 1 < len(words):
            return words[index + 1]
    return None
