"""Run one command line: the group of commands, errors to text and status, signals to cancellation.

This is the only place that turns exceptions into text. An exception nobody foresaw is a bug: status 1, and how to
report it; its traceback shows only under `--debug`.
"""

from __future__ import annotations

import os
import posix
import signal
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio
import asyncclick as click

import chisel
from chisel.cli.session import Session, wants_json
from chisel.cli.takeup import take_up
from chisel.errors import ChiselError, leaves

if TYPE_CHECKING:
    from chisel.agent.wire import Remains
    from chisel.ssh.sockets import Sockets

INTERRUPTED = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The loop first, from top to bottom, then what looks after it.
COMMANDS: dict[str, tuple[str, str]] = {
    "auth": ("account", "Store and verify a DigitalOcean token, show what the account may do."),
    "up": ("droplets", "Bring droplets up: reuse what exists, create what is missing."),
    "sync": ("loop", "Push what changed in the local tree to the droplets."),
    "run": ("run", "Run a command there, with live output and its own exit status."),
    "profile": ("profile", "Run a command under the profiler, rank the hottest kernels."),
    "pull": ("loop", "Bring artifacts back."),
    "push": ("push", "Put data sets and weights there, outside the working copy."),
    "logs": ("run", "Show what a run has written, and with -f what it writes."),
    "attach": ("run", "Follow a run as if it had been started here."),
    "kill": ("run", "End a run, or send it a signal."),
    "ssh": ("ssh", "Open a shell there, forward ports, write Host blocks for editors."),
    "down": ("droplets", "Destroy the droplets, confirm it, show what they cost."),
    "status": ("droplets", "Show what is up, what runs there, what it costs."),
    "sweep": ("droplets", "Find droplets past their limits or half made, and destroy them on request."),
    "keep": ("droplets", "Let droplets live longer than their limit says."),
    "recover": ("droplets", "Rebuild a lost state from the droplets' tags."),
    "demo": ("sandbox", "Show the whole loop on an embedded cloud: no account, no cost."),
    "sandbox": ("sandbox", "Start, show or stop the embedded cloud in the background."),
    "agent": ("agent", "Show or stop the background process that keeps connections warm."),
    "completion": ("account", "Print the shell code that completes chisel's commands."),
}


class Commands(click.Group):
    """Load a command's module when the command is named: help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the loop."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command, None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = __import__(f"chisel.cli.{COMMANDS[cmd_name][0]}", fromlist=[cmd_name])
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with one line each, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A new user's first command: chisel demo. Results go to stdout, everything chisel says to stderr.",
)
@click.version_option(chisel.__version__, prog_name="chisel")
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Write AMD GPU kernels here, run and profile them on rented MI300X droplets."""
    ctx.ensure_object(Session).debug = debug or ctx.obj.debug


def run_command(arguments: Sequence[str], sockets: Sockets | None = None) -> int:
    """Run one command line and return the exit status: see `run_and_tell`."""
    return run_and_tell(arguments, sockets)[0]


def run_and_tell(
    arguments: Sequence[str], sockets: Sockets | None = None, remains: Remains | None = None
) -> tuple[int, bool]:
    """Run one command line; return the exit status, and whether it needed connections that an agent could keep.

    `sockets` are on their way to droplets (see `ahead`), `remains` is what an agent that died has left of it.
    """
    session = Session(debug="--debug" in arguments[:1])
    if remains is not None:
        take_up(session, remains)
    return _run_here(session, arguments, sockets), session.has_connected


def _run_here(session: Session, arguments: Sequence[str], sockets: Sockets | None) -> int:
    if any(name.endswith("_COMPLETE") for name in os.environ if name.startswith("_CHISEL")):
        return _complete(session)
    try:
        status = anyio.run(_under_signals, session, list(arguments), sockets or {}, backend="asyncio")
    except BaseException as error:  # noqa: BLE001 - the boundary where errors become text and status
        found = list(leaves(error))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            return INTERRUPTED + signal.SIGINT
        return report(found, session, arguments)
    if session.replacement is not None and not status:
        os.execv(session.replacement[0], session.replacement[1])
    if session.serves_with is not None:
        from chisel.agent.agent import run
        from chisel.cli.served import handle

        run(handle, session.serves_with, posix.environ)
    return status


