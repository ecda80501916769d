"""Run commands on droplets, and look after those that run: run, logs, attach, kill."""

from __future__ import annotations

import functools
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncclick as click

from chisel.cli.options import (
    WORDS,
    Command,
    Duration,
    env_file,
    environment,
    output_options,
    target_options,
    with_options,
)
from chisel.cli.session import Session, choose
from chisel.cli.target import LOST, bring_up_option, env_option, target_of

if TYPE_CHECKING:
    from chisel.client import Client, Pool
    from chisel.client.syncing import SyncOptions
    from chisel.model import RunId, RunResult
    from chisel.runner import Control

_FLAG: dict[str, Any] = {"is_flag": True}
_RUN_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("-s", "--sync", "sync_first", **_FLAG, help="Sync first, in the same message."),
    click.option("--keep-remote", "keeps", **_FLAG, help="With -s: leave alone what was changed on the droplet."),
    click.option("--checksum", "checks", **_FLAG, help="With -s: read every file on both sides, trusting no time."),
    click.option("--now", "is_now", **_FLAG, help="With -s: do not wait for commands in the working copy."),
    click.option("--take-over", "takes_over", **_FLAG, help="With -s: take another owner's working copy."),
    click.option("--pull", "pulls", multiple=True, metavar="PATH", help="Bring PATH back afterwards (again: more)."),
    click.option(
        "--env-file", "env_files", multiple=True, type=click.Path(path_type=Path), help="Set what FILE's K=V lines say."
    ),
    click.option("--cwd", metavar="DIR", help="Run there (default: where you stand, in the working copy)."),
    click.option("--user", metavar="NAME", help="Run as this user of the droplet (default: root)."),
    click.option("--venv", metavar="DIR", help="Run in this virtual environment of the droplet."),
    click.option("--gpu", "gpus", metavar="0,3", help="Show the command these GPUs only."),
    click.option("--container", metavar="IMAGE", help="Run inside this image, with GPUs and working copy."),
    click.option("--timeout", type=Duration(), metavar="TIME", help="End the command after 90s, 15m, 2h: status 124."),
    click.option("--fail-fast", **_FLAG, help="When one droplet's command fails, end the others."),
    click.option("--max-fail", type=click.IntRange(1), metavar="N", help="When N commands failed, end the others."),
    click.option("--keep-going", **_FLAG, help="Let the others go on (default)."),
    click.option(
        "--retry", "retries", type=click.IntRange(0), default=0, metavar="N", help="Try a failed droplet again."
    ),
    click.option("-d", "--detach", **_FLAG, help="Start it, print its id, and leave it running."),
    click.option("--no-resume", **_FLAG, help="A lost link is the end: status 255."),
    click.option("--resume-for", type=Duration(), metavar="TIME", help="Open a lost link again for so long (5m)."),
    click.option("--orphan", type=Duration(), metavar="TIME", help="End what nobody follows after TIME (2h)."),
    click.option("-t", "--tty", **_FLAG, help="Give the command a terminal: debuggers, editors. ~. leaves."),
    click.option(
        "--stdin",
        "stdin",
        type=click.Choice(["auto", "none", "broadcast"]),
        default="auto",
        help="Who reads standard input: one droplet, nobody, or all of them.",
    ),
)
_SHOW_OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option(
        "--prefix", type=click.Choice(["auto", "name", "none"]), default="auto", help="Names before output lines."
    ),
    click.option("--group", **_FLAG, help="Show each droplet's output when its command ends."),
    click.option("--fold", **_FLAG, help="Show equal output once, with the droplets that gave it."),
    click.option("--diff", **_FLAG, help="Fold, and of other output only what differs."),
    click.option("--raw", **_FLAG, help="Pass output through as it is, also to a terminal."),
    click.option("--out-dir", type=click.Path(path_type=Path), help="Write a file per droplet and stream as well."),
)


def _show_options(command: Command) -> Command:
    """Take the options that say how output looks, and apply them to the session."""

    @functools.wraps(command)
    async def dressed(
        session: Session,
        *,
        prefix: str,
        group: bool,
        fold: bool,
        diff: bool,
        raw: bool,
        out_dir: Path | None,
        **rest: Any,
    ) -> None:
        if group + fold + diff + raw > 1:
            raise click.UsageError("--group, --fold, --diff and --raw exclude each other")
        if group or fold or diff or out_dir is not None:
            session.around.decline()  # what it would hold could not be told to the caller's process
        mode = "group" if group else "fold" if fold else "diff" if diff else "live"
        session.look.update(prefix=prefix, mode=mode, is_raw=raw, out_dir=out_dir)
        await command(session, **rest)

    return with_options(_SHOW_OPTIONS)(dressed)


