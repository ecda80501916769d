"""Go on in the caller's own process with a command whose agent has died: what the agent told of it, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chisel.agent.wire import Remains
    from chisel.cli.session import Session
    from chisel.events import Stream
    from chisel.model import RunResult

_PLACE, _ENDED = b"place:", b"ended:"
_NOT_TOLD = frozenset({"stdout", "stderr"})


def place_fields(host: str, place: Mapping[str, Any], tails: Mapping[Stream, bytes]) -> list[bytes]:
    """Return the key and the value that say how far a droplet's output has come, and what is held back of it."""
    facts = {**place, "tails": {stream: tail.decode("latin-1") for stream, tail in tails.items()}}
    return [_PLACE + host.encode(), json.dumps(facts, separators=(",", ":")).encode("ascii")]


def ended_fields(result: RunResult) -> list[bytes]:
    """Return the key and the value that say how a droplet's command ended."""
    facts = {one.name: getattr(result, one.name) for one in fields(result) if one.name not in _NOT_TOLD}
    return [_ENDED + result.host.encode(), json.dumps(facts, separators=(",", ":")).encode("ascii")]


def take_up(session: Session, remains: Remains) -> None:
    """Have a session go on with what remains of its command."""
    from chisel.cli.around import Process
    from chisel.model import RunId, RunResult
    from chisel.runner import Resumption

    places: dict[str, dict[str, Any]] = {}
    ended: dict[str, RunResult] = {}
    for key, value in remains.places.items():
        facts = json.loads(value)
        if key.startswith(_PLACE):
            host = key.removeprefix(_PLACE).decode()
            session.tails[host] = {stream: text.encode("latin-1") for stream, text in facts.pop("tails").items()}
            places[host] = facts
        else:
            ended[key.removeprefix(_ENDED).decode()] = RunResult(**facts)
    session.tails = {host: tails for host, tails in session.tails.items() if host not in ended}
    session.remains = Resumption(
        RunId(remains.family), places, ended, input_at=remains.base, signals=tuple(remains.signals)
    )
    session.around = Process(remains.held, has_input_ended=remains.has_input_ended)