async def _under_signals(session: Session, arguments: list[str], sockets: Sockets) -> int:
    """Run the command under this process's signals.

    What the parent ignores stays ignored: `nohup chisel run ...` outlives its terminal.
    """
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with anyio.open_signal_receiver(*heeded) as arriving:
        return await run_under(arriving, session, arguments, sockets)


async def run_under(arriving: Any, session: Session, arguments: list[str], sockets: Sockets) -> int:
    """Run the command; a signal goes to the command under way if it takes it, else it cancels everything."""
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            caught: list[int] = []
            tasks.start_soon(_watch_signals, arriving, session, scope, caught)
            if sockets:
                from chisel.ssh.early import Departures

                session.departures = Departures(sockets)
                await session.departures.send_while(partial(_load, arguments[0]))
            await cli.main(args=arguments, prog_name="chisel", standalone_mode=False, obj=session)
        tasks.cancel_scope.cancel()
    return INTERRUPTED + caught[0] if caught and not session.is_done else session.status


def _load(command: str) -> None:
    """Import what a command on droplets needs."""
    from chisel.ssh.quick import load_asyncssh

    import_module(f"chisel.cli.{COMMANDS[command][0]}")
    import_module("chisel.client")
    load_asyncssh()


async def _watch_signals(arriving: Any, session: Session, scope: anyio.CancelScope, caught: list[int]) -> None:
    async for number in arriving:
        caught.append(int(number))
        if not session.takes_signal(int(number)):
            scope.cancel()


def _complete(session: Session) -> int:
    from asyncclick.shell_completion import shell_complete

    async def complete() -> int:
        variable = next(name for name in os.environ if name.startswith("_CHISEL") and name.endswith("_COMPLETE"))
        return int(await shell_complete(cli, {"obj": session}, "chisel", variable, os.environ[variable]))

    return anyio.run(complete)


def report(found: list[BaseException], session: Session, arguments: Sequence[str]) -> int:
    """Say what went wrong, the most telling error of a group only, and return its status."""
    error = min(found, key=_rank)
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    if isinstance(error, click.exceptions.Abort):
        return INTERRUPTED + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return INTERRUPTED + signal.SIGPIPE  # nobody reads any more, this neither
    message, hint, status = _words(error)
    if session.debug:
        session.around.say(2, "".join(traceback.format_exception(error)).encode("utf-8", "replace"))
    if session.json or wants_json(arguments, takes_value):
        session.around.say(1, _json_report(error, message, hint, status))
    else:
        for line in (f"error: {message}", f"hint: {hint}" if hint else ""):
            if line:
                session.around.say(2, session.harmless(line).encode("utf-8", "replace") + b"\n")
    return status


def takes_value(name: str) -> dict[str, int]:
    """Name the options of a command that are followed by values, and by how many."""
    command = cli.get_command(click.Context(cli), name)
    options = [one for one in command.params if isinstance(one, click.Option)] if command is not None else []
    return {text: one.nargs for one in options if not one.is_flag and not one.count for text in one.opts}


def _json_report(error: BaseException, message: str, hint: str | None, status: int) -> bytes:
    from chisel.render.jsonl import line

    facts = {"error": type(error).__name__, "message": message, "hint": hint, "status": status}
    return line("error", **facts) + line("ended", status=status, source="chisel")


def _rank(error: BaseException) -> int:
    if isinstance(error, ChiselError):
        return 0
    return 1 if isinstance(error, click.ClickException) else 2


def _words(error: BaseException) -> tuple[str, str | None, int]:
    if isinstance(error, ChiselError):
        return error.message, error.hint, error.exit_status
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "chisel"
        return error.format_message(), f"{path} --help", 2
    if isinstance(error, click.ClickException):
        return error.format_message(), None, error.exit_code
    said = f"a bug in chisel {chisel.__version__}: {type(error).__name__}: {error}"
    return said, "chisel --debug ... shows where; please report it with that text", 1