@click.command(context_settings=WORDS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@target_options
@bring_up_option
@env_option
@output_options
@with_options(_RUN_OPTIONS)
@_show_options
async def run(
    session: Session, command: tuple[str, ...], pool: str | None, everywhere: bool, on: str | None, bring_up: bool,
    pairs: tuple[str, ...], sync_first: bool, pulls: tuple[str, ...], detach: bool, tty: bool, stdin: str,
    **options: Any,
) -> None:  # fmt: skip
    """Run COMMAND on the droplets: live output, the command's own exit status.

    Several words mean exactly those words; one single word is a shell line: chisel run 'make && ./bench.sh'.
    Options of chisel end where COMMAND begins. Ctrl-C interrupts the command there, a second one kills it.
    """
    asked = _asked(session, pairs, options)
    sync_options = _sync_options(sync_first, options)
    if detach and (tty or stdin == "broadcast" or pulls):
        raise click.UsageError("--detach goes with neither --tty nor --stdin nor --pull: nobody stays")
    if tty:
        session.around.decline()
        _check_terminal(session)
    async with session.open() as client:
        target = await target_of(client, session, pool, everywhere, on, bring_up)
        if tty and len(target) > 1:
            raise click.UsageError("--tty is for one droplet")
        results: list[RunResult] = []
        async with AsyncExitStack() as stack:
            if tty:
                control, more = await stack.enter_async_context(_on_terminal(session))
            else:
                control = await stack.enter_async_context(interruptible(session, client))
                more = {} if detach else _input(session, stdin, len(target))
            more |= {"family": session.family, "resumed": session.remains}
            more["sync"] = sync_options
            results = await target.run(list(command), capture=False, control=control, detaches=detach, **more, **asked)
        if not results:
            return  # left by ~.
        take_status(session, results)
        if pulls and not control.was_used:
            pulled = await target.pull(list(pulls))
            if any(one.error for one in pulled) and not session.status:
                session.status, session.source = LOST, "chisel"


def _asked(session: Session, pairs: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return what `Pool.run` is to be told of the command line."""
    env: dict[str, str] = {}
    for file in options["env_files"]:
        env.update(env_file(file, session.around.cwd))
    env.update(environment(pairs, session.around.environ))
    if options["fail_fast"] and options["max_fail"]:
        raise click.UsageError("--fail-fast is --max-fail 1: say one of them")
    if options["keep_going"] and (options["fail_fast"] or options["max_fail"]):
        raise click.UsageError("--keep-going excludes --fail-fast and --max-fail")
    if options["no_resume"] and options["resume_for"]:
        raise click.UsageError("--no-resume excludes --resume-for")
    same = ("cwd", "user", "venv", "gpus", "container", "timeout", "retries", "orphan")
    asked = {name: options[name] for name in same}
    asked["max_fail"] = 1 if options["fail_fast"] else options["max_fail"]
    patience = timedelta(0) if options["no_resume"] else options["resume_for"]
    if patience is not None:
        asked["patience"] = patience
    return {"env": env, **asked}


def _sync_options(is_wanted: bool, options: dict[str, Any]) -> SyncOptions | bool:
    """Return how the sync ahead of the command is to be; its options make no sense without it."""
    flags: dict[str, Any] = {name: bool(options[name]) for name in ("keeps", "checks", "is_now", "takes_over")}
    if any(flags.values()) and not is_wanted:
        raise click.UsageError("--keep-remote, --checksum, --now and --take-over are for --sync")
    if not is_wanted:
        return False
    from chisel.client.syncing import SyncOptions

    return SyncOptions(**flags)


# -- standard input and terminal


def _input(session: Session, stdin: str, droplets: int) -> dict[str, Any]:
    is_wanted = stdin == "broadcast" or (stdin == "auto" and droplets == 1)
    around = session.around
    return {"stdin": around.read, "on_taken": around.taken} if is_wanted and around.may_read else {}


def _check_terminal(session: Session) -> None:
    if session.json or not session.around.terminals[0]:
        raise click.UsageError("--tty needs a terminal on standard input, and no --json")
    session.look.update(line_end="\r\n", is_raw=True)


@asynccontextmanager
async def _on_terminal(session: Session) -> AsyncIterator[tuple[Control, dict[str, Any]]]:
    """Lend the command this terminal: keys go there as they are, sizes follow."""
    import anyio

    from chisel.cli.keyboard import Keyboard, following_size, raw_terminal, size
    from chisel.runner import Control, Terminal

    control, keyboard = Control(), Keyboard()
    rows, columns = size()
    terminal = Terminal(rows, columns, session.around.environ.get("TERM", "xterm"))

    async def leave(scope: anyio.CancelScope) -> None:
        await keyboard.left.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks, following_size(control):
        tasks.start_soon(leave, tasks.cancel_scope)
        with raw_terminal():
            yield control, {"stdin": keyboard.read, "terminal": terminal}
        tasks.cancel_scope.cancel()
    if keyboard.left.is_set():
        session.status, session.source = 128 + int(signal.SIGHUP), "chisel"


@asynccontextmanager
async def interruptible(session: Session, client: Client) -> AsyncIterator[Control]:
    """Turn Ctrl-C into SIGINT for the remote process groups, a second one into SIGKILL, a third into leaving."""
    from chisel.events import Notice
    from chisel.runner import Control

    control = Control()
    steps = iter([int(signal.SIGINT), int(signal.SIGKILL)])

    def take(number: int) -> bool:
        step = next(steps, None) if number == signal.SIGINT else None
        if step is None:
            return False
        control.signal(step)
        said = "interrupted there; Ctrl-C again kills" if step == signal.SIGINT else "killed there"
        client.sink.emit(Notice(message=said))
        return True

    session.hand_signals_to(take)
    for number in session.remains.signals if session.remains is not None else ():
        if number == signal.SIGINT:
            take(number)
        else:
            signal.raise_signal(number)  # the agent had not come to it
    try:
        yield control
    finally:
        session.hand_signals_to(None)


def take_status(session: Session, results: Sequence[RunResult]) -> None:
    """Leave with the largest status; commands that chisel ended because of others do not count beside those."""
    counted = [result for result in results if not result.was_stopped] or list(results)
    worst = max(counted, key=lambda result: result.status)
    session.status, session.source = worst.status, worst.source


# -- runs that are there


def _run_id_argument(*, required: bool) -> Callable[[Command], Command]:
    return click.argument("run_id", required=required, metavar="ID" if required else "[ID]")


async def _having(
    client: Client, session: Session, run_id: str | None, pool: str | None, on: str | None
) -> tuple[dict[str, RunId], Pool]:
    """Return a run and the droplets that know it: its id says where, `--all` is not needed."""
    session.around.take_on()
    chosen = await client.pool(pool)
    if on is not None:
        chosen = await choose(client, session, pool=pool, everywhere=False, on=on)
    found = await chosen.find(run_id)
    session.expect(tuple(found))
    return found, chosen


@click.command()
@_run_id_argument(required=False)
@target_options
@click.option("-f", "--follow", is_flag=True, help="Show what comes, until the command ends.")
@click.option("--since", type=Duration(), metavar="TIME", help="What was written in the last 10m, 2h.")
@output_options
@_show_options
async def logs(
    session: Session, run_id: str | None, pool: str | None, everywhere: bool, on: str | None, follow: bool,
    since: timedelta | None,
) -> None:  # fmt: skip
    """Show what run ID (default: the newest) has written, without being its client: Ctrl-C leaves it alone.

    Kept is what nobody has fetched yet, and the last part of the rest; records go after 7 days.
    """
    from chisel.events import Notice

    del everywhere
    async with session.open() as client:
        found, target = await _having(client, session, run_id, pool, on)
        began = datetime.now(UTC) - since if since is not None else None
        logged = await target.logs(found, follow=follow, since=began, resumed=session.remains)
        for host, result in logged.items():
            said = "it runs" if result is None else f"it ended with status {result.status}"
            client.sink.emit(Notice(host=host, message=f"run {found[host]}: {said}"))


@click.command()
@_run_id_argument(required=False)
@target_options
@output_options
@_show_options
async def attach(session: Session, run_id: str | None, pool: str | None, everywhere: bool, on: str | None) -> None:
    """Follow run ID (default: the newest) as if it had been started here: output, Ctrl-C, status.

    Whoever followed it before is let go. Leaving by closing the terminal leaves a detached command running.
    """
    del everywhere
    async with session.open() as client:
        found, target = await _having(client, session, run_id, pool, on)
        async with interruptible(session, client) as control:
            results = await target.attach(found, capture=False, control=control, resumed=session.remains)
            take_status(session, results)


@click.command()
@_run_id_argument(required=True)
@target_options
@click.option("-s", "--signal", "name", metavar="NAME", help="Send this signal instead (INT, USR1, 9).")
@click.option("--grace", type=Duration(), default="5s", metavar="TIME", help="KILL so long after TERM (5s).")
@output_options
async def kill(
    session: Session,
    run_id: str,
    pool: str | None,
    everywhere: bool,
    on: str | None,
    name: str | None,
    grace: timedelta,
) -> None:
    """End run ID: TERM, after a grace KILL; returns when nothing of it is left."""
    from chisel.events import Notice

    del everywhere
    number = _signal(name) if name is not None else None
    if number is not None:
        session.around.decline()  # sent twice it is another thing
    async with session.open() as client:
        found, target = await _having(client, session, run_id, pool, on)
        for host, facts in (await target.kill(found, signal=number, grace=grace)).items():
            if not facts["was_running"]:
                said = f"it had ended already, with status {facts['status']}"
            elif number is not None:
                said = f"signal {number} was sent"
            else:
                said = "it does not end" if facts["running"] else f"it ended with status {facts['status']}"
                session.status = 1 if facts["running"] else session.status
            client.sink.emit(Notice(host=host, message=f"run {found[host]}: {said}"))


def _signal(name: str) -> int:
    try:
        number = int(name) if name.isdigit() else int(signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"])
        return int(signal.Signals(number))
    except (KeyError, ValueError):
        raise click.BadParameter(f"`{name}` is no signal", param_hint="--signal") from None
