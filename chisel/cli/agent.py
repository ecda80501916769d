"""The background agent: be it, show it, stop it."""

from __future__ import annotations

import json
import posix
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import asyncclick as click

from chisel.cli.options import output_options
from chisel.cli.session import Session

if TYPE_CHECKING:
    from _socket import socket

_ANSWER_S, _BEGIN_S = 10.0, 12.0
_LOOK_S = 0.05
_LOG_HINT = "chisel agent log"


@click.group()
def agent() -> None:
    """Show or stop the background process that keeps connections warm.

    It starts by itself with the first command that needs a connection, and ends when nobody has called it for 30
    minutes (`agent_idle_minutes` in config.toml). CHISEL_AGENT=off, or --no-agent, does everything without it.
    """


@agent.command(hidden=True)
@click.option("--lock", type=int, help="The descriptor that holds the agent's lock.")
@click.pass_obj
async def serve(session: Session, lock: int | None) -> None:
    """Be the agent."""
    from chisel.agent.start import take_lock

    session.serves_with = take_lock(posix.environ) if lock is None else lock


@agent.command(hidden=True)
@output_options
async def look(session: Session) -> None:
    """Destroy what is over and forget what has vanished, as the agent asks for."""
    from chisel.client.care import end_what_is_over
    from chisel.events import Notice

    async with session.open(cares=False, mends=False) as client:
        before = {record.name: record for pool in (await client.recorded()).values() for record in pool}
        await end_what_is_over(client, asks_turn=False)
        ended = {record.name for pool in (await client.recorded()).values() for record in pool}
        await (await client.lifecycle()).prune()
        for name in sorted(ended - {record.name for pool in (await client.recorded()).values() for record in pool}):
            said = f"droplet {before[name].id} has vanished: the cloud does not know it any more"
            client.sink.emit(Notice(host=name, level="warning", message=said, hint="chisel up"))


@agent.command()
@output_options
async def status(session: Session) -> None:
    """Show whether there is an agent, and what it holds."""
    from chisel.events import Facts

    facts = await _ask()
    async with session.output() as sink:
        if facts is None:
            sink.emit(
                Facts(title="no agent", facts={"agent": "it starts with the next command that needs a connection"})
            )
            return
        shown = {
            "process": facts["pid"],
            "version": facts["version"],
            "since": facts["began_at"],
            "commands": f"{facts['running']} under way, {facts['served']} served",
            "idle": f"{facts['idle_s']:.0f} s",
            "connected": ", ".join(facts["connected"]) or "-",
            "lost": ", ".join(facts["lost"]) or "-",
        }
        sink.emit(Facts(title="agent", facts=shown))


@agent.command()
@output_options
async def stop(session: Session) -> None:
    """Have the agent finish: it serves the commands under way to their end, and takes no more."""
    from chisel.events import Notice

    stopped = await _finish()
    async with session.output() as sink:
        sink.emit(Notice(message="the agent finishes" if stopped else "there is no agent"))


@agent.command()
@output_options
async def log(session: Session) -> None:
    """Print what the agent has written down."""
    from chisel.agent.agent import paths_of
    from chisel.agent.start import LOG_NAME

    file = paths_of(dict(session.around.environ)).cache_dir / LOG_NAME
    try:
        data = await anyio.Path(file).read_bytes()
    except FileNotFoundError:
        data = b""
    session.around.say(1, data)


async def _ask() -> dict[str, Any] | None:
    """Ask the agent about itself; None when there is none."""
    from chisel.agent import wire

    def asked(connection: socket) -> tuple[bytes, bytes] | None:
        with closing(connection):
            connection.sendall(wire.frame(wire.STATUS))
            return wire.receive(connection)

    connection = await _reach()
    found = await anyio.to_thread.run_sync(asked, connection) if connection is not None else None
    return json.loads(found[1]) if found is not None and found[0] == wire.REPLY else None


async def _finish() -> bool:
    """Tell the agent to finish; False when there is none."""
    from chisel.agent import wire

    connection = await _reach()
    if connection is None:
        return False
    with closing(connection):
        connection.sendall(wire.frame(wire.FINISH))
    return True


async def _reach() -> socket | None:
    """Return a connection to the agent, None when there is none; raises StateError for one that says nothing.

    Commands go on without an agent that is too busy to answer at once, or that has only just been started. To ask and
    to stop it is another thing.
    """
    from chisel.agent import start, wire
    from chisel.errors import StateError

    ask = partial(wire.greeted, posix.environ, _ANSWER_S)
    try:
        with anyio.fail_after(_BEGIN_S):
            while (found := await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)) is None:
                if not start.is_one_starting(posix.environ):
                    return None
                await anyio.sleep(_LOOK_S)
        return found[0]
    except wire.Mute as error:
        hint = f"commands go on without it; to end it: kill -9 {error.pid}" if error.pid else _LOG_HINT
        raise StateError(f"the agent has not answered for {_ANSWER_S:.0f} s", hint=hint) from error
    except TimeoutError as error:
        raise StateError(f"an agent has begun and does not listen after {_BEGIN_S:.0f} s", hint=_LOG_HINT) from error
    except (OSError, ValueError) as error:
        raise StateError(f"the agent's socket cannot be used: {error}", hint=_LOG_HINT) from error
